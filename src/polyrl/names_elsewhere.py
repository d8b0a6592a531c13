"""What other libraries call our options and methods: one table for errors and for docs/coming-from.md."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLES = Path(__file__).with_suffix(".json")
"""Tables of the page: cells in Markdown, whose last column is ours and whose names stand in backticks."""
METHODS = "methods"
"""The table of methods; all others are of options."""
MOST_TOLD = 2
"""Meanings of one name that an error tells."""
_QUOTE = "'"


@dataclass(frozen=True)
class Table:
    """A table of docs/coming-from.md.

    Attributes:
        name: of its place on the page.
        domain: of the methods that it speaks of; empty is any.
        libraries: of each column but the last whose names it holds; empty for a column of words.
        head: titles of the columns.
        rows: Markdown; the last cell is what polyrl calls it.
    """

    name: str
    domain: str
    libraries: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@cache
def tables() -> dict[str, Table]:
    """The tables by name."""
    found = json.loads(TABLES.read_text(encoding="utf-8"))
    return {
        t["name"]: Table(
            t["name"], t["domain"], tuple(t["libraries"]), tuple(t["head"]), tuple(tuple(row) for row in t["rows"])
        )
        for t in found
    }


def option_elsewhere(name: str, domain: str | None, known: Collection[str] = (), value: str = "") -> str:
    """A sentence, with a space before it, on what `name` of another library is here; empty where it is unknown.

    Args:
        name: as it was typed, without hyphens in front.
        domain: the kind of task; None is any.
        known: options and hyperparameters that there are, in underscores: what is among them is shown as an option.
        value: what the option was to be: a name may mean one thing with one value and another with another.
    """
    tables_of_options = [
        t for t in tables().values() if t.name != METHODS and (not t.domain or domain in (None, t.domain))
    ]
    return _sentence(
        [
            (rank, library, theirs, _as_options(ours, known))
            for table in tables_of_options
            for rank, library, theirs, ours in _meanings(table, name, value)
            # an own name is asked about where the method has it not: that it is the same elsewhere is no news
            if not ours.startswith("the same") and _plain(ours.lstrip("`-").partition("`")[0]) != _plain(name)
        ]
    )


def method_elsewhere(name: str) -> str:
    """A sentence, with a space before it, on what the method `name` of another library is here; empty for unknown."""
    table = tables()[METHODS]
    bare = re.sub(r"_?(trainer|config)$", "", _plain(name))
    found = [*_meanings(table, name)] or [*_meanings(table, bare)]
    return _sentence([(rank, library, theirs, ours.replace("`", "'")) for rank, library, theirs, ours in found])


def _sentence(meanings: list[tuple[int, str, str, str]]) -> str:
    best = min((rank for rank, *_ in meanings), default=0)
    told: dict[str, str] = {}
    for rank, library, theirs, ours in meanings:
        if rank == best:
            whose = theirs if library == "elsewhere" else f"{library}'s {theirs}"
            told.setdefault(ours, f"{whose} is {'our ' if ours[:1] in ('-', _QUOTE) else ''}{ours}")
    said = "; ".join([*told.values()][:MOST_TOLD])
    return f" {said.removesuffix('.')}." if said else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _meanings(table: Table, name: str, value: str = "") -> Iterator[tuple[int, str, str, str]]:
    """How near, whose, their name and our Markdown of each row that names `name`; 0 is nearest."""
    for row in table.rows:
        for library, cell in zip(table.libraries, row, strict=False):
            theirs = re.findall(r"`([^`]+)`", cell) if library else []
            for i, text in enumerate(theirs):
                found = next((n for n in _names(text) if _plain(n) == _plain(name)), None)
                if found is None:
                    continue
                meant = text.partition("=")[2].strip('"')
                alone = cell.startswith(f"`{text}`") or cell.replace("`", "").split(", ") == theirs
                ours = re.findall(r"`([^`]+)`", row[-1])
                first = ", ".join(f"`{o}`" for o in ours[: len(theirs)])
                paired = (
                    len(ours) >= len(theirs) > 1 and row[-1].startswith(first) and row[-1][len(first) :][:2] != ", "
                )
                rank = 0 if meant and meant == value else 3 if meant else 1 if alone else 2
                yield rank, library, found, f"`{ours[i]}`{row[-1][len(first) :]}" if paired else row[-1]
                break


@cache
def _names(text: str) -> tuple[str, ...]:
    """`actor.optim.lr=1` -> actor.optim.lr and lr; `make_vec_env(..., n_envs=8)` -> both names."""
    first = re.match(r"[\w.+]+", text)
    found = [first[0], first[0].rpartition(".")[2]] if first else []
    return (*found, *re.findall(r"(\w+)=", text))


def _as_options(ours: str, known: Collection[str]) -> str:
    """Our Markdown as plain text: names of hyperparameters as options of the command line."""

    def option(match: re.Match[str]) -> str:
        text = match[1]
        name, equals, value = text.partition("=")
        if text.startswith("--"):
            return text
        if re.fullmatch(r"[\w.]+", name) and name.rpartition(".")[2] in known:
            return f"--{name.replace('_', '-')}" + (f" {value}" if equals else "")
        return f"'{text}'"

    return re.sub(r"`([^`]+)`", option, ours)
