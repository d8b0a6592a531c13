"""Gradients of whole trajectories, for methods that move a policy along them by steps of their own."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import See
from polyrl.models.base import Models


def reward_to_go(batch: Experience, gamma: float) -> Tensor:
    """sum_{h >= t} gamma^h r_h within each episode, h counted from its start, `[B, T]`.

    The discount counts from the episode's start and not from the step (GPOMDP), and nothing follows an end, a cut or
    the rollout's end. A row is taken to begin with an episode.

    Args:
        batch: with `reward`, `terminated` and `truncated`, `[B, T]` each.
        gamma: discount, per step.
    """
    reward, ends = batch["reward"], batch["terminated"] | batch["truncated"]
    result = torch.zeros_like(reward)
    for row in range(len(reward)):
        starts = [0, *((ends[row, :-1].nonzero()[:, 0] + 1).tolist()), reward.shape[1]]
        for first, last in itertools.pairwise(starts):
            discounted = reward[row, first:last] * gamma ** torch.arange(last - first)
            result[row, first:last] = discounted.flip(0).cumsum(0).flip(0)
    return result


def parameters_of(see: See, model: str) -> Tensor:
    """The parameters of a model as one vector `[P]`, which may be written into; without autograd."""
    assert isinstance(see.models, Models)
    return see.models.flat[model].vector.data


def policy_gradient(batch: Experience, see: See, model: str, gamma: float) -> Tensor:
    """Mean over rows of g(tau) `[P]`, the gradient of sum_t (sum_{h >= t} gamma^h r_h) log pi(a_t|s_t).

    Args:
        batch: rows that `model` has acted in.
        see: what an update sees.
        model: name of the policy.
        gamma: discount, per step.
    """
    returns = reward_to_go(batch, gamma)
    with see.gradients(model) as acting:
        logprob = acting.outputs(batch, {"logprob"}, see.draw)["logprob"]
        (logprob * returns).sum(1).mean().backward()
    (found,) = see.models.gradients(model)
    return found.clone()
