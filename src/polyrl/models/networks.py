"""Multi-layer perceptrons of one or several members with equal layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyrl import kernels
from polyrl.kernels.passes import Passes
from polyrl.kernels.stacked_layers import IN_PLACE, StackedLayers
from polyrl.models.graph import Node, linear
from polyrl.models.normalization import Floats

Activation = Literal["relu", "tanh", "elu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": nn.functional.elu,
}


class StackedMlp(nn.Module):
    """`members` networks of equal layers on the same inputs, `[..., I]` to `[..., members, O]`.

    One weight `[members, I, O]` and one bias `[members, O]` a layer, initialized as torch's linear layers are: each
    number uniform within 1 / sqrt(I).

    Attributes:
        weights, biases: of each layer.
        dense: whether these layers are all that it is.
    """

    dense: ClassVar[bool] = True

    def __init__(
        self,
        inputs: int,
        hidden: tuple[int, ...],
        outputs: int,
        *,
        members: int = 1,
        activation: Activation = "relu",
        layer_norm: bool = False,
        generator: torch.Generator,
    ):
        super().__init__()
        self.members, self.activation, self.layer_norm = members, activation, layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise([inputs, *hidden, outputs]):
            bound = 1 / math.sqrt(a)
            for store, shape in ((self.weights, (members, a, b)), (self.biases, (members, b))):
                store.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator)))
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(members, h)) for h in hidden] if layer_norm else [])
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(members, h)) for h in hidden] if layer_norm else [])
        # looked up once: weight and bias of each layer in turn
        self._layers = tuple(p for pair in zip(self.weights, self.biases, strict=True) for p in pair)
        self._passes: Passes | None = None

    def forward(self, x: Tensor, chosen: slice | Tensor | None = None) -> Tensor:
        """Outputs `[..., members, O]` of inputs `[..., I]`; with `chosen`, of these members only."""
        flat = x.reshape(-1, x.shape[-1])
        if chosen is None and not torch.is_grad_enabled() and (passes := self.passes(flat)) is not None:
            out = passes.outputs(flat)
        else:
            layers = self._layers if chosen is None else tuple(p[chosen] for p in self._layers)
            out = self._fast(flat, layers) if self._is_fast(flat) else self._plain(flat, layers, chosen)
        return out.transpose(0, 1).reshape(*x.shape[:-1], len(out), out.shape[-1])

    def passes(self, x: Tensor) -> Passes | None:
        """Passes without autograd for inputs `[N, I]`; None where the layers or the numbers are others than are known.

        Found again where the parameters have been moved since.
        """
        if not self._is_fast(x) or x.dtype != self._layers[0].dtype:
            return None
        if self._passes is None or not self._passes.stands():
            self._passes = Passes(self.activation, self._layers)
        return self._passes

    def passes_to_train(self) -> Passes | None:
        """The same, for parameters of which each has the place of its gradient; None where one has none."""
        if any(p.grad is None for p in self._layers):
            return None
        return self.passes(self._layers[0])

    def nodes(self) -> list[Node]:
        """The layers of a network of one member for export, as they are now."""
        found = list[Node]()
        for at, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found.append(linear(weight.data[0].numpy().copy(), bias.data[0].numpy().copy()))
            if at < len(self.weights) - 1:
                if self.layer_norm:
                    arrays = {"scale": self.scales[at].data[0], "shift": self.shifts[at].data[0]}
                    found.append(
                        Node("layer-norm", {n: x.numpy().copy() for n, x in arrays.items()}, {"epsilon": 1e-5})
                    )
                found.append(Node(self.activation))
        return found

    def _is_fast(self, x: Tensor) -> bool:
        known = self.activation in IN_PLACE and not self.layer_norm
        return kernels.ENABLED and known and x.dtype == torch.float32 and x.device.type == "cpu"

    def _fast(self, x: Tensor, layers: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = StackedLayers.apply(x, self.activation, *layers)  # type: ignore[no-untyped-call]
        return found

    def _plain(self, x: Tensor, layers: tuple[Tensor, ...], chosen: slice | Tensor | None) -> Tensor:
        members = len(layers[0])
        h = x.expand(members, *x.shape)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
            h = torch.baddbmm(bias.unsqueeze(1), h, weight)
            if layer < last:
                if self.layer_norm:
                    scale, shift = self.scales[layer], self.shifts[layer]
                    if chosen is not None:
                        scale, shift = scale[chosen], shift[chosen]
                    h = nn.functional.layer_norm(h, h.shape[-1:]) * scale.unsqueeze(1) + shift.unsqueeze(1)
                h = ACTIVATIONS[self.activation](h)
        return h


def live_forward(network: StackedMlp) -> Callable[[Floats], Floats]:
    """Forward passes of a network of one member, `[N, I]` to `[N, O]`, by its weights as they are at each call.

    In NumPy on the module's own memory: at one or a few rows a framework costs more than what it computes.
    """
    if not kernels.ENABLED or not network.dense or network.layer_norm or network.activation not in ("relu", "tanh"):

        def plainly(x: Floats) -> Floats:
            with torch.no_grad():
                found: Floats = network(torch.from_numpy(x)).squeeze(-2).numpy()
            return found

        return plainly
    layers = [(w.data[0].numpy(), b.data[0].numpy()) for w, b in zip(network.weights, network.biases, strict=True)]
    (last_weight, last_bias), inner = layers[-1], layers[:-1]
    relu = network.activation == "relu"
    zero = np.zeros((), dtype=np.float32)

    def forward(x: Floats) -> Floats:
        for weight, bias in inner:
            x = x.dot(weight)
            x += bias
            if relu:
                np.maximum(x, zero, out=x)
            else:
                np.tanh(x, out=x)
        x = x.dot(last_weight)
        x += last_bias
        return x

    return forward
