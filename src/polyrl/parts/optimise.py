"""Stage 5, improve: the optimiser that takes gradient steps on the sum of the terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.experience import Experience
from polyrl.parts.score import kl_estimate
from polyrl.recipe import Part, Stage, Term, knob
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


def _blanked(fields: dict[str, Tensor], counted: Tensor) -> dict[str, Tensor]:
    """The float fields of shape `[B, T]`, 0 where not `counted`."""
    return {
        name: torch.where(counted, x, torch.zeros_like(x))
        for name, x in fields.items()
        if x.shape == counted.shape and x.is_floating_point()
    }


class NonFinite(UserError):
    """A loss or gradient became NaN or infinite; names the culprit."""


@dataclass(frozen=True, kw_only=True)
class Optimise(Part):
    """Take AdamW steps on the sum of the terms: epochs over shuffled minibatches, gradients clipped by global norm."""

    stage: ClassVar[Stage] = "improve"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    learning_rate: float = knob(1e-4, "AdamW step size of the policy", low=0, high=1e37)
    critic_learning_rate: float = knob(1e-3, "AdamW step size of the critic", low=0, high=1e37)
    schedule: Literal["constant", "linear", "cosine"] = knob("constant", "learning rate over the budget")
    warmup: float = knob(0.0, "share of the budget over which the learning rate rises", low=0, high=1)
    epochs: int = knob(1, "passes over each batch", low=1)
    minibatches: int = knob(1, "optimiser steps in one pass", low=1)
    max_grad_norm: float = knob(1.0, "global norm at which gradients are clipped, per model", above=0)
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
                lr=rates[model],
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
        rows = (experience["weight"] != 0).any(1).nonzero()[:, 0]
        if len(rows) == 0:
            context.log(updates__skipped=1)
            return
        wants = frozenset({"logprob", "entropy"}).union(*(t.wants for t in terms))
        sums: dict[str, Tensor] = {}
        count, steps = 0.0, 0
        norms: dict[str, list[Tensor]] = {}
        self._set_rates(context)
        for epoch in range(self.epochs):
            order = rows[torch.randperm(len(rows), generator=context.generator("minibatches", epoch))]
            kl_sum, kl_count = torch.zeros(()), 0.0
            for picked in order.tensor_split(self.minibatches):
                if len(picked) == 0:
                    continue
                batch = experience.rows(picked)
                measured, n = self._accumulate(terms, wants, batch, context)
                for name, norm in self._step(context).items():
                    norms.setdefault(name, []).append(norm)
                steps += 1
                count += n
                for key, value in measured.items():
                    sums[key] = sums.get(key, torch.zeros(())) + value
                kl_sum, kl_count = kl_sum + measured.get("approx_kl", torch.zeros(())), kl_count + n
            if self.target_kl is not None and float(kl_sum) / max(kl_count, 1.0) > self.target_kl:
                break
        context.spent.updates += steps
        for key, value in sums.items():
            context.metrics[key] = float(value) / (steps if key.startswith("loss") else max(count, 1.0))
        for name, values in norms.items():
            context.metrics[f"grad_norm/{name}"] = float(torch.stack(values).mean())

    def _accumulate(
        self, terms: tuple[Term, ...], wants: frozenset[str], batch: Experience, context: Context
    ) -> tuple[dict[str, Tensor], float]:
        """Add the gradients of one minibatch, a micro-batch at a time; return sums to log and the count of steps."""
        for optimiser in context.optimiser.values():
            optimiser.zero_grad(set_to_none=True)
        scaled = [term.step_weights(batch) for term in terms]  # global counts, before the split
        measured: dict[str, Tensor] = {}

        def add(key: str, value: Tensor) -> None:
            measured[key] = measured.get(key, torch.zeros(())) + value.detach().cpu()

        for index in context.world.micro_batches(batch):
            micro = batch.rows(index)
            counted = micro["weight"] != 0
            # what stands at a step that does not count must reach neither a sum nor a gradient: 0 * inf is NaN
            outputs = _blanked(context.world.outputs(micro, wants), counted)
            micro = micro.with_fields(**_blanked({name: micro[name] for name in micro.fields()}, counted))
            if "behaviour_logprob" in micro:
                log_ratio = (outputs["logprob"].detach() - micro["behaviour_logprob"]) * counted
                add("approx_kl", kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3").sum())
                if not context.touched:
                    # before the first step sampler and trainer are the same policy: a gap is an error of one of them
                    gap = max(context.metrics.get("logprob_gap", 0.0), float(log_ratio.abs().max()))
                    context.metrics["logprob_gap"] = gap
            total = torch.zeros(())
            for term, weights in zip(terms, scaled, strict=True):
                steps = term.loss(outputs, micro)
                part = torch.where(counted, steps * weights[index], torch.zeros_like(steps)).sum()
                add(f"loss/{term.name}", part)
                total = total + part
                for key, value in term.statistics(outputs, micro).items():
                    add(key, (value.detach() * counted).sum())
            add("entropy", (outputs["entropy"].detach() * counted).sum())
            add("loss", total)
            if not bool(torch.isfinite(total)):
                self._blame(terms, measured, context)
            total.backward()  # type: ignore[no-untyped-call]
        return measured, float((batch["weight"] != 0).sum())

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
        for name, optimiser in context.optimiser.items():
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            if not bool(torch.isfinite(norm)):
                raise NonFinite(
                    f"The gradient of the {name} became {float(norm)} in iteration {context.iteration}, so the run "
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
                group["lr"] = rates[name] * factor
        context.log(learning_rate=self.learning_rate * factor)
