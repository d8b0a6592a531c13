"""Fields of an experience for `polyrl trace`: shape, unit, range and meaning, and what was there before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from polyrl.cli.responses import ROUNDING, differs
from polyrl.core.experience import Experience
from polyrl.core.fields import Field

WIDE = 110
"""Columns from which the meaning of a field stands beside its numbers; below, it stands above them."""
NO_NUMBERS = {"token id", "token id or action"}


def field_table(
    before: Experience | None, after: Experience, changed: Sequence[str], known: Mapping[str, Field], width: int
) -> Any:
    """Changed fields with shape, unit, range and meaning; what was there before has a line of its own.

    Args:
        before, after: what a part was given, and what it returned.
        changed: fields to show.
        known: what is known of fields, by name; of others the numbers alone are shown.
        width: columns of the terminal: below `WIDE`, each field has lines of its own.
    """
    lines = [line for name in changed for line in _field_lines(before, after, name, known.get(name))]
    if width < WIDE:
        blocks: list[Padding] = [Padding(Text("gives", style="dim"), (0, 0, 0, 4))]
        for name, shape, unit, low, mean, high, meaning in lines:
            if shape:
                blocks.append(Padding(Text(f"{name}  {meaning}"), (0, 0, 0, 6)))
                start = "  ".join(filter(None, (shape, unit if unit != "-" else "")))
            else:
                start = f"before ({meaning})"
            middle = mean if "%" in mean or "different" in mean else mean and f"mean {mean}"
            numbers = "  ".join(filter(None, (low and f"min {low}", middle, high and f"max {high}")))
            blocks.append(Padding(Text(f"{start}{'  ' * bool(numbers)}{numbers}", style="dim"), (0, 0, 0, 8)))
        return Group(*blocks)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("    gives", "shape", "unit", "min", "mean", "max", "meaning"):
        table.add_column(column, header_style="dim", justify="right" if column in ("min", "mean", "max") else "left")
    for name, *cells in lines:
        table.add_row(f"    {name}", *cells, style="" if cells[0] else "dim")
    return table


def _field_lines(before: Experience | None, after: Experience, name: str, field: Field | None) -> Iterator[list[str]]:
    """Cells of a field, and of what it was: name, shape, unit, min, mean, max, meaning."""
    unit, meaning = (field.unit, field.meaning) if field else ("", "")
    yield [name, "[" + ", ".join(map(str, after[name].shape)) + "]", unit, *value_range(after, name, field), meaning]
    if before is None or name not in before or before[name].shape != after[name].shape:
        return
    where = differs(before[name], after[name])
    said, total = "rows", len(where)
    if where.dim() >= 2:
        where = where.flatten(2).any(2) if where.dim() > 2 else where
        said, total = "steps", where.numel()
        if "mask" in after and where.shape == after["mask"].shape:
            where, total = where & after["mask"], int(after["mask"].sum())
    yield ["  before", "", "", *value_range(before, name, field), f"differs in {int(where.sum())} of {total} {said}"]


def value_range(experience: Experience, name: str, field: Field | None) -> tuple[str, str, str]:
    """Least, mean and greatest value over the steps that count; how many different ones an index has."""
    values = experience[name]
    if not values.numel() or (field and field.unit in NO_NUMBERS):
        return "", "", ""
    if field and field.unit == "index":
        return "", f"{len({*values[values >= 0].flatten().tolist()})} different", ""
    numbers = values.float()
    mask = experience["mask"] if "mask" in experience and name not in ("mask", "present") else None
    if mask is not None and values.dim() >= 2 and values.shape[:2] == mask.shape and bool(mask.any()):
        numbers = numbers[mask]
    elif name == "score" and "finished" in experience and bool(experience["finished"].any()):
        numbers = numbers[experience["finished"]]
    if values.dtype == torch.bool:
        return "", f"{100 * float(numbers.mean()):.0f}% true", ""
    found = [float(v) for v in (numbers.min(), numbers.mean(), numbers.max())]
    largest = max(abs(found[0]), abs(found[2]))
    low, mean, high = ("0" if abs(v) < ROUNDING * max(largest, 1.0) else f"{v:.3g}" for v in found)
    return low, mean, high
