"""What is said of an environment before a run begins: images, masks that nobody reads, no end, unscaled actions."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TimeLimit
from torch import nn

from polyrl.models.images import ImageFeatures
from polyrl.run_state.environment_notices import PROBED, environment_notices
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.spaces import Image

FLAT = spaces.Box(-1, 1, (2,))


class Plain(gymnasium.Env[Any, Any]):
    """Ends after `length` steps, if ever."""

    def __init__(self, observation: Any = FLAT, action: Any = spaces.Discrete(2), length: int = 5):  # noqa: B008
        self.observation_space, self.action_space, self.length, self.steps = observation, action, length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), 0.0, self.steps == self.length, False, {}


class Masked(Plain):
    """Tells that action 0 alone is allowed, and raises at any other."""

    def reset(self, **how: Any) -> Any:
        return super().reset(**how)[0], {"action_mask": np.array([1, 0], dtype=np.int8)}

    def step(self, action: Any) -> Any:
        assert action == 0
        return (*super().step(action)[:4], {"action_mask": np.array([1, 0], dtype=np.int8)})


class Asked(Plain):
    def action_masks(self) -> Any:
        return [True, True]


class Broken(Plain):
    def step(self, action: Any) -> Any:
        raise RuntimeError("no")


class Looking:
    """An actor that reads masks, or gets its actions scaled."""

    def __init__(self, *, masks: bool = False, scaled: bool = False):
        self.fields_read = frozenset({"action_mask"} if masks else ())
        self.execute = (lambda action: action) if scaled else None


def notices(make: Any, **actor: bool) -> list[str]:
    return environment_notices(ControlTask(name="mine", make=make), cast(Any, Looking(**actor)), {})


def test_an_ordinary_environment_is_not_spoken_of() -> None:
    assert notices(Plain) == []
    assert environment_notices(ControlTask(name="CartPole-v1"), cast(Any, Looking()), {}) == []
    assert environment_notices(ControlTask(name="Pendulum-v1"), cast(Any, Looking()), {}) == []


def test_images() -> None:
    image = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    (said,) = notices(lambda: Plain(observation=image))
    assert "8 by 8 with 3 channels" in said and "192 separate numbers" in said and "pixels" in said
    (said,) = notices(lambda: Plain(observation=spaces.Dict(a=FLAT, b=image)))
    assert "images" in said
    assert notices(lambda: Plain(observation=spaces.Box(0, 255, (8,), np.uint8))) == []
    looks = ImageFeatures(192, [Image(0, 8, 8, 3, False)], "auto", orthogonal=True, generator=torch.Generator())
    task = ControlTask(name="mine", make=lambda: Plain(observation=image))
    assert environment_notices(task, cast(Any, Looking()), {"policy": nn.Sequential(looks)}) == []


def test_masks_that_nobody_reads() -> None:
    (said,) = notices(Masked)
    assert "info['action_mask']" in said and "ppo" in said
    assert notices(Masked, masks=True) == []
    assert "its method action_masks" in notices(Asked)[0] and len(notices(Asked)) == 1


def test_an_environment_that_may_never_end() -> None:
    (said,) = notices(lambda: Plain(length=0))
    assert "no time limit" in said and f"{PROBED:,}" in said and "TimeLimit" in said
    assert notices(lambda: TimeLimit(Plain(length=0), 100_000)) == []
    assert notices(lambda: Plain(length=PROBED)) == [] and len(notices(lambda: Plain(length=PROBED + 1))) == 1
    assert notices(Broken) == []  # told with its place where the run steps it


@pytest.mark.parametrize(
    "low, high, said", [(-1, 1, False), (-10, 10, False), (-11, 11, True), (0, 0.1, True), (0, 255, True)]
)
def test_actions_that_noise_does_not_fit(low: float, high: float, said: bool) -> None:
    box = spaces.Box(low, high, (2,))
    found = notices(lambda: Plain(action=box))
    assert bool(found) == said and all("RescaleAction" in text and f"{high:g}" in text for text in found)
    assert notices(lambda: Plain(action=box), scaled=True) == []
    assert notices(lambda: RescaleAction(Plain(action=box), -1.0, 1.0)) == []


def test_actions_without_bounds_are_not_cut() -> None:
    assert notices(lambda: Plain(action=spaces.Box(-np.inf, np.inf, (2,)))) == []
