"""Rollouts of a fixed length from several environments at once, and where the environments stand between them.

The loop over steps touches arrays that were made once; log-probabilities, returns and checks of rewards come after it,
for the whole rollout at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from polyrl.errors import Diverged, UserError
from polyrl.models.actor import ActionNotFinite, Actor, Moment
from polyrl.models.normalization import Floats
from polyrl.rollout.environment_state import EnvironmentState
from polyrl.rollout.environments import Environments, SingleEnvironments, failure

REPLAY_LIMIT = 50_000
"""Longest episode, in steps, that a checkpoint keeps for replay; a longer one is started anew there."""


@dataclass
class Rollout:
    """What one rollout gave: arrays `[B, T]`, environments first. Fields of `Experience` have its names."""

    observation: Floats
    action: NDArray[Any]
    records: dict[str, NDArray[Any]]
    """`[B, T, ...]`: what the actor recorded at each step."""
    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    present: NDArray[np.bool_]
    final_observation: Floats
    starts_episode: NDArray[np.bool_]
    rollout_end: NDArray[np.bool_]
    """`[B, T]`: the rollout ended here, and the episode goes on in the next one."""
    told: dict[str, Floats]
    """`[B, T, ...]`: what each step told beside observation and reward, of what is asked for."""
    masks: dict[str, NDArray[np.bool_]]
    """`action_mask` and `next_action_mask` `[B, T, A]`: what is allowed before and after each step; empty: all."""
    returns: list[float]
    """Raw returns of the episodes that ended."""
    lengths: list[int]


@dataclass
class _Buffers:
    """What the loop over steps writes, time first: `[T, B, ...]`. Made once, written over by every rollout."""

    observation: Floats
    """`[T + 1, B, D]`: what the policy saw, and what it will see at the next rollout's first step."""
    records: dict[str, NDArray[Any]]
    action: NDArray[Any]
    executed: NDArray[Any]
    """The same array, or what the environments got in the actions' place."""
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    told: dict[str, Floats]
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, steps: int, environments: Environments, actor: Actor) -> _Buffers:
        """Buffers for rollouts of `steps`."""
        shape = (steps, environments.count)
        action = np.empty((*shape, *actor.action_shape), dtype=actor.action_dtype)
        return cls(
            observation=np.empty((steps + 1, environments.count, environments.observations.size), dtype=np.float32),
            records={name: np.empty((*shape, *of), dtype=kind) for name, (of, kind) in actor.recorded.items()},
            action=action,
            executed=action
            if actor.execute is None
            else np.empty((*shape, *executed_shape(actor)), executed_dtype(actor)),
            told={name: np.zeros((*shape, *x.shape[1:]), dtype=np.float32) for name, x in environments.told.items()},
            reward=np.empty(shape),
            terminated=np.empty(shape, dtype=bool),
            truncated=np.empty(shape, dtype=bool),
            dead=np.empty(shape, dtype=bool),
        )


def memory_of(actor: Actor, count: int) -> dict[str, NDArray[Any]]:
    """What an actor keeps from step to step in `count` environments, `[count, ...]` by name, at the beginning."""
    return {name: np.zeros((count, *shape), dtype=kind) for name, (shape, kind) in actor.memory.items()}


def executed_shape(actor: Actor) -> tuple[int, ...]:
    """Shape of what environments are given of one action."""
    return actor.action_shape if actor.executed_shape is None else actor.executed_shape


def check_fits(actor: Actor, space: Any, owner: str) -> None:
    """Refuse an actor that gives environments another number of numbers than they take, of an action `space`.

    Raises:
        UserError: says how many; `owner` names the environment.
    """
    gives, takes = math.prod(executed_shape(actor)), math.prod(space.shape or ())
    if gives != takes:
        raise UserError(
            f"{owner} takes actions of {takes} numbers, and what acts here gives {gives}: its model is made for a part "
            "of collect that turns them into others; leave that part as the model's method has it."
        )


def executed_dtype(actor: Actor) -> Any:
    """NumPy dtype of what environments are given."""
    return actor.action_dtype if actor.executed_shape is None else np.float32


def _like(present: NDArray[np.bool_], x: NDArray[Any]) -> NDArray[np.bool_]:
    """`present` `[T, B]` with as many dimensions as `x`."""
    return present.reshape(*present.shape, *(1,) * (x.ndim - 2))


class Collector:
    """Collects rollouts with an actor, and holds the environments' state."""

    def __init__(
        self, environments: Environments, actor: Actor, seed: int, say: Callable[[str], None] = lambda _: None
    ):
        self.environments, self.actor, self.seed, self.say = environments, actor, seed, say
        self.state = EnvironmentState()
        self._ready = False
        self._statistics = actor.statistics()
        self._before: tuple[EnvironmentState, list[torch.Tensor]] | None = None
        self._buffers: _Buffers | None = None
        self._current: Floats = np.zeros((0, 0), dtype=np.float32)
        self._memory: dict[str, NDArray[Any]] = {}

    # ------------------------------------------------------------------------------------- between rollouts

    def state_to_save(self) -> EnvironmentState:
        """The environments' state, to be written into a checkpoint.

        What cannot be brought back by replay is started anew after every checkpoint, in this process as well as in one
        that resumes, so that both go on to the same numbers.
        """
        state, environments = self.state, self.environments
        if not state.running:
            return state
        if not environments.replayable:
            self.state = EnvironmentState(restarts=state.restarts + 1)
            self._ready = False
        elif max(map(len, state.actions)) > REPLAY_LIMIT:
            for i, actions in enumerate(state.actions):
                if len(actions) > REPLAY_LIMIT:
                    state.episode[i] += 1
                    state.actions[i], state.return_so_far[i] = actions[:0], 0.0
                    state.observation[i] = np.nan  # not known before the episode starts
                    if state.lasting and isinstance(environments, SingleEnvironments):
                        state.lasting[i] = environments.kept(i)
            self._ready = False
        return self.state

    @property
    def restarts_at_checkpoints(self) -> bool:
        """Whether `state_to_save` would start an environment anew."""
        state = self.state
        return bool(state.running) and (not self.environments.replayable or max(map(len, state.actions)) > REPLAY_LIMIT)

    def load_state(self, state: EnvironmentState) -> None:
        """Stand where a checkpoint says; the environments follow at the next rollout."""
        self.state, self._ready = state, False

    def rewind(self) -> None:
        """Forget the latest rollout, finished or not: stand where it began, with the statistics of then."""
        if self._before is not None:
            state, values = self._before
            for buffer, value in zip(self._statistics, values, strict=True):
                buffer.copy_(value)
            self.load_state(state)

    def _prepare(self) -> None:
        """Bring the environments to where they should stand."""
        environments, state = self.environments, self.state
        self._ready = True
        self._memory = memory_of(self.actor, environments.count)
        if state.running and state.memory.keys() == self._memory.keys() and len(state.episode) == environments.count:
            self._memory = {name: x.copy() for name, x in state.memory.items()}
        if not state.running or len(state.episode) != environments.count:
            empty = np.zeros((0, *executed_shape(self.actor)), dtype=executed_dtype(self.actor))
            first = state.restarts if not environments.replayable else 0
            environments.start(self.seed, [first] * environments.count)
            self._begin([True] * environments.count)
            self.state = EnvironmentState(
                episode=environments.episode.tolist(),
                return_so_far=[0.0] * environments.count,
                actions=[empty] * environments.count,
                observation=environments.observation.copy(),
                restarts=state.restarts,
                running=True,
                lasting=self._lasting(),
            )
            return
        assert isinstance(environments, SingleEnvironments)
        environments.seed = self.seed
        strayed, fresh = [], []
        for i, (episode, actions) in enumerate(zip(state.episode, state.actions, strict=True)):
            known = bool(np.isfinite(state.observation[i]).all())
            if state.lasting:
                environments.restore(i, state.lasting[i])
            environments.replay(i, episode, actions)
            if not known:
                fresh.append(i)
            elif not np.array_equal(environments.observation[i], state.observation[i]):
                strayed.append(i)
                environments.begin(i, episode + 1)
                state.return_so_far[i], state.actions[i] = 0.0, actions[:0]
        if strayed:
            self.say(
                f"{environments.spec} is not a function of its seed and the actions: environments "
                f"{', '.join(map(str, strayed))} could not be brought back and start new episodes, so the run goes on "
                "to other numbers than without the interruption."
            )
        self._begin([i in strayed or i in fresh for i in range(environments.count)])

    def _lasting(self) -> list[dict[str, NDArray[Any]]]:
        """What outlives episodes, as it was when the present ones began."""
        made = self.environments
        return [*made.before] if isinstance(made, SingleEnvironments) and made.lasting else []

    def _begin(self, fresh: list[bool]) -> None:
        """Show the actor the first observations of new episodes."""
        self.actor.observe(self.environments.observation[np.array(fresh)])
        self._current = self.actor.normalize(self.environments.observation)

    # ------------------------------------------------------------------------------------------- one rollout

    def collect(
        self, steps: int, generator: torch.Generator, actor: Actor | None = None, *, anew: bool = False
    ) -> Rollout:
        """Step every environment `steps` times with actions of the actor as it is now, or of another one's.

        Args:
            steps: of each environment; it may be another number each time.
            generator: of the actor's noise.
            actor: who acts, where that is not the collector's own.
            anew: begin with new episodes everywhere; those that are not over at the end are cut there for good.

        Raises:
            UserError: an environment raised, or gave an observation or reward that is not finite.
        """
        self._before = self.state.copy(), [buffer.clone() for buffer in self._statistics]
        if not self._ready:
            self._prepare()
        if anew:
            self._begin_anew()
        environments, actor = self.environments, self.actor if actor is None else actor
        noise = actor.noise(steps, environments.count, generator)
        b = self._buffers
        if b is None or b.reward.shape != (steps, environments.count) or b.records.keys() != actor.recorded.keys():
            b = self._buffers = _Buffers.of(steps, environments, actor)
        b.observation[0] = self._current
        for told in (b.terminated, b.truncated, b.dead):
            told[:] = False
        starts = environments.dead | (environments.length == 0)
        length = np.where(starts, 0, environments.length)
        final = np.zeros((environments.count, steps, environments.observations.size), dtype=np.float32)
        self._step_through(actor, b, noise, final, starts)
        self._current = b.observation[steps]
        return self._finish(b, final, starts, length, anew)

    def _begin_anew(self) -> None:
        """Leave the episodes that have been begun, and start the next ones."""
        environments, state = self.environments, self.state
        if not isinstance(environments, SingleEnvironments):
            raise UserError(
                f"{environments.spec} is stepped as a vector environment, and rollouts that begin with new episodes "
                "need environments that are reset one by one; use stepping=single."
            )
        begun = environments.length > 0
        for i in np.flatnonzero(begun).tolist():
            environments.begin(i, int(environments.episode[i]) + 1)
            state.return_so_far[i], state.actions[i] = 0.0, state.actions[i][:0]
        self._begin(begun.tolist())

    def _step_through(
        self, actor: Actor, b: _Buffers, noise: NDArray[Any], final: Floats, starts: NDArray[np.bool_]
    ) -> None:
        """Fill the buffers; this is where a run of control spends its time, so that nothing is done twice in here."""
        environments, execute = self.environments, actor.execute
        play, step, observe = actor.player(), environments.step, actor.observed()
        shown, return_so_far = environments.observation, environments.reward
        seen = [*b.observation]
        rows = [dict(zip(b.records, one, strict=True)) for one in zip(*b.records.values(), strict=True)]
        before = after = None
        if environments.mask is not None:
            before, after = (np.empty((len(noise), *environments.mask.shape), dtype=bool) for _ in range(2))
            b.masks = {"action_mask": before, "next_action_mask": after}
        moment, memory = Moment(seen[0], shown, starts, mask=environments.mask, memory=self._memory), self._memory
        for t, moment.noise in enumerate(noise):
            moment.seen = seen[t]
            for kept in memory.values():
                kept[moment.starts] = 0
            if rows:
                moment.records = rows[t]
            if environments.any_dead:
                b.dead[t] = environments.dead
            if before is not None:
                before[t] = environments.mask
            try:
                b.action[t] = action = play(moment)
            except ActionNotFinite:
                self._blame_policy(seen[t])
            if execute is not None:
                b.executed[t] = action = execute(action)
            ended = step(action)
            b.reward[t] = return_so_far
            for name, told in environments.told.items():
                b.told[name][t] = told
            if observe is None:
                seen[t + 1][:] = shown
            else:
                # the observation that ends an episode under NEXT_STEP is shown to the critic only, never to the
                # statistics
                observe(shown[~environments.dead] if environments.any_dead else None, shown, seen[t + 1])
            if after is not None:
                after[t] = environments.mask
                if ended:
                    over = environments.terminated | environments.truncated
                    after[t, over] = environments.final_mask[over]
            moment.starts = b.dead[t]  # these were reset by this step
            if ended:
                b.terminated[t], b.truncated[t] = environments.terminated, environments.truncated
                over = environments.terminated | environments.truncated
                moment.starts = moment.starts | (over & ~environments.dead)
                cut = environments.truncated
                if np.count_nonzero(cut):
                    final[cut, t] = actor.normalize(environments.final[cut])

    def _finish(
        self, b: _Buffers, final: Floats, starts: NDArray[np.bool_], length: NDArray[np.int64], anew: bool
    ) -> Rollout:
        environments = self.environments
        present, ended = ~b.dead, b.terminated | b.truncated
        if not np.isfinite(b.reward[present]).all():
            self._blame_reward(b.reward, present, ended, length)
        reward = np.where(present, b.reward, 0.0).T.copy()
        returns, lengths = self._episodes(reward, b.executed, b.dead, ended, length)
        # the rollout's end cuts an episode that goes on: the value of what follows counts, as at a time limit
        goes_on = present[-1] & ~ended[-1]
        b.truncated[-1] |= goes_on
        rollout_end = np.zeros_like(present)
        rollout_end[-1] = goes_on & (not anew)
        final[goes_on, -1] = self._current[goes_on]

        def by_environment(x: NDArray[Any]) -> NDArray[Any]:
            """A copy, which the next rollout does not write over."""
            return x.swapaxes(0, 1).copy()

        self.state.episode = environments.episode.tolist()
        self.state.observation = environments.observation.copy()
        self.state.lasting = self._lasting()
        self.state.memory = {name: x.copy() for name, x in self._memory.items()}
        return Rollout(
            observation=by_environment(b.observation[:-1]),
            action=by_environment(b.action),
            records={name: by_environment(x) for name, x in b.records.items()},
            reward=reward.astype(np.float32),
            told={name: np.where(_like(present, x), x, 0).swapaxes(0, 1) for name, x in b.told.items()},
            terminated=by_environment(b.terminated),
            truncated=by_environment(b.truncated),
            present=by_environment(present),
            final_observation=final,
            starts_episode=starts,
            rollout_end=by_environment(rollout_end),
            masks={name: by_environment(x) for name, x in b.masks.items()},
            returns=returns,
            lengths=lengths,
        )

    def _episodes(
        self,
        reward: NDArray[np.float64],
        action: NDArray[Any],
        dead: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        length: NDArray[np.int64],
    ) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended, from rewards `[B, T]`; brings `state` up to date."""
        returns, lengths, state = [], [], self.state
        ends: list[list[int]] = [[] for _ in reward]
        for i, t in np.argwhere(ended.T).tolist():
            ends[i].append(t)
        any_dead = bool(np.count_nonzero(dead))
        for i, row in enumerate(reward):
            return_so_far, steps, begins = state.return_so_far[i], int(length[i]), 0
            for end in ends[i]:
                returns.append(return_so_far + float(np.add.reduce(row[begins : end + 1])))
                rests = int(np.count_nonzero(dead[begins : end + 1, i])) if any_dead else 0
                lengths.append(steps + end + 1 - begins - rests)
                return_so_far, steps, begins = 0.0, 0, end + 1
            state.return_so_far[i] = return_so_far + float(np.add.reduce(row[begins:]))
            if self.environments.replayable:
                before = state.actions[i] if begins == 0 else state.actions[i][:0]
                state.actions[i] = np.concatenate([before, action[begins:, i]])
        return returns, lengths

    # --------------------------------------------------------------------------------------------- what fails

    def _blame_policy(self, current: Floats) -> NoReturn:
        if self.actor.is_finite():
            raise UserError(
                f"The policy's output for an observation of {self.environments.spec} overflows (the largest input is "
                f"{np.abs(current).max():.3g}); use --normalize-observation true, or scale the observations."
            )
        raise Diverged("The policy's weights are not finite; lower the learning rate.")

    def _blame_reward(
        self,
        reward: NDArray[np.float64],
        present: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        length: NDArray[np.int64],
    ) -> None:
        t, i = map(int, np.argwhere(present & ~np.isfinite(reward))[0])
        before = np.flatnonzero(ended[:t, i])
        step = int(present[before[-1] + 1 : t + 1, i].sum()) if len(before) else int(length[i]) + t + 1
        raise failure(self.environments.spec, i, step, f"gave the reward {reward[t, i]}")
