"""Small Gymnasium environments whose every number can be written down, and a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class OneState(gymnasium.Env[Any, Any]):
    """Reward 1 at each of `limit` steps; then the episode is truncated, or terminated if `real`.

    The observation is constant, or with `clock` the number of the step, so that a critic can tell them apart; the clock
    goes on at 0 after the limit, which is where a run state without limit would be.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, limit: int = 10, real: bool = False, clock: bool = False):
        self.limit, self.real, self.clock = limit, real, clock
        self.observation_space = spaces.Discrete(limit) if clock else spaces.Box(1.0, 1.0, (1,))
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def _seen(self) -> Any:
        return self.t % self.limit if self.clock else np.ones(1, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t >= self.limit
        return self._seen(), 1.0, over and self.real, over and not self.real, {}


class Walk(gymnasium.Env[Any, Any]):
    """A point that actions push; terminated outside [-1, 1], truncated after 7 steps.

    Episodes start at -0.9, -0.1, 0.7 in turn, whatever the seed, unless `random`: then by the seed. Actions are
    numbers or, with `discrete`, one of three.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, random: bool = False, discrete: bool = False, render_mode: str | None = None):
        self.random, self.render_mode = random, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64)
        self.action_space = spaces.Discrete(3, start=-1) if discrete else spaces.Box(-0.5, 0.5, (1,))
        self.episodes, self.t, self.x = 0, 0, 0.0

    def _seen(self) -> Any:
        return np.array([self.x, self.t / 7.0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.5, 0.5)) if self.random else 0.8 * (self.episodes % 3) - 0.9
        self.episodes, self.t = self.episodes + 1, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        push = 0.3 * float(np.asarray(action).reshape(-1)[0]) + 0.12
        if self.random:
            push += float(self.np_random.normal(0.0, 0.02))
        self.x, self.t = self.x + push, self.t + 1
        return self._seen(), 1.0 - abs(self.x), abs(self.x) > 1, self.t >= 7, {}

    def render(self) -> Any:
        frame = np.full((32, 48, 3), 255, dtype=np.uint8)
        at = int(np.clip(24 + 20 * self.x, 0, 47))
        frame[12:20, max(at - 2, 0) : at + 3] = (200, 30, 30)
        return frame


def walk(**settings: Any) -> Walk:
    """For `control_environments.py:walk`."""
    return Walk(**settings)


def random_walk() -> Walk:
    """Starts and pushes depend on the seed."""
    return Walk(random=True)


def walks(num_envs: int = 4) -> Any:
    """A vector environment that resets in the step after."""
    return gymnasium.vector.SyncVectorEnv([random_walk] * num_envs)


def pendulum_file(folder: Path, steps: int = 60, **changed: Any) -> Path:
    """Random numbers in the shapes of Pendulum-v1, three episodes cut at twenty steps, as a data set."""
    rng = np.random.default_rng(0)
    shown = rng.normal(size=(steps + 1, 3)).astype(np.float32)
    held = {
        "observations": shown[:-1],
        "actions": rng.uniform(-2, 2, (steps, 1)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": np.zeros(steps, dtype=bool),
        "truncations": np.arange(steps) % 20 == 19,
        "next_observations": shown[1:],
    }
    path = folder / "pendulum.npz"
    np.savez(path, **{**held, **changed})
    return path


class Corridor(gymnasium.Env[Any, Any]):
    """Walk from 0 to 1 within 30 steps of at most 0.1; the reward is 1 there, and 0 on the way."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    observation_space = spaces.Box(-4, 4, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """At 0."""
        super().reset(seed=seed)
        self.place, self.steps = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """A tenth of the action."""
        self.place, self.steps = self.place + 0.1 * float(np.clip(action[0], -1, 1)), self.steps + 1
        there = self.place > 1 - 1e-6
        return np.array([self.place], np.float32), float(there), there, self.steps >= 30, {}
