"""The traveling salesman as a batched environment: build a tour city by city, and know how good the best one is.

A tour begins in city 0 and comes back to it. The reward of a step is minus its distance, that of the last step the way
back too. Cities are uniform in the unit square, and their number is uniform between two bounds.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, BatchedEnvironment, Moved, Observation, Padded, State, Verdict, greedily, play

MOST_EXACT = 13
"""Cities up to which the optimum is a line: its time and memory double with every city."""
Points = NDArray[np.float64]


class TravelingSalesman(BatchedEnvironment):
    """Tours through `least` to `most` cities.

    Actions are numbers of cities, int64 `[B]`. Shown are the `cities` (x, y), the numbers of the city where one is
    (`here`) and of the one where the tour ends (`end`), int64 `[B]`, and which are still to be visited (`left`), bool
    `[B, N]`.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})

    def __init__(self, seed: int, rows: int, least: int = 10, most: int | None = None):
        self.least, self.most = least, least if most is None else most
        if not 2 <= self.least <= self.most:
            raise ValueError(f"a tour goes through 2 cities or more, and least is {least}, most {most}")
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Cities `[N, 2]`, how many of them there are, and where one is: in the first."""
        stream = generator(self.seed, "cities", row, episode)
        count = int(torch.randint(self.least, self.most + 1, (), generator=stream))
        cities = torch.zeros(self.most, 2)
        cities[:count] = torch.rand(count, 2, generator=stream)
        left = torch.arange(self.most) < count
        left[0] = False
        return {
            "cities": cities,
            "count": torch.tensor(count),
            "here": torch.tensor(0),
            "left": left,
            "tour": torch.zeros(self.most, dtype=torch.int64),
        }

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the cities `[B]`, and from the last one back."""
        at = torch.arange(len(action))
        cities, left, tour = state["cities"], state["left"].clone(), state["tour"].clone()
        done = state["count"] - left.sum(1)  # cities that are in the tour
        left[at, action], tour[at, done] = False, action
        way = (cities[at, action] - cities[at, state["here"]]).norm(dim=1)
        over = ~left.any(1)
        back = (cities[at, action] - cities[:, 0]).norm(dim=1)
        after = {**state, "left": left, "tour": tour, "here": action}
        return Moved(after, -(way + torch.where(over, back, 0.0)), over)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Cities, where one is, where the tour ends, what is left."""
        present = torch.arange(self.most) < state["count"][:, None]
        here = state["here"]
        cities = Padded(state["cities"], present)
        return {"cities": cities, "here": here, "end": torch.zeros_like(here), "left": state["left"]}

    def allowed(self, state: State) -> Tensor:
        """The cities that are left."""
        return state["left"]

    def instance(self, row: int) -> Points:
        """The row's cities `[n, 2]`."""
        count = int(self.state["count"][row])
        found: Points = self.state["cities"][row, :count].double().numpy()
        return found

    def solution(self, row: int) -> list[int]:
        """The cities in the order of the tour."""
        done = int(self.state["count"][row] - self.state["left"][row].sum())
        found: list[int] = self.state["tour"][row, :done].tolist()
        return found

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

    def lines(self) -> dict[str, float]:
        """Mean lengths on the rows' present cities: the optimum, where it can be computed, and nearest neighbor's."""
        instances = [self.instance(row) for row in range(self.rows)]
        found = {}
        if max(map(len, instances)) <= MOST_EXACT:
            found["optimum"] = float(np.mean([held_karp(cities)[0] for cities in instances]))
        twin = TravelingSalesman(self.seed, self.rows, self.least, self.most)
        twin.episode = self.episode - 1
        twin.reset(torch.arange(self.rows))
        return {**found, "nearest neighbor": -float(play(twin, NEAREST).mean())}


def _nearness(seen: Observation) -> Tensor:
    """Minus the distance of each city `[B, N]`."""
    cities, here = seen["cities"], seen["here"]
    assert isinstance(cities, Padded) and isinstance(here, Tensor)
    away: Tensor = (cities.values - cities.values[torch.arange(len(here)), here][:, None]).norm(dim=2)
    return -away


NEAREST = greedily(_nearness)
"""Go to the nearest city that is left."""


def held_karp(points: Points) -> tuple[float, list[int]]:
    """Length and order of the shortest tour from city 0 through all others `[n, 2]` and back.

    The dynamic program over subsets (Held and Karp 1962, doi:10.1137/0110015): the shortest way from city 0 through a
    subset that ends in one of its cities.
    """
    count = len(points)
    away = np.linalg.norm(points[:, None] - points[None], axis=2)
    if count == 1:
        return 0.0, [0]
    m = count - 1  # subsets are of the cities 1 to m, city k is bit k - 1
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
    whole = (1 << m) - 1
    last = int((best[whole] + away[1:, 0]).argmin())
    length = float(best[whole, last] + away[last + 1, 0])
    order = []
    while whole:
        order.append(last + 1)
        whole, last = whole ^ (1 << last), int(came[whole, last])
    return length, [0, *reversed(order)]
