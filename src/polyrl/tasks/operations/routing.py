"""The traveling salesman as a batched environment: build a tour city by city, and know how good the best one is.

A tour begins in city 0 and comes back to it. The reward of a step is minus its distance, that of the last step the way
back too. Cities are uniform in the unit square, and their number is uniform between two bounds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict, greedily
from polyrl.tasks.operations.combinatorial import (
    CombinatorialTask,
    ConstructionEnvironment,
    Instances,
    as_points,
    distances,
    uniform_points,
)
from polyrl.tasks.operations.tours import farthest_insertion, nearest_neighbor, searched, tour_lengths

MOST_EXACT = 13
"""Cities up to which the optimum is a line: its time and memory double with every city."""
Points = NDArray[np.float64]


class TravelingSalesman(ConstructionEnvironment):
    """Tours through `least` to `most` cities.

    Actions are numbers of cities, int64 `[B]`. Nodes are the cities (x, y); `end` is the city where the tour began.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = 2

    def __init__(
        self, seed: int, rows: int, least: int = 10, most: int | None = None, instances: Instances | None = None
    ):
        """`instances` gives the cities `[n, 2]` of a row's episode, `most` at most; None draws uniform ones."""
        self.least, self.most = least, least if most is None else most
        self.instances = instances
        if not 2 <= self.least <= self.most:
            raise ValueError(f"a tour goes through 2 cities or more, and least is {least}, most {most}")
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Cities `[N, 2]`, how many of them there are, and where one is: in the first."""
        if self.instances is not None:
            drawn = as_points(self.instances(row, episode))
            count = len(drawn)
        else:
            stream = generator(self.seed, "cities", row, episode)
            count = int(torch.randint(self.least, self.most + 1, (), generator=stream))
            drawn = uniform_points(count, stream)
        cities = torch.zeros(self.most, 2)
        cities[:count] = drawn
        left = torch.arange(self.most) < count
        left[0] = False
        return {
            "cities": cities,
            "count": torch.tensor(count),
            "start": torch.tensor(0),
            "here": torch.tensor(0),
            "left": left,
            "tour": torch.zeros(self.most, dtype=torch.int64),
        }

    def varied(self, state: State, copy: Tensor) -> State:
        """Copy k begins in city k: every tour goes through every city."""
        at, start = torch.arange(len(copy)), copy % state["count"]
        left, tour = state["left"].clone(), state["tour"].clone()
        left[:, 0] = True
        left[at, start], tour[:, 0] = False, start
        return {**state, "start": start, "here": start, "left": left, "tour": tour}

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the cities `[B]`, and from the last one back."""
        at = torch.arange(len(action))
        cities, left, tour = state["cities"], state["left"].clone(), state["tour"].clone()
        done = state["count"] - left.sum(1)  # cities that are in the tour
        left[at, action], tour[at, done] = False, action
        way = (cities[at, action] - cities[at, state["here"]]).norm(dim=1)
        over = ~left.any(1)
        back = (cities[at, action] - cities[at, state["start"]]).norm(dim=1)
        after = {**state, "left": left, "tour": tour, "here": action}
        return Moved(after, -(way + torch.where(over, back, 0.0)), over)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Cities, where one is, where the tour ends, what is left."""
        present = torch.arange(self.most) < state["count"][:, None]
        cities = Padded(state["cities"], present)
        context = state["cities"].new_zeros(len(present), 0)
        return {
            "nodes": cities,
            "here": state["here"],
            "end": state["start"],
            "left": state["left"],
            "context": context,
        }

    def allowed(self, state: State) -> Tensor:
        """The cities that are left."""
        return state["left"]

    def instance(self, row: int) -> Points:
        """The row's cities `[n, 2]`."""
        count = int(self.state["count"][row])
        found: Points = self.state["cities"][row, :count].double().numpy()
        return found

    def solution(self, row: int) -> list[int]:
        """The cities in the order of the tour, city 0 first; while it is built, those that it has so far."""
        done = int(self.state["count"][row] - self.state["left"][row].sum())
        found: list[int] = self.state["tour"][row, :done].tolist()
        first = found.index(0) if 0 in found else 0
        return found[first:] + found[:first]

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """The length of a tour: every city once, from the first one and back to it."""
        count = len(instance)
        seen: set[int] = set()
        for city in solution:
            if not 0 <= city < count:
                return Verdict(None, f"there is no city {city} among {count}")
            if city in seen:
                return Verdict(None, f"city {city} is visited twice")
            seen.add(city)
        if missing := sorted(set(range(count)) - seen):
            return Verdict(None, f"city {missing[0]} is not visited")
        if solution[0] != 0:
            return Verdict(None, f"the tour begins in city {solution[0]} and not in city 0")
        length = 0.0
        for here, there in itertools.pairwise([*solution, 0]):
            length += math.dist(instance[here], instance[there])
        return Verdict(length)

    def good_tours(self) -> Tensor:
        """Tours `[B, N]` from city 0 that local search comes to; rows have equally many cities."""
        return searched(distances(self.state["cities"]), starts_of(self.most))

    def references(self) -> dict[str, Tensor]:
        """Lengths on the rows' present cities: the optimum, or what local search comes to, and two constructions."""
        counts = self.state["count"]
        found: dict[str, Tensor] = {}
        for count in torch.unique(counts).tolist():
            rows = (counts == count).nonzero()[:, 0]
            away = distances(self.state["cities"][rows, :count].double())
            for name, lengths in _references(away).items():
                found.setdefault(name, torch.full((self.rows,), torch.nan, dtype=torch.float64))[rows] = lengths
        if int(counts.max()) > MOST_EXACT:
            found.pop("optimum", None)
        return found


def _references(away: Tensor) -> dict[str, Tensor]:
    count = away.shape[1]
    first = torch.zeros(len(away), dtype=torch.int64)
    exact = {}
    if count <= MOST_EXACT:
        exact["optimum"] = torch.tensor([shortest(one)[0] for one in away.numpy()], dtype=torch.float64)
    return {
        **exact,
        "2-opt and Or-opt": tour_lengths(away, searched(away.float(), starts_of(count))),
        "farthest insertion": tour_lengths(away, farthest_insertion(away)),
        "nearest neighbor": tour_lengths(away, nearest_neighbor(away, first)),
    }


def starts_of(count: int) -> int:
    """From how many nearest-neighbor tours local search begins: fewer where each takes longer."""
    return min(count, 2 + 100 // count)


def _nearness(seen: Observation) -> Tensor:
    """Minus the distance of each city `[B, N]`."""
    cities, here = seen["nodes"], seen["here"]
    assert isinstance(cities, Padded) and isinstance(here, Tensor)
    away: Tensor = (cities.values - cities.values[torch.arange(len(here)), here][:, None]).norm(dim=2)
    return -away


NEAREST = greedily(_nearness)
"""Go to the nearest city that is left."""


@dataclass(frozen=True)
class TravelingSalesmanTask(CombinatorialTask):
    """The shortest tour through `n` cities, uniform in the unit square."""

    name: ClassVar[str] = "tsp"
    label: ClassVar[str] = "tour length"
    kind: ClassVar[type[ConstructionEnvironment]] = TravelingSalesman

    def environment(self, seed: int, rows: int) -> TravelingSalesman:
        """Rows of n cities."""
        return TravelingSalesman(seed, rows, self.n)

    def describe(self) -> str:
        """How many cities there are."""
        return f"tours through {self.n} cities in the unit square"


def held_karp(points: Points) -> tuple[float, list[int]]:
    """Length and order of the shortest tour from city 0 through all other points `[n, 2]` and back."""
    return shortest(np.linalg.norm(points[:, None] - points[None], axis=2))


def shortest(away: NDArray[np.float64]) -> tuple[float, list[int]]:
    """Length and order of the shortest tour from city 0 through all others and back, by distances `[n, n]`.

    They may differ by direction: row i holds the ways out of city i.
    """
    count = len(away)
    if count == 1:
        return 0.0, [0]
    best, came = shortest_ways(away)
    whole = (1 << count - 1) - 1
    last = int((best[whole] + away[1:, 0]).argmin())
    return float(best[whole, last] + away[last + 1, 0]), order_of(came, whole, last)


def shortest_ways(away: NDArray[np.float64]) -> tuple[Points, NDArray[np.int64]]:
    """The shortest ways from city 0 through every subset of the others, by where they end, and how they came there.

    The dynamic program over subsets (Held and Karp 1962, doi:10.1137/0110015). Subsets are numbers, in which city k is
    bit k - 1.

    Returns:
        Lengths `[2 ** (n - 1), n - 1]` of the ways through a subset that end in a city, infinite where it is not in it;
        and which city (less 1) comes before that one.
    """
    count = len(away)
    m = count - 1
    best = np.full((1 << m, m), np.inf)
    came = np.zeros((1 << m, m), np.int64)
    best[1 << np.arange(m), np.arange(m)] = away[0, 1:]
    within = away[1:, 1:]
    subsets = np.arange(1 << m)
    sizes = np.array([int(s).bit_count() for s in subsets])
    for size in range(2, count):
        those = subsets[sizes == size]
        for city in range(m):
            having = those[those >> city & 1 == 1]
            ways = best[having ^ (1 << city)] + within[:, city]
            came[having, city] = ways.argmin(1)
            best[having, city] = ways.min(1)
    return best, came


def order_of(came: NDArray[np.int64], subset: int, last: int) -> list[int]:
    """The cities of the shortest way through a subset that ends in city `last` + 1, city 0 first."""
    order = []
    while subset:
        order.append(last + 1)
        subset, last = subset ^ (1 << last), int(came[subset, last])
    return [0, *reversed(order)]
