"""Stepping a Gymnasium vector environment, in whichever way it resets the episodes that have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.rollout.environments import Environments, episode_seed
from polyrl.tasks.control.environment import Vector
from polyrl.tasks.control.faults import MISFIT, misfit
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder
from polyrl.tasks.language.phrases import shortened
from polyrl.tasks.user_code import raised


class VectorEnvironments(Environments):
    """A Gymnasium vector environment, in whichever way it resets the episodes that have ended."""

    def __init__(
        self,
        spec: str,
        made: Vector,
        observations: ObservationEncoder,
        actions: ActionAdapter,
        masked: int = 0,
        told: Mapping[str, tuple[int, ...]] | None = None,
    ):
        super().__init__(spec, made.num_envs, observations, actions, masked, told)
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
        if self.told:
            self._take_all_told(info, begun, ended if same_step else np.zeros_like(ended))
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

    def _take_all_told(self, info: dict[str, Any], begun: NDArray[np.bool_] | None, ended: NDArray[np.bool_]) -> None:
        """Take in what was told; of rows `ended` `[B]` it is in `final_info`, and those that have `begun` told none."""
        for i in range(self.count):
            if begun is not None and begun[i]:
                continue
            where = info.get("final_info", {}) if ended[i] else info
            self._take_told(i, int(self._length[i]), {name: where[name][i] for name in self.told if name in where})

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
