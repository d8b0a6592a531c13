"""PF-PPO: of several answers to a prompt train on those whose rank puts them where the reward model can be trusted.

A filter is a probability for each rank within a prompt, best first. Items are drawn from the whole buffer with
replacement, after GAE and after advantages are whitened over all of it; policy and critic train on the same items, and
nothing corrects for the change of distribution.

Choices: the draw takes as many items as it chooses among; `draw=keep` keeps the filter's support instead, each once
(the authors' second variant; of the random ranks of best-random one is drawn). Ranks are within a prompt, as the paper
says; one released trainer takes the batch's best and worst. Answers without a score are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import GAE, WhitenAdvantage, check_groups
from polyrl.parts.improve import ClippedSurrogate, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.proxies import r_squared
from polyrl.parts.score import TaskReward, TokenKLPenalty
from polyrl.parts.select import log_selected, order_of
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "pf-ppo"
ALIAS = "pf"
TITLE = "Policy-Filtration PPO"
PAPER = "arXiv:2409.06957"
YEAR = 2024
FORMULA = "train on answers drawn by rank: best-random w = (1/2, 1/(2(N-1)), ...), best-worst w = (1/2, 0, ..., 0, 1/2)"
TASK = "learned-sort"

Filter = Literal["none", "best", "best-random", "best-worst", "power"]


def rank_weights(size: int, filter: Filter) -> Tensor:
    """Probability of each of `size` ranks, best first, `[size]` (section 4)."""
    weights = torch.full((size,), 1 / size)
    if size > 1 and filter != "none":
        weights = torch.zeros(size)
        if filter == "best":
            weights[0] = 1
        elif filter == "best-random":
            weights[0], weights[1:] = 0.5, 0.5 / (size - 1)
        else:
            weights[0] = weights[-1] = 0.5
    return weights


def ranks(score: Tensor, group: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Rank of each score `[n]` within its group, 0 the best, and the group's size, `[n]` int64. Ties are drawn."""
    order = order_of(score, generator, descending=True)
    _, own, count = torch.unique(group, return_inverse=True, return_counts=True)
    order = order[own[order].argsort(stable=True)]  # by group, and within it best first
    first = count.cumsum(0) - count
    rank = torch.empty_like(own)
    rank[order] = torch.arange(len(own)) - first[own[order]]
    return rank, count[own]


def draw_probability(
    score: Tensor, group: Tensor, filter: Filter, power: float = 2.0, generator: torch.Generator | None = None
) -> Tensor:
    """Probability of each answer `[n]` to be the next item drawn; "power" is |score|^k over all of them."""
    if filter == "power":
        weight = score.abs() ** power
        return weight / weight.sum() if float(weight.sum()) > 0 else torch.full_like(score, 1 / len(score))
    rank, size = ranks(score, group, generator)
    weight = torch.zeros_like(score)
    for n in torch.unique(size).tolist():
        weight[size == n] = rank_weights(n, filter).to(score.dtype)[rank[size == n]]
    return weight / weight.sum()


@dataclass(frozen=True, kw_only=True)
class PolicyFilter(Part):
    """Draw the answers that train by their rank under the reward, within the answers to their prompt."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "group", "greedy", "weight", "advantage"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    filter: Filter = hyperparameter(
        "best-random", "none, best, best-random, best-worst, or power: |score|^k over the batch"
    )
    filter_power: float = hyperparameter(2.0, "k of the filter `power`", above=0)
    draw: Literal["resample", "keep"] = hyperparameter(
        "resample", "draw with replacement, or keep each chosen answer once"
    )

    def check_within(self, recipe: Recipe) -> None:
        """One answer has no rank."""
        if self.filter != "power":
            check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Repeat the rows that are drawn and leave out the others, or set their `weight` [B, T] to 0."""
        scored = (experience["weight"] != 0).any(1) & scored_rows(experience)
        rows = scored.nonzero()[:, 0]
        if len(rows) == 0:
            return experience
        score, group = experience["score"][rows], experience["group"][rows]
        chance = draw_probability(score, group, self.filter, self.filter_power, context.generator("filter"))
        drawn = self._drawn(chance, group, context.generator("filter draw"))
        self._log(experience.rows(rows[drawn]), context)
        chosen = rows[drawn]
        if self.draw == "keep":
            weight = experience["weight"].clone()
            weight[rows] = 0
            weight[chosen] = experience["weight"][chosen]
            experience = experience.with_fields(weight=weight)
        else:
            experience = experience.rows(torch.cat([chosen, (~scored).nonzero()[:, 0]]))
        log_selected(experience["weight"], context)
        return experience

    def _drawn(self, chance: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
        if self.draw == "resample":
            return torch.multinomial(chance.double(), len(chance), replacement=True, generator=generator)
        kept = chance > 0
        if self.filter == "best-random":  # the best and one of the others
            best = ranks(chance, group, generator)[0] == 0
            drawn = torch.rand(len(chance), generator=generator).masked_fill(best, 2.0)
            kept = ranks(drawn, group, generator)[0] <= 1
        return kept.nonzero()[:, 0]

    def _log(self, chosen: Experience, context: Context) -> None:
        gold = context.run_state.measures(chosen).get("gold")
        found = None if gold is None else r_squared(chosen["score"], gold)
        if found is not None:
            context.log(filter__r2=found)
        context.log(filter__score=chosen["score"].mean())


def recipe() -> Recipe:
    """PF-PPO as published: five answers a prompt, PPO's credit over all of them, then best-random resampling."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=16, completions_per_prompt=5),
        score=(TaskReward(), TokenKLPenalty(kl_coef=0.02)),
        credit=(GAE(gamma=1.0, gae_lambda=0.95), WhitenAdvantage()),
        select=(PolicyFilter(),),
        terms=(ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5, value_clip_range=0.2)),
        optimize=Optimize(epochs=2, minibatches=2),
        adds=("policy-filter",),
        notes={
            "collect": "several answers to each prompt, so that they have ranks",
            "credit": "a critic and GAE over all answers, whitened before anything is left out",
            "select": "answers are drawn with replacement by their rank: the best and any other, or the best and the "
            "worst, where a reward model errs least",
            "improve": "PPO's clipped objectives on what was drawn",
        },
    )
