"""DAPO-direct: learn first what steps are worth, from outcomes of continuations; then regress the policy onto it.

(Direct Advantage-based Policy Optimization, not ByteDance's DAPO.) The policy's own solutions are continued N times
from each of their steps. A critic learns the share of right continuations of each state and is then frozen. The first
steps of the continuations are the actions; an action's advantage is the critic's value behind it less the mean over
all N, duplicates included; and the log-ratio of each distinct action to the sampling policy is regressed on A / beta.

The equations were reconstructed where the text at hand lacked them. What is ours: the critic continues from the
policy's own backbone, and the state and its actions are rows of one table, so that both stages pass over the same rows.
With steps longer than a response (`step_tokens`) this is the same loss on whole responses: A = r - mean r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.parts.credit import value_after
from polyrl.parts.improve import ValueCrossEntropy
from polyrl.parts.offline_steps import OfflineSteps
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter

SLUG = "dapo-direct"
TITLE = "Direct Advantage-Based Policy Optimization"
PAPER = "arXiv:2412.18279"
YEAR = 2024
FORMULA = "loss = (log pi(a|s) - log pi_ref(a|s) - A(s, a) / beta)^2 / 2, A = V(s a) - mean_N V(s a_j)"


def step_advantage(quality: Tensor, copies: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """A_i = Q_i - (1/N) sum_j Q_j over all N samples of a state, and max A - min A of the state (Algorithm 1).

    Args:
        quality: `[B]` values of distinct actions.
        copies: `[B]` how often each was sampled.
        group: `[B]` states.
    """
    _, index = torch.unique(group, return_inverse=True)
    empty = quality.new_zeros(int(index.max()) + 1)
    count = copies.to(quality.dtype)
    mean = empty.index_add(0, index, quality * count) / empty.index_add(0, index, count)
    high, low = (empty.scatter_reduce(0, index, quality, how, include_self=False) for how in ("amax", "amin"))
    return quality - mean[index], (high - low)[index]


@dataclass(frozen=True, kw_only=True)
class StepAdvantage(Part):
    """Judge each step by the frozen critic's value behind it, against all steps sampled from the same state."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"copies", "outcome", "state_outcome", "ends_response", "critic_turn", "group", "mask"}
    )
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "advantage_gap", "value_target"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    step_value: Literal["critic", "outcomes"] = hyperparameter(
        "critic", "value behind a step: the critic's, or the mean outcome of the continuations that begin with it"
    )

    def required_models(self) -> frozenset[str]:
        """The critic, where it is asked."""
        return frozenset({"critic"}) if self.step_value == "critic" else frozenset()

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `value_target` [B, T], `advantage` [B, T], one number a row, and `advantage_gap` [B].

        The last two are 0 while it is the critic's turn.
        """
        outcome, mask = experience["outcome"], experience["mask"]
        counted = scored_rows(experience) & ~outcome.isnan()
        target = torch.where(counted, experience["state_outcome"], 0.0)[:, None] * torch.ones(mask.shape)
        experience = experience.with_fields(value_target=target)
        if bool(experience["critic_turn"].any()):
            return experience.with_fields(advantage=torch.zeros(mask.shape), advantage_gap=torch.zeros_like(outcome))
        quality = outcome
        if self.step_value == "critic":  # where the step ends the response, its reward is known
            learned = torch.sigmoid(value_after(experience, context))
            quality = torch.where(experience["ends_response"], outcome, learned)
        advantage, gap = torch.zeros_like(quality), torch.zeros_like(quality)
        rows = counted.nonzero()[:, 0]
        if len(rows):
            found = step_advantage(quality[rows], experience["copies"][rows], experience["group"][rows])
            advantage, gap = (x.index_put((rows,), y) for x, y in zip((advantage, gap), found, strict=True))
            against = (advantage * (outcome - experience["state_outcome"]))[rows] < 0
            context.log(steps__gap=gap[rows].mean(), steps__against_outcome=against.float().mean())
        return experience.with_fields(advantage=advantage[:, None] * mask, advantage_gap=gap)


@dataclass(frozen=True, kw_only=True)
class DropSmallGaps(Part):
    """Leave out states whose steps are all about equally good; while it is the critic's turn, weigh states for it."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage_gap", "critic_turn", "group", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    min_gap: float = hyperparameter(0.1, "least difference between the best and the worst step of a state", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `weight` [B, T], and `value_weight` [B, T]: 1 at the first token of one row of each state."""
        mask, turn, gap = experience["mask"], experience["critic_turn"], experience["advantage_gap"]
        counted = scored_rows(experience)
        kept = (gap >= self.min_gap) & ~turn & counted
        group = experience["group"].tolist()
        first = {group[i]: i for i in reversed(counted.nonzero()[:, 0].tolist())}
        value_weight = torch.zeros(mask.shape)
        value_weight[[*first.values()], 0] = 1.0
        value_weight *= turn[:, None]
        if not bool(turn.any()):
            context.log(groups__kept=kept[counted].float().mean())
        return experience.with_fields(weight=(mask & kept[:, None]).float(), value_weight=value_weight)


@dataclass(frozen=True, kw_only=True)
class StepRegression(Term):
    """Regress the summed log-ratio of each step to the policy that sampled it on its advantage over beta."""

    slot: ClassVar[str] = "policy-objective"
    grouped_by: ClassVar[str] = "group"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "ref_logprob", "mask", "group", "weight"})

    beta: float = hyperparameter(0.1, "weight of the KL to the sampling policy in what is maximized", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """(log-ratio - A / beta)^2 / 2 of each row, `[B]`."""
        ratio = ((outputs["logprob"] - experience["ref_logprob"]) * experience["mask"]).sum(1)
        return (ratio - experience["advantage"][:, 0] / self.beta).square() / 2

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: one over the number of rows that count, 0 in the others."""
        counted = (experience["weight"] != 0).any(1)
        return counted.float() / counted.sum().clamp(min=1)


def recipe() -> Recipe:
    """DAPO-direct with the paper's order of things and a beta that a small model can reach."""
    return Recipe(
        name=SLUG,
        collect=OfflineSteps(),
        score=(),
        credit=(StepAdvantage(),),
        select=(DropSmallGaps(),),
        terms=(StepRegression(), ValueCrossEntropy()),
        optimize=Optimize(critic_learning_rate=3e-4),
        adds=("offline-steps", "step-advantage", "drop-small-gaps", "step-regression", "value-cross-entropy"),
        notes={
            "collect": "once: solutions, and continuations from each of their steps; then passes over these states",
            "credit": "the critic says what the state behind each step is worth, once it has learned and is frozen",
            "select": "one row for each distinct step; states where all steps are equally good are left out",
            "improve": "first the critic alone, by cross-entropy; then the policy alone, by least squares",
        },
    )
