"""SLiC: a hinge on the margin of log-ratios; a pair that is told apart well enough teaches nothing more.

This is the form with a reference in which later work compares it (arXiv:2406.02900): max(0, 1 - beta h). SLiC-HF as
published has no reference in the hinge, max(0, delta - log pi(chosen) + log pi(rejected)), and holds the policy by a
likelihood term on the targets of supervised fine-tuning instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import relu

from polyrl.parts.pairs import LogRatioLoss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "slic"
TITLE = "Sequence Likelihood Calibration"
PAPER = "arXiv:2305.10425"
YEAR = 2023
FORMULA = "loss = max(0, 1 - beta h), h = log(pi/ref)(chosen) - log(pi/ref)(rejected)"
TASK = "sort-pairs"


def slic_loss(h: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta h), with a margin of log-ratios to a reference (arXiv:2406.02900, table 1); any shape."""
    return relu(1 - beta * h)


@dataclass(frozen=True, kw_only=True)
class SlicLoss(LogRatioLoss):
    """Raise the margin of log-ratios until it reaches 1 / beta, and no further."""

    beta: float = hyperparameter(0.1, "strength of the pull to the reference; the margin stops at 1/beta", above=0)

    @property
    def scale(self) -> float:
        """beta."""
        return self.beta

    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of pairs with margins `h`."""
        return slic_loss(h, self.beta)


def recipe() -> Recipe:
    """SLiC with a reference: fixed pairs, summed log-ratios, a hinge."""
    return recipe_of_pairs(
        SLUG,
        SlicLoss(beta=0.1),
        notes={
            "credit": "the whole response is one action: its log-ratio is a sum over tokens",
            "improve": "a hinge: the gradient of a pair is constant until its margin is wide enough, then 0",
        },
    )
