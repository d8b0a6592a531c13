"""HyPO: DPO on pairs that are given, and the reverse KL on fresh answers that nobody labels.

DPO says nothing of answers that its pairs do not hold, so their probability may grow unseen: any two policies with the
same ratios on the pairs have the same loss. Fresh samples of the policy show them. Their log-ratio to the reference,
whose mean is the KL, is charged by a policy gradient with a leave-one-out baseline: no reward model, no new labels.

The cost is the log-ratio of the whole response times the gradient of its whole log-probability: token by token the KL
that is still to come would be lost, and the gradient of a mean of log-ratios alone is 0. It is never scaled by its own
deviation, which would undo lambda. Sampling is at temperature 1 without cut-offs, since the KL is the policy's own.
The paper's settings are recalled, and its code could not be read: beta 0.05, lambda 1e-4, two samples a prompt. With
lambda 0 the answers are still sampled, for `kl`, and the policy's numbers are DPO's. (Others are called HyPO too.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
TITLE = "Hybrid Preference Optimization"
PAPER = "arXiv:2406.01462"
YEAR = 2024
FORMULA = "loss = -log sigma(beta h) on pairs + lambda KL(pi, ref) on fresh samples, by leave-one-out"
TASK = "sort-pairs"


@dataclass(frozen=True, kw_only=True)
class LogRatioCost(Part):
    """Score a response by minus lambda times its log-ratio to the reference: what it adds to the reverse KL."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob", "ref_logprob", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward", "terminated", "truncated"})
    special_rows: ClassVar[SpecialRows | None] = replace(JUDGED, unpaid="none")  # nobody else judges them

    kl_weight: float = hyperparameter(3e-3, "lambda: weight of the reverse KL", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B] = -lambda rho(y), nats, as the reward of the last token [B, T]."""
        rho = sequence_log_ratio(experience["behaviour_logprob"], experience["ref_logprob"], experience["mask"])
        return assign_reward(experience, -self.kl_weight * rho * scored_rows(experience), {}, 0, context)


def recipe() -> Recipe:
    """One step on 32 pairs and on two fresh answers to each of 32 prompts."""
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
        notes={
            "collect": "two fresh answers to each prompt, which nobody labels",
            "score": "minus lambda times the log-ratio to the start: what the answer adds to the KL",
            "credit": "the other answer to the prompt is the baseline",
            "improve": "one step down DPO's loss on given pairs and down the KL on the fresh answers",
        },
    )
