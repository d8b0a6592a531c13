"""UAM-Fleet: tell a fleet of air taxis where to fly next, by graph capsules, attention over vertiports, and PPO.

Vertiports and aircraft are two graphs, whose nodes are the nearer the more alike they are. A graph capsule mixes what
each node says with what its neighbors say, up to some steps away, and powers of it. Forecasts of demand and fares go
through a transformer over the hours. Whichever aircraft is free asks by what the fleet comes to, and a pointer scores
the vertiports that it may fly to.

The abstract was read, and the first author's public simulator and networks of 2022 for the same problem, whose capsule
(powers 1, one hop, tanh) and decoder are the ones here; what that code gets wrong is not copied (degree minus 1, the
last vertiport cut off, the most probable action in training). The weights of capsules are `W_p` for all hops at once.
Chosen here: the transformer reads each vertiport's own hours and not all pairs in one vector, so that no vertiport and
no number of them is special; a vertiport also shows what flying there now would bring, because the pointer cannot look
into the matrix of demand; features that are equal for all aircraft are left out; the time is beside the fleet's mean;
the reward is the profit of each flight over the day's whole revenue, which sums to the paper's; sizes are for one core.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.errors import UserError
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads, draw_weights
from polyrl.parts.combinatorial import BuildSolutions, ConstructivePolicy, SolutionValues
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.operations.air_taxis import SERIES, SIDE, AirTaxis, AirTaxiTask
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.fleets import HOURS

if TYPE_CHECKING:
    from polyrl.core.update import Draws

SLUG, YEAR, PAPER = "uam-fleet", 2024, "arXiv:2401.04851"
TITLE = "Graph Learning-based Fleet Scheduling for Urban Air Mobility"
FORMULA = "F_p = tanh(W_p [X^p, L X^p, ..., L^K X^p]), A_uv = 1 / (1 + |x_u - x_v|); pi = softmax pointer of vertiports"
TASK = "air-taxis"
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


@dataclass(frozen=True, kw_only=True)
class FleetPolicy(ConstructivePolicy):
    """Graph capsules of vertiports and aircraft with a pointer; or, as a control, two layers over all numbers."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy", "value"})

    learning_rate: float = hyperparameter(1e-3, "Adam step size (2022 code: 1e-6)", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(0.5, "norm at which the gradient is clipped; none is off", above=0)
    reads: Literal["graph", "flat"] = hyperparameter("graph", "two graphs, or all numbers in a row (the control)")
    width: int = hyperparameter(32, "numbers of a node, or of a layer (2022 code: 128)", low=2)
    heads: int = hyperparameter(4, "attention heads (2022 code: 8)", low=1)
    hour_layers: int = hyperparameter(1, "layers of the transformer over the hours", low=1)
    moments: int = hyperparameter(1, "powers of what nodes say", low=1)
    hops: int = hyperparameter(1, "how many steps away neighbors are heard; 0 hears none", low=0)

    def make(self, interface: Any, stream: torch.Generator) -> ConstructiveNetwork:
        """The network for a fleet, all its matrices uniform within +-1 / sqrt(their inputs).

        Raises:
            UserError: another problem, or a width that heads do not divide.
        """
        if not isinstance(interface, AirTaxiTask):
            raise UserError(f"{self.name} flies air taxis and not {interface.name}; use --task air-taxis.")
        if self.reads == "flat":
            usual = FleetPolicy()
            for name in ("heads", "hour_layers", "moments", "hops"):
                if vars(self)[name] != vars(usual)[name]:
                    raise UserError(f"{self.name}.{name} has no effect with reads=flat; leave it out.")
            network: FleetNetwork = FlatFleet(interface.n, interface.aircraft, self.width)
        else:
            network = self.build(interface.kind.node_features, interface.kind.context_features, stream)
        draw_weights(network, stream)
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight), nn.init.zeros_(module.bias)
        for parameter in network.last_of_value():
            nn.init.zeros_(parameter)  # or the day's end would look worth something, and every decision bad
        return network

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> FleetNetwork:
        """The network over graphs of any sizes; its weights are yet to be drawn."""
        if self.width % self.heads or self.width % 2:
            raise UserError(
                f"{self.name}.width is {self.width} but must be even and a multiple of heads ({self.heads})."
            )
        return GraphFleet(self.width, self.heads, self.hour_layers, self.moments, self.hops)


@dataclass(frozen=True, kw_only=True)
class FlyDays(BuildSolutions):
    """Fly random days with the present policy, decision by decision."""

    gives: ClassVar[frozenset[str]] = BuildSolutions.gives | {"node_state"}

    instances: int = hyperparameter(24, "random days in one iteration, each of about 90 decisions at 4x6", low=1)


@dataclass(frozen=True, kw_only=True)
class ShareOfRevenue(Part):
    """Pay each flight's profit over an aircraft's share of what all passengers of the day would pay."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "share-of-revenue"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "nodes"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Put `reward` [B, T] in the place of dollars; its sum is the normalized profit, times the aircraft."""
        fares = experience["nodes"][:, 0, :, STATIC + 2 :: SERIES]  # of all that wait, by the hour
        revenue = fares.sum((1, 2))
        fleet = experience["context"].shape[2] // AirTaxis.aircraft_features
        return experience.with_fields(reward=experience["reward"] * fleet / revenue[:, None])


def recipe() -> Recipe:
    """PPO on random days of the task's size."""
    terms = (ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5), EntropyBonus(entropy_coef=0.01))
    return Recipe(
        name=SLUG,
        models={"policy": FleetPolicy()},
        collect=FlyDays(),
        score=(ShareOfRevenue(),),
        credit=(SolutionValues(), GAE(gamma=1.0, gae_lambda=0.95), WhitenAdvantage()),
        updates=(Epochs((Update("policy", terms, Again()),), Fresh(), epochs=6, minibatches=8),),
        adds=("policy", "share-of-revenue"),
        notes={
            "collect": "random days go from decision to decision; whichever aircraft is free asks where to fly",
            "score": "a flight's profit, over what all passengers of that day would pay",
            "credit": "decisions come at uneven times, so nothing is discounted; against what the day's value foretold",
            "select": "all decisions count the same",
            "improve": "several epochs over whole days, safe because the clip stops ratios that moved far enough",
        },
    )
