"""IQL: learn from data without ever asking what an action that is not in it would be worth.

The value of a state is an expectile of the critics over the data's actions, near to that of the best of them. Critics
learn towards it, and the policy imitates the data's actions, each the more the better it is than that value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Move, Sample, See, Update
from polyrl.data.transitions import Transitions
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork, ValueNetwork
from polyrl.models.policies import GaussianPolicy
from polyrl.parts.replayed import OffPolicyTerm, SquaredTD
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "iql"
TITLE = "Offline Reinforcement Learning with Implicit Q-Learning"
PAPER = "arXiv:2110.06169"
YEAR = 2021
FORMULA = "V: E[|tau - 1(u < 0)| u^2], u = min Q'(s, a) - V(s); y = r + gamma V(s'); pi: max E[exp(beta u) log pi(a|s)]"
TASK = "Pendulum-v1"


@dataclass(frozen=True, kw_only=True)
class DataActionValue(Part):
    """Measure the least target critic's value of the action that the data took."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action"})
    gives: ClassVar[frozenset[str]] = frozenset({"action_value"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    models: ClassVar[frozenset[str]] = frozenset({"q_target"})

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `action_value` [B, T]."""
        value: Tensor = see["q_target"](batch["observation"], batch["action"]).amin(-1)
        return batch.with_fields(action_value=value)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2 (equation 5); tau = 1/2 is half the squared error. Any shape."""
    return torch.where(error < 0, 1 - expectile, expectile) * error.square()


@dataclass(frozen=True, kw_only=True)
class ExpectileValue(OffPolicyTerm):
    """Bring the state's value to an expectile of the values of the data's actions there."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"action_value", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})

    expectile: float = hyperparameter(0.7, "tau: 0.5 is the mean, near 1 the best; 0.9 in mazes", above=0, high=1)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every row, `[B, T]`."""
        return expectile_loss(experience["action_value"] - outputs["value"], self.expectile)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The mean value of states."""
        return {"state_value": outputs["value"]}


def advantage_weight(advantage: Tensor, inverse_temperature: float, largest: float) -> Tensor:
    """exp(beta A), at most `largest` (equation 7 and its code). Any shape."""
    return (inverse_temperature * advantage).exp().clamp(max=largest)


@dataclass(frozen=True, kw_only=True)
class AdvantageWeight(Part):
    """Weigh the data's actions by how much better they are than the state's value."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action_value"})
    gives: ClassVar[frozenset[str]] = frozenset({"imitation_weight"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "imitation_weight": Field(
            "[B, T]", "float32", "-", "how much the action is imitated: grows with its advantage"
        ),
    }
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    models: ClassVar[frozenset[str]] = frozenset({"value"})

    inverse_temperature: float = hyperparameter(3.0, "beta: 0 imitates all alike; 10 in mazes", low=0)
    largest_weight: float = hyperparameter(100.0, "at which weights are clipped", above=0)

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `imitation_weight` [B, T]."""
        advantage = batch["action_value"] - see["value"](batch["observation"])
        return batch.with_fields(
            imitation_weight=advantage_weight(advantage, self.inverse_temperature, self.largest_weight)
        )


@dataclass(frozen=True, kw_only=True)
class WeightedImitation(OffPolicyTerm):
    """Raise the likelihood of the data's actions, each by its weight (equation 7)."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "imitation_weight", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"logprob"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-weight log pi, `[B, T]`."""
        return -experience["imitation_weight"] * outputs["logprob"]

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The mean weight."""
        return {"imitation_weight": experience["imitation_weight"]}


@dataclass(frozen=True, kw_only=True)
class StateValueTarget(Part):
    """Targets of the critics: the reward, and the value of the state that followed."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    models: ClassVar[frozenset[str]] = frozenset({"value"})

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` [B, T] (equation 6)."""
        return batch.with_fields(
            value_target=batch["reward"] + batch["discount"] * see["value"](batch["next_observation"])
        )


def recipe() -> Recipe:
    """IQL in its code's order: value, policy and critics on the same rows, then the critics' copies."""
    return Recipe(
        name=SLUG,
        models={
            "policy": GaussianPolicy(schedule="cosine"),
            "q": QNetwork(critics=2),
            "q_target": Copy("q"),
            "value": ValueNetwork(),
        },
        sources={"data": Transitions(reward_scale="return-range")},
        updates=(
            Update("value", (ExpectileValue(),), Sample("data", batch_size=256), credit=(DataActionValue(),)),
            Update("policy", (WeightedImitation(),), Again(), credit=(AdvantageWeight(),)),
            Update("q", (SquaredTD(),), Again(), credit=(StateValueTarget(),)),
            Move("q_target", "q", tau=0.005),
        ),
        turns=1_000,
        adds=("expectile-value", "data-action-value", "advantage-weight", "weighted-imitation", "state-value-target"),
        notes={"improve": "one update of value, policy and critics a turn, each on the same rows of the data"},
        budget="iterations=100",
    )
