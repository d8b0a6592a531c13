"""VinePPO: the value of every step of a response is measured, by going on from it several times, not learned.

A state of a language model is a text, so generation can be resumed anywhere. The K continuations of a step are drawn by
the policy that sampled the response, at its temperature and with the length that is left to it, and are scored as it
is. They count as tokens and reward calls, never as samples, and are never trained on.

From the official code (McGill-NLP/VinePPO): the cap on estimated states with its backward fill, whitening with the
sample's standard deviation, and a k3 KL in the loss that is clamped and summed over tokens. Two differences: advantages
are whitened over the whole batch and not in each minibatch, and no minibatch is skipped for its ratio.
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
from polyrl.core.special_rows import LEFT_OUT, SpecialRows
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, ReferenceKL
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.parts.steps import Continuing, continued_scores
from polyrl.recipe import Recipe, Scope, Stage, hyperparameter

SLUG = "vineppo"
TITLE = "VinePPO"
PAPER = "arXiv:2410.01679"
YEAR = 2024
FORMULA = "A_i = r_i + V(s_{i+1}) - V(s_i), V(s) = mean return of K continuations from s"
TASK = "lock"


def step_advantages(value: Tensor, reward: Tensor, start: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One-step advantages of steps, r_i + V(s_{i+1}) - V(s_i), on each of their tokens (section 4, equation 6).

    r_i is all reward that is paid within step i, and V is 0 after the last one. A step without an estimate takes
    V_i = r_i + V_{i+1}, from the end backwards (official code), so that its advantage is 0.

    Args:
        value: `[B, T]` estimates at the tokens that start a step; NaN where there is none.
        reward: `[B, T]`.
        start: `[B, T]` bool, first tokens of steps.
        mask: `[B, T]` bool, tokens that the policy chose.

    Returns:
        Advantages, and the values that were used, at the steps' first tokens; both `[B, T]`, 0 elsewhere.
    """
    advantage, used = torch.zeros_like(reward), torch.zeros_like(reward)
    for i, starts in enumerate(start.tolist()):
        following, end = 0.0, len(starts)
        for t in (t for t in reversed(range(end)) if starts[t]):
            earned = float(reward[i, t:end].sum())
            own = float(value[i, t])
            own = earned + following if own != own else own
            advantage[i, t:end] = earned + following - own
            used[i, t] = following = own
            end = t
    return advantage * mask, used


@dataclass(frozen=True, kw_only=True)
class VineAdvantage(Continuing):
    """Judge each step of a response by how much it moved the chance of success, measured by continuations."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "action", "mask", "present", "group", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "step_start", "step_value"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "step_start": Field("[B, T]", "bool", "-", "a step of the response begins with this token"),
        "step_value": Field("[B, T]", "float32", "reward", "mean score of continuations from a step's start, else 0"),
    }
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    max_states: int | None = hyperparameter(
        None, "M, estimated step ends of a response, besides its start; none: all", low=0
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` and `step_value` [B, T] float32 and `step_start` [B, T] bool."""
        mask, start = experience["mask"], self.starts(experience, context)
        number = start.cumsum(1) - 1
        asked = start if self.max_states is None else start & (number <= self.max_states)
        row, column = asked.nonzero(as_tuple=True)
        # states of equal text are one state: the prompt's own is shared by all responses to it
        first: dict[tuple[int, ...], int] = {}
        tokens, group = experience["action"].tolist(), experience["group"].tolist()
        which = [first.setdefault((group[i], *tokens[i][:t]), len(first)) for i, t in zip(row, column, strict=True)]
        index = torch.tensor(which)
        leader = torch.full((len(first),), len(which)).scatter_reduce(0, index, torch.arange(len(which)), "amin")
        means = continued_scores(experience, row[leader], column[leader], self, context)
        value = torch.full(mask.shape, torch.nan)
        reward = torch.where(mask, experience["reward"].float(), 0.0)  # what is paid at the policy's own steps
        value[row, column] = means[index]
        advantage, used = step_advantages(value, reward, start, mask)
        context.log(
            steps__per_response=start.sum() / start.any(1).sum().clamp(min=1),
            steps__value=used[start].mean(),
            steps__undecided=(advantage[start] == 0).float().mean(),
        )
        return experience.with_fields(advantage=advantage, step_start=start, step_value=used)


def recipe() -> Recipe:
    """VinePPO as published, with fewer prompts: 8 responses a prompt, K = 9, PPO's clip, a little KL in the loss."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(VineAdvantage(), WhitenAdvantage(whiten_unbiased=True)),
        terms=(
            ClippedSurrogate(clip_range=0.2, aggregation="token-mean"),
            ReferenceKL(kl_loss_coef=1e-4, kl_estimator="k3", kl_clamp=10.0, aggregation="seq-mean-token-sum"),
        ),
        optimize=Optimize(epochs=2, minibatches=2),
        adds=("vine-advantage",),
        notes={
            "credit": "generation is resumed K times from the start of every step; the mean score is the value there",
            "improve": "PPO's clipped surrogate; there is no critic to train",
        },
    )
