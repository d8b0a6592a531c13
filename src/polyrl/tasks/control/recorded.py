"""Transitions that were recorded in an environment, read from a file as the task's policies see and act.

A Minari data set, or an .npz or .safetensors file of plain arrays. Observations go through the task's encoder, actions
between bounds are brought to [-1, 1], as policies give them, and a choice counts from 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.control import minari
from polyrl.tasks.language.left_out import UNUSABLE, LeftOut
from polyrl.tasks.language.phrases import counted, reason_of

if TYPE_CHECKING:
    from polyrl.tasks.control.environment import ControlTask

PLAIN = (".npz", ".safetensors")
NEXT = "next_observations"
OUTSIDE = 1e-4
"""How far beyond a bound an action may lie, as a share of half the range, before it is told: less is rounding."""
NOT_FOLLOWED = "for want of the observation that followed"


@dataclass
class Recorded:
    """Transitions in the task's terms, as one table.

    Attributes:
        seen: float32 `[M, D]`, every observation once.
        before, after: int64 `[N]`, rows of `seen` that a step began and ended with.
        action: float32 `[N, A]` in [-1, 1], or int64 `[N]`.
        reward: float32 `[N]`.
        terminated: bool `[N]`: nothing follows. A time limit is none: `after` is what it showed last.
        steps: float32 `[K]`, rewards of all steps of the data in their order, those that are left out among them.
        ends: bool `[K]`, steps that end an episode, by a time limit too.
        number: int64 `[N]`, place of each transition among them.
        returns: of the whole episodes, undiscounted.
        left_out: rows that are not used.
        notices: what else is to be said of the data.
    """

    seen: Tensor
    before: Tensor
    after: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    steps: Tensor
    ends: Tensor
    number: Tensor
    returns: list[float]
    left_out: LeftOut
    notices: list[str]

    def __len__(self) -> int:
        return len(self.reward)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the table: the same for the same numbers, whatever file they come from.

        What lies between them (`seen`) is told by content, row by row.
        """
        found = hashlib.blake2b(digest_size=8)
        rows = (self.seen[self.before], self.seen[self.after], self.action, self.reward, self.terminated)
        for table in rows:
            found.update(f"{tuple(table.shape)} {table.dtype}\n".encode())
            found.update(table.contiguous().numpy().data)
        return found.hexdigest()

    def stated(self) -> dict[str, Any]:
        """How much there is, how well it was acted, and the digest, as plain values."""
        known = self.returns
        return {
            "steps": len(self),
            "episodes": len(known),
            "return": {"least": min(known), "mean": float(np.mean(known)), "most": max(known)} if known else None,
            "left_out": len(self.left_out),
            "digest": self.digest,
        }

    def sentence(self) -> str:
        """How much there is, and how well it was acted."""
        said = counted(len(self), "transition")
        if not self.returns:
            return f"{said}, no whole episode among them"
        low, mean, high = min(self.returns), float(np.mean(self.returns)), max(self.returns)
        episodes = counted(len(self.returns), "episode")
        return f"{said}; {episodes} with returns from {low:.4g} to {high:.4g}, {mean:.4g} in the mean"


def read_recorded(path: Path, task: ControlTask, *, skip_bad_rows: bool = False) -> Recorded:
    """Read the transitions of a file or folder for a task.

    Args:
        path: a Minari data set's folder, or an `.npz` or `.safetensors` file of `observations`, `actions`, `rewards`,
            `terminations`, `truncations` and perhaps `next_observations`, a row a step.
        task: whose spaces they must fit.
        skip_bad_rows: leave out, and count, steps that are not finite or no action of the task.

    Raises:
        UserError: it cannot be read, does not fit the task, or holds what is not finite.
    """
    made = _Reader(task, skip_bad_rows)
    if path.is_dir():
        on = minari.recorded_on(minari.read_facts(path))
        if on and on != task.spec:
            made.notices.append(f"The data {path} was recorded on {on}, and is read for {task.spec}.")
            made.hint = f" (its facts name {on})"
        for episode in minari.read_episodes(path):
            made.add_episode(episode)
    elif not path.is_file():
        raise UserError(f"There is no data {path}; give a Minari data set's folder, or an .npz file.")
    elif path.suffix not in PLAIN:
        raise UserError(f"The data {path} is none that polyrl reads: give a Minari data set's folder, or an .npz file.")
    else:
        made.add_file(path, _arrays(path))
    return made.finished(path)


def read_demonstrated(episodes: Iterable[minari.Episode], task: ControlTask) -> Recorded:
    """The transitions of an environment's own demonstrations."""
    made = _Reader(task, skip=False)
    for episode in episodes:
        made.add_episode(episode)
    return made.finished(Path(task.spec))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        from safetensors.numpy import load_file

        found: dict[str, NDArray[Any]] = load_file(path)
        return found
    except Exception as error:  # zip files and headers break in many ways
        raise UserError(f"The data {path} cannot be read: {reason_of(error)}.") from error


@dataclass
class _Reader:
    """Takes in steps, checks them against the task, and makes the table of them."""

    task: ControlTask
    skip: bool
    left_out: LeftOut = field(default_factory=LeftOut)
    notices: list[str] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    hint: str = ""
    seen: list[NDArray[np.float32]] = field(default_factory=list)
    columns: list[tuple[NDArray[Any], ...]] = field(default_factory=list)
    count: int = 0
    outside: int = 0
    steps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = field(default_factory=list)

    # -------------------------------------------------------------------------------------------- where rows come from

    def add_episode(self, episode: minari.Episode) -> None:
        """Take in an episode of T steps and T + 1 observations."""
        place, steps = episode.place, len(episode.rewards)
        shown = self._observations(episode.observations, steps + 1, place)
        which, columns = np.arange(steps), _columns(vars(episode), steps, place)
        self._add(shown, which, which + 1, columns, which, f"{place}, step")
        self._returns(columns)

    def add_file(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take in plain arrays, a row a step."""
        if missing := [name for name in minari.ARRAYS if name not in arrays]:
            raise UserError(
                f"The data {path} has no {' and no '.join(missing)}; it needs {', '.join(minari.ARRAYS)}, and has "
                f"{', '.join(arrays) or 'nothing'}."
            )
        steps, place = len(arrays["rewards"]), str(path)
        columns = _columns(arrays, steps, place)
        shown = self._observations(arrays["observations"], steps, place)
        which, kept = np.arange(steps), np.arange(steps)
        if NEXT in arrays:
            shown = np.concatenate([shown, self._observations(arrays[NEXT], steps, place)])
            after = which + steps
        else:  # what followed is the next row, but where an episode was cut
            terminated, truncated = columns[2], columns[3]
            after = np.where(terminated, which, which + 1)
            lost = ~terminated & (truncated | (which == steps - 1))
            for row in np.flatnonzero(lost):
                self.left_out.add(NOT_FOLLOWED, f"{place}, row {row}")
            kept = np.flatnonzero(~lost)
        self._add(shown, which[kept], after[kept], tuple(c[kept] for c in columns), kept, f"{place}, row")
        self._returns(columns)

    def _observations(self, values: Any, count: int, place: str) -> NDArray[np.float32]:
        """`count` observations, `[count, D]`."""
        encoder = self.task.observations
        into = np.empty((count, encoder.size))
        try:
            encoder.encode_all(values, into)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise self._misfit(place, "observations", encoder.space, reason_of(error)) from error
        return into.astype(np.float32)

    def _misfit(self, place: str, what: str, space: spaces.Space[Any], why: str) -> UserError:
        return UserError(
            f"{place}: its {what} are none of {self.task.spec}, whose space is {space} ({why}); name the task that "
            f"they were recorded on with --task{self.hint}."
        )

    # --------------------------------------------------------------------------------------------------- taking them in

    def _add(
        self,
        shown: NDArray[np.float32],
        before: NDArray[np.int64],
        after: NDArray[np.int64],
        columns: tuple[NDArray[Any], ...],
        numbers: NDArray[np.int64],
        called: str,
    ) -> None:
        """Take in steps: rows `before` and `after` of `shown`, and their columns; `numbers` `[n]` name them."""
        given, reward, terminated, _ = columns
        action, wrong = self._actions(given, called.rpartition(",")[0])
        finite = np.logical_and.reduce(np.isfinite(shown), 1)
        checks = {
            "its observation is not finite": ~(finite[before] & finite[after]),
            "its reward is not finite": ~np.isfinite(reward),
            "its action is not finite": ~np.isfinite(given.reshape(len(given), math.prod(given.shape[1:]))).all(1),
            f"its action is none of {self.task.actions.space}": wrong,
        }
        bad = np.zeros(len(reward), dtype=bool)
        for said, rows in checks.items():
            for row in np.flatnonzero(rows & ~bad):
                place = f"{called} {numbers[row]}"
                if not self.skip:
                    raise UserError(f"{place}: {said}; mend it, or leave such steps out with --skip-bad-rows.")
                self.left_out.add(UNUSABLE, f"{place}: {said}")
            bad |= rows
        keep = np.flatnonzero(~bad)
        if isinstance(self.task.actions.space, spaces.Box):
            self.outside += int((np.abs(action[keep]) > 1 + OUTSIDE).any(1).sum())
            action = action.clip(-1, 1)
        self.seen.append(shown)
        earlier = sum(len(rewards) for rewards, _ in self.steps)
        self.columns.append(
            (
                before[keep] + self.count,
                after[keep] + self.count,
                action[keep],
                reward[keep],
                terminated[keep],
                numbers[keep] + earlier,
            )
        )
        self.count += len(shown)

    def _returns(self, columns: tuple[NDArray[Any], ...]) -> None:
        """Note the rewards of these steps, and the returns of the episodes that end in them."""
        _, reward, terminated, truncated = columns
        self.steps.append((reward.astype(np.float32), terminated | truncated))
        begin = 0
        for end in np.flatnonzero(terminated | truncated).tolist():
            total = float(reward[begin : end + 1].sum())
            if np.isfinite(total):
                self.returns.append(total)
            begin = end + 1

    def _actions(self, given: NDArray[Any], place: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Actions as policies give them, and which are none of the task's."""
        space, count = self.task.actions.space, len(given)
        if isinstance(space, spaces.Discrete):
            flat = given.reshape(-1)
            if len(flat) != count or not np.issubdtype(given.dtype, np.number):
                raise self._misfit(place, "actions", space, f"one of them has the shape {given.shape[1:]}")
            start, size = int(space.start), int(space.n)
            finite = np.where(np.isfinite(flat), flat, start)
            chosen = finite.astype(np.int64) - start
            return chosen, (finite != np.floor(finite)) | (chosen < 0) | (chosen >= size)
        if isinstance(space, spaces.Box):
            if given.shape[1:] != space.shape:
                raise self._misfit(place, "actions", space, f"one of them has the shape {given.shape[1:]}")
            low, high = space.low.reshape(1, -1).astype(np.float64), space.high.reshape(1, -1).astype(np.float64)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise UserError(
                    f"The actions of {self.task.spec} have no bounds, so data of it cannot be scaled to them."
                )
            half = np.where(high > low, high - low, 1) / 2
            scaled = (given.reshape(count, low.size) - (high + low) / 2) / half
            return scaled.astype(np.float32), np.zeros(count, dtype=bool)
        raise UserError(
            f"The actions of {self.task.spec} are a {type(space).__name__} space, and data is read of Box and Discrete."
        )

    def finished(self, path: Path) -> Recorded:
        """The table of all that was taken in."""
        if not sum(len(columns[0]) for columns in self.columns):
            left = f"; {counted(len(self.left_out), 'row')} were left out" if len(self.left_out) else ""
            raise UserError(f"The data {path} holds no transition{left}.")
        if self.outside:
            self.notices.append(
                f"{counted(self.outside, 'action')} of the data {path} lay beyond the bounds of {self.task.spec} and "
                "were brought to them, as its environment does."
            )
        before, after, action, reward, terminated, number = (np.concatenate(c) for c in zip(*self.columns, strict=True))
        steps, ends = (np.concatenate(c) for c in zip(*self.steps, strict=True))
        return Recorded(
            seen=torch.from_numpy(np.concatenate(self.seen)),
            before=torch.from_numpy(before),
            after=torch.from_numpy(after),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(reward.astype(np.float32)),
            terminated=torch.from_numpy(terminated),
            steps=torch.from_numpy(steps),
            ends=torch.from_numpy(ends),
            number=torch.from_numpy(number),
            returns=self.returns,
            left_out=self.left_out,
            notices=self.notices,
        )


def _columns(arrays: Mapping[str, Any], steps: int, place: str) -> tuple[NDArray[Any], ...]:
    """Actions `[T, ...]`, rewards, terminations and truncations `[T]`."""
    found = []
    for name in minari.ARRAYS[1:]:
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "buif" or len(array.shape) < 1 or len(array) != steps:
            raise UserError(
                f"{place}: its {name} are of shape {array.shape} and type {array.dtype}, where numbers of {steps} "
                "steps belong."
            )
        if name != "actions" and array.size != steps:
            raise UserError(f"{place}: its {name} are of shape {array.shape}, where one number a step belongs.")
        found.append(array if name == "actions" else array.reshape(steps))
    actions, rewards, terminations, truncations = found
    return actions, rewards.astype(np.float64), terminations.astype(bool), truncations.astype(bool)
