"""RLPD: SAC that learns on line from its own steps and from data at once, half of each batch from each.

Ten critics with layer normalization, which keeps what they say of unknown actions from running away, allow twenty
updates of them for every step. Targets take the least of two of the ten, drawn anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.update import Again, Mix, Move, Repeat, See, Update
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.policies import SquashedGaussian
from polyrl.models.scalar import PositiveScalar
from polyrl.parts.replayed import EntropyTarget, SoftTarget, SoftValue, SquaredTD, StepAndKeep
from polyrl.recipe import Recipe, Scope, hyperparameter

SLUG = "rlpd"
TITLE = "Efficient Online Reinforcement Learning with Offline Data"
PAPER = "arXiv:2302.02948"
YEAR = 2023
FORMULA = "SAC; y = r + gamma (min of 2 of 10 Q'(s', a') - alpha log pi); half of each batch is data; 20 updates a step"
TASK = "Pendulum-v1"


@dataclass(frozen=True, kw_only=True)
class SubsetTarget(SoftTarget):
    """SAC's targets with the least of a few critics that are drawn at random (arXiv:2101.05982)."""

    scope: ClassVar[Scope] = "step"

    subset: int = hyperparameter(2, "critics of whose values the least counts, drawn anew for each update", low=1)

    def value(self, observation: Tensor, action: Tensor, see: See) -> Tensor:
        """The least of what some of the target critics say; the others are not asked."""
        members = torch.randperm(see["q_target"].network.members, generator=see.generator)[: self.subset]
        found: Tensor = see["q_target"].some(observation, action, members).amin(-1)
        return found


@dataclass(frozen=True, kw_only=True)
class MeanValue(SoftValue):
    """Raise the mean of the critics' values of the policy's own actions, and its entropy."""

    models: ClassVar[frozenset[str]] = SoftValue.models
    statistics = SoftValue.statistics

    def value(self, q: Tensor) -> Tensor:
        """The mean of the values `[..., K]`."""
        return q.mean(-1)


def recipe() -> Recipe:
    """RLPD (algorithm 1): twenty updates of the critics a step, then one of policy and temperature."""
    return Recipe(
        name=SLUG,
        models={
            "policy": SquashedGaussian(),
            "q": QNetwork(critics=10, layer_norm=True),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(initial=1.0),
        },
        collect=StepAndKeep(random_steps=1_000),
        sources={"replay": Replay(capacity=1_000_000, learning_starts=1_000), "data": Transitions()},
        updates=(
            Repeat(
                20,
                (
                    Update("q", (SquaredTD(),), Mix("data", "replay", batch_size=256), credit=(SubsetTarget(),)),
                    Move("q_target", "q", tau=0.005),
                ),
            ),
            Update("policy", (MeanValue(),), Again()),
            Update("temperature", (EntropyTarget(),), Again()),
        ),
        turns=1_000,
        adds=("q", "subset-target", "mean-value"),
        notes={
            "collect": "one step at a time into the replay buffer, the first at random",
            "improve": "critics on half a batch of data and half of the buffer, often; policy and temperature once",
        },
    )
