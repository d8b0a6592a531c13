"""A model's trained parameters as one vector: one norm, one clip and one Adam step for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ALIGNMENT = 16
"""Every parameter starts at a multiple of this many numbers: a cache line, where vector instructions are fastest."""


class FlatParameters:
    """The trained parameters of a module, moved into one contiguous vector that they stay views of.

    Gradients are views of `vector.grad` in the same way, and must be zeroed in place: setting them to None parts them.

    Attributes:
        vector: float parameter `[N]`, what an optimizer is given. The gaps between parameters are 0 and stay 0.
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

    @staticmethod
    def laid_out(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor for each parameter, in their order, as a vector `[N]` like theirs, gaps 0; differentiable."""
        return torch.cat([functional.pad(x.reshape(-1), (0, -x.numel() % ALIGNMENT)) for x in tensors])


class VectorAdamW:
    """AdamW on one vector, by the kernel of `torch.optim.AdamW(fused=True)` and with its attributes.

    Without `torch.optim` around it, whose hooks cost more than the step of a small model, and whose first use imports
    a compiler (0.9 seconds, 70 MiB).

    Attributes:
        param_groups: one group: params, lr, betas, eps, weight_decay.
        state: of the vector: step, exp_avg, exp_avg_sq; empty before the first step.
    """

    def __init__(self, vector: nn.Parameter, *, lr: float, eps: float, weight_decay: float, betas: tuple[float, float]):
        self.param_groups: list[dict[str, Any]] = [
            {"params": [vector], "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        ]
        self.state: defaultdict[nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        self.vector = vector
        self.numbers = vector.detach()  # the same memory, which may be written to without autograd's leave

    @property
    def moments(self) -> dict[str, torch.Tensor]:
        """The state of the vector, made when it is first asked for."""
        state = self.state[self.vector]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(self.numbers), torch.zeros_like(self.numbers)
        return state

    def step(self) -> None:
        """Take one step along `vector.grad`."""
        step_together([self])


def step_together(optimizers: list[VectorAdamW]) -> None:
    """Take one step with each of several optimizers of equal hyperparameters, in one call of the kernel."""
    group = optimizers[0].param_groups[0]
    ready = [(o, o.vector.grad) for o in optimizers if o.vector.grad is not None]
    if not ready:
        return
    gradients = [gradient for _, gradient in ready]
    moments = [o.moments for o, _ in ready]
    for state in moments:
        state["step"] += 1
    torch._fused_adamw_(
        [o.numbers for o, _ in ready],
        gradients,
        [state["exp_avg"] for state in moments],
        [state["exp_avg_sq"] for state in moments],
        [],
        [state["step"] for state in moments],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
