"""Several networks of equal layers, forward and back as one autograd function.

Autograd over single operations keeps a node, a saved tensor and a new result for each of them. Here one node does all
layers of all members, one member after another, so that what a layer has written is still in the cache when the next
one reads it: biases and activations work in place, weights get gradients only where they are trained (the critics in a
policy's update are not), and inputs only where something before them learns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}
"""Activations whose derivative follows from their output."""
NARROW = 16
"""Columns below which NumPy's product is taken: MKL's costs up to fifteen times as much there (measured)."""
FEW = 0.75
"""Share of the rows with a gradient up to which the others are left out: gathering costs a twentieth of a product."""


class StackedLayers(torch.autograd.Function):
    """Linear layers with an activation between them, for `K` members at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, *parameters: Tensor) -> Tensor:
        """Outputs `[K, N, O]` of inputs `[N, I]`, which all members read.

        Args:
            ctx: of autograd.
            x: `[N, I]` float32.
            activation: between layers, a name of `IN_PLACE`.
            parameters: weight `[K, I, O]` and bias `[K, O]` of each layer in turn.
        """
        members, rows = len(parameters[0]), len(x)
        outputs = [x.new_empty(members, rows, weight.shape[2]) for weight in parameters[::2]]
        for k in range(members):
            member_forward(x, activation, parameters, k, [out[k] for out in outputs])
        ctx.activation = activation
        ctx.save_for_backward(x, *parameters, *outputs[:-1])
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Gradients by the input and the parameters, those that are asked for."""
        x, *saved = ctx.saved_tensors
        layers = (len(saved) + 1) // 3
        parameters, hidden = saved[: 2 * layers], saved[2 * layers :]
        found: list[Tensor | None] = [
            torch.empty_like(p) if asked else None
            for p, asked in zip(parameters, ctx.needs_input_grad[2:], strict=True)
        ]
        trains = any(ctx.needs_input_grad[2:])
        gradient_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_output: Tensor = grad_outputs[0]
        for k in range(len(grad_output)):
            own, below, rows = grad_output[k], [x, *(h[k] for h in hidden)], None
            if not trains:
                # of the lesser of two critics only the rows in which it is the lesser have a gradient
                rows = own.any(1).nonzero().squeeze(1)
                if len(rows) == 0:
                    continue
                if len(rows) > FEW * len(own):
                    rows = None
                else:
                    own, below = own[rows], [x, *(h[rows] for h in below[1:])]
            own = member_backward(own, below, ctx.activation, parameters, k, found)
            if gradient_x is None:
                continue
            by_input = product(own, parameters[0][k].t())
            if rows is None:
                gradient_x += by_input
            else:
                gradient_x.index_add_(0, rows, by_input)
        return gradient_x, None, *found


def member_forward(x: Tensor, activation: str, parameters: tuple[Tensor, ...], k: int, outputs: list[Tensor]) -> None:
    """Write member `k`'s outputs `[N, O]` of each layer."""
    last = len(outputs) - 1
    for layer, out in enumerate(outputs):
        weight, bias = parameters[2 * layer][k], parameters[2 * layer + 1][k]
        if weight.shape[1] < NARROW:
            product(x, weight, out)
            out += bias
        else:
            torch.addmm(bias, x, weight, out=out)
        if layer < last:
            IN_PLACE[activation](out)
        x = out


def member_backward(
    grad_output: Tensor,
    below: list[Tensor],
    activation: str,
    parameters: list[Tensor],
    k: int,
    found: list[Tensor | None],
) -> Tensor:
    """Write member `k`'s gradients into `found`, where there is room for them.

    Args:
        gradient: `[N, O]`, of the outputs.
        below: inputs `[N, I]` of each layer; all but the first are outputs of an activation.
        activation: a name of `IN_PLACE`.
        parameters: of all members.
        k: the member.
        found: gradients of all members' parameters, or None.

    Returns:
        The gradient `[N, H]` of the first layer's outputs before the activation.
    """
    for layer in reversed(range(len(below))):
        weights, biases = found[2 * layer], found[2 * layer + 1]
        if weights is not None:
            product(below[layer].t(), grad_output, weights[k])
        if biases is not None:
            torch.sum(grad_output, 0, out=biases[k])
        if layer == 0:
            break
        before, output = torch.mm(grad_output, parameters[2 * layer][k].t()), below[layer]
        if activation == "relu":
            torch.ops.aten.threshold_backward.grad_input(before, output, 0, grad_input=before)
        else:
            before.mul_(1 - output * output)
        grad_output = before
    return grad_output


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a @ b`, `[m, k]` by `[k, n]`, into `out` where there is one."""
    if b.shape[1] >= NARROW:
        return torch.mm(a, b, out=out)
    if out is None:
        return torch.from_numpy(np.dot(a.detach().numpy(), b.detach().numpy()))
    np.dot(a.detach().numpy(), b.detach().numpy(), out=out.detach().numpy())
    return out
