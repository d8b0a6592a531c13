"""P3O: a policy gradient on the difference of rewards between two responses to one prompt, with PPO's reuse of batches.

The action is the whole response: w_i = pi(y_i|x) / pi_old(y_i|x) is a product over its tokens, and the KL to the start
is one term of its reward, r_i = score_i - beta sum_t (logp_old - logp_ref). Only D_i = r_i - r_j reaches the loss, so
that adding any number to all scores of a prompt changes nothing: no gradient, no clip, no step (theorem 2).

Choices: no official code was found, and reports of the paper tell the two clips apart without writing them out. So both
are rebuilt from theorem 1: unclipped, either has the gradient 1/2 D_1 w_1 w_2 grad(log pi(y_1) - log pi(y_2)), and the
pessimistic minimum is PPO's. The detached weight, which neither clip bounds, is capped. Scores are subtracted before
anything else is added to them, so that a shift cancels as far as float32 can hold the shifted score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.errors import UserError
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import log_group_metrics
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import partners
from polyrl.parts.score import TaskReward, TrajectoryKLPenalty
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter

SLUG = "p3o"
TITLE = "Pairwise Proximal Policy Optimization"
PAPER = "arXiv:2310.00212"
YEAR = 2023
FORMULA = "grad J = 1/2 (r_1 - r_2) w_1 w_2 grad(log pi(y_1) - log pi(y_2)), clipped in w_i or log w_1/w_2"

ClipForm = Literal["separate", "joint"]


def pairwise_objective(
    own: Tensor, other: Tensor, difference: Tensor, clip_range: float, clip_form: ClipForm, weight_cap: float | None
) -> Tensor:
    """Share of response i in twice its pair's objective, which is to be maximized; any shape. J is the mean over rows.

    separate (V1): min(sg(D w_j) w_i, sg(D w_j) clip(w_i, 1 - eps, 1 + eps)).
    joint (V2): 1/2 min(sg(D w_i w_j) z, sg(D w_i w_j) clip(z, -eps, eps)) with z = log w_i - log w_j.

    Args:
        own, other: log w_i and log w_j, nats; gradients pass through.
        difference: D = r_i - r_j.
        clip_range: eps.
        clip_form: which of the two.
        weight_cap: the most that the detached w_j, or w_i w_j, may be; None is off.
    """
    fixed = other.detach() if clip_form == "separate" else (own + other).detach()
    weight = difference * fixed.exp().clamp(max=math.inf if weight_cap is None else weight_cap)
    if clip_form == "separate":
        ratio = own.exp()
        return torch.minimum(weight * ratio, weight * ratio.clamp(1 - clip_range, 1 + clip_range))
    z = own - other
    return torch.minimum(weight * z, weight * z.clamp(-clip_range, clip_range)) / 2


@dataclass(frozen=True, kw_only=True)
class PairDifference(Part):
    """Judge each response by how much more reward it got than the other response to its prompt."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "kl_charge", "group", "greedy", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    def check_within(self, recipe: Recipe) -> None:
        """A pair is two."""
        if recipe.collected_by("completions_per_prompt", 2) != 2:
            raise UserError(
                f"{recipe.name}: part '{self.name}' compares exactly two responses to a prompt; set "
                "--completions-per-prompt 2 (and --prompts-per-step to match)."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]: D_i at every step of response i; 0 where the other response is missing."""
        score, charge, counted = experience["score"], experience["kl_charge"], scored_rows(experience)
        log_group_metrics(context, score, experience["group"], counted)
        j = partners(experience["group"], counted)
        difference = torch.where(j >= 0, (score - score[j]) - (charge - charge[j]), torch.zeros_like(score))
        return experience.with_fields(advantage=difference[:, None] * experience["mask"])


@dataclass(frozen=True, kw_only=True)
class PairwiseSurrogate(Term):
    """Raise the better response of a pair and lower the other, but not where their ratios have left the clip range."""

    grouped_by: ClassVar[str] = "group"
    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "group", "weight"})

    clip_form: ClipForm = hyperparameter(
        "joint", "separate: clip each response's ratio (V1); joint: their log-difference (V2)"
    )
    clip_range: float = hyperparameter(
        0.2, "how far a response's ratio (joint: z) may go before its gradient stops", above=0
    )
    weight_cap: float | None = hyperparameter(
        10.0, "cap on the weight that is not differentiated; none is off", above=1
    )

    def check_within(self, recipe: Recipe) -> None:
        """It reads one number a response."""
        if not any(isinstance(part, PairDifference) for part in recipe.credit):
            raise UserError(f"{recipe.name}: '{self.name}' is for differences of pairs; add the part pair-difference.")

    def _pairs(self, outputs: dict[str, Tensor], experience: Experience) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each row [B]: whether it is in a pair, its own log w and the other's, and D."""
        steps = experience["weight"] != 0
        log_ratio = torch.where(steps, outputs["logprob"] - experience["behaviour_logprob"], 0.0).sum(1)
        first = steps.to(torch.uint8).argmax(1, keepdim=True)  # D stands at every step
        advantage = experience["advantage"].gather(1, first)[:, 0]
        j = partners(experience["group"], steps.any(1))
        # half of D_i - D_j is D_i, also where a batch's statistics have moved both
        return j >= 0, log_ratio, log_ratio[j], (advantage - advantage[j]) / 2

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Minus each row's share of its pair's objective, `[B]`; 0 in rows of no pair."""
        paired, own, other, difference = self._pairs(outputs, experience)
        gain = pairwise_objective(own, other, difference, self.clip_range, self.clip_form, self.weight_cap)
        return torch.where(paired, -gain, torch.zeros_like(gain))

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: one over the number of rows in pairs, 0 in the others."""
        paired = partners(experience["group"], (experience["weight"] != 0).any(1)) >= 0
        return paired.to(experience["weight"].dtype) / paired.sum().clamp(min=1)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Whether the clip stopped a response's gradient, its ratio, and w_1 w_2 of its pair, `[B]`."""
        _, own, other, difference = self._pairs(outputs, experience)
        moved, middle = (own.exp(), 1.0) if self.clip_form == "separate" else (own - other, 0.0)
        up, down = moved > middle + self.clip_range, moved < middle - self.clip_range
        stopped = (up & (difference > 0)) | (down & (difference < 0))
        return {"clip_ratio": stopped.float(), "ratio": own.exp(), "pairs/weight": (own + other).exp()}


def recipe() -> Recipe:
    """P3O-V2: two responses a prompt, trajectory KL in the reward, joint clip, several epochs on each batch."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=32, completions_per_prompt=2),
        score=(TaskReward(), TrajectoryKLPenalty(kl_coef=0.05)),
        credit=(PairDifference(),),
        terms=(PairwiseSurrogate(clip_form="joint", clip_range=0.2),),
        optimize=Optimize(epochs=2, minibatches=2),
        adds=("trajectory-kl-penalty", "pair-difference", "pairwise-surrogate"),
        notes={
            "collect": "two independent responses to each prompt",
            "score": "the KL to the start is one charge for the whole response",
            "credit": "a response's reward minus the other's: what all answers to a prompt share cancels",
            "improve": "the ratio of whole responses, clipped for each (V1) or for the two together (V2)",
        },
    )
