"""Stepping several environments together: single ones in turn, or a vector environment, each way of resetting alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.control.environment import ControlTask, Environment, Vector
from polyrl.tasks.control.faults import MISFIT, misfit, no_reset, no_reward, no_step
from polyrl.tasks.control.faults import failure as failure
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder
from polyrl.tasks.language.phrases import shortened
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
    """

    replayable = False
    """Whether each episode starts from a seed of its own, so that actions bring back its state."""

    def __init__(
        self, spec: str, count: int, observations: ObservationEncoder, actions: ActionAdapter, masked: int = 0
    ):
        """`masked`: how many actions the environment tells the allowed ones of; 0 for one that tells nothing."""
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
    ):
        super().__init__(spec, len(made), observations, actions, masked)
        self.made = made
        self.seed = 0
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
        """Start these episodes; each is a pure function of (seed, environment, episode, actions)."""
        self.seed = seed
        for i, episode in enumerate(episodes):
            self.begin(i, episode)

    def begin(self, i: int, episode: int) -> None:
        """Start an episode in one environment."""
        self.episode[i] = episode
        self.reset(i, episode_seed(self.seed, i, episode))

    def reset(self, i: int, seed: int) -> None:
        """Reset one environment with a seed."""
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


class VectorEnvironments(Environments):
    """A Gymnasium vector environment, in whichever way it resets the episodes that have ended."""

    def __init__(
        self, spec: str, made: Vector, observations: ObservationEncoder, actions: ActionAdapter, masked: int = 0
    ):
        super().__init__(spec, made.num_envs, observations, actions, masked)
        self.made = made
        self.mode = autoreset_mode(spec, made)
        self._length = np.zeros(self.count, dtype=np.int64)

    @property
    def length(self) -> NDArray[np.int64]:
        """Steps of the present episodes so far, `[B]`."""
        return self._length

    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start an episode everywhere; its randomness follows from `seed` and the first episode's number alone."""
        self.episode[:], self._length[:], self.dead[:], self.any_dead = episodes, 0, False, False
        info = self._reset(seed=episode_seed(seed, 0, int(episodes[0])))
        self._show_masks(info, np.zeros(self.count, dtype=bool))

    def step(self, action: NDArray[Any]) -> bool:
        """Step all at once; ends of episodes are told in the same way for all three modes of resetting."""
        begun = self.dead.copy() if self.any_dead else None  # those whose step is the reset
        self._length += 1 if begun is None else ~begun
        try:
            observation, reward, terminated, truncated, info = self.made.step(self.actions.batch(action))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.spec} {raised(error)} at step {self._length.max()} of its longest episode; the run "
                "stopped there."
            ) from error
        self._show(observation)
        try:
            self.reward[:] = reward
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.spec} gave the rewards {shortened(str(reward))}; the run stopped there.") from error
        self.terminated[:] = terminated
        self.truncated[:] = truncated
        self.truncated &= ~self.terminated
        if begun is not None:
            self.episode += begun
            self._length[begun] = 0
            self.dead[:], self.any_dead = False, False
        ended = self.terminated | self.truncated
        same_step = self.mode is AutoresetMode.SAME_STEP
        self._show_masks(info, np.zeros_like(ended) if same_step else self.terminated)
        if not np.count_nonzero(ended):
            return False
        if self.mask is not None:
            self.final_mask[ended] = self._last_masks(info)[ended] if same_step else self.mask[ended]
        if self.mode is AutoresetMode.NEXT_STEP:
            self.dead[:], self.any_dead = ended, True
            self.final[ended] = self.observation[ended]
            return True
        if self.mode is AutoresetMode.SAME_STEP:
            self._read_final(info, np.flatnonzero(ended))
        else:
            self.final[ended] = self.observation[ended]
            self._show_masks(self._reset(options={"reset_mask": ended}), ~ended)
        self.episode += ended
        self._length[ended] = 0
        return True

    def _reset(self, **which: Any) -> dict[str, Any]:
        try:
            observation, info = self.made.reset(**which)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.spec} {raised(error)} when it was reset.") from error
        self._show(observation)
        told: dict[str, Any] = info
        return told

    def _last_masks(self, info: dict[str, Any]) -> NDArray[np.bool_]:
        """The masks `[B, A]` of states that ended and were reset in the same step; all allowed where none is told."""
        told = info.get("final_info", {}).get("action_mask")
        found = np.ones((self.count, self.masked), dtype=bool)
        for i in range(self.count if told is not None else 0):
            if told[i] is not None and np.shape(told[i]) == (self.masked,) and np.any(told[i]):
                found[i] = np.asarray(told[i]).astype(bool)
        return found

    def _show_masks(self, info: dict[str, Any], without: NDArray[np.bool_]) -> None:
        """Take in the masks of all but the environments `without` `[B]`, which have none now or keep theirs."""
        if self.mask is None:
            self._check_told(info)
            return
        told = info.get("action_mask")
        for i in np.flatnonzero(~without):
            self.mask[i] = self._allowed(int(i), int(self._length[i]), None if told is None else told[i])

    def _read_final(self, info: dict[str, Any], ended: NDArray[np.int64]) -> None:
        found = info.get("final_obs", info.get("final_observation"))
        if found is None:
            raise UserError(
                f"{self.spec} resets in the same step but gives no info['final_obs']: without it the value of what a "
                "time limit cut off is unknown; let it give them, or use the mode NEXT_STEP."
            )
        self.final[:] = 0.0
        for i in ended:
            one = {key: value[i] for key, value in found.items()} if isinstance(found, dict) else found[i]
            try:
                self.observations.encode(one, self.final[i])
            except MISFIT as error:
                raise self._misfit(error) from error
        self._check_finite(self.final)

    def _show(self, observation: Any) -> None:
        try:
            self.observations.encode_batch(self.made.observation_space, observation, self.observation)
        except MISFIT as error:
            raise self._misfit(error) from error
        self._check_finite(self.observation)

    def _misfit(self, error: Exception) -> UserError:
        return UserError(f"{self.spec} {misfit(error)}.")

    def close(self) -> None:
        """Close the vector environment."""
        self.made.close()


def autoreset_mode(spec: str, made: Vector) -> AutoresetMode:
    """How a vector environment resets, from its metadata.

    Raises:
        UserError: it does not say.
    """
    stated = made.metadata.get("autoreset_mode")
    try:
        return stated if isinstance(stated, AutoresetMode) else AutoresetMode(stated)
    except ValueError:
        raise UserError(
            f"{spec} does not say how it resets; set its metadata['autoreset_mode'] to a "
            f"gymnasium.vector.AutoresetMode ({', '.join(m.name for m in AutoresetMode)})."
        ) from None


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
            made = SingleEnvironments(task.spec, task.singles(1), task.observations, task.actions, task.masked)
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


def environments_of(task: ControlTask, count: int) -> Environments:
    """Make the training environments of a task."""
    if task.is_vector or task.stepping != "single":
        return VectorEnvironments(task.spec, task.vector(count), task.observations, task.actions, task.masked)
    return SingleEnvironments(task.spec, task.singles(count), task.observations, task.actions, task.masked)
