"""`polyrl list`: what there is, without importing any of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from polyrl import catalogue
from polyrl.tasks.language import TASKS


def print_list(what: str) -> None:
    """Print methods, parts, tasks, or all of them."""
    console = Console(highlight=False)
    if what in ("all", "methods"):
        table = _table("Methods", "method", "paper", "what it does")
        for info in catalogue.methods().values():
            table.add_row(f"[bold]{info.slug}[/]", f"{info.title}\n[dim]{info.paper} ({info.year})[/]", info.summary)
        console.print(table)
    if what in ("all", "parts"):
        table = _table("Parts, to add with +", "part", "stage", "what it does")
        for part in catalogue.parts().values():
            table.add_row(f"[bold]{part.name}[/]", part.stage, part.summary)
        console.print(table)
    if what in ("all", "tasks"):
        table = _table("Tasks", "task", "what it is")
        for name, summary in TASKS.items():
            table.add_row(f"[bold]{name}[/]", summary)
        table.add_row("[bold]your own[/]", "--dataset file.jsonl --reward module:function")
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left", title_style="bold blue")
    for column in columns:
        table.add_column(column, header_style="dim")
    return table
