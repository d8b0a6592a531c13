"""Self-play: mirror descent against the present policy, the exact update that INPO fits by regression.

`eta` is inverse, as in the paper: the step is 1 / eta. It is one proximal step of `nash-mp` with e / (1 + e) =
beta / eta. Below a threshold of eta it circles for ever where preferences do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.tables import SoftmaxTable
from polyrl.parts.theory import EnumerateAnswers, ExactWinRates, check_finite
from polyrl.recipe import Recipe, hyperparameter

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
class OnlineMirrorDescent(OwnUpdate):
    """Move the policy along its win rates against itself, pulled towards the reference."""

    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eta: float = hyperparameter(2.0, "inverse step, in win rate per nat; at least the game's beta", above=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Take one step.

        Raises:
            UserError: eta is below the game's beta, so the policy would get a negative weight.
        """
        task, trained = see.context.run_state.task, see[self.trains]
        if self.eta < task.beta:
            raise UserError(f"{self.name}.eta is {self.eta:g} but must be at least beta={task.beta:g}.")
        new = self_play_step(trained.log_policy, task.log_reference, batch["score"], task.beta, self.eta)
        check_finite(self, see.context, policy=new)
        trained.assign(new)
        return {}


def recipe() -> Recipe:
    """Exact rounds, one query each."""
    return Recipe(
        name=SLUG,
        models={"policy": SoftmaxTable()},
        collect=EnumerateAnswers(),
        score=(ExactWinRates(),),
        credit=(),
        updates=(OnlineMirrorDescent("policy", Fresh()),),
        adds=("online-mirror-descent",),
        notes={
            "collect": "every answer once, against the policy itself",
            "score": "one product P q",
            "improve": "one step with two anchors, the policy and the reference; tau of the paper is the game's beta",
        },
    )
