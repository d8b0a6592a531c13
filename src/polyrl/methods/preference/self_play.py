"""Self-play: mirror descent against the present policy, the exact update that INPO fits by regression.

`eta` is inverse, as in the paper: the step is 1 / eta. It is one proximal step of `nash-mp` with e / (1 + e) =
beta / eta. Below a threshold of eta it circles for ever where preferences do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.parts.theory import EnumerateAnswers, ExactWinRates, check_finite
from polyrl.recipe import Improver, Recipe, Term, hyperparameter

SLUG = "self-play"
TITLE = "Iterative Nash Policy Optimization, exact update"
PAPER = "arXiv:2407.00617"
YEAR = 2024
FORMULA = "pi_{t+1} ~ exp(P pi_t / eta) ref^(tau/eta) pi_t^(1 - tau/eta)"
TASK = "rock-paper-scissors"
DOMAIN = "theory"


def self_play_step(log_policy: Tensor, log_reference: Tensor, win_rate: Tensor, tau: float, eta: float) -> Tensor:
    """The target of round t, log-probabilities `[n]`; `win_rate` `[n]` is P pi_t (equation 4)."""
    share = tau / eta
    return torch.log_softmax(win_rate / eta + share * log_reference + (1 - share) * log_policy, -1)


@dataclass(frozen=True, kw_only=True)
class OnlineMirrorDescent(Improver):
    """Move the policy along its win rates against itself, pulled towards the reference."""

    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eta: float = hyperparameter(2.0, "inverse step, in win rate per nat; at least the game's beta", above=0)

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Take one step.

        Raises:
            UserError: eta is below the game's beta, so the policy would get a negative weight.
        """
        run_state = context.run_state
        if self.eta < run_state.task.beta:
            raise UserError(f"{self.name}.eta is {self.eta:g} but must be at least beta={run_state.task.beta:g}.")
        new = self_play_step(
            run_state.log_policy, run_state.task.log_reference, experience["score"], run_state.task.beta, self.eta
        )
        check_finite(self, context, policy=new)
        context.params_updated = True
        context.spent.updates += 1
        run_state.set_policy(new)


def recipe() -> Recipe:
    """Exact rounds, one query each."""
    return Recipe(
        name=SLUG,
        collect=EnumerateAnswers(),
        score=(ExactWinRates(),),
        credit=(),
        terms=(),
        optimize=OnlineMirrorDescent(),
        adds=("online-mirror-descent",),
        notes={
            "collect": "every answer once, against the policy itself",
            "score": "one product P q",
            "improve": "one step with two anchors, the policy and the reference; tau of the paper is the game's beta",
        },
    )
