"""Stage 5, improve: objective terms, how each is averaged over steps, and the optimiser.

Papers differ exactly in the averaging, so every term states its `aggregation`. Averages are taken once over the whole
minibatch (global counts); a micro-batch only splits the sum, so its size never changes a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.experience import Experience
from polyrl.parts.credit import masked_mean
from polyrl.parts.score import KLEstimator, kl_estimate
from polyrl.recipe import Part, Stage, Term, knob
from polyrl.runtime.context import Context

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
AGGREGATION_HELP = "how steps are averaged: token-mean, seq-mean-token-mean, seq-mean-token-sum or constant"

# ---------------------------------------------------------------------------------------------- pure functions


def aggregation_weights(weight: Tensor, how: Aggregation, length_limit: Tensor | None = None) -> Tensor:
    """Weights that turn the sum of step losses into the average `how` (card grpo, rule C).

    Args:
        weight: `[B, T]` float, how much each step counts (0 leaves it out).
        how: "token-mean": over all counted steps; "seq-mean-token-mean": over each sequence, then over sequences;
            "seq-mean-token-sum": summed in each sequence, then the mean of sequences; "constant": summed, divided by
            sequences times `length_limit` (Dr. GRPO, arXiv:2503.20783).
        length_limit: `[B]` longest possible response, steps; only for "constant".

    Returns:
        `[B, T]` float. Sequences without any counted step are not counted as sequences.
    """
    per_sequence = weight.sum(1, keepdim=True)
    sequences = (per_sequence > 0).sum().clamp(min=1)
    if how == "token-mean":
        return weight / per_sequence.sum().clamp(min=1e-12)
    if how == "seq-mean-token-mean":
        return weight / per_sequence.clamp(min=1e-12) / sequences
    if how == "seq-mean-token-sum":
        return weight / sequences
    if length_limit is None:
        raise ValueError("the constant aggregation needs length_limit")
    return weight / (sequences * length_limit[:, None])


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """PPO's loss per step, -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (arXiv:1707.06347, equation 7).

    `dual_clip` caps the loss of negative advantages at -dual_clip * A (arXiv:1912.09729, equation 5). Any shape.
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    if dual_clip is not None:
        loss = torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)
    return loss


def value_loss(
    value: Tensor, target: Tensor, old_value: Tensor | None = None, clip_range: float | None = None
) -> Tensor:
    """Half the squared error, with PPO's optional clip of the value's move (the "37 details", detail 9). Any shape.

    `clip_range` is in units of return: a small one freezes a critic whose returns are large.
    """
    loss = (value - target).square()
    if clip_range is not None and old_value is not None:
        clipped = old_value + (value - old_value).clamp(-clip_range, clip_range)
        loss = torch.maximum(loss, (clipped - target).square())
    return loss / 2


# ------------------------------------------------------------------------------------------------------- terms


@dataclass(frozen=True, kw_only=True)
class Averaged(Term):
    """A term whose average is one of the four standard ones."""

    aggregation: Aggregation = knob("token-mean", AGGREGATION_HELP)

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B, T]` weights of this term's aggregation over all rows given."""
        limit = experience["length_limit"].float() if "length_limit" in experience else None
        return aggregation_weights(experience["weight"], self.aggregation, limit)


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate(Averaged):
    """Raise the probability of good actions, but not where the ratio has left the clip range in their favour."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    clip_range: float = knob(0.2, "how far the probability ratio may fall below 1 before its gradient stops", above=0)
    clip_range_high: float | None = knob(None, "the same above 1; none takes clip_range (DAPO: 0.28)", above=0)
    dual_clip: float | None = knob(None, "cap on the ratio where the advantage is negative; none is off", above=1)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Clipped surrogate of every step, `[B, T]`."""
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        return clipped_surrogate(ratio, experience["advantage"], self.clip_range, high, self.dual_clip)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Share of steps whose gradient the clip stopped, and the mean ratio."""
        ratio, advantage = torch.exp(outputs["logprob"] - experience["behaviour_logprob"]), experience["advantage"]
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        stopped = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - self.clip_range) & (advantage < 0))
        return {"clip_ratio": stopped.float(), "ratio": ratio}


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Averaged):
    """Plain policy gradient: -advantage * log-probability, with no ratio and no clip; for one update per batch."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "weight"})

    aggregation: Aggregation = knob("seq-mean-token-sum", AGGREGATION_HELP)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-A log pi of every step, `[B, T]`."""
        return -experience["advantage"] * outputs["logprob"]


@dataclass(frozen=True, kw_only=True)
class ValueLoss(Averaged):
    """Move the critic towards its targets."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value", "value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})
    models: ClassVar[frozenset[str]] = frozenset({"critic"})

    value_coef: float = knob(0.5, "weight of the value loss (which itself is half the squared error)", low=0)
    value_clip_range: float | None = knob(None, "clip of the value's move, in units of return; none is off", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted value loss of every step, `[B, T]`."""
        return self.value_coef * value_loss(
            outputs["value"], experience["value_target"], experience["value"], self.value_clip_range
        )


@dataclass(frozen=True, kw_only=True)
class EntropyBonus(Averaged):
    """Reward the policy for staying random."""

    slot: ClassVar[str] = "entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"entropy"})

    entropy_coef: float = knob(0.01, "weight of the entropy, in loss per nat", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Minus the weighted entropy of every step, `[B, T]`."""
        return -self.entropy_coef * outputs["entropy"]


@dataclass(frozen=True, kw_only=True)
class ReferenceKL(Averaged):
    """Stay near the reference policy: a KL estimate in the loss, differentiated through the present policy.

    On-policy the expected gradient of k1 is zero, of k2 that of KL(pi || ref), of k3 that of KL(ref || pi).
    """

    slot: ClassVar[str] = "kl-in-loss"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    kl_loss_coef: float = knob(0.0, "weight of the KL term; 0 is off and needs no reference", low=0)
    kl_estimator: KLEstimator = knob("k3", "k1, k2 or k3: which function of the log-ratio is differentiated")

    def required(self) -> frozenset[str]:
        """The reference is needed only where the term is on."""
        return self.needs | ({"ref_logprob"} if self.kl_loss_coef else set())

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted KL estimate of every step, `[B, T]`."""
        if not self.kl_loss_coef:
            return torch.zeros_like(outputs["logprob"])
        return self.kl_loss_coef * kl_estimate(outputs["logprob"], experience["ref_logprob"], self.kl_estimator)


@dataclass(frozen=True, kw_only=True)
class NLL(Averaged):
    """Imitate: negative log-likelihood of the counted actions."""

    slot: ClassVar[str] = "nll"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    nll_coef: float = knob(1.0, "weight of the negative log-likelihood", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted -log pi of every step, `[B, T]`."""
        return -self.nll_coef * outputs["logprob"]


# --------------------------------------------------------------------------------------------------- optimiser


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

    learning_rate: float = knob(3e-4, "AdamW step size of the policy", low=0)
    critic_learning_rate: float = knob(1e-3, "AdamW step size of the critic", low=0)
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


__all__ = [
    "NLL",
    "Aggregation",
    "Averaged",
    "ClippedSurrogate",
    "EntropyBonus",
    "NonFinite",
    "Optimise",
    "PolicyGradient",
    "ReferenceKL",
    "ValueLoss",
    "aggregation_weights",
    "clipped_surrogate",
    "masked_mean",
    "schedule_factor",
    "value_loss",
]
