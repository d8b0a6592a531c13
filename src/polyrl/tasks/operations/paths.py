"""Paths over a grid, whose worth is a submodular function of the cells that they visit: coverage, items, measurements.

All rows are one problem, a terrain, a set function and how many moves a path has: a policy learns one map, and what is
random is what it does. Actions are moves and no nodes. Rewards are marginal gains, the first one with that of the
cell where the path begins, so that they sum to the worth of the path.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict
from polyrl.tasks.operations.combinatorial import ConstructionEnvironment
from polyrl.tasks.operations.set_functions import SetFunction
from polyrl.tasks.operations.terrain import MOVES, Terrain


@dataclass(frozen=True, eq=False)
class PathProblem:
    """Where one may walk, what a path is worth, and how many moves it has."""

    terrain: Terrain
    worth: SetFunction
    horizon: int


class Paths(ConstructionEnvironment):
    """Rows that walk over one terrain.

    Actions are numbers of moves, int64 `[B]`, of which every one may be taken: who moves against a wall stays. Nodes
    are cells: row and column from 0 to 1, and what the cell is worth alone. `here` is the cell where one is, `left` are
    the cells that were not visited, the context is the share of the moves that are done.

    Its state has `alone` `[B]`, the worth of the cells that were gone to, each as if it were alone: what a step adds to
    that would be its reward if the function were modular.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "post-decision"})
    node_features: ClassVar[int] = 3
    context_features: ClassVar[int] = 1
    counts: ClassVar[tuple[str, ...]] = ("alone",)
    by_moves: ClassVar[bool] = True

    def __init__(self, seed: int, rows: int, problem: PathProblem):
        self.problem = problem
        terrain, worth = problem.terrain, problem.worth
        self.nodes = torch.cat([terrain.places, worth.alone[:, None]], 1)
        start = torch.tensor(terrain.start)
        _, kept = worth.add(_stacked(worth.begin(problem.horizon + 1)), start[None])
        self.kept = tuple(kept)
        path = torch.full((problem.horizon + 1,), terrain.start)
        self._begun = {
            "here": start,
            "steps": torch.tensor(0),
            "alone": torch.tensor(0.0),
            "path": path,
            "visited": torch.arange(terrain.cells) == start,
            **{name: x[0] for name, x in kept.items()},
        }
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """The start, which is visited."""
        return self._begun

    def advance(self, state: State, action: Tensor) -> Moved:
        """Go to the next cells, and gain what they add."""
        at, terrain, worth = torch.arange(len(action)), self.problem.terrain, self.problem.worth
        cell = terrain.following[state["here"], action]
        gain, kept = worth.add({name: state[name] for name in self.kept}, cell)
        first = torch.where(state["steps"] == 0, worth.alone[terrain.start], 0.0)
        steps, path, visited = state["steps"] + 1, state["path"].clone(), state["visited"].clone()
        path[at, steps], visited[at, cell] = cell, True
        alone = state["alone"] + worth.alone[cell]
        after = {"here": cell, "steps": steps, "alone": alone, "path": path, "visited": visited, **kept}
        return Moved(after, gain + first, steps >= self.problem.horizon)

    def post_decision(self, state: State, action: Tensor) -> State:
        """The next state: nothing is random."""
        return self.advance(state, action).state

    def show(self, state: State) -> Observation:
        """Cells, where one is, what was not visited, and how far the path is."""
        rows = len(state["here"])
        return {
            "nodes": Padded(self.nodes.expand(rows, -1, -1), torch.ones(rows, len(self.nodes), dtype=torch.bool)),
            "here": state["here"],
            "end": state["here"],
            "left": ~state["visited"],
            "context": (state["steps"] / self.problem.horizon)[:, None],
        }

    def allowed(self, state: State) -> Tensor:
        """Every move."""
        return torch.ones(len(state["here"]), len(self.problem.terrain.moves), dtype=torch.bool)

    def instance(self, row: int) -> PathProblem:
        """The problem, the same of every row."""
        return self.problem

    def solution(self, row: int) -> list[int]:
        """The cells in their order, the start first."""
        found: list[int] = self.state["path"][row, : int(self.state["steps"][row]) + 1].tolist()
        return found

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """Minus the worth of a path, found from its cells; every step must be a move."""
        terrain, path = instance.terrain, list(solution)
        if len(path) != instance.horizon + 1:
            return Verdict(None, f"a path has {instance.horizon} moves, and this one {len(path) - 1}")
        if path[0] != terrain.start:
            return Verdict(None, f"the path begins in cell {path[0]} and not in cell {terrain.start}")
        for step, (cell, following) in enumerate(itertools.pairwise(path)):
            if following not in _reached(terrain, cell):
                return Verdict(None, f"no move leads from cell {cell} to cell {following} (step {step})")
        return Verdict(-instance.worth.value(path))

    def references(self) -> dict[str, Tensor]:
        """Minus the worth, the same for all rows: of the best path, where there are few, greedy moves, random ones."""
        from polyrl.tasks.operations.path_planners import best_path, greedy_path, random_worth

        best, value = best_path(self.problem), self.problem.worth.value
        found = {} if best is None else {"optimum": value(best)}
        found |= {"greedy planner": value(greedy_path(self.problem)), "random moves": random_worth(self.problem)}
        return {name: torch.full((self.rows,), -worth, dtype=torch.float64) for name, worth in found.items()}


def _stacked(state: State) -> State:
    return {name: x[None] for name, x in state.items()}


def _reached(terrain: Terrain, cell: int) -> set[int]:
    """Where the moves from a cell lead, from rows, columns and walls."""
    row, column = divmod(cell, terrain.columns)
    found = set()
    for down, right in (MOVES[move] for move in terrain.moves):
        r, c = row + down, column + right
        is_open = 0 <= r < terrain.rows and 0 <= c < terrain.columns and r * terrain.columns + c not in terrain.walls
        found.add(r * terrain.columns + c if is_open else cell)
    return found
