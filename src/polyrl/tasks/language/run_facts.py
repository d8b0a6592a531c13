"""What a reward is told of the run beside prompts, responses and columns, and what it logs: TRL's arguments."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LOGS = ("log_extra", "log_metric")
"""Functions by which a reward logs."""
ARGUMENTS = ("completion_ids", "trainer_state", *LOGS)
"""Keywords that a reward may take beside prompts, completions and columns."""


@dataclass(frozen=True)
class TrainerState:
    """How far a run is, under the names of transformers' `TrainerState`.

    Attributes:
        global_step: optimizer steps that were taken.
        max_steps: how many the run comes to, as far as its budget tells from the iterations so far; 1 before the first
            one is done, unless the budget counts them.
        epoch: share of the run that is done, since a run is one epoch.
        num_train_epochs: 1.
        log_history: empty: metrics.jsonl holds what was logged.
    """

    global_step: int = 0
    max_steps: int = 1
    epoch: float = 0.0
    num_train_epochs: int = 1
    is_world_process_zero: bool = True
    is_local_process_zero: bool = True
    log_history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class RunFacts:
    """What a batch of responses comes with.

    Attributes:
        completion_ids: token ids of each response, the end token included; None where they are not known.
        state: how far the run is.
    """

    completion_ids: Sequence[list[int]] | None = None
    state: TrainerState = field(default_factory=TrainerState)


@dataclass
class Logged:
    """What rewards logged while they judged a batch.

    Attributes:
        metrics: name -> every finite number that was logged under it.
        columns: name -> one value for each response: text, number, truth value, or None where nothing was said.
    """

    metrics: dict[str, list[float]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def functions(self, size: int) -> dict[str, Any]:
        """`log_extra` and `log_metric` of a call that judges `size` responses."""

        def log_extra(column: str, values: Sequence[Any]) -> None:
            """Show a value beside each response."""
            shown = [_plain(value) for value in values]
            if len(shown) != size:
                raise ValueError(f"log_extra('{column}', ...) has {len(shown)} values for {size} completions")
            self.columns[str(column)] = shown

        def log_metric(name: str, value: Any) -> None:
            """Log a number; several of one name are averaged, and those that are not finite are left out."""
            number = float(value)
            if math.isfinite(number):
                self.metrics.setdefault(str(name), []).append(number)

        return {"log_extra": log_extra, "log_metric": log_metric}

    def take(self, other: Logged, rows: slice, size: int) -> None:
        """Add what a call on some rows of a batch of `size` logged."""
        for name, logged in other.metrics.items():
            self.metrics.setdefault(name, []).extend(logged)
        for name, values in other.columns.items():
            self.columns.setdefault(name, [None] * size)[rows] = values

    def merge(self, other: Logged, reward: str) -> None:
        """Add what another reward logged: under its own name too, where it shows what was shown already."""
        for name, logged in other.metrics.items():
            self.metrics.setdefault(name, []).extend(logged)
        for name, values in other.columns.items():
            self.columns[f"{reward}/{name}" if name in self.columns else name] = values


def _plain(value: Any) -> Any:
    """The value as files can hold it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return str(value)
