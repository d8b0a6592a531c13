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
those of knapsacks optimal (`.subproblems`, `.selections`).

For costs that differ by direction the paper names random identifiers and a graph convolution on normalized costs, and
no code of it is there; so the convolution is reconstructed: each node hears of each other one by a ReLU layer of both
and of the costs both ways, and the sum of what it hears, over the root of how many there are, is added.
Smaller by default; `width=192, heads=12, layers=9, feed_forward=512` are the paper's sizes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polyrl.core.update import Sample, Update
from polyrl.data.base import Rows, Source
from polyrl.errors import UserError
from polyrl.methods.operations.bq_nco.network import SubproblemNetwork
from polyrl.methods.operations.bq_nco.selections import RestsOfKnapsacks, RestsOfRoutes
from polyrl.methods.operations.bq_nco.subproblems import PartsOfDirectedTours, PartsOfTours, Subproblems
from polyrl.models.constructive import draw_weights
from polyrl.parts.combinatorial import SEEN, AttentionPolicy, Beam
from polyrl.parts.improve import NLL
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.operations.asymmetric import AsymmetricTravelingSalesman
from polyrl.tasks.operations.combinatorial import CombinatorialTask
from polyrl.tasks.operations.knapsack import Knapsack
from polyrl.tasks.operations.orienteering import Orienteering
from polyrl.tasks.operations.routing import TravelingSalesman

SLUG, TITLE, PAPER, YEAR = (
    "bq-nco",
    "Bisimulation Quotienting for Efficient Neural Combinatorial Optimization",
    "arXiv:2301.03313",
    2023,
)
FORMULA = "loss = -log pi(first node of a part of a good tour | its origin, its destination, the nodes between)"
TASK = "tsp"
KINDS: dict[type, type[Subproblems]] = {
    TravelingSalesman: PartsOfTours,
    AsymmetricTravelingSalesman: PartsOfDirectedTours,
    Orienteering: RestsOfRoutes,
    Knapsack: RestsOfKnapsacks,
}
"""What is imitated, by the environment in which solutions are built."""
KNOWN = ("tsp", "atsp", "orienteering", "knapsack")
"""Tasks of which there are good solutions to imitate."""


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
