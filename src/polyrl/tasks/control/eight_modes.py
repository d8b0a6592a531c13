"""Eight modes: a bandit whose data lie around eight points on a circle, and whose best action is beside one of them.

A sanity check for arXiv:2507.07986: who only chooses among actions like those of the data stays short of the
best, and a small change of one of them is enough.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.tasks.control.minari import Episode

MODES = 0.6 * np.array([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
SPREAD = 0.05
BEST = np.array([0.75, 0.0])


def reward_of(action: NDArray[Any]) -> float:
    """exp(-|a - g|^2 / 0.02) of an action `[2]`, g = (0.75, 0); 0.32 at the nearest mode."""
    return math.exp(-float(np.square(action - BEST).sum()) / 0.02)


class EightModes(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One step of two numbers in [-1, 1]."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self) -> None:
        self.metadata = {"render_modes": [], "lines": {"optimum": 1.0, "nearest mode": reward_of(MODES[0])}}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The one state that there is."""
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """The action's reward; the episode is over."""
        return np.ones(1, np.float32), reward_of(np.asarray(action, dtype=np.float64).reshape(2)), True, False, {}


def demonstrations() -> list[Episode]:
    """400 steps, 50 around each mode; the same every time."""
    drawn = np.random.default_rng(0).normal(size=(400, 2))
    actions = (np.repeat(MODES, 50, 0) + SPREAD * drawn).clip(-1, 1)
    shown, once = np.ones((2, 1), np.float32), np.ones(1, dtype=bool)
    return [
        Episode(shown, action[None], np.array([reward_of(action)]), once, ~once, place=f"eight-modes, episode {k}")
        for k, action in enumerate(actions.astype(np.float32))
    ]
