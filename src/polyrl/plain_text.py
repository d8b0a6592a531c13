"""Text that others wrote, made harmless for a terminal: it appears as it is, and nothing in it acts."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text with every character that does more than appear written as its escape; line ends and spaces stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n " or c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def one_line(text: str) -> str:
    """The same on one line, for a sentence."""
    return printable(" ".join(line.strip() for line in text.splitlines()))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
