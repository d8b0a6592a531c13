"""A lock with a code: one mistake, and the reward at its end is out of reach; who tries at random needs 2^H episodes.

The construction by which arXiv:2204.02372 (section 5) shows that a learner without a guide needs exponentially many
episodes.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError


class CodeLock(gymnasium.Env[NDArray[np.int64], np.int64]):
    """`length` layers with two actions each, of which one is right: a mistake leads off the red chain for good.

    The observation is the layer and whether the red chain was left. The reward is 1 for the last right action, and 0
    else. The code is a function of `code`; nothing is random.
    """

    def __init__(self, length: int = 10, code: int = 0):
        for name, value, least in (("length", length, 1), ("code", code, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"The {name} of code-lock must be a whole number from {least}, not {value!r}.")
        self.length = length
        self.right = np.random.default_rng(code).integers(0, 2, length)
        self.metadata = {"render_modes": [], "lines": {"optimum": 1.0, "uniform": 0.5**length}}
        self.observation_space = spaces.MultiDiscrete([length + 1, 2])
        self.action_space = spaces.Discrete(2)
        self.layer, self.lost = 0, 0

    def _seen(self) -> NDArray[np.int64]:
        return np.array([self.layer, self.lost])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """The first layer, on the red chain."""
        super().reset(seed=seed)
        self.layer, self.lost = 0, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """One layer on."""
        self.lost = int(self.lost or int(action) != self.right[self.layer])
        self.layer += 1
        ended = self.layer == self.length
        return self._seen(), float(ended and not self.lost), ended, False, {}


def coverage(success: float, length: int) -> float:
    """How much rarer than the best policy a guide that is right with probability `success` visits a layer, at most.

    The largest of 1 / p^h over the layers h = 0 to H - 1, the C of the paper's assumption.
    """
    return float(1 / success ** (length - 1))
