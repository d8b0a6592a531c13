"""Stage 5, improve: the optimizer that takes gradient steps on the sum of the terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.agreement import check_logprob_gap
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.means import Means
from polyrl.core.minibatches import blanked, rows_of_units, steps_that_count, units_of
from polyrl.core.parting import add_gradients, pooled
from polyrl.core.schedules import Schedule, schedule_factor
from polyrl.core.special_rows import SpecialRows
from polyrl.core.update import On, OwnRows
from polyrl.errors import NotFinite
from polyrl.kernels.flat import VectorAdamW, step_together
from polyrl.parts.credit import whiten
from polyrl.parts.derivatives import compare_with_autograd
from polyrl.parts.improve import Averaged, ValueLoss
from polyrl.parts.score import kl_estimate
from polyrl.recipe import Improver, Term, hyperparameter
from polyrl.runtime.ranks import present

if TYPE_CHECKING:
    from polyrl.run_state.base import ClosedForm


OFTEN_READ = frozenset({"weight", "value_weight", "behaviour_logprob", "length_limit"})
"""Fields that the optimizer and the terms read where they are there, whatever a term says that it needs."""


AdamW = torch.optim.AdamW | VectorAdamW


def _weighs_like_others(term: Term) -> bool:
    """Whether a term's `step_weights` are those of every term of equal `averaging`."""
    kind = type(term)
    return kind.step_weights is Averaged.step_weights and kind.weights in (Term.weights, ValueLoss.weights)


def _alike(one: AdamW, other: AdamW) -> bool:
    """Whether two optimizers take equal steps along equal gradients."""
    a, b = one.param_groups[0], other.param_groups[0]
    return (a["lr"], a["eps"]) == (b["lr"], b["eps"])  # the rest is the same for all models


def _norm(gradients: list[Tensor]) -> float:
    """Norm of all of them together, with one synchronization where they are on a device."""
    norms = [gradient.norm() for gradient in gradients]
    if norms and norms[0].device.type != "cpu":
        return math.hypot(*torch.stack(norms).tolist())
    return math.hypot(*(norm.item() for norm in norms))


class NonFinite(NotFinite):
    """A loss or gradient became NaN or infinite; names the culprit."""


@dataclass(frozen=True)
class _Minibatch:
    """Single steps `[N, 1]` that one optimizer step is taken on, and for each term what its losses are weighted by."""

    rows: Experience
    weights: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Optimize(Improver):
    """Take AdamW steps on the sum of the terms: epochs over shuffled minibatches, gradients clipped by global norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = Term.special_rows

    learning_rate: float = hyperparameter(1e-4, "AdamW step size of the policy", low=0, high=1e37)
    critic_learning_rate: float = hyperparameter(1e-3, "AdamW step size of the critic", low=0, high=1e37)
    schedule: Schedule = hyperparameter("constant", "learning rate over the budget")
    warmup: float = hyperparameter(0.0, "share of the budget over which the learning rate rises", low=0, high=1)
    critic_schedule: Schedule | None = hyperparameter(None, "the same for the critic; none is the policy's")
    critic_warmup: float | None = hyperparameter(None, "the same for the critic; none is the policy's", low=0, high=1)
    epochs: int = hyperparameter(1, "passes over each batch", low=1)
    minibatches: int = hyperparameter(1, "optimizer steps in one pass", low=1)
    minibatch_of: Literal["rows", "steps"] = hyperparameter(
        "rows", "what is shuffled into minibatches: whole rows, or single steps where a policy sees one at a time"
    )
    normalize_advantage: bool = hyperparameter(False, "scale advantages to mean 0 and variance 1 in each minibatch")
    max_grad_norm: float = hyperparameter(1.0, "global norm at which gradients are clipped, per model", above=0)
    joint_clip: bool = hyperparameter(False, "clip policy and critic by one norm over both")
    weight_decay: float = hyperparameter(0.0, "AdamW weight decay", low=0)
    adam_epsilon: float = hyperparameter(1e-8, "Adam's epsilon", above=0)
    adam_form: Literal["torch", "tensorflow"] = hyperparameter(
        "torch", "tensorflow adds epsilon to the uncorrected second moment, as lm-human-preferences did"
    )
    max_logprob_gap: float | None = hyperparameter(
        None,
        "stop where sampler and trainer disagree on a log-probability by more before the first update; none is 0.2, "
        "in bfloat16 2",
        low=0,
    )
    target_kl: float | None = hyperparameter(
        None, "stop the epochs when the approximate KL per token exceeds this", above=0
    )

    def optimizers(self, run_state: Any) -> dict[str, AdamW]:
        """One AdamW for each trained model."""
        rates = {"policy": self.learning_rate, "critic": self.critic_learning_rate}
        found: dict[str, AdamW] = {}
        for model, named in run_state.parameters().items():
            how: dict[str, Any] = {"eps": self.adam_epsilon, "weight_decay": self.weight_decay, "betas": (0.9, 0.999)}
            how["lr"] = rates.get(model, self.learning_rate)
            parameters = [parameter for _, parameter in named]
            if len(parameters) == 1 and parameters[0].device.type == "cpu":
                found[model] = VectorAdamW(parameters[0], **how)
            else:
                found[model] = torch.optim.AdamW(parameters, fused=True, **how)
        return found

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Improve the models on one batch; metrics go to the context.

        Raises:
            NonFinite: a term's loss or a gradient is NaN or infinite. The step is not taken.
        """
        wants = frozenset[str]().union(*(t.wants for t in terms))
        if "logprob" in wants and "behaviour_logprob" in experience:
            wants |= {"entropy"}  # nearly free beside the log-probabilities, and worth watching
        closed = None
        if self.minibatch_of == "steps":
            if context.run_state.reads:  # what nobody reads need not be carried through every epoch
                needs = frozenset[str]().union(*(t.required() for t in terms))
                experience = experience.only(context.run_state.reads | needs | OFTEN_READ)
            experience = experience.steps()
            alone = not self.also  # else it is autograd's gradients that theirs are added to
            if alone and not any(t.grouped_by for t in terms) and "value_weight" not in experience:
                closed = context.run_state.closed_form(wants)
        rows = steps_that_count(terms, experience).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            context.log(updates__skipped=1)
            return
        self.set_rates(context)
        context.log(learning_rate=self._rate(context))
        unit, grouped_by = units_of(experience, terms)
        units = torch.unique(unit[rows])
        means, seen = Means(), list[tuple[Experience, dict[str, Tensor]]]()
        minibatches: list[_Minibatch] = []
        for epoch in range(self.epochs):
            before = means.so_far("approx_kl")
            if closed is None or self.minibatches > 1 or epoch == 0:  # of a single minibatch there is no order
                order = units[torch.randperm(len(units), generator=context.generator("minibatches", epoch))]
            if closed is not None:
                if self.minibatches > 1 or epoch == 0:
                    minibatches = self._minibatches(terms, experience.rows(order))
                with torch.no_grad():
                    for minibatch in minibatches:
                        outputs = self._step_in_closed_form(terms, wants, minibatch, closed, means, context)
                        seen.append((minibatch.rows, outputs))
                if self.target_kl is not None or epoch + 1 == self.epochs:
                    self._add_statistics_of(terms, seen, means)
                    seen = []
            else:
                for picked in order.tensor_split(self.minibatches):
                    if len(picked) == 0:
                        continue
                    batch = experience.rows(rows_of_units(picked, unit, rows) if grouped_by else picked)
                    if self.normalize_advantage and "advantage" in batch:
                        batch = batch.with_fields(advantage=whiten(batch["advantage"], batch["weight"] != 0))
                    self._accumulate(terms, wants, batch, grouped_by, means, context)
                    if bool((batch["weight"] != 0).any()):
                        for on in self.also:
                            self._join(on, means, context)
                    add_gradients(*context.optimizer.values())
                    self._step(means, context)
            if self.target_kl is not None and means.since("approx_kl", before) > self.target_kl:
                break
        context.metrics.update(means.found())
        for term in terms:
            term.on_update_end(context.metrics, context)

    @property
    def also(self) -> tuple[On, ...]:
        """Terms on rows of their own (`OwnRows`), whose gradients join those of every minibatch, as in `Update.also`.

        A subclass says them; none here. Where nothing of a minibatch counts for the policy, they do not either.
        """
        return ()

    def _join(self, on: On, means: Means, context: Context) -> None:
        """Add the gradients of terms on rows of their own; what they come to is logged by the rows' name."""
        assert isinstance(on.batch, OwnRows)
        batch, state = on.batch.rows(context), context.run_state
        for part in on.credit:
            batch = part(batch, context)
        weights = [term.step_weights(batch) for term in on.terms]
        grouped_by = next((term.grouped_by for term in on.terms if term.grouped_by), "")
        wants, loss = frozenset[str]().union(*(term.wants for term in on.terms)), 0.0
        with pooled(means, context) as own:
            for index in present().share(state.micro_batches(batch, grouped_by, shared=False)):
                micro = batch.rows(index)
                outputs, counted = state.outputs(micro, wants), steps_that_count(on.terms, micro)
                outputs, micro = blanked(outputs, counted), micro.with_fields(**blanked(micro.data, counted))
                parts = [(t.loss(outputs, micro) * w[index]).sum() for t, w in zip(on.terms, weights, strict=True)]
                total = torch.stack(parts).sum()
                total.backward()  # type: ignore[no-untyped-call]
                loss += total.item()
            own.add(f"loss/{on.batch.name}", loss, float(present().first))
            if not math.isfinite(loss):
                self._blame({on.batch.name: loss}, context)

    def _minibatches(self, terms: tuple[Term, ...], table: Experience) -> list[_Minibatch]:
        """Runs of `table`'s rows, shuffled steps that all count, with their advantages and weights made ready."""
        found = []
        for rows in table.split(min(self.minibatches, len(table))):
            if self.normalize_advantage and "advantage" in rows:
                own = rows["weight"] != 0  # others are here for a term that counts them
                rows = rows.with_fields(advantage=whiten(rows["advantage"], None if bool(own.all()) else own))
            weights: dict[Any, Tensor] = {}
            # a term that weighs steps in a way of its own shares with nobody, whatever it calls its averaging
            keys = [
                term.averaging if _weighs_like_others(term) else (index, term.averaging)
                for index, term in enumerate(terms)
            ]
            for key, term in zip(keys, terms, strict=True):
                if key not in weights:
                    weights[key] = term.step_weights(rows)
            found.append(_Minibatch(rows, [weights[key] for key in keys]))
        return found

    def _step_in_closed_form(
        self,
        terms: tuple[Term, ...],
        wants: frozenset[str],
        minibatch: _Minibatch,
        closed: ClosedForm,
        means: Means,
        context: Context,
    ) -> dict[str, Tensor]:
        """Take one step without autograd; return the outputs that it started from."""
        rows = minibatch.rows
        outputs = closed.forward(rows, wants)
        if not context.params_updated and "behaviour_logprob" in rows:
            check_logprob_gap(outputs["logprob"], rows, self.max_logprob_gap, context)
        if not context.compared:
            for term, weights in zip(terms, minibatch.weights, strict=True):
                compare_with_autograd(term, outputs, rows, weights)
            context.compared = True
        grad_outputs: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        for term, weights in zip(terms, minibatch.weights, strict=True):
            part, found = term.grad_outputs(outputs, rows, weights)
            parts.append(part)
            for name, grad_output in found.items():
                grad_outputs[name] = grad_outputs[name] + grad_output if name in grad_outputs else grad_output
        self._add_losses(terms, parts, means, 1.0, context)
        closed.backward(grad_outputs)
        self._step(means, context)
        return outputs

    def _add_statistics_of(
        self, terms: tuple[Term, ...], seen: list[tuple[Experience, dict[str, Tensor]]], means: Means
    ) -> None:
        """Log what is watched over many small minibatches of steps, all at once."""
        first, outputs = seen[0]
        fields = {
            name: torch.cat([batch[name] for batch, _ in seen]) for name in first.fields() if first[name].dim() < 3
        }
        table = Experience(fields)
        grouped_by = {name: torch.cat([found[name] for _, found in seen]) for name in outputs}
        with torch.no_grad():
            self._add_statistics(terms, grouped_by, table, table["weight"] != 0, means)

    def _accumulate(
        self,
        terms: tuple[Term, ...],
        wants: frozenset[str],
        batch: Experience,
        grouped_by: str,
        means: Means,
        context: Context,
    ) -> None:
        """Add the gradients of one minibatch, a micro-batch at a time."""
        context.run_state.zero_gradients()
        scaled = [term.step_weights(batch) for term in terms]  # global counts, before the split
        # a term for which nothing counts here is left out, and with it the model that it alone reads
        active = [i for i, weights in enumerate(scaled) if bool((weights != 0).any())]
        terms, scaled = tuple(terms[i] for i in active), [scaled[i] for i in active]
        if not terms:
            return
        wanted = frozenset[str]().union(*(t.wants for t in terms))
        if "logprob" in wanted:
            wanted |= wants & {"entropy"}
        first = float(present().first)
        with pooled(means, context) as own_means, context.run_state.updating(batch, wanted) as forward:
            for index in present().share(context.run_state.micro_batches(batch, grouped_by)):
                micro, outputs = batch.rows(index), forward(index)
                counted = steps_that_count(terms, micro)
                if not bool(counted.all()):
                    # what stands at a step that does not count must reach neither a sum nor a gradient: 0 * inf is NaN
                    outputs = blanked(outputs, counted)
                    micro = micro.with_fields(**blanked(micro.data, counted))
                chosen = micro["weight"] != 0
                if not context.params_updated and "behaviour_logprob" in micro and "logprob" in outputs:
                    check_logprob_gap(outputs["logprob"], micro, self.max_logprob_gap, context)
                parts: list[Tensor] = []
                for term, weights in zip(terms, scaled, strict=True):
                    losses = term.loss(outputs, micro)
                    weighted = losses * weights[index]
                    own = term.weights(micro) != 0
                    mask = own if losses.dim() == 2 else own.any(1)
                    parts.append(torch.where(mask, weighted, torch.zeros_like(weighted)).sum())
                self._add_losses(terms, parts, own_means, first, context)
                first = 0.0  # an average already, of which every micro-batch adds its part
                with torch.no_grad():
                    self._add_statistics(terms, {k: x.detach() for k, x in outputs.items()}, micro, chosen, own_means)
                torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]

    def _add_losses(
        self, terms: tuple[Term, ...], parts: list[Tensor], means: Means, count: float, context: Context
    ) -> None:
        """Log what each term came to, and their sum; stop where it is not finite."""
        by_name: dict[str, float] = {}
        for term, value in zip(terms, torch.stack(parts).tolist(), strict=True):
            by_name[term.name] = by_name.get(term.name, 0.0) + value
        for name, value in by_name.items():
            means.add(f"loss/{name}", value, count)
        total = sum(by_name.values())
        means.add("loss", total, count)
        if not math.isfinite(total):
            self._blame(by_name, context)

    def _add_statistics(
        self, terms: tuple[Term, ...], outputs: dict[str, Tensor], rows: Experience, counted: Tensor, means: Means
    ) -> None:
        """Log what is watched beside the losses, over the steps `[B, T]` or rows `[B]` that count."""
        size = float(counted.sum())
        if "behaviour_logprob" in rows and "logprob" in outputs and size:
            log_ratio = (outputs["logprob"] - rows["behaviour_logprob"]) * counted
            means.add("approx_kl", kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3").sum().item(), size)
        for term in terms:
            own = counted if term.weights(rows) is rows["weight"] else term.weights(rows) != 0
            for key, value in term.statistics(outputs, rows).items():
                mask = own if value.dim() == 2 else own.any(1)
                means.add(key, (value * mask).sum().item(), float(mask.sum()))
        if "entropy" in outputs and size:
            means.add("entropy", (outputs["entropy"] * counted).sum().item(), size)

    def _blame(self, losses: dict[str, float], context: Context) -> None:
        bad = next((name for name, value in losses.items() if not math.isfinite(value)), "")
        name, value = (f"term '{bad}'", losses[bad]) if bad else ("the sum of terms", math.inf)
        raise NonFinite(
            f"The loss of {name} became {value} in iteration {context.iteration}, so the run stopped before "
            "the step; lower the learning rate or look at that term's inputs with `polyrl trace`."
        )

    def _step(self, means: Means, context: Context) -> None:
        """Clip each model's gradients by their norm and take the optimizer steps."""
        models = {
            name: [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            for name, optimizer in context.optimizer.items()
        }
        if self.joint_clip:
            models = {"joint": [gradient for gradients in models.values() for gradient in gradients]}
        for name, gradients in models.items():
            size = _norm(gradients)
            if not math.isfinite(size):
                raise NonFinite(
                    f"The gradient of the {' and '.join(context.optimizer) if self.joint_clip else name} became "
                    f"{size} in iteration {context.iteration}, so the run "
                    "stopped before the step; lower the learning rate or the spread of the rewards."
                )
            means.add(f"grad_norm/{name}", size, 1.0)
            if size > self.max_grad_norm:
                for gradient in gradients:
                    gradient.mul_(self.max_grad_norm / (size + 1e-6))
        context.params_updated = True
        optimizers = [*context.optimizer.values()]
        if self.adam_form == "tensorflow":
            for optimizer in optimizers:
                self._rescale_epsilon(optimizer)
        if len(optimizers) > 1 and all(isinstance(o, VectorAdamW) and _alike(o, optimizers[0]) for o in optimizers):
            step_together(optimizers)
        else:
            for optimizer in optimizers:
                optimizer.step()
        context.spent.updates += 1

    def _rescale_epsilon(self, optimizer: AdamW) -> None:
        """TensorFlow's Adam is PyTorch's with eps / sqrt(1 - beta2^t): there eps joins the uncorrected moment."""
        for group in optimizer.param_groups:
            state = optimizer.state.get(group["params"][0], {})
            step = float(state.get("step", 0)) + 1
            group["eps"] = self.adam_epsilon / math.sqrt(1 - group["betas"][1] ** step)

    def follows_budget(self) -> tuple[str, ...]:
        """Schedules that are not constant, and warm-ups."""
        found = [n for n in ("schedule", "critic_schedule") if getattr(self, n) not in ("constant", None)]
        return (*found, *(n for n in ("warmup", "critic_warmup") if getattr(self, n)))

    def set_rates(self, context: Context) -> None:
        """Set the learning rates of this iteration's steps, which are the same for all of them."""
        critic = self._factor(self.critic_schedule or self.schedule, self.critic_warmup, context)
        rates = {"critic": self.critic_learning_rate * critic}
        for name, optimizer in context.optimizer.items():
            for group in optimizer.param_groups:
                group["lr"] = rates.get(name, self._rate(context))

    def _rate(self, context: Context) -> float:
        return self.learning_rate * self._factor(self.schedule, self.warmup, context)

    def _factor(self, kind: Schedule, warmup: float | None, context: Context) -> float:
        step = context.iteration_share(self.epochs * self.minibatches)
        return schedule_factor(kind, context.schedule_progress, self.warmup if warmup is None else warmup, step)
