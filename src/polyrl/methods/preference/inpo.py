"""INPO: find the policy that no other beats, by a squared regression on pairs of the present policy, in rounds.

Preferences may go in circles, and then no reward explains them. Mirror descent in the game of the policy against itself
goes from pi_t to pi_{t+1} ~ exp(P(y > pi_t) / eta) ref^(tau/eta) pi_t^(1 - tau/eta). That target is the minimum of a
regression on pairs that pi_t samples, in which the win rate against pi_t never has to be known. The log-ratio has two
anchors: the start, at which the game is regularized, and the policy that sampled the round.

`eta` is inverse, as in the paper: the step is 1 / eta, and 0 <= tau <= eta. The equality needs two independent samples
and drawn labels: best and worst of more, and labels by majority, aim elsewhere (they step too far). The exact update is
`self-play`. With tau = eta it is IPO on the pairs of each round; with tau = 0 iterative IPO whose reference is pi_t.
The paper's best-and-worst of 8 is `completions_per_prompt=8`; its optimizer's settings are recalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.preference.ipo import ipo_loss
from polyrl.models.language.pairs import sequence_log_ratio
from polyrl.parts.optimize import Optimize
from polyrl.parts.pairs import BestVersusWorst, ImplicitRewardLoss, PreferenceLabel, SamplePairs
from polyrl.recipe import Recipe, hyperparameter

SLUG = "inpo"
TITLE = "Iterative Nash Policy Optimization"
PAPER = "arXiv:2407.00617"
YEAR = 2024
FORMULA = "loss = (h - 1/(2 eta))^2, h of log pi - (tau/eta) log ref - (1 - tau/eta) log pi_t"
TASK = "sort-pairs"


@dataclass(frozen=True, kw_only=True)
class INPOLoss(ImplicitRewardLoss):
    """Draw the margin of log-ratios to two anchors towards 1 / (2 eta)."""

    needs: ClassVar[frozenset[str]] = ImplicitRewardLoss.needs | {"behaviour_logprob"}

    eta: float = hyperparameter(0.1, "inverse step size: the margin aims at 1/(2 eta); at least tau", above=0)
    tau: float = hyperparameter(0.033, "strength of the pull to the start; tau/eta is its share of the anchor", low=0)

    @property
    def scale(self) -> float:
        """eta: a margin of 1 / (2 eta) is a reward of 1/2."""
        return self.eta

    def check_within(self, recipe: Recipe) -> None:
        """The share of the start, tau / eta, is at most all of the anchor.

        Raises:
            UserError: tau is above eta.
        """
        if self.tau > self.eta:
            raise UserError(
                f"{recipe.name}: tau {self.tau:g} is above eta {self.eta:g}, which is the inverse of the step size; "
                f"set --eta to {self.tau:g} or more, or --tau to {self.eta:g} or less."
            )

    def required(self) -> frozenset[str]:
        """The start is asked only where it is an anchor."""
        return self.needs | ({"ref_logprob"} if self.tau else set())

    def implicit_reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """log pi - (tau/eta) log ref - (1 - tau/eta) log pi_t of each response, nats `[B]`."""
        anchor, share = experience["behaviour_logprob"], self.tau / self.eta
        if share:
            anchor = share * experience["ref_logprob"] + (1 - share) * anchor
        return sequence_log_ratio(outputs["logprob"], anchor, experience["mask"])

    def pair_loss(self, h: Tensor) -> Tensor:
        """(h - 1/(2 eta))^2 of pairs with margins `h`: IPO's, on another h."""
        return ipo_loss(h, self.eta)


def recipe() -> Recipe:
    """A round is an iteration: two samples for each of 256 prompts, drawn labels, 2 passes in minibatches."""
    return Recipe(
        name=SLUG,
        collect=SamplePairs(prompts_per_step=256, completions_per_prompt=2),
        score=(PreferenceLabel(label="bernoulli"),),
        credit=(),
        select=(BestVersusWorst(),),
        terms=(INPOLoss(eta=0.1, tau=0.033),),
        optimize=Optimize(learning_rate=3e-4, schedule="cosine", epochs=2, minibatches=8),
        adds=("sample-pairs", "preference-label", "best-versus-worst", "inpo-loss"),
        notes={
            "collect": "a round begins: two independent responses of the present policy to each prompt",
            "score": "a preference function says which wins, drawn by its probability",
            "select": "the winner is chosen, the other rejected",
            "credit": "the whole response is one action: its log-ratio to both anchors is a sum over tokens",
            "improve": "a squared loss: the margin beyond both anchors is to be 1 / (2 eta)",
        },
    )
