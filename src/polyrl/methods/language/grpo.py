"""GRPO: the answers to one prompt are each other's baseline, so no critic is needed.

`scale="none"` with `aggregation="constant"` is Dr. GRPO (arXiv:2503.20783); `clip_range_high=0.28` with
`aggregation="token-mean"` and the parts `drop-equal-groups` and `overlong-penalty` is ByteDance's DAPO
(arXiv:2503.14476) without redrawing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import at_every_step, check_groups, group_statistics, log_group_metrics, total_reward
from polyrl.parts.improve import ClippedSurrogate, ReferenceKL
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "grpo"
TITLE = "Group Relative Policy Optimization"
PAPER = "arXiv:2402.03300"
YEAR = 2024
FORMULA = "A_i = (R_i - mean R) / (std R + 1e-6), over the G answers to one prompt"

Scale = Literal["std", "population-std", "none"]


def group_advantage(
    score: Tensor, group: Tensor, scale: Scale = "std", epsilon: float = 1e-6, counted: Tensor | None = None
) -> Tensor:
    """Scores `[B]` minus their group's mean, over their group's standard deviation (section 4.1.2); returns `[B]`.

    The paper does not say which standard deviation; "std" is the sample's, as `torch.std`.
    """
    mean, std, _ = group_statistics(score, group, counted=counted, correction=0 if scale == "population-std" else 1)
    return score - mean if scale == "none" else (score - mean) / (std + epsilon)


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage(Part):
    """Judge each answer against the other answers to its prompt; every token of an answer gets the same advantage."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "greedy", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    scale: Scale = hyperparameter("std", "std, population-std, or none (Dr. GRPO)")
    group_epsilon: float = hyperparameter(1e-6, "added to the group's standard deviation", low=0)

    def check_within(self, recipe: Recipe) -> None:
        """A group of one has nothing to compare."""
        check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        total = total_reward(experience)  # R_i
        group, counted = experience["group"], scored_rows(experience)
        log_group_metrics(context, total, group, counted)
        advantage = group_advantage(total, group, self.scale, self.group_epsilon, counted)
        return experience.with_fields(advantage=at_every_step(advantage, counted, experience["mask"]))


def recipe() -> Recipe:
    """GRPO as published: eight answers a prompt, mean per sequence first, optional k3 KL in the loss."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(GroupAdvantage(),),
        terms=(
            ClippedSurrogate(clip_range=0.2, aggregation="seq-mean-token-mean"),
            ReferenceKL(kl_loss_coef=0.0, kl_estimator="k3", aggregation="seq-mean-token-mean"),
        ),
        optimize=Optimize(epochs=1, minibatches=2),
        adds=("group-advantage", "reference-kl"),
        notes={
            "collect": "a group of answers to the same prompt, so that they can be compared",
            "credit": "better than the group's mean is good, worse is bad; groups that all agree teach nothing",
            "improve": "PPO's clipped surrogate; a KL to the start may be added to the loss (k3)",
        },
    )
