"""REINFORCE for inventories: the score-function gradient, which needs noise but knows nothing of the dynamics.

It differs from hdpo in these points and in nothing else, which makes it hdpo's control arm (arXiv:2306.11246):

1. collect: orders are the network's plus Gaussian noise, whose size is learned;
2. credit: an order is judged by the discounted costs after it, against the other traces' at the same period;
3. improve: the log-probability of what was tried is weighted by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.models.inventory import Best
from polyrl.parts.credit import return_to_go
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.operations import OrderNetwork, SampleOrders
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "reinforce"
TITLE = "REINFORCE"
PAPER = "doi:10.1007/BF00992696"
YEAR = 1992
FORMULA = "A_t = G_t - mean over traces of G_t, G_t = sum_(k >= 0) gamma^k r_(t+k)"
TASK = "lost-sales"


@dataclass(frozen=True, kw_only=True)
class PeriodBaseline(Part):
    """Judge an order by the discounted reward after it, against the mean over all traces at the same period."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    gamma: float = hyperparameter(0.9, "discount of later rewards, per period", low=0, high=1)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        later = return_to_go(experience["reward"], experience["mask"], self.gamma)  # G_t
        counted = experience["mask"] & scored_rows(experience)[:, None]
        if bool(counted.all()):
            return experience.with_fields(advantage=later - later.mean(0))
        mean = torch.where(counted, later, 0.0).sum(0) / counted.sum(0).clamp(min=1)
        return experience.with_fields(advantage=torch.where(counted, later - mean, 0.0))


def recipe() -> Recipe:
    """REINFORCE with hdpo's network, traces and optimizer."""
    return Recipe(
        name=SLUG,
        models={"policy": OrderNetwork(learning_rate=1e-3, max_grad_norm=1.0, noise=1.0), "kept": Best("policy")},
        judged="kept",
        collect=SampleOrders(),
        credit=(PeriodBaseline(),),
        updates=(Epochs((Update("policy", (PolicyGradient(aggregation="token-mean"),), Again()),), Fresh()),),
        adds=("sample-orders", "period-baseline"),
        notes={
            "collect": "orders are tried with noise on fresh demand traces",
            "score": "nothing to add: the simulator has paid minus the cost of each period",
            "credit": "what followed an order, against what followed in the other traces at the same period",
            "select": "every period of every trace counts the same",
            "improve": "one on-policy step of the plain policy gradient; the noise is trained along",
        },
    )
