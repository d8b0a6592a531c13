"""A conditional denoiser of ranks: DDIM (arXiv:2010.02502) with classifier-free guidance (arXiv:2207.12598)."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.core.update import Draws
from polyrl.models.base import Network

NOISING_STEPS = 1_000
UNCONDITIONAL = 0.1
"""Share of the rows whose condition is left out in training."""


def kept_signal(steps: int) -> Tensor:
    """ab_t `[steps]`, the product of 1 - beta, whose square roots rise evenly from sqrt 1e-4 to sqrt 2e-2."""
    beta = torch.linspace(1e-4**0.5, 2e-2**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - beta, 0).float()


def ddim_step(x: Tensor, noise: Tensor, kept: Tensor, before: Tensor | None) -> Tensor:
    """A step without noise of its own, from ab_t to ab_prev; the last one, without `before`, ends at x0 in [-1, 1]."""
    clean = ((x - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
    return clean if before is None else before.sqrt() * clean + (1 - before).sqrt() * noise


class RankDenoiserNetwork(Network):
    """Predicts the noise in codes of ranks, given the coarse code, or 0 for no condition.

    Two residual blocks (LayerNorm, Mish, linear) between linear layers; steps come in as sines and cosines.

    Attributes:
        code: d, numbers of the coarse code.
    """

    kept: Tensor
    rates: Tensor

    def __init__(self, numbers: int, code: int, width: int, stream: torch.Generator):
        super().__init__()
        self.code = code
        self.enter, self.time = nn.Linear(numbers + code, width), nn.Linear(2 * (width // 2), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.leave = nn.Linear(width, numbers)
        self.register_buffer("kept", kept_signal(NOISING_STEPS))
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(width // 2) / (width // 2)))
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=stream)

    def forward(self, noisy: Tensor, step: Tensor, code: Tensor) -> Tensor:
        """Noise `[..., L]` of noisy codes `[..., L]` at steps `[..., 1]`, counted from 0, under codes `[..., d]`."""
        angle = step * self.rates
        h = self.enter(torch.cat([noisy, code], -1)) + self.time(torch.cat([angle.sin(), angle.cos()], -1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(nn.functional.mish(norm(h)))
        found: Tensor = self.leave(h)
        return found

    def expand(self, code: Tensor, noise: Tensor, guidance: float, steps: int) -> Tensor:
        """Codes of ranks `[N, L]` in [-1, 1] of codes `[N, d]` and noise `[N, L]`, in some of the steps.

        In each the noise is taken for eps(x, t, 0) + w (eps(x, t, c) - eps(x, t, 0)).
        """
        grid, x = torch.linspace(NOISING_STEPS - 1, 0, steps).long(), noise
        conditions = torch.cat([torch.zeros_like(code), code])
        for at, t in enumerate(grid):
            free, told = self(x.repeat(2, 1), t.float().expand(2 * len(x), 1), conditions).chunk(2)
            guided = free + guidance * (told - free)
            x = ddim_step(x, guided, self.kept[t], self.kept[grid[at + 1]] if at + 1 < steps else None)
        return x

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: mean squared error of the noise put on the ranks that were executed."""
        target, code = batch["rank_code"], batch["action"][..., : self.code].tanh()
        code = code * (draw.uniform(*target.shape[:-1], 1) >= UNCONDITIONAL)
        step = (draw.uniform(*target.shape[:-1], 1) * NOISING_STEPS).long()
        noise, kept = draw(*target.shape), self.kept[step]
        noisy = kept.sqrt() * target + (1 - kept).sqrt() * noise
        return {"imitation": (self(noisy, step.float(), code) - noise).square().mean(-1)}
