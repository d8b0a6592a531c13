"""Orienteering as a batched environment: collect prizes on a way that is no longer than it may be.

Random instances are those of the attention model (arXiv:1803.08475), which BQ-NCO's experiments take too: a depot and n
places in the unit square, and of each a prize that grows with its distance from the depot, from .01 to 1 in hundredths.
The way begins and ends at the depot.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict
from polyrl.tasks.operations.combinatorial import (
    CombinatorialTask,
    ConstructionEnvironment,
    Instances,
    distances,
    uniform_points,
)
from polyrl.tasks.operations.prize_routes import nearest_prizes, ruined_and_recreated
from polyrl.tasks.operations.routing import order_of, shortest_ways

MOST_EXACT = 12
"""Places up to which the optimum is a line: its time and memory double with every place."""
ROUNDING = 1e-9
"""Share of the longest way by which one may be longer, since sums of distances are rounded."""


@dataclass(frozen=True)
class Places:
    """An instance.

    Attributes:
        points: `[N, 2]` float64, the start first.
        prize: of each, 0 of the start and of the end.
        longest: length of the longest way.
        end: number of the node where the way ends; 0: where it began.
        whole: whether distances are rounded to whole numbers, as TSPLIB's `EUC_2D` are.
    """

    points: Tensor
    prize: tuple[float, ...]
    longest: float
    end: int = 0
    whole: bool = False

    @property
    def away(self) -> Tensor:
        """Distances `[N, N]` float64."""
        found = distances(self.points)
        return (found + 0.5).floor() if self.whole else found


class Orienteering(ConstructionEnvironment):
    """Ways among `places` places and the node where they begin.

    Actions are numbers of nodes, int64 `[B]`: a place from which the end can still be reached in time. Where there is
    none the way goes to its end; where there is none at first, its one action is the node 0. Nodes are (x, y, prize as
    a share of the largest), in the unit square, and the context is the length that is left.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = 3
    context_features: ClassVar[int] = 1

    def __init__(
        self, seed: int, rows: int, places: int = 20, longest: float = 2.0, instances: Instances | None = None
    ):
        """`instances` gives the `Places` of a row's episode, of `places` + 1 nodes; None draws them."""
        self.places, self.longest, self.instances = places, longest, instances
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Places in the unit square, distances and prizes as the instance has them, and the whole length left."""
        given = self._drawn(row, episode) if self.instances is None else self.instances(row, episode)
        low, high = given.points.min(0).values, given.points.max(0).values
        drawn = self.instances is None  # those are in the unit square
        size = 1.0 if drawn else float((high - low).max()) or 1.0
        left = torch.arange(self.places + 1) > 0
        left[given.end] = False
        longest = torch.tensor(given.longest, dtype=torch.float64)
        return {
            "points": given.points if drawn else (given.points - low) / size,
            "own": given.points,
            "whole": torch.tensor(given.whole),
            "size": torch.tensor(size, dtype=torch.float64),
            "away": given.away,
            "prize": torch.tensor(given.prize, dtype=torch.float64),
            "longest": longest,
            "room": longest,
            "here": torch.tensor(0),
            "end": torch.tensor(given.end),
            "left": left,
            "route": torch.zeros(self.places, dtype=torch.int64),
            "steps": torch.tensor(0),
        }

    def _drawn(self, row: int, episode: int) -> Places:
        points = uniform_points(self.places + 1, generator(self.seed, "places", row, episode)).double()
        away = (points - points[0]).norm(dim=1)
        hundredths = 1 + (99 * (away / away.max())).floor()
        hundredths[0] = 0
        return Places(points, tuple((hundredths / 100).tolist()), self.longest)

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the nodes `[B]`; where nothing can be reached any more, to the end."""
        at = torch.arange(len(action))
        left, route = state["left"].clone(), state["route"].clone()
        left[at, action] = False
        goes = action > 0
        route[at[goes], state["steps"][goes]] = action[goes]
        room = state["room"] - state["away"][at, state["here"], action]
        after = {**state, "left": left, "route": route, "room": room, "here": action, "steps": state["steps"] + goes}
        return Moved(after, state["prize"][at, action].float(), ~in_reach(after).any(1))

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Nodes, where one is, the end, what is left, and the length."""
        nodes = seen_places(state["points"], state["prize"])
        return {
            "nodes": Padded(nodes, torch.ones(nodes.shape[:2], dtype=torch.bool)),
            "here": state["here"],
            "end": state["end"],
            "left": state["left"],
            "context": (state["room"] / state["size"]).float()[:, None],
        }

    def allowed(self, state: State) -> Tensor:
        """Places from which the end is reached in time; node 0 where there is none."""
        found = in_reach(state)
        found[:, 0] = ~found.any(1)
        return found

    def instance(self, row: int) -> Places:
        """The row's places."""
        s = {name: x[row] for name, x in self.state.items()}
        return Places(s["own"], tuple(s["prize"].tolist()), float(s["longest"]), int(s["end"]), bool(s["whole"]))

    def solution(self, row: int) -> list[int]:
        """The places in their order, without the start and the end."""
        found: list[int] = self.state["route"][row, : int(self.state["steps"][row])].tolist()
        return found

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """Minus the prizes: every place once at most, and a way that is no longer than it may be."""
        count, end, seen = len(instance.prize), instance.end, set[int]()
        for node in solution:
            if not 1 <= node < count or node == end:
                return Verdict(None, f"there is no place {node}")
            if node in seen:
                return Verdict(None, f"place {node} is visited twice")
            seen.add(node)
        length = way_length(instance, solution)
        if length > instance.longest * (1 + ROUNDING):
            return Verdict(None, f"the way is {length:.9g} long, and {instance.longest:.9g} is the longest")
        return Verdict(-math.fsum(instance.prize[node] for node in solution))

    def good_routes(self, rounds: int = 60) -> Tensor:
        """Routes `[B, places]` of many prizes, padded with 0; those of equal prizes are short."""
        s = self.state
        return ruined_and_recreated(s["away"], s["prize"], s["longest"], s["end"], rounds, self.seed)

    def references(self) -> dict[str, Tensor]:
        """Minus the prizes of the optimum, where it can be computed, of ruin and recreate, and of a greedy way."""
        s, found = self.state, dict[str, Tensor]()
        prizes = s["prize"]
        if self.places <= MOST_EXACT:
            best = [best_route(self.instance(row)) for row in range(self.rows)]
            found["optimum"] = torch.stack([-prizes[row, route].sum() for row, route in enumerate(best)])
        greedy = nearest_prizes(s["away"], prizes, s["longest"], s["end"])
        for name, routes in (("ruin and recreate", self.good_routes()), ("greedy prize by distance", greedy)):
            found[name] = -prizes.gather(1, routes).sum(1)  # node 0 has no prize
        return found


def in_reach(state: State) -> Tensor:
    """Bool `[B, N]`, places that are left, and from which the end is reached with the length that is left."""
    at = torch.arange(len(state["here"]))
    away = state["away"]
    way = away[at, state["here"]] + away[at, state["end"]]
    room = state["room"] + ROUNDING / 2 * state["longest"]
    found: Tensor = state["left"] & (way <= room[:, None])
    return found


def seen_places(points: Tensor, prize: Tensor) -> Tensor:
    """Nodes `[B, N, 3]` as networks see them, of points `[B, N, 2]` and prizes `[B, N]`."""
    most = prize.amax(1, keepdim=True).clamp(min=1e-9)
    return torch.cat([points, (prize / most)[..., None]], -1).float()


def way_length(instance: Places, route: list[int]) -> float:
    """Length of the way from the start over places to the end, from the coordinates alone."""
    points, total = instance.points.tolist(), 0.0
    for a, b in itertools.pairwise([0, *route, instance.end]):
        way = math.dist(points[a], points[b])
        total += math.floor(way + 0.5) if instance.whole else way
    return total


def best_route(instance: Places) -> list[int]:
    """The places of the most prizes in the order of the shortest way, by the dynamic program over subsets."""
    nodes = [node for node in range(len(instance.prize)) if node == 0 or node != instance.end]
    away = instance.away.numpy()
    best, came = shortest_ways(away[nodes][:, nodes])
    whole = best + away[nodes[1:], instance.end]
    prizes = torch.tensor([instance.prize[node] for node in nodes[1:]], dtype=torch.float64)
    subsets = torch.arange(len(best))
    worth = ((subsets[:, None] >> torch.arange(len(prizes)) & 1) * prizes).sum(1).numpy()
    worth[whole.min(1) > instance.longest * (1 + ROUNDING / 2)] = 0
    subset = int(worth.argmax())
    if worth[subset] == 0:
        return []
    return [nodes[k] for k in order_of(came, subset, int(whole[subset].argmin()))[1:]]


@dataclass(frozen=True)
class OrienteeringTask(CombinatorialTask):
    """The most prizes of `n` places in the unit square on a way of `length` from the depot and back."""

    name: ClassVar[str] = "orienteering"
    label: ClassVar[str] = "prizes"
    kind: ClassVar[type[ConstructionEnvironment]] = Orienteering
    maximizes: ClassVar[bool] = True

    length: float = 2.0

    def __post_init__(self) -> None:
        """Refuse lengths that make no sense."""
        super().__post_init__()
        if not 0.5 <= self.length <= 100:
            raise UserError(f"{self.name}.length is {self.length:g} but must be from 0.5 to 100.")

    def environment(self, seed: int, rows: int) -> Orienteering:
        """Rows of n places."""
        return Orienteering(seed, rows, self.n, self.length)

    def describe(self) -> str:
        """How many places there are, and how long the way may be."""
        return f"prizes of {self.n} places in the unit square on a way of length {self.length:g} at most"
