"""Runs a recipe's list of updates, once a turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.part import Improver, Term
from polyrl.core.schedules import schedule_factor
from polyrl.core.update import Again, Batch, Mix, Move, OwnUpdate, Phase, Repeat, Sample, See, Step, Update, flat
from polyrl.errors import NotFinite

if TYPE_CHECKING:
    from polyrl.models.base import Network


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

    def optimizers(self, run_state: Any) -> dict[str, Any]:
        """One Adam for each trained model."""
        found: dict[str, Any] = run_state.models.optimizers()
        return found

    def phase(self, context: Context) -> Phase | None:
        """The phase that the run is in; None where the list has none."""
        phases = [step for step in self.updates if isinstance(step, Phase)]
        taken = context.spent.updates
        for phase in phases[:-1]:
            if taken < phase.optimizer_steps:
                return phase
            taken -= phase.optimizer_steps
        return phases[-1] if phases else None

    def collects(self, context: Context) -> bool:
        """Whether this turn collects."""
        phase = self.phase(context)
        return phase is None or phase.collects

    def set_rates(self, context: Context) -> None:
        """Each model's learning rate by its own schedule, once an iteration."""
        if context.turn:
            return
        for name, optimizer in context.optimizer.items():
            entry = context.run_state.models.entries[name]
            factor = schedule_factor(entry.schedule, context.schedule_progress, 0.0, 0.0)
            for group in optimizer.param_groups:
                group["lr"] = entry.learning_rate * factor

    def run(self, terms: tuple[Term, ...], experience: Experience | None, context: Context) -> None:
        """Run the list on what this turn collected; metrics go to the context.

        Raises:
            NotFinite: a loss or a gradient is NaN or infinite. The step is not taken.
        """
        run = _Turn(context, experience)
        phase = self.phase(context)
        steps = tuple(s for s in self.updates if not isinstance(s, Phase) or s is phase)
        needed = frozenset[str]().union(*(u.batch.reads() for u in flat(steps) if not isinstance(u, Move)))
        if not all(context.sources[name].ready() for name in needed):
            return
        for step in steps:
            run.take(step, context.turns_done)
        if context.turn is None or context.turn + 1 == context.turns:
            context.metrics.update(run.means.found())


class _Turn:
    """One pass through the list."""

    def __init__(self, context: Context, fresh: Experience | None):
        self.context, self.models, self.fresh = context, context.run_state.models, fresh
        self.batch: Experience | None = fresh
        self.means: Means = context.means

    def take(self, step: Step, number: int) -> None:
        """Run a step if it is due; `number` of them came before it."""
        if isinstance(step, Phase):
            for inner in step.of:
                self.take(inner, number)
        elif isinstance(step, Repeat):
            for again in range(step.gradient_steps):
                for inner in step.of:
                    self.take(inner, number * step.gradient_steps + again)
        elif (number + 1) % step.every == 0:
            if isinstance(step, Move):
                self.models.move(step.target, step.towards, step.tau)
            elif isinstance(step, OwnUpdate):
                self.own(step)
            else:
                self.update(step)

    def own(self, update: OwnUpdate) -> None:
        """An improvement of a paper's own."""
        see = self._see(update.name)
        self.batch = self._rows(update.batch, see)
        self.context.params_updated = True
        for key, value in update.step(self.batch, see).items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"'{key}' of the {update.name} became {value} in iteration {self.context.iteration}, so the run "
                    "stopped; look at rewards, observations and step sizes."
                )
            self.means.add(key, value)
        self.context.spent.updates += 1

    def update(self, update: Update) -> None:
        """One optimizer step."""
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
            optimizer = context.optimizer[update.trains]
            vector = optimizer.vector
            vector.grad.zero_()
            total.backward()  # type: ignore[no-untyped-call]
        finally:
            self.models.ask_gradients(update.trains, False)
        self._step(update, optimizer)
        constants = {name: x.detach() for name, x in outputs.items()}
        if update.batch.reads():
            self._feed_back(update, constants, batch)
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
            sizes = {batch.first: batch.first_rows, batch.second: batch.batch_size - batch.first_rows}
            return joined([sources[name].sample(size, see.generator) for name, size in sizes.items() if size])
        rows = self.batch if isinstance(batch, Again) else self.fresh
        assert rows is not None
        return rows

    def _feed_back(self, update: Update, outputs: Mapping[str, Tensor], batch: Experience) -> None:
        for name, place in update.batch.places().items():
            if self.context.sources[name].wants_feedback and len(batch["row"][place]):
                for term in update.terms:
                    if (found := term.priority(outputs, batch)) is not None:
                        self.context.sources[name].feedback(batch["row"][place], found[place])

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

    def _step(self, update: Update, optimizer: Any) -> None:
        gradient = optimizer.vector.grad
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
        self.context.params_updated = True
        optimizer.step()
        self.context.spent.updates += 1


def joined(tables: list[Experience]) -> Experience:
    """The rows of several tables one after another, with the fields that all of them have."""
    names = set(tables[0].fields()).intersection(*(t.fields() for t in tables[1:]))
    return Experience({name: torch.cat([t[name] for t in tables]) for name in tables[0].fields() if name in names})
