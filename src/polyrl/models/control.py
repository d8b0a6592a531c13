"""Policies and critics of control: small networks, which acting reads as NumPy copies of their weights.

Statistics of normalization belong to the policy: they are its buffers, are saved with its weights and stand still in
evaluation. At these sizes a framework costs several times what it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.errors import UserError
from polyrl.models.distributions import Distribution
from polyrl.models.graph import Node, linear
from polyrl.models.normalization import Floats, RunningMoments

if TYPE_CHECKING:
    from polyrl.core.experience import Experience


class Forward(Protocol):
    """A network's forward pass without gradients."""

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        """Inputs `[N, D]` to outputs `[N, O]`, which are written to `out` if it is given."""
        ...


_ZERO = np.zeros((), dtype=np.float32)


class ControlPolicy(nn.Module):
    """A network that describes a distribution over actions, with the statistics that its inputs need.

    Attributes:
        network: normalized observations `[..., D]` -> params `[..., distribution.size]`.
        distribution: see `Distribution`; its own parameters are trained too.
        observation_moments: running statistics of observations; None leaves observations as they are.
        reward_moments: running statistics of the discounted return, for parts that scale rewards by them.
        continuous: bool `[D]`, which entries of an observation are normalized; not saved.
    """

    def __init__(
        self, network: nn.Module, distribution: Distribution, continuous: NDArray[np.bool_], *, normalize: bool
    ):
        super().__init__()
        self.network, self.distribution = network, distribution
        fixed = None if continuous.all() else ~continuous
        self.observation_moments = RunningMoments(len(continuous), fixed) if normalize else None
        self.reward_moments = RunningMoments(1)

    def update_statistics(self, observations: NDArray[np.float64]) -> None:
        """Take raw observations `[N, D]` into the statistics."""
        if self.observation_moments is not None:
            self.observation_moments.update(observations)

    def normalize(self, observations: NDArray[np.float64]) -> Floats:
        """Raw observations `[..., D]` as the network gets them, float32 `[..., D]`."""
        if self.observation_moments is None:
            return observations.astype(np.float32)
        return self.observation_moments.normalize(observations)

    def outputs(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """Differentiable "logprob" and "entropy" `[...]` of normalized observations `[..., D]` and their actions."""
        params = self.network(observation)
        return {
            "logprob": self.distribution.log_prob(params, action),
            "entropy": self.distribution.entropy(params),
        }

    def snapshot(self) -> Forward:
        """The network as it is now, for acting: in NumPy where its layers are known, else in torch."""
        return snapshot(self.network)

    def nodes(self) -> list[Node]:
        """Statistics and layers for export, as they are now.

        Raises:
            UserError: the network has other layers than are known.
        """
        seen = [] if self.observation_moments is None else self.observation_moments.nodes()
        return [*seen, *_nodes(self.network)]


class ControlCritic(nn.Module):
    """A network from normalized observations `[..., D]` to values `[...]`.

    Attributes:
        fields_read: fields of the experience that it needs beside observations.
    """

    fields_read: frozenset[str] = frozenset()

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]`."""
        value: Tensor = self.network(observation).squeeze(-1)
        return value

    def of_steps(self, batch: Experience) -> Tensor:
        """Values of the states before a batch's steps, `[B, T]`."""
        value: Tensor = self(batch["observation"])
        return value

    def values_of(self, batch: Experience) -> Tensor:
        """The same without gradients, for whole rollouts."""
        return self.values(batch["observation"])

    def final_values(self, batch: Experience) -> Tensor:
        """Values without gradients of the states after truncated steps, 0 at the others, `[B, T]`."""
        return final_values(batch, self.values)

    def values(self, observation: Tensor) -> Tensor:
        """Values `[...]` of observations, without gradients."""
        forward = snapshot(self.network)
        flat: Floats = observation.reshape(-1, observation.shape[-1]).numpy()
        return torch.from_numpy(forward(flat)).reshape(observation.shape[:-1])


def final_values(batch: Experience, values: Callable[[Tensor], Tensor]) -> Tensor:
    """What `values` gives of the observations after truncated steps, 0 at the others, `[B, T]`."""
    cut = batch["truncated"]
    found = torch.zeros(cut.shape)
    if bool(cut.any()):
        found[cut] = values(batch["final_observation"][cut])
    return found


def _tanh(x: Floats) -> None:
    np.tanh(x, out=x)


def _relu(x: Floats) -> None:
    np.maximum(x, _ZERO, out=x)


def _elu(x: Floats) -> None:
    np.copyto(x, np.expm1(x), where=x < 0)


IN_PLACE: dict[type[nn.Module], Callable[[Floats], None]] = {nn.Tanh: _tanh, nn.ReLU: _relu, nn.ELU: _elu}


def snapshot(network: nn.Module) -> Forward:
    """The forward pass of a network as it is now: in NumPy where its layers are known, else in torch."""
    return numpy_forward(network) or _torch_forward(network)


FEW_ROWS = 64
"""Up to so many inputs at a time, a bias is kept once a row: adding arrays of one shape takes a third of the time."""


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what one of these classes does: no subclass, no hooks, and no alpha of ELU but 1."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in kinds and not hooked and (not isinstance(module, nn.ELU) or module.alpha == 1)


def numpy_forward(network: nn.Module) -> Forward | None:
    """The forward pass of linear layers and simple activations in NumPy, on a copy of the weights; None for others."""
    if not is_plain(network, nn.Sequential):
        return None
    assert isinstance(network, nn.Sequential)
    layers: list[tuple[Floats, Floats, Callable[[Floats], None] | None]] = []
    for module in network:
        if isinstance(module, nn.Linear) and is_plain(module, nn.Linear):
            if module.bias is None or module.weight.dtype != torch.float32:
                return None
            weight, bias = (p.detach().numpy().copy() for p in (module.weight, module.bias))
            layers.append((weight.T, bias, None))
        elif is_plain(module, *IN_PLACE) and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], IN_PLACE[type(module)])
        else:
            return None
    if not layers:
        return None
    *inner, (last_weight, last_bias, last_activate) = layers
    made: dict[int, tuple[list[tuple[Floats, Floats, Callable[[Floats], None] | None, Floats]], Floats]] = {}

    def rows_of(bias: Floats, n: int) -> Floats:
        return np.repeat(bias[None], n, 0) if n <= FEW_ROWS else bias

    def forward(x: Floats, out: Floats | None = None) -> Floats:
        n = len(x)
        if n not in made:
            hidden = [
                (weight, rows_of(bias, n), activate, np.empty((n, len(bias)), dtype=np.float32))
                for weight, bias, activate in inner
            ]
            made[n] = hidden, rows_of(last_bias, n)
        hidden, bias_rows = made[n]
        for weight, bias, activate, into in hidden:
            x = x.dot(weight, into)
            x += bias
            if activate is not None:
                activate(x)
        x = x.dot(last_weight, out)
        x += bias_rows
        if last_activate is not None:
            last_activate(x)
        return x

    return forward


class ExportedModule(nn.Module):
    """A module that says itself what it computes, `[..., I]` to `[..., O]`."""

    def nodes(self) -> list[Node]:
        """For `polyrl export`: rows `[N, I]` to `[N, O]`."""
        raise NotImplementedError


EXPORTED: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu", nn.ELU: "elu"}


def _nodes(network: nn.Module) -> list[Node]:
    found = list[Node]()
    for module in network.children() if is_plain(network, nn.Sequential) else [network]:
        if isinstance(module, nn.Linear) and is_plain(module, nn.Linear) and module.bias is not None:
            weight, bias = (p.detach().float().numpy().copy() for p in (module.weight, module.bias))
            found.append(linear(np.ascontiguousarray(weight.T), bias))
        elif isinstance(module, ExportedModule):
            found += module.nodes()
        elif is_plain(module, *EXPORTED):
            found.append(Node(EXPORTED[type(module)]))
        else:
            raise UserError(
                f"The policy's network has a {type(module).__name__}, which has no form that can be exported: linear "
                "layers with tanh, relu or elu between them have one; polyrl.load(RUN).act(observation) acts by any."
            )
    return found


def _torch_forward(network: nn.Module) -> Forward:
    def forward(x: Floats, out: Floats | None = None) -> Floats:
        with torch.inference_mode():
            params: Floats = network(torch.from_numpy(x)).numpy()
        if out is None:
            return params
        out[...] = params
        return out

    return forward
