"""RPO: DPO against an adversary who chooses the reward, which comes to imitating the chosen responses a little.

The policy is to be good under the reward that fits the pairs and speaks most against it, compared with a baseline
policy: max over pi, min over r of eta E[r(pi) - r(baseline) - beta KL(pi || ref)] + loss of r on the pairs. With min
and max exchanged pi is ref exp(r / beta) / Z, and put in, Z cancels: what is left is DPO's loss and eta beta times the
negative log-likelihood of the baseline's answers. So mass on answers that are in no pair is pushed down.

Two losses that are no multiples of each other bear this name in the authors' code
(YSLIU627/Regularized-Preference-Optimization), and TRL's recipe is a third: see `BaselineNLL`. The baseline is the
distribution of chosen responses, as there, or demonstrations. The code leaves eta below 1e-6 out; here it counts as it
is. Other papers are called RPO too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from polyrl.errors import UserError
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.parts.imitation import ImitationNLL
from polyrl.parts.improve import AGGREGATION_HELP, Aggregation
from polyrl.parts.pairs import LogRatioLoss, recipe_of_pairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "rpo"
TITLE = "Regularized Preference Optimization"
PAPER = "arXiv:2405.16436"
YEAR = 2024
FORMULA = "loss = -log sigma(beta h) - eta beta log pi(chosen), h = log(pi/ref)(chosen) - log(pi/ref)(rejected)"
TASK = "sort-pairs"

CUMULATIVE: Aggregation = "seq-mean-token-sum"
"""The average over responses of sums over tokens: the form that is derived, whose weight is eta beta."""


@dataclass(frozen=True, kw_only=True)
class BaselineNLL(ImitationNLL):
    """Imitate the baseline's answers, by default the chosen ones, beside a preference loss.

    With `aggregation=seq-mean-token-sum` it is the cumulative form, eta beta times the sum over a response's tokens.
    With any other there is no beta in it, as in the authors' code: `seq-mean-token-mean` is their average form, whose
    published eta is 0.2, and `token-mean` is TRL's loss `sft` beside `sigmoid`.
    """

    eta: float = hyperparameter(0.005, "weight of the likelihood: times beta in the cumulative form alone", low=0)
    beta: float = hyperparameter(0.1, "strength of the pull to the reference, that of the preference loss", above=0)
    imitate: Literal["demonstrations", "chosen"] = hyperparameter(
        "chosen", "whose answers the baseline gives: the pairs' chosen responses, or demonstrations"
    )
    aggregation: Aggregation = hyperparameter(CUMULATIVE, AGGREGATION_HELP)

    @property
    def imitation_weight(self) -> float:
        """Eta beta in the cumulative form, eta in the others."""
        return self.eta * self.beta if self.aggregation == CUMULATIVE else self.eta

    def check_within(self, recipe: Recipe) -> None:
        """The beta of the derivation is that of the preference loss: two would be no RPO.

        Raises:
            UserError: the recipe's loss on log-ratios has another.
        """
        for term in recipe.parts():
            if isinstance(term, LogRatioLoss) and self.aggregation == CUMULATIVE and term.scale != self.beta:
                raise UserError(
                    f"{recipe.name}: '{self.name}' has beta {self.beta:g} and '{term.name}' {term.scale:g}, and in the "
                    f"cumulative form they are one number; set --{self.name}.beta {term.scale:g}."
                )


def recipe() -> Recipe:
    """RPO in its cumulative form: fixed pairs, DPO's loss, and eta beta times the chosen responses' likelihood."""
    made = recipe_of_pairs(
        SLUG,
        DPOLoss(beta=0.1),
        BaselineNLL(eta=0.005, beta=0.1),
        notes={
            "score": "the label is the score; the starting model says how likely it finds each response",
            "credit": "the whole response is one action: its log-ratio is a sum over tokens",
            "improve": "DPO's loss, and the chosen responses are imitated a little: what is in no pair loses mass",
        },
    )
    return replace(made, adds=("baseline-nll",))
