"""APO: iterative DPO that goes on along its last move: after each round the policy is extrapolated, without training.

A round of DPO whose reference is the policy that sampled it is a proximal step. As in Nesterov's method the next one
begins further on: log pi_{t+1} = log pi^_{t+1} + alpha (log pi^_{t+1} - log pi^_t) + const, which is done on parameters
(equation 3.7), where it is exact for policies that are log-linear in them. pi^ is what a round has trained; pi, the
extrapolated one, samples the next round, is its reference and its start. The momentum is measured between *trained*
policies, so it holds all earlier directions. With exact rounds of rewards r_i the trained policy is ref exp(sum_i
(1 - alpha^(t+1-i)) / (1 - alpha) r_i / beta) (theorem 4.1): in the long run a step that is 1 / (1 - alpha) as large.

What is judged and kept is pi^, before its extrapolation: judging pi would be another algorithm (ExPO). alpha 0 is
iterative DPO. Adam's moments go on from round to round, as in `iterative-dpo`; the paper begins them anew (with
RMSProp), raises beta a hundredfold over its three rounds, and samples five answers a prompt. It is not Anchored
Preference Optimization (`apo_zero` and `apo_down` of TRL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from polyrl.core.update import Again, Epochs, Move, See, Update
from polyrl.errors import UserError
from polyrl.methods.preference import iterative_dpo
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.base import Copy
from polyrl.models.language.named import StartingPolicy
from polyrl.recipe import Change, Recipe, hyperparameter

SLUG = "apo"
TITLE = "Accelerated Preference Optimization"
PAPER = "arXiv:2410.06293"
YEAR = 2024
FORMULA = "round: theta^ = argmin DPO from pi_t; theta_{t+1} = theta^_{t+1} + alpha (theta^_{t+1} - theta^_t)"
TASK = "sort-pairs"


def exponent(alpha: float, rounds: int) -> float:
    """What a constant r / beta is multiplied by in log pi^ after so many exact rounds (theorem 4.1)."""
    return sum((1 - alpha**k) / (1 - alpha) for k in range(1, rounds + 1))


@dataclass(frozen=True)
class Extrapolate(Move):
    """Move the policy on, away from what the round before had trained: theta + alpha (theta - theta^_t)."""

    tau: float = field(init=False, default=-0.3)
    alpha: float = hyperparameter(
        0.3, "how far the policy goes on along its last move; 0 is iterative DPO", low=0, high=0.99
    )

    def __post_init__(self) -> None:
        """The share of the way towards the earlier policy is -alpha."""
        super().__post_init__()
        object.__setattr__(self, "tau", -self.alpha)

    def after_move(self, see: See) -> Mapping[str, float]:
        """How far the trained policy has come in this round, as a distance of parameters.

        Raises:
            UserError: adapters are trained: their product is what the model has, and it is not linear in them.
        """
        if self.alpha and see.context.run_state.lora is not None:
            raise UserError(
                "APO extrapolates parameters, and what two adapters multiply to is not extrapolated with them; leave "
                "--lora away, or set --alpha 0, which is iterative DPO."
            )
        return {"extrapolated": self.alpha * see.models.distance("trained", self.towards)}


@dataclass(frozen=True, kw_only=True)
class InRounds(Change):
    """Stands for APO's rounds where they are added to another method, which they cannot be."""

    def change(self, recipe: Recipe) -> Recipe:
        """Nothing: the rounds come first in a composition.

        Raises:
            UserError: always.
        """
        raise UserError("apo improves several policies in turn, so it comes first in a composition, as in apo+ipo.")


def recipe() -> Recipe:
    """A round is an iteration: 4 responses to each of 128 prompts, 2 passes over the pairs, then the extrapolation."""
    rounds = iterative_dpo.recipe()
    return replace(
        rounds,
        name=SLUG,
        models={
            "policy": StartingPolicy(learning_rate=3e-4),
            "trained": Copy("policy"),
            "before": Copy("policy"),
            "reference": Copy("policy"),  # the start, for losses that anchor to it, as in apo+inpo
        },
        judged="trained",
        terms=(),
        optimize=None,
        updates=(
            Epochs((Update("policy", (DPOLoss(beta=0.1, reference="round"),), Again()),), epochs=2, minibatches=4),
            Move("before", "trained"),  # pi^_t
            Move("trained", "policy"),  # pi^_{t+1}, which is judged
            Extrapolate("policy", "before"),  # pi_{t+1}, which samples the next round
        ),
        adds=(),
        joins=(InRounds(),),
        notes={
            **rounds.notes,
            "collect": "a round begins: several responses of the extrapolated policy to each of many prompts",
            "improve": "several passes of DPO from that policy; then it goes on along the move of the round",
        },
    )
