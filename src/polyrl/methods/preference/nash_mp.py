"""Nash-MP: two proximal steps from one anchor solve the regularized preference game at a linear rate.

The exact algorithm on answers that can be enumerated. A plain self-play step answers the present policy, which in a
cycle of preferences is already the wrong opponent. Mirror prox looks ahead: a half step finds the opponent, and the
whole step answers *it*, from the same anchor. Sampled answers and gradients are `nash-mp-pg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, Move, OwnUpdate, See
from polyrl.models.tables import LogProbabilityTable, SoftmaxTable
from polyrl.parts.theory import EnumerateAnswers, ExactWinRates, check_finite
from polyrl.recipe import Recipe, hyperparameter

SLUG = "nash-mp"
TITLE = "Nash Learning via Mirror Prox"
PAPER = "arXiv:2505.19731"
YEAR = 2025
FORMULA = "log pi' = (log pi_k + eta log ref + eta/beta P q) / (1 + eta), with q = pi_k, then q = pi_{k+1/2}"
TASK = "rock-paper-scissors"
DOMAIN = "theory"


def prox_step(log_anchor: Tensor, log_reference: Tensor, win_rate: Tensor, beta: float, eta: float) -> Tensor:
    """argmin_pi P(q > pi) / beta + KL(pi || ref) + KL(pi || anchor) / eta, in closed form.

    Args:
        log_anchor, log_reference: log-probabilities `[n]`.
        win_rate: `[n]`, P q: how often each answer beats the opponent q.
        beta: strength of the regularization.
        eta: proximal step; 0 stays at the anchor, infinity is the best response ref exp(P q / beta).

    Returns:
        Log-probabilities `[n]`.
    """
    return torch.log_softmax((log_anchor + eta * log_reference + (eta / beta) * win_rate) / (1 + eta), -1)


@dataclass(frozen=True, kw_only=True)
class MirrorProx(OwnUpdate):
    """Take a proximal step from the anchor, in answer to the opponent whose win rates were scored."""

    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    models: ClassVar[frozenset[str]] = frozenset({"anchor"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eta: float | None = hyperparameter(
        None, "proximal step; none takes 2 beta, the largest that the theory allows", above=0
    )

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Play the answer from now on: after a half step the next query is against it."""
        task = see.context.run_state.task
        eta = 2 * task.beta if self.eta is None else self.eta
        new = prox_step(see["anchor"].log_policy, task.log_reference, batch["score"], task.beta, eta)
        check_finite(self, see.context, policy=new)
        see[self.trains].assign(new)
        return {}


@dataclass(frozen=True)
class MoveAnchor(Move):
    """Let the anchor become the policy after a whole step: a half step plays, but moves no anchor."""

    every: int = field(init=False, default=2)
    prox_steps: Literal["two", "one"] = hyperparameter("two", "one is plain self-play: every step moves the anchor")

    def __post_init__(self) -> None:
        """Count the steps from one move to the next."""
        super().__post_init__()
        object.__setattr__(self, "every", 2 if self.prox_steps == "two" else 1)


def recipe() -> Recipe:
    """Version (I) of the paper: exact win rates, two proximal steps an iteration, each a pass through the loop."""
    return Recipe(
        name=SLUG,
        models={"policy": SoftmaxTable(), "anchor": LogProbabilityTable()},
        judged="anchor",
        collect=EnumerateAnswers(),
        score=(ExactWinRates(),),
        credit=(),
        updates=(MirrorProx("policy", Fresh()), MoveAnchor("anchor", "policy")),
        adds=("mirror-prox",),
        notes={
            "collect": "every answer once, against what plays now: pi_k, and in every second pass pi_{k+1/2}",
            "score": "one product P q: the whole cost of a pass, so methods are compared at equal `reward_calls`",
            "credit": "nothing to do: the score is already what each answer is worth",
            "select": "nothing to do: the closed form weighs every answer by itself",
            "improve": "one iteration of the paper is two passes: a half step, and a whole step from the same anchor",
        },
    )
