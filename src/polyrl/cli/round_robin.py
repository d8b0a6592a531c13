"""`polyrl round-robin`: the table of win rates, and of each policy the opponent against which it does worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from polyrl.report.statistics import mean_interval
from polyrl.runtime.terminal import Terminal
from polyrl.tournament import RoundRobin, round_robin


def print_round_robin(runs: Sequence[Path], *, prompts: int, trust_code: bool = False) -> None:
    """Compare all with all and print who beats whom."""
    made = round_robin(runs, prompts=prompts, trust_code=trust_code)
    seeds = len(made.rates)
    console = Terminal()
    over = f", mean over {seeds} seeds" if seeds > 1 else ""
    console.print(f"Win rates of the row against the column, judged by {made.preference}: {made.prompts} prompts{over}")
    console.print(table_of(made))


def table_of(made: RoundRobin) -> Table:
    """A row for each policy, numbered: its rate against each, against all others on average, and at worst."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("", *map(str, range(1, len(made.names) + 1)), "others", "worst against"):
        table.add_column(head, header_style="dim", overflow="fold")
    rows = zip(made.names, made.table, made.against_others(), made.worst(), strict=True)
    for i, (name, rates, others, (opponent, least)) in enumerate(rows):
        cells = ["-" if j == i else f"{float(rate):.3f}" for j, rate in enumerate(rates)]
        worst = f"{made.names.index(opponent) + 1}: {least:.3f}{_interval(made, i, opponent)}"
        table.add_row(Text(f"{i + 1} {name}", style="bold"), *cells, f"{others:.3f}", worst)
    return table


def _interval(made: RoundRobin, row: int, opponent: str) -> str:
    """The 95% interval over seeds of a rate; nothing where there are fewer than three."""
    found = mean_interval(made.rates[:, row, made.names.index(opponent)].tolist())
    return "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
