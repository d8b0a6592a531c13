"""Catch a falling ball with a paddle, seen as an image: the smallest task of pixels (arXiv:1406.6247, section 4.2)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError


class Catch(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """A ball falls a cell a step from a random place of the top row; 1 for a paddle below it at the end, else -1.

    The observation is an image [size, size, 1] of bytes, 255 where the ball and the paddle are. The paddle begins at a
    random place of the bottom row and goes left, stays, or goes right, a cell a step, which is always fast enough.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - so Gymnasium declares it
        "render_modes": ["rgb_array"],
        "lines": {"every ball caught": 1.0},
    }

    def __init__(self, size: int = 12, render_mode: str | None = "rgb_array"):
        if isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= 84:
            raise UserError(f"The size of catch must be a whole number from 4 to 84, not {size!r}.")
        self.size = size
        self.observation_space = spaces.Box(0, 255, (size, size, 1), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode
        self.row = self.ball = self.paddle = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Place ball and paddle."""
        super().reset(seed=seed)
        self.row, (self.ball, self.paddle) = 0, self.np_random.integers(self.size, size=2).tolist()
        return self.image(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the paddle, then let the ball fall."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.size - 1)
        self.row += 1
        over = self.row == self.size - 1
        reward = 0.0 if not over else 1.0 if self.ball == self.paddle else -1.0
        return self.image(), reward, over, False, {}

    def image(self) -> NDArray[np.uint8]:
        """What is seen."""
        found = np.zeros((self.size, self.size, 1), np.uint8)
        found[self.row, self.ball] = found[-1, self.paddle] = 255
        return found

    def render(self) -> NDArray[np.uint8]:
        """The same, large enough to be looked at."""
        return np.ascontiguousarray(self.image().repeat(16, 0).repeat(16, 1).repeat(3, 2))
