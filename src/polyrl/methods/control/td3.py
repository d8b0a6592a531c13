"""TD3: a deterministic policy on a replay buffer, against the overestimation of its critics.

Of two critics' targets the lesser counts; the target's action is smoothed by clipped noise; policy and targets move at
every second update only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Move, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.policies import DeterministicPolicy
from polyrl.parts.replayed import OffPolicyTerm, SquaredTD, StepAndKeep
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "td3"
TITLE = "Addressing Function Approximation Error in Actor-Critic Methods"
PAPER = "arXiv:1802.09477"
YEAR = 2018
FORMULA = "y = r + gamma min_i Q'_i(s', clip(pi'(s') + clip(noise))); policy: max Q_1(s, pi(s))"
TASK = "Pendulum-v1"


@dataclass(frozen=True, kw_only=True)
class SmoothedTarget(Part):
    """Targets of the critics: the lesser target critic's value of the target policy's action with clipped noise."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"policy_target", "q_target"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    target_noise: float = hyperparameter(0.2, "deviation of the noise on target actions", low=0)
    target_noise_clip: float = hyperparameter(0.5, "largest noise on target actions", low=0)

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` [B, T] (equations 14 and 15)."""
        following = batch["next_observation"]
        action = see["policy_target"](following)
        noise = (self.target_noise * see.draw(*action.shape)).clamp(-self.target_noise_clip, self.target_noise_clip)
        value = see["q_target"](following, (action + noise).clamp(-1, 1)).amin(-1)
        return batch.with_fields(value_target=batch["reward"] + batch["discount"] * value)


@dataclass(frozen=True, kw_only=True)
class FirstCriticValue(OffPolicyTerm):
    """Raise the first critic's value of the policy's action (the deterministic policy gradient)."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"mode"})
    models: ClassVar[frozenset[str]] = frozenset({"q"})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """-Q_1(s, pi(s)), `[B, T]`."""
        value: Tensor = see["q"].first(batch["observation"], outputs["mode"])
        return -value

    def grad_summand(
        self, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Through the first critic to the action."""
        values, back = see["q"].way_back(batch["observation"], outputs["mode"], 1)
        return -(values[..., 0] * weights).sum(), {"mode": back(-weights.unsqueeze(-1))}


def recipe() -> Recipe:
    """TD3 with the usual settings (algorithm 1)."""
    return Recipe(
        name=SLUG,
        models={
            "policy": DeterministicPolicy(learning_rate=1e-3),
            "policy_target": Copy("policy"),
            "q": QNetwork(critics=2, learning_rate=1e-3),
            "q_target": Copy("q"),
        },
        collect=StepAndKeep(random_steps=1_000),
        sources={"replay": Replay(capacity=1_000_000, learning_starts=1_000)},
        updates=(
            Repeat(
                1,
                (
                    Update("q", (SquaredTD(),), Sample("replay", batch_size=256), credit=(SmoothedTarget(),)),
                    Update("policy", (FirstCriticValue(),), Again(), every=2),
                    Move("q_target", "q", tau=0.005, every=2),
                    Move("policy_target", "policy", tau=0.005, every=2),
                ),
            ),
        ),
        turns=1_000,
        adds=("policy", "policy_target", "smoothed-target", "first-critic-value"),
        notes={
            "collect": "one step at a time into the replay buffer, with noise on actions, the first at random",
            "improve": "the critics at every step, the policy and the copies at every second one",
        },
    )
