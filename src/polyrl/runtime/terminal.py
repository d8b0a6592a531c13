"""The terminal: what others wrote (prompts, responses, labels, names, errors) appears in it literally.

Text of models, data and files may hold escape sequences that move the cursor, rename the window or hide what follows,
characters that reverse the direction of writing, and words in brackets that rich would take for styles. None of them
acts: styles are given by polyrl's own code only, and what is not printable is written as `\\x1b`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from polyrl.plain_text import printable


class Terminal(Console):
    """A console on which strings are plain text: no markup in them, no emoji codes, and no character that acts."""

    def __init__(self, **settings: Any):
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """The text as it appears, so that its width is known where it is laid out."""
        return super().render_str(printable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with every text made printable; what moves the cursor comes from rich alone, as control codes."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
