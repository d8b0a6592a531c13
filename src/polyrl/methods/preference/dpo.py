"""DPO: one logistic loss on log-ratios to the start takes the place of a reward model and of sampling.

The best policy under max E[r] - beta KL(pi || ref) is ref * exp(r / beta) / Z (equation 4). Read backwards it says
r(x, y) = beta log(pi(y|x) / ref(y|x)) + beta log Z(x) (equation 5); in the Bradley-Terry probability of a pair Z
cancels, so the policy itself can be fitted to labelled pairs by maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from polyrl.parts.pairs import LogRatioLoss, dpo_loss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "dpo"
TITLE = "Direct Preference Optimization"
PAPER = "arXiv:2305.18290"
YEAR = 2023
FORMULA = "loss = -log sigma(beta h), h = log(pi/ref)(chosen) - log(pi/ref)(rejected)"
TASK = "sort-pairs"

Labels = Literal["sigmoid", "robust"]


def robust_dpo_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """(-(1-e) log sigma(beta h) + e log sigma(-beta h)) / (1 - 2e) (arXiv:2403.00409, equation 12); any shape.

    Where labels are flipped with probability e its mean is the loss of the true labels. It can be negative.
    """
    z = beta * h
    return ((1 - label_smoothing) * softplus(-z) - label_smoothing * softplus(z)) / (1 - 2 * label_smoothing)


@dataclass(frozen=True, kw_only=True)
class DPOLoss(LogRatioLoss):
    """Raise the log-ratio of chosen responses over that of rejected ones, through a logistic loss (equation 7)."""

    beta: float = hyperparameter(0.1, "strength of the pull to the reference: reward = beta * log-ratio", above=0)
    label_smoothing: float = hyperparameter(0.0, "share of labels assumed to be flipped (cDPO)", low=0, high=0.49)
    loss_type: Labels = hyperparameter("sigmoid", "sigmoid, or robust: unbiased where labels are flipped")

    @property
    def scale(self) -> float:
        """beta: an implicit reward is beta times the log-ratio (equation 5)."""
        return self.beta

    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of pairs with margins `h`."""
        loss = robust_dpo_loss if self.loss_type == "robust" else dpo_loss
        return loss(h, self.beta, self.label_smoothing)


def recipe() -> Recipe:
    """DPO as published: fixed pairs, summed log-ratios to the starting model, one pass."""
    return recipe_of_pairs(
        SLUG,
        DPOLoss(beta=0.1),
        notes={
            "score": "the label is the score; the starting model says how likely it finds each response",
            "credit": "the whole response is one action: its log-ratio is a sum over tokens",
            "improve": "a logistic loss on the difference of the two log-ratios",
        },
    )
