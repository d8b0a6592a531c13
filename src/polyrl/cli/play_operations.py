"""`polyrl play` in operations: a trace of inventories, or solutions, and the mean cost beside what is known."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from polyrl.api import open_policy
from polyrl.errors import UserError
from polyrl.run_state.combinatorial import AlsoJudged, CombinatorialRunState
from polyrl.run_state.operations import OperationsRunState
from polyrl.runtime.terminal import Terminal

PERIODS = 24
"""Periods that are shown of each trace."""


def play(folder: Path, *, episodes: int = 1, trust_code: bool = False) -> None:
    """Print what the trained policy orders on the first `episodes` test traces, then what it costs on all of them.

    Raises:
        UserError: `episodes` is no number of test traces, or the run has no policy yet.
    """
    run_state = open_policy(folder, trust_code=trust_code)
    if isinstance(run_state, CombinatorialRunState):
        _play_instances(run_state, episodes)
        return
    assert isinstance(run_state, OperationsRunState)
    if not 1 <= episodes <= run_state.evaluation.traces:
        raise UserError(
            f"--episodes is {episodes} but must be from 1 to {run_state.evaluation.traces}, the test traces."
        )
    console = Terminal()
    task = run_state.task
    for index in range(episodes):
        several = f", trace {index + 1}" if episodes > 1 else ""
        console.print(Text(f"{task.name}: {task.describe()}{several}", style="bold"))
        console.print(trace_table(run_state, index))
    cost = run_state.evaluate()[0]["eval/cost"]
    e = run_state.evaluation
    console.print(
        f"\ncost per period and store, {e.traces} traces of {e.periods} periods, the first {e.dropped} left out"
    )
    for name, value in {"this policy": cost, **task.metric.lines}.items():
        beside = "" if name == "this policy" else f"  {100 * (cost / value - 1):+.2f}%"
        console.print(f"  {name:<28} {value:8.4f}{beside}")


def _play_instances(run_state: CombinatorialRunState, episodes: int) -> None:
    """Print the solutions of the first held-out instances, then the mean cost on all of them."""
    instances, task = run_state.evaluation.instances, run_state.task
    if not 1 <= episodes <= instances:
        raise UserError(f"--episodes is {episodes} but must be from 1 to {instances}, the held-out instances.")
    console = Terminal()
    console.print(Text(f"{task.name}: {task.describe()}", style="bold"))
    costs, solutions = run_state.solved(AlsoJudged(run_state.judges, task))
    for row in range(episodes):
        solution = " ".join(map(str, solutions[row]))
        console.print(f"instance {row}  {task.shown(costs[row]):.4f}  {solution}", soft_wrap=True)
    cost = task.shown(sum(costs) / len(costs))
    console.print(f"\n{task.label}, greedily, mean of {len(costs)} held-out instances")
    for name, value in {"this policy": cost, **task.metric.lines}.items():
        beside = "" if name == "this policy" else f"  {100 * (cost / value - 1):+.2f}%"
        console.print(f"  {name:<28} {value:8.4f}{beside}")


def trace_table(run_state: OperationsRunState, index: int) -> Table:
    """Inventories before the order, the order, demand and cost of the first periods of a test trace."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("period", "on hand", "on order", "order", "demand", "cost"):
        table.add_column(column, header_style="dim", justify="right")

    def cell(values: list[float]) -> str:
        return " ".join(f"{v:.0f}" if run_state.task.customers.integer else f"{v:.1f}" for v in values)

    for row in run_state.trace(PERIODS, index):
        numbers = [cell(row[key]) for key in ("on_hand", "on_order", "order", "demand")]
        table.add_row(str(row["period"] + 1), *numbers, f"{row['cost']:.2f}")
    return table
