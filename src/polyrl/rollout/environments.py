"""Stepping several environments together: what all ways have in common, and single ones in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.control.environment import Environment
from polyrl.tasks.control.faults import MISFIT, misfit, no_reset, no_reward, no_step
from polyrl.tasks.control.faults import failure as failure
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder
from polyrl.tasks.user_code import raised


def episode_seed(seed: int, environment: int, episode: int) -> int:
    """Seed of episode number `episode` of environment number `environment`, 31 bits: what every environment accepts."""
    return stream_seed(seed, "environment", environment, episode) % 2**31


class Environments(ABC):
    """Several environments that are stepped together. All arrays are owned by it and written over by each step.

    Attributes:
        observation: float64 `[B, D]`, what each environment shows now, after a reset where its episode ended. Always
            finite.
        final: float64 `[B, D]`, what each showed when its episode ended; only rows that ended at the last step count.
        reward: float64 `[B]`; terminated, truncated: bool `[B]`, never both.
        dead: bool `[B]`, the next step only resets this environment (Gymnasium's NEXT_STEP): what it gives is no
            experience, and `observation` still is the one that ended the episode.
        any_dead: whether one of them is.
        episode: int64 `[B]`, number of the present episode, from 0.
        mask: bool `[B, A]`, actions that are allowed now, where `info["action_mask"]` tells it, else None.
        final_mask: the same where an episode ended, of the state that ended it.
        told: float32 `[B, *shape]` by name, what the latest step told in its info, of what is asked for.
    """

    replayable = False
    """Whether each episode starts from a seed of its own, so that actions bring back its state."""

    def __init__(
        self,
        spec: str,
        count: int,
        observations: ObservationEncoder,
        actions: ActionAdapter,
        masked: int = 0,
        told: Mapping[str, tuple[int, ...]] | None = None,
    ):
        """`masked`: how many actions the environment tells the allowed ones of; 0 for one that tells nothing.

        `told`: entries of its info that are asked for, with their shapes.
        """
        self.told = {name: np.zeros((count, *shape), dtype=np.float32) for name, shape in (told or {}).items()}
        self.spec, self.count, self.masked = spec, count, masked
        self.mask = np.ones((count, masked), dtype=bool) if masked else None
        self.final_mask = np.ones((count, masked), dtype=bool)
        self.observations, self.actions = observations, actions
        self.observation = np.zeros((count, observations.size))
        self.final = np.zeros((count, observations.size))
        self.reward = np.zeros(count)
        self.terminated, self.truncated, self.dead = (np.zeros(count, dtype=bool) for _ in range(3))
        self.any_dead = False
        self.episode = np.zeros(count, dtype=np.int64)
        self._finite = np.zeros((count, observations.size), dtype=bool)

    @property
    @abstractmethod
    def length(self) -> NDArray[np.int64]:
        """Steps of the present episodes so far, `[B]`."""

    @abstractmethod
    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start an episode everywhere: number `episodes[i]` in environment `i`."""

    @abstractmethod
    def step(self, action: NDArray[Any]) -> bool:
        """Take the policy's actions `[B, ...]`; return whether an episode ended.

        Raises:
            UserError: an environment raised, or gave an observation that does not fit or is not finite.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the environments."""

    def check_rewards(self, which: Iterable[int]) -> None:
        """Refuse latest rewards of the environments `which` that are not finite."""
        if np.isfinite(self.reward).all():
            return
        for i in which:
            if not np.isfinite(self.reward[i]):
                raise failure(self.spec, i, int(self.length[i]), f"gave the reward {self.reward[i]}")

    def _allowed(self, environment: int, step: int, mask: Any) -> NDArray[np.bool_]:
        """A mask `[A]` as the environment gave it.

        Raises:
            UserError: it is missing, of another shape, or allows nothing.
        """
        told = None if mask is None else np.asarray(mask)
        if told is None or told.shape != (self.masked,):
            shape = "none" if told is None else f"one of shape {told.shape}"
            raise failure(
                self.spec, environment, step, f"gave no info['action_mask'] of {self.masked} actions but {shape}"
            )
        allowed: NDArray[np.bool_] = told.astype(bool)
        if not allowed.any():
            raise failure(self.spec, environment, step, "allows no action at all (its info['action_mask'] is all 0)")
        return allowed

    def _take_told(self, i: int, step: int, info: Mapping[str, Any]) -> None:
        """Take in what one environment told beside observation and reward.

        Raises:
            UserError: an entry is missing, of another shape, or not finite.
        """
        for name, rows in self.told.items():
            found = info.get(name)
            try:
                value = np.asarray(found, dtype=np.float32)
            except (TypeError, ValueError):
                value = np.full((), np.nan, dtype=np.float32)
            if found is None or value.shape != rows.shape[1:] or not np.isfinite(value).all():
                shape = f"{rows.shape[1:]}".replace(",)", ")")
                raise failure(self.spec, i, step, f"declares a finite info['{name}'] of shape {shape} and gave none")
            rows[i] = value

    def _check_told(self, info: Any) -> None:
        """Refuse masks that nobody would look at.

        Raises:
            UserError: allowed actions are told, and it was not known when the environment was probed.
        """
        if self.mask is None and isinstance(info, dict) and "action_mask" in info:
            raise UserError(
                f"{self.spec} tells which actions are allowed (info['action_mask']), which is known for Discrete "
                f"actions, told at every reset; its actions are {self.actions.space}. Tell no masks, or let it choose "
                "one of a few actions."
            )

    def _check_finite(self, shown: NDArray[np.float64]) -> None:
        """Refuse observations `[B, D]` that are not finite."""
        if np.count_nonzero(np.isfinite(shown, out=self._finite)) == self._finite.size:
            return
        i = int(np.flatnonzero(~self._finite.all(1))[0])
        raise failure(self.spec, i, int(self.length[i]), "gave an observation that is not finite")


class SingleEnvironments(Environments):
    """Environments of one kind, stepped one after another, each episode from a seed of its own."""

    replayable = True

    def __init__(
        self,
        spec: str,
        made: list[Environment],
        observations: ObservationEncoder,
        actions: ActionAdapter,
        masked: int = 0,
        told: Mapping[str, tuple[int, ...]] | None = None,
        lasting: Sequence[str] = (),
    ):
        """`lasting`: attributes of each environment that outlive its episodes (`ControlTask.lasting`)."""
        super().__init__(spec, len(made), observations, actions, masked, told)
        self.made = made
        self.seed = 0
        self.lasting = tuple(lasting)
        self.new = [self.kept(i) for i in range(len(made))]
        self.before = list(self.new)  # replaced, never written into
        # looked up once and not at every step
        self._all = range(len(made))
        self._step = [environment.step for environment in made]
        self._rows = [*self.observation]
        self._length = [0] * len(made)
        self._ended: list[int] = []

    @property
    def length(self) -> NDArray[np.int64]:
        """Steps of the present episodes so far, `[B]`."""
        return np.array(self._length, dtype=np.int64)

    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start these episodes, with what lasts as new; each is a pure function of it, and of (seed, environment,
        episode, actions).
        """
        self.seed = seed
        for i, episode in enumerate(episodes):
            self.restore(i, self.new[i])
            self.begin(i, episode)

    def begin(self, i: int, episode: int) -> None:
        """Start an episode in one environment."""
        self.episode[i] = episode
        if self.lasting:
            self.before[i] = self.kept(i)
        self._reset(i, episode_seed(self.seed, i, episode))

    def kept(self, i: int) -> dict[str, NDArray[Any]]:
        """Copies of what outlives the episodes of one environment.

        Raises:
            UserError: it is no NumPy array.
        """
        found = {name: vars(self.made[i].unwrapped).get(name) for name in self.lasting}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):
                raise failure(self.spec, i, 0, f"declares that '{name}' lasts, and it is no NumPy array of it")
        return {name: array.copy() for name, array in found.items() if array is not None}

    def restore(self, i: int, kept: Mapping[str, NDArray[Any]]) -> None:
        """Bring back what `kept` gave."""
        for name, array in kept.items():
            vars(self.made[i].unwrapped)[name] = array.copy()

    def reset(self, i: int, seed: int) -> None:
        """Reset one environment with a seed, what lasts to what it was when it was made."""
        self.restore(i, self.new[i])
        self._reset(i, seed)

    def _reset(self, i: int, seed: int) -> None:
        self._length[i] = 0
        try:
            given = self.made[i].reset(seed=seed)
        except Exception as error:
            raise failure(self.spec, i, 0, raised(error)) from error
        if type(given) is not tuple or len(given) != 2:
            raise failure(self.spec, i, 0, no_reset(given))
        observation = given[0]
        try:
            self.observations.encode(observation, self._rows[i])
        except MISFIT as error:
            raise self._misfit(i, error) from error
        if self.mask is not None:
            self.mask[i] = self._allowed(i, 0, given[1].get("action_mask"))
        else:
            self._check_told(given[1])
        self._check_finite(self.observation)

    def step(self, action: NDArray[Any]) -> bool:
        """Step every environment; where an episode ends, the next one starts at once."""
        ended = self.advance(self._all, self.actions.each(action))
        for i in ended:
            self.final[i] = self.observation[i]
            if self.mask is not None:
                self.final_mask[i] = self.mask[i]
            self.begin(i, int(self.episode[i]) + 1)
        return bool(ended)

    def advance(self, which: Iterable[int], chosen: Any) -> list[int]:
        """Step the environments `which` with their `chosen` actions, as they expect them; return those that ended.

        Nothing is reset: `reward`, `terminated`, `truncated` and `observation` hold what came.
        """
        for i in self._ended:
            self.terminated[i] = self.truncated[i] = False
        self._ended = ended = list[int]()
        step, rows, length, paid, encode = self._step, self._rows, self._length, self.reward, self.observations.encode
        mask = self.mask
        for i in which:
            length[i] += 1
            try:
                given = step[i](chosen[i])
            except Exception as error:
                raise failure(self.spec, i, length[i], raised(error)) from error
            try:
                observation, reward, ends, cuts, info = given
            except (TypeError, ValueError) as error:
                raise failure(self.spec, i, length[i], no_step(given)) from error
            try:
                paid[i] = reward  # None becomes NaN
            except (TypeError, ValueError) as error:
                raise failure(self.spec, i, length[i], no_reward(reward)) from error
            try:
                encode(observation, rows[i])
            except MISFIT as error:
                raise self._misfit(i, error) from error
            if mask is not None and not ends:  # what ends has no action left
                mask[i] = self._allowed(i, length[i], info.get("action_mask"))
            if self.told:
                self._take_told(i, length[i], info)
            if ends or cuts:
                self.terminated[i], self.truncated[i] = ends, not ends
                ended.append(i)
        self._check_finite(self.observation)
        return ended

    def replay(self, i: int, episode: int, actions: NDArray[Any]) -> None:
        """Bring environment `i` to where these actions `[n, ...]` lead in this episode."""
        self.begin(i, episode)
        for chosen in self.actions.each(actions):
            self.advance((i,), {i: chosen})

    def _misfit(self, i: int, error: Exception) -> UserError:
        return failure(self.spec, i, self._length[i], misfit(error))

    def close(self) -> None:
        """Close every environment."""
        for environment in self.made:
            environment.close()
