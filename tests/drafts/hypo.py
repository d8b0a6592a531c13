"""HyPO: DPO on pairs that are given, and the reverse KL of fresh answers that nobody labels.

DPO says nothing of answers that its pairs do not hold, so their probability may grow unseen. Fresh samples of the
policy show it: their log-ratio to the reference is charged, as a policy gradient with a leave-one-out baseline. A draft
of arXiv:2406.01462, which lacks its claim: one file, and nothing shared was changed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import SpecialRows, scored_rows
from polyrl.core.update import Fresh, On, Sample, Update
from polyrl.data.pairs import Pairs
from polyrl.methods.language.rloo import LeaveOneOut
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.base import Copy
from polyrl.models.language.named import StartingPolicy
from polyrl.models.language.pairs import sequence_log_ratio
from polyrl.parts.collect import SampleResponses
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.score import JUDGED, ReferenceLogprob, assign_reward
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "hypo"
PAPER = "arXiv:2406.01462"
YEAR = 2024
TASK = "sort-pairs"


@dataclass(frozen=True, kw_only=True)
class LogRatioCost(Part):
    """Score a response by minus lambda times its log-ratio to the reference: what it adds to the reverse KL."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob", "ref_logprob", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward", "terminated", "truncated"})
    special_rows: ClassVar[SpecialRows | None] = JUDGED

    kl_weight: float = hyperparameter(3e-3, "lambda: weight of the reverse KL", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B] = -lambda rho(y), nats, as the reward of the last token [B, T]."""
        rho = sequence_log_ratio(experience["behaviour_logprob"], experience["ref_logprob"], experience["mask"])
        return assign_reward(experience, -self.kl_weight * rho * scored_rows(experience), {}, 0, context)


def recipe() -> Recipe:
    """One step on 32 pairs and, where lambda is above 0, on two fresh answers to each of 32 prompts."""
    return Recipe(
        name=SLUG,
        models={"policy": StartingPolicy(learning_rate=2e-4), "reference": Copy("policy")},
        collect=SampleResponses(prompts_per_step=32, completions_per_prompt=2),
        score=(LogRatioCost(),),
        credit=(LeaveOneOut(),),
        sources={"pairs": Pairs()},
        updates=(
            Update(
                "policy",
                (PolicyGradient(aggregation="seq-mean-token-sum"),),
                Fresh(),
                also=(On(Sample("pairs", batch_size=32), (DPOLoss(beta=0.1),), credit=(ReferenceLogprob(),)),),
            ),
        ),
        adds=("log-ratio-cost",),
    )
