"""HDPO: differentiate the simulated cost through the known dynamics instead of estimating its gradient.

Demand does not depend on what is ordered, so a trace can be replayed under any policy ("in hindsight"), and the
dynamics are sums, minima and maxima. The gradient of the cost with respect to the policy's parameters is then an
ordinary chain rule over the whole unroll: no exploration noise, no critic, no advantages, no discount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.models.inventory import Best
from polyrl.parts.improve import aggregation_weights
from polyrl.parts.operations import DrawTraces, OrderNetwork
from polyrl.recipe import Recipe, Term

SLUG = "hdpo"
TITLE = "Hindsight Differentiable Policy Optimization"
PAPER = "arXiv:2306.11246"
YEAR = 2023
FORMULA = (
    "grad J = mean over traces xi of d/d theta (1/T) sum_t c(S_t, pi(S_t), xi_t), with S_(t+1) = f(S_t, pi(S_t), xi_t)"
)
TASK = "lost-sales"


@dataclass(frozen=True, kw_only=True)
class PathwiseCost(Term):
    """The mean simulated cost of a period, differentiated through every order and every inventory before it."""

    slot: ClassVar[str] = "policy-objective"
    access: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    needs: ClassVar[frozenset[str]] = frozenset({"demand", "initial_inventory", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"cost"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Cost of every period `[B, T]`, per store; it carries the gradient of all periods before it."""
        return outputs["cost"]

    def step_weights(self, experience: Experience) -> Tensor:
        """1 / (B T) for every period, those in which the system fills up included."""
        return aggregation_weights(experience["weight"], "token-mean")

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Reward of each period, `[B, T]`: minus its cost."""
        return {"reward": -outputs["cost"]}


def recipe() -> Recipe:
    """HDPO as published, with the fully connected network."""
    return Recipe(
        name=SLUG,
        models={"policy": OrderNetwork(learning_rate=3e-3, max_grad_norm=1.0), "kept": Best("policy")},
        judged="kept",
        collect=DrawTraces(),
        updates=(Epochs((Update("policy", (PathwiseCost(),), Again()),), Fresh()),),
        adds=("draw-traces", "pathwise-cost"),
        notes={
            "collect": "only what customers will ask for is drawn; nothing is ordered yet",
            "score": "nothing: the cost is computed where it is differentiated, in improve",
            "credit": "nothing: the chain rule through the simulator gives every order its exact share",
            "select": "every period of every trace counts the same",
            "improve": "the policy is run on the traces and the mean cost is differentiated through the whole run",
        },
    )
