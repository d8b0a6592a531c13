"""Schedules of the learning rate: functions of the share of a run's iterations that are done."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "inverse-sqrt"]


def schedule_factor(kind: Schedule, progress: float, warmup: float, step: float = 0.0) -> float:
    """Learning-rate factor where a share `progress` of the run is done: linear warm-up, then as `kind` says.

    `step` is the share that the coming iteration is: a warm-up that is shorter than the first iteration is none, so
    that a run of few iterations learns in the first, and a run of one iteration at all.

    "inverse-sqrt" is sqrt(warmup / progress) after a warm-up from 0.1 (arXiv:2307.04964's code); without a warm-up it
    has no scale and stays constant.
    """
    if progress < warmup:
        if step > warmup or step >= 1:
            return 1.0
        return max(progress / warmup, 0.1 if kind == "inverse-sqrt" else 0.01)
    if kind == "inverse-sqrt":
        return math.sqrt(warmup / progress) if warmup else 1.0
    left = (progress - warmup) / max(1 - warmup, 1e-12)
    if kind == "linear":
        return 1 - left
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * left))
    return 1.0
