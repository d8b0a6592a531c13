"""Exact answers about finite MDPs, as pure functions of arrays: values of policies, best policies, gains, diameters.

Shapes: H steps, S states, A actions; float64 throughout. Transitions are `[S, A, S]`, or `[H, S, A, S]` with a finite
horizon; rewards `[S, A]` or `[H, S, A]`. A policy is a table of probabilities `[..., S, A]` or `[..., H, S, A]`, and
whatever takes a policy takes a batch of them in its first dimensions, each row of which is what it would be alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.errors import UserError

DAMPING = 0.5
"""Share of itself that relative value iteration keeps in a step, without which chains of even period never settle."""
TOLERANCE = 1e-12
MOST_SWEEPS = 1_000_000


@dataclass(frozen=True)
class Solution:
    """A policy and what it is worth.

    Attributes:
        policy: `[H, S, A]` or `[S, A]` probabilities.
        q: the same shape: the value of an action and of what follows it. Under average reward less the gain, so that
            its maximum is `value`.
        value: `[H + 1, S]`, whose last row is 0, or `[S]`; under average reward the bias, whose minimum is 0.
        gain: reward of a step in the long run, `[S]` by the state that it begins in; 0 elsewhere.
    """

    policy: Tensor
    q: Tensor
    value: Tensor
    gain: Tensor


def _expected(transition: Tensor, value: Tensor) -> Tensor:
    """E of the next state's `value` `[..., S]` by state and action, `[..., S, A]`."""
    if value.dim() == 1:
        return transition @ value
    states, actions, _ = transition.shape
    return (value @ transition.reshape(states * actions, states).T).reshape(*value.shape[:-1], states, actions)


def greedy(q: Tensor) -> Tensor:
    """All probability on the first of the best actions, `[..., A]`."""
    return torch.zeros_like(q).scatter_(-1, q.argmax(-1, keepdim=True), 1.0)


# ------------------------------------------------------------------------------------------------- a finite horizon


def finite_horizon(transition: Tensor, reward: Tensor) -> Solution:
    """The best policy of `[H, S, A, S]` and `[H, S, A]`, by dynamic programming; the first of equal actions."""
    value = torch.zeros(len(reward) + 1, reward.shape[1], dtype=torch.float64)
    q = torch.zeros_like(reward)
    for h in range(len(reward) - 1, -1, -1):
        q[h] = reward[h] + _expected(transition[h], value[h + 1])
        value[h] = q[h].max(-1).values
    return Solution(greedy(q), q, value, torch.zeros(reward.shape[1], dtype=torch.float64))


def finite_horizon_values(transition: Tensor, reward: Tensor, policy: Tensor) -> Tensor:
    """Values `[..., H + 1, S]` of policies `[..., H, S, A]` from every step on."""
    steps = [torch.zeros(*policy.shape[:-3], reward.shape[1], dtype=torch.float64)]
    for h in range(len(reward) - 1, -1, -1):
        steps.append((policy[..., h, :, :] * (reward[h] + _expected(transition[h], steps[-1]))).sum(-1))
    return torch.stack(steps[::-1], -2)


def occupancies(transition: Tensor, policy: Tensor, initial: Tensor) -> Tensor:
    """Probability `[..., H, S]` of each state at each step under policies `[..., H, S, A]`."""
    mass = initial.expand(*policy.shape[:-3], -1)
    steps = []
    for h in range(len(transition)):
        steps.append(mass)
        mass = torch.einsum("...s,...sa,sat->...t", mass, policy[..., h, :, :], transition[h])
    return torch.stack(steps, -2)


def most_occupied(transition: Tensor, initial: Tensor) -> Tensor:
    """The largest probability `[H, S]` that any policy can be in each state with at each step, of `[H, S, A, S]`."""
    layers, states = transition.shape[:2]
    found = torch.zeros(layers, states, dtype=torch.float64)
    for last in range(layers):
        reach = torch.eye(states, dtype=torch.float64)  # of each state, from each state that comes before
        for h in range(last - 1, -1, -1):
            reach = torch.einsum("sat,td->sad", transition[h], reach).max(1).values
        found[last] = initial @ reach
    return found


def coverability(transition: Tensor, initial: Tensor) -> float:
    """min over mu_h of max over pi, h, s of d_h^pi(s) / mu_h(s), of `[H, S, A, S]`: the largest sum of a step.

    arXiv:2210.04157, lemma 3; 1 where no policy changes where one is, at most S and at most A^(H - 1).
    """
    return float(most_occupied(transition, initial).sum(-1).max())


def concentrability(transition: Tensor, initial: Tensor, restart: Tensor) -> float:
    """max over policies, steps and states of d_h^pi(s) / mu_h(s), of `[H, S, A, S]` and the resets' mu `[H, S]`.

    Infinite where a state can be met in which no reset begins.
    """
    most = most_occupied(transition, initial)
    met = most > 0
    return float((most[met] / restart.expand_as(most)[met]).max())


# ---------------------------------------------------------------------------------------- discounted, and on average


def chains(transition: Tensor, reward: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions `[..., S, S]` and rewards `[..., S]` of a state under stationary policies `[..., S, A]`."""
    return torch.einsum("...sa,sat->...st", policy, transition), (policy * reward).sum(-1)


def discounted_values(transition: Tensor, reward: Tensor, discount: float, policy: Tensor) -> Tensor:
    """Values `[..., S]` of stationary policies `[..., S, A]`: (I - gamma P) V = r."""
    moves, earns = chains(transition, reward, policy)
    eye = torch.eye(len(reward), dtype=torch.float64)
    found: Tensor = torch.linalg.solve(eye - discount * moves, earns.unsqueeze(-1))
    return found.squeeze(-1)


def discounted(transition: Tensor, reward: Tensor, discount: float) -> Solution:
    """The best policy of `[S, A, S]` and `[S, A]` with discount below 1, by policy iteration."""
    policy = greedy(reward)
    while True:
        value = discounted_values(transition, reward, discount, policy)
        q = reward + discount * _expected(transition, value)
        gained = q.max(-1).values - (policy * q).sum(-1)
        if bool((gained <= TOLERANCE * max(1.0, float(q.abs().max()))).all()):
            return Solution(policy, q, value, torch.zeros(len(reward), dtype=torch.float64))
        policy = greedy(q)


def long_run(moves: Tensor) -> Tensor:
    """Share of time `[..., S, S]` that a chain `[..., S, S]` spends in each state, by the state that it begins in.

    A chain that stays where it is in half of its steps spends the same shares, and has no period: its powers converge,
    and are squared until they do.
    """
    share = (moves + torch.eye(moves.shape[-1], dtype=torch.float64)) / 2
    for _ in range(200):
        squared = share @ share
        squared = squared / squared.sum(-1, keepdim=True)
        if float((squared - share).abs().max()) <= 1e-15:
            break
        share = squared
    return share


def gains(transition: Tensor, reward: Tensor, policy: Tensor) -> Tensor:
    """Reward of a step in the long run, `[..., S]` by first state, of stationary policies `[..., S, A]`."""
    moves, earns = chains(transition, reward, policy)
    return (long_run(moves) @ earns.unsqueeze(-1)).squeeze(-1)


def average_reward(transition: Tensor, reward: Tensor) -> Solution:
    """The best gain of `[S, A, S]` and `[S, A]`, its bias and a policy that has it, by damped relative value iteration.

    Raises:
        UserError: it does not settle; no state from which others cannot be reached may have a gain of its own.
    """
    value = torch.zeros(len(reward), dtype=torch.float64)
    scale = max(1.0, float(reward.abs().max()))
    for _ in range(MOST_SWEEPS):
        change = (reward + _expected(transition, value)).max(-1).values - value
        if float(change.max() - change.min()) <= TOLERANCE * scale:
            gain = float(change.max() + change.min()) / 2
            value = value - value.min()
            q = reward + _expected(transition, value) - gain
            near = q >= q.max(-1, keepdim=True).values - 1e-9 * scale  # the first of those that are equal but rounding
            return Solution(greedy(near.double()), q, value, torch.full_like(value, gain))
        value = value + (1 - DAMPING) * change
        value = value - value.min()
    raise UserError(
        f"The average reward of this MDP of {len(reward)} states did not settle; its best gain must be the same from "
        "every state, as where each can be reached from each."
    )


def diameter(transition: Tensor) -> float:
    """Most expected steps that the quickest way from one state to another takes, by transitions `[S, A, S]`.

    Infinite where one is never reached. By policy iteration for each target, from the policy that is uniform.
    """
    states, actions, _ = transition.shape
    reached = ((transition > 0).any(1) | torch.eye(states, dtype=torch.bool)).double()
    for _ in range(states.bit_length()):
        reached = (reached @ reached > 0).double()
    if not bool(reached.all()):
        return math.inf
    longest = 0.0
    for target in range(states):
        others = torch.tensor([s for s in range(states) if s != target], dtype=torch.long)
        if not len(others):
            continue
        moves = transition[others][:, :, others]
        policy = torch.full((len(others), actions), 1 / actions, dtype=torch.float64)
        eye = torch.eye(len(others), dtype=torch.float64)
        while True:
            chain = torch.einsum("sa,sat->st", policy, moves)
            steps: Tensor = torch.linalg.solve(eye - chain, torch.ones(len(others), dtype=torch.float64))
            cost = 1 + moves @ steps
            if bool((cost.min(-1).values >= steps * (1 - 1e-12)).all()):
                break
            policy = greedy(-cost)
        longest = max(longest, float(steps.max()))
    return longest
