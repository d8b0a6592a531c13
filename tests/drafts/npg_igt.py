"""N-PG-IGT: normalized policy gradient with momentum, each gradient taken at an extrapolated point.

A draft of arXiv:2302.01734, algorithm 1: an episode is played at theta~ = theta + (1 - eta) / eta (theta - before); its
gradient enters d = (1 - eta) d + eta g, and theta moves by a step of given length along d. What acts is not judged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.models.base import Copy
from polyrl.models.policies import SquashedGaussian
from polyrl.parts.control import StepEnvironments
from polyrl.recipe import Recipe, hyperparameter

SLUG = "npg-igt-draft"
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


def reward_to_go(reward: Tensor, ends: Tensor, gamma: float) -> Tensor:
    """sum_{h >= t} gamma^h r_h within each episode, h counted from its start; `[B, T]` each."""
    result = torch.zeros_like(reward)
    for b in range(len(reward)):
        starts = [0, *((ends[b, :-1].nonzero()[:, 0] + 1).tolist()), reward.shape[1]]
        for first, last in itertools.pairwise(starts):
            discounted = reward[b, first:last] * gamma ** torch.arange(last - first)
            result[b, first:last] = discounted.flip(0).cumsum(0).flip(0)
    return result


@dataclass(frozen=True)
class NormalizedTransport(OwnUpdate):
    """Move the policy along the average of gradients that were taken ahead of it."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "reward", "terminated", "truncated"})
    models: ClassVar[frozenset[str]] = frozenset({"ahead"})

    gamma: float = hyperparameter(0.99, "discount, per step", low=0, high=1)
    step_size: float = hyperparameter(0.1, "gamma_0: length of the first step", above=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One step of algorithm 1."""
        stores, memory = see.context.tensors(self.name), see.context.memory(self.name)
        t = memory.get("t", 0)
        returns = reward_to_go(batch["reward"], batch["terminated"] | batch["truncated"], self.gamma)
        with see.gradients("ahead") as ahead:
            logprob = ahead.outputs(batch, {"logprob"}, see.draw)["logprob"]
            (logprob * returns).sum(1).mean().backward()
        gradient = see.models.flat["ahead"].vector.grad.clone()
        eta = momentum(t)
        direction = gradient if t == 0 else (1 - eta) * stores["direction"] + eta * gradient
        policy, point = see.models.flat["policy"].vector.data, see.models.flat["ahead"].vector.data
        before = policy.clone()
        length = self.step_size * 2 / (t + 2)
        policy += length * direction / (direction.norm() + 1e-12)
        coming = momentum(t + 1)
        point.copy_(policy + (1 - coming) / coming * (policy - before))
        stores["direction"] = direction
        memory["t"] = t + 1
        return {"step_length": float((policy - before).norm()), "gradient": float(gradient.norm())}


def recipe() -> Recipe:
    """One batch of steps an iteration, at the extrapolated point."""
    return Recipe(
        name=SLUG,
        models={"policy": SquashedGaussian(hidden="32x32"), "ahead": Copy("policy")},
        acts="ahead",
        judged="policy",
        collect=StepEnvironments(environments=4, steps_per_environment=200),
        updates=(NormalizedTransport("policy", Fresh()),),
        adds=("policy-update",),
    )
