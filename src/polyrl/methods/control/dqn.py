"""DQN: learn the value of each of a few actions from a replay buffer, and act greedily but for a share at random.

Targets come from a copy of the network that is renewed now and then. Double DQN (arXiv:1509.06461) lets the network
choose the target's action and the copy value it; `dueling` (arXiv:1511.06581) and `prioritised` (arXiv:1511.05952) are
options. The settings are those of the RL zoo for CartPole, not those of the paper's Atari runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Move, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.base import Copy
from polyrl.models.critics import DiscreteQNetwork
from polyrl.parts.exploring import ExploreEnvironments
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "dqn"
TITLE = "Human-level Control through Deep Reinforcement Learning"
PAPER = "doi:10.1038/nature14236"
YEAR = 2015
FORMULA = "y = r + gamma Q'(s', argmax_a Q(s', a)); loss = Huber(Q(s, a) - y)"
TASK = "CartPole-v1"


def double_target(reward: Tensor, discount: Tensor, values: Tensor, target_values: Tensor) -> Tensor:
    """r + discount Q'(s', argmax_a Q(s', a)) (arXiv:1509.06461, equation 4).

    Args:
        reward, discount: `[...]`.
        values, target_values: `[..., A]` in the state that follows, of the network and of its copy.
    """
    chosen = values.argmax(-1, keepdim=True)
    return reward + discount * target_values.gather(-1, chosen).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class GreedyTarget(Part):
    """Targets: the reward, and the copy's value of the best action that follows, chosen by the network where double."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "q_target"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    double: bool = hyperparameter(
        True, "the network chooses the target's action, the copy values it; false: the copy does both"
    )

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` [B, T]."""
        following = batch["next_observation"]
        theirs = see["q_target"](following)
        chooses = see["q"](following) if self.double else theirs
        if "next_action_mask" in batch:
            chooses = torch.where(batch["next_action_mask"], chooses, -torch.inf)
        return batch.with_fields(value_target=double_target(batch["reward"], batch["discount"], chooses, theirs))


@dataclass(frozen=True, kw_only=True)
class HuberTD(OffPolicyTerm):
    """Huber's loss of the taken action's value against its target: squared up to an error of 1, then linear."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"q"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every row, `[B, T]`."""
        return torch.nn.functional.smooth_l1_loss(outputs["q"], experience["value_target"], reduction="none")

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By Q: the error, cut at 1."""
        total = (self.loss(outputs, experience) * weights).sum()
        return total, {"q": (outputs["q"] - experience["value_target"]).clamp(-1, 1) * weights}

    def priority(self, outputs: Mapping[str, Tensor], batch: Experience) -> Tensor:
        """The absolute error `[B, T]`."""
        return (outputs["q"] - batch["value_target"]).abs()

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The mean value, and the targets'."""
        return {"q": outputs["q"], "value_target": experience["value_target"]}


def recipe() -> Recipe:
    """Double DQN with the RL zoo's settings for CartPole: 256 steps, 128 updates, then the copy is renewed."""
    return Recipe(
        name=SLUG,
        models={
            "q": DiscreteQNetwork(learning_rate=2.3e-3, max_grad_norm=10.0),
            "q_target": Copy("q"),
        },
        acts="q",
        collect=ExploreEnvironments(),
        sources={"replay": Replay(capacity=100_000, learning_starts=1_000)},
        updates=(
            Repeat(128, (Update("q", (HuberTD(),), Sample("replay", batch_size=64), credit=(GreedyTarget(),)),)),
            Move("q_target", "q"),
        ),
        turns=4,
        adds=("explore-environments", "greedy-target", "huber-td"),
        notes={
            "collect": "greedy actions, and random ones that become rarer",
            "improve": "Huber's loss against a target network that is copied now and then",
        },
    )
