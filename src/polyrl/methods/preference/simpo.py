"""SimPO: judge a response by its own mean log-probability, which is what generation goes by, and ask for a margin.

DPO's reward is a log-ratio to a reference, so a pair that it orders rightly need not be one whose chosen response the
policy would rather say. The mean over tokens is the reward here: no reference model, and no gain by length alone. The
chosen response must be ahead by a margin.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from polyrl.core.experience import Experience
from polyrl.models.language.pairs import sequence_logprob
from polyrl.parts.pairs import ImplicitRewardLoss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "simpo"
TITLE = "Simple Preference Optimization"
PAPER = "arXiv:2405.14734"
YEAR = 2024
FORMULA = "loss = -log sigma(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma), means over tokens"
TASK = "sort-pairs"


def simpo_loss(h: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigma(beta h - gamma) with the difference h of mean log-probabilities (equation 6), nats; any shape."""
    return softplus(gamma - beta * h)


@dataclass(frozen=True, kw_only=True)
class SimpoLoss(ImplicitRewardLoss):
    """Raise the mean log-probability of chosen responses over that of rejected ones, until a margin is reached."""

    beta: float = hyperparameter(0.5, "reward of a response: beta times its mean log-probability a token", above=0)
    target_margin: float = hyperparameter(0.25, "gamma: by how much the chosen response's reward is to be ahead", low=0)

    @property
    def scale(self) -> float:
        """beta (equation 4)."""
        return self.beta

    def implicit_reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Mean log-probability of each response's tokens, `[B]`."""
        return sequence_logprob(outputs["logprob"], experience["mask"], length_norm=True)

    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of pairs with margins `h`."""
        return simpo_loss(h, self.beta, self.target_margin)


def recipe() -> Recipe:
    """SimPO as published: fixed pairs, mean log-probabilities, a margin of half of beta, one pass."""
    return recipe_of_pairs(
        SLUG,
        SimpoLoss(beta=0.5, target_margin=0.25),
        notes={
            "score": "the label is the score; no reference model is asked",
            "credit": "the whole response is one action: its reward is the mean log-probability of its tokens",
            "improve": "a logistic loss on the difference of the two means, less a margin",
        },
    )
