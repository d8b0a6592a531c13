"""Forward and backward passes of small networks written out in NumPy, on the memory of the torch modules themselves.

At the sizes of control a framework costs several times what it computes. Terms of an objective keep their torch form:
they see outputs `[N, 1]` and give the loss's gradients by them, which are carried back through the layers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.core.agreement import differs
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.actor import Actor
from polyrl.models.control import IN_PLACE, ControlCritic, ControlPolicy, is_plain
from polyrl.models.distributions import Backward, Distribution
from polyrl.models.normalization import Floats

Slope = Callable[[Floats, Floats], None]
"""Multiplies a gradient `[N, H]` in place by an activation's derivative, told by the activation's output `[N, H]`."""


def _tanh(grad_output: Floats, output: Floats) -> None:
    np.multiply(output, output, out=output)  # read for the last time here
    np.subtract(1, output, out=output)
    grad_output *= output


def _relu(grad_output: Floats, output: Floats) -> None:
    grad_output *= output > 0


def _elu(grad_output: Floats, output: Floats) -> None:
    grad_output *= np.minimum(output, 0) + 1


SLOPES: dict[type[nn.Module], Slope] = {nn.Tanh: _tanh, nn.ReLU: _relu, nn.ELU: _elu}


class _Linear:
    """One linear layer and the activation after it, if any: arrays that share memory with the module's tensors."""

    def __init__(self, layer: nn.Linear, activation: nn.Module | None):
        self.parameters = layer.weight, layer.bias
        self.at = self.place()
        self.weight, self.bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        assert layer.weight.grad is not None and layer.bias.grad is not None
        self.weight_grad, self.bias_grad = layer.weight.grad.numpy(), layer.bias.grad.numpy()
        self.output = self.grad_output = np.zeros((0, 0), dtype=np.float32)
        self.activate = None if activation is None else IN_PLACE[type(activation)]
        self.through = None if activation is None else SLOPES[type(activation)]

    def place(self) -> tuple[int, ...]:
        """Where the numbers of parameters and gradients are; 0 for a gradient that is not there."""
        return tuple(
            pointer for p in self.parameters for pointer in (p.data_ptr(), 0 if p.grad is None else p.grad.data_ptr())
        )


class Layers:
    """Linear layers with activations between them: a forward pass, and the backward pass of the latest one."""

    def __init__(self, linear: list[_Linear]):
        self.linear = linear
        self.input = np.zeros((0, 0), dtype=np.float32)
        self.ones = np.zeros(0, dtype=np.float32)

    def stands(self) -> bool:
        """Whether parameters and gradients are still where they were."""
        return all(layer.place() == layer.at for layer in self.linear)

    @classmethod
    def of(cls, network: nn.Module) -> Layers | None:
        """Those of a network whose parameters have gradients already (`FlatParameters`); None where it has others."""
        if not is_plain(network, nn.Sequential):
            return None
        assert isinstance(network, nn.Sequential)
        modules, found = [*network], list[_Linear]()
        while modules:
            layer = modules.pop(0)
            if not is_plain(layer, nn.Linear) or any(x is None or x.grad is None for x in (layer.weight, layer.bias)):
                return None
            assert isinstance(layer, nn.Linear)
            if layer.weight.dtype != torch.float32:
                return None
            activation = modules.pop(0) if modules and not isinstance(modules[0], nn.Linear) else None
            if activation is not None and not is_plain(activation, *SLOPES):
                return None
            found.append(_Linear(layer, activation))
        shared = len({id(layer) for layer in network}) < len(network)  # whose gradient would be a sum
        return cls(found) if found and not shared else None

    def forward(self, x: Floats) -> Floats:
        """Outputs `[N, O]` of inputs `[N, I]`; the activations are kept for `backward`, in buffers that are reused."""
        self.input = x
        for layer in self.linear:
            if len(layer.output) != len(x):
                layer.output = np.empty((len(x), len(layer.bias)), dtype=np.float32)
                layer.grad_output = np.empty((len(x), layer.weight.shape[1]), dtype=np.float32)
            x = np.dot(x, layer.weight.T, out=layer.output)
            x += layer.bias
            if layer.activate is not None:
                layer.activate(x)
        return x.copy()

    def backward(self, grad_output: Floats) -> None:
        """Write the gradients of all parameters, given the loss's gradient `[N, O]` by the outputs."""
        if len(self.ones) != len(grad_output):
            self.ones = np.ones(len(grad_output), dtype=np.float32)
        for layer, before in zip(self.linear[::-1], [*self.linear[-2::-1], None], strict=True):
            if layer.through is not None:
                layer.through(grad_output, layer.output)
            np.dot(grad_output.T, self.input if before is None else before.output, out=layer.weight_grad)
            np.dot(self.ones, grad_output, out=layer.bias_grad)
            if before is not None:
                grad_output = np.dot(grad_output, layer.weight, out=layer.grad_output)


class ActorCriticPasses:
    """Log-probabilities, entropies and values of single steps, and their way back into the gradients.

    It works on the memory of the networks' parameters, so a copy of these has passes of its own.
    """

    reads = frozenset({"observation", "action"})
    """Fields that `forward` needs, beside those that the actor's log-probability depends on."""

    def __init__(self, policy: ControlPolicy, actor: Layers | None, critic: Layers | None, acting: Actor | None = None):
        self.policy, self.actor, self.critic, self.acting = policy, actor, critic, acting
        self._way_back: Callable[[Floats, Floats], Floats] | None = None
        self._compared = False

    @classmethod
    def of(
        cls, policy: ControlPolicy, critic: ControlCritic | None, acting: Actor | None = None
    ) -> ActorCriticPasses | None:
        """Those of these networks; None where a layer has no form here and autograd must do it.

        `acting`: whose log-probability it is, where that is not the policy's own.
        """
        # what a subclass computes in another way is not what is written here
        if type(policy).outputs is not ControlPolicy.outputs:
            return None
        if acting is not None and not acting.writes_likelihoods():
            return None
        own = critic is not None and (type(critic).forward, type(critic).values)
        if own and own != (ControlCritic.forward, ControlCritic.values):
            return None
        actor = Layers.of(policy.network)
        judge = None if critic is None else Layers.of(critic.network)
        if actor is None or (critic is not None and judge is None):
            return None
        return cls(policy, actor, judge, acting)

    def forward(self, batch: Experience, wants: frozenset[str]) -> dict[str, Tensor]:
        """What is wanted of "logprob", "entropy" and "value", `[N, 1]` each, of `observation` `[N, 1, D]`."""
        observation = _array(batch["observation"])
        found: dict[str, Tensor] = {}
        self._way_back = None
        if self.actor is not None and wants & {"logprob", "entropy"}:
            params, action = self.actor.forward(observation), _array(batch["action"])
            if self.acting is not None:
                params = self.acting.allowed(params, batch)
            if not self._compared:
                compare_with_autograd(self.policy.distribution, params, action)
                self._compared = True
            logprob, entropy, back = self.policy.distribution.differentiable(params, action)
            if self.acting is not None and (found_by := self.acting.logprob_by_models(logprob, batch)) is not None:
                logprob, grad_output = found_by
                back = _through(grad_output, back)
            self._way_back = back
            found = {"logprob": _column(logprob), "entropy": _column(entropy)}
        if self.critic is not None and "value" in wants:
            found["value"] = torch.from_numpy(self.critic.forward(observation))
        return found

    def values(self, observation: Tensor) -> Tensor:
        """The critic's values `[...]` of observations `[..., D]`."""
        assert self.critic is not None
        flat: Floats = observation.reshape(-1, observation.shape[-1]).numpy()
        return torch.from_numpy(self.critic.forward(flat)).reshape(observation.shape[:-1])

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """Write every parameter's gradient, given the loss's gradients `[N, 1]` by the latest outputs."""
        if self.actor is not None and self._way_back is not None:
            size = len(self.actor.input)
            ours = [
                _row(grad_outputs[k], size) if k in grad_outputs else np.zeros(size, np.float32)
                for k in ("logprob", "entropy")
            ]
            self.actor.backward(self._way_back(*ours))
        if self.critic is not None and "value" in grad_outputs:
            self.critic.backward(grad_outputs["value"].numpy())


def compare_with_autograd(distribution: Distribution, params: Floats, action: NDArray[Any]) -> None:
    """Compare what a family of distributions writes out (`differentiable`) with its `log_prob` and `entropy`.

    Args:
        params: `[N, size]`; action: `[N, ...]`, both as in training.

    Raises:
        UserError: they are not the same function, or not its derivative.
    """
    if type(distribution).differentiable is Distribution.differentiable:
        return
    angle = np.arange(1, len(params) + 1, dtype=np.float32)
    told: list[dict[str, Tensor]] = []
    for written in (distribution.differentiable, lambda *given: Distribution.differentiable(distribution, *given)):
        logprob, entropy, back = written(params.copy(), action)
        found = {"log-probability": logprob.copy(), "entropy": entropy.copy()}
        found["derivative by its params"] = back(np.sin(angle), np.cos(angle)).copy()
        told.append({name: torch.from_numpy(x) for name, x in found.items()})
        for name, parameter in distribution.named_parameters():
            assert parameter.grad is not None
            told[-1][f"derivative by {name}"] = parameter.grad.clone()
    for name, wanted in told[1].items():
        if differs(told[0][name], wanted):
            raise UserError(
                f"The {name} that {type(distribution).__name__}.differentiable gives is not that of its log_prob and "
                "entropy; mend it, or leave it away: then autograd finds it."
            )


def _through(grad_output: Floats, back: Backward) -> Backward:
    """The way back from an actor's log-probability, whose derivative by the policy's is `gradient` `[N]`."""
    return lambda by_logprob, by_entropy: back(by_logprob * grad_output, by_entropy)


def _array(x: Tensor) -> NDArray[Any]:
    """`[N, 1, ...]` as `[N, ...]`."""
    return x.squeeze(1).numpy()


def _row(x: Tensor, size: int) -> Floats:
    row: Floats = x.numpy().reshape(size)
    return row


def _column(x: Floats) -> Tensor:
    return torch.from_numpy(x).unsqueeze(1)
