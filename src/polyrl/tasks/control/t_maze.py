"""A corridor whose beginning says which way to turn at its end: memory, and nothing else (Bakker, NIPS 2001)."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError

FORWARD, LEFT, RIGHT = range(3)


class TMaze(gymnasium.Env[NDArray[np.float32], np.int64]):
    """At the start a sign points left or right; `length` cells further one has to turn that way.

    The observation is [sign, at the junction]: the sign is -1 or 1 at the start and 0 from there on. Forward goes a
    cell on; a turn in the corridor leaves everything as it is, and so does forward at the junction. The right turn at
    the junction pays 1, the other one 0, and both end the episode; after three times as many steps as are needed it
    ends without pay. Who does not remember cannot do better than 1/2, whatever he does. With `masked`, `info` has an
    `action_mask` of the actions that change something.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - so Gymnasium declares it
        "render_modes": [],
        "lines": {"always right": 1.0, "best without memory": 0.5},
    }

    def __init__(self, length: int = 8, masked: bool = False):
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= 1000:
            raise UserError(f"The length of t-maze must be a whole number from 1 to 1000, not {length!r}.")
        if not isinstance(masked, bool):
            raise UserError(f"masked of t-maze must be yes or no, not {masked!r}.")
        self.length, self.masked = length, masked
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.sign = self.cell = self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Stand at the start, before a sign that is left or right by chance."""
        super().reset(seed=seed)
        self.sign, self.cell, self.steps = 2 * int(self.np_random.integers(2)) - 1, 0, 0
        return self._seen(), self._allowed()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Go on, or turn."""
        self.steps += 1
        junction, turned = self.cell == self.length, action != FORWARD
        over = bool(junction and turned)
        reward = float(over and (action == RIGHT) == (self.sign > 0))
        if not junction and not turned:
            self.cell += 1
        late = not over and self.steps == 3 * (self.length + 1)
        return self._seen(), reward, over, late, self._allowed()

    def _seen(self) -> NDArray[np.float32]:
        return np.array([self.sign if self.cell == 0 else 0, self.cell == self.length], np.float32)

    def _allowed(self) -> dict[str, Any]:
        if not self.masked:
            return {}
        junction = self.cell == self.length
        return {"action_mask": np.array([not junction, junction, junction])}
