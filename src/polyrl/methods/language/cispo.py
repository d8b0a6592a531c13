"""CISPO: clip the importance weight and not the update, so that no token loses its gradient.

Where PPO's ratio has left its range the token is dropped. Rare tokens leave it first, in the first of several updates,
and among them are those at which a chain of thought turns ("however", "wait"). Here the ratio is a weight, cut off and
not differentiated, of a plain policy gradient (equations 4 and 5 of the MiniMax-M1 report, section 3.1). As there, only
the upper bound is set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.methods.language.grpo import GroupAdvantage
from polyrl.parts.collect import SampleResponses
from polyrl.parts.improve import Averaged
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.recipe import Recipe, hyperparameter

SLUG = "cispo"
TITLE = "Clipped IS-weight Policy Optimization"
PAPER = "arXiv:2506.13585"
YEAR = 2025
FORMULA = "J = mean over tokens of sg(clip(pi/pi_old, 1 - low, 1 + high)) A log pi"


def clipped_weight(ratio: Tensor, clip_low: float | None, clip_high: float) -> Tensor:
    """The ratio between 1 - clip_low (None: unbounded) and 1 + clip_high, detached (equation 5). Any shape."""
    return ratio.detach().clamp(-math.inf if clip_low is None else 1 - clip_low, 1 + clip_high)


@dataclass(frozen=True, kw_only=True)
class ClippedImportanceWeight(Averaged):
    """Plain policy gradient whose tokens are weighted by their probability ratio, cut off where it is too large."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    clip_range_high: float = hyperparameter(
        0.28, "how far above 1 an importance weight may be; more is cut off", above=0
    )
    clip_range_low: float | None = hyperparameter(None, "the same below 1; none sets no bound", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-sg(weight) A log pi of every token, `[B, T]` (equation 4)."""
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        weight = clipped_weight(ratio, self.clip_range_low, self.clip_range_high)
        return -weight * experience["advantage"] * outputs["logprob"]

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Share of tokens whose weight was cut, which keep their gradient, and the mean ratio."""
        ratio = torch.exp(outputs["logprob"] - experience["behaviour_logprob"])
        cut = ratio != clipped_weight(ratio, self.clip_range_low, self.clip_range_high)
        return {"clip_ratio": cut.float(), "ratio": ratio}


def recipe() -> Recipe:
    """CISPO: GRPO's groups and advantage, several updates of each batch, averaged over its tokens, no KL."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(GroupAdvantage(),),
        terms=(ClippedImportanceWeight(clip_range_high=0.28, aggregation="token-mean"),),
        optimize=Optimize(epochs=1, minibatches=4),
        adds=("clipped-importance-weight",),
        notes={
            "collect": "a group of answers to the same prompt, so that they can be compared",
            "credit": "GRPO's: better than the group's mean is good, worse is bad",
            "improve": "the ratio is a weight that is cut off and not differentiated: every token keeps its gradient",
        },
    )
