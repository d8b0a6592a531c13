"""Rows of the data that are not used: how many, why, and which was the first; and rows that know where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class DataRow(dict[str, Any]):
    """A row of the user's data that knows where it stands, such as `sums.jsonl, row 17`; else a dictionary."""

    __slots__ = ("place",)

    def __init__(self, row: Mapping[str, Any], place: str):
        super().__init__(row)
        self.place = place


def place_of(row: Mapping[str, Any]) -> str:
    """Return where the row stands in the user's data, or empty text where nobody knows."""
    return row.place if isinstance(row, DataRow) else ""


NO_ANSWER = "for having no answer"
UNUSABLE = "as --skip-bad-rows asks"


@dataclass
class LeftOut:
    """Rows that were left out, by reason (a phrase): how many, and the first one's place and what was wrong with it."""

    reasons: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, first: str) -> None:
        """Count a row; `first` says which it is, and is kept where it is the first of its reason."""
        count, kept = self.reasons.get(reason, (0, first))
        self.reasons[reason] = (count + 1, kept)

    def __len__(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    def sentences(self) -> list[str]:
        """Return one sentence for each reason."""
        return [
            f"{count} {'row of the data is' if count == 1 else 'rows of the data are'} left out {reason} "
            f"({'' if count == 1 else 'first: '}{first.rstrip('.')})."
            for reason, (count, first) in self.reasons.items()
        ]
