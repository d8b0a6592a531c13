"""The policy of a control run, to be used in a program of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from polyrl.api import open_policy
from polyrl.arguments import objects
from polyrl.errors import NotFinite, UserError
from polyrl.exporting.export import Exported
from polyrl.exporting.export import export as write
from polyrl.models.actor import ActionNotFinite, Moment
from polyrl.phases import acting_run
from polyrl.rollout.control import memory_of
from polyrl.run_state.control import ControlRunState
from polyrl.runtime.run_folder import RunFolder


class TrainedPolicy:
    """Acts as evaluations judge it: by its most probable action, with its statistics as they are.

    Attributes:
        task: name of the task that it was trained on.
        observation_space, action_space: Gymnasium's, of one environment.
    """

    def __init__(self, run_state: ControlRunState, seed: int = 0):
        self._task, self._actor = run_state.task, run_state.judged
        self._stream = torch.Generator().manual_seed(seed)
        self.task = self._task.name
        self.observation_space, self.action_space = self._task.observations.space, self._task.actions.space
        self._memory = dict[str, NDArray[Any]]()
        self._starts = True

    def reset(self) -> None:
        """Say that an episode begins: a policy with memory forgets the last one."""
        self._starts = True

    def act(self, observation: Any, action_mask: Any = None, *, sampled: bool = False) -> Any:
        """The action for one observation, both as the environment has them.

        Args:
            observation: what the environment shows.
            action_mask: `[A]`, of environments that tell which actions are allowed.
            sampled: at random, as in training, and not the most probable one.

        Returns:
            An int for Discrete actions, else an array of the space's shape and type.

        Raises:
            UserError: the observation does not fit the policy, or the mask is missing or allows nothing.
        """
        shown = np.empty((1, self._task.observations.size))
        self._encode(observation, shown[0])
        chosen = self._act(shown, None if action_mask is None else np.asarray(action_mask)[None], sampled)
        action: Any = self._task.actions.each(chosen)[0]
        return action

    def act_all(self, observations: Any, action_mask: Any = None, *, sampled: bool = False) -> NDArray[Any]:
        """Actions `[N, ...]` for several observations, a list or an array of them; `action_mask` `[N, A]`."""
        shown = np.empty((len(observations), self._task.observations.size))
        for observation, row in zip(observations, shown, strict=True):
            self._encode(observation, row)
        if self._actor.memory:
            raise UserError("This policy remembers the steps before, so it acts for one environment at a time: act().")
        mask = None if action_mask is None else np.asarray(action_mask)
        actions: NDArray[Any] = self._task.actions.batch(self._act(shown, mask, sampled))
        return actions

    def _encode(self, observation: Any, into: NDArray[np.float64]) -> None:
        try:
            self._task.observations.encode(observation, into)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"The observation does not fit {self.task}, whose space is {self.observation_space}: {error}."
            ) from None
        if not np.isfinite(into).all():
            raise UserError(f"The observation of {self.task} has a number that is not finite.")

    def _act(self, shown: NDArray[np.float64], mask: NDArray[Any] | None, sampled: bool) -> NDArray[Any]:
        actor, masked = self._actor, self._task.masked
        if mask is not None and not masked:
            raise UserError(f"The environment {self.task} tells of no action mask, so the policy was trained without.")
        if masked and (mask is None or mask.shape != (len(shown), masked) or not mask.any(1).all()):
            raise UserError(
                f"The policy needs the action mask of {self.task} with each observation, [{masked}] with an "
                "action that is allowed: act(observation, info['action_mask'])."
            )
        if actor.memory and not self._memory:
            self._memory = memory_of(actor, 1)
        if self._starts:
            for kept in self._memory.values():
                kept[:] = 0
        noise = actor.noise(1, len(shown), self._stream)[0] if sampled else None
        moment = Moment(
            actor.normalize(shown),
            shown,
            np.full(len(shown), self._starts),
            noise=noise,
            mask=None if mask is None else mask.astype(bool),
            memory=self._memory,
        )
        self._starts = False
        try:
            action = actor.player()(moment)
        except ActionNotFinite:
            raise NotFinite(f"What the policy of {self.task} says of this observation is not finite.") from None
        return action if actor.execute is None else actor.execute(action)


def control_state(run_state: Any, run: Path) -> ControlRunState:
    """The state of a run, which must be one of control.

    Raises:
        UserError: it is of language, of an operations task or of theory.
    """
    if not isinstance(run_state, ControlRunState):
        raise UserError(
            f"{run} is no run on an environment that shows observations and takes actions, so it has no policy that "
            "acts on them; a language model is in its folder model/, and polyrl play and eval go on with any run."
        )
    return run_state


def load(
    run: str | Path, *, task: Callable[[], Any] | None = None, seed: int = 0, trust_code: bool = False
) -> TrainedPolicy:
    """The trained policy of a control run, to act with: `polyrl.load("runs/one").act(observation)`.

    Args:
        run: the run's folder; of an unfinished run the newest checkpoint acts.
        task: the environment's maker, where it was given as a Python object.
        seed: of actions that are sampled.
        trust_code: run the files that the folder names though you have not run them before.

    Raises:
        UserError: the folder is no run, holds no model yet, or its policy acts on no observations.
    """
    given = objects(None, None, None, task)[1]
    state = open_policy(run, given=given, judged=False, trust_code=trust_code)
    return TrainedPolicy(control_state(state, Path(run)), seed)


def export(
    run: str | Path,
    format: Literal["onnx", "numpy"],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    task: Callable[[], Any] | None = None,
    trust_code: bool = False,
) -> Exported:
    """Write the greedy policy of a control run as files that act without polyrl and torch.

    Args:
        run: the run's folder.
        format: "numpy" writes `policy.npz` and the `policy.py` that acts by it, "onnx" writes `policy.onnx`.
        out: folder of what is written; `exported` in the run's where None.
        overwrite: replace the files.
        task, trust_code: as in `load`.

    Raises:
        UserError: the policy has no exported form, or a file is there already; nothing is written that acts otherwise.
    """
    if format not in ("onnx", "numpy"):
        raise UserError(f"The format is '{format}' but must be onnx or numpy.")
    given = objects(None, None, None, task)[1]
    state = control_state(open_policy(run, given=given, judged=False, trust_code=trust_code), Path(run))
    into = Path(out) if out else Path(run) / "exported"
    method = RunFolder(acting_run(Path(run))).read_config()["method"]
    return write(state, str(method), into, format, overwrite=overwrite)
