"""Reward model: learn to score responses, so that chosen ones score above rejected ones.

A copy of the language model with one number in place of its output head, trained by maximum likelihood under the
Bradley-Terry model of preference. The run's `model/` is a reward for any other run: `--reward runs/.../model`. Scores
are free up to a constant and their scale is an accident of training, so there they have mean 0 and standard deviation 1
on the responses of held-out pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from polyrl.core.experience import Experience
from polyrl.models.language.pairs import by_pair
from polyrl.parts.pairs import PairTerm, recipe_of_pairs, whole_pairs
from polyrl.recipe import Recipe
from polyrl.tasks.language.preferences import PAIR_METRIC

SLUG = "reward-model"
TITLE = "Reward Model from Preferences"
PAPER = "arXiv:2009.01325"
YEAR = 2020
FORMULA = "loss = -log sigma(r(x, chosen) - r(x, rejected))"
TASK = "sort-pairs"


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(PairTerm):
    """Raise the score of chosen responses over that of rejected ones (equation 1)."""

    wants: ClassVar[frozenset[str]] = frozenset({"score"})
    models: ClassVar[frozenset[str]] = frozenset({"reward-model"})

    def margin(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Difference of the two scores of each row's pair, `[B]`."""
        chosen, rejected = by_pair(outputs["score"], whole_pairs(experience), experience["preferred"])
        return chosen - rejected

    def pair_loss(self, h: Tensor) -> Tensor:
        """-log sigma(h), nats."""
        return softplus(-h)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Scores, their margin and how often it is positive: `[B]`, TRL's names."""
        chosen, rejected = by_pair(outputs["score"], whole_pairs(experience), experience["preferred"])
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        }


def recipe() -> Recipe:
    """One pass over fixed pairs with the Bradley-Terry loss."""
    notes = {"improve": "a logistic loss on the difference of the two scores"}
    return replace(recipe_of_pairs(SLUG, BradleyTerry(), notes=notes), metric=PAIR_METRIC)
