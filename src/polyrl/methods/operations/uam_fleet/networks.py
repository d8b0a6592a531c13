"""Networks of UAM-Fleet: graph capsules, a transformer over the hours and a pointer; and the control, one vector."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads
from polyrl.tasks.operations.air_taxis import SERIES, SIDE, AirTaxis
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.fleets import HOURS

if TYPE_CHECKING:
    from polyrl.core.update import Draws

STATIC = 4
"""Numbers of a vertiport that stay, beside its hours."""


def laplacian(features: Tensor) -> Tensor:
    """L = D - A `[..., M, M]` of nodes `[..., M, F]`, which are the nearer the more alike they are."""
    near = (1 + distances(features)).reciprocal() * (1 - torch.eye(features.shape[-2]))
    return torch.diag_embed(near.sum(-1)) - near


def capsule(x: Tensor, of: Tensor, moments: int, hops: int) -> list[Tensor]:
    """Of each moment p the numbers `[X^p, L X^p, ..., L^K X^p]`: powers of numbers, and of the matrix."""
    found = []
    for p in range(1, moments + 1):
        reached = [x**p]
        for _ in range(hops):
            reached.append(of @ reached[-1])
        found.append(torch.cat(reached, -1))
    return found


class GraphCapsule(nn.Module):
    """A layer of graph capsules: nodes `[..., M, F]` -> `[..., M, D]`."""

    def __init__(self, features: int, width: int, moments: int, hops: int):
        super().__init__()
        self.hops, self.embed = hops, nn.Linear(features, width)
        self.mix = nn.ModuleList(nn.Linear((hops + 1) * width, width) for _ in range(moments))
        self.join = nn.Linear(moments * width, width)

    def forward(self, features: Tensor, told: Tensor | float = 0.0) -> Tensor:
        """`told` `[..., M, D]` is added to what the features come to."""
        each = capsule(self.embed(features) + told, laplacian(features), len(self.mix), self.hops)
        mixed = [torch.tanh(mix(x)) for mix, x in zip(self.mix, each, strict=True)]
        return torch.tanh(self.join(torch.cat(mixed, -1)))


class FleetNetwork(ConstructiveNetwork):
    """Scores of vertiports and a value of the day, from scaled numbers."""

    reads_node_state = True

    @staticmethod
    def scaled(nodes: Tensor) -> tuple[Tensor, Tensor]:
        """What stays of vertiports, `[B, N, 4]`, and their hours, `[B, N, 12, 4]`, each kind over its own largest."""
        static = nodes[..., :STATIC] / torch.tensor([SIDE, SIDE, 1.0, 0.1])
        hours = nodes[..., STATIC:].reshape(*nodes.shape[:2], HOURS, SERIES)
        return static, hours / hours.amax((1, 2), keepdim=True).clamp(min=1)

    @abstractmethod
    def last_of_value(self) -> Iterator[nn.Parameter]:
        """The last layer of the value."""

    @abstractmethod
    def both(self, seen: Seen, memory: Memory) -> tuple[Tensor, Tensor]:
        """Scores `[B, K, N]` and values `[B, K]`."""

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """Of vertiports."""
        return self.both(seen, memory)[0]

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Log-probability, entropy and value of the steps, `[B, T]` each."""
        seen = Seen.stored(batch)
        scores, value = self.both(seen, self.read(seen.nodes, seen.present))
        given = self.of_steps(self.masked(scores, seen), batch, wants)
        return {**given, "value": value.reshape(batch["action"].shape)} if "value" in wants else given


class GraphFleet(FleetNetwork):
    """Capsules of both graphs, a transformer over the hours, and a pointer."""

    def __init__(self, width: int, heads: int, layers: int, moments: int, hops: int):
        super().__init__()
        self.heads = heads
        self.hour = nn.Linear(SERIES, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.vertiports = GraphCapsule(STATIC + AirTaxis.state_features, width, moments, hops)
        self.aircraft = GraphCapsule(AirTaxis.aircraft_features, width, moments, hops)
        self.fleet, self.series = nn.Linear(2 * width + 1, width), nn.Linear(width, width)
        self.query, self.keys = nn.Linear(width, width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.glimpse = nn.Linear(width, width, bias=False)
        self.worth = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def read(self, nodes: Tensor, present: Tensor) -> Memory:
        """The hours of each vertiport by the transformer, `[B, N, D]` their mean."""
        static, hours = self.scaled(nodes)
        told = self.hour(hours.flatten(0, 1))
        told = told + positions(HOURS, told.shape[-1])
        for layer in self.layers:
            told = layer(told)
        return {"static": static, "series": told.mean(1).view(*static.shape[:2], -1)}

    def both(self, seen: Seen, memory: Memory) -> tuple[Tensor, Tensor]:
        """The encoder of both graphs, what the aircraft asks, and the pointer's answer."""
        assert seen.node_state is not None
        static, series = memory["static"][:, None], memory["series"]
        features = torch.cat([static.expand(-1, seen.node_state.shape[1], -1, -1), seen.node_state], -1)
        v = self.vertiports(features, series[:, None])
        numbers = seen.context[..., 1:].reshape(*seen.context.shape[:2], -1, AirTaxis.aircraft_features)
        crafts = self.aircraft(numbers)
        asks = (crafts * numbers[..., -1:]).sum(-2)  # the one that is asked
        mean = v.mean(-2)
        c = mean + self.fleet(torch.cat([asks, crafts.mean(-2), seen.context[..., :1]], -1))
        c = c + self.series(series.mean(1))[:, None]
        query = (self.query(mean) + c).flatten(0, 1)[:, None]
        keys, values, last = self.keys(v).flatten(0, 1).chunk(3, -1)
        q, k, w = (by_heads(x, self.heads) for x in (query, keys, values))
        answer = self.glimpse(scaled_dot_product_attention(q, k, w).transpose(1, 2).flatten(2))
        scores = (answer @ last.mT)[:, 0] / math.sqrt(last.shape[-1])
        return scores.view(*v.shape[:3]), self.worth(c)[..., 0]

    def last_of_value(self) -> Iterator[nn.Parameter]:
        """The last of its two layers."""
        return self.worth[2].parameters()


class FlatFleet(FleetNetwork):
    """The control: two layers over all numbers in a row, for one number of vertiports and of aircraft."""

    def __init__(self, vertiports: int, aircraft: int, width: int):
        super().__init__()
        each = AirTaxis.node_features + AirTaxis.state_features
        inputs = vertiports * each + 1 + aircraft * AirTaxis.aircraft_features
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.score, self.worth = nn.Linear(width, vertiports), nn.Linear(width, 1)

    def read(self, nodes: Tensor, present: Tensor) -> Memory:
        """All that stays, in a row.

        Raises:
            UserError: another number of vertiports than the network was made for.
        """
        if nodes.shape[1] != self.score.out_features:
            raise UserError(
                f"A network over all numbers in a row is for the {self.score.out_features} vertiports that it was made "
                f"for, and here are {nodes.shape[1]}; train with --reads graph, which flies fleets of any size."
            )
        static, hours = self.scaled(nodes)
        return {"flat": torch.cat([static.flatten(1), hours.flatten(1)], -1)}

    def both(self, seen: Seen, memory: Memory) -> tuple[Tensor, Tensor]:
        """Two layers."""
        assert seen.node_state is not None
        flat = memory["flat"][:, None].expand(-1, seen.context.shape[1], -1)
        h = self.layers(torch.cat([flat, seen.node_state.flatten(2), seen.context], -1))
        return self.score(h), self.worth(h)[..., 0]

    def last_of_value(self) -> Iterator[nn.Parameter]:
        """Its only layer."""
        return self.worth.parameters()


def positions(count: int, width: int) -> Tensor:
    """Sines and cosines of places, `[count, width]`."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
