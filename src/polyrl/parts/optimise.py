"""Stage 5, improve: the optimiser that takes gradient steps on the sum of the terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.errors import NotFinite, UserError
from polyrl.experience import Experience
from polyrl.parts.credit import whiten
from polyrl.parts.score import kl_estimate
from polyrl.recipe import Improver, Term, knob
from polyrl.runtime.context import Context


def schedule_factor(kind: str, progress: float, warmup: float) -> float:
    """Learning-rate factor at a share `progress` of the budget: linear warm-up, then constant, linear or cosine."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    left = (progress - warmup) / max(1 - warmup, 1e-12)
    if kind == "linear":
        return 1 - left
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * left))
    return 1.0


def _units(experience: Experience, terms: tuple[Term, ...]) -> tuple[Tensor, str]:
    """What minibatches are made of, `[B]` numbers from 0 (rows of equal number stay together), and the field's name."""
    fields = {t.together for t in terms if t.together}
    if not fields:
        return torch.arange(len(experience)), ""
    if len(fields) > 1:
        raise UserError(f"The objective's terms keep rows together by different fields: {', '.join(sorted(fields))}.")
    name = fields.pop()
    return torch.unique(experience[name], return_inverse=True)[1], name


def _rows_of(picked: Tensor, unit: Tensor, rows: Tensor) -> Tensor:
    """The numbers among `rows` whose unit is one of `picked`."""
    return rows[torch.isin(unit[rows], picked)]


def _blanked(fields: dict[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """The same tensors, those that are float of shape `[B, T]` with 0 where not `counted`."""
    return {
        name: torch.where(counted, x, torch.zeros_like(x)) if x.shape == counted.shape and x.is_floating_point() else x
        for name, x in fields.items()
    }


class NonFinite(NotFinite):
    """A loss or gradient became NaN or infinite; names the culprit."""


@dataclass(frozen=True, kw_only=True)
class Optimise(Improver):
    """Take AdamW steps on the sum of the terms: epochs over shuffled minibatches, gradients clipped by global norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    learning_rate: float = knob(1e-4, "AdamW step size of the policy", low=0, high=1e37)
    critic_learning_rate: float = knob(1e-3, "AdamW step size of the critic", low=0, high=1e37)
    schedule: Literal["constant", "linear", "cosine"] = knob("constant", "learning rate over the budget")
    warmup: float = knob(0.0, "share of the budget over which the learning rate rises", low=0, high=1)
    epochs: int = knob(1, "passes over each batch", low=1)
    minibatches: int = knob(1, "optimiser steps in one pass", low=1)
    minibatch_of: Literal["rows", "steps"] = knob(
        "rows", "what is shuffled into minibatches: whole rows, or single steps where a policy sees one at a time"
    )
    normalise_advantage: bool = knob(False, "scale advantages to mean 0 and variance 1 in each minibatch")
    max_grad_norm: float = knob(1.0, "global norm at which gradients are clipped, per model", above=0)
    joint_clip: bool = knob(False, "clip policy and critic by one norm over both")
    weight_decay: float = knob(0.0, "AdamW weight decay", low=0)
    adam_epsilon: float = knob(1e-8, "Adam's epsilon", above=0)
    adam_form: Literal["torch", "tensorflow"] = knob(
        "torch", "tensorflow adds epsilon to the uncorrected second moment, as lm-human-preferences did"
    )
    target_kl: float | None = knob(None, "stop the epochs when the approximate KL per token exceeds this", above=0)

    def optimisers(self, world: Any) -> dict[str, torch.optim.AdamW]:
        """One AdamW for each trained model."""
        rates = {"policy": self.learning_rate, "critic": self.critic_learning_rate}
        return {
            model: torch.optim.AdamW(
                [parameter for _, parameter in named],
                lr=rates.get(model, self.learning_rate),
                eps=self.adam_epsilon,
                weight_decay=self.weight_decay,
                betas=(0.9, 0.999),
            )
            for model, named in world.parameters().items()
        }

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Improve the models on one batch; metrics go to the context.

        Raises:
            NonFinite: a term's loss or a gradient is NaN or infinite. The step is not taken.
        """
        if self.minibatch_of == "steps":
            experience = experience.steps()
        rows = (experience["weight"] != 0).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            context.log(updates__skipped=1)
            return
        unit, together = _units(experience, terms)
        units = torch.unique(unit[rows])
        wants = frozenset[str]().union(*(t.wants for t in terms))
        if "logprob" in wants and "behaviour_logprob" in experience:
            wants |= {"entropy"}  # nearly free beside the log-probabilities, and worth watching
        sums, counts = dict[str, Tensor](), dict[str, float]()
        norms: dict[str, list[Tensor]] = {}
        steps = 0
        self._set_rates(context)
        for epoch in range(self.epochs):
            order = units[torch.randperm(len(units), generator=context.generator("minibatches", epoch))]
            kl_before = sums.get("approx_kl", torch.zeros(())), counts.get("approx_kl", 0.0)
            for picked in order.tensor_split(self.minibatches):
                if len(picked) == 0:
                    continue
                batch = experience.rows(_rows_of(picked, unit, rows) if together else picked)
                if self.normalise_advantage:
                    batch = batch.with_fields(advantage=whiten(batch["advantage"], batch["weight"] != 0))
                for key, (value, n) in self._accumulate(terms, wants, batch, together, context).items():
                    sums[key] = sums.get(key, torch.zeros(())) + value
                    counts[key] = counts.get(key, 0.0) + n
                for name, norm in self._step(context).items():
                    norms.setdefault(name, []).append(norm)
                steps += 1
            if self.target_kl is not None and "approx_kl" in sums:
                moved = float(sums["approx_kl"] - kl_before[0]) / max(counts["approx_kl"] - kl_before[1], 1.0)
                if moved > self.target_kl:
                    break
        context.spent.updates += steps
        for key, value in sums.items():
            context.metrics[key] = float(value) / max(counts[key], 1.0)
        for name, values in norms.items():
            context.metrics[f"grad_norm/{name}"] = float(torch.stack(values).mean())
        for term in terms:
            term.updated(context.metrics, context)

    def _accumulate(
        self, terms: tuple[Term, ...], wants: frozenset[str], batch: Experience, together: str, context: Context
    ) -> dict[str, tuple[Tensor, float]]:
        """Add the gradients of one minibatch, a micro-batch at a time; return what to log: its sum and count."""
        for optimiser in context.optimiser.values():
            optimiser.zero_grad(set_to_none=True)
        scaled = [term.step_weights(batch) for term in terms]  # global counts, before the split
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {}

        def add(key: str, value: Tensor, count: float = 0.0) -> None:
            sums[key] = sums.get(key, torch.zeros(())) + value.detach().cpu()
            counts[key] = counts.get(key, 0.0) + count

        for index in context.world.micro_batches(batch, together):
            whole = len(index) == len(batch)
            micro = batch if whole else batch.rows(index)
            counted = micro["weight"] != 0
            outputs = context.world.outputs(micro, wants)
            if not bool(counted.all()):
                # what stands at a step that does not count must reach neither a sum nor a gradient: 0 * inf is NaN
                outputs = _blanked(outputs, counted)
                micro = micro.with_fields(**_blanked({name: micro[name] for name in micro.fields()}, counted))
            masks = {1: counted.any(1), 2: counted}
            sizes = {dim: float(mask.sum()) for dim, mask in masks.items()}
            if "behaviour_logprob" in micro and "logprob" in outputs:
                log_ratio = (outputs["logprob"].detach() - micro["behaviour_logprob"]) * counted
                add("approx_kl", kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3").sum(), sizes[2])
                if not context.touched:
                    # before the first step sampler and trainer are the same policy: a gap is an error of one of them
                    gap = max(context.metrics.get("logprob_gap", 0.0), float(log_ratio.abs().max()))
                    context.metrics["logprob_gap"] = gap
            total = torch.zeros(())
            for term, weights in zip(terms, scaled, strict=True):
                losses = term.loss(outputs, micro)
                weighted = losses * (weights if whole else weights[index])
                part = torch.where(masks[losses.dim()], weighted, torch.zeros_like(weighted)).sum()
                add(f"loss/{term.name}", part)
                total = total + part
                for key, value in term.statistics(outputs, micro).items():
                    add(key, (value.detach() * masks[value.dim()]).sum(), sizes[value.dim()])
            if "entropy" in outputs:
                add("entropy", (outputs["entropy"].detach() * counted).sum(), sizes[2])
            add("loss", total)
            if not bool(torch.isfinite(total)):
                self._blame(terms, sums, context)
            total.backward()  # type: ignore[no-untyped-call]
        # losses are averages already: one for each minibatch
        return {key: (value, 1.0 if key.startswith("loss") else counts[key]) for key, value in sums.items()}

    def _blame(self, terms: tuple[Term, ...], measured: dict[str, Tensor], context: Context) -> None:
        bad = [t.name for t in terms if not bool(torch.isfinite(measured[f"loss/{t.name}"]))] or ["the sum of terms"]
        value = float(measured.get(f"loss/{bad[0]}", torch.tensor(math.nan)))
        raise NonFinite(
            f"The loss of term '{bad[0]}' became {value} in iteration {context.iteration}, so the run stopped before "
            "the step; lower the learning rate or look at that term's inputs with `polyrl trace`."
        )

    def _step(self, context: Context) -> dict[str, Tensor]:
        """Clip each model's gradients and take the optimiser steps; return the norms before clipping."""
        norms: dict[str, Tensor] = {}
        models = {
            name: [p for group in optimiser.param_groups for p in group["params"]]
            for name, optimiser in context.optimiser.items()
        }
        if self.joint_clip:
            models = {"joint": [p for parameters in models.values() for p in parameters]}
        for name, parameters in models.items():
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            if not bool(torch.isfinite(norm)):
                raise NonFinite(
                    f"The gradient of the {' and '.join(context.optimiser) if self.joint_clip else name} became "
                    f"{float(norm)} in iteration {context.iteration}, so the run "
                    "stopped before the step; lower the learning rate or the spread of the rewards."
                )
            norms[name] = norm
        context.touched = True
        for optimiser in context.optimiser.values():
            if self.adam_form == "tensorflow":
                self._rescale_epsilon(optimiser)
            optimiser.step()
        return norms

    def _rescale_epsilon(self, optimiser: torch.optim.AdamW) -> None:
        """TensorFlow's Adam is PyTorch's with eps / sqrt(1 - beta2^t): there eps joins the uncorrected moment."""
        for group in optimiser.param_groups:
            state = optimiser.state.get(group["params"][0], {})
            step = float(state.get("step", 0)) + 1
            group["eps"] = self.adam_epsilon / math.sqrt(1 - group["betas"][1] ** step)

    def _set_rates(self, context: Context) -> None:
        factor = schedule_factor(self.schedule, context.progress, self.warmup)
        rates = {"policy": self.learning_rate, "critic": self.critic_learning_rate}
        for name, optimiser in context.optimiser.items():
            for group in optimiser.param_groups:
                group["lr"] = rates.get(name, self.learning_rate) * factor
        context.log(learning_rate=self.learning_rate * factor)
