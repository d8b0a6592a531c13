"""A model's trained parameters as one vector: one norm, one clip and one Adam step for all of them."""

from __future__ import annotations

import torch
from torch import nn

ALIGNMENT = 16
"""Every parameter starts at a multiple of this many numbers: a cache line, where vector instructions are fastest."""


class FlatParameters:
    """The trained parameters of a module, moved into one contiguous vector that they stay views of.

    Gradients are views of `vector.grad` in the same way, and must be zeroed in place: setting them to None parts them.

    Attributes:
        vector: float parameter `[N]`, what an optimiser is given. The gaps between parameters are 0 and stay 0.
    """

    def __init__(self, module: nn.Module):
        """Move the parameters of `module` that require gradients; all must have one dtype and device."""
        named = [p for p in module.parameters() if p.requires_grad]
        starts, size = [], 0
        for p in named:
            starts.append(size)
            size += -(-p.numel() // ALIGNMENT) * ALIGNMENT
        like = named[0] if named else torch.zeros(())
        self.vector = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))
        self.vector.grad = torch.zeros_like(self.vector)
        for p, start in zip(named, starts, strict=True):
            here = slice(start, start + p.numel())
            view = self.vector.data[here].view_as(p)
            view.copy_(p.data)
            p.data = view
            p.grad = self.vector.grad[here].view_as(p)
