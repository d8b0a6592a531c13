"""The knapsack problem as a batched environment: take items of most value whose weights fit, one after another.

Values and weights of random instances are whole numbers from 1 to 998, as in BQ-NCO's experiments (arXiv:2301.03313),
where 200 items and a capacity of 25,000 are usual: a quarter of what all items weigh, as 2,500 is of 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict
from polyrl.tasks.operations.combinatorial import CombinatorialTask, ConstructionEnvironment, Instances

LARGEST = 998
"""Value and weight of random items."""
MOST_EXACT = 10_000_000
"""Items times capacity up to which the optimum is a line."""
ROUNDING = 1e-9
"""Share of the capacity by which sums of weights that are no whole numbers may be beyond it."""
AT_ONCE = 50_000_000
"""Choices that are kept of some instances at once while they are solved."""


@dataclass(frozen=True)
class Items:
    """An instance: value and weight of each item, item 1 first, and how much fits."""

    value: tuple[float, ...]
    weight: tuple[float, ...]
    capacity: float

    @property
    def whole(self) -> bool:
        """Whether all weights are whole numbers."""
        return all(weight == int(weight) for weight in self.weight)


class Knapsack(ConstructionEnvironment):
    """Knapsacks for `items` items, of which those of weight `capacity` fit together.

    Actions are numbers of items from 1, int64 `[B]`: one that is left and fits. Where nothing fits the row ends; where
    nothing fits at first, its one action is 0. Node 0 is no item. Nodes are (value, weight) as shares of the largest
    ones, and the context is what still fits as a share of the largest weight.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = 2
    context_features: ClassVar[int] = 1
    travels: ClassVar[bool] = False

    def __init__(
        self, seed: int, rows: int, items: int = 20, capacity: int = 2_500, instances: Instances | None = None
    ):
        """`instances` gives the `Items` of a row's episode, as many as `items`; None draws them."""
        self.items, self.capacity, self.instances = items, capacity, instances
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Values and weights `[N]` float64, 0 of node 0, and what fits."""
        if self.instances is None:
            stream = generator(self.seed, "items", row, episode)
            both = torch.randint(1, LARGEST + 1, (2, self.items), generator=stream).double()
            capacity = float(self.capacity)
        else:
            given = self.instances(row, episode)
            both, capacity = torch.tensor([given.value, given.weight], dtype=torch.float64), float(given.capacity)
        nothing = torch.zeros(1, dtype=torch.float64)
        return {
            "value": torch.cat([nothing, both[0]]),
            "weight": torch.cat([nothing, both[1]]),
            "capacity": torch.tensor(capacity, dtype=torch.float64),
            "fits": torch.tensor(capacity, dtype=torch.float64),
            "left": torch.arange(self.items + 1) > 0,
        }

    def advance(self, state: State, action: Tensor) -> Moved:
        """Take the items `[B]`."""
        at, left = torch.arange(len(action)), state["left"].clone()
        left[at, action] = False
        after = {**state, "left": left, "fits": state["fits"] - state["weight"][at, action]}
        over = ~fitting(after["left"], after["weight"], after["fits"], after["capacity"]).any(1)
        return Moved(after, state["value"][at, action].float(), over)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Items, which are left, and what still fits."""
        nodes, context = seen_items(state["value"], state["weight"], state["fits"])
        nowhere = torch.zeros(len(nodes), dtype=torch.int64)
        return {
            "nodes": Padded(nodes, torch.ones(nodes.shape[:2], dtype=torch.bool)),
            "here": nowhere,
            "end": nowhere,
            "left": state["left"],
            "context": context,
        }

    def allowed(self, state: State) -> Tensor:
        """Items that are left and fit; 0 where there is none."""
        found = fitting(state["left"], state["weight"], state["fits"], state["capacity"])
        found[:, 0] = ~found.any(1)
        return found

    def instance(self, row: int) -> Items:
        """The row's items."""
        value, weight = (tuple(self.state[name][row, 1:].tolist()) for name in ("value", "weight"))
        return Items(value, weight, float(self.state["capacity"][row]))

    def solution(self, row: int) -> list[int]:
        """The items that were taken, by their numbers from 1."""
        return [item for item in (~self.state["left"][row]).nonzero()[:, 0].tolist() if item]

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """Minus the value of the items: each once, and together no heavier than what fits."""
        count, seen = len(instance.value), set[int]()
        for item in solution:
            if not 1 <= item <= count:
                return Verdict(None, f"there is no item {item} among {count}")
            if item in seen:
                return Verdict(None, f"item {item} is taken twice")
            seen.add(item)
        weight = math.fsum(instance.weight[item - 1] for item in seen)
        if weight > instance.capacity * (1 + ROUNDING):
            return Verdict(None, f"the items weigh {weight:.12g} of {instance.capacity:.12g}")
        return Verdict(-math.fsum(instance.value[item - 1] for item in seen))

    def good_items(self) -> Tensor:
        """Bool `[B, N]`, the items of an optimum."""
        state = self.state
        capacity = state["capacity"].long().numpy()
        taken = filled(state["value"][:, 1:].numpy(), state["weight"][:, 1:].long().numpy(), capacity)
        return torch.cat([torch.zeros(self.rows, 1, dtype=torch.bool), torch.from_numpy(taken)], 1)

    def references(self) -> dict[str, Tensor]:
        """Minus the values of the optimum, where it can be computed, and of the densest items."""
        exact = {}
        if self.items * float(self.state["capacity"].max()) <= MOST_EXACT and bool(
            (self.state["weight"] % 1 == 0).all()
        ):
            exact["optimum"] = -(self.state["value"] * self.good_items()).sum(1)
        greedy = [self.verify(one := self.instance(row), densest(one)).cost for row in range(self.rows)]
        return {**exact, "density greedy": torch.tensor(greedy, dtype=torch.float64)}


def fitting(left: Tensor, weight: Tensor, fits: Tensor, capacity: Tensor) -> Tensor:
    """Bool `[B, N]`, items that are left and weigh no more than what still fits `[B]`."""
    found: Tensor = left & (weight <= (fits + ROUNDING / 2 * capacity)[:, None])
    return found


def seen_items(value: Tensor, weight: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes `[B, N, 2]` and context `[B, 1]` for networks, of values and weights `[B, N]` and what fits `[B]`."""
    most, heaviest = value.amax(1, keepdim=True), weight.amax(1, keepdim=True)
    return torch.stack([value / most, weight / heaviest], -1).float(), (fits[:, None] / heaviest).float()


def densest(instance: Items) -> list[int]:
    """Items by value for their weight, each where it still fits (Dantzig 1957), by their numbers from 1."""
    by_density = sorted(range(len(instance.value)), key=lambda i: (-instance.value[i] / instance.weight[i], i))
    taken, fits = list[int](), instance.capacity
    for i in by_density:
        if instance.weight[i] <= fits:
            taken.append(i + 1)
            fits -= instance.weight[i]
    return sorted(taken)


def filled(value: NDArray[np.float64], weight: NDArray[np.int64], capacity: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which items are of most value together: values and whole weights `[B, n]`, capacities `[B]`.

    The dynamic program over capacities: the most value of the first items within each of them.
    """
    count, most = value.shape[1], int(capacity.max(initial=0)) + 1
    pieces = max(1, AT_ONCE // (count * most))
    taken = np.zeros(value.shape, np.bool_)
    for begin in range(0, len(value), pieces):
        rows = slice(begin, begin + pieces)
        taken[rows] = _filled(value[rows], weight[rows], capacity[rows], most)
    return taken


def _filled(
    value: NDArray[np.float64], weight: NDArray[np.int64], capacity: NDArray[np.int64], most: int
) -> NDArray[np.bool_]:
    rows, count = value.shape
    row, room = np.arange(rows), np.arange(most)
    best, better = np.zeros((rows, most)), np.zeros((count, rows, most), np.bool_)
    for item in range(count):
        before = room - weight[:, item, None]  # what is left beside it
        with_it = np.take_along_axis(best, before.clip(0), 1) + value[:, item, None]
        better[item] = (before >= 0) & (with_it > best)
        best = np.where(better[item], with_it, best)
    taken, left = np.zeros((rows, count), np.bool_), capacity.copy()
    for item in reversed(range(count)):
        taken[:, item] = better[item, row, left]
        left -= np.where(taken[:, item], weight[:, item], 0)
    return taken


@dataclass(frozen=True)
class KnapsackTask(CombinatorialTask):
    """The most value of `n` items of which those of weight `capacity` fit together."""

    name: ClassVar[str] = "knapsack"
    label: ClassVar[str] = "value"
    kind: ClassVar[type[ConstructionEnvironment]] = Knapsack
    maximizes: ClassVar[bool] = True

    capacity: int = 2_500

    def __post_init__(self) -> None:
        """Refuse a knapsack into which some item may not go, and one that cannot be filled exactly in time."""
        super().__post_init__()
        if not LARGEST <= self.capacity <= 50_000:
            raise UserError(f"{self.name}.capacity is {self.capacity} but must be from {LARGEST} to 50000.")

    def environment(self, seed: int, rows: int) -> Knapsack:
        """Rows of n items."""
        return Knapsack(seed, rows, self.n, self.capacity)

    def describe(self) -> str:
        """How many items there are, and what fits."""
        return f"{self.n} items, of which those of weight {self.capacity:,} fit together"
