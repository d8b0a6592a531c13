"""Two peaks: a bandit with one number for an action, and two actions that are best, far from one another."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError

PEAKS = (0.7, -0.7)
"""Where the reward has its two maxima."""


def reward_of(action: float, second: float) -> float:
    """exp(-(a - 0.7)^2 / 0.02) + second exp(-(a + 0.7)^2 / 0.02)."""
    first = math.exp(-((action - PEAKS[0]) ** 2) / 0.02)
    return first + second * math.exp(-((action - PEAKS[1]) ** 2) / 0.02)


class TwoPeaks(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One step of one number in [-1, 1]: the reward is 1 at 0.7 and `second` at -0.7, and next to 0 between them."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, second: float = 1.0):
        if isinstance(second, bool) or not isinstance(second, int | float) or not 0 <= second <= 1:
            raise UserError(f"The second peak of two-peaks must be a number from 0 to 1, not {second!r}.")
        self.second = float(second)
        uniform = (1 + self.second) * math.sqrt(0.02 * math.pi) / 2
        self.metadata = {"render_modes": [], "lines": {"optimum": 1.0, "uniform": uniform}}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The one state that there is."""
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """The action's reward; the episode is over."""
        return np.ones(1, np.float32), reward_of(float(np.asarray(action).reshape(-1)[0]), self.second), True, False, {}
