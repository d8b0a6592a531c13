"""REINFORCE++: one baseline for the whole batch, PPO's tricks, and no critic; one answer a prompt is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import at_every_step, check_groups, group_statistics, return_to_go, total_reward, whiten
from polyrl.parts.improve import ClippedSurrogate
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "reinforce++"
TITLE = "REINFORCE++"
PAPER = "arXiv:2501.03262"
YEAR = 2025
FORMULA = (
    "A_t = whiten over all tokens of the batch of sum_{s >= t} r_s, r_s = -beta (logp_old - logp_ref)_s + 1[last] R"
)


@dataclass(frozen=True, kw_only=True)
class BatchAdvantage(Part):
    """Whiten the return-to-go of every token over all tokens of the batch (equations 5 and 6).

    With `baseline="group"` it is REINFORCE++-baseline: the group's mean reward is taken off before the whitening.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "group", "greedy", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    baseline: Literal["batch", "group"] = hyperparameter("batch", "batch, or group for REINFORCE++-baseline")

    def check_within(self, recipe: Recipe) -> None:
        """The group's mean needs a group; the batch's does not."""
        if self.baseline == "group":
            check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        reward, counted = experience["reward"], scored_rows(experience)
        mask = experience["mask"] & counted[:, None]  # twins must not enter the batch's statistics
        if self.baseline == "group":
            total = total_reward(experience)
            raw = at_every_step(total - group_statistics(total, experience["group"], counted=counted)[0], counted, mask)
        else:
            raw = return_to_go(reward, mask)
        return experience.with_fields(advantage=whiten(raw, mask))


def recipe() -> Recipe:
    """REINFORCE++ as published: one answer a prompt, token KL in the reward, clipped surrogate, token mean."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=64, completions_per_prompt=1),
        score=(TaskReward(), TokenKLPenalty(kl_coef=0.02)),
        credit=(BatchAdvantage(),),
        terms=(ClippedSurrogate(clip_range=0.2, aggregation="token-mean"),),
        optimize=Optimize(epochs=1, minibatches=2),
        adds=("batch-advantage", "token-kl-penalty"),
        notes={
            "collect": "many different prompts, one answer each",
            "credit": "the baseline is the batch's mean return and the scale its spread: biased a little, but calm",
        },
    )
