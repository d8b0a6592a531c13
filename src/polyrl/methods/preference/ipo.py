"""IPO: regress the margin of log-ratios to a finite target, so that sure labels cannot drive the policy to certainty.

DPO's reward is unbounded: where one response always wins, its loss falls for ever and no beta keeps the policy near the
reference. IPO optimizes the probability of preference itself, of which a logit is only one transform (section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyrl.parts.pairs import LogRatioLoss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "ipo"
TITLE = "Identity Preference Optimization"
PAPER = "arXiv:2310.12036"
YEAR = 2023
FORMULA = "loss = (h - 1/(2 tau))^2, h = log(pi/ref)(chosen) - log(pi/ref)(rejected)"
TASK = "sort-pairs"


def ipo_loss(h: Tensor, tau: float) -> Tensor:
    """(h - 1/(2 tau))^2 (equation 17); any shape.

    Its minimum over one margin is (p - 1/2) / tau, where p is the probability that the chosen one wins. It equals
    (beta h - 1)^2 / (4 tau^2) with beta = 2 tau.
    """
    return (h - 1 / (2 * tau)).square()


@dataclass(frozen=True, kw_only=True)
class IPOLoss(LogRatioLoss):
    """Draw the margin of log-ratios towards 1 / (2 tau) (equation 17).

    As written, log-ratios are sums over tokens. With `length_norm` they are means: then tau is per token, and not
    comparable.
    """

    tau: float = hyperparameter(0.1, "strength of the pull to the reference; the margin aims at 1/(2 tau)", above=0)

    @property
    def scale(self) -> float:
        """tau, which plays beta's part."""
        return self.tau

    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of pairs with margins `h`."""
        return ipo_loss(h, self.tau)


def recipe() -> Recipe:
    """IPO as published: fixed pairs, summed log-ratios, a squared loss."""
    return recipe_of_pairs(
        SLUG,
        IPOLoss(tau=0.1),
        notes={
            "credit": "the whole response is one action: its log-ratio is a sum over tokens",
            "improve": "a squared loss: a margin beyond the target is as wrong as one short of it",
        },
    )
