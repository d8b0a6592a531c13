"""What a part may see besides the experience: task and models, the run's progress, random streams and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, SupportsFloat

from polyrl.runtime.budget import Budget, Spent
from polyrl.runtime.seeding import generator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.core.experience import Experience
    from polyrl.data.base import Rows


@dataclass
class Context:
    """The run as a part sees it.

    Attributes:
        run_state: task and models (`polyrl.run_state.base.RunState`, and what the domain's parts ask of it).
        seed: the run's seed.
        budget, spent: limits and spending; parts that collect or score add to `spent`.
        began: what was spent when the present iteration began.
        iteration: number of the present iteration, from 1.
        metrics: what this iteration logs.
        memories: state that parts keep between iterations (plain numbers), saved in checkpoints.
        stores: the same for tensors, by part and name. Replace a tensor; do not write into it.
        optimizer: the trained models' optimizers, by model.
        params_updated: whether this iteration has already changed a model.
        compared: whether written derivatives were compared with autograd's, which a process does once.
        written: terms of a list of updates of which that was done.
        sources: rows beside the fresh ones, by name (`polyrl.data.base.Rows`).
        turn: number of the present pass through the stages, from 0; None where an iteration is one pass.
        turns: passes in one iteration.
        means: averages over the updates of this iteration.
        finished: why a part has ended the run; empty while it goes on.
        ended: returns and lengths of the episodes that ended in this iteration.
        stream: the named stream whose stages run now (`polyrl.core.streams`); empty: the recipe's own.
        fresh: rows of the named streams in this turn.
        credited: batches before and after each part of credit within a list of updates, by step and part, the first
            time that it ran since somebody asked; None where nobody does.
    """

    run_state: Any
    seed: int
    budget: Budget
    spent: Spent = field(default_factory=Spent)
    began: Spent = field(default_factory=Spent)
    iteration: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)
    stores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    optimizer: Any = None
    params_updated: bool = False
    compared: bool = False
    written: set[type] = field(default_factory=set)
    sources: dict[str, Rows] = field(default_factory=dict)
    turn: int | None = None
    turns: int = 1
    means: Any = None
    finished: str = ""
    ended: dict[str, list[float]] = field(default_factory=dict)
    stream: str = ""
    fresh: dict[str, Experience] = field(default_factory=dict)
    credited: dict[tuple[str, str], tuple[Experience, Experience]] | None = None

    def finish(self, reason: str) -> None:
        """End the run with this iteration, as a certificate or an empty candidate set does: it is evaluated and saved.

        Args:
            reason: why, as a part of a sentence: "every hypothesis but one is excluded". The first one stays.

        Raises:
            ValueError: there is no reason.
        """
        if not reason.strip():
            raise ValueError("a run is ended for a reason; say it in a few words")
        self.finished = self.finished or reason.strip()

    @property
    def over(self) -> bool:
        """Whether nothing follows: the budget is spent, or a part has ended the run."""
        return bool(self.finished) or self.progress >= 1

    @property
    def world(self) -> Any:
        """What is called `run_state` since 0.2."""
        raise AttributeError("context.world is called context.run_state since polyrl 0.2")

    @property
    def touched(self) -> bool:
        """What is called `params_updated` since 0.2."""
        raise AttributeError("context.touched is called context.params_updated since polyrl 0.2")

    @property
    def turns_done(self) -> int:
        """Passes through the stages that were made before the present one, in the whole run."""
        return (self.iteration - 1) * self.turns + (self.turn or 0)

    @property
    def progress(self) -> float:
        """Share of the budget spent, for what ends a run and what is spread over it; schedules: `schedule_progress`."""
        return self.budget.progress(self.spent)

    @property
    def schedule_progress(self) -> float:
        """What schedules follow: the share of the run's iterations that are done, in [0, 1), 0 in the first.

        It stands still during an iteration, and is the same whatever unit the budget is in.
        """
        return self.budget.schedule_progress(self.began)

    def iteration_share(self, updates: int) -> float:
        """Share of the run that the present iteration is, asked after collecting; 0 where nothing tells it yet.

        Args:
            updates: optimizer steps that the iteration is going to take.
        """
        spent = self.began
        if not spent.iterations:  # the first one's own cost is all that is known
            spent = dataclasses.replace(self.spent, iterations=1, updates=self.began.updates + updates)
        return 1 / self.budget.expected_iterations(spent)

    def generator(self, *names: object) -> torch.Generator:
        """A random stream of this iteration, or of this turn of it; the same names give the same numbers."""
        names = (self.stream, *names) if self.stream else names
        if self.turn is None:
            return generator(self.seed, *names, self.iteration)
        return generator(self.seed, *names, self.iteration, self.turn)

    def memory(self, name: str) -> dict[str, Any]:
        """The numbers that a part keeps from one iteration to the next."""
        return self.memories.setdefault(self._owned(name), {})

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors that a part keeps from one iteration to the next: replaced, never written into."""
        return self.stores.setdefault(self._owned(name), {})

    def _owned(self, name: str) -> str:
        return f"{self.stream}.{name}" if self.stream else name

    def log_episodes(self, returns: Sequence[float], lengths: Sequence[float]) -> None:
        """Log the episodes that ended, as means over those of the whole iteration so far."""
        if not returns:
            return
        owner = f"{self.stream}/" if self.stream else ""
        ended = {name: self.ended.setdefault(owner + name, []) for name in ("return", "length")}
        ended["return"].extend(returns)
        ended["length"].extend(lengths)
        found = {name: fmean(values) for name, values in ended.items()}
        self.log(episode__return=found["return"], episode__length=found["length"], episode__count=len(ended["return"]))

    def log(self, **values: SupportsFloat) -> None:
        """Add metrics to this iteration's record; `__` in a name becomes `/`."""
        owner = f"{self.stream}/" if self.stream else ""
        self.metrics.update({owner + k.replace("__", "/"): float(v) for k, v in values.items()})
