"""PROPS: what is collected next is chosen so that the buffer looks more on-policy.

A behaviour policy acts. Every few steps (a turn) it is made equal to the policy and then moved away from the actions
that the buffer holds, so that those are taken of which it has too few. Once an iteration PPO learns from the whole
buffer as if its own policy had collected it: likelihoods are those of the policy just before its update, without
importance weights.

The behaviour policy is fitted again after the policy's update too: no step is taken by a fit to the policy of the
batch before, as the first ones of a batch are in the paper's listing. So without a fit it is PPO. The penalty is the
divergence in closed form, where the authors' earlier code samples it, and off, as in their newer code.
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
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Move, See, Update
from polyrl.errors import UserError
from polyrl.models.actor import BLOCKED, Actor
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import Interface, Network, Trained
from polyrl.parts.control import StateValues, StepEnvironments, joined_rollouts
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import Averaged, ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "props"
TITLE = "On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling"
PAPER = "arXiv:2311.08290"
YEAR = 2023
FORMULA = "J(phi) = E_D[min(-rho, -clip(rho, 1-eps, 1+eps)) - c KL(pi || pi_phi)], rho = pi_phi(a|s) / pi(a|s)"
TASK = "corner-grid"


# ---------------------------------------------------------------------------------------------------------- the buffer


def sampling_error(state: Tensor, action: Tensor, logprob: Tensor) -> float:
    """E_D[KL(pi_D || pi)] of states `[N, D]`, actions `[N]` and log pi(a|s) `[N]`, where pi_D are the frequencies."""
    cell = torch.unique(state, dim=0, return_inverse=True)[1]
    pair = torch.unique(torch.stack([cell, action], -1), dim=0, return_inverse=True)[1]
    frequency = pair.bincount()[pair].double() / cell.bincount()[cell]
    return float((frequency.log() - logprob.double()).mean())


@dataclass(frozen=True, kw_only=True)
class KeepRollouts(StepEnvironments):
    """Step environments with the behaviour policy, and give what they have done in the last iterations."""

    gives: ClassVar[frozenset[str]] = StepEnvironments.gives | {"stays"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "stays": Field("[B, T]", "bool", "-", "the step is in the buffer of the next turn too (props)"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"policy", "behaviour"})

    batches: int = hyperparameter(2, "b, iterations of which the buffer holds the steps", low=1)
    steps_per_environment: int = hyperparameter(4, "steps of each environment from one fit to the next", low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse what changes old steps, which stay as they were collected.

        Raises:
            UserError: running statistics scale observations or rewards.
        """
        normalized = [name for name, model in recipe.models.items() if model.setting("normalize_observation", False)]
        scaled = [part.name for part in recipe.score if part.setting("scale_reward", False)]
        if normalized or scaled:
            raise UserError(
                f"{recipe.name} keeps steps of earlier batches, which running statistics of "
                f"{', '.join(normalized + scaled)} would read in another way than new ones; set "
                "--normalize-observation false, --scale-reward false."
            )

    def acting(self, context: Context) -> Actor | None:
        """The behaviour policy."""
        actor: Actor = context.run_state.models["behaviour"].actor()
        return actor

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return the buffer `[B, T]`, the newest steps last: T is at most `batches` iterations' steps."""
        new, kept = super().__call__(experience, context), context.tensors(self.name)
        capacity = self.batches * context.turns * self.steps_per_environment
        kept.update(joined_rollouts(kept, new.data, capacity))
        buffer = Experience(dict(kept))
        stays = torch.ones_like(buffer["mask"])
        stays[:, : self.steps_per_environment] = stays.shape[1] < capacity
        if context.turn in (None, context.turns - 1):
            log_error(buffer, context)
        return buffer.with_fields(stays=stays)


def log_error(buffer: Experience, context: Context) -> None:
    """Log the sampling error, where states are so few that frequencies can be counted."""
    if context.run_state.task.observations.continuous.any() or buffer["action"].dim() != 2:
        return
    steps = PolicyLikelihoods().apply(buffer, See(context.run_state.models, context, SLUG))
    error = sampling_error(*(steps[name][steps["mask"]] for name in ("observation", "action", "behaviour_logprob")))
    context.log(props__sampling_error=error)


@dataclass(frozen=True, kw_only=True)
class PolicyLikelihoods(Part):
    """Take the policy's own likelihoods, as it is now, in the place of those of what acted."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action"})
    gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})
    models: ClassVar[frozenset[str]] = frozenset({"policy"})

    def apply(self, batch: Experience, see: See) -> Experience:
        """Replace `behaviour_logprob` `[B, T]`."""
        found = see["policy"].outputs(batch, {"logprob"}, see.draw)
        return batch.with_fields(behaviour_logprob=found["logprob"].detach())


# ------------------------------------------------------------------------------------------------------------- the fit


@dataclass(frozen=True, kw_only=True)
class UnderSampling(Averaged):
    """Lower the probability of what was done, down to a floor, and stay near the policy."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "behaviour_logprob", "weight", "stays"})
    models: ClassVar[frozenset[str]] = frozenset({"policy", "behaviour"})

    fit_clip_range: float = hyperparameter(0.3, "how far a fit lowers probability ratios below 1", above=0)
    kl_coef: float = hyperparameter(0.0, "weight of KL(pi || pi_phi) in a fit", low=0)

    def weights(self, experience: Experience) -> Tensor:
        """`[B, T]`, 0 of the oldest steps, which are about to go."""
        return experience["weight"] * experience["stays"]

    @property
    def is_written(self) -> bool:
        """The divergence is not."""
        return not self.kl_coef

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """-J of every step, `[B, T]`: -min(-rho, -clip(rho, 1 - eps, 1 + eps)) is max(rho, 1 - eps)."""
        ratio = torch.exp(outputs["logprob"] - batch["behaviour_logprob"])
        loss = ratio.clamp(min=1 - self.fit_clip_range)
        if not self.kl_coef:
            return loss
        policy, phi = see["policy"].policy, see["behaviour"].policy
        params = [each.network(batch["observation"]) for each in (policy, phi)]
        if "action_mask" in batch:
            params = [torch.where(batch["action_mask"], x, float(BLOCKED)) for x in params]
        apart: Tensor = policy.distribution.divergence(params[0], phi.distribution, params[1])
        return loss + self.kl_coef * apart

    def grad_summand(
        self, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Without the divergence: rho, and 0 below the floor."""
        ratio = torch.exp(outputs["logprob"] - batch["behaviour_logprob"])
        loss = ratio.clamp(min=1 - self.fit_clip_range)
        return (loss * weights).sum(), {"logprob": ratio * weights * (ratio >= loss)}


@dataclass(frozen=True)
class Refit(Epochs):
    """Fit the behaviour policy to what the buffer has too few of, until it is too far from the policy."""

    watches: ClassVar[str] = "behaviour"
    stops_at_minibatch: ClassVar[bool] = True

    epochs: int = hyperparameter(8, "passes of a fit over the buffer; 0 is PPO with the same buffer", low=0)
    minibatches: int = hyperparameter(4, "minibatches in one pass of a fit", low=1)
    target_kl: float | None = hyperparameter(0.05, "approximate KL of a minibatch at which a fit ends", above=0)


@dataclass(frozen=True, kw_only=True)
class Behaviour(Trained):
    """A copy of the policy that acts, with an Adam of its own."""

    outputs: ClassVar[frozenset[str]] = MlpPolicy.outputs
    copied: ClassVar[str] = "policy"

    max_grad_norm: float | None = hyperparameter(0.5, "norm at which the gradient is clipped; none is off", above=0)

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """It is made of the policy."""
        raise AssertionError("a copy is made of the model that it copies")


def recipe() -> Recipe:
    """Settings for a laptop: iterations of 1024 steps, fits every 16."""
    likelihoods = PolicyLikelihoods()
    terms = (ClippedSurrogate(clip_range=0.2), EntropyBonus(entropy_coef=0.01))
    return Recipe(
        name=SLUG,
        models={
            "policy": MlpPolicy(learning_rate=1e-3, normalize_observation=False),
            "behaviour": Behaviour(learning_rate=3e-3),
            "critic": MlpCritic(learning_rate=1e-3),
        },
        collect=KeepRollouts(environments=4),
        updates=(
            Epochs(
                (
                    Update("policy", terms, Again(), credit=(WhitenAdvantage(),)),
                    Update("critic", (ValueLoss(value_coef=0.5),), Again()),
                ),
                Fresh(),
                credit=(likelihoods, StateValues("critic"), GAE(gamma=0.99, gae_lambda=0.95)),
                epochs=10,
                minibatches=8,
                minibatch_of="steps",
                joint_clip=0.5,
                target_kl=0.03,
                every=0,
            ),
            Move("behaviour", "policy", tau=1.0),
            Refit(
                (Update("behaviour", (UnderSampling(),), Again()),),
                Fresh(),
                credit=(likelihoods,),
                minibatch_of="steps",
            ),
        ),
        turns=64,
        adds=("behaviour", "policy-likelihoods"),
        notes={
            "collect": "a behaviour policy takes the actions of which the buffer has too few",
            "improve": "PPO on the whole buffer once an iteration, and a new fit of the behaviour policy every turn",
        },
    )
