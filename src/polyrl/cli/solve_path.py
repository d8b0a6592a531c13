"""`polyrl solve` for paths: those of the policy beside planners who know the map, and a picture of the best of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from polyrl.errors import UserError
from polyrl.report.drawing import save
from polyrl.rollout.construction import beam_search, build
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.runtime.drawing import Placed, Sheet, Span, Spans, Words
from polyrl.runtime.seeding import generator
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.operations.path_planners import MOST_SETS, best_path, greedy_path
from polyrl.tasks.operations.path_tasks import PathTask
from polyrl.tasks.operations.paths import PathProblem, Paths
from polyrl.tasks.operations.set_functions import Coverage, Items

CELL = 34
"""Pixels of a cell in the picture."""
SAMPLED = 512
"""Paths that are drawn of the policy."""


def solve_path(run_state: CombinatorialRunState, into: Path, *, best: str = "", beam: int = 1) -> None:
    """Print what the policy's paths and the planners' are worth, and write the best of the policy's and a picture.

    Args:
        run_state: of a run on paths; the map is its task's.
        into: folder of what is written.
        best: must be empty: the best path is searched here.
        beam: prefixes that are kept; 1 is greedy.

    Raises:
        UserError: `best` is given.
    """
    task = run_state.task
    assert isinstance(task, PathTask)
    if best:
        raise UserError(
            f"--best is {best}, but the best path over a map is searched here where that can be done; leave it out."
        )
    problem, network = task.problem, run_state.network(run_state.judges)
    one = Paths(0, 1, problem)

    def by_policy() -> list[list[int]]:
        done = build(network, one).environment if beam == 1 else beam_search(network, one, beam)
        return [done.solution(0)]

    def sampled() -> list[list[int]]:
        done = build(network, one, copies=SAMPLED, stream=generator(0, "solved paths")).environment
        return [done.solution(row) for row in range(SAMPLED)]

    def exact() -> list[list[int]]:
        found = best_path(problem)
        return [] if found is None else [found]

    called = "this policy, greedy" if beam == 1 else f"this policy, beam {beam}"
    drawn = f"this policy, best of {SAMPLED}"
    makers = {called: by_policy, drawn: sampled, "greedy planner": lambda: [greedy_path(problem)], "optimum": exact}
    found = {name: _timed(problem, make) for name, make in makers.items()}
    greedy = found["greedy planner"][1]

    console = Terminal()
    console.print(Text(f"{task.name}: {task.describe()}", "bold"))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", task.label, "beside greedy", "seconds"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, (path, worth, seconds) in found.items():
        if path:
            table.add_row(
                name, f"{worth:.3f}", f"{100 * (worth / greedy - 1):+.2f}%" if greedy else "", f"{seconds:.2f}"
            )
    console.print(table)
    if not found["optimum"][0]:
        console.print(
            f"The optimum is not known: paths visit more than {MOST_SETS:,} different sets of cells.", style="dim"
        )
    name = max((called, drawn), key=lambda name: found[name][1])
    path, worth, _ = found[name]
    columns = problem.terrain.columns
    lines = [f"# {task.name}: {task.label} {worth:.4f}, {name}; row and column of each cell, from 0"]
    lines += [f"{cell // columns} {cell % columns}" for cell in path]
    into.mkdir(parents=True, exist_ok=True)
    (into / f"{task.name}.path").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(f"path     {into / f'{task.name}.path'}", soft_wrap=True)
    picture = save(
        covered(f"{task.name}: a path with {task.label} {worth:.3g}", problem, path), into / f"{task.name}.svg"
    )
    console.print(f"picture  {picture}", soft_wrap=True)


def _timed(problem: PathProblem, paths: Callable[[], list[list[int]]]) -> tuple[list[int], float, float]:
    """The best of some paths, its worth by the verifier, and the seconds that all took; no path where there is none."""
    began = time.perf_counter()
    found = paths()
    took = time.perf_counter() - began
    verdicts = [Paths(0, 1, problem).verify(problem, path) for path in found]
    worth = [-verdict.cost for verdict in verdicts if verdict.cost is not None]
    if len(worth) < len(found):
        raise RuntimeError(f"a path is infeasible: {next(v.why for v in verdicts if v.why)}")
    if not worth:
        return [], 0.0, took
    return found[worth.index(max(worth))], max(worth), took


def covered(title: str, problem: PathProblem, path: list[int]) -> Sheet:
    """The grid: cells of the path in color, with the move that reaches them; lighter what they cover; grey the rest.

    Darker grey is worth more than the mean of all cells alone. Items have a color a kind, lighter where they still lie.
    """
    terrain, worth = problem.terrain, problem.worth
    first = {cell: step for step, cell in reversed([*enumerate(path)])}
    mean = float(worth.alone.mean())
    reached = set[int]()
    if isinstance(worth, Coverage):
        reached = set(worth.footprint[torch.tensor(path)].any(0).nonzero()[:, 0].tolist())
    rows = list[list[Span]]()
    for row in range(terrain.rows):
        spans = list[Span]()
        for column in range(terrain.columns):
            cell = row * terrain.columns + column
            if cell in terrain.walls:
                continue
            kind = int(worth.kind[cell]) if isinstance(worth, Items) else 0
            look = (
                None
                if kind < 0 or (cell not in first and cell not in reached and not isinstance(worth, Items))
                else kind
            )
            rich = look is None and cell not in first and float(worth.alone[cell]) > mean
            said = f"row {row}, column {column}: {float(worth.alone[cell]):.3g} alone"
            spans.append(
                Span(
                    low=column,
                    high=column + 1,
                    look=look,
                    faint=cell not in first and not rich,
                    text=str(first[cell]) if cell in first else "",
                    title=said,
                )
            )
        rows.append(spans)
    width = terrain.columns * CELL + 80
    chart = Spans(
        width=width,
        domain=(0, terrain.columns),
        names=[f"row {row}" for row in range(terrain.rows)],
        items=rows,
        title="column",
        step=CELL,
    )
    told = "numbers: the move that comes there first"
    items: list[Placed] = [(20, 12, Words(lines=[title, told])), (20, 58, chart)]
    return Sheet(width=max(width + 40, 420), height=chart.height + 66, label=title, items=items)
