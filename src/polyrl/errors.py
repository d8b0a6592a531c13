"""Errors that a user can cause, told in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what is wrong, where, and what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class NotFinite(UserError):
    """A run's own numbers stopped being finite: the method's doing, which a re-test of its claim counts against it."""


class Diverged(NotFinite):
    """A model's weights give numbers that are not finite: they are not worth keeping."""


TOLD = "told by another process of the run"
"""Note of an error that another process raised, and says itself."""


def told_by_another(error: UserError) -> bool:
    """Whether another process of the run says it."""
    return TOLD in vars(error).get("__notes__", ())


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'grpo'?"` for the choices closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word.lower(), list(choices), n=3, cutoff=0.5)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
