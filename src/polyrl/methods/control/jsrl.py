"""JSRL: a guide plays the first steps of every episode, the learner the rest, and the guide's share shrinks.

The guide is a policy of another run. All steps go to the replay buffer, and the base method's updates do not change,
so that `jsrl` stands on any method that steps environments for a buffer, and on IQL, which gets one beside its data.
With no guided steps it is the base method, to the bit.

As the paper's prose has it, and not its algorithm, the curriculum moves on only where the judged whole is good enough;
the present horizon counts steps below h as the guide's.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.update import Mix, Update
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.methods.control import sac
from polyrl.models.actor import Actor, Making, Moment, Player, Wrapper
from polyrl.models.from_run import FromRun
from polyrl.parts.exploring import ExploreEnvironments
from polyrl.parts.replayed import StepAndKeep
from polyrl.recipe import Change, Judged, Recipe, hyperparameter, options
from polyrl.rollout.evaluation import Evaluator
from polyrl.runtime.seeding import stream_seed

SLUG = "jsrl"
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
        width = np.where(high > low, high - low, 1)  # where both bounds are one, everything stands for it
        found: NDArray[Any] = np.clip((2 * done - low - high) / width, -1, 1)
        return found.astype(learner.action_dtype)

    return (lambda action: action) if (theirs is None) == (ours is None) else translated


class JumpStart(Wrapper):
    """The guide's most probable actions in an episode's first `horizon` steps, then another actor's.

    Attributes:
        inner: who acts afterwards.
        guide: who acts first.
        horizon: guided steps of an episode that begins now.
        choices: horizons of which every episode draws one instead; empty: none is drawn.
    """

    def __init__(self, inner: Actor, guide: Actor, space: spaces.Space[Any], choices: list[int]):
        super().__init__(inner)
        self.guide, self.space, self.choices, self.horizon = guide, space, choices, 0
        self.recorded = {**inner.recorded, "guided": ((), np.bool_)}
        self.memory = {**inner.memory, "step": ((), np.int64), "horizon": ((), np.int64)}

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
class JumpStartedExploring(JumpStarted, ExploreEnvironments):
    """The same, where the learner's own steps are greedy, but for a falling share of random ones."""

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Put the guide before the policy with its random actions."""
        return super().actor(ExploreEnvironments.actor(self, inner, making), making)


GUIDED: dict[type[StepAndKeep], type[JumpStarted]] = {
    StepAndKeep: JumpStarted,
    ExploreEnvironments: JumpStartedExploring,
}


@dataclass(frozen=True, kw_only=True)
class JumpStarting(Change):
    """Put a guide before the policy of a method that steps environments for a replay buffer."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with the guide among its models, and judged beside the policy.

        Raises:
            UserError: it collects in a way of its own.
        """
        recipe = online(recipe) if recipe.collect is None and "q" in recipe.models else recipe
        collect = recipe.collect
        kind = GUIDED.get(type(collect)) if isinstance(collect, StepAndKeep) else None
        if kind is None or collect is None:
            raise UserError(
                f"{recipe.name} does not step environments for a replay buffer, or does so in a way of its own, so no "
                f"guide can go first in it; sac, td3, dqn, rlpd and iql let one."
            )
        kept = {f.name: collect.setting(f.name, None) for f in options(collect)}
        return dataclasses.replace(
            recipe,
            collect=kind(**kept),
            models={**recipe.models, "guide": FromRun()},
            also_judged={
                **recipe.also_judged,
                "guide": Judged(model="guide"),
                "combined": Judged(acting=True),
            },
        )


def online(recipe: Recipe) -> Recipe:
    """A method of data alone that goes on from it: a step of its own a turn, three quarters of each batch its own.

    As the paper has IQL. Rewards of the data stay as they are, like those of its own steps.
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


def recipe() -> Recipe:
    """On SAC."""
    change = JumpStarting()
    guided = change.change(sac.recipe())
    notes = {"collect": "a guide plays the first steps of every episode, and fewer of them where that is good enough"}
    return dataclasses.replace(guided, name=SLUG, adds=(), joins=(change,), notes={**guided.notes, **notes})
