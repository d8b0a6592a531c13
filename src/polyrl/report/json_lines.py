"""Files of JSON lines, as runs write them and as killed ones leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyrl.runtime.files import parse_json


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a JSON-lines file; count the lines that are no JSON object, a cut last line not included."""
    if not path.is_file():
        return [], 0
    whole = _read_whole(path.read_bytes())
    if whole is not None:
        return whole, 0
    rows: list[dict[str, Any]] = []
    skipped = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode("utf-8", "replace"))
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif line.endswith(b"\n"):  # only a killed process leaves a last line without its newline
                skipped += 1
    return rows, skipped


def _read_whole(data: bytes) -> list[dict[str, Any]] | None:
    """Read JSON lines as one text, a third faster than one by one; None where a line is anything but an object."""
    lines = data.split(b"\n")
    if lines.pop() or not all(line[:1] == b"{" and line[-1:] == b"}" for line in lines):
        return None
    try:
        rows: list[Any] = parse_json(
            b"[" + b",0,".join(lines) + b"]"
        )  # the zeros stay between rows only where lines are whole
    except ValueError:
        return None
    whole = len(rows) == max(2 * len(lines) - 1, 0) and not any(rows[1::2])
    return rows[::2] if whole and all(isinstance(row, dict) for row in rows[::2]) else None
