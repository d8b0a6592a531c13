"""What a part may see besides the experience: the world, where the run stands, its random streams and its memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

from polyrl.runtime.budget import Budget, Spent
from polyrl.runtime.seeding import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.experience import Experience


class World(Protocol):
    """A task joined to the models that act in it. Each wing (language, control, ...) has one.

    The loop, the optimiser and the parts know nothing of a wing but this.
    """

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Differentiable "logprob", "entropy", "value" of the experience's steps, each `[B, T]`."""
        ...

    def reference_logprob(self, experience: Experience) -> Tensor:
        """Log-probability of the actions under the frozen starting policy, `[B, T]`, no gradient."""
        ...

    def value(self, experience: Experience) -> Tensor:
        """Critic's value of the state before each step, `[B, T]`, no gradient."""
        ...

    def score(self, experience: Experience) -> tuple[Tensor, dict[str, Tensor], int]:
        """Scores `[B]` (NaN: dropped), their parts by reward function `[B]`, and how many episodes were scored."""
        ...

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        """Numbers beside the reward, `[B]` each: logged, never trained on."""
        ...

    def micro_batches(self, experience: Experience) -> list[Tensor]:
        """Row indices that fit in memory together; never changes a result, only what it takes to get it."""
        ...

    def parameters(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Trained parameters with their names: "policy" and, if there is one, "critic"."""
        ...

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Metrics (`eval/...`) on the fixed evaluation episodes, and a few samples to be read by a person."""
        ...

    def save(self, folder: Any) -> None:
        """Write the models into a folder."""
        ...

    def load(self, folder: Any) -> None:
        """Read back what `save` wrote."""
        ...


@dataclass
class Context:
    """The run as a part sees it.

    Attributes:
        world: task and models.
        seed: the run's seed.
        budget, spent: limits and spending; parts that collect or score add to `spent`.
        iteration: number of the present iteration, from 1.
        metrics: what this iteration logs.
        memories: state that parts keep between iterations (plain numbers), saved in checkpoints.
        optimiser: the trained models' optimisers, by model.
        touched: whether this iteration has already changed a model.
    """

    world: Any
    seed: int
    budget: Budget
    spent: Spent = field(default_factory=Spent)
    iteration: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)
    optimiser: Any = None
    touched: bool = False

    @property
    def progress(self) -> float:
        """Share of the budget spent, for schedules."""
        return self.budget.progress(self.spent)

    def generator(self, *names: object) -> torch.Generator:
        """A random stream of this iteration; the same names give the same numbers."""
        return generator(self.seed, *names, self.iteration)

    def memory(self, name: str) -> dict[str, Any]:
        """The numbers that a part keeps from one iteration to the next."""
        return self.memories.setdefault(name, {})

    def log(self, **values: SupportsFloat) -> None:
        """Add metrics to this iteration's record; `__` in a name becomes `/`."""
        self.metrics.update({k.replace("__", "/"): float(v) for k, v in values.items()})
