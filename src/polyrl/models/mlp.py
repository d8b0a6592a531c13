"""Multi-layer perceptrons, as the domains with small networks use them."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import nn

from polyrl.errors import UserError

Activation = Literal["tanh", "relu", "elu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def layer_sizes(text: str) -> tuple[int, ...]:
    """`64x64` -> (64, 64); an empty text is no hidden layer.

    Raises:
        UserError: it is not sizes joined by x.
    """
    try:
        sizes = tuple(int(t) for t in text.split("x")) if text else ()
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise UserError(f"The hidden layers are '{text}'; write their sizes joined by x, such as 64x64.")
    return sizes


def mlp(
    inputs: int,
    hidden: tuple[int, ...],
    outputs: int,
    activation: Activation = "tanh",
    *,
    gain: float | None = None,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers with `activation` between them, `[..., inputs]` -> `[..., outputs]`, float32.

    Args:
        gain: gain of the last layer's orthogonal weights; hidden layers then have gain sqrt(2) and all biases are 0
            (the "37 details", detail 2). None keeps torch's own uniform initialization.
        generator: random stream of the weights.
    """
    sizes = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        layer = nn.Linear(a, b)
        if gain is not None:
            nn.init.orthogonal_(layer.weight, gain if last else math.sqrt(2), generator=generator)
            nn.init.zeros_(layer.bias)
        else:
            bound = 1 / math.sqrt(a)
            with torch.no_grad():
                for tensor in (layer.weight, layer.bias):
                    tensor.uniform_(-bound, bound, generator=generator)
        layers += [layer] if last else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
