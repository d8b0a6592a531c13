"""Runs a recipe's list of updates, once a turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.agreement import check_logprob_gap, check_loss, gradient_norm, written
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.list_phases import begin, phase_of
from polyrl.core.means import Means
from polyrl.core.minibatches import blanked, counted_alone, joined, minibatches_of, put_rows, steps_that_count, units_of
from polyrl.core.part import Improver, Part, Term
from polyrl.core.parting import add_gradients, pooled, sums_of_ranks
from polyrl.core.schedules import schedule_factor
from polyrl.core.update import (
    Again,
    Batch,
    Epochs,
    Fresh,
    Mix,
    Move,
    On,
    OwnRows,
    OwnUpdate,
    Phase,
    Repeat,
    Sample,
    See,
    Step,
    Update,
    batches,
    flat,
    fresh_alone,
)
from polyrl.errors import NotFinite

if TYPE_CHECKING:
    from polyrl.models.base import ClosedForm


@dataclass(frozen=True, kw_only=True)
class UpdateList(Improver):
    """Runs a recipe's list of updates, once a turn."""

    updates: tuple[Step, ...] = ()
    acting: Mapping[str, str] = field(default_factory=dict)
    """Names of the models that act in streams, where that is not the recipe's own `acts`."""

    @cached_property
    def shared(self) -> frozenset[str]:
        """Names of terms that train several models: what they log says which."""
        owners: dict[str, set[str]] = {}
        for step in (s for s in flat(self.updates) if isinstance(s, Update)):
            for term in (t for on in step.objectives for t in on.terms):
                owners.setdefault(term.name, set()).add(step.trains)
        return frozenset(name for name, models in owners.items() if len(models) > 1)

    def logged(self, what: str, term: Term, trains: str) -> str:
        """Name of a metric of a term, such as `loss/squared-td`."""
        return f"{what}/{trains}" if term.name in self.shared else what

    def optimizers(self, run_state: Any) -> dict[str, Any]:
        """One Adam for each trained model."""
        found: dict[str, Any] = run_state.models.optimizers()
        return found

    def collects(self, context: Context) -> bool:
        """Whether this turn collects."""
        return (phase := phase_of(self.updates, context)) is None or phase.collects

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
        run = _Turn(self, context, experience)
        phase = phase_of(self.updates, context)
        begin(phase, self.updates, context)
        steps = tuple(s for s in self.updates if not isinstance(s, Phase) or s is phase)
        needed = frozenset[str]().union(*(batch.reads() for batch in batches(steps)))
        if not all(context.sources[name].ready() for name in needed):
            steps = fresh_alone(steps)
        for step in steps:
            run.take(step, context.turns_done)
        if context.turn is None or context.turn + 1 == context.turns or context.finished:
            context.metrics.update(run.means.found())
            for update in (s for s in flat(steps) if isinstance(s, Update)):
                for term in (t for on in update.objectives for t in on.terms):
                    term.on_update_end(context.metrics, context)


class _Turn:
    """One pass through the list."""

    def __init__(self, updates: UpdateList, context: Context, fresh: Experience | None):
        self.updates = updates
        self.context, self.models, self.fresh = context, context.run_state.models, fresh
        self.means: Means = context.means
        self.batch: Experience | None = fresh
        self.sampled = False  # whether the batch was drawn from a source, whose rows all count
        self.acts: str = self.models.acts  # the model that acted where the batch was collected
        self.computed: frozenset[str] = frozenset()  # fields of the batch that updates have put out
        self.passing: Epochs | None = None  # what the present minibatch is one of
        self.stopped = False  # whether the passes end with this minibatch, on which no step is taken
        self.passes = 0
        self.waiting: list[Update] = []  # whose gradients are clipped together with those that follow
        self.changed: set[str] = set()  # models that this turn has changed
        self.parted: set[str] = set()  # whose gradients are of this rank's share of the rows

    def take(self, step: Step, number: int) -> None:
        """Run a step if it is due; `number` of them came before it."""
        if isinstance(step, Phase):
            for inner in step.of:
                self.take(inner, number)
        elif isinstance(step, Repeat):
            for again in range(step.gradient_steps):
                for inner in step.of:
                    self.take(inner, number * step.gradient_steps + again)
        elif (number + 1) % step.every == 0 if step.every else self.context.turn in (None, self.context.turns - 1):
            if isinstance(step, Move):
                self.changed.add(step.target)
                self.context.params_updated = True
                self.models.move(step.target, step.towards, step.tau)
                for key, value in step.after_move(self._see(step.name)).items():
                    self.means.add(key, value)
            elif isinstance(step, Epochs):
                self.epochs(step, number)
            elif isinstance(step, OwnUpdate):
                self.own(step)
            else:
                self.update(step)

    def own(self, update: OwnUpdate) -> None:
        """An improvement of a paper's own."""
        see = self._see(update.name)
        see.rows = tuple(self._rows(batch, see) for batch in update.also)
        self.batch = self._rows(update.batch, see)
        self.context.params_updated = True
        self.changed.add(update.trains)
        for key, value in update.step(self.batch, see).items():
            if not math.isfinite(value):
                raise NotFinite(
                    f"'{key}' of the {update.name} became {value} in iteration {self.context.iteration}, so the run "
                    "stopped; look at rewards, observations and step sizes."
                )
            self.means.add(key, value)
        self.context.spent.updates += 1

    def epochs(self, step: Epochs, number: int) -> None:
        """Several passes over one batch in shuffled minibatches."""
        see, context = self._see(step.name), self.context
        whole = self._rows(step.batch, see)
        whole = self._credited(step.name, step.credit, whole, see)
        sampled, terms = self.sampled, tuple(t for u in flat(step.of) if isinstance(u, Update) for t in u.terms)
        table = whole.steps() if step.minibatch_of == "steps" else whole
        rows = steps_that_count(terms, table).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            context.log(updates__skipped=1)
        unit, grouped_by = units_of(table, terms)
        units = torch.unique(unit[rows])
        again = () if self.passes == 0 else (self.passes,)
        self.passes += 1
        kl = step.called("approx_kl")
        for epoch in range(step.epochs if len(units) else 0):
            before = self.means.so_far(kl)
            order = units[torch.randperm(len(units), generator=context.generator("minibatches", epoch, *again))]
            for k, self.batch in enumerate(minibatches_of(table, order, step.minibatches, unit, rows, grouped_by)):
                self.sampled, self.computed, self.passing = sampled, frozenset(), step
                for inner in step.of:
                    self.take(inner, (number * step.epochs + epoch) * step.minibatches + k)
                if self.stopped:
                    break
                self._step_together()
            if self.stopped or (step.target_kl is not None and self.means.since(kl, before) > step.target_kl):
                break
        self.batch, self.sampled, self.computed, self.passing = whole, sampled, frozenset(), None
        self.stopped, self.waiting = False, []

    def update(self, update: Update) -> None:
        """One optimizer step."""
        see, passing = self._see(update.name), self.passing
        before = (0.0, 0.0) if passing is None else self.means.so_far(passing.called("approx_kl"))
        counts = not self.stopped and self._objective(update, update.objectives[0], see)
        if update.also:
            own = self.batch, self.sampled, self.computed, self.acts
            for on in update.also:
                counts |= self._objective(update, on, see, adds=counts)
            self.batch, self.sampled, self.computed, self.acts = own
        if passing is not None and passing.stops_at_minibatch and passing.target_kl is not None:
            self.stopped |= self.means.since(passing.called("approx_kl"), before) > passing.target_kl
        if not counts or self.stopped:  # momentum alone moves nothing
            return
        if passing is not None and passing.joint_clip is not None:
            self.waiting.append(update)
        else:
            self._step([update.trains], self.models.entries[update.trains].max_grad_norm)

    def _objective(self, update: Update, on: On, see: See, *, adds: bool = False) -> bool:
        """Find the gradients of terms on a batch, or add them to those found; whether some of its steps count."""
        batch = self._rows(on.batch, see)
        batch = self._credited(update.name, on.credit, batch, see)
        wants = frozenset[str]().union(*(t.wants for t in on.terms))
        counted = None if self.sampled else steps_that_count(on.terms, batch)
        watched = False
        if counted is not None:
            if not bool(counted.any()):
                self.batch = batch
                return False
            given = self.models.entries[update.trains].outputs
            watched = update.trains == self._watched and "logprob" in given and "behaviour_logprob" in batch
            if watched:  # whatever the terms read: sampler and trainer are compared, and the move is measured
                wants |= {"logprob", "entropy"} & given
        weights = [term.step_weights(batch) for term in on.terms]  # of the whole batch, before its rows are parted
        closed = None if update.also else self._closed_form(update.trains, on.terms, wants, counted)
        if closed is not None:
            constants, losses = self._go_without_autograd(update, on, closed, batch, weights, wants, see, watched)
            self._add_losses(update, on, losses)
            return self._after(update, on, constants, batch, counted)
        if not adds:
            self.models.zero_gradients(update.trains)
        losses, constants = [0.0] * len(on.terms), dict[str, Tensor]()
        grouped_by = next((term.grouped_by for term in on.terms if term.grouped_by), "")
        self.models.ask_gradients(update.trains, True)
        try:
            with (
                self.models.passes(
                    update.trains, batch, wants, see.draw, grouped_by, own=counted is not None
                ) as passes,
                pooled(self.means, self.context),
            ):
                for rows, outputs in passes:
                    micro = batch if rows is None else batch.rows(rows)
                    if counted is not None:
                        if watched and update.trains not in self.changed:
                            self._compare(outputs, micro)
                        outputs, micro = counted_alone(outputs, micro, counted if rows is None else counted[rows])
                    parts = [
                        (term.summand(outputs, micro, see) * (weight if rows is None else weight[rows])).sum()
                        for term, weight in zip(on.terms, weights, strict=True)
                    ]
                    losses = [loss + float(part.detach()) for loss, part in zip(losses, parts, strict=True)]
                    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
                    total.backward()  # type: ignore[no-untyped-call]
                    put_rows(constants, outputs, rows, len(batch))
        finally:
            self.models.ask_gradients(update.trains, False)
        losses, constants = sums_of_ranks(losses, constants)
        self.parted.add(update.trains)
        self._add_losses(update, on, losses)
        return self._after(update, on, constants, batch, counted)

    def _closed_form(
        self, trains: str, terms: Sequence[Term], wants: frozenset[str], counted: Tensor | None
    ) -> ClosedForm | None:
        """Passes of a model without autograd, of rows that were collected only for single steps that all count.

        None where there are none, or a term's derivatives are not written.
        """
        if not all(term.is_written for term in terms):
            return None
        found: ClosedForm | None = None
        if counted is None:
            found = self.models.closed_form(trains, wants)
        elif counted.shape[1] == 1 and bool(counted.all()):
            found = self.models.closed_form_of_steps(trains, wants)
        return found

    @torch.no_grad()
    def _go_without_autograd(
        self,
        update: Update,
        on: On,
        closed: ClosedForm,
        batch: Experience,
        weights: list[Tensor],
        wants: frozenset[str],
        see: See,
        watched: bool,
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Write the gradients of terms; the model's outputs, and each term's loss."""
        self.models.ask_gradients(update.trains, True)  # of a distribution without a written form they are autograd's
        try:
            outputs = closed.forward(batch, wants, see.draw)
            if watched and update.trains not in self.changed:
                self._compare(outputs, batch)
            losses, grad_outputs = written(on.terms, outputs, batch, see, weights, update.trains)
            closed.backward(grad_outputs)
        finally:
            self.models.ask_gradients(update.trains, False)
        return outputs, losses

    def _compare(self, outputs: Mapping[str, Tensor], batch: Experience) -> None:
        """Before a model's first step: are its log-probabilities those of the sampler?"""
        limit = None if self.passing is None else self.passing.max_logprob_gap
        check_logprob_gap(outputs["logprob"], batch, limit, self.context)

    def _after(
        self, update: Update, on: On, constants: dict[str, Tensor], batch: Experience, counted: Tensor | None
    ) -> bool:
        """Log, feed back to sources, and keep what was put out for the updates that follow; True."""
        told = batch  # which the next update reads, so nothing of it is blanked
        if counted is not None and not bool(counted.all()):
            told = batch.with_fields(**blanked(batch.data, counted))
        if on.batch.reads():
            self._feed_back(on, constants, told)
        self._add_statistics(update, on, constants, told, counted)
        shape = batch["weight"].shape
        given = {
            name: x
            for name, x in constants.items()
            if x.shape[:2] == shape and (name not in batch or name in self.computed)
        }
        self.computed |= given.keys()
        self.batch = batch.with_fields(**given)
        return True

    @torch.no_grad()
    def _credited(self, owner: str, parts: Sequence[Part], batch: Experience, see: See) -> Experience:
        """A batch after the credit of a step."""
        for part in parts:
            before, batch = batch, part.apply(batch, see)
            if self.context.credited is not None:
                self.context.credited.setdefault((owner, part.name), (before, batch))
        return batch

    def _add_statistics(
        self, update: Update, on: On, outputs: dict[str, Tensor], batch: Experience, counted: Tensor | None
    ) -> None:
        """Log what is watched beside the losses; of fresh rows over the steps that count."""
        for term in on.terms:
            for key, value in term.statistics(outputs, batch).items():
                called = self.updates.logged(key, term, update.trains)
                if counted is None:
                    self.means.add(called, float(value.mean()))
                    continue
                own = term.weights(batch) != 0
                mask = own if value.dim() == 2 else own.any(1)
                self.means.add(called, (value * mask).sum().item(), float(mask.sum()))
        if counted is None or update.trains != self._watched:
            return
        chosen = batch["weight"] != 0
        size = float(chosen.sum())
        if size and "behaviour_logprob" in batch and "logprob" in outputs:
            log_ratio = (outputs["logprob"] - batch["behaviour_logprob"]) * chosen
            divergence = torch.expm1(log_ratio) - log_ratio  # the estimator k3 of KL(old || new)
            named = (lambda metric: metric) if self.passing is None else self.passing.called
            self.means.add(named("approx_kl"), divergence.sum().item(), size)
            if "entropy" in outputs:
                self.means.add(named("entropy"), (outputs["entropy"] * chosen).sum().item(), size)

    @property
    def _watched(self) -> str:
        """The model whose move from the likelihoods of what was collected is measured."""
        return (self.passing is not None and self.passing.watches) or self.acts

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
        if not isinstance(batch, Again):
            self.sampled, self.computed = bool(batch.reads()), frozenset()
        if isinstance(batch, Sample):
            return sources[batch.source].sample(batch.batch_size, see.generator)
        if isinstance(batch, Mix):
            sizes = {batch.first: batch.first_rows, batch.second: batch.batch_size - batch.first_rows}
            return joined([sources[name].sample(size, see.generator) for name, size in sizes.items() if size])
        if isinstance(batch, OwnRows):
            return batch.rows(self.context)
        rows = self.batch if isinstance(batch, Again) else self.fresh
        if isinstance(batch, Fresh):
            self.acts = self.updates.acting.get(batch.stream, self.models.acts)
            rows = self.context.fresh[batch.stream] if batch.stream else self.fresh
        assert rows is not None
        return rows

    def _feed_back(self, on: On, outputs: Mapping[str, Tensor], batch: Experience) -> None:
        for name, place in on.batch.places().items():
            if self.context.sources[name].wants_feedback and len(batch["row"][place]):
                for term in on.terms:
                    if (found := term.priority(outputs, batch)) is not None:
                        self.context.sources[name].feedback(batch["row"][place], found[place])

    def _add_losses(self, update: Update, on: On, losses: list[float]) -> None:
        for term, value in zip(on.terms, losses, strict=True):
            check_loss(value, term, update.trains, self.context)
            self.means.add(self.updates.logged(f"loss/{term.name}", term, update.trains), value)

    def _step(self, names: list[str], limit: float | None, called: str = "") -> None:
        """A step of each of these models, whose gradients are clipped by one norm."""
        for name in names:  # in one order on every rank, which a set has not
            if name in self.parted:
                add_gradients(self.context.optimizer[name])
        self.parted -= set(names)
        gradients = [gradient for name in names for gradient in self.models.gradients(name)]
        size = self._size(called or names[0], gradients)
        if limit is not None and size > limit:
            for gradient in gradients:
                gradient.mul_(limit / (size + 1e-6))
        for name in names:
            self.changed.add(name)
            self.context.params_updated = True
            self.context.optimizer[name].step()
            self.context.spent.updates += 1

    def _step_together(self) -> None:
        """The steps of a minibatch whose gradients are clipped by one norm over all models."""
        if not self.waiting:
            return
        assert self.passing is not None and self.passing.joint_clip is not None
        names, self.waiting = [*dict.fromkeys(update.trains for update in self.waiting)], []
        self._step(names, self.passing.joint_clip, "joint")

    def _size(self, name: str, gradients: list[Tensor]) -> float:
        """Norm of all of them, which is logged.

        Raises:
            NotFinite: it is NaN or infinite.
        """
        size = gradient_norm(gradients, name, self.context)
        self.means.add(f"grad_norm/{name}", size)
        return size
