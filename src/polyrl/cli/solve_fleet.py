"""`polyrl solve` for air taxis: a fleet's day by the policy of a run and by what stands beside it, and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from polyrl.cli.solve_shop import best_known
from polyrl.report.drawing import save
from polyrl.rollout.construction import beam_search, build
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.runtime.drawing import Placed, Sheet, Span, Spans, Words
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.operations.air_taxis import AirTaxis
from polyrl.tasks.operations.combinatorial import ConstructionEnvironment
from polyrl.tasks.operations.day_files import read_day, write_plan
from polyrl.tasks.operations.fleet_rules import evolved, flown_at_random, flown_greedily
from polyrl.tasks.operations.fleets import Day, Leg, Plan, clock, fly

WIDTH = 960
"""Pixels of the picture."""
RANDOM = 100
"""Days by random choice, whose mean stands beside."""


def solve_fleet(run_state: CombinatorialRunState, path: Path, into: Path, *, best: str = "", beam: int = 1) -> None:
    """Print the profits of the policy and of what stands beside it, and write its plan and a picture of the day.

    Args:
        run_state: of a run on air-taxis.
        path: a day as `polyrl.tasks.operations.day_files` reads it.
        into: folder of what is written.
        best: the best known profit.
        beam: prefixes that are kept; 1 is greedy.

    Raises:
        UserError: the file cannot be read, or `best` is no profit.
    """
    day = read_day(path)
    known = best_known(best, "profit")
    rows = rows_of(day)
    network = run_state.network(run_state.judges)
    called = "this policy, " + ("greedy" if beam == 1 else f"beam {beam}")

    def by_policy() -> ConstructionEnvironment:
        return build(network, rows).environment if beam == 1 else beam_search(network, rows, beam)

    ways: dict[str, Callable[[], ConstructionEnvironment]] = {
        called: by_policy,
        "greedy, dollars an hour": lambda: flown_greedily(rows),
        "greedy, dollars": lambda: flown_greedily(rows, by_hour=False),
        "genetic algorithm": lambda: evolved(rows),
    }
    console = Terminal()
    sizes = f"{len(day.starts)} air taxis among {len(day.places)} vertiports"
    console.print(Text(f"{path.stem}: {sizes}, at most ${day.revenue:,.0f}", "bold"))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "profit, $", "below best", "seconds", "ms a decision"):
        table.add_column(column, header_style="dim", justify="right" if column else "left", no_wrap=True)

    def line(name: str, profit: float, seconds: float, decisions: float) -> None:
        gap = "" if known is None else f"{100 * (1 - profit / known):+.2f}%"
        each = f"{1000 * seconds / decisions:.2f}" if decisions else ""
        table.add_row(name, f"{profit:,.0f}", gap, f"{seconds:.2f}", each)

    plans = dict[str, tuple[Plan, list[Leg]]]()
    for name, way in ways.items():
        began = time.perf_counter()
        plan = way().solution(0)
        took = time.perf_counter() - began
        legs = fly(day, plan)
        if isinstance(legs, str):
            raise RuntimeError(f"a plan cannot be flown: {legs}")
        plans[name] = plan, legs
        # a plan that is made the day before has no decisions on the way
        line(name, _profit(legs), took, 0 if name == "genetic algorithm" else len(legs))
    began = time.perf_counter()
    drawn = flown_at_random(rows.copies(RANDOM))
    line(f"random, mean of {RANDOM}", float(drawn.state["earned"].mean()), time.perf_counter() - began, 0)
    console.print(table)

    plan, legs = plans[called]
    write_plan(into / f"{path.stem}.plan", plan, _profit(legs), called)
    console.print(f"plan     {into / f'{path.stem}.plan'}", soft_wrap=True)
    picture = save(drawn_day(path.stem, day, legs), into / f"{path.stem}.svg")
    console.print(f"picture  {picture}", soft_wrap=True)


def rows_of(day: Day) -> AirTaxis:
    """One row of a day."""
    sizes = (len(day.places), len(day.starts), day.parking, day.chargers)
    return AirTaxis(0, 1, *sizes, instances=lambda row, episode: day)


def _profit(legs: Sequence[Leg]) -> float:
    return sum(leg.profit for leg in legs)


def drawn_day(name: str, day: Day, legs: Sequence[Leg]) -> Sheet:
    """A row for each aircraft: flights in the color of the vertiport they go to, lighter where it is charged there."""
    rows: list[list[Span]] = [[] for _ in day.starts]
    for leg in legs:
        row, target = rows[leg.aircraft], leg.target
        if leg.origin != target:
            said = f"{clock(leg.decided)} to {clock(leg.landed)}: vertiport {leg.origin} to {target}, "
            title = f"{said}{leg.passengers} passengers, ${leg.profit:.0f}"
            span = Span(low=6 + leg.decided, high=6 + leg.landed, look=target, text=str(target), title=title)
            row.append(span)
        if leg.charged > leg.charging:
            title = f"{clock(leg.charging)} to {clock(leg.charged)}: charged at vertiport {target}"
            row.append(Span(low=6 + leg.charging, high=6 + leg.charged, look=target, faint=True, title=title))
    last = max(18.0, 6 + max(max(leg.landed, leg.charged) for leg in legs))
    names = [f"aircraft {k}" for k in range(len(rows))]
    chart = Spans(width=WIDTH, domain=(6, last), names=names, items=rows, title="hour of the day")
    title = f"{name}: ${_profit(legs):,.0f} in a day; flights by the vertiport they go to, lighter where it is charged"
    items: list[Placed] = [(20, 12, Words(lines=[title])), (20, 40, chart)]
    return Sheet(width=WIDTH + 40, height=chart.height + 44, label=title, items=items)
