"""ORPO: learn to say the chosen response, and in the same step raise its odds over those of the rejected one.

Imitation alone raises rejected responses too, since both are written alike. The odds ratio holds them down, and the
likelihood of the chosen response holds the policy: no reference is needed, and no fine-tuning comes before.

The likelihood is of the response alone, as in the authors' code with `disable_prompt_loss`, and its mean is over the
tokens of a response first, as in the paper; their code has one mean over all tokens (`aggregation=token-mean`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from polyrl.core.experience import Experience
from polyrl.models.language.pairs import sequence_logprob
from polyrl.parts.imitation import DemonstrationNLL
from polyrl.parts.pairs import ImplicitRewardLoss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "orpo"
TITLE = "Odds Ratio Preference Optimization"
PAPER = "arXiv:2403.07691"
YEAR = 2024
FORMULA = "loss = -mean log pi(chosen) - lambda log sigma(log odds(chosen) - log odds(rejected)), odds = p / (1 - p)"
TASK = "sort-pairs"

SUREST = -1e-6
"""Largest mean log-probability, nats a token: beyond it the odds are infinite in float32."""


def log_odds(mean_logprob: Tensor) -> Tensor:
    """log p / (1 - p) of p = exp(mean log-probability), the geometric mean of the tokens' (equation 4); any shape."""
    sure = mean_logprob.clamp(max=SUREST)
    return sure - torch.log(-torch.expm1(sure))


def odds_ratio_loss(h: Tensor) -> Tensor:
    """-log sigma(h), h = log odds(chosen) - log odds(rejected) (equation 7), nats; any shape."""
    return softplus(-h)


@dataclass(frozen=True, kw_only=True)
class OddsRatioLoss(ImplicitRewardLoss):
    """Raise the odds of chosen responses over those of rejected ones, through a logistic loss."""

    odds_weight: float = hyperparameter(0.1, "lambda: weight of the odds ratio beside the likelihood", low=0)

    @property
    def scale(self) -> float:
        """1: the log odds themselves are logged."""
        return 1.0

    def implicit_reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Log odds of each response, `[B]`."""
        return log_odds(sequence_logprob(outputs["logprob"], experience["mask"], length_norm=True))

    def pair_loss(self, h: Tensor) -> Tensor:
        """Weighted loss of pairs whose log odds ratios are `h`."""
        return self.odds_weight * odds_ratio_loss(h)


def recipe() -> Recipe:
    """ORPO as published (equation 6): fixed pairs, the chosen response's likelihood and a small odds-ratio term."""
    return recipe_of_pairs(
        SLUG,
        OddsRatioLoss(odds_weight=0.1),
        DemonstrationNLL(demonstration_weight=1.0, imitate="chosen", aggregation="seq-mean-token-mean"),
        notes={
            "score": "the label is the score; no reference model is asked",
            "credit": "the whole response is one action: its odds are those of the mean of its tokens",
            "improve": "the chosen response is imitated, and a logistic loss holds the rejected one's odds below",
        },
    )
