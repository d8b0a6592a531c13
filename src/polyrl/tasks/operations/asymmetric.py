"""The asymmetric traveling salesman as a batched environment: a tour through nodes whose costs differ by direction.

Costs are drawn as MatNet's are (arXiv:2106.11113): uniform numbers between 0 and 1, from each node to each other, and
where a way over other nodes is cheaper its cost instead, so that the triangle inequality holds. BQ-NCO's experiments
take the same ones.

Nodes have no places, so what is shown of each is an **identifier**, numbers that are drawn at random and mean nothing,
and the costs between them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict
from polyrl.tasks.operations.combinatorial import CombinatorialTask, ConstructionEnvironment, Instances
from polyrl.tasks.operations.routing import MOST_EXACT, shortest, starts_of
from polyrl.tasks.operations.tours import directed_search, nearest_neighbor, tour_lengths

IDENTIFIER = 8
"""Numbers of a node that tell it from others."""
Costs = NDArray[np.float64]


class AsymmetricTravelingSalesman(ConstructionEnvironment):
    """Tours through `nodes` nodes, from node 0 and back to it.

    Actions are numbers of nodes, int64 `[B]`. `costs` `[B, N, N]` are the ways from each node (rows) to each other.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = IDENTIFIER
    has_costs: ClassVar[bool] = True

    def __init__(self, seed: int, rows: int, nodes: int = 20, instances: Instances | None = None):
        """`instances` gives the costs `[nodes, nodes]` of a row's episode; None draws them."""
        self.nodes, self.instances = nodes, instances
        if nodes < 2:
            raise ValueError(f"a tour goes through 2 nodes or more, and nodes is {nodes}")
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """Costs `[N, N]` and identifiers `[N, D]`, and where one is: in the first node."""
        if self.instances is None:
            costs = drawn_costs(self.nodes, generator(self.seed, "costs", row, episode))
        else:
            costs = torch.as_tensor(np.asarray(self.instances(row, episode)), dtype=torch.float64)
        return {
            "costs": costs,
            "identifier": identifiers(self.nodes, generator(self.seed, "identifiers", row, episode)),
            "start": torch.tensor(0),
            "here": torch.tensor(0),
            "left": torch.arange(self.nodes) > 0,
            "tour": torch.zeros(self.nodes, dtype=torch.int64),
        }

    def varied(self, state: State, copy: Tensor) -> State:
        """Copy k begins in node k: every tour goes through every node."""
        at, start = torch.arange(len(copy)), copy % self.nodes
        left, tour = state["left"].clone(), state["tour"].clone()
        left[:, 0] = True
        left[at, start], tour[:, 0] = False, start
        return {**state, "start": start, "here": start, "left": left, "tour": tour}

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the nodes `[B]`, and from the last one back."""
        at, costs = torch.arange(len(action)), state["costs"]
        left, tour = state["left"].clone(), state["tour"].clone()
        done = self.nodes - left.sum(1)  # nodes that are in the tour
        left[at, action], tour[at, done] = False, action
        over = ~left.any(1)
        back = torch.where(over, costs[at, action, state["start"]], 0.0)
        reward = -(costs[at, state["here"], action] + back).float()
        return Moved({**state, "left": left, "tour": tour, "here": action}, reward, over)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Identifiers and costs, where one is, where the tour ends, what is left."""
        nodes = state["identifier"]
        there = torch.ones(nodes.shape[:2], dtype=torch.bool)
        return {
            "nodes": Padded(nodes, there),
            "costs": Padded(state["costs"].float(), there),
            "here": state["here"],
            "end": state["start"],
            "left": state["left"],
            "context": nodes.new_zeros(len(nodes), 0),
        }

    def allowed(self, state: State) -> Tensor:
        """The nodes that are left."""
        return state["left"]

    def instance(self, row: int) -> Costs:
        """The row's costs `[n, n]`."""
        found: Costs = self.state["costs"][row].numpy()
        return found

    def solution(self, row: int) -> list[int]:
        """The nodes in the order of the tour, node 0 first; while it is built, those that it has so far."""
        done = self.nodes - int(self.state["left"][row].sum())
        found: list[int] = self.state["tour"][row, :done].tolist()
        first = found.index(0) if 0 in found else 0
        return found[first:] + found[:first]

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """The cost of a tour: every node once, from node 0 and back to it."""
        return directed_verdict(np.asarray(instance).tolist(), solution)

    def good_tours(self) -> Tensor:
        """Tours `[B, N]` from node 0 that local search comes to."""
        return directed_search(self.state["costs"], starts_of(self.nodes))

    def references(self) -> dict[str, Tensor]:
        """Costs: the optimum, or what local search comes to, and that of going to the nearest node."""
        costs = self.state["costs"]
        exact = {}
        if self.nodes <= MOST_EXACT:
            exact["optimum"] = torch.tensor([shortest(one)[0] for one in costs.numpy()], dtype=torch.float64)
        first = torch.zeros(self.rows, dtype=torch.int64)
        return {
            **exact,
            "3-opt without reversal": tour_lengths(costs, self.good_tours()),
            "nearest neighbor": tour_lengths(costs, nearest_neighbor(costs, first)),
        }


def directed_verdict(costs: list[list[float]], tour: list[int]) -> Verdict:
    """The cost of a tour from node 0 through all nodes, by the costs of the ways from each (rows) to each."""
    count, seen = len(costs), set[int]()
    for node in tour:
        if not 0 <= node < count:
            return Verdict(None, f"there is no node {node} among {count}")
        if node in seen:
            return Verdict(None, f"node {node} is visited twice")
        seen.add(node)
    if missing := sorted(set(range(count)) - seen):
        return Verdict(None, f"node {missing[0]} is not visited")
    if tour[0] != 0:
        return Verdict(None, f"the tour begins in node {tour[0]} and not in node 0")
    return Verdict(sum(costs[here][there] for here, there in itertools.pairwise([*tour, 0])))


def drawn_costs(nodes: int, stream: torch.Generator) -> Tensor:
    """Costs `[N, N]` float64 with the triangle inequality: uniform ones, and the cheapest ways by them."""
    costs = torch.rand(nodes, nodes, generator=stream, dtype=torch.float64)
    costs.fill_diagonal_(0)
    for over in range(nodes):  # Floyd (1962), doi:10.1145/367766.368168
        costs = torch.minimum(costs, costs[:, over, None] + costs[over])
    return costs


def identifiers(nodes: int, stream: torch.Generator) -> Tensor:
    """Identifiers `[N, D]` of nodes, uniform between -1 and 1."""
    return 2 * torch.rand(nodes, IDENTIFIER, generator=stream) - 1


@dataclass(frozen=True)
class AsymmetricTask(CombinatorialTask):
    """The cheapest tour through `n` nodes whose costs differ by direction."""

    name: ClassVar[str] = "atsp"
    label: ClassVar[str] = "tour cost"
    kind: ClassVar[type[ConstructionEnvironment]] = AsymmetricTravelingSalesman

    def environment(self, seed: int, rows: int) -> AsymmetricTravelingSalesman:
        """Rows of n nodes."""
        return AsymmetricTravelingSalesman(seed, rows, self.n)

    def describe(self) -> str:
        """How many nodes there are."""
        return f"tours through {self.n} nodes whose costs differ by direction"
