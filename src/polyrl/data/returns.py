"""Returns from a step to the end of its episode, which are known once that has ended."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def returns_to_go(reward: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """sum_k gamma^k r_{t+k} to the last of one episode's steps: rewards `[T]` float32 to returns `[T]` float32.

    Summed in float64. What would have come after a time limit is not in it.
    """
    found, total = np.empty(len(reward)), 0.0
    for t in range(len(reward) - 1, -1, -1):
        found[t] = total = float(reward[t]) + gamma * total
    return found.astype(np.float32)
