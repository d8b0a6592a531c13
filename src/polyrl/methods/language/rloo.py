"""RLOO: REINFORCE whose baseline is the mean reward of the other answers to the same prompt.

The KL to the reference is part of the reward, summed over the sequence (k1), before the leave-one-out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import at_every_step, check_groups, group_statistics, log_group_metrics, total_reward
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty
from polyrl.recipe import Part, Recipe, Scope, Stage

SLUG = "rloo"
TITLE = "REINFORCE Leave-One-Out"
PAPER = "arXiv:2402.14740"
YEAR = 2024
FORMULA = "A_i = R_i - mean of R_j over j != i"


def leave_one_out(score: Tensor, group: Tensor, counted: Tensor | None = None) -> Tensor:
    """Scores `[B]` minus the mean of the others in their group, = G/(G-1) (R_i - mean R); 0 in a group of one."""
    mean, _, size = group_statistics(score, group, counted=counted)
    return size / (size - 1).clamp(min=1) * (score - mean)


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Part):
    """Judge each answer against the mean of the other answers to its prompt: an unbiased baseline without a critic."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "greedy", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    def check_within(self, recipe: Recipe) -> None:
        """A group of one has nothing to compare."""
        check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        total = total_reward(experience)  # R_i - beta sum_t (logp_old - logp_ref)
        group, counted = experience["group"], scored_rows(experience)
        log_group_metrics(context, total, group, counted)
        advantage = leave_one_out(total, group, counted)
        return experience.with_fields(advantage=at_every_step(advantage, counted, experience["mask"]))


def recipe() -> Recipe:
    """RLOO as published: k answers a prompt, no ratio and no clip, one update per batch, sums over tokens."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=16, completions_per_prompt=4),
        score=(TaskReward(), TokenKLPenalty(kl_coef=0.02)),
        credit=(LeaveOneOut(),),
        terms=(PolicyGradient(aggregation="seq-mean-token-sum"),),
        optimize=Optimize(epochs=1, minibatches=1),
        adds=("leave-one-out", "policy-gradient"),
        notes={
            "collect": "a few answers to each prompt",
            "credit": "an answer's baseline is what its siblings earned; it never sees its own reward there",
            "improve": "plain policy gradient: on-policy, so no ratio and no clip are needed",
        },
    )
