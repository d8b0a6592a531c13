"""Planners who know the map: what stands beside learned paths (`polyrl.tasks.operations.paths`)."""

from __future__ import annotations

import torch
from torch import Tensor

from polyrl.tasks.batched import play
from polyrl.tasks.operations.paths import PathProblem, Paths

MOST_SETS = 20_000
"""Different ways of having walked up to which the best path is found by looking at all."""
RANDOM_PATHS = 2_048
NOTHING = 1e-6
"""What is no gain but rounding."""


def greedy_path(problem: PathProblem) -> list[int]:
    """Go where the next cell adds most, the first such move of several; nothing further ahead is seen.

    Where no next cell adds anything, go towards the nearest one that would, and of those to the one that adds most.
    """
    rows, following = Paths(0, 1, problem), problem.terrain.following
    while not bool(rows.ended.all()):
        here = int(rows.state["here"])
        kept = {name: rows.state[name].expand(problem.terrain.cells, *rows.state[name].shape[1:]) for name in rows.kept}
        gain = problem.worth.add(kept, torch.arange(problem.terrain.cells))[0]
        ahead = gain[following[here]]
        move = int(ahead.argmax())
        if float(ahead[move]) <= NOTHING:
            move = _towards(here, gain, following.tolist())
        rows.step(torch.tensor([move]))
    return rows.solution(0)


def _towards(start: int, gain: Tensor, following: list[list[int]]) -> int:
    """The first move of a shortest way to the nearest cell that adds something; 0 where there is none."""
    first = {start: 0}
    ring = [start]
    while ring:
        wider = list[int]()
        for cell in ring:
            for move, there in enumerate(following[cell]):
                if there not in first:
                    first[there] = move if cell == start else first[cell]
                    wider.append(there)
        best = max(wider, key=lambda cell: float(gain[cell]), default=start)
        if float(gain[best]) > NOTHING:
            return first[best]
        ring = wider
    return 0


def best_path(problem: PathProblem, most: int = MOST_SETS) -> list[int] | None:
    """A path of the largest worth, by going on from all places and all that was visited on the way; None for many.

    Of ways to one cell over the same cells one is kept: what can still be gained is the same.
    """
    following = problem.terrain.following.tolist()
    start = problem.terrain.start
    ways = {(start, _visited((), start, problem)): [start]}
    for _ in range(problem.horizon):
        longer = dict[tuple[int, tuple[int, ...]], list[int]]()
        for (cell, visited), path in ways.items():
            for there in following[cell]:
                longer.setdefault((there, _visited(visited, there, problem)), [*path, there])
        if len(longer) > most:
            return None
        ways = longer
    return max(ways.values(), key=problem.worth.value)


def _visited(before: tuple[int, ...], cell: int, problem: PathProblem) -> tuple[int, ...]:
    """The cells that were visited, in order; several times where that counts."""
    if cell in before and not problem.worth.repeats:
        return before
    return tuple(sorted((*before, cell)))


def random_worth(problem: PathProblem) -> float:
    """Mean worth of paths whose moves have equal chances; always of the same paths."""
    stream = torch.Generator().manual_seed(0)
    rows, moves = Paths(0, RANDOM_PATHS, problem), len(problem.terrain.moves)
    total = play(rows, lambda seen, mask: torch.randint(moves, (rows.rows,), generator=stream))
    return float(total.double().mean())
