"""Numbers between -1 and 1 that a tanh gives: log-densities, and passes of policies without autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.kernels.passes import Passes
from polyrl.models.base import ClosedForm
from polyrl.models.graph import Node

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

softplus_backward, tanh_backward = torch.ops.aten.softplus_backward, torch.ops.aten.tanh_backward
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
"""Bounds of log standard deviations, as Stable-Baselines3 has them."""


def squashed_logprob(before: Tensor, standard: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of tanh(`before`), a Gaussian number whose standard score is `standard`; `[..., A]` to `[...]`.

    log N minus sum log(1 - tanh^2) (arXiv:1812.05905, equation 21), the latter as 2 (log 2 - u - softplus(-2u)), which
    loses no digits far from 0.
    """
    gaussian = -0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)
    shrinks = 2 * (math.log(2) - before - nn.functional.softplus(-2 * before))
    return (gaussian - shrinks).sum(-1)


def gaussian_logprob(standard: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of Gaussian numbers of these standard scores `[..., A]`, summed to `[...]`."""
    return (-0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def scaler(space: spaces.Box) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Brings actions in `[-1, 1]` `[B, A]` to a Box's bounds, float32."""
    low, high = space.low.reshape(1, -1).astype(np.float32), space.high.reshape(1, -1).astype(np.float32)
    half, middle = (high - low) / 2, (high + low) / 2

    def scaled(action: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = action * half
        found += middle
        return found

    return scaled


def scaling(space: spaces.Box) -> Node:
    """The same for export."""
    low, high = space.low.reshape(-1).astype(np.float32), space.high.reshape(-1).astype(np.float32)
    return Node("scale", {"half": (high - low) / 2, "middle": (high + low) / 2})


class SquashedPasses(ClosedForm):
    """Fresh actions with their log-densities, and their way back."""

    def __init__(self, passes: Passes, numbers: int):
        self.passes, self.numbers = passes, numbers

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "sampled_action" and "sampled_logprob"."""
        observation = batch["observation"]
        shape = (*observation.shape[:-1], self.numbers)
        self.noise = draw(*shape)
        said = self.passes.forward(observation.reshape(-1, observation.shape[-1]))[0]
        mean, self.said_std = (x.reshape(shape) for x in said.chunk(2, -1))
        log_std = self.said_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        self.std = log_std.exp()
        self.before = mean + self.std * self.noise
        self.action = torch.tanh(self.before)
        return {"sampled_action": self.action, "sampled_logprob": squashed_logprob(self.before, self.noise, log_std)}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the policy, in the order in which autograd adds up, so that the numbers are the same to the bit."""
        by_logprob, by_action = grad_outputs.get("sampled_logprob"), grad_outputs.get("sampled_action")
        by_before, by_log_std = torch.zeros_like(self.before), torch.zeros_like(self.before)
        if by_logprob is not None:  # the standard score is the noise, a constant
            column = by_logprob.unsqueeze(-1).expand_as(self.before)
            by_before = softplus_backward(2 * column, -2 * self.before, 1, 20) * -2 + 2 * column
            by_log_std = -column
        if by_action is not None:
            by_before = by_before + tanh_backward(by_action, self.action)
        by_log_std = by_log_std + by_before * self.noise * self.std
        free = (self.said_std >= LOG_STD_MIN) & (self.said_std <= LOG_STD_MAX)
        self.passes.to_parameters(torch.cat([by_before, by_log_std * free], -1).reshape(1, -1, 2 * self.numbers))


class DeterministicPasses(ClosedForm):
    """ "mode" and its way back."""

    def __init__(self, passes: Passes):
        self.passes = passes

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """The action in each state."""
        observation = batch["observation"]
        said = self.passes.forward(observation.reshape(-1, observation.shape[-1]))
        self.action = torch.tanh(said.reshape(*observation.shape[:-1], said.shape[-1]))
        return {"mode": self.action}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the policy."""
        by_said = tanh_backward(grad_outputs["mode"], self.action)
        self.passes.to_parameters(by_said.reshape(1, -1, by_said.shape[-1]))
