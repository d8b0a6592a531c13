"""`polyrl list`: what there is, without importing any of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from polyrl import catalogue
from polyrl.claims import verdict
from polyrl.tasks import WINGS, built_in


def print_list(what: str) -> None:
    """Print methods, parts, tasks, or all of them."""
    console = Console(highlight=False)
    if what in ("all", "methods"):
        table = _table("Methods", "method", "for", "paper", "what it does")
        for slug, infos in catalogue.variants().items():
            info, wings = infos[0], ", ".join(i.wing for i in infos)
            paper = f"{info.title}\n[dim]{info.paper} ({info.year})[/]"
            tested = f"\n[dim]claim re-tested:[/] {said}" if (said := verdict(slug)) else ""
            table.add_row(f"[bold]{slug}[/]", wings, paper, info.summary + tested)
        console.print(table)
    if what in ("all", "parts"):
        table = _table("Parts, to add with +", "part", "stage", "what it does")
        for part in catalogue.parts().values():
            table.add_row(f"[bold]{part.name}[/]", part.stage, part.summary)
        console.print(table)
    if what in ("all", "tasks"):
        table = _table("Tasks", "task", "for", "what it is")
        for wing in WINGS:
            for name, summary in built_in(wing).items():
                table.add_row(f"[bold]{name}[/]", wing, summary)
        table.add_row("[bold]your own[/]", "language", "--dataset file.jsonl --reward module:function")
        table.add_row("[bold]CartPole-v1, ...[/]", "control", "any Gymnasium environment; your own as file.py:function")
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left", title_style="bold blue")
    for column in columns:
        table.add_column(column, header_style="dim")
    return table
