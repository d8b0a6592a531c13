"""RM ensembles: several reward models that differ in their seed, and a score that distrusts what they disagree about.

A policy that is trained on one reward model finds what only this model likes. The members of an ensemble learn from the
same labels and differ in the initial head and the order of the pairs; their mean, their minimum (WCO) or their mean
less a multiple of their variance (UWO) is the score. The variance is the population's, as in the paper's equation; its
PPO code (tlc4418/llm_optimization) divides by k - 1, its best-of-n code by k. `best-of-n` measures instead of training:
what the best of n answers by each score would truly be worth (the protocol of arXiv:2210.10760).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import SpecialRows, finished_rows, scored_rows
from polyrl.methods.language import ppo
from polyrl.parts.proxies import log_best_of_n, pools
from polyrl.parts.score import JUDGED, assign_reward, of_finished
from polyrl.pretrain.wanted import prepare_ensemble
from polyrl.recipe import Improver, Part, Recipe, Scope, Stage, Term, hyperparameter

SLUG = "rm-ensembles"
TITLE = "Reward Model Ensembles"
PAPER = "arXiv:2310.02743"
YEAR = 2023
FORMULA = "R = mean_i R_i - lambda var_i R_i (UWO), or min_i R_i (WCO)"
TASK = "learned-reverse"


def worst_case(scores: Tensor) -> Tensor:
    """min_i R_i (equation 5): `[B, k]` -> `[B]`."""
    return scores.amin(-1)


def uncertainty_weighted(scores: Tensor, coefficient: float) -> Tensor:
    """mean_i R_i - coefficient * (1/k) sum_i (R_i - mean)^2 (equation 6): `[B, k]` -> `[B]`."""
    return scores.mean(-1) - coefficient * scores.var(-1, correction=0)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Part):
    """What the ensemble's scores have in common; subclasses write `combine`."""

    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward", "terminated", "truncated", "member_score"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "member_score": Field(
            "[B, k]", "float32", "-", "score by each member of a reward ensemble, centred and scaled"
        ),
    }
    special_rows: ClassVar[SpecialRows | None] = JUDGED

    members: int = hyperparameter(5, "reward models that the task makes; several --reward given are all members", low=1)
    centre: bool = hyperparameter(
        True, "give each member mean 0 and deviation 1 on the first batch, which the start sampled"
    )

    def prepare(self, task: Any, model: str, say: Callable[[str], None] = lambda _: None) -> None:
        """Make or load the members; raises `UserError` where the task has none."""
        prepare_ensemble(task, model, self.members, say)

    def combine(self, scores: Tensor, context: Context) -> Tensor:
        """One score `[B]` from those of the members `[B, k]`."""
        raise NotImplementedError

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `member_score` [B, k], `score` [B] and `reward`, `terminated`, `truncated` [B, T].

        Of windowed rollouts only finished responses are read, scored and centred on; the others have 0.
        """
        calls = 0

        def judge(some: Experience) -> Tensor:
            nonlocal calls
            scores: Tensor
            scores, calls = context.run_state.member_scores(some, self.members)
            return scores

        finished = finished_rows(experience)
        scores = of_finished(experience, judge)
        if scores.dim() == 1:  # nothing is finished
            scores = scores.new_zeros(len(scores), self.members)
        elif self.centre:
            memory = context.memory("ensemble")
            if not memory:
                seen = scores[scored_rows(experience) & ~scores.isnan().any(1)]
                spread = seen.std(0, correction=0)
                memory.update(mean=seen.mean(0).tolist(), std=torch.where(spread > 0, spread, 1.0).tolist())
            mean, std = (torch.tensor(memory[name], dtype=scores.dtype) for name in ("mean", "std"))
            scores = torch.where(finished[:, None], (scores - mean) / std, 0.0)
        batch = experience.with_fields(member_score=scores)
        combined = torch.where(scores.isnan().any(1), torch.nan, self.combine(scores, context))
        batch = assign_reward(batch, combined, {}, calls, context)
        kept = batch["member_score"][scored_rows(batch)]
        if len(kept):
            context.log(ensemble__mean=kept.mean(), ensemble__variance=kept.var(1, correction=0).mean())
        return batch


@dataclass(frozen=True, kw_only=True)
class EnsembleMean(Ensemble):
    """Score every response with the mean of several reward models."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"

    def combine(self, scores: Tensor, context: Context) -> Tensor:
        """The mean."""
        return scores.mean(-1)


@dataclass(frozen=True, kw_only=True)
class WCO(Ensemble):
    """Score every response with the lowest of several reward models (worst-case optimization)."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"

    def combine(self, scores: Tensor, context: Context) -> Tensor:
        """The minimum."""
        return worst_case(scores)


@dataclass(frozen=True, kw_only=True)
class UWO(Ensemble):
    """Score every response with the mean of several reward models less their variance (uncertainty-weighted)."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"

    uwo_coef: float = hyperparameter(
        0.1, "lambda, weight of the variance (the paper: 0.1 for PPO, 0.5 for best-of-n)", low=0
    )

    def combine(self, scores: Tensor, context: Context) -> Tensor:
        """The mean less the weighted variance."""
        return uncertainty_weighted(scores, self.uwo_coef)


@dataclass(frozen=True, kw_only=True)
class OneMember(Ensemble):
    """Score every response with one reward model of several, which the seed picks: what an ensemble is held against."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"

    def combine(self, scores: Tensor, context: Context) -> Tensor:
        """The scores of member `seed` modulo k."""
        return scores[:, context.seed % scores.shape[1]]


@dataclass(frozen=True, kw_only=True)
class BestOfN(Improver):
    """Take no step; measure what the best of n responses by each ensemble score is worth, for n = 1, 2, 4, ...

    The responses to one prompt are the pool, so `completions_per_prompt` is the largest n.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"member_score", "group", "greedy"})
    # what is measured is the pool that was sampled, whatever a selection would train on
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="left out", greedy="left out", masked="left out", unpaid="left out", unselected="counted"
    )

    bon_uwo_coef: float = hyperparameter(0.5, "lambda of the UWO score that is measured", low=0)

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Log `bon/<score>/proxy@<n>` and, where the task knows the truth, `bon/<score>/gold@<n>`; terms are unused."""
        batch = experience.rows(scored_rows(experience).nonzero()[:, 0])
        order = pools(batch["group"])  # where rewards failed, the others lose as many
        members = batch["member_score"][order]  # [prompts, pool, k]
        gold = context.run_state.measures(batch).get("gold")
        proxies = {
            "single": members.movedim(-1, 0),  # each alone; the average over them is logged
            "mean": members.mean(-1),
            "wco": worst_case(members),
            "uwo": uncertainty_weighted(members, self.bon_uwo_coef),
        }
        log_best_of_n(proxies, None if gold is None else gold[order], context)


def recipe() -> Recipe:
    """PPO on the uncertainty-weighted score of five reward models."""
    return replace(
        ppo.recipe() + UWO(),
        name=SLUG,
        adds=("uwo",),
        notes={
            "score": "several reward models score each answer: their mean less a multiple of their variance counts",
            "improve": "PPO's, unchanged; `+best-of-n` measures best-of-n curves and trains nothing",
        },
    )
