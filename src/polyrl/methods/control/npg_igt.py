"""N-PG-IGT: normalized policy gradient with momentum, each gradient taken at an extrapolated point.

Trajectories are played at theta~ = theta + (1 - eta) / eta (theta - theta before). There the average of old gradients,
which lags behind, and the new one together stand for the gradient at theta: exactly so where it is linear. theta moves
along the average by a step whose length is given, so that the scale of rewards says nothing. What acts is not judged.

The statements and schedules are the paper's; its code estimates by fixed numbers of environment steps, and so does
this: a row begins with an episode only where all episodes are as long as the rollout, such as Pendulum's of 200 steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpPolicy
from polyrl.models.base import Copy
from polyrl.parts.control import StepEnvironments
from polyrl.parts.trajectories import parameters_of, policy_gradient
from polyrl.recipe import Change, Recipe, hyperparameter

SLUG = "npg-igt"
TITLE = "Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies"
PAPER = "arXiv:2302.01734"
YEAR = 2023
FORMULA = (
    "d = (1 - eta) d + eta g(theta~); theta += gamma d / |d|; theta~ = theta + (1 - eta) / eta (theta - theta before)"
)
TASK = "Pendulum-v1"


def momentum(t: int) -> float:
    """eta_t = (2 / (t + 2))^(4/5)."""
    return float((2 / (t + 2)) ** 0.8)


def ahead(point: Tensor, before: Tensor, eta: float) -> Tensor:
    """theta~ `[P]`, of which (1 - eta) before + eta theta~ is `point`."""
    return point + (1 - eta) / eta * (point - before)


@dataclass(frozen=True)
class NormalizedTransport(OwnUpdate):
    """Move the policy along the average of gradients that were taken ahead of it."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "reward", "terminated", "truncated"})
    models: ClassVar[frozenset[str]] = frozenset({"ahead"})

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    step_size: float = hyperparameter(0.1, "gamma_0: length of the first step", above=0)
    extrapolates: bool = hyperparameter(True, "false takes gradients at the policy itself: normalized momentum alone")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One step of algorithm 1."""
        stores, memory = see.context.tensors(self.name), see.context.memory(self.name)
        t = memory.get("t", 0)
        gradient, eta = policy_gradient(batch, see, "ahead", self.gamma), momentum(t)
        direction = gradient if t == 0 else (1 - eta) * stores["direction"] + eta * gradient
        policy, point = parameters_of(see, "policy"), parameters_of(see, "ahead")
        before = policy.clone()
        policy += self.step_size * 2 / (t + 2) * direction / (direction.norm() + 1e-12)
        point.copy_(ahead(policy, before, momentum(t + 1)) if self.extrapolates else policy)
        stores["direction"] = direction
        memory["t"] = t + 1
        return {"step_length": float((policy - before).norm()), "gradient": float(gradient.norm())}


@dataclass(frozen=True)
class VanillaGradient(OwnUpdate):
    """Move the policy along each gradient by a constant step size."""

    needs: ClassVar[frozenset[str]] = NormalizedTransport.needs
    models: ClassVar[frozenset[str]] = NormalizedTransport.models

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    step_size: float = hyperparameter(1e-3, "of every step", above=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """theta += step g(theta)."""
        gradient = policy_gradient(batch, see, "ahead", self.gamma)
        policy, point = parameters_of(see, "policy"), parameters_of(see, "ahead")
        policy += self.step_size * gradient
        point.copy_(policy)
        return {"step_length": float(self.step_size * gradient.norm()), "gradient": float(gradient.norm())}


@dataclass(frozen=True, kw_only=True)
class ConstantStep(Change):
    """Take the vanilla policy gradient's steps of constant size instead: the control, whose size is to be tuned."""

    step_size: float = hyperparameter(1e-3, "of every step", above=0)

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with the other update.

        Raises:
            UserError: it takes no normalized steps ahead of its policy.
        """
        old = [step for step in recipe.updates if isinstance(step, NormalizedTransport)]
        if not old:
            raise UserError(f"{recipe.name} takes no steps of {SLUG}, so '{self.name}' has none to replace.")
        (plain,) = (VanillaGradient(step.trains, step.batch, gamma=step.gamma) for step in old)
        plain = dataclasses.replace(plain, step_size=self.step_size)
        updates = tuple(plain if step is old[0] else step for step in recipe.updates)
        return dataclasses.replace(recipe, updates=updates)


def recipe() -> Recipe:
    """One batch of episodes an iteration, at the extrapolated point."""
    return Recipe(
        name=SLUG,
        models={"policy": MlpPolicy(hidden="32x32", normalize_observation=False), "ahead": Copy("policy")},
        acts="ahead",
        judged="policy",
        collect=StepEnvironments(environments=4, steps_per_environment=200),
        updates=(NormalizedTransport("policy", Fresh()),),
        adds=("normalized-transport",),
        notes={
            "collect": "episodes at a point ahead of the policy",
            "improve": "a step of given length along the average of gradients that were taken ahead",
        },
    )
