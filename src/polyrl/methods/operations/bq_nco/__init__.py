"""BQ-NCO: build a solution from the sub-problem that remains, and learn it from good solutions cut into sub-problems.

A state is where one stands, where one is to end, and what is not visited yet, so that prefixes with the same future are
one state (bisimulation quotienting). One network of attention layers without positions reads it anew at every step; it
imitates the first decision of random sub-paths of good tours, each of which is optimal for its own sub-problem, so that
sub-problems of all sizes are there without further labels. Greedy decoding and beam search go on to sizes that were not
trained on.

As the code of the paper has it: dot products are not divided by the root of their size, and biases stand at keys and
values alone; residual scalars begin at 0, and there is no normalization. As its text, and not its code, has it: any
part of a tour is cut, the whole tour included, whose origin and destination are one city in two tokens. Sub-problems of
different sizes are in one batch, padded. Labels of tours are of local search (`tasks.operations.tours`) and not
Concorde's or LKH's, those of orienteering of ruin and recreate (`tasks.operations.prize_routes`) and not EA4OP's, and
those of knapsacks optimal (`.subproblems`).

For costs that differ by direction the paper names random identifiers and a graph convolution on normalized costs, and
no code of it is there; so the convolution is reconstructed: each node hears of each other one by a ReLU layer of both
and of the costs both ways, and the sum of what it hears, over the root of how many there are, is added.
Smaller by default; `width=192, heads=12, layers=9, feed_forward=512` are the paper's sizes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
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
from polyrl.methods.operations.bq_nco.subproblems import KINDS
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads, draw_weights, feed_forward_layers
from polyrl.parts.combinatorial import SEEN, AttentionPolicy, Beam
from polyrl.parts.improve import NLL
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.operations.combinatorial import CombinatorialTask

SLUG, TITLE, PAPER, YEAR = (
    "bq-nco",
    "Bisimulation Quotienting for Efficient Neural Combinatorial Optimization",
    "arXiv:2301.03313",
    2023,
)
FORMULA = "loss = -log pi(first node of a part of a good tour | its origin, its destination, the nodes between)"
TASK = "tsp"
KNOWN = ("tsp", "atsp", "orienteering", "knapsack")
"""Tasks of which there are good solutions to imitate."""
HEARD = 32
"""Numbers that a node hears of another one over the costs between them."""


class CostConvolution(nn.Module):
    """What each node hears of all others over the costs between them, as shares of their mean in the sub-problem."""

    def __init__(self, width: int):
        super().__init__()
        self.hears, self.says = nn.Linear(width, HEARD), nn.Linear(width, HEARD, bias=False)
        self.costs, self.out = nn.Linear(2, HEARD, bias=False), nn.Linear(HEARD, width)

    def forward(self, h: Tensor, costs: Tensor, there: Tensor) -> Tensor:
        """`h` `[R, M, D]` and costs `[R, M, M]` -> `[R, M, D]`; what is not `there`, bool `[R, M]`, is not heard."""
        both = (there[:, :, None] & there[:, None]).float()
        share = costs * (both.sum((1, 2)) / (costs * both).sum((1, 2)).clamp(min=1e-9))[:, None, None]
        ways = self.costs(torch.stack([share, share.mT], -1))
        heard = (self.hears(h)[:, :, None] + self.says(h)[:, None] + ways).relu() * there[:, None, :, None]
        found: Tensor = h + self.out(heard.sum(2) / there.sum(1)[:, None, None].sqrt())
        return found


class SubproblemNetwork(ConstructiveNetwork):
    """Reads what remains anew at every step, origin and destination first where one travels."""

    reads_costs = True

    def __init__(
        self,
        features: int,
        width: int,
        heads: int,
        layers: int,
        feed_forward: int,
        *,
        travels: bool = True,
        costs: bool = False,
    ):
        super().__init__()
        self.heads, self.ends = heads, 2 * travels
        if travels:
            self.begin, self.end = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.convolution = CostConvolution(width) if costs else None
        self.embed, self.score = nn.Linear(features, width), nn.Linear(width, 1)
        self.query = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.keys = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))  # and values
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.forth = feed_forward_layers(layers, width, feed_forward)
        self.alpha = nn.Parameter(torch.zeros(layers, 2))

    def forward(self, tokens: Tensor, there: Tensor | None = None, costs: Tensor | None = None) -> Tensor:
        """Scores `[R, M]` of tokens `[R, M, F]`, of which the first is the origin and the second the destination.

        `there` bool `[R, M]` says which are no padding; None: all. `costs` `[R, M, M]` are those between the tokens.
        """
        h = self.embed(tokens)
        if self.ends:
            h = h + torch.stack([self.begin, self.end, *[torch.zeros_like(self.begin)] * (tokens.shape[1] - 2)])
        if self.convolution is not None:
            all_there = torch.ones(tokens.shape[:2], dtype=torch.bool)
            h = self.convolution(h, costs, all_there if there is None else there)
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
        left, ends = seen.left.flatten(0, 1), self.ends
        count = ends + left.sum(1)
        most = int(count.max())
        which = left.int().argsort(dim=1, descending=True, stable=True)[:, : most - ends]  # in the nodes' order
        if ends:
            which = torch.cat([torch.stack([seen.here, seen.end], -1).flatten(0, 1), which], 1)  # [R, most]
        row = torch.arange(instances).repeat_interleave(states)[:, None]
        own = seen.context.flatten(0, 1)[:, None].expand(-1, which.shape[1], -1)
        tokens = torch.cat([seen.nodes[row, which], own], -1)
        there = torch.arange(which.shape[1]) < count[:, None]
        costs = None if seen.costs is None else seen.costs[row[..., None], which[:, :, None], which[:, None]]
        found: Tensor = self(tokens, None if bool(there.all()) else there, costs)
        # padding stands at a place behind the nodes; what is left comes after the destination, and takes its place
        to = torch.where(there, which, nodes)
        scores = found.new_zeros(len(found), nodes + 1)
        if ends:
            scores = scores.scatter(1, to[:, 1:2], found[:, 1:2])
        scores = scores.scatter(1, to[:, ends:], found[:, ends:])
        return scores[:, :nodes].reshape(instances, states, nodes)

    def of_steps(self, logprobs: Tensor, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Where several decisions are right (`target`), `logprob` is the mean of theirs."""
        given = super().of_steps(logprobs, batch, wants)
        if "target" in batch and "logprob" in wants:
            target = batch["target"]
            right = torch.where(target > 0, logprobs.reshape(target.shape), 0.0)  # others may be -inf
            given["logprob"] = (target * right).sum(-1)
        return given


@dataclass(frozen=True, kw_only=True)
class SubproblemAttention(AttentionPolicy):
    """Attention over the sub-problem that remains, read anew at every step."""

    def make(self, interface: Any, stream: torch.Generator) -> SubproblemNetwork:
        """The network for a task's problem, with weights drawn from `stream`."""
        kind = interface.kind
        features = kind.node_features, kind.context_features
        return self.build(*features, stream, travels=kind.travels, costs=kind.has_costs)

    def build(
        self,
        node_features: int,
        context_features: int,
        stream: torch.Generator,
        *,
        travels: bool = True,
        costs: bool = False,
    ) -> SubproblemNetwork:
        """The network; at first each score depends on its own token alone, and on its costs where there are any.

        Raises:
            UserError: the width is no multiple of the heads.
        """
        network = SubproblemNetwork(node_features + context_features, *self.sizes(), travels=travels, costs=costs)
        draw_weights(network, stream)
        nn.init.zeros_(network.alpha)
        return network


# --------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class GoodTours(Source):
    """Sub-problems cut from good solutions of random instances, the same for all runs on a task, kept in the cache."""

    fields: ClassVar[frozenset[str]] = SEEN | {"action", "action_mask", "weight", "row"}

    solved: int = hyperparameter(12_000, "instances that are solved", low=1)
    symmetries: bool = hyperparameter(True, "whether instances in the plane are turned and mirrored at random")

    def make(self, name: str, task: Any, config: Any) -> Rows:
        """Solve the instances, or read them from the cache.

        Raises:
            UserError: there are no good solutions of the task's problem to cut into sub-problems.
        """
        kind = KINDS.get(task.kind) if isinstance(task, CombinatorialTask) else None
        if kind is None:
            raise UserError(
                f"'{self.name}' cuts good solutions into sub-problems, and {task.name} has none; take --task "
                f"{', '.join(KNOWN[:-1])} or {KNOWN[-1]}."
            )
        settings = "-".join(f"{setting}{value}" for setting, value in asdict(task).items())
        folder = cache_folder() / "solutions" / f"{task.name}-{settings}-{self.solved}-v1"

        def make(into: Path) -> dict[str, Any]:
            save_file(
                kind.solved(task.environment(stream_seed(0, "solutions"), self.solved)), into / "solutions.safetensors"
            )
            return {"task": task.name, **asdict(task), "solved": self.solved}

        return kind(load_file(cached(folder, make) / "solutions.safetensors"), self.symmetries, name)


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
