"""GSPO: one probability ratio for a whole response, which is what the reward is for; the clip keeps or drops all of it.

A token's own ratio is a sample of size one, so it corrects nothing and only adds noise, which grows with the length.
The response's likelihood ratio is what importance sampling means; its root of the length keeps one range for all
lengths, and makes it so small that the clip ranges are of the order of 1e-4. The clip stops more than with GRPO.

Here in the paper's token form (section 4.3): every token carries the value of the response's ratio and the gradient of
its own log-probability. Where all tokens of a response have one advantage, as GRPO gives it, loss and gradient are
those of the response's ratio itself (equation 5); elsewhere, as with a critic, each token keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.grpo import GroupAdvantage
from polyrl.parts.collect import SampleResponses
from polyrl.parts.improve import AGGREGATION_HELP, Aggregation, Averaged, clipped_surrogate
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.recipe import Recipe, hyperparameter

SLUG = "gspo"
TITLE = "Group Sequence Policy Optimization"
PAPER = "arXiv:2507.18071"
YEAR = 2025
FORMULA = "J = mean over responses of min(s A, clip(s) A), s = exp(mean over tokens of log pi/pi_old)"


def sequence_ratio(log_ratio: Tensor, counted: Tensor) -> Tensor:
    """s_i = (pi(y_i|x) / pi_old(y_i|x))^(1/|y_i|), `[B]` (equation 7); 1 where no token counts.

    Args:
        log_ratio: `[B, T]` log pi - log pi_old of each token, nats.
        counted: `[B, T]` bool, the tokens of the response that count.
    """
    total = torch.where(counted, log_ratio, torch.zeros_like(log_ratio)).sum(1)
    return torch.exp(total / counted.sum(1).clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class SequenceSurrogate(Averaged):
    """PPO's clipped surrogate with one ratio for a whole response: the geometric mean of its tokens' ratios."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    clip_range: float = hyperparameter(
        3e-4, "how far a response's ratio may fall below 1 before its gradient stops", above=0
    )
    clip_range_high: float | None = hyperparameter(4e-4, "the same above 1; none takes clip_range", above=0)
    aggregation: Aggregation = hyperparameter("seq-mean-token-mean", AGGREGATION_HELP)

    def check_within(self, recipe: Recipe) -> None:
        """Single steps have no response."""
        if isinstance(recipe.optimize, Optimize) and recipe.optimize.minibatch_of == "steps":
            raise UserError(
                f"{recipe.name}: '{self.name}' needs whole responses in a minibatch, and this recipe shuffles single "
                "steps; set --minibatch-of rows, or take another objective."
            )

    @property
    def _high(self) -> float:
        return self.clip_range if self.clip_range_high is None else self.clip_range_high

    def _ratio(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """s_i, detached, `[B]`."""
        log_ratio = outputs["logprob"].detach() - experience["behaviour_logprob"]
        return sequence_ratio(log_ratio, experience["weight"] != 0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Clipped surrogate of every token, with s_i pi / sg(pi) for a ratio, `[B, T]`."""
        logprob = outputs["logprob"]
        ratio = self._ratio(outputs, experience)[:, None] * torch.exp(logprob - logprob.detach())
        return clipped_surrogate(ratio, experience["advantage"], self.clip_range, self._high)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Whether the clip stopped a response (the share of its tokens that it stopped), and its ratio, `[B]`."""
        ratio, advantage, counted = self._ratio(outputs, experience), experience["advantage"], experience["weight"] != 0
        up, down = ratio > 1 + self._high, ratio < 1 - self.clip_range
        stopped = (up[:, None] & (advantage > 0)) | (down[:, None] & (advantage < 0))
        return {"clip_ratio": (stopped & counted).sum(1) / counted.sum(1).clamp(min=1), "ratio": ratio}


def recipe() -> Recipe:
    """GSPO as published: GRPO's groups and advantage, four minibatches of each batch, no KL."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(GroupAdvantage(),),
        terms=(SequenceSurrogate(clip_range=3e-4, clip_range_high=4e-4),),
        optimize=Optimize(epochs=1, minibatches=4),
        adds=("sequence-surrogate",),
        notes={
            "collect": "a group of answers to the same prompt, so that they can be compared",
            "credit": "GRPO's: better than the group's mean is good, worse is bad",
            "improve": "one ratio for a response, the geometric mean of its tokens'; the clip keeps or drops all of it",
        },
    )
