"""Capacitated vehicle routing as a batched environment: serve all customers by routes that begin and end at a depot.

Node 0 is the depot; the others are customers with a demand. The reward of a step is minus its distance; the last
customer's is also the way back. Depot and customers are uniform in the unit square, demands whole numbers from 1 to 9.
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
    distances,
    uniform_points,
)

LARGEST_DEMAND = 9


@dataclass(frozen=True)
class Customers:
    """An instance: `points` `[n + 1, 2]` float64, the depot first, `demand` of each in units, and the `capacity`."""

    points: Tensor
    demand: tuple[int, ...]
    capacity: int


class VehicleRouting(ConstructionEnvironment):
    """Routes of vehicles that carry `capacity` units to `customers` customers.

    Actions are numbers of nodes, int64 `[B]`: a customer whose demand is still on board, or the depot, where one loads
    anew and which may not come twice in a row. Nodes are (x, y, demand as a share of the capacity), the context is the
    load that is left as such a share, and `left` are the customers that are to be served.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = 3
    context_features: ClassVar[int] = 1

    def __init__(self, seed: int, rows: int, customers: int = 20, capacity: int = 30):
        self.customers, self.capacity = customers, capacity
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Depot and customers `[N, 2]`, demands `[N]`, and a full vehicle at the depot."""
        stream = generator(self.seed, "customers", row, episode)
        points = uniform_points(self.customers + 1, stream)
        demand = torch.randint(1, LARGEST_DEMAND + 1, (self.customers + 1,), generator=stream)
        demand[0] = 0
        return {
            "points": points,
            "demand": demand,
            "load": torch.tensor(self.capacity),
            "here": torch.tensor(0),
            "left": torch.arange(self.customers + 1) > 0,
            "visits": torch.zeros(2 * self.customers, dtype=torch.int64),
            "steps": torch.tensor(0),
        }

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the nodes `[B]`, and after the last customer to the depot."""
        at, points = torch.arange(len(action)), state["points"]
        left, visits = state["left"].clone(), state["visits"].clone()
        left[at, action], visits[at, state["steps"]] = False, action
        load = torch.where(action == 0, self.capacity, state["load"] - state["demand"][at, action])
        way = (points[at, action] - points[at, state["here"]]).norm(dim=1)
        over = ~left.any(1)
        back = (points[at, action] - points[:, 0]).norm(dim=1)
        after = {**state, "left": left, "visits": visits, "load": load, "here": action, "steps": state["steps"] + 1}
        return Moved(after, -(way + torch.where(over, back, 0.0)), over)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Nodes, where one is, the depot as the end, what is left, and the load."""
        share = (state["demand"] / self.capacity)[..., None]
        nodes = torch.cat([state["points"], share], -1)
        return {
            "nodes": Padded(nodes, torch.ones(nodes.shape[:2], dtype=torch.bool)),
            "here": state["here"],
            "end": torch.zeros_like(state["here"]),
            "left": state["left"],
            "context": (state["load"] / self.capacity)[:, None],
        }

    def allowed(self, state: State) -> Tensor:
        """Customers whose demand is on board, and the depot from elsewhere."""
        found = state["left"] & (state["demand"] <= state["load"][:, None])
        found[:, 0] = state["left"].any(1) & (state["here"] != 0)
        return found

    def instance(self, row: int) -> Customers:
        """The row's depot, customers and demands."""
        demand = tuple(self.state["demand"][row].tolist())
        return Customers(self.state["points"][row].double(), demand, self.capacity)

    def solution(self, row: int) -> list[list[int]]:
        """The routes, each as its customers in their order."""
        visits = self.state["visits"][row, : int(self.state["steps"][row])].tolist()
        routes = [[*group] for depot, group in itertools.groupby(visits, lambda node: node == 0) if not depot]
        return routes

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """The length of all routes: every customer once, and no route with more than the capacity."""
        count, seen, length = len(instance.demand), set[int](), 0.0
        points = instance.points.tolist()
        for k, route in enumerate(solution):
            for node in route:
                if not 1 <= node < count:
                    return Verdict(None, f"there is no customer {node} among {count - 1}")
                if node in seen:
                    return Verdict(None, f"customer {node} is served twice")
                seen.add(node)
            if (load := sum(instance.demand[node] for node in route)) > instance.capacity:
                return Verdict(None, f"route {k} carries {load} of {instance.capacity}")
            length += sum(math.dist(points[a], points[b]) for a, b in itertools.pairwise([0, *route, 0]))
        if missing := sorted(set(range(1, count)) - seen):
            return Verdict(None, f"customer {missing[0]} is not served")
        return Verdict(length)

    def references(self) -> dict[str, Tensor]:
        """Lengths of routes by savings, and by going to the nearest customer that can be served."""
        found = dict[str, list[float]]()
        for row in range(self.rows):
            instance = self.instance(row)
            for name, routes in (("savings", savings(instance)), ("nearest neighbor", nearest_customers(instance))):
                cost = self.verify(instance, routes).cost
                assert cost is not None
                found.setdefault(name, []).append(cost)
        return {name: torch.tensor(costs, dtype=torch.float64) for name, costs in found.items()}


def savings(instance: Customers) -> list[list[int]]:
    """Join the two routes whose join saves most, until none may be joined (Clarke and Wright 1964)."""
    away = distances(instance.points).tolist()
    count = len(away)
    routes = {node: [node] for node in range(1, count)}  # by their first nodes; `of` says which a node is in
    of, load = list(range(count)), list(instance.demand)
    pairs = itertools.combinations(range(1, count), 2)
    saved = sorted(((away[0][i] + away[0][j] - away[i][j], i, j) for i, j in pairs), key=lambda s: (-s[0], s[1], s[2]))
    for saving, i, j in saved:
        a, b = of[i], of[j]
        if saving <= 0 or a == b or load[a] + load[b] > instance.capacity:
            continue
        one, other = routes[a], routes[b]
        if i not in (one[0], one[-1]) or j not in (other[0], other[-1]):
            continue
        joined = (one if one[-1] == i else one[::-1]) + (other if other[0] == j else other[::-1])
        del routes[b]
        routes[a], load[a] = joined, load[a] + load[b]
        for node in other:
            of[node] = a
    return [*routes.values()]


def nearest_customers(instance: Customers) -> list[list[int]]:
    """Go to the nearest customer whose demand is on board, and to the depot where there is none."""
    away = distances(instance.points).tolist()
    left, routes = set(range(1, len(away))), list[list[int]]()
    while left:
        here, load, route = 0, instance.capacity, list[int]()
        while fitting := [node for node in left if instance.demand[node] <= load]:
            here = min(fitting, key=lambda node: (away[here][node], node))
            route.append(here)
            left.remove(here)
            load -= instance.demand[here]
        routes.append(route)
    return routes


@dataclass(frozen=True)
class VehicleRoutingTask(CombinatorialTask):
    """The shortest routes from a depot to `n` customers, with vehicles that carry `capacity` units."""

    name: ClassVar[str] = "cvrp"
    label: ClassVar[str] = "length of all routes"
    kind: ClassVar[type[ConstructionEnvironment]] = VehicleRouting

    capacity: int = 30

    def __post_init__(self) -> None:
        """Refuse vehicles that cannot carry what a customer may ask."""
        super().__post_init__()
        if not LARGEST_DEMAND <= self.capacity <= 1_000:
            raise UserError(f"{self.name}.capacity is {self.capacity} but must be from {LARGEST_DEMAND} to 1000.")

    def environment(self, seed: int, rows: int) -> VehicleRouting:
        """Rows of n customers."""
        return VehicleRouting(seed, rows, self.n, self.capacity)

    def describe(self) -> str:
        """How many customers there are, and what a vehicle carries."""
        return f"routes to {self.n} customers in the unit square, {self.capacity} units a vehicle"
