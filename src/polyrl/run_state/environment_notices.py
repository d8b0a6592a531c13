"""What is to be said of an environment before a run begins, because it trains badly in silence as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import nn

from polyrl.models.actor import Actor
from polyrl.models.images import ImageFeatures
from polyrl.rollout.stepping import follows_seed
from polyrl.tasks.control.environment import ControlTask

PROBED = 2000
"""Random steps after which an environment without a time limit is taken for one that may never end."""
NARROW, WIDE = 0.1, 10.0
"""Bounds of actions between which noise of deviation 1 neither always nor never leaves them."""


def environment_notices(task: ControlTask, actor: Actor, modules: Mapping[str, nn.Module]) -> list[str]:
    """Sentences on observations, masks, ends and actions; `actor` is what acts in evaluation, `modules` what learns."""
    looks = any(isinstance(part, ImageFeatures) for module in modules.values() for part in module.modules())
    probe = task.create()
    try:
        if isinstance(probe, VectorEnv):
            actions = probe.single_action_space
            endless = ""
        else:
            actions = probe.action_space
            endless = _endless(task.spec, probe)
        return [
            s
            for s in (
                "" if looks else _images(task),
                _masks(task, probe, actor),
                endless,
                _bounds(task, actions, actor),
            )
            if s
        ]
    finally:
        probe.close()


def _images(task: ControlTask) -> str:
    images = task.observations.images
    if not images:
        return ""
    first = images[0]
    return (
        f"{task.spec} shows images of {first.height} by {first.width} with {first.channels} channels: they are read as "
        f"{task.observations.size} separate numbers by layers without convolutions, which learn little from pixels; "
        "add +cnn to a method like ppo or dqn, or let the environment give features"
    )


def _masks(task: ControlTask, probe: Any, actor: Actor) -> str:
    if task.masked:
        if "action_mask" in actor.fields_read:
            return ""
        told = "info['action_mask']"
    elif hasattr(probe.unwrapped, "action_masks"):  # as stable-baselines3-contrib asks for them
        told = "its method action_masks"
    else:
        return ""
    return (
        f"{task.spec} tells which actions are allowed ({told}), and nothing looks at that here, so that others are "
        "tried too; take a method that does, such as ppo, with info['action_mask'] at every reset and step"
    )


def _endless(spec: str, environment: gymnasium.Env[Any, Any]) -> str:
    """Whether nothing limits an episode, and none ends by itself within `PROBED` random steps."""
    wrapped: Any = environment
    while isinstance(wrapped, gymnasium.Wrapper):
        if isinstance(wrapped, gymnasium.wrappers.TimeLimit):
            return ""
        wrapped = wrapped.env
    try:
        ended = _ends(environment)
    except Exception:  # what it raises is told with its place where the run steps it
        return ""
    if ended:
        return ""
    return (
        f"{spec} has no time limit, and of {PROBED:,} random steps none ended an episode: returns are known when "
        "episodes end, and an evaluation waits for that; give it one, as in gymnasium.wrappers.TimeLimit or "
        "max_episode_steps"
    )


def _ends(environment: gymnasium.Env[Any, Any]) -> bool:
    """Whether an episode ends within `PROBED` random steps, of those actions that are allowed."""
    environment.action_space.seed(0)
    info = environment.reset(seed=0)[1]
    for _ in range(PROBED):
        told = info.get("action_mask")
        mask = None if told is None else np.asarray(told, dtype=np.int8)
        _, _, terminated, truncated, info = environment.step(environment.action_space.sample(mask))
        if terminated or truncated:
            return True
    return False


def _bounds(task: ControlTask, space: Any, actor: Actor) -> str:
    """Whether a policy whose noise begins with deviation 1 fits a Box of actions that it is not scaled to."""
    if not isinstance(space, spaces.Box) or actor.execute is not None:
        return ""
    if not bool(np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return ""  # nothing is cut
    half = (space.high - space.low).astype(np.float64) / 2
    if float(half.max()) <= WIDE and float(half.min()) >= NARROW:
        return ""
    low, high = float(space.low.min()), float(space.high.max())
    return (
        f"{task.spec} takes actions from {low:g} to {high:g}, and the policy begins with ones around 0 of deviation 1, "
        "cut at these bounds; scale them, as gymnasium.wrappers.RescaleAction does to [-1, 1], or take sac or td3"
    )


def seed_notices(task: ControlTask, actions: np.ndarray[Any, Any]) -> list[str]:
    """Whether the environment does not follow its seed, on which equal evaluations rest; actions `[T, ...]` probe."""
    if follows_seed(task, actions):
        return []
    return [
        f"{task.spec} does not follow its seed: reset twice with one seed and given the same actions, it came to other "
        "observations or rewards, so evaluations are not of the same episodes, and a resumed run comes to other "
        "numbers than an uninterrupted one; let reset(seed=...) decide everything"
    ]
