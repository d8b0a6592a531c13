"""Improve as a list of updates: which terms train which model, on which batch, and which copies move after that.

    updates=(
        Update("q", (SquaredTD(),), Sample("replay", batch_size=256), credit=(SoftTarget(),)),
        Update("policy", (SoftValue(),), Again()),
        Update("temperature", (EntropyTarget(),), Again()),
        Move("q_target", "q", tau=0.005),
    )

They run in this order once a turn; `Repeat` runs some of them several times. Copies move nowhere else, so that the
order is what stands there. `Recipe(terms=, optimise=)` stays and is the case of one update on the fresh batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from polyrl.errors import NotFinite
from polyrl.experience import Experience
from polyrl.parts.schedules import schedule_factor
from polyrl.recipe import Improver, Part, Stage, Term, knob
from polyrl.runtime.context import Context

if TYPE_CHECKING:
    from polyrl.models.base import Models, Network

# ------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch(Part):
    """Where the rows of an update come from."""

    stage: ClassVar[Stage] = "improve"

    def reads(self) -> frozenset[str]:
        """Names of the sources that it takes rows of."""
        return frozenset()


@dataclass(frozen=True)
class Fresh(Batch):
    """The rows that this turn collected, after its score, credit and select."""


@dataclass(frozen=True)
class Sample(Batch):
    """Rows of one source, drawn anew for each update."""

    source: str
    batch_size: int = knob(256, "rows of one update", low=1)

    def reads(self) -> frozenset[str]:
        """The source."""
        return frozenset({self.source})


@dataclass(frozen=True)
class Mix(Batch):
    """Rows of two sources in one batch, such as half of a replay and half of data (arXiv:2302.02948)."""

    first: str
    second: str
    batch_size: int = knob(256, "rows of one update", low=2)
    share: float = knob(0.5, "share of the first source", low=0, high=1)

    def reads(self) -> frozenset[str]:
        """Both."""
        return frozenset({self.first, self.second})


@dataclass(frozen=True)
class Again(Batch):
    """The batch of the update before, with what its credit gave; its outputs stand there as fields, as constants."""


# ------------------------------------------------------------------------------------------------- what is in a list


@dataclass(frozen=True)
class Update(Part):
    """One optimiser step of one model, on the sum of its terms over a batch.

    Attributes:
        trains: name of the model.
        terms: the objective.
        batch: where its rows come from.
        credit: parts that run on this batch before the terms, such as targets.
    """

    stage: ClassVar[Stage] = "improve"

    trains: str
    terms: tuple[Term, ...]
    batch: Batch
    credit: tuple[Part, ...] = ()
    every: int = knob(1, "turns, or repeats of them, from one of these updates to the next", low=1)

    @property
    def name(self) -> str:
        """Such as `q-update`."""
        return f"{self.trains.replace('_', '-')}-update"

    def wants(self) -> frozenset[str]:
        """Outputs of the trained model that its terms read."""
        return frozenset[str]().union(*(t.wants for t in self.terms))


@dataclass(frozen=True)
class Move(Part):
    """Move a model's parameters a share of the way towards another's: Polyak averaging, copying, extrapolating."""

    stage: ClassVar[Stage] = "improve"

    target: str
    towards: str
    tau: float = knob(1.0, "share of the way: 1 copies, 0.005 averages, a negative one extrapolates")
    every: int = knob(1, "turns, or repeats of them, from one move to the next", low=1)

    @property
    def name(self) -> str:
        """Such as `q-target-move`."""
        return f"{self.target.replace('_', '-')}-move"


@dataclass(frozen=True)
class Repeat(Part):
    """Run some updates and moves several times in one turn."""

    stage: ClassVar[Stage] = "improve"

    gradient_steps: int = knob(1, "how often in one turn", low=1)
    of: tuple[Update | Move | Repeat, ...] = ()


Step = Update | Move | Repeat


def flat(steps: tuple[Step, ...]) -> Iterator[Update | Move]:
    """Every update and move, repeats opened, in their order."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from flat(step.of)
        else:
            yield step


# ------------------------------------------------------------------------------------------------------------ running


@dataclass
class See:
    """What a term or a part of an update sees beside its batch.

    Attributes:
        models: the run's models by name.
        context: of the run.
        name: of the update, which its random stream is named after.
    """

    models: Models
    context: Context
    name: str

    def __getitem__(self, model: str) -> Any:
        return self.models[model]

    @cached_property
    def generator(self) -> torch.Generator:
        """The update's own random stream in this turn."""
        return self.context.generator(self.name)

    def draw(self, *shape: int) -> Tensor:
        """Normal numbers of this shape."""
        return torch.randn(shape, generator=self.generator)


class Means:
    """Averages of what is logged over the updates of an iteration."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, key: str, value: float) -> None:
        """Take in one number."""
        self.sums[key] = self.sums.get(key, 0.0) + value
        self.counts[key] = self.counts.get(key, 0) + 1

    def found(self) -> dict[str, float]:
        """Every mean."""
        return {key: total / self.counts[key] for key, total in self.sums.items()}


@dataclass(frozen=True, kw_only=True)
class UpdateList(Improver):
    """Runs a recipe's list of updates, once a turn."""

    updates: tuple[Step, ...] = ()

    def optimisers(self, world: Any) -> dict[str, Any]:
        """One Adam for each trained model."""
        found: dict[str, Any] = world.models.optimisers()
        return found

    def set_rates(self, context: Context) -> None:
        """Each model's learning rate by its own schedule, once an iteration."""
        if context.turn:
            return
        for name, optimiser in context.optimiser.items():
            entry = context.world.models.entries[name]
            factor = schedule_factor(entry.schedule, context.schedule_progress, 0.0, 0.0)
            for group in optimiser.param_groups:
                group["lr"] = entry.learning_rate * factor

    def run(self, terms: tuple[Term, ...], experience: Experience | None, context: Context) -> None:
        """Run the list on what this turn collected; metrics go to the context.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite. The step is not taken.
        """
        run = _Turn(context, experience)
        needed = frozenset[str]().union(*(u.batch.reads() for u in flat(self.updates) if isinstance(u, Update)))
        if not all(context.sources[name].ready() for name in needed):
            return
        for step in self.updates:
            run.take(step, context.turns_done)
        if context.turn is None or context.turn + 1 == context.turns:
            context.metrics.update(run.means.found())


class _Turn:
    """One pass through the list."""

    def __init__(self, context: Context, fresh: Experience | None):
        self.context, self.models, self.fresh = context, context.world.models, fresh
        self.batch: Experience | None = fresh
        self.means: Means = context.means

    def take(self, step: Step, number: int) -> None:
        """Run a step if it is due; `number` of them came before it."""
        if isinstance(step, Repeat):
            for again in range(step.gradient_steps):
                for inner in step.of:
                    self.take(inner, number * step.gradient_steps + again)
        elif (number + 1) % step.every == 0:
            if isinstance(step, Move):
                self.models.move(step.target, step.towards, step.tau)
            else:
                self.update(step)

    def update(self, update: Update) -> None:
        """One optimiser step."""
        context = self.context
        see = self._see(update.name)
        batch = self._rows(update.batch, see)
        with torch.no_grad():
            for part in update.credit:
                batch = part.apply(batch, see)
        module: Network = self.models[update.trains]
        self.models.ask_gradients(update.trains, True)
        try:
            outputs = module.outputs(batch, update.wants(), see.draw)
            parts = [(term.summand(outputs, batch, see) * term.step_weights(batch)).sum() for term in update.terms]
            total = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
            self._add_losses(update, parts)
            optimiser = context.optimiser[update.trains]
            vector = optimiser.vector
            vector.grad.zero_()
            total.backward()  # type: ignore[no-untyped-call]
        finally:
            self.models.ask_gradients(update.trains, False)
        self._step(update, optimiser)
        constants = {name: x.detach() for name, x in outputs.items()}
        if source := update.batch.reads():
            self._feed_back(source, update, constants, batch)
        for term in update.terms:
            for key, value in term.statistics(constants, batch).items():
                self.means.add(key, float(value.mean()))
        shape = batch["weight"].shape
        self.batch = batch.with_fields(**{name: x for name, x in constants.items() if x.shape[:2] == shape})

    def _see(self, name: str) -> See:
        found = self._seen.get(name)
        if found is None:
            found = self._seen[name] = See(self.models, self.context, name)
        return found

    @cached_property
    def _seen(self) -> dict[str, See]:
        return {}

    def _rows(self, batch: Batch, see: See) -> Experience:
        sources = self.context.sources
        if isinstance(batch, Sample):
            return sources[batch.source].sample(batch.batch_size, see.generator)
        if isinstance(batch, Mix):
            first = round(batch.share * batch.batch_size)
            sizes = {batch.first: first, batch.second: batch.batch_size - first}
            return joined([sources[name].sample(size, see.generator) for name, size in sizes.items() if size])
        rows = self.batch if isinstance(batch, Again) else self.fresh
        assert rows is not None
        return rows

    def _feed_back(
        self, sources: frozenset[str], update: Update, outputs: Mapping[str, Tensor], batch: Experience
    ) -> None:
        for name in sources:
            if self.context.sources[name].wants_feedback:
                for term in update.terms:
                    if (found := term.priority(outputs, batch)) is not None:
                        self.context.sources[name].feedback(batch["row"], found)

    def _add_losses(self, update: Update, parts: list[Tensor]) -> None:
        for term, part in zip(update.terms, parts, strict=True):
            value = float(part.detach())
            if not math.isfinite(value):
                raise NotFinite(
                    f"The loss of term '{term.name}' of the model '{update.trains}' became {value} in iteration "
                    f"{self.context.iteration}, so the run stopped before the step; lower "
                    f"--{update.trains.replace('_', '-')}.learning-rate, or look at rewards and observations."
                )
            self.means.add(f"loss/{term.name}", value)

    def _step(self, update: Update, optimiser: Any) -> None:
        gradient = optimiser.vector.grad
        size = float(gradient.norm())
        if not math.isfinite(size):
            raise NotFinite(
                f"The gradient of the model '{update.trains}' became {size} in iteration {self.context.iteration}, so "
                f"the run stopped before the step; lower --{update.trains.replace('_', '-')}.learning-rate or the "
                "spread of the rewards."
            )
        self.means.add(f"grad_norm/{update.trains}", size)
        limit = self.models.entries[update.trains].max_grad_norm
        if limit is not None and size > limit:
            gradient.mul_(limit / (size + 1e-6))
        self.context.touched = True
        optimiser.step()
        self.context.spent.updates += 1


def joined(tables: list[Experience]) -> Experience:
    """The rows of several tables one after another, with the fields that all of them have."""
    names = set(tables[0].fields()).intersection(*(t.fields() for t in tables[1:]))
    return Experience({name: torch.cat([t[name] for t in tables]) for name in tables[0].fields() if name in names})
