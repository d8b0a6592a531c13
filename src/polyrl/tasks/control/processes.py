"""Environments in a process each, where what goes wrong in one is told as of an environment of this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from polyrl.errors import UserError
from polyrl.tasks.control.faults import MISFIT, failure, misfit, no_reset, no_reward, no_step
from polyrl.tasks.control.spaces import ObservationEncoder
from polyrl.tasks.user_code import raised


class Told(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose faults are sentences: of the user's errors only a text comes back from another process."""

    def __init__(self, made: gymnasium.Env[Any, Any], spec: str, number: int, observations: ObservationEncoder):
        super().__init__(made)
        self.owner, self.number, self.length = spec, number, 0
        self.observations, self._row = observations, np.zeros(observations.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset it; raises `UserError` where it fails or gives something else."""
        self.length = 0
        try:
            given = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._failure(raised(error)) from error
        if type(given) is not tuple or len(given) != 2:
            raise self._failure(no_reset(given))
        self._check(given[0])
        return given

    def step(self, action: Any) -> Any:
        """Step it; raises `UserError` where it fails or gives something else."""
        self.length += 1
        try:
            given = self.env.step(action)
        except Exception as error:
            raise self._failure(raised(error)) from error
        try:
            observation, reward, ends, cuts, info = given
        except (TypeError, ValueError):
            raise self._failure(no_step(given)) from None
        try:
            paid = np.asarray(reward, dtype=np.float64).reshape(())  # None becomes NaN
        except (TypeError, ValueError):
            raise self._failure(no_reward(reward)) from None
        self._check(observation)
        return observation, float(paid), bool(ends), bool(cuts), info

    def _check(self, observation: Any) -> None:
        try:
            self.observations.encode(observation, self._row)
        except MISFIT as error:
            raise self._failure(misfit(error)) from error

    def _failure(self, what: str) -> UserError:
        return failure(self.owner, self.number, self.length, what)


class _NotMade(gymnasium.Env[Any, Any]):
    """Stands for an environment that could not be made in its process, until it is reset and can say so."""

    def __init__(self, observation_space: Any, action_space: Any, why: str):
        self.observation_space, self.action_space, self.why = observation_space, action_space, why

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        raise UserError(self.why)


def _leave_signals() -> None:
    """A run that handles signals is the parent's affair: here Ctrl-C is nothing, and SIGTERM the end."""
    for name, handler in (("SIGINT", signal.SIG_IGN), ("SIGHUP", signal.SIG_IGN), ("SIGTERM", signal.SIG_DFL)):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


class Processes(AsyncVectorEnv):
    """Single environments of one kind, each in a process of its own; ended ones are reset by `reset_mask`.

    Its errors are `UserError`, and an error closes it.
    """

    def __init__(self, spec: str, make: Callable[[], Any], count: int, observations: ObservationEncoder):
        self.owner = spec
        here = make()  # errors of making are clearer here than from another process
        here.close()

        parent = os.getpid()

        def maker(number: int) -> Callable[[], gymnasium.Env[Any, Any]]:
            def made() -> gymnasium.Env[Any, Any]:
                if os.getpid() != parent:
                    _leave_signals()
                try:
                    return Told(make(), spec, number, observations)
                except UserError as error:
                    return _NotMade(here.observation_space, here.action_space, str(error))

            return made

        super().__init__([maker(i) for i in range(count)], autoreset_mode=AutoresetMode.DISABLED)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all, or those of `options["reset_mask"]`.

        Raises:
            UserError: one of them failed, or its process ended.
        """
        try:
            return super().reset(seed=seed, options=options)
        except (EOFError, OSError):
            raise self._ended() from None

    def step(self, actions: Any) -> Any:
        """Step all.

        Raises:
            UserError: one of them failed, or its process ended.
        """
        try:
            return super().step(actions)
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> UserError:
        """What is said of a process that is there no more."""
        gone = []
        for i, process in enumerate(self.processes):
            process.join(0.5)
            if process.exitcode is not None:
                code = process.exitcode
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                gone.append(f"Environment {i} of {self.owner} stopped the run: its process {how}.")
        self._state = AsyncState.DEFAULT  # nothing that is still to come is waited for
        self.close(terminate=True)
        return UserError(gone[0] if gone else f"A process of {self.owner} cannot be reached any more.")

    def _raise_if_errors(self, successes: Sequence[bool] | Iterable[bool]) -> None:
        """Gymnasium's would print every traceback as a warning, and raise whatever came last."""
        failed = [*successes].count(False)
        if not failed:
            return
        found = sorted((self.error_queue.get()[:3] for _ in range(failed)), key=lambda one: int(one[0]))
        for i, _, _ in found:  # their processes have ended
            self.parent_pipes[i].close()
        self._state = AsyncState.DEFAULT
        self.close()
        _, kind, said = found[0]
        raise said if isinstance(said, UserError) else UserError(f"{self.owner} raised {kind.__name__}: {said}.")
