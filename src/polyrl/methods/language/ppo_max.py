"""PPO-max: PPO with the settings that kept RLHF stable: a normalized and clipped score, a token KL, few epochs.

Of the many details that PPO implementations have, the paper keeps those that act on the reward alone: the score is
brought to its running mean and deviation and clipped, the KL to the start is charged token by token, the critic is
trained before the policy moves, and demonstrations keep being imitated. Advantages are left as they are, because
normalizing them as well is found to conflict. This is the paper's text; its scripts (OpenLMLab/MOSS-RLHF) only divide
the score by its deviation (`score_form=scale,score_clip=0`), without critic pre-training and without demonstrations.
The paper's critic begins as the reward model (`critic_start="reward-model"`); here it begins as the policy, as in ppo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import PAID_AT_THE_END, SpecialRows, finished_rows, scored_rows
from polyrl.core.update import On, OwnRows
from polyrl.errors import UserError
from polyrl.methods.language import ppo
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import GAE
from polyrl.parts.imitation import DemonstrationNLL
from polyrl.parts.improve import ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty, at_last_step
from polyrl.parts.select import CriticPretraining
from polyrl.pretrain.solutions import worked_batch
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "ppo-max"
TITLE = "PPO-max"
PAPER = "arXiv:2307.04964"
YEAR = 2023
FORMULA = "r_t = -eta (logp_old - logp_ref) + 1[t = last] clip((s - mean s) / std s, -delta, delta)"
TASK = "learned-reverse"


@dataclass(frozen=True)
class Moments:
    """Count, mean and population variance of all scores so far."""

    count: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    def with_batch(self, scores: Tensor) -> Moments:
        """Take in a batch `[n]` (the parallel update of Chan et al.; the released running-moments class)."""
        count, mean, variance = len(scores), float(scores.mean()), float(scores.var(correction=0))
        total, difference = self.count + count, mean - self.mean
        squares = self.variance * self.count + variance * count + difference**2 * self.count * count / total
        return Moments(total, self.mean + difference * count / total, squares / total)

    @property
    def deviation(self) -> float:
        """Standard deviation with n - 1, as the released code has it; no less than 1e-8."""
        return max(math.sqrt(self.variance * self.count / max(self.count - 1, 1)), 1e-8)


@dataclass(frozen=True, kw_only=True)
class NormalizeScore(Part):
    """Bring the score to the running mean and deviation of all scores so far, and clip it."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "reward", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward"})
    special_rows: ClassVar[SpecialRows | None] = PAID_AT_THE_END

    score_clip: float = hyperparameter(
        0.8, "delta, bound on the normalized score; 0 is off (the paper studies 0.3 and 0.8)", low=0
    )
    score_form: Literal["normalize", "scale"] = hyperparameter(
        "normalize", "normalize: minus the mean, over the deviation; scale: over the deviation only (the scripts)"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Replace `score` [B], and at the last step of `reward` [B, T] what it has paid.

        Responses that go on have no score: they are left as they are, and where all do there is nothing to do.
        """
        score, counted = experience["score"], scored_rows(experience)
        if not bool(counted.any()):
            return experience
        memory = context.memory(self.name)
        moments = Moments(**memory).with_batch(score[counted].double())  # the batch itself counts first
        memory.update(count=moments.count, mean=moments.mean, variance=moments.variance)
        new = (score - (moments.mean if self.score_form == "normalize" else 0.0)) / moments.deviation
        if self.score_clip:
            context.log(score__clipped=(new.abs() > self.score_clip)[counted].float().mean())
            new = new.clamp(-self.score_clip, self.score_clip)
        new = torch.where(finished_rows(experience), new, score)
        centred = score[counted] - score[counted].mean()
        spread = centred.square().mean().sqrt().clamp(min=1e-8)
        context.log(score__running_std=moments.deviation, score__skewness=(centred / spread).pow(3).mean())
        paid = at_last_step(new - score, experience["mask"])
        return experience.with_fields(score=new, reward=experience["reward"] + paid)


@dataclass(frozen=True)
class Demonstrations(OwnRows):
    """The next few worked completions, those that the starting model was taught with: rows of language `[n, T]`.

    Of a dataset it is the column `solution`, `completion` or `answer`. They are no experience, so no average over
    sampled responses ever sees them.
    """

    fields: ClassVar[frozenset[str]] = frozenset(
        {"prompt_ids", "prompt_mask", "action", "present", "mask", "temperature", "group", "weight", "demonstrated"}
    )

    count: int

    def rows(self, context: Context) -> Experience:
        """`count` rows from where the step before ended, the longest first; their learned tokens count."""
        policy, task = context.run_state.policy, context.run_state.task
        batch = worked_batch(policy, task, context.spent.updates * self.count, self.count)
        length = batch["prompt_mask"].sum(1) + batch["present"].sum(1)
        batch = batch.rows(torch.argsort(length, descending=True, stable=True))
        return batch.with_fields(weight=batch["mask"].float(), demonstrated=torch.ones(len(batch), dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class OptimizeWithDemonstrations(Optimize):
    """Take AdamW steps on the sum of the terms and the mean negative log-likelihood of demonstrations (PPO-ptx).

    Each step reads the next few. Where a minibatch leaves the policy alone, so do they.
    """

    ptx_coef: float = hyperparameter(
        0.1, "weight of the demonstrations' negative log-likelihood, mean over tokens; 0 is off", low=0
    )
    ptx_rows: int = hyperparameter(16, "demonstrations in one optimizer step", low=1)

    @property
    def also(self) -> tuple[On, ...]:
        """The demonstrations, imitated."""
        if not self.ptx_coef:
            return ()
        term = DemonstrationNLL(demonstration_weight=self.ptx_coef, aggregation="token-mean")
        return (On(Demonstrations(self.ptx_rows), (term,)),)

    def check_within(self, recipe: Recipe) -> None:
        """Only language models have demonstrations."""
        if self.ptx_coef and "prompt_ids" not in recipe.collected:
            raise UserError(
                f"{recipe.name}: part '{self.name}' imitates worked completions, which only language tasks have; set "
                "--ptx-coef 0."
            )


def recipe() -> Recipe:
    """PPO-max as the paper's text has it: score normalized and clipped, token KL, critic first, demonstrations."""
    return replace(
        ppo.recipe(),
        name=SLUG,
        collect=SampleResponses(prompts_per_step=128, completions_per_prompt=1),
        score=(TaskReward(), NormalizeScore(), TokenKLPenalty(kl_coef=0.05)),
        credit=(GAE(gamma=1.0, gae_lambda=0.95),),  # no whitening: the reward level is where scales are set
        select=(CriticPretraining(),),
        terms=(ppo.recipe().terms[0], ValueLoss(value_coef=0.5, value_clip_range=0.2)),
        optimize=OptimizeWithDemonstrations(epochs=1, minibatches=4, schedule="inverse-sqrt", warmup=0.1),
        adds=("normalize-score", "token-kl-penalty", "critic-pretraining", "optimize-with-demonstrations"),
        notes={
            "score": "each score against the running mean so far, clipped; the KL to the start at every token",
            "credit": "GAE; advantages are not normalized once more",
            "select": "at first only the critic learns: the policy's steps count nothing",
            "improve": "one pass over a small buffer; a clipped value loss; demonstrations are imitated on the way",
        },
    )
