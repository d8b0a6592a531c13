"""Nash-MD: mirror descent against a mixture of the policy and the reference.

The opponent is the geometric mixture pi_t^(1 - eta tau) ref^(eta tau), and the new policy starts from it too: pulling
both towards the reference is what makes the last policy, and not only the average, converge. One query a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.tables import SoftmaxTable
from polyrl.parts.theory import EnumerateAnswers, ExactWinRates, check_finite
from polyrl.recipe import Recipe, hyperparameter

SLUG = "nash-md"
TITLE = "Nash Learning from Human Feedback"
PAPER = "arXiv:2312.00886"
YEAR = 2023
FORMULA = "pi_{t+1} ~ mix exp(eta P mix), mix ~ pi_t^(1 - eta tau) ref^(eta tau), eta = 2 / (tau (t + 2))"
TASK = "rock-paper-scissors"
DOMAIN = "theory"


def mixture(log_policy: Tensor, log_reference: Tensor, weight: float) -> Tensor:
    """Log-probabilities `[n]` of the geometric mixture policy^(1 - weight) ref^weight (section 6, equation 2)."""
    return torch.log_softmax((1 - weight) * log_policy + weight * log_reference, -1)


def step_size(eta: float | None, tau: float, t: int, name: str) -> float:
    """Step of iteration `t` (from 0): `eta`, or the theorem's 2 / (tau (t + 2)).

    Raises:
        UserError: eta tau is above 1, so the mixture would not be one.
    """
    if eta is None:
        return 2 / (tau * (t + 2))
    if eta * tau > 1:
        raise UserError(f"{name}.eta is {eta:g}, but with beta={tau:g} it must be at most {1 / tau:g}.")
    return eta


@dataclass(frozen=True, kw_only=True)
class EnumerateAgainstMixture(EnumerateAnswers):
    """Take every answer of the game once; the opponent is the mixture of policy and reference."""

    eta: float | None = hyperparameter(None, "step of mirror descent; none takes 2 / (beta (t + 2))", above=0)

    def opponent(self, context: Context) -> Tensor:
        """Log-probabilities `[n]` of the mixture."""
        tau = context.run_state.task.beta
        weight = tau * step_size(self.eta, tau, context.iteration - 1, self.name)
        return mixture(context.run_state.log_policy, context.run_state.task.log_reference, weight)


@dataclass(frozen=True, kw_only=True)
class MixtureMirrorDescent(OwnUpdate):
    """Move from the mixture along its win rates: pi_{t+1} ~ mix exp(eta P mix) (section 6, equation 3)."""

    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "opponent_logprob"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eta: float | None = hyperparameter(None, "step of mirror descent; none takes 2 / (beta (t + 2))", above=0)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse an opponent that was mixed with another step."""
        if recipe.collected_by("eta", None) != self.eta:
            raise UserError(f"{recipe.name}: collect and improve must use one step; set --eta for both.")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Take one step."""
        context = see.context
        step = step_size(self.eta, context.run_state.task.beta, context.iteration - 1, self.name)
        new = torch.log_softmax(batch["opponent_logprob"][:, 0] + step * batch["score"], -1)
        check_finite(self, context, policy=new)
        see[self.trains].assign(new)
        return {}


def recipe() -> Recipe:
    """The exact algorithm with the step sizes of Theorem 1."""
    return Recipe(
        name=SLUG,
        models={"policy": SoftmaxTable()},
        collect=EnumerateAgainstMixture(),
        score=(ExactWinRates(),),
        credit=(),
        updates=(MixtureMirrorDescent("policy", Fresh()),),
        adds=("enumerate-against-mixture", "mixture-mirror-descent"),
        notes={
            "collect": "every answer once, against the mixture of the policy and the reference",
            "score": "one product P q",
            "improve": "a step from the mixture; tau of the paper is the game's beta",
        },
    )
