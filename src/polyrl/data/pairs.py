"""Preference pairs that are given, as a source: for updates that learn from them beside what a turn has sampled."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from polyrl.core.experience import Experience
from polyrl.data.base import Rows, Source
from polyrl.errors import UserError
from polyrl.runtime.seeding import generator

PAIR_FIELDS = frozenset(
    {"prompt_ids", "prompt_mask", "action", "present", "mask", "temperature", "ended", "group", "greedy"}
    | {"length_limit", "pair", "preferred", "example", "weight"}
)
"""What rows of pairs have, two a pair."""


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """Order of the pairs in an epoch: a pure function of these, so that nothing has to be remembered."""
    return tuple(torch.randperm(size, generator=generator(seed, "pairs", epoch)).tolist())


def numbers_of_step(seed: int, size: int, start: int, count: int) -> list[int]:
    """Numbers of the pairs `start` to `start + count - 1` of the endless stream: epoch after epoch, each reshuffled."""
    return [epoch_order(seed, i // size, size)[i % size] for i in range(start, start + count)]


@dataclass(frozen=True)
class Pairs(Source):
    """The task's fixed preference pairs, epoch after epoch, each in an order of its own.

    A batch of `n` pairs has `2 n` rows. Pairs cost no call of a reward: they were labelled before.
    """

    fields: ClassVar[frozenset[str]] = PAIR_FIELDS
    fixed_pairs: ClassVar[bool] = True

    def make(self, name: str, task: Any, config: Any) -> Rows:
        """The pairs of a run; they are encoded once its models are there."""
        return GivenPairs(name, config.seed)


class GivenPairs(Rows):
    """The rows of a `Pairs`: how many were taken is all of it that a checkpoint holds.

    Attributes:
        name: in the recipe.
        taken: pairs taken so far.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed, self.taken = name, seed, 0
        self._committed = 0
        self._pairs: Any = None

    def begin(self, run_state: Any) -> None:
        """Take the task's training pairs, as the run's policy reads them."""
        self._pairs = run_state.pairs("train")

    def ready(self) -> bool:
        """Always."""
        return True

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """The next `count` pairs, `2 count` rows `[B, T]`, all of whose steps count."""
        numbers = numbers_of_step(self.seed, len(self._pairs), self.taken, count)
        self.taken += count
        batch: Experience = self._pairs.batch(numbers)
        return batch.with_fields(weight=batch["mask"].float())

    def rewind(self) -> bool:
        """Give back what was taken since the last iteration."""
        self.taken = self._committed
        return True

    def commit(self) -> None:
        """What was taken stays so."""
        self._committed = self.taken

    def facts(self) -> dict[str, float]:
        """How often all pairs were seen."""
        return {f"{self.name}/epoch": self.taken / len(self._pairs)}

    def save(self, folder: Path, previous: Path | None) -> None:
        """Write how many were taken."""
        (folder / f"{self.name}.json").write_text(json.dumps({"taken": self._committed}) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read it back.

        Raises:
            UserError: the folder does not say it.
        """
        try:
            self.taken = self._committed = int(json.loads((folder / f"{self.name}.json").read_text("utf-8"))["taken"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"The checkpoint {folder} does not say how many pairs of '{self.name}' were taken."
            ) from None
