"""PPO: reuse each rollout for several epochs, with the probability ratio clipped and a learned critic.

The actor-critic of Algorithm 1: N environments step T times with the old policy, GAE makes advantages, and K epochs of
Adam over shuffled minibatches of single steps raise the surrogate. A time limit is no termination: the value of what
it cut off counts. Observations are normalized and rewards scaled by running statistics that belong to the policy (the
"37 details"); advantages are normalized in each minibatch.
The two other objectives that the paper compares stand below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import ALONE, SpecialRows
from polyrl.parts.control import MlpActorCritic, ScaleReward, StepEnvironments
from polyrl.parts.credit import GAE
from polyrl.parts.improve import Averaged, ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import kl_estimate
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "ppo"
TITLE = "Proximal Policy Optimization"
PAPER = "arXiv:1707.06347"
YEAR = 2017
FORMULA = "loss = -min(rho A, clip(rho, 1-eps, 1+eps) A) + c_v (V - target)^2 / 2"
TASK = "CartPole-v1"


@dataclass(frozen=True, kw_only=True)
class UnclippedSurrogate(Averaged):
    """The importance-weighted surrogate without clip or penalty (equation 6): nothing stops ratios from leaving 1."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-rho A of every step, `[B, T]`."""
        return -torch.exp(outputs["logprob"] - experience["behaviour_logprob"]) * experience["advantage"]


def adapted_penalty(factor: float, divergence: float, target: float) -> float:
    """Halve the coefficient where the policy moved too little, double it where too much (section 4)."""
    if divergence < target / 1.5:
        return factor / 2
    return factor * 2 if divergence > target * 1.5 else factor


@dataclass(frozen=True, kw_only=True)
class KLFactor(Part):
    """Measure the factor that the adaptive KL penalty has come to."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"kl_factor"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "kl_factor": Field("[B]", "float32", "-", "what the coefficient of an adaptive KL penalty has come to"),
    }
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `kl_factor` [B]."""
        factor = context.memory("adaptive-kl-penalty").get("factor", 1.0)
        return experience.with_fields(kl_factor=torch.full((len(experience),), factor))


@dataclass(frozen=True, kw_only=True)
class AdaptiveKLPenalty(Averaged):
    """Surrogate with a penalty b KL(old || new) instead of a clip, b adapted to a target KL (equation 8)."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight", "kl_factor"})
    derives: ClassVar[tuple[type[Part], ...]] = (KLFactor,)

    penalty_target: float = hyperparameter(0.01, "KL of one iteration that b is adapted towards, nats a step", above=0)
    penalty_init: float = hyperparameter(1.0, "b of the first iteration", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-rho A + b KL of every step, `[B, T]`; the KL by rho - 1 - log rho, unbiased under the old policy."""
        log_ratio = outputs["logprob"] - experience["behaviour_logprob"]
        divergence = kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3")
        penalty = self.penalty_init * experience["kl_factor"][:, None]
        return -torch.exp(log_ratio) * experience["advantage"] + penalty * divergence

    def on_update_end(self, metrics: dict[str, float], context: Context) -> None:
        """Adapt b to the KL that the whole update came to."""
        memory, moved = context.memory("adaptive-kl-penalty"), context.run_state.divergence()
        context.log(penalty__kl=moved, penalty__coefficient=self.penalty_init * memory.get("factor", 1.0))
        memory["factor"] = adapted_penalty(memory.get("factor", 1.0), moved, self.penalty_target)


def recipe() -> Recipe:
    """PPO as control uses it: normalized observations, scaled rewards, GAE, clipped surrogate, many epochs."""
    return Recipe(
        name=SLUG,
        policy=MlpActorCritic(),
        collect=StepEnvironments(environments=8, steps_per_environment=128),
        score=(ScaleReward(gamma=0.99),),
        credit=(GAE(gamma=0.99, gae_lambda=0.95),),
        terms=(ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5), EntropyBonus(entropy_coef=0.0)),
        optimize=Optimize(
            learning_rate=1e-3,
            critic_learning_rate=1e-3,
            schedule="linear",
            epochs=10,
            minibatches=8,
            minibatch_of="steps",
            normalize_advantage=True,
            max_grad_norm=0.5,
            joint_clip=True,
            adam_epsilon=1e-5,
        ),
        adds=("gae", "clipped-surrogate", "value-loss"),
        notes={
            "collect": "eight environments step with the old policy; ends by a time limit are told from real ends",
            "score": "rewards are divided by the running deviation of the discounted return",
            "credit": "a critic predicts the return; where a time limit cut, it also predicts what would have followed",
            "improve": "many epochs over single steps, safe because the clip stops ratios that have moved far enough",
        },
    )
