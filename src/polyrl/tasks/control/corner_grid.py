"""A grid of 5 by 5 cells with two corners that end the episode, of which one pays twice as much.

The grid of arXiv:2311.08290's code. Its states are few, so that how often each action was taken can be counted.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, CELLS, LIMIT = 5, 25, 100
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Rows and columns that up, down, left and right go."""
CORNERS = {0: 0.5, CELLS - 1: 1.0}
"""What the corners that end an episode pay."""
ELSEWHERE = -0.01


class CornerGrid(gymnasium.Env[np.int64, np.int64]):
    """From the middle to a corner: the upper left one pays 0.5, the lower right one 1, every other step -0.01.

    A step goes up, down, left or right, and stays at walls; nothing is random. After 100 steps the episode is cut.
    """

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(CELLS), spaces.Discrete(4)
        self.metadata = {"render_modes": [], "lines": {"optimum": CORNERS[CELLS - 1] + 3 * ELSEWHERE}}
        self.cell, self.taken = CELLS // 2, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """The middle."""
        super().reset(seed=seed)
        self.cell, self.taken = CELLS // 2, 0
        return np.int64(self.cell), {}

    def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """One cell on."""
        row, column = divmod(self.cell, SIZE)
        down, right = MOVES[int(action)]
        self.cell = min(max(row + down, 0), SIZE - 1) * SIZE + min(max(column + right, 0), SIZE - 1)
        self.taken += 1
        ended = self.cell in CORNERS
        return np.int64(self.cell), CORNERS.get(self.cell, ELSEWHERE), ended, self.taken >= LIMIT and not ended, {}
