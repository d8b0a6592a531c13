"""ReMax: REINFORCE whose baseline is the reward of the policy's own greedy answer.

Not for verifiable rewards with a sharp model: where the greedy answer is already right, every advantage is at most 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import SpecialRows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import return_to_go
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty, at_last_step
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "remax"
TITLE = "ReMax"
PAPER = "arXiv:2310.10505"
YEAR = 2023
FORMULA = "A = R(x, a) - R(x, greedy answer)"


@dataclass(frozen=True, kw_only=True)
class SampleWithGreedyBaseline(SampleResponses):
    """Sample responses, and decode one greedy response to each prompt as well (Algorithm 1, line 4)."""

    gives: ClassVar[frozenset[str]] = SampleResponses.gives | {"has_greedy_baseline"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "has_greedy_baseline": Field("[B]", "bool", "-", "the row's group holds a greedy baseline"),
    }

    greedy_baseline: ClassVar[bool] = True


def remax_coefficients(
    difference: Tensor,
    log_ratio: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    kl_coef: float = 0.0,
    clip: float | None = None,
    kl_to_go: bool = True,
) -> Tensor:
    """Per-token weights c_j of -log pi(a_j), `[B, T]`.

    c_j = gamma^(L-j) clip(r - b) - beta * KL, where the KL of the official code is that of token j alone
    (`kl_to_go=False`) and verl's is the sum from j on.

    Args:
        difference: `[B]` reward of the sample minus reward of its greedy baseline.
        log_ratio: `[B, T]` logprob - ref_logprob of the sample, a constant.
        mask: `[B, T]` bool.
        gamma: discount of the reward over tokens, counted backwards from the end, where it is already gamma^1.
        kl_coef: beta.
        clip: bound on the difference, applied after subtracting the baseline; the official code has 5.
        kl_to_go: see above.
    """
    if clip is not None:
        difference = difference.clamp(-clip, clip)
    left = mask.flip(1).cumsum(1).flip(1)  # L - j for token j, counting itself
    paid = difference[:, None] * gamma ** left.to(difference.dtype)
    penalty = return_to_go(log_ratio, mask) if kl_to_go else log_ratio
    return (paid - kl_coef * penalty) * mask


@dataclass(frozen=True, kw_only=True)
class GreedyBaseline(Part):
    """Judge each sampled answer against the policy's own greedy answer to the same prompt."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "group", "greedy", "has_greedy_baseline", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "baseline_score"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "baseline_score": Field("[B]", "float32", "task's own", "score that the episode is judged against"),
    }
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="counted", masked="alone", unpaid="alone"
    )

    reward_gamma: float = hyperparameter(
        1.0, "discount of the reward over tokens, from the end (official code: 0.99)", above=0, high=1
    )
    difference_clip: float | None = hyperparameter(
        None, "bound on sample minus greedy; none is off (official code: 5)", above=0
    )
    kl_to_go: bool = hyperparameter(True, "whether a token also pays for the KL of the tokens after it")

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `baseline_score` [B] and `advantage` [B, T]."""
        score, group, greedy = experience["score"], experience["group"], experience["greedy"]
        twins = dict(zip(group[greedy].tolist(), score[greedy].tolist(), strict=True))
        baseline = torch.tensor([twins[g] for g in group.tolist()], dtype=score.dtype)
        context.log(baseline_score=baseline[greedy].mean())
        # what the score stage took off the reward besides the score itself is the KL penalty of each token
        mask = experience["mask"]
        penalty = at_last_step(score, mask) - experience["reward"]
        advantage = remax_coefficients(
            score - baseline,
            penalty,
            mask,
            gamma=self.reward_gamma,
            kl_coef=1.0,
            clip=self.difference_clip,
            kl_to_go=self.kl_to_go,
        )
        return experience.with_fields(baseline_score=baseline, advantage=advantage)


def recipe() -> Recipe:
    """ReMax as published: one sampled and one greedy answer a prompt, one plain policy-gradient step."""
    return Recipe(
        name=SLUG,
        collect=SampleWithGreedyBaseline(prompts_per_step=32, completions_per_prompt=1),
        score=(TaskReward(), TokenKLPenalty(kl_coef=0.02)),
        credit=(GreedyBaseline(),),
        terms=(PolicyGradient(aggregation="seq-mean-token-sum"),),
        optimize=Optimize(epochs=1, minibatches=1),
        adds=("sample-with-greedy-baseline", "greedy-baseline"),
        notes={
            "collect": "each prompt is answered twice: once sampled, once greedily",
            "score": "both answers are scored; only the sampled one will train",
            "credit": "did the sampled answer earn more than the greedy one? That number goes to all its tokens",
            "select": "the greedy answers have weight 0",
            "improve": "one exactly on-policy step: no critic, no ratio, no clip, no epochs",
        },
    )
