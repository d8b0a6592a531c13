"""What a source is: rows that updates sample from, beside what a turn has just collected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.recipe import Part, Stage


class Rows(ABC):
    """A source's rows in a run.

    Attributes:
        wants_feedback: whether `feedback` does something, so that updates work out priorities.
    """

    wants_feedback: bool = False

    def begin(self, run_state: Any) -> None:  # noqa: B027 - nothing by default
        """Be told of the run's task and models, before anything is sampled."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether updates may begin to sample."""

    @abstractmethod
    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """`count` rows of one step, `[count, 1, ...]`, with `weight`, and `row`, the number that `feedback` is told.

        Of language they are whole responses, `[rows, T]`.
        """

    def take(self, experience: Experience) -> None:  # noqa: B027 - nothing by default
        """Take in what a turn has collected `[B, T, ...]`; nothing for a source that is given."""

    def feedback(self, rows: Tensor, values: Tensor) -> None:  # noqa: B027
        """Be told of the sampled `rows` `[N, 1]` how much there is to learn from each, `[N, 1]`."""

    def rewind(self) -> bool:
        """Forget what was taken in since `commit`; False where that is not possible any more."""
        return True

    def commit(self) -> None:  # noqa: B027
        """What was taken in so far stays: the iteration is done."""

    def save(self, folder: Path, previous: Path | None) -> None:  # noqa: B027
        """Write what goes on to the same rows into a checkpoint's folder; `previous` is the checkpoint before."""

    def load(self, folder: Path) -> None:  # noqa: B027
        """Read back what `save` wrote.

        Raises:
            UserError: the folder does not hold it.
        """

    def facts(self) -> dict[str, float]:
        """What is logged of it once an iteration."""
        return {}

    def sentence(self) -> str:
        """What is said of it before a run; empty: nothing."""
        return ""

    def stated(self) -> dict[str, Any]:
        """What config.yaml states of rows that are given: how many they are, and a digest of them."""
        return {}


@dataclass(frozen=True)
class Source(Part):
    """A source as a recipe states it.

    Class attributes:
        after: the stage of a turn after which it takes rows in; empty for one that is given.
        fields: what its rows have.
        from_dataset: whether its rows are those of `--dataset`.
    """

    stage: ClassVar[Stage] = "data"
    after: ClassVar[str] = ""
    fields: ClassVar[frozenset[str]] = frozenset()
    from_dataset: ClassVar[bool] = False

    def sampled(self) -> frozenset[str]:
        """Fields of its rows with its present hyperparameters."""
        return self.fields

    @abstractmethod
    def make(self, name: str, task: Any, config: Any) -> Rows:
        """The rows of a run.

        Args:
            name: the source's name in the recipe, which its files are called by.
            task: what is solved.
            config: of the run (`polyrl.runtime.config.RunConfig`).

        Raises:
            UserError: what it is to hold cannot be read, or does not fit the task.
        """
        raise NotImplementedError
