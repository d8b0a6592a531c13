"""A replay buffer: the latest steps of every environment, written in place, sampled uniformly or by priority.

A ring of slots, each with one step of each environment, so that the steps that follow one are the next slots: returns
of n steps are summed when a row is sampled. In a checkpoint it lies in pieces of some thousand steps; a piece that has
not changed since the checkpoint before is linked and not written again, so that a checkpoint costs what is new.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.data.base import Rows, Source
from polyrl.data.priorities import Priorities
from polyrl.data.returns import returns_to_go
from polyrl.errors import UserError
from polyrl.recipe import hyperparameter

PIECE = 65_536
"""Steps in one file of a checkpoint, at most."""
KEPT = ("observation", "action", "reward", "next_observation", "terminated", "truncated", "rollout_end", "mask")
"""Fields of what a turn collects that are kept, `[B, T, ...]`."""
RETURN = "return_to_go"
"""What is written when an episode ends, NaN until then."""
MASKS = ("action_mask", "next_action_mask")
"""Fields that are kept where there are such."""


@dataclass(frozen=True)
class Replay(Source):
    """Keep the latest steps, and sample from them.

    Attributes:
        also: further fields `[B, T, ...]` of what a turn collects that its rows have.
        returns: whether its rows have `return_to_go` as well, the discounted sum of an episode's rewards from the step
            on, which is there once the episode has ended: `return_known` says whether, and 0 stands for it until then.
    """

    after: ClassVar[str] = "score"
    needs: ClassVar[frozenset[str]] = frozenset(KEPT)
    fields: ClassVar[frozenset[str]] = frozenset(
        {"observation", "action", "reward", "next_observation", "discount", "weight", "row"}
    )

    capacity: int = hyperparameter(1_000_000, "steps that are kept; the oldest are overwritten", low=1)
    learning_starts: int = hyperparameter(100, "steps before updates begin", low=0)
    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    n_step: int = hyperparameter(1, "steps whose rewards are summed before a value stands for the rest", low=1)
    priority_exponent: float = hyperparameter(0.0, "how much priorities count in sampling; 0 is uniform", low=0)
    importance_exponent: float = hyperparameter(0.4, "how much of the bias of priorities weights undo", low=0, high=1)

    also: tuple[str, ...] = ()
    returns: bool = False

    def required(self) -> frozenset[str]:
        """What it keeps."""
        return self.needs | set(self.also)

    def sampled(self) -> frozenset[str]:
        """Fields of its rows."""
        return self.fields | set(self.also) | ({"return_to_go", "return_known"} if self.returns else set())

    def make(self, name: str, task: Any, config: Any) -> Rows:
        """An empty buffer."""
        return ReplayBuffer(name, self)


class ReplayBuffer(Rows):
    """The rows of a `Replay`.

    Attributes:
        name: in the recipe.
        entry: its hyperparameters.
        count: slots that were ever written; the next is number `count % slots` of the ring.
        slots: how many the ring has, of one step of each environment.
        arrays: field -> `[slots, B, ...]`.
        flat: the same memory as rows, field -> `[slots * B, ...]`.
    """

    def __init__(self, name: str, entry: Replay):
        self.name, self.entry = name, entry
        self.count, self.slots, self.lanes = 0, 0, 0
        self.arrays: dict[str, NDArray[Any]] = {}
        self.flat: dict[str, NDArray[Any]] = {}
        self.priorities: Priorities | None = None
        self.wants_feedback = entry.priority_exponent > 0
        self._changed: set[int] = set()
        self._committed = 0
        self._saved = -1
        self.open: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        """Where each lane's present episode began, a number as `count`; only where returns are kept."""
        self._open_then = self.open

    # --------------------------------------------------------------------------------------------------- writing

    def _allocate(self, lanes: int, like: dict[str, NDArray[Any]]) -> None:
        """Make the ring; memory that is not written yet costs nothing."""
        self.lanes = lanes
        self.slots = max(1, self.entry.capacity // lanes)
        if self.slots <= self.entry.n_step:
            raise UserError(
                f"The replay buffer '{self.name}' holds {self.slots} steps of each of {lanes} environments, fewer than "
                f"n_step={self.entry.n_step} needs; raise --capacity."
            )
        self.arrays = {name: np.zeros((self.slots, lanes, *x.shape[2:]), dtype=x.dtype) for name, x in like.items()}
        if self.entry.returns:
            self.arrays[RETURN] = np.full((self.slots, lanes), np.nan, dtype=np.float32)
            self.open = self._open_then = np.zeros(lanes, dtype=np.int64)
        self.flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in self.arrays.items()}
        if self.wants_feedback:
            self.priorities = Priorities(self.slots * lanes)

    def take(self, experience: Experience) -> None:
        """Write the steps `[B, T, ...]` over the oldest ones."""
        names = [*KEPT, *self.entry.also, *(name for name in MASKS if name in experience)]
        given = {name: experience[name].numpy().swapaxes(0, 1) for name in names}
        steps, lanes = given["mask"].shape[:2]
        if not self.arrays:
            self._allocate(lanes, given)
        elif lanes != self.lanes:
            raise UserError(
                f"The replay buffer '{self.name}' holds steps of {self.lanes} environments, and {lanes} are stepped."
            )
        if steps > self.slots:
            given, self.count = {name: x[-self.slots :] for name, x in given.items()}, self.count + steps - self.slots
            steps = self.slots
        first = self.count % self.slots
        room = min(steps, self.slots - first)
        for name, x in given.items():
            self.arrays[name][first : first + room] = x[:room]
            self.arrays[name][: steps - room] = x[room:]
        written = (first + np.arange(steps)) % self.slots
        self._changed.update((written // self.piece).tolist())
        if self.priorities is not None:
            rows = (written[:, None] * lanes + np.arange(lanes)).reshape(-1)
            self.priorities.add(rows, given["mask"].reshape(-1))
        self.count += steps
        if self.entry.returns:
            self._fill(self.count - steps)

    def _fill(self, first: int) -> None:
        """Write the returns of the episodes that ended since slot number `first`."""
        kept, slots = self.arrays, self.slots
        numbers = np.arange(first, self.count)
        at = numbers % slots
        kept[RETURN][at] = np.nan
        rests = ~kept["mask"][at]  # steps that only reset an environment belong to no episode
        ends = (kept["terminated"][at] | (kept["truncated"][at] & ~kept["rollout_end"][at])) & ~rests
        for k, lane in np.argwhere(ends | rests):
            if ends[k, lane]:
                episode = np.arange(max(self.open[lane], self.count - slots), numbers[k] + 1) % slots
                kept[RETURN][episode, lane] = returns_to_go(kept["reward"][episode, lane], self.entry.gamma)
                self._changed.update((episode // self.piece).tolist())
            self.open[lane] = numbers[k] + 1

    @property
    def piece(self) -> int:
        """Slots in one file of a checkpoint."""
        return max(1, PIECE // self.lanes)

    @property
    def held(self) -> int:
        """Slots that hold steps."""
        return min(self.count, self.slots)

    def commit(self) -> None:
        """Remember how far it is written."""
        self._committed, self._open_then = self.count, self.open.copy()

    def rewind(self) -> bool:
        """Forget the latest slots, which is possible while none of them has taken the place of an older one."""
        if self.count == self._committed:
            return True
        if self.count > self.slots:
            return False
        if self.priorities is not None:
            self.priorities.remove(np.arange(self._committed * self.lanes, self.count * self.lanes))
        self.count = self._committed
        self.open = self._open_then.copy()
        for lane, begins in enumerate(self.open):  # what ended since then is not over any more
            self.arrays[RETURN][begins : self.count, lane] = np.nan
        return True

    # -------------------------------------------------------------------------------------------------- sampling

    def ready(self) -> bool:
        """Whether enough steps are held."""
        return self.held * self.lanes >= max(self.entry.learning_starts, 1)

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """Rows drawn with replacement: `reward` of n steps, `discount` gamma^n or 0, `next_observation` after them."""
        if self.priorities is None:
            rows = torch.randint(self.held * self.lanes, (count,), generator=stream).numpy()
            mask = self.flat["mask"]
            while not mask[rows].all():  # steps that only reset an environment are no experience
                again = ~mask[rows]
                rows[again] = torch.randint(self.held * self.lanes, (int(again.sum()),), generator=stream).numpy()
            weight = torch.ones(count, 1)
        else:
            rows, share = self.priorities.sample(torch.rand(count, generator=stream).numpy())
            weight = importance_weights(share, self.priorities.held, self.entry.importance_exponent)
        return self.rows(rows).with_fields(weight=weight, row=torch.from_numpy(rows).unsqueeze(1))

    def rows(self, rows: NDArray[np.int64]) -> Experience:
        """The steps number `rows` `[N]` (slot times environments plus environment) as `[N, 1, ...]`."""
        gamma, kept = self.entry.gamma, self.flat
        reward = kept["reward"].take(rows).astype(np.float32)
        last, discount = rows, np.full(len(rows), np.float32(gamma))
        if self.entry.n_step > 1:
            last, discount = self._following(rows, reward, discount)
        found = {
            "observation": kept["observation"].take(rows, 0),
            "action": kept["action"].take(rows, 0),
            "next_observation": kept["next_observation"].take(last, 0),
            "reward": reward,
            "discount": np.where(kept["terminated"].take(last), np.float32(0), discount),
        }
        found |= {name: kept[name].take(rows, 0) for name in self.entry.also}
        if self.entry.returns:
            known = np.isfinite(kept[RETURN].take(rows))
            found |= {"return_to_go": np.where(known, kept[RETURN].take(rows), np.float32(0)), "return_known": known}
        found |= {name: kept[name].take(x, 0) for name, x in zip(MASKS, (rows, last), strict=True) if name in kept}
        return Experience({name: torch.from_numpy(x).unsqueeze(1) for name, x in found.items()})

    def _following(
        self, rows: NDArray[np.int64], reward: NDArray[np.float32], discount: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Add the rewards of the steps that follow to `reward` `[N]`; the last of them, and its value's discount."""
        gamma, kept, held = np.float32(self.entry.gamma), self.flat, self.slots * self.lanes
        newest = (self.count - 1) % self.slots

        def ends(row: NDArray[np.int64]) -> NDArray[np.bool_]:
            cut = kept["truncated"][row] & ~kept["rollout_end"][row]
            over: NDArray[np.bool_] = kept["terminated"][row] | cut
            return over

        last, over = rows, ends(rows)
        for _ in range(1, self.entry.n_step):
            goes_on = ~over & (last // self.lanes != newest)
            if not goes_on.any():
                break
            following = np.where(goes_on, (last + self.lanes) % held, last)
            reward += np.where(goes_on, discount * kept["reward"][following], 0).astype(np.float32)
            discount = np.where(goes_on, discount * gamma, discount)
            over = np.where(goes_on, ends(following), over)
            last = following
        return last, discount

    def feedback(self, rows: Tensor, values: Tensor) -> None:
        """Priorities |td| + 1e-6 to the exponent (arXiv:1511.05952, section 3.3)."""
        assert self.priorities is not None
        size = values.abs().reshape(-1).double().numpy() + 1e-6
        self.priorities.set(rows.reshape(-1).numpy(), size**self.entry.priority_exponent)

    def facts(self) -> dict[str, float]:
        """How many steps are held, and how full it is."""
        if not self.slots:
            return {}
        return {f"{self.name}/steps": self.held * self.lanes, f"{self.name}/full": self.held / self.slots}

    # --------------------------------------------------------------------------------------------- checkpoints

    def _file(self, piece: int) -> str:
        return f"source-{self.name}-{piece:05d}.safetensors"

    def save(self, folder: Path, previous: Path | None) -> None:
        """Write the pieces that have changed since `previous`, link the others, and say what there is."""
        from safetensors.numpy import save_file

        linked = previous is not None and self._is_as_saved(previous)
        for piece in range(-(-self.held // self.piece) if self.lanes else 0):
            path = folder / self._file(piece)
            if linked and piece not in self._changed and previous is not None:
                link(previous / path.name, path)
                continue
            rows = slice(piece * self.piece, min((piece + 1) * self.piece, self.held))
            save_file({name: np.ascontiguousarray(x[rows]) for name, x in self.arrays.items()}, path)
        if self.priorities is not None:
            save_file(self.priorities.state(), folder / f"source-{self.name}-priorities.safetensors")
        facts = {"count": self.count, "slots": self.slots, "lanes": self.lanes, "open": self.open.tolist()}
        (folder / f"source-{self.name}.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
        self._changed, self._saved = set(), self.count

    def _is_as_saved(self, previous: Path) -> bool:
        """Whether `previous` holds what was written or read here last."""
        try:
            facts = json.loads((previous / f"source-{self.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(facts.get("count") == self._saved)

    def load(self, folder: Path) -> None:
        """Read the pieces back.

        Raises:
            UserError: they are missing, or of another buffer.
        """
        from safetensors.numpy import load_file

        try:
            facts = json.loads((folder / f"source-{self.name}.json").read_text(encoding="utf-8"))
            self.count, slots, lanes = int(facts["count"]), int(facts["slots"]), int(facts["lanes"])
            self.arrays, self.priorities = {}, None
            if lanes:
                for piece in range(-(-min(self.count, slots) // max(1, PIECE // lanes))):
                    read = load_file(folder / self._file(piece))
                    if not self.arrays:
                        self._allocate(lanes, read)
                    if self.slots != slots:
                        raise UserError(
                            f"The replay buffer in {folder} holds {slots} steps of an environment and not {self.slots}."
                        )
                    first = piece * self.piece
                    for name, x in read.items():
                        self.arrays[name][first : first + len(x)] = x
            if self.entry.returns and lanes:
                self.open = np.array(facts["open"], dtype=np.int64)
            if self.priorities is not None:
                self.priorities.load(load_file(folder / f"source-{self.name}-priorities.safetensors"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise UserError(f"The folder {folder} does not hold the replay buffer '{self.name}'.") from None
        self._changed, self._saved, self._committed = set(), self.count, self.count
        self._open_then = self.open.copy()


def link(old: Path, new: Path) -> None:
    """Give a file that never changes a second place; a copy where the file system has no links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def importance_weights(share: NDArray[np.float64], held: int, exponent: float) -> Tensor:
    """(1 / (N P))^beta, as shares of the largest among them `[N, 1]` (arXiv:1511.05952, section 3.4).

    Args:
        share: `[N]`, probabilities of the rows.
        held: how many rows there are.
        exponent: beta.
    """
    weight = (held * share) ** -exponent
    return torch.from_numpy((weight / weight.max()).astype(np.float32)).unsqueeze(1)
