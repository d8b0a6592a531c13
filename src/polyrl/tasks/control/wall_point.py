"""A point behind a wall: from the left to a small goal at the right, over the wall or under it.

A task for the methods that begin with data (arXiv:2507.07986). Demonstrations go both ways, half of them each,
towards a point beside the goal: who imitates them reaches it now and then, and who takes the mean of both ways runs
into the wall.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.tasks.control.minari import Episode

START, GOAL, RADIUS = np.array([-0.9, 0.0]), np.array([0.9, 0.1]), 0.05
WALL = np.array([0.2, 0.4])
"""Half the wall's width and height, around (0, 0)."""
SPEED, LIMIT = 0.1, 40
AIMED, NOISE = np.array([0.9, 0.0]), 0.26
"""What demonstrations go for, and the deviation of each number of their actions."""


class WallPoint(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A step is a tenth of the action's two numbers, each in [-1, 1], and none where it would end in the wall.

    It costs 1, but for the one that reaches the goal, which ends the episode; after 40 steps the episode is cut. The
    quickest way takes 18 steps, because x has to go from -0.9 to 0.9.
    """

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self) -> None:
        self.metadata = {"render_modes": [], "lines": {"optimum": -17.0}}
        self.place, self.taken = START.copy(), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """At the left."""
        super().reset(seed=seed)
        self.place, self.taken = START.copy(), 0
        return self.place.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step on."""
        moved = np.clip(self.place + SPEED * np.clip(np.asarray(action, dtype=np.float64).reshape(2), -1, 1), -1, 1)
        if not (np.abs(moved) < WALL).all():
            self.place = moved
        self.taken += 1
        reached = bool(np.square(self.place - GOAL).sum() <= RADIUS**2)
        shown = self.place.astype(np.float32)
        return shown, 0.0 if reached else -1.0, reached, self.taken >= LIMIT and not reached, {}


def demonstrations() -> list[Episode]:
    """100 episodes, over the wall and under it in turn; the same every time."""
    stream, found, world = np.random.default_rng(0), list[Episode](), WallPoint()
    for k in range(100):
        seen = [world.reset()[0]]
        ways = [np.array([-0.25, 0.5]), np.array([0.25, 0.5])]
        goals = [*(way * (1, 1 - 2 * (k % 2)) for way in ways), AIMED]
        steps: list[tuple[NDArray[np.float32], float, bool, bool]] = []
        while not steps or not (steps[-1][2] or steps[-1][3]):
            if len(goals) > 1 and np.abs(world.place - goals[0]).max() < SPEED:
                goals.pop(0)
            action = np.clip((goals[0] - world.place) / SPEED, -1, 1) + NOISE * stream.normal(size=2)
            action = action.clip(-1, 1).astype(np.float32)
            shown, reward, ended, cut, _ = world.step(action)
            seen.append(shown)
            steps.append((action, reward, ended, cut))
        actions, rewards, ends, cuts = (np.array(column) for column in zip(*steps, strict=True))
        found.append(Episode(np.stack(seen), actions, rewards, ends, cuts, place=f"wall-point, episode {k}"))
    return found
