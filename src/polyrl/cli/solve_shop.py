"""`polyrl solve` for job shops: a schedule by the policy of a run, a Gantt chart of it, rules and CP-SAT beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from polyrl.errors import UserError
from polyrl.report.drawing import save
from polyrl.rollout.construction import beam_search, build
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.runtime.drawing import Placed, Sheet, Span, Spans, Words
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.operations import cp_sat
from polyrl.tasks.operations.dispatching import RULES, dispatch, dispatched_at_random
from polyrl.tasks.operations.job_shop import JobShop, JobShopTask
from polyrl.tasks.operations.jsplib import read_shop, write_schedule
from polyrl.tasks.operations.shops import MOST_SEQUENCES, Schedule, Shop, best_makespans, orders_of, verify

WIDTH = 860
"""Pixels of the picture."""
SECONDS = 60.0
"""Of CP-SAT, where OR-tools is installed."""
RANDOM = 100
"""Schedules by random choice, whose mean stands beside."""


def solve_shop(run_state: CombinatorialRunState, path: Path, into: Path, *, best: str = "", beam: int = 1) -> None:
    """Print the makespans of the policy and of what stands beside it, and write its schedule and a Gantt chart.

    Nothing shuts down, whatever the run was trained on: files state no shutdowns.

    Args:
        run_state: of a run on job-shop.
        path: a file of OR-Library or JSPLIB.
        into: folder of what is written.
        best: the best known makespan; empty: what is computed here, where that is proved.
        beam: prefixes that are kept; 1 is greedy.

    Raises:
        UserError: the file cannot be read, or `best` is no makespan.
    """
    shop = read_shop(path)
    known = best_known(best, "makespan")
    task = run_state.task
    assert isinstance(task, JobShopTask)
    rows = rows_of(shop, waiting=task.waiting)
    network = run_state.network(run_state.judges)

    def by_policy() -> Schedule:
        done = build(network, rows).environment if beam == 1 else beam_search(network, rows, beam)
        return [*done.solution(0)]

    called = "this policy, " + ("greedy" if beam == 1 else f"beam {beam}")
    found = {called: _timed(shop, by_policy)}
    plain = rows_of(shop)
    for name, rule in RULES.items():
        found[name] = _timed(shop, lambda rule=rule: dispatch(plain, rule).solution(0))  # type: ignore[misc]
    began = time.perf_counter()
    drawn = float(dispatched_at_random(plain.copies(RANDOM)).mean())
    beside = [(f"random, mean of {RANDOM}", drawn, time.perf_counter() - began)]
    if cp_sat.is_installed():
        began = time.perf_counter()
        proved = cp_sat.solved(shop, SECONDS)
        if proved is not None:
            cost = verify(shop, proved.schedule).cost
            assert cost is not None
            name = "CP-SAT, optimal" if proved.proved else f"CP-SAT, none is below {proved.bound}"
            beside.append((name, cost, time.perf_counter() - began))
            known = cost if known is None and proved.proved else known
    elif orders_of(shop) <= MOST_SEQUENCES:
        began = time.perf_counter()
        beside.append(("best of all orders", float(best_makespans([shop])), time.perf_counter() - began))
        known = beside[-1][1] if known is None else known

    console = Terminal()
    console.print(Text(f"{path.stem}: {len(shop.jobs)} jobs on {shop.machines} machines without buffers", "bold"))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "makespan", "above the best known", "seconds"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, cost, seconds in [*((name, cost, seconds) for name, (_, cost, seconds) in found.items()), *beside]:
        gap = "" if known is None else f"{100 * (cost / known - 1):+.2f}%"
        table.add_row(name, f"{cost:.0f}", gap, f"{seconds:.2f}")
    console.print(table)
    if known is None:
        console.print(
            "No best makespan is known: give --best one, or pip install 'polyrl[solvers]' for CP-SAT.", style="dim"
        )
    schedule, cost, _ = found[called]
    write_schedule(into / f"{path.stem}.schedule", shop, schedule, cost, called)
    console.print(f"schedule {into / f'{path.stem}.schedule'}", soft_wrap=True)
    picture = save(gantt(path.stem, shop, schedule, cost), into / f"{path.stem}.svg")
    console.print(f"picture  {picture}", soft_wrap=True)


def rows_of(shop: Shop, waiting: bool = False) -> JobShop:
    """One row of a shop."""
    most = max(len(job) for job in shop.jobs)
    return JobShop(
        0, 1, len(shop.jobs), shop.machines, waiting=waiting, operations=most, instances=lambda row, episode: shop
    )


def best_known(best: str, what: str) -> float | None:
    """The number that `--best` says; `what` is what it is of.

    Raises:
        UserError: it is no number above 0.
    """
    if not best:
        return None
    try:
        number = float(best)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserError(f"--best is {best} but must be a {what} above 0.")
    return number


def _timed(shop: Shop, schedule: Callable[[], Schedule]) -> tuple[Schedule, float, float]:
    """A schedule, its makespan by the verifier, and the seconds that it took."""
    began = time.perf_counter()
    found = schedule()
    took = time.perf_counter() - began
    verdict = verify(shop, found)
    if verdict.cost is None:
        raise RuntimeError(f"a schedule is infeasible: {verdict.why}")
    return found, verdict.cost, took


def gantt(name: str, shop: Shop, schedule: Schedule, makespan: float) -> Sheet:
    """A row for each machine: what is processed in the job's color, what blocks in a lighter one, what is down grey."""
    rows: list[list[Span]] = [[] for _ in range(shop.machines)]
    for j, (job, begun) in enumerate(zip(shop.jobs, schedule, strict=True)):
        for k, ((machine, length), at) in enumerate(zip(job, begun, strict=True)):
            done = shop.done_at(machine, at, length)
            left = begun[k + 1] if k + 1 < len(job) else done
            if left > done:
                rows[machine].append(Span(low=done, high=left, look=j, faint=True, title=f"job {j} blocks"))
            title = f"job {j}, operation {k}: {at} to {done}"
            rows[machine].append(Span(low=at, high=done, look=j, text=str(j), title=title))
    for machine, row in enumerate(rows):
        row += [Span(low=a, high=b, title="down") for a, b in shop.down(machine) if a < makespan]
    names = [f"machine {machine}" for machine in range(shop.machines)]
    chart = Spans(width=WIDTH, domain=(0, makespan), names=names, items=rows, title="time")
    title = f"{name}: a schedule of makespan {makespan:.0f}; jobs by number, lighter where they block"
    items: list[Placed] = [(20, 12, Words(lines=[title])), (20, 40, chart)]
    return Sheet(width=WIDTH + 40, height=chart.height + 44, label=title, items=items)
