"""HARPG and N-HARPG: a recursive gradient, corrected by a Hessian-vector product at a random point of the last segment.

A draft of arXiv:2302.01734, algorithm 2. tau_t is played at theta_t, and tau^_t at theta^_t = q theta_t + (1 - q)
theta_{t-1} with q ~ U[0, 1], and
d_t = (1 - eta_t) (d_{t-1} + B(tau^_t, theta^_t) (theta_t - theta_{t-1})) + eta_t g(tau_t).
So it has two streams of fresh rows, in which two models act.
"""

from __future__ import annotations

import itertools
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
from polyrl.models.base import Copy
from polyrl.models.policies import SquashedGaussian
from polyrl.parts.control import StepEnvironments
from polyrl.recipe import Recipe, hyperparameter

SLUG = "harpg-draft"
TITLE = "Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies"
PAPER = "arXiv:2302.01734"
YEAR = 2023
FORMULA = "d = (1 - eta)(d + B(tau^, theta^)(theta - theta before)) + eta g(tau); theta += gamma d / |d|"
TASK = "Pendulum-v1"


def momentum(t: int) -> float:
    """eta_t = 2 / (t + 2)."""
    return 2 / (t + 2)


def reward_to_go(batch: Experience, gamma: float) -> Tensor:
    """sum_{h >= t} gamma^h r_h within each episode, h counted from its start; `[B, T]`."""
    reward, ends = batch["reward"], batch["terminated"] | batch["truncated"]
    result = torch.zeros_like(reward)
    for b in range(len(reward)):
        starts = [0, *((ends[b, :-1].nonzero()[:, 0] + 1).tolist()), reward.shape[1]]
        for first, last in itertools.pairwise(starts):
            discounted = reward[b, first:last] * gamma ** torch.arange(last - first)
            result[b, first:last] = discounted.flip(0).cumsum(0).flip(0)
    return result


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
    step_size: float = hyperparameter(0.1, "gamma_0: scale of the steps", above=0)
    normalized: bool = hyperparameter(True, "whether steps have the length gamma_t (N-HARPG)")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One step of algorithm 2; `see.rows` are the episodes at the point between."""
        stores, memory = see.context.tensors(self.name), see.context.memory(self.name)
        t = memory.get("t", 0)
        with see.gradients("policy") as policy:
            logprob = policy.outputs(batch, {"logprob"}, see.draw)["logprob"]
            (logprob * reward_to_go(batch, self.gamma)).sum(1).mean().backward()
        gradient = see.models.flat["policy"].vector.grad.clone()
        direction, eta = gradient, momentum(t)
        parameters = see.models.flat["policy"].vector.data
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
        see.models.flat["between"].vector.data.copy_(torch.lerp(stores["before"], parameters, share))
        memory["t"] = t + 1
        return {"step_length": float((parameters - stores["before"]).norm()), "gradient": float(gradient.norm())}


def recipe() -> Recipe:
    """Whole episodes at the policy and between it and the one before."""
    episodes = StepEnvironments(environments=4, steps_per_environment=200)
    return Recipe(
        name=SLUG,
        models={"policy": SquashedGaussian(hidden="32x32"), "between": Copy("policy")},
        collect=episodes,
        streams={"there": Stream(episodes, acts="between")},
        updates=(HessianAided("policy", Fresh(), also=(Fresh("there"),)),),
        adds=("policy-update",),
    )
