"""Short phrases for one-sentence errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyrl.plain_text import printable


def shortened(text: str, most: int = 60) -> str:
    """The text in quotes, on one line and not too long."""
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def reason_of(error: BaseException) -> str:
    """An error as a phrase: its kind and what it says."""
    message = printable(" ".join(str(error).split()))
    message = message if len(message) <= 200 else message[:197] + "..."
    return f"{type(error).__name__}: {message.rstrip('.')}" if message else type(error).__name__


def quoted(names: Sequence[str]) -> str:
    """`'a' and 'b'`."""
    return " and ".join(f"'{name}'" for name in names)


def counted(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def a_kind(value: Any) -> str:
    """`a str`, `an int`, `None`: what kind of value this is."""
    name = type(value).__name__
    return "None" if value is None else f"an {name}" if name[0] in "aeiou" else f"a {name}"
