"""REINFORCE for inventories: the score-function gradient, which needs noise but knows nothing of the dynamics.

It differs from hdpo in these points and in nothing else, which makes it hdpo's control arm (arXiv:2306.11246):

1. collect: orders are the network's plus Gaussian noise, whose size is learned;
2. credit: an order is judged by the discounted costs after it, against the other traces' at the same period;
3. improve: the log-probability of what was tried is weighted by that.
"""

from __future__ import annotations

from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.models.inventory import Best
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.operations import OrderNetwork, PeriodBaseline, SampleOrders
from polyrl.recipe import Recipe

SLUG = "reinforce"
TITLE = "REINFORCE"
PAPER = "doi:10.1007/BF00992696"
YEAR = 1992
FORMULA = "A_t = G_t - mean over traces of G_t, G_t = sum_(k >= 0) gamma^k r_(t+k)"
TASK = "lost-sales"


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
