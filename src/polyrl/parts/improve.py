"""Stage 5, improve: the terms of the objective, and how each is averaged over steps.

Papers differ exactly in the averaging, so every term states its `aggregation`. Averages are taken once over the whole
minibatch (global counts); a micro-batch only splits the sum, so its size never changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.parts.score import KLEstimator, kl_estimate
from polyrl.recipe import Term, hyperparameter

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
AGGREGATION_HELP = "how steps are averaged: token-mean, seq-mean-token-mean, seq-mean-token-sum or constant"

# ---------------------------------------------------------------------------------------------- pure functions


def aggregation_weights(weight: Tensor, how: Aggregation, length_limit: Tensor | None = None) -> Tensor:
    """Weights that turn the sum of step losses into the average `how`; DAPO (arXiv:2503.14476) compares them.

    Args:
        weight: `[B, T]` float, how much each step counts (0 leaves it out).
        how: "token-mean": over all counted steps; "seq-mean-token-mean": over each sequence, then over sequences;
            "seq-mean-token-sum": summed in each sequence, then the mean of sequences; "constant": summed, divided by
            sequences times `length_limit` (Dr. GRPO, arXiv:2503.20783).
        length_limit: `[B]` longest possible response, steps; only for "constant".

    Returns:
        `[B, T]` float. Sequences without any counted step are not counted as sequences.
    """
    if how == "token-mean":
        return weight / weight.sum().clamp(min=1e-12)
    per_sequence = weight.sum(1, keepdim=True)
    sequences = (per_sequence > 0).sum().clamp(min=1)
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
    """PPO's loss a step `[...]`, -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (arXiv:1707.06347, eq. 7).

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

    aggregation: Aggregation = hyperparameter("token-mean", AGGREGATION_HELP)

    @property
    def averaging(self) -> str:
        """The aggregation."""
        return self.aggregation

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B, T]` weights of this term's aggregation over all rows given."""
        limit = experience["length_limit"].float() if "length_limit" in experience else None
        return aggregation_weights(self.weights(experience), self.aggregation, limit)


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate(Averaged):
    """Raise the probability of good actions, but not where the ratio has left the clip range in their favour."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    clip_range: float = hyperparameter(
        0.2, "how far the probability ratio may fall below 1 before its gradient stops", above=0
    )
    clip_range_high: float | None = hyperparameter(
        None, "the same above 1; none takes clip_range (DAPO: 0.28)", above=0
    )
    dual_clip: float | None = hyperparameter(
        None, "cap on the ratio where the advantage is negative; none is off", above=1
    )

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Clipped surrogate of every step, `[B, T]`."""
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        return clipped_surrogate(ratio, experience["advantage"], self.clip_range, high, self.dual_clip)

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-rho A where the minimum takes the unclipped side, 0 where it takes a constant."""
        advantage, high = (
            experience["advantage"],
            self.clip_range if self.clip_range_high is None else self.clip_range_high,
        )
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        gain = ratio * advantage
        least = torch.minimum(gain, ratio.clamp(1 - self.clip_range, 1 + high) * advantage)
        moves = gain <= least
        if self.dual_clip is not None:
            floor = torch.where(advantage < 0, self.dual_clip * advantage, -torch.inf)
            moves &= gain > floor
            least = torch.maximum(least, floor)
        return -(least * weights).sum(), {"logprob": -gain * weights * moves}

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

    aggregation: Aggregation = hyperparameter("seq-mean-token-sum", AGGREGATION_HELP)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-A log pi of every step, `[B, T]`."""
        return -experience["advantage"] * outputs["logprob"]

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-A."""
        grad_output = -experience["advantage"] * weights
        return (grad_output * outputs["logprob"]).sum(), {"logprob": grad_output}


@dataclass(frozen=True, kw_only=True)
class ValueLoss(Averaged):
    """Move the critic towards its targets."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value", "value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})

    value_coef: float = hyperparameter(0.5, "weight of the value loss (which itself is half the squared error)", low=0)
    value_clip_range: float | None = hyperparameter(
        None, "clip of the value's move, in units of return; none is off", above=0
    )

    def weights(self, experience: Experience) -> Tensor:
        """`value_weight` where something chose steps for the critic alone, else `weight`."""
        return experience["value_weight"] if "value_weight" in experience else experience["weight"]

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted value loss of every step, `[B, T]`."""
        return self.value_coef * value_loss(
            outputs["value"], experience["value_target"], experience["value"], self.value_clip_range
        )

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Share of steps whose value has moved out of the clip range, where there is one."""
        if self.value_clip_range is None:
            return {}
        return {"value/clip_ratio": ((outputs["value"] - experience["value"]).abs() > self.value_clip_range).float()}

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted error, where nothing is clipped."""
        if self.value_clip_range is not None:
            return super().grad_outputs(outputs, experience, weights)
        error = outputs["value"] - experience["value_target"]
        grad_output = self.value_coef * weights * error
        return (grad_output * error).sum() / 2, {"value": grad_output}


@dataclass(frozen=True, kw_only=True)
class ValueCrossEntropy(Averaged):
    """Teach the critic chances: its output goes through a sigmoid, and targets in [0, 1] may be soft."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})

    def weights(self, experience: Experience) -> Tensor:
        """`value_weight` where something chose steps for the critic alone, else `weight`."""
        return experience["value_weight"] if "value_weight" in experience else experience["weight"]

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-(y log V + (1 - y) log(1 - V)) of every step, V = sigmoid(output), `[B, T]`."""
        logit = outputs["value"]
        target = experience["value_target"].to(logit.dtype)
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")


@dataclass(frozen=True, kw_only=True)
class EntropyBonus(Averaged):
    """Reward the policy for staying random."""

    slot: ClassVar[str] = "entropy"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"entropy"})

    entropy_coef: float = hyperparameter(0.01, "weight of the entropy, in loss per nat", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Minus the weighted entropy of every step, `[B, T]`."""
        return -self.entropy_coef * outputs["entropy"]

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the coefficient."""
        if not self.entropy_coef:
            return weights.new_zeros(()), {}
        grad_output = -self.entropy_coef * weights
        return (grad_output * outputs["entropy"]).sum(), {"entropy": grad_output}


@dataclass(frozen=True, kw_only=True)
class ReferenceKL(Averaged):
    """Stay near the reference policy: a KL estimate in the loss, differentiated through the present policy.

    On-policy the expected gradient of k1 is zero, of k2 that of KL(pi || ref), of k3 that of KL(ref || pi).
    """

    slot: ClassVar[str] = "kl-in-loss"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    kl_loss_coef: float = hyperparameter(0.0, "weight of the KL term; 0 is off and needs no reference", low=0)
    kl_estimator: KLEstimator = hyperparameter("k3", "k1, k2 or k3: which function of the log-ratio is differentiated")
    kl_clamp: float | None = hyperparameter(
        None, "largest estimate that a token may have; none is off (VinePPO: 10)", above=0
    )

    def required(self) -> frozenset[str]:
        """The reference is needed only where the term is on."""
        return self.needs | ({"ref_logprob"} if self.kl_loss_coef else set())

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted KL estimate of every step, `[B, T]`."""
        if not self.kl_loss_coef:
            return torch.zeros_like(outputs["logprob"])
        estimate = kl_estimate(outputs["logprob"], experience["ref_logprob"], self.kl_estimator)
        if self.kl_clamp is not None:
            estimate = estimate.clamp(max=self.kl_clamp)
        return self.kl_loss_coef * estimate


@dataclass(frozen=True, kw_only=True)
class NLL(Averaged):
    """Imitate: negative log-likelihood of the counted actions."""

    slot: ClassVar[str] = "nll"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    nll_coef: float = hyperparameter(1.0, "weight of the negative log-likelihood", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted -log pi of every step, `[B, T]`."""
        return -self.nll_coef * outputs["logprob"]
