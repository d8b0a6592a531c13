"""`polyrl list`: what there is. Nothing of it is imported, nor what draws tables elsewhere: it must answer at once."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

import click

from polyrl.cli.kept_text import kept_text

GAP = "  "
"""Between two columns."""


def listed(what: str) -> str:
    """Methods, parts, tasks, or all of them, as wide as the terminal."""
    from polyrl import catalogue, method_files
    from polyrl.claims import verdict
    from polyrl.tasks import DOMAINS, built_in

    tables: list[str] = []
    if what in ("all", "methods"):
        for family, members in catalogue.families().items():
            rows = []
            for info in members:
                domains = [i.domain for i in catalogue.variants()[info.slug]]
                places = f"; for {' and '.join(domains)}" if len(domains) > 1 else ""
                paper = f"{info.title}, {info.paper} ({info.year}){places}"
                tested = (verdict(info.slug) or "-").removesuffix(" at this scale")
                rows.append((info.slug, tested, f"{info.summary}\n{paper}"))
            title = f"{method_files.FAMILIES.get(family, 'Methods')} ({family})"
            tables += table_lines(title, ("method", "its claim", "what it does, and the paper"), rows)
    if what in ("all", "parts"):
        parts = [(part.name, part.stage, part.summary) for part in catalogue.parts().values()]
        tables += table_lines("Parts, to add with +", ("part", "stage", "what it does"), parts)
    if what in ("all", "tasks"):
        tasks = [(name, domain, summary) for domain in DOMAINS for name, summary in built_in(domain).items()]
        tasks.append(("your own", "language", "--dataset file.jsonl --reward module:function"))
        tasks.append(("CartPole-v1, ...", "control", "any Gymnasium environment; your own as file.py:function"))
        tasks.append(("your own", "theory", "file.py:function, which says that it returns a FiniteMDP"))
        tables += table_lines("Tasks", ("task", "for", "what it is"), tasks)
    return "\n".join(tables)


def print_list(what: str) -> None:
    """Print it, read anew only where something has changed."""
    room = shutil.get_terminal_size().columns
    click.echo(kept_text(("list", what, room), lambda: (listed(what), True)))


def table_lines(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table as wide as the terminal: names unbroken, no column but the last wider than a quarter.

    The last cell of a row may have a second paragraph, behind a line break, which is dimmed.
    """
    room = shutil.get_terminal_size().columns
    widths = [max(len(line) for row in [head, *rows] for line in row[i].split("\n")) for i in range(len(head) - 1)]
    widths = [widths[0], *(min(width, room // 4) for width in widths[1:])]
    widths.append(max(20, room - sum(widths) - len(GAP) * len(widths)))
    yield click.style(title, bold=True, fg="blue")
    yield click.style(GAP.join(name.ljust(width) for name, width in zip(head, widths, strict=True)).rstrip(), dim=True)
    for row in rows:
        cells = [folded(cell, width) for cell, width in zip(row, widths, strict=True)]
        own = len(folded(row[-1].partition("\n")[0], widths[-1]))
        for i in range(max(map(len, cells))):
            line = [(cell[i] if i < len(cell) else "").ljust(width) for cell, width in zip(cells, widths, strict=True)]
            first = click.style(line[0], bold=True) if line[0].strip() else line[0]
            last = click.style(line[-1].rstrip(), dim=True) if i >= own else line[-1]
            yield GAP.join([first, *line[1:-1], last]).rstrip()


def folded(text: str, width: int) -> list[str]:
    """The text's lines, none longer than `width` unless a word is."""
    return [line for given in text.split("\n") for line in textwrap.wrap(given, width, break_long_words=False) or [""]]
