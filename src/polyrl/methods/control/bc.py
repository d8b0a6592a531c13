"""BC: imitate whoever acted in the data, by the likelihood of his actions; rewards are not looked at."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Sample, Update, flat
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.models.policies import DeterministicPolicy, StochasticPolicy
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Change, Recipe

SLUG = "bc"
TITLE = "Behavioural Cloning"
PAPER = "doi:10.1162/neco.1991.3.1.88"
YEAR = 1991
FORMULA = "loss = -log pi(a_data | s), or (pi(s) - a_data)^2 of a deterministic policy"
TASK = "Pendulum-v1"


@dataclass(frozen=True, kw_only=True)
class ImitationLoss(OffPolicyTerm):
    """Raise the likelihood of the data's actions."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"logprob"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-log pi, `[B, T]`."""
        return -outputs["logprob"]


@dataclass(frozen=True, kw_only=True)
class ActionError(OffPolicyTerm):
    """Bring the policy's action near to the data's."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"mode"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Mean squared error of an action's numbers, `[B, T]`."""
        return (outputs["mode"] - experience["action"]).square().mean(-1)


@dataclass(frozen=True, kw_only=True)
class Deterministic(Change):
    """Imitate by a deterministic policy and the squared error of its actions."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with the policy and its loss exchanged.

        Raises:
            UserError: it does not imitate.
        """
        if not any(
            isinstance(t, ImitationLoss) for u in flat(recipe.updates) if isinstance(u, Update) for t in u.terms
        ):
            raise UserError(f"{recipe.name} imitates nobody, so there is nothing that '{self.name}' could change.")
        squared = Recipe(
            name=self.name,
            models={"policy": DeterministicPolicy()},
            updates=(Update("policy", (ActionError(),), Sample("data")),),
            adds=("policy", "action-error"),
        )
        return dataclasses.replace(recipe + squared, name=recipe.name, adds=recipe.adds)


def recipe() -> Recipe:
    """One update of the policy a turn, on rows of the data."""
    return Recipe(
        name=SLUG,
        models={"policy": StochasticPolicy()},
        sources={"data": Transitions()},
        updates=(Update("policy", (ImitationLoss(),), Sample("data", batch_size=256)),),
        turns=1_000,
        adds=("policy", "imitation-loss"),
        notes={"improve": "supervised learning of the data's actions"},
        budget="iterations=100",
    )
