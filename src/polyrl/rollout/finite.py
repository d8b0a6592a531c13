"""Acting in finite MDPs, many rows at once: episodes from given states, and single draws at given pairs.

Every draw takes a uniform number that is given, so that whoever calls decides which stream it is of. H steps, S states,
A actions, L layers (`polyrl.tasks.theory.finite`), B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from polyrl.tasks.theory.finite import FiniteMDP, thresholds

NUMBERS = 3
"""Uniform numbers of one step: for the action, the next state and the reward, in this order."""


def drawn(limits: Tensor, uniform: Tensor) -> Tensor:
    """Outcomes `[...]` int64 of distributions whose `thresholds` are `[..., n]`, by uniform numbers `[...]`."""
    return (limits <= uniform[..., None]).sum(-1)


def outcomes(mdp: FiniteMDP, layer: Tensor, state: Tensor, action: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Next states int64 and rewards float64 `[...]` at given layers, states and actions `[...]`.

    Args:
        uniform: `[..., 2]`, for the next state and for the reward.
    """
    following = drawn(mdp.thresholds[layer, state, action], uniform[..., 0])
    reward = mdp.reward[layer, state, action]
    if mdp.reward_noise == "bernoulli":
        reward = (uniform[..., 1] < reward).double()
    return following, reward


def rolled(
    mdp: FiniteMDP,
    policy: Tensor,
    state: Tensor,
    first: Tensor,
    uniform: Tensor,
    first_actions: Tensor | None = None,
) -> Mapping[str, Tensor]:
    """Act from given states and steps; with a horizon rows end there, and what would follow is not `present`.

    In NumPy, whose calls on small arrays cost a third of torch's.

    Args:
        mdp: the problem.
        policy: probabilities `[L, S, A]`, or `[B, L, S, A]` where rows have policies of their own.
        state: `[B]` int64, in which each row begins.
        first: `[B]` int64, the step at which it does; without a horizon it only counts.
        uniform: `[B, T, 3]`.
        first_actions: probabilities `[B, A]` of each row's first action; none is the policy's.

    Returns:
        `[B, T]` each: `state`, `action`, `next_state`, `step` int64; `reward`, `behaviour_logprob` float64; `present`,
        `terminated`, `truncated` bool. A row that neither ends nor goes on is truncated at its last step. Where a row
        is not present everything is 0.
    """
    rows, length = uniform.shape[:2]
    numbers, chances, choices = uniform.numpy(), policy.numpy(), thresholds(policy).numpy()
    moves, means = mdp.thresholds.numpy(), mdp.reward.numpy()
    step = first.numpy()[:, None] + np.arange(length)
    layer = np.minimum(step, mdp.layers - 1)
    states, actions, chosen = (np.empty((rows, length), kind) for kind in (np.int64, np.int64, np.float64))
    after = np.empty((rows, length), np.int64)
    here = state.numpy()
    for t in range(length):
        at = layer[:, t]
        if t == 0 and first_actions is not None:
            limits, odds = thresholds(first_actions).numpy(), first_actions.numpy()
        else:
            own = (np.arange(rows), at, here) if policy.dim() == 4 else (at, here)
            limits, odds = choices[own], chances[own]
        action = (limits <= numbers[:, t, :1]).sum(1)
        states[:, t], actions[:, t], chosen[:, t] = here, action, odds[np.arange(rows), action]
        here = after[:, t] = (moves[at, here, action] <= numbers[:, t, 1:2]).sum(1)
    reward = means[layer, states, actions]
    if mdp.reward_noise == "bernoulli":
        reward = (numbers[:, :, 2] < reward).astype(np.float64)
    present = step < (mdp.horizon or np.inf)
    last = np.zeros_like(present)
    last[:, -1] = True
    found = {
        "state": states,
        "action": actions,
        "next_state": after,
        "step": step,
        "reward": reward,
        "behaviour_logprob": np.log(chosen),
        "present": present,
        "terminated": step + 1 == (mdp.horizon or np.inf),
        "truncated": last & (step + 1 < (mdp.horizon or np.inf)),
    }
    return {name: torch.from_numpy(np.where(present, value, value.dtype.type(0))) for name, value in found.items()}
