"""Passes of several networks of equal layers without autograd, in memory that is there already.

What `stacked_layers` is to autograd, with nothing made anew: weights, biases, their gradients and what layers put out
are looked up once, so that a layer is one call for its product and one for its activation. Gradients are written to
where an optimizer reads them. The products are those of `stacked_layers`, and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.kernels.stacked_layers import FEW, IN_PLACE, NARROW

LARGEST_KEPT = 2**20
"""Numbers of a layer's outputs above which their memory is not kept for the next pass."""


class Scratch:
    """Memory for what is needed until the next call only, by width and use; of the latest number of rows."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, rows: int, width: int, use: int) -> Tensor:
        """`[rows, width]` float32, of which nothing is known; one memory for each `use`."""
        found = self._kept.get((width, use))
        if found is None or len(found) != rows:
            found = torch.empty(rows, width)
            if found.numel() <= LARGEST_KEPT:
                self._kept[width, use] = found
        return found


scratch = Scratch()


@dataclass
class _Layer:
    """One layer of one member: views of its parameters, and of their gradients where they have any."""

    weight: Tensor
    bias: Tensor
    transposed: Tensor
    weight_array: NDArray[Any]
    bias_array: NDArray[Any]
    weight_grad: Tensor | None
    bias_grad: Tensor | None
    weight_grad_array: NDArray[Any] | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, k: int) -> _Layer:
        """Member `k` of `[K, I, O]` and `[K, O]`."""
        w, b = weight.detach()[k], bias.detach()[k]
        by_weight, by_bias = (None if p.grad is None else p.grad[k] for p in (weight, bias))
        array = None if by_weight is None else by_weight.numpy()
        return cls(w, b, w.t(), w.numpy(), b.numpy(), by_weight, by_bias, array)

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Write `x [N, I] @ weight + bias` into `out` `[N, O]`."""
        if out.shape[1] < NARROW:
            array = out.numpy()
            np.dot(x.numpy(), self.weight_array, out=array)
            array += self.bias_array
        else:
            torch.addmm(self.bias, x, self.weight, out=out)

    def to_parameters(self, x: Tensor, grad_output: Tensor) -> None:
        """Write the gradients of weight and bias, by those of the outputs `[N, O]`."""
        assert self.weight_grad is not None and self.bias_grad is not None
        if grad_output.shape[1] < NARROW:
            np.dot(x.numpy().T, grad_output.numpy(), out=self.weight_grad_array)
        else:
            torch.mm(x.t(), grad_output, out=self.weight_grad)
        torch.sum(grad_output, 0, out=self.bias_grad)

    def to_input(self, grad_output: Tensor, out: Tensor) -> None:
        """Write the gradient by the input `[N, I]`, by that of the outputs `[N, O]`."""
        if grad_output.shape[1] == 1:
            torch.mul(grad_output, self.transposed, out=out)
        elif out.shape[1] < NARROW:
            np.dot(grad_output.numpy(), self.weight_array.T, out=out.numpy())
        else:
            torch.mm(grad_output, self.transposed, out=out)


class Passes:
    """Forward passes of `K` networks of equal layers, and the way back of the latest one that was kept.

    Attributes:
        members: K.
        size: O.
        number: of forward passes that were kept, so that a way back can tell whether it is still the latest's.
    """

    def __init__(self, activation: str, parameters: Sequence[Tensor]):
        """`parameters`: weight `[K, I, O]` and bias `[K, O]` of each layer in turn, whose memory stays where it is."""
        self.activation, self.activate = activation, IN_PLACE[activation]
        self.members, self.number = len(parameters[0]), 0
        pairs = [*zip(parameters[::2], parameters[1::2], strict=True)]
        self._layers = [[_Layer.of(w, b, k) for w, b in pairs] for k in range(self.members)]
        self._widths = [w.shape[2] for w, _ in pairs[:-1]]
        self.size, self._first = pairs[-1][0].shape[2], parameters[0]
        self._at = self._place(), parameters[0].grad is not None
        self._hidden: list[list[Tensor]] = []
        self._x = torch.empty(0, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: a copy of a network has parameters of its own, and finds its passes when it needs them."""

    def _place(self) -> int:
        return self._first.data_ptr()

    def stands(self) -> bool:
        """Whether the parameters are still where they were, and have gradients if they had or never asked for them."""
        return self._at == (self._place(), self._first.grad is not None)

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs `[K, N, O]` of inputs `[N, I]`, with nothing kept to go back."""
        rows = len(x)
        found = torch.empty(self.members, rows, self.size)
        hidden = [scratch(rows, width, use) for use, width in enumerate(self._widths)]
        for k, layers in enumerate(self._layers):
            self._forward(x, layers, [*hidden, found[k]])
        return found

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """The same of the first `members`, kept for the way back."""
        rows, members = len(x), self.members if members is None else members
        if len(self._hidden) < members or len(self._hidden[0][0]) != rows:
            self._hidden = [[torch.empty(rows, width) for width in self._widths] for _ in range(members)]
        found = torch.empty(members, rows, self.size)
        for k in range(members):
            self._forward(x, self._layers[k], [*self._hidden[k], found[k]])
        self._x = x
        self.number += 1
        return found

    def _forward(self, x: Tensor, layers: list[_Layer], outputs: list[Tensor]) -> None:
        last = len(outputs) - 1
        for i, (layer, out) in enumerate(zip(layers, outputs, strict=True)):
            layer.forward(x, out)
            if i < last:
                self.activate(out)
            x = out

    def to_parameters(self, grad_output: Tensor) -> None:
        """Write the gradient of every parameter, by those of the latest kept outputs `[K, N, O]`."""
        for k, own in enumerate(grad_output):
            layers, below = self._layers[k], [self._x, *self._hidden[k]]
            for i in reversed(range(len(layers))):
                layers[i].to_parameters(below[i], own)
                if i:
                    own = self._through(layers[i], own, below[i], i)

    def to_input(self, grad_output: Tensor) -> Tensor:
        """The gradient `[N, I]` by the input, summed over the members; rows without any are not computed."""
        found = torch.zeros_like(self._x)
        for k, own in enumerate(grad_output):
            layers, below = self._layers[k], [self._x, *self._hidden[k]]
            rows: Tensor | None = own.any(1).nonzero().squeeze(1)
            assert rows is not None
            if len(rows) == 0:
                continue
            if len(rows) > FEW * len(own):
                rows = None
            else:  # of the lesser of two critics only the rows in which it is the lesser
                own = own.index_select(0, rows)
                below = [self._x, *(h.index_select(0, rows) for h in below[1:])]
            for i in reversed(range(1, len(layers))):
                own = self._through(layers[i], own, below[i], i)
            by_input = torch.empty(len(own), found.shape[1])
            layers[0].to_input(own, by_input)
            if rows is None:
                found += by_input
            else:
                found.index_add_(0, rows, by_input)
        return found

    def _through(self, layer: _Layer, grad_output: Tensor, output: Tensor, i: int) -> Tensor:
        """The gradient `[N, H]` by what a layer's activation read, by that of the outputs of the layer above."""
        before = scratch(len(output), output.shape[1], -1 - i % 2)
        layer.to_input(grad_output, before)
        if self.activation == "relu":
            torch.ops.aten.threshold_backward.grad_input(before, output, 0, grad_input=before)
        else:
            before.mul_(1 - output * output)
        return before
