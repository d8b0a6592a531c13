"""HARPG: a recursive average of gradients that a Hessian-vector product carries along with the policy.

Trajectories are played at theta_t, and others at theta^_t = q theta_t + (1 - q) theta_{t-1} with q ~ U[0, 1], at which
B(tau^, theta^) (theta_t - theta_{t-1}) is on average the difference of the gradients at both ends:
d_t = (1 - eta_t) (d_{t-1} + B(tau^_t, theta^_t) (theta_t - theta_{t-1})) + eta_t g(tau_t, theta_t).
So it has two streams of fresh rows, in which two models act. Steps of given length along d make it N-HARPG.

B is the mean over trajectories of each one's own product of gradient and score, as its proof has it, and not the
product of means over all steps in the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl import kernels
from polyrl.core.experience import Experience
from polyrl.core.streams import Stream
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.kernels.flat import FlatParameters
from polyrl.models.actor_critic import MlpPolicy
from polyrl.models.base import Copy
from polyrl.parts.control import StepEnvironments
from polyrl.parts.trajectories import parameters_of, policy_gradient, reward_to_go
from polyrl.recipe import Recipe, hyperparameter

SLUG = "harpg"
TITLE = "Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies"
PAPER = "arXiv:2302.01734"
YEAR = 2023
FORMULA = "d = (1 - eta)(d + B(tau^, theta^)(theta - theta before)) + eta g(tau); theta += gamma d"
TASK = "Pendulum-v1"


def momentum(t: int) -> float:
    """eta_t = 2 / (t + 2)."""
    return 2 / (t + 2)


def hessian_vector(logprob: Tensor, returns: Tensor, parameters: list[Tensor], u: Tensor) -> Tensor:
    """Mean over rows of B(tau) u = grad Phi <grad log p(tau), u> + (grad^2 Phi) u, laid out as `u` `[P]` is.

    Args:
        logprob: log pi(a_t|s_t), `[B, T]`, of which gradients can be taken twice; a row is an episode.
        returns: sum_{h >= t} gamma^h r_h, `[B, T]`.
        parameters: of the policy.
        u: direction, as `FlatParameters.vector`.
    """

    def flat(of: Tensor, create_graph: bool) -> Tensor:
        found = torch.autograd.grad(of, parameters, create_graph=create_graph, retain_graph=True)
        return FlatParameters.laid_out(found)

    phi = (logprob * returns).sum(1)
    total = torch.zeros_like(u)
    for episode, row in enumerate(logprob):
        score = flat(row.sum(), False) @ u
        total += flat(phi[episode], False) * score
    curvature = flat((flat(phi.sum(), True) @ u), False)
    return (total + curvature) / len(logprob)


@dataclass(frozen=True)
class HessianAided(OwnUpdate):
    """Carry the average of gradients along with the policy, and move along it."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "reward", "terminated", "truncated"})
    models: ClassVar[frozenset[str]] = frozenset({"between"})

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    step_size: float = hyperparameter(1e-5, "gamma_0: scale of the steps; that of rewards tells it", above=0)
    normalized: bool = hyperparameter(False, "whether steps have a given length (N-HARPG)")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One step of algorithm 2; `see.rows` are the episodes at the point between."""
        stores, memory = see.context.tensors(self.name), see.context.memory(self.name)
        t = memory.get("t", 0)
        gradient = policy_gradient(batch, see, "policy", self.gamma)
        direction, eta, parameters = gradient, momentum(t), parameters_of(see, "policy")
        if t:
            (there,) = see.rows
            moved = parameters - stores["before"]
            with kernels.plain(), see.gradients("between") as between:
                logprob = between.outputs(there, {"logprob"}, see.draw)["logprob"]
                correction = hessian_vector(logprob, reward_to_go(there, self.gamma), [*between.parameters()], moved)
            direction = (1 - eta) * (stores["direction"] + correction) + eta * gradient
        stores["before"], stores["direction"] = parameters.clone(), direction
        length = self.step_size * (2 / (t + 2)) ** (1 if self.normalized else 0.5)
        parameters += length * (direction / (direction.norm() + 1e-12) if self.normalized else direction)
        share = float(see.draw.uniform(1))
        parameters_of(see, "between").copy_(torch.lerp(stores["before"], parameters, share))
        memory["t"] = t + 1
        return {"step_length": float((parameters - stores["before"]).norm()), "gradient": float(gradient.norm())}


def recipe() -> Recipe:
    """Whole episodes at the policy and between it and the one before."""
    episodes = StepEnvironments(environments=4, steps_per_environment=200)
    return Recipe(
        name=SLUG,
        models={"policy": MlpPolicy(hidden="32x32", normalize_observation=False), "between": Copy("policy")},
        collect=episodes,
        streams={"there": Stream(dataclasses.replace(episodes), acts="between")},
        updates=(HessianAided("policy", Fresh(), also=(Fresh("there"),)),),
        adds=("hessian-aided",),
        notes={
            "collect": "episodes at the policy, and others at a random point between it and the one before",
            "improve": "a step along the average of gradients, which a Hessian-vector product keeps up to date",
        },
    )
