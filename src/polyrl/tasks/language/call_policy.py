"""How functions of the user's are called: by itself, because tasks state it and nothing of theirs may be imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyrl.errors import UserError

Place = Literal["auto", "own", "same"]
OnError = Literal["stop", "drop", "zero"]


@dataclass(frozen=True)
class CallPolicy:
    """How functions of the user's are called.

    Attributes:
        on_error: "stop" raises at the first row that fails; "drop" leaves it out; "zero" goes on as if it had said
            nothing: a reward of 0, a comparison that is even.
        timeout: seconds that one call may take; None waits for ever.
        process: "own" calls them in a process of their own, where there is one; "same" in this one; "auto" gives those
            that come from a file a process of their own, and calls objects of Python here, where what they keep, count
            or collect is seen by whoever gave them.
        seed: of random numbers in that process.
    """

    on_error: OnError = "stop"
    timeout: float | None = 60.0
    process: Place = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.on_error not in ("stop", "drop", "zero"):
            raise UserError(f"What to do on a reward's error must be stop, drop or zero, not '{self.on_error}'.")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"The time limit of rewards must be more than 0 seconds, not {self.timeout}.")
        if self.process not in ("auto", "own", "same"):
            raise UserError(f"The process of rewards must be auto, own or same, not '{self.process}'.")
