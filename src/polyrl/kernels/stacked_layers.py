"""Several networks of equal layers, forward and back as one autograd function.

Autograd over single operations keeps a node, a saved tensor and a new result for each of them. Here one node does all
layers of all members: biases and activations work in place, weights get gradients only where they are trained (the
critics in a policy's update are not), and inputs only where something before them learns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_}
"""Activations whose derivative follows from their output."""


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
        activate, members, rows = IN_PLACE[activation], len(parameters[0]), len(x)
        layers = len(parameters) // 2
        outputs = []
        inputs: list[Tensor] = [x] * members
        for layer in range(layers):
            weight, bias = parameters[2 * layer], parameters[2 * layer + 1]
            out = x.new_empty(members, rows, weight.shape[2])
            for k in range(members):
                torch.addmm(bias[k], inputs[k], weight[k], out=out[k])
            if layer < layers - 1:
                activate(out)
            outputs.append(out)
            inputs = list(out.unbind())
        ctx.activation, ctx.layers = activation, layers
        ctx.save_for_backward(x, *parameters, *outputs[:-1])
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        """Gradients by the input and the parameters, those that are asked for."""
        x, *saved = ctx.saved_tensors
        layers = ctx.layers
        parameters, hidden = saved[: 2 * layers], saved[2 * layers :]
        members = len(parameters[0])
        found: list[Tensor | None] = [None] * (2 * layers)
        by_input = ctx.needs_input_grad[0]
        slope: Tensor = slopes[0]
        for layer in reversed(range(layers)):
            weight = parameters[2 * layer]
            below = [x] * members if layer == 0 else list(hidden[layer - 1].unbind())
            if ctx.needs_input_grad[2 + 2 * layer]:
                gradient = torch.empty_like(weight)
                for k in range(members):
                    torch.mm(below[k].t(), slope[k], out=gradient[k])
                found[2 * layer] = gradient
                found[2 * layer + 1] = slope.sum(1)
            if layer == 0:
                break
            before = slope.new_empty(hidden[layer - 1].shape)
            for k in range(members):
                torch.mm(slope[k], weight[k].t(), out=before[k])
            output = hidden[layer - 1]
            if ctx.activation == "relu":
                before = torch.ops.aten.threshold_backward(before, output, 0)
            else:
                before.mul_(1 - output * output)
            slope = before
        gradient_x = None
        if by_input:
            weight = parameters[0]
            gradient_x = torch.mm(slope[0], weight[0].t())
            for k in range(1, members):
                gradient_x.addmm_(slope[k], weight[k].t())
        return gradient_x, None, *found
