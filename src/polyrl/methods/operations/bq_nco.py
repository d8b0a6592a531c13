"""BQ-NCO: build a solution from the sub-problem that remains, and learn it from good solutions cut into sub-problems.

A state is where one stands, where one is to end, and what is not visited yet, so that prefixes with the same future are
one state (bisimulation quotienting). One network of attention layers without positions reads it anew at every step; it
imitates the first decision of random sub-paths of good tours, each of which is optimal for its own sub-problem, so that
sub-problems of all sizes are there without further labels. Greedy decoding and beam search go on to sizes that were not
trained on.

As the code of the paper has it: dot products are not divided by the root of their size, and biases stand at keys and
values alone; residual scalars begin at 0, and there is no normalization. As its text, and not its code, has it: any
part of a tour is cut, the whole tour included, whose origin and destination are one city in two tokens. Sub-problems of
different sizes are in one batch, padded. Labels are of local search (`tasks.operations.tours`) and not Concorde's.
Smaller by default; `width=192, heads=12, layers=9, feed_forward=512` are the paper's sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from polyrl.core.experience import Experience
from polyrl.core.update import Sample, Update
from polyrl.data.base import Rows, Source
from polyrl.errors import UserError
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads, draw_weights, feed_forward_layers
from polyrl.parts.combinatorial import SEEN, AttentionPolicy, Beam
from polyrl.parts.improve import NLL
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.operations.routing import TravelingSalesmanTask

SLUG, TITLE, PAPER, YEAR = (
    "bq-nco",
    "Bisimulation Quotienting for Efficient Neural Combinatorial Optimization",
    "arXiv:2301.03313",
    2023,
)
FORMULA = "loss = -log pi(first node of a part of a good tour | its origin, its destination, the nodes between)"
TASK = "tsp"
SHORTEST = 4
"""Tokens of the smallest sub-problem: two nodes to choose from."""


class SubproblemNetwork(ConstructiveNetwork):
    """Reads what remains anew at every step, origin and destination first."""

    def __init__(self, features: int, width: int, heads: int, layers: int, feed_forward: int):
        super().__init__()
        self.heads = heads
        self.begin, self.end = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.embed, self.score = nn.Linear(features, width), nn.Linear(width, 1)
        self.query = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.keys = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))  # and values
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.forth = feed_forward_layers(layers, width, feed_forward)
        self.alpha = nn.Parameter(torch.zeros(layers, 2))

    def forward(self, tokens: Tensor, there: Tensor | None = None) -> Tensor:
        """Scores `[R, M]` of tokens `[R, M, F]`, of which the first is the origin and the second the destination.

        `there` bool `[R, M]` says which are no padding; None: all.
        """
        marks = torch.stack([self.begin, self.end, *[torch.zeros_like(self.begin)] * (tokens.shape[1] - 2)])
        h = self.embed(tokens) + marks
        seen = None if there is None else there[:, None, None]
        layers = zip(self.query, self.keys, self.out, self.forth, self.alpha, strict=True)
        for query, keys, out, forth, alpha in layers:
            q, k, v = (self._heads(x) for x in (query(h), *keys(h).chunk(2, -1)))
            attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0)
            h = h + alpha[0] * out(attended.transpose(1, 2).flatten(2))
            h = h + alpha[1] * forth(h)
        found: Tensor = self.score(h)[..., 0]
        return found

    def _heads(self, x: Tensor) -> Tensor:
        return by_heads(x, self.heads)

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """Of what is left and of the destination, each a token of the sub-problem; of all other nodes 0."""
        instances, states, nodes = seen.mask.shape
        left = seen.left.flatten(0, 1)
        count = left.sum(1)
        most = int(count.max())
        middle = left.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # what is left, in the nodes' order
        ends = torch.stack([seen.here, seen.end], -1).flatten(0, 1)
        which = torch.cat([ends, middle], 1)  # [R, 2 + most]
        row = torch.arange(instances).repeat_interleave(states)[:, None]
        own = seen.context.flatten(0, 1)[:, None].expand(-1, which.shape[1], -1)
        tokens = torch.cat([seen.nodes[row, which], own], -1)
        there = torch.arange(which.shape[1]) < (2 + count)[:, None]
        found: Tensor = self(tokens, None if bool(there.all()) else there)
        # padding stands at a place behind the nodes; what is left comes after the destination, and takes its place
        to = torch.where(there, which, nodes)
        scores = found.new_zeros(len(found), nodes + 1)
        scores = scores.scatter(1, to[:, 1:2], found[:, 1:2]).scatter(1, to[:, 2:], found[:, 2:])
        return scores[:, :nodes].reshape(instances, states, nodes)


@dataclass(frozen=True, kw_only=True)
class SubproblemAttention(AttentionPolicy):
    """Attention over the sub-problem that remains, read anew at every step."""

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> SubproblemNetwork:
        """The network; at first each score depends on its own token alone.

        Raises:
            UserError: the width is no multiple of the heads.
        """
        network = SubproblemNetwork(node_features + context_features, *self.sizes())
        draw_weights(network, stream)
        nn.init.zeros_(network.alpha)
        return network


# --------------------------------------------------------------------------------------------------------------- data


class Subproblems(Rows):
    """Good tours `[count, n]` of cities `[count, n, 2]`; a row is the first decision of a random part of one."""

    def __init__(self, cities: Tensor, tours: Tensor, symmetries: bool, name: str = "solutions"):
        self.name = name
        self.points = cities.gather(1, tours[..., None].expand(-1, -1, 2))  # in the order of the tour
        self.symmetries = symmetries

    def ready(self) -> bool:
        """From the start."""
        return True

    def sentence(self) -> str:
        """How many tours there are, and of how many cities."""
        count, cities = self.points.shape[:2]
        return f"{self.name}: {count:,} good tours of {cities} cities, of which random parts are drawn"

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """Sub-problems: nodes in the order of the path, so that node 1 is the label; the network has no positions."""
        size = self.points.shape[1]

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, (count, *shape), generator=stream)

        number, first, turned = draw(0, len(self.points)), draw(0, size, 1), draw(0, 2, 1)
        length = draw(min(SHORTEST, size + 1), size + 2, 1)  # size + 1 tokens are the whole tour
        place = torch.arange(size + 1)
        nodes = self.points[number[:, None], (first + (1 - 2 * turned) * place) % size]
        if self.symmetries:  # the eight of the square
            flip = draw(0, 2, 1, 2).bool()
            nodes = torch.where(flip, 1 - nodes, nodes)
            nodes = torch.where(draw(0, 2, 1, 1).bool(), nodes.flip(-1), nodes)
        there, middle = place < length, (place > 0) & (place < length - 1)
        fields = {
            "nodes": nodes * there[..., None],
            "node_mask": there,
            "here": torch.zeros(count, dtype=torch.int64),
            "end": length[:, 0] - 1,
            "left": middle,
            "context": nodes.new_zeros(count, 0),
            "action": torch.ones(count, dtype=torch.int64),
            "action_mask": middle,
            "row": number,
            "weight": torch.ones(count),
        }
        return Experience({name: x[:, None] for name, x in fields.items()})


@dataclass(frozen=True)
class GoodTours(Source):
    """Sub-problems cut from good tours of random instances, the same for all runs on a task, kept in the cache."""

    fields: ClassVar[frozenset[str]] = SEEN | {"action", "action_mask", "weight", "row"}

    solved: int = hyperparameter(12_000, "instances that are solved", low=1)
    symmetries: bool = hyperparameter(True, "whether instances are turned and mirrored at random")

    def make(self, name: str, task: Any, config: Any) -> Rows:
        """Solve the instances, or read them from the cache.

        Raises:
            UserError: the task's solutions are no tours.
        """
        if not isinstance(task, TravelingSalesmanTask):
            raise UserError(f"'{self.name}' cuts tours into sub-problems, and {task.name} has none; take --task tsp.")
        folder = cache_folder() / "solutions" / f"{task.name}-n{task.n}-{self.solved}-v1"

        def make(into: Path) -> dict[str, Any]:
            environment = task.environment(stream_seed(0, "solutions"), self.solved)
            tours, cities = environment.good_tours(), environment.state["cities"]
            save_file({"cities": cities.contiguous(), "tours": tours}, into / "solutions.safetensors")
            return {"task": task.name, "n": task.n, "solved": self.solved}

        found = load_file(cached(folder, make) / "solutions.safetensors")
        return Subproblems(found["cities"], found["tours"], self.symmetries, name)


def recipe() -> Recipe:
    """Cross-entropy of the first decision, on sub-problems drawn anew for each update; nothing is collected."""
    return Recipe(
        name=SLUG,
        models={"policy": SubproblemAttention(schedule="cosine")},
        sources={"solutions": GoodTours()},
        updates=(Update("policy", (NLL(),), Sample("solutions", batch_size=256)),),
        turns=50,
        also_judged={"beam": Beam()},
        adds=("policy",),
    )
