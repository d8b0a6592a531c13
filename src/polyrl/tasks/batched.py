"""Environments of many rows side by side, stepped together in torch: simulators and combinatorial problems.

A row is one instance in one episode. What is random about it, the instance and all that happens to it, is a function of
(seed, row, episode) and the time within, never of the order of calls: two policies, or two runs of one, meet the same
luck whatever they do. A subclass states three pure functions of states, which are tensors by name whose first axis is
the rows: where an episode begins (`begin`), what an action does (`advance`), and what is shown (`show`, `allowed`).

What a method may do beyond stepping is **access**, which an environment grants by name:

- "reset-to-state": rows can be saved, and restarted there, elsewhere too (`save_rows`, `restore`);
- "differentiable": gradients flow through `advance` to what comes before;
- "post-decision": the known half of a step, before anything random happens, can be asked for (`post_decision`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

Access = Literal["reset-to-state", "differentiable", "post-decision"]
State = dict[str, Tensor]
"""Tensors `[B, ...]` by name: all that the future of rows depends on."""


@dataclass(frozen=True)
class Padded:
    """A set of entities for each row, of which rows have different numbers.

    Attributes:
        values: `[B, N, D]`; anything where nothing is.
        present: bool `[B, N]`, which of them are there.
    """

    values: Tensor
    present: Tensor


Observation = Mapping[str, Tensor | Padded]
"""What is shown, by name: tensors `[B, ...]` and sets."""
Actions = Callable[[Observation, Tensor | None], Tensor]
"""From what is shown and the mask of allowed actions `[B, A]` to actions `[B, ...]`."""


@dataclass(frozen=True)
class Moved:
    """What an action came to.

    Attributes:
        state: after it.
        reward: `[B]`.
        terminated: bool `[B]`, rows that have come to their end.
    """

    state: State
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class Verdict:
    """What a solution is worth, found from the solution alone.

    Attributes:
        cost: None where it is infeasible.
        why: why it is infeasible, in a sentence; empty where it is not.
    """

    cost: float | None
    why: str = ""


class BatchedEnvironment(ABC):
    """Rows of instances, stepped together.

    Rows that have ended stay as they are: their actions are not read and their reward is 0, until they are reset.

    Attributes:
        seed: of all that is random.
        rows: how many, B.
        state: of all rows.
        episode: int64 `[B]`, number of the present episode of each row, from 0.
        ended: bool `[B]`.
        access: what it grants beyond stepping.
    """

    access: ClassVar[frozenset[Access]] = frozenset()

    def __init__(self, seed: int, rows: int):
        self.seed, self.rows = seed, rows
        self.episode = torch.full((rows,), -1)
        self.ended = torch.ones(rows, dtype=torch.bool)
        self.state: State = {}
        self.reset(torch.arange(rows))

    # --------------------------------------------------------------------------------------- what a subclass states

    @abstractmethod
    def begin(self, row: int, episode: int) -> State:
        """The state in which an episode of one row begins, without the axis of rows; a function of its arguments."""

    @abstractmethod
    def advance(self, state: State, action: Tensor) -> Moved:
        """What actions `[B, ...]` do in states of B rows, of any number; nothing is changed in place."""

    @abstractmethod
    def show(self, state: State) -> Observation:
        """What a policy sees of states."""

    def allowed(self, state: State) -> Tensor | None:
        """Bool `[B, A]`, the actions that may be taken; None where every action may.

        A row that has not ended has one at least.
        """
        return None

    def post_decision(self, state: State, action: Tensor) -> State:
        """The states after the actions and before anything random happens.

        Raises:
            NotImplementedError: the environment does not grant "post-decision".
        """
        raise NotImplementedError(f"{type(self).__name__} grants no access to post-decision states")

    @abstractmethod
    def solution(self, row: int) -> Any:
        """What a row has been built to so far, as it would be handed in."""

    @abstractmethod
    def instance(self, row: int) -> Any:
        """The row's instance, as it would be handed out."""

    @abstractmethod
    def verify(self, instance: Any, solution: Any) -> Verdict:
        """The cost of a solution, computed from it alone by code that shares nothing with `advance`."""

    @abstractmethod
    def lines(self) -> dict[str, float]:
        """Mean costs of the rows' instances by which results are judged, the one to reach first."""

    # ------------------------------------------------------------------------------------------------------ stepping

    def reset(self, rows: Tensor, at: State | None = None) -> None:
        """Begin the next episode of some rows, or put them into states that were saved.

        Args:
            rows: their numbers `[b]`.
            at: states of b rows, or of one for all of them.
        """
        if at is not None:
            self.restore(rows, at)
            return
        self.episode[rows] += 1
        begun = [self.begin(row, int(self.episode[row])) for row in rows.tolist()]
        fresh = {name: torch.stack([one[name] for one in begun]) for name in begun[0]} if begun else {}
        self._put(rows, fresh)
        self.ended[rows] = False

    def step(self, action: Tensor) -> Moved:
        """Do the actions `[B, ...]`; rows that had ended stay.

        Raises:
            ValueError: an action that is not allowed.
        """
        going = (~self.ended).nonzero()[:, 0]
        reward, terminated = torch.zeros(self.rows), self.ended.clone()
        if len(going):
            all_of_them = len(going) == self.rows
            before = self.state if all_of_them else self.rows_of(self.state, going)
            chosen = action if all_of_them else action[going]
            allowed = self.allowed(before)
            if allowed is not None:
                bad = ~allowed.gather(1, chosen[:, None])[:, 0]
                if bool(bad.any()):
                    row = int(going[bad][0])
                    raise ValueError(f"the action {int(action[row])} of row {row} is not allowed there")
            moved = self.advance(before, chosen)
            self._put(going, moved.state)
            reward = reward.index_put((going,), moved.reward)
            terminated[going] = moved.terminated
        self.ended = terminated
        return Moved(self.state, reward, terminated)

    def observe(self) -> Observation:
        """What a policy sees of all rows."""
        return self.show(self.state)

    def mask(self) -> Tensor | None:
        """Bool `[B, A]`, the actions that may be taken; none in rows that have ended. None where every action may."""
        found = self.allowed(self.state)
        return None if found is None else found & ~self.ended[:, None]

    def save_rows(self, rows: Tensor) -> State:
        """The states of some rows `[b]`, with their episodes."""
        self._grants("reset-to-state")
        kept = self.rows_of(self.state, rows)
        return {**kept, "episode": self.episode[rows].clone(), "ended": self.ended[rows].clone()}

    def restore(self, rows: Tensor, state: State) -> None:
        """Put rows `[b]` into states that were saved, of b rows or of one; what is to come is theirs too."""
        self._grants("reset-to-state")
        of_all = {name: x.expand(len(rows), *x.shape[1:]) for name, x in state.items()}
        self.episode[rows], self.ended[rows] = of_all.pop("episode"), of_all.pop("ended")
        self._put(rows, of_all)

    def part(self, rows: Tensor) -> Self:
        """Some rows `[b]` in their present states, in an environment of its own; a row may be in it several times.

        It is stepped apart from this one, and its rows have no further episodes.
        """
        self._grants("reset-to-state")
        twin = copy.copy(self)
        twin.rows, twin.state = len(rows), self.rows_of(self.state, rows)
        twin.episode, twin.ended = self.episode[rows], self.ended[rows]
        return twin

    def copies(self, count: int) -> Self:
        """All rows as `part` gives them, each `count` times one after another."""
        return self.part(torch.arange(self.rows).repeat_interleave(count))

    def _grants(self, access: Access) -> None:
        if access not in self.access:
            raise NotImplementedError(f"{type(self).__name__} does not grant {access}")

    @staticmethod
    def rows_of(state: State, rows: Tensor) -> State:
        """The states of some rows `[b]`."""
        return {name: x[rows] for name, x in state.items()}

    def _put(self, rows: Tensor, fresh: State) -> None:
        """Put states into rows, out of place, so that gradients reach them."""
        if len(rows) == self.rows and bool((rows == torch.arange(self.rows)).all()):
            self.state = dict(fresh)
            return
        self.state = {name: x.index_put((rows,), fresh[name]) for name, x in self.state.items()}


# ------------------------------------------------------------------------------------------------------------ playing


def play(environment: BatchedEnvironment, act: Actions, most: int = 100_000) -> Tensor:
    """Act until all rows have ended; the sum of rewards of each, `[B]`.

    Raises:
        RuntimeError: rows that have not ended after `most` steps.
    """
    total = torch.zeros(environment.rows)
    for _ in range(most):
        if bool(environment.ended.all()):
            return total
        total = total + environment.step(act(environment.observe(), environment.mask())).reward
    raise RuntimeError(f"a row has not ended after {most} steps")


def greedily(scores: Callable[[Observation], Tensor]) -> Actions:
    """The allowed action of the largest score `[B, A]`; the first of equal ones."""

    def act(seen: Observation, mask: Tensor | None) -> Tensor:
        found = scores(seen)
        return (found if mask is None else found.masked_fill(~mask, -torch.inf)).argmax(1)

    return act
