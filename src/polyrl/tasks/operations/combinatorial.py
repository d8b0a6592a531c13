"""Combinatorial problems as tasks: instances by seed, an environment in which solutions are built, lines beside them.

A task is the problem and the size of its instances. Solutions are built step by step in a `BatchedEnvironment`, whose
rows are instances; where these come from is apart from it (`Instances`), so that a benchmark's file is another
generator. Every run is judged on the same held-out instances.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.cache import cache_folder, cached
from polyrl.runtime.metric import Metric
from polyrl.tasks.batched import BatchedEnvironment, State

EVALUATION_SEED = 20231
"""Of the held-out instances: the same for all runs."""
HELD_OUT = 512
"""How many of them there are."""
VERSION = 1
"""Of what `references` computes: another one is computed anew."""
Instances = Callable[[int, int], Any]
"""The instance of a row's episode, from the numbers of both."""


class ConstructionEnvironment(BatchedEnvironment):
    """Rows of instances whose solutions are built node by node.

    An action is the number of a node, int64 `[B]`. All problems show the same things, by which one network serves
    them: `nodes` (`Padded`, `[B, N, F]`), `here` and `end`, the numbers of the node where one is and of the one where
    one is to end, int64 `[B]`; `left`, which nodes are still to be visited, bool `[B, N]`; `context` `[B, C]`, numbers
    that change on the way, such as the load that is left; and where nodes themselves change, `node_state` `[B, N, D]`.
    Where the ways between nodes are part of the instance, and do not follow from the nodes, `costs` (`Padded`,
    `[B, N, N]`, from each node to each other) are shown too.

    Where actions are moves (`by_moves`), an action is the number of a move, and masks are `[B, A]`. Of problems that
    maximize, costs are minus what is gained.

    Class attributes:
        node_features: F, what is known of a node.
        context_features: C.
        state_features: D, what changes at a node; 0 where nothing does.
        counts: entries of the state, `[B]`, that grow: what a step adds to one is a field of its name.
        by_moves: whether actions are moves and not nodes.
        has_costs: whether `costs` are shown.
        travels: whether one stands somewhere and is to end somewhere; else `here` and `end` are node 0, which is no
            part of the problem.
    """

    node_features: ClassVar[int]
    context_features: ClassVar[int] = 0
    state_features: ClassVar[int] = 0
    counts: ClassVar[tuple[str, ...]] = ()
    by_moves: ClassVar[bool] = False
    has_costs: ClassVar[bool] = False
    travels: ClassVar[bool] = True

    @abstractmethod
    def allowed(self, state: State) -> Tensor:
        """Bool `[B, N]`, the nodes (or moves) that may come next; one at least in a row that has not ended."""

    @abstractmethod
    def references(self) -> dict[str, Tensor]:
        """Costs `[B]` of the rows' instances by which solutions are judged, by name, the one to reach first."""

    def varied(self, state: State, copy: Tensor) -> State:
        """States of rows of which there are copies, each begun in another way that an optimal solution may begin in.

        Args:
            state: of rows in which nothing was done yet.
            copy: int64 `[B]`, which copy each row is; copy 0 stays as it is.
        """
        return state

    def lines(self) -> dict[str, float]:
        """Means of `references`."""
        return {name: float(costs.double().mean()) for name, costs in self.references().items()}


@dataclass(frozen=True)
class CombinatorialTask(ABC):
    """A problem, and the size of the instances on which methods are trained and judged.

    Attributes:
        n: nodes of an instance that are to be visited.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    budget: ClassVar[str] = "updates=1500"
    access: ClassVar[frozenset[str]] = frozenset({"episodes", "reset-to-state"})
    """What it grants (`polyrl.core.access`)."""
    held_out_instances: ClassVar[int] = HELD_OUT
    most: ClassVar[int] = 200
    kind: ClassVar[type[ConstructionEnvironment]]
    unit: ClassVar[str] = ""
    maximizes: ClassVar[bool] = False
    """Whether solutions are worth something and cost nothing: people see minus the cost, as a value."""
    decoding: ClassVar[Literal["greedy", "sampled"]] = "greedy"
    """How policies are judged: by their most probable actions, or as they act in training."""

    n: int = 20

    def __post_init__(self) -> None:
        """Refuse sizes that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        if not 3 <= self.n <= self.most:
            raise UserError(f"{self.name}.n is {self.n} but must be from 3 to {self.most}.")

    @abstractmethod
    def environment(self, seed: int, rows: int) -> ConstructionEnvironment:
        """Rows of random instances, functions of (seed, row, episode)."""

    @cached_property
    def held_out(self) -> ConstructionEnvironment:
        """The instances on which everything is judged; nobody steps this very environment."""
        return self.environment(EVALUATION_SEED, self.held_out_instances)

    @cached_property
    def references(self) -> Mapping[str, Tensor]:
        """Costs `[held_out_instances]` of them, by name; kept in the cache, because they take some seconds."""
        settings = "-".join(f"{name}{value}" for name, value in asdict(self).items())
        folder = cache_folder() / "references" / f"{self.name}-{settings}-v{VERSION}"

        def make(into: Path) -> dict[str, Any]:
            found = self.held_out.references()
            save_file(found, into / "costs.safetensors")
            return {"names": [*found]}

        names = json.loads((cached(folder, make) / "polyrl.json").read_text("utf-8"))["names"]
        costs = load_file(folder / "costs.safetensors")
        return {name: costs[name] for name in names}

    @cached_property
    def metric(self) -> Metric:
        """Mean cost, or value, on the held-out instances, beside the optimum and heuristics."""
        lines = {name: self.seen(float(costs.double().mean())) for name, costs in self.references.items()}
        exact = next(iter(lines)) == "optimum"
        return Metric(
            key=f"eval/{self.measure}",
            label=self.label,
            unit=self.unit,
            higher_is_better=self.maximizes,
            lines=lines,
            target="optimum" if exact else "",
        )

    @property
    def measure(self) -> str:
        """What people see of a solution, in a word."""
        return "value" if self.maximizes else "cost"

    def seen(self, cost: float) -> float:
        """A cost as people see it."""
        return -cost if self.maximizes else cost

    @abstractmethod
    def describe(self) -> str:
        """The problem in a few words."""


def distances(points: Tensor) -> Tensor:
    """Euclidean distances of points `[..., N, 2]`, `[..., N, N]`."""
    found: Tensor = (points[..., :, None, :] - points[..., None, :, :]).norm(dim=-1)
    return found


def uniform_points(count: int, stream: torch.Generator) -> Tensor:
    """Points in the unit square, `[count, 2]` float32."""
    return torch.rand(count, 2, generator=stream)


def as_points(instance: Any) -> Tensor:
    """Coordinates of an instance `[n, 2]`, float32."""
    return torch.as_tensor(np.asarray(instance), dtype=torch.float32)
