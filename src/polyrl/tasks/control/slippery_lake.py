"""A slippery lake of 8 by 8 cells: a step goes where it was aimed, and then the ice may carry on one cell further.

The lake of arXiv:2504.05150's code. Where the step was aimed is the post-decision state, which the environment tells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError

SIZE, CELLS, LIMIT = 8, 64, 100
STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Rows and columns that left, down, right and up go."""
SLIDES = 0.5
"""Probability that the ice carries on."""


@lru_cache
def lake_of(layout: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Holes `[64]`, next cells `[64, 4]`, rewards of cells `[64]`, and where each cell's ice slides to `[64, 4]`.

    A cell is a hole with probability 0.2; layouts without a way from start to goal are drawn again.
    """
    draw = np.random.default_rng(layout)
    row, column = np.divmod(np.arange(CELLS), SIZE)
    following = np.stack([(row + dy).clip(0, SIZE - 1) * SIZE + (column + dx).clip(0, SIZE - 1) for dy, dx in STEPS], 1)
    while True:
        hole = draw.random(CELLS) < 0.2
        hole[[0, CELLS - 1]] = False
        reached, new = {0}, {0}
        while new:
            new = {int(c) for at in new for c in following[at] if not hole[c]} - reached
            reached |= new
        if CELLS - 1 in reached:
            break
    distance = 2 * (SIZE - 1) - row - column
    reward = 1 / (1 + distance) - hole / (2 * SIZE)
    return hole, following, reward, np.random.default_rng(42).dirichlet(np.ones(4), CELLS)


@lru_cache
def optimum(layout: int) -> float:
    """The largest mean return of 100 steps from the start, by dynamic programming."""
    hole, following, reward, law = lake_of(layout)
    goal, value = CELLS - 1, np.zeros(CELLS)
    for _ in range(LIMIT):
        arrived = np.where(np.arange(CELLS) == goal, 0.0, value)
        slid = (law * (reward[following] + arrived[following])).sum(1)
        after = np.where(np.arange(CELLS) == goal, reward, reward + (1 - SLIDES) * value + SLIDES * slid)
        value = np.where(hole, 0.0, after[following].max(1))
    return float(value[0])


class SlipperyLake(gymnasium.Env[np.int64, np.int64]):
    """From the upper left cell to the lower right one; nearer cells pay more, and from a hole the next step ends all.

    A step goes left, down, right or up, and stays at walls. At the goal the episode is over. Elsewhere the ice carries
    on with probability 0.5, to a side by a law of the cell, and what both cells pay is added. A cell pays 1 over 1 plus
    its distance from the goal, a hole a sixteenth less. After 100 steps the episode is over.
    """

    def __init__(self, layout: int = 0):
        if isinstance(layout, bool) or not isinstance(layout, int) or layout < 0:
            raise UserError(f"The layout of slippery-lake must be a whole number from 0, not {layout!r}.")
        self.hole, self.following, self.reward, self.law = lake_of(layout)
        self.observation_space, self.action_space = spaces.Discrete(CELLS), spaces.Discrete(4)
        self.metadata = {
            "render_modes": [],
            "info_fields": {"post_observation": (CELLS,)},
            "lines": {"optimum": optimum(layout)},
        }
        self.cell, self.taken = 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """The upper left cell."""
        super().reset(seed=seed)
        self.cell, self.taken = 0, 0
        return np.int64(0), {}

    def aimed(self, action: int) -> int:
        """f(s, a): the cell that a step goes to before the ice carries on."""
        return int(self.following[self.cell, action])

    def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Go, then slide."""
        self.taken += 1
        over = self.taken >= LIMIT  # a real end, as in the authors' code: the last step has nothing after it
        aimed = self.aimed(int(action))
        told = {"post_observation": np.eye(CELLS, dtype=np.float32)[aimed]}
        slides, side = self.np_random.random(), int(self.np_random.choice(4, p=self.law[aimed]))
        if self.hole[self.cell]:
            return np.int64(self.cell), 0.0, True, False, told
        self.cell, paid = aimed, float(self.reward[aimed])
        if self.cell != CELLS - 1 and slides < SLIDES:
            self.cell = int(self.following[aimed, side])
            paid += float(self.reward[self.cell])
        return np.int64(self.cell), paid, over or self.cell == CELLS - 1, False, told
