"""The ledger: one JSON file a claim with its numbers, intervals and verdict; committed, and read by tables and pages.

Reading it imports nothing heavy: `polyrl list` shows verdicts and must answer at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from polyrl.errors import UserError

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parents[1]
FORMAT = 1


def in_checkout() -> bool:
    """Whether polyrl runs from its own sources, as an editable install does."""
    return (CHECKOUT / "pyproject.toml").is_file() and PACKAGE == CHECKOUT / "src" / "polyrl"


def committed_ledger() -> Path:
    """The ledger that belongs to this polyrl: the checkout's, or the copy that a wheel carries."""
    return CHECKOUT / "ledger" if in_checkout() else PACKAGE / "ledger"


def writable_ledger() -> Path:
    """Where `polyrl reproduce` writes: the checkout's ledger, or `ledger` in the current folder."""
    return CHECKOUT / "ledger" if in_checkout() else Path("ledger")


def file_of(slug: str, folder: Path | None = None) -> Path:
    """The entry's file, there or not."""
    return (folder or committed_ledger()) / f"{slug}.json"


@cache
def _read(file: Path, changed: float) -> dict[str, Any]:
    from polyrl.runtime.files import read_error, read_json

    try:
        entry = read_json(file)
    except ValueError as error:
        raise UserError(f"The ledger entry {file} cannot be read as JSON: {str(error).splitlines()[0]}.") from None
    except OSError as error:
        raise read_error(error) from None
    if entry.get("format") != FORMAT or not isinstance(entry.get("verdict"), str):
        raise UserError(f"The ledger entry {file} is not of format {FORMAT}; `polyrl reproduce` writes it anew.")
    return entry


def read(slug: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The entry of a method's claim, or None where it has not been tested.

    Raises:
        UserError: the file is damaged.
    """
    file = file_of(slug, folder)
    return _read(file, file.stat().st_mtime) if file.is_file() else None


def verdict(slug: str) -> str | None:
    """What the re-test of the paper's claim said, or None where there was none yet."""
    entry = read(slug)
    return str(entry["verdict"]) if entry else None


def write(entry: dict[str, Any], folder: Path) -> Path:
    """Write an entry so that a reader sees the old one or the new one; return its file.

    The verdict of another experiment, or of other numbers, that stood there is kept in the entry's history.

    Raises:
        UserError: the file that is there is no entry of the ledger, or nothing can be written there.
    """
    from polyrl.runtime.files import read_json, write_atomically, writing

    file = file_of(str(entry["slug"]), folder)
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            try:
                before = read_json(file)
            except ValueError:
                before = {}
            if not {"format", "slug"} <= before.keys():
                raise UserError(
                    f"{file} is no entry of polyrl's ledger, so it is not replaced; choose another --ledger."
                )
            if earlier := history(before, entry):
                entry = {**entry, "history": earlier}
        write_atomically(file, as_text(entry))
    return file


def history(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdicts that an entry replaces, oldest first: none is lost, whatever a later experiment says.

    An entry of the same experiment with the same numbers replaces nothing.
    """
    kept = [dict(one) for one in before.get("history", ())]
    numbers = [c.get("per_seed") for c in before.get("criteria", ())]
    same = numbers == [c.get("per_seed") for c in now.get("criteria", ())]
    if same and before.get("fingerprint") == now.get("fingerprint"):
        return kept
    told = ("verdict", "rule", "date", "commit", "fingerprint", "seeds", "start")
    last = {key: before[key] for key in told if key in before}
    criteria = [
        {key: c[key] for key in ("name", "kind", "primary", "at_least", "at_most", "outcome", "estimate") if key in c}
        for c in before.get("criteria", ())
    ]
    return [*kept, {**last, "criteria": criteria}]


def as_text(entry: dict[str, Any]) -> str:
    """An entry as JSON that people can read and compare: what holds only plain values stands on one line."""
    return _text(entry, 0) + "\n"


def _text(value: Any, depth: int) -> str:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not any(isinstance(v, dict | list) and v for v in inner) and (depth > 1 or len(line) < 100):
        return line
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict):
        items = [f"{json.dumps(k, ensure_ascii=False)}: {_text(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(pad + item for item in items) + f"\n{end}}}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + _text(v, depth + 1) for v in value) + f"\n{end}]"
    return line
