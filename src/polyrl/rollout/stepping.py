"""The training environments of a task, and whether an environment follows its seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.rollout.environments import Environments, SingleEnvironments
from polyrl.rollout.vector_environments import VectorEnvironments
from polyrl.tasks.control.environment import ControlTask

PROBED_STEPS = 16
"""Steps in which an environment shows whether it follows its seed."""


def follows_seed(task: ControlTask, actions: NDArray[Any]) -> bool:
    """Whether the same seed and `actions` `[T, ...]` always bring the same observations and rewards.

    It is made for this and closed again. One that fails is not judged: whoever steps it next tells what is wrong.
    """
    try:
        if task.is_vector:
            vector = task.create(count=1)
            assert not isinstance(vector, gymnasium.Env)
            made: Environments = VectorEnvironments(task.spec, vector, task.observations, task.actions, task.masked)
        else:
            one = task.singles(1)
            made = SingleEnvironments(
                task.spec, one, task.observations, task.actions, task.masked, lasting=task.lasting
            )
    except UserError:
        return True

    def played() -> list[NDArray[np.float64]]:
        made.start(0, [0] * made.count)
        shown = [made.observation.copy()]
        for action in actions:
            made.step(np.repeat(action[None], made.count, 0))
            shown += [made.observation.copy(), np.where(made.dead, 0.0, made.reward)]
        return shown

    def again() -> bool:
        return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, played(), strict=True))

    try:
        first = played()
        if not again():
            return False
        made.start(1, [0] * made.count)  # one episode more, should the environment repeat itself after a few
        return again()
    except UserError:
        return True
    finally:
        made.close()


def environments_of(task: ControlTask, count: int, told: Mapping[str, tuple[int, ...]] | None = None) -> Environments:
    """Make the training environments of a task; `told`: entries of their info that are asked for, with their shapes.

    Raises:
        UserError: they cannot be made, or hold what lasts in a way that no checkpoint can.
    """
    if task.is_vector or task.stepping != "single":
        if task.lasting:
            raise UserError(
                f"{task.spec} keeps {', '.join(task.lasting)} beyond its episodes, which checkpoints can hold of "
                "environments that are stepped one by one alone; use stepping=single."
            )
        return VectorEnvironments(task.spec, task.vector(count), task.observations, task.actions, task.masked, told)
    made = task.singles(count)
    return SingleEnvironments(task.spec, made, task.observations, task.actions, task.masked, told, lasting=task.lasting)
