"""JSRL: a guide plays the first steps of every episode, the learner the rest, and the guide's share shrinks.

A draft of arXiv:2204.02372. The guide is a policy of another run. All steps go to the replay buffer, and the base
method's updates do not change, so `jsrl` stands on any recipe that steps environments for a buffer, and on IQL, which
gets one beside its data. With no guided steps it is the base method, to the bit.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.update import Mix, Update
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.models.actor import Actor, Making, Moment, Player
from polyrl.models.from_run import FromRun
from polyrl.models.normalization import Floats
from polyrl.parts.replayed import StepAndKeep
from polyrl.recipe import Change, Judged, Recipe, hyperparameter
from polyrl.rollout.evaluation import Evaluator
from polyrl.runtime.seeding import stream_seed

SLUG = "jsrl-draft"
TITLE = "Jump-Start Reinforcement Learning"
PAPER = "arXiv:2204.02372"
YEAR = 2022
FORMULA = "pi = (pi_guide for steps 1..h, pi for the rest); h: H_1 (1 - 1/n), ..., H_1/n, 0"
TASK = "Pendulum-v1"
JUDGED = 10_000
"""Episodes by which the curriculum is judged are of a stream of their own, apart from those of evaluations."""


def horizons(first: int, stages: int) -> list[int]:
    """Guided steps of each stage: 90, 80, ..., 10, 0 of `first` 100 and 10 `stages`."""
    return [first * (stages - k) // stages for k in range(1, stages + 1)]


def may_move_on(judged: list[float], window: int, tolerance: float, best: float | None) -> tuple[bool, float | None]:
    """Whether the latest moving average is good enough, and the best one up to now, None before there is any."""
    if len(judged) < window:
        return False, best
    average = statistics.fmean(judged[-window:])
    good = best is not None and average >= best - tolerance * abs(best)
    return good, average if best is None else max(best, average)


def translation(space: spaces.Space[Any], guide: Actor, learner: Actor) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Brings the guide's actions to what stands for them among the learner's, whose `execute` follows."""
    theirs, ours = guide.execute, learner.execute

    def translated(action: NDArray[Any]) -> NDArray[Any]:
        done = action if theirs is None else theirs(action)
        if ours is None:
            return done.astype(learner.action_dtype)
        assert isinstance(space, spaces.Box)
        low, high = space.low.reshape(1, -1), space.high.reshape(1, -1)
        found: NDArray[Any] = np.clip((2 * done - low - high) / (high - low), -1, 1)
        return found.astype(learner.action_dtype)

    return (lambda action: action) if (theirs is None) == (ours is None) else translated


class Corridor(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Walk from 0 to 1 within 30 steps of at most 0.1; the reward is 1 there, and 0 on the way."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    observation_space = spaces.Box(-4, 4, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """At 0."""
        super().reset(seed=seed)
        self.place, self.steps = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """A tenth of the action."""
        self.place, self.steps = self.place + 0.1 * float(np.clip(action[0], -1, 1)), self.steps + 1
        there = self.place > 1 - 1e-6
        return np.array([self.place], np.float32), float(there), there, self.steps >= 30, {}


class JumpStart(Actor):
    """The guide's most probable actions in an episode's first `horizon` steps, then another actor's.

    Attributes:
        inner: who acts afterwards.
        guide: who acts first.
        horizon: guided steps of an episode that begins now.
        choices: horizons of which every episode draws one instead; empty: none is drawn.
    """

    def __init__(self, inner: Actor, guide: Actor, space: spaces.Space[Any], choices: list[int]):
        self.inner, self.guide, self.space, self.choices = inner, guide, space, choices
        self.horizon = 0
        self.action_shape, self.action_dtype = inner.action_shape, inner.action_dtype
        self.recorded = {**inner.recorded, "guided": ((), np.bool_)}
        self.memory = {**inner.memory, "step": ((), np.int64), "horizon": ((), np.int64)}
        self.execute, self.executed_shape = inner.execute, inner.executed_shape
        self.fields_read = inner.fields_read

    def before(self, inner: Actor) -> JumpStart:
        """The same guide before another actor."""
        found = JumpStart(inner, self.guide, self.space, self.choices)
        found.horizon = self.horizon
        return found

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """The inner actor's, and behind it, where horizons are drawn, a number in [0, 1) for each step."""
        noise = self.inner.noise(steps, count, generator)
        if not self.choices:
            return noise
        drawn = torch.rand(steps, count, 1, generator=generator, dtype=torch.float64).numpy()
        return np.concatenate([noise.reshape(steps, count, -1), drawn], -1)

    def player(self) -> Player:
        """Count the steps of every episode, and ask the two."""
        play, guided_play = self.inner.player(), self.guide.player()
        translated = translation(self.space, self.guide, self.inner)
        shape = self.inner.noise(1, 1, torch.Generator()).shape[2:] if self.choices else ()
        kind = self.inner.noise(1, 1, torch.Generator()).dtype if self.choices else np.float32

        def acted(moment: Moment) -> NDArray[Any]:
            step, horizon, noise = moment.memory["step"], moment.memory["horizon"], moment.noise
            if self.choices and noise is not None:
                drawn = (noise[:, -1] * len(self.choices)).astype(np.int64)
                horizon[moment.starts] = np.array(self.choices)[drawn][moment.starts]
                noise = noise[:, :-1].astype(kind).reshape(len(noise), *shape)
            else:
                horizon[moment.starts] = self.horizon
            step[moment.starts] = 0
            action = play(dataclasses.replace(moment, noise=noise))
            guided = step < horizon
            step += 1
            if moment.records:
                moment.records["guided"][:] = guided
            if guided.any():
                seen = self.guide.normalize(moment.shown)
                theirs = guided_play(Moment(seen, moment.shown, moment.starts, mask=moment.mask))
                action = action.copy()
                action[guided] = translated(theirs)[guided]
            return action

        return acted

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """The inner actor's, and `guided` `[B, T]`."""
        return {**self.inner.fields(records, action), "guided": torch.from_numpy(records["guided"])}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The inner actor's."""
        return self.inner.outputs(batch, wants)

    def observe(self, shown: NDArray[np.float64]) -> None:
        """The inner actor's statistics."""
        self.inner.observe(shown)

    def normalize(self, shown: NDArray[np.float64]) -> Floats:
        """By the inner actor's statistics."""
        return self.inner.normalize(shown)

    def observed(self) -> Callable[[NDArray[np.float64] | None, NDArray[np.float64], Floats], None] | None:
        """The inner actor's."""
        return self.inner.observed()

    def statistics(self) -> list[Tensor]:
        """The inner actor's."""
        return self.inner.statistics()

    def is_finite(self) -> bool:
        """Of both."""
        return self.inner.is_finite() and self.guide.is_finite()


@dataclass(frozen=True, kw_only=True)
class JumpStarted(StepAndKeep):
    """Step environments for a replay buffer, the first steps of every episode by a guide.

    A curriculum plays episodes of its own to be judged by, at every `judge_every` iterations while there are guided
    steps; they count as steps of the run.
    """

    models: ClassVar[frozenset[str]] = frozenset({"guide"})

    strategy: Literal["curriculum", "random"] = hyperparameter(
        "curriculum", "curriculum shortens the guided part once the whole is good enough, random draws it every episode"
    )
    first_horizon: int = hyperparameter(100, "H_1, steps that the guide needs for the task", low=0)
    stages: int = hyperparameter(10, "n, how many horizons there are, the last of which is 0", low=1)
    window: int = hyperparameter(3, "w, judgements in a moving average", low=1)
    tolerance: float = hyperparameter(0.05, "share of the best moving average that may be missing", low=0)
    judge_every: int = hyperparameter(1, "iterations from one judgement to the next", low=1)
    judge_episodes: int = hyperparameter(5, "episodes of a judgement", low=1)

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Put the guide before the policy."""
        choices = horizons(self.first_horizon, self.stages) if self.strategy == "random" else []
        guide = making.models["guide"].actor()
        jump = JumpStart(inner, guide, making.task.actions.space, choices if any(choices) else [])
        jump.horizon = 0 if choices else horizons(self.first_horizon, self.stages)[0]
        return jump

    def acting(self, context: Context) -> Actor | None:
        """The guide before the policy, or before random actions at first; with the present horizon."""
        jump: JumpStart = context.run_state.actor
        jump.horizon = self.present(context)
        inner = super().acting(context)
        return None if inner is None else jump.before(inner)

    def present(self, context: Context) -> int:
        """Guided steps of the present stage."""
        stages = horizons(self.first_horizon, self.stages)
        return stages[context.memory(self.name).get("stage", 0)] if self.strategy == "curriculum" else 0

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Judge where it is time to, then collect."""
        memory = context.memory(self.name)
        horizon = self.present(context)
        if horizon and not context.turn and context.iteration % self.judge_every == 0:
            run_state = context.run_state
            run_state.actor.horizon = horizon
            judge = Evaluator(run_state.task, stream_seed(run_state.seed, self.name, JUDGED + context.iteration))
            played = judge(run_state.actor, self.judge_episodes)
            judge.close()
            context.spent.steps += sum(episode.length for episode in played)
            judged = [*memory.get("judged", []), statistics.fmean(episode.total for episode in played)]
            good, best = may_move_on(judged, self.window, self.tolerance, memory.get("best"))
            memory.update(judged=judged[-self.window :], best=best)
            if good:
                memory.update(stage=memory.get("stage", 0) + 1, judged=[])
            context.log(jsrl__judged=judged[-1])
        batch = super().__call__(experience, context)
        context.log(jsrl__horizon=self.present(context))
        context.means.add("jsrl/guided", float(batch["guided"].sum()), batch["guided"].numel())
        return batch


@dataclass(frozen=True, kw_only=True)
class Jsrl(Change):
    """Put a guide before the policy of a method that steps environments for a replay buffer."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with the guide among its models, and judged beside the policy."""
        if type(recipe.collect) is not StepAndKeep:
            raise UserError(f"{recipe.name} does not collect by 'step-and-keep' alone, so no guide can go first in it.")
        kept = {f.name: getattr(recipe.collect, f.name) for f in dataclasses.fields(StepAndKeep)}
        return dataclasses.replace(
            recipe,
            collect=JumpStarted(**kept),
            models={**recipe.models, "guide": FromRun()},
            also_judged={
                **recipe.also_judged,
                "guide": Judged(model="guide"),
                "combined": Judged(acting=True),
            },
        )


def online(recipe: Recipe) -> Recipe:
    """IQL that goes on from its data: a step of its own a turn, three quarters of every batch of what it collects.

    Rewards of the data stay as they are, like those of its own steps.
    """
    first, *others = recipe.updates
    assert isinstance(first, Update)
    return dataclasses.replace(
        recipe,
        collect=StepAndKeep(),
        sources={"data": Transitions(), "replay": Replay(capacity=100_000, learning_starts=1_000)},
        updates=(dataclasses.replace(first, batch=Mix("replay", "data", batch_size=256, share=0.75)), *others),
        budget="",
    )


def jump_started(base: str) -> Recipe:
    """JSRL on a method of the catalogue."""
    recipe = catalogue.build(base, domain="control")
    recipe = online(recipe) if recipe.collect is None else recipe
    return dataclasses.replace(Jsrl().change(recipe), name=SLUG, adds=("jsrl",))


def recipe() -> Recipe:
    """On SAC."""
    return jump_started("sac")
