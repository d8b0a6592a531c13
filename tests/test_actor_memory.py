"""What an actor keeps from step to step: 0 at every start, in checkpoints, undone with a rollout, anew when judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from torch import Tensor

from conftest import SEED
from polyrl import catalogue
from polyrl.models.actor import Actor, DistributionActor, Making, Moment, Player
from polyrl.parts.control import StepEnvironments
from polyrl.rollout.recording import Recorder
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
LONGEST = 7


class Walk(gymnasium.Env[np.ndarray, int]):
    """Shows the number of the step; episodes of 3 to 7 steps; paid is whether the action is 0."""

    observation_space, action_space = spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(3, LONGEST + 1))
        return np.array([0.0], np.float32), {}

    def step(self, action: int) -> Any:
        self.t += 1
        return np.array([self.t], np.float32), float(action == 0), False, self.t >= self.end, {}


class Guided(DistributionActor):
    """Begins every episode with some steps of a guide, who always chooses 0; remembers how far the episode is."""

    memory: Mapping[str, tuple[tuple[int, ...], Any]] = {"step": ((), np.int64)}
    is_policy = True

    def __init__(self, inner: DistributionActor, steps: int):
        super().__init__(inner.policy)
        self.steps = steps
        self.recorded = {**self.recorded, "step": ((), np.int64)}

    def player(self) -> Player:
        """The guide's action in the first steps."""
        play = super().player()

        def act(moment: Moment) -> NDArray[Any]:
            step = moment.memory["step"]
            if moment.records:
                moment.records["step"][:] = step
            chosen = np.where(step < self.steps, 0, play(moment))
            step += 1
            return chosen

        return act

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        return {**super().fields(records, action), "step": torch.from_numpy(records["step"])}


@dataclass(frozen=True, kw_only=True)
class GuideFirst(StepEnvironments):
    """Let the guide go first."""

    guided_steps: int = 2

    def actor(self, inner: Actor, making: Making) -> Actor:
        assert isinstance(inner, DistributionActor)
        return Guided(inner, self.guided_steps)


SMALL = {"environments": "3", "steps_per_environment": "5", "hidden": "8", "normalize_observation": "false"}


def loop_of(make: Any = Walk, guided_steps: int = 2) -> Any:
    recipe = catalogue.build("ppo", SMALL, domain="control") + GuideFirst(guided_steps=guided_steps)
    config = RunConfig(
        method="mine", task="mine", budget="iterations=9", seed=SEED, tensorboard=False, eval_episodes=25
    )
    return make_loop(config, given=PythonObjects(recipe=recipe.check(), environment=make))[0]


def vector(mode: AutoresetMode) -> Any:
    return lambda num_envs=3: SyncVectorEnv([Walk for _ in range(num_envs)], autoreset_mode=mode)


@pytest.mark.parametrize("make", [Walk, *map(vector, AutoresetMode)], ids=["single", *AutoresetMode.__members__])
def test_memory_goes_on_over_rollouts_and_begins_anew_with_episodes(make: Any) -> None:
    loop = loop_of(make)
    longest = 0
    for number in range(6):
        loop.context.iteration = number + 1
        batch = loop.recipe.collect(None, loop.context)
        counted = batch["mask"]
        assert torch.equal(batch["step"][counted], batch["observation"][..., 0][counted].long())
        assert bool((batch["action"][counted & (batch["step"] < 2)] == 0).all())
        longest = max(longest, int(batch["step"][counted].max()))
    assert longest >= 4  # more than one rollout holds


def test_memory_is_in_checkpoints(tmp_path: Path) -> None:
    loop, resumed = loop_of(), loop_of()
    loop.context.iteration = 1
    loop.recipe.collect(None, loop.context)
    loop.run_state.save(tmp_path)
    resumed.run_state.load(tmp_path)
    for run in (loop, resumed):
        run.context.iteration = 2
    a, b = (run.recipe.collect(None, run.context) for run in (loop, resumed))
    assert torch.equal(a["step"], b["step"]) and int(a["step"][:, 0].max()) > 0
    assert torch.equal(a["action"], b["action"])


def test_a_rollout_that_does_not_count_is_forgotten() -> None:
    loop = loop_of()
    loop.context.iteration = 1
    loop.recipe.collect(None, loop.context)
    found = []
    for _ in range(3):
        loop.context.iteration = 2
        found.append(loop.recipe.collect(None, loop.context)["step"])
        loop.run_state.rewind()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and int(found[0][:, 0].max()) > 0


@pytest.mark.parametrize("make", [Walk, vector(AutoresetMode.NEXT_STEP)], ids=["single", "vector"])
def test_every_evaluation_begins_without_memory(make: Any) -> None:
    all_guided, first = loop_of(make, LONGEST), loop_of(make)
    found = all_guided.run_state.evaluate()[0]
    assert found["eval/return"] == found["eval/length"]  # a guide for the whole episode is paid at every step
    with torch.no_grad():
        first.run_state.policy.network[-1].bias.copy_(torch.tensor([-9.0, 9.0]))  # who never chooses 0
    for _ in range(2):
        assert first.run_state.evaluate()[0]["eval/return"] == 2  # the guide's two steps of each episode


def test_recorded_episodes_begin_without_memory() -> None:
    loop = loop_of()
    with torch.no_grad():
        loop.run_state.policy.network[-1].bias.copy_(torch.tensor([-9.0, 9.0]))
    episodes = [*Recorder(loop.run_state.task, [loop.run_state.actor])(4)]
    assert [float(episode.rewards.sum()) for episode in episodes] == [2.0] * 4
