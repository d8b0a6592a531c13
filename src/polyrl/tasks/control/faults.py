"""What an environment does wrong, as one sentence with its number and step; wherever it is stepped."""

from __future__ import annotations

from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.phrases import a_kind, reason_of, shortened

MISFIT = (ValueError, TypeError, KeyError, IndexError)
"""What `ObservationEncoder.encode` raises where an observation is not in its space."""


def failure(spec: str, environment: int, step: int, what: str) -> UserError:
    """The error that names an environment and a step of its episode."""
    return UserError(
        f"Environment {environment} of {spec} {what} at step {step} of its episode; the run stopped there."
    )


def no_reset(given: Any) -> str:
    """What `reset` gave that is not (observation, info)."""
    return f"gave {a_kind(given)} from reset and not (observation, info)"


def no_step(given: Any) -> str:
    """What `step` gave that is not five values."""
    told = f"{len(given)} values" if isinstance(given, tuple | list) else a_kind(given)
    return f"gave {told} and not (observation, reward, terminated, truncated, info)"


def no_reward(reward: Any) -> str:
    """What came as a reward and is no number."""
    return f"gave the reward {shortened(str(reward))}"


def misfit(error: Exception) -> str:
    """An observation outside its space, as its encoder told."""
    return f"gave an observation that does not fit its space ({reason_of(error)})"
