"""The prior of diffusion-ppo: a diffusion model of given actions, frozen but for low-rank factors that adapt it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.core.update import OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.base import Interface, Trained
from polyrl.models.denoiser import DenoisingPolicy
from polyrl.recipe import Recipe, hyperparameter

if TYPE_CHECKING:
    from polyrl.core.update import Draws


class AdaptedLinear(nn.Module):
    """A layer with low-rank factors beside it, W x + b + B A x, of which B is 0 at first.

    The factors are buffers: the optimizer of stage I knows parameters alone.
    """

    down: Tensor
    up: Tensor

    def __init__(self, inputs: int, outputs: int, rank: int, generator: torch.Generator):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound, generator=generator))
        self.register_buffer("down", bound * torch.randn(inputs, rank, generator=generator))
        self.register_buffer("up", torch.zeros(rank, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., outputs]` of `[..., inputs]`."""
        return torch.addmm(self.bias, x, self.weight) + (x @ self.down) @ self.up


class ResidualMlp(nn.Module):
    """A first layer, residual blocks of two, a last layer; SiLU between."""

    def __init__(self, inputs: int, outputs: int, *, width: int, blocks: int, rank: int, generator: torch.Generator):
        super().__init__()
        sizes = [(inputs, width), *[(width, width)] * (2 * blocks), (width, outputs)]
        self.layers = nn.ModuleList(AdaptedLinear(*size, rank, generator) for size in sizes)

    def factors(self) -> list[Tensor]:
        """A and B of every layer."""
        return [x for layer in self.layers for x in layer.buffers()]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., 1, outputs]` of `[..., inputs]`."""
        first, *inner, last = self.layers
        silu = nn.functional.silu
        h = silu(first(x.reshape(-1, x.shape[-1])))
        for one, other in zip(inner[::2], inner[1::2], strict=True):
            h = h + other(silu(one(h)))
        found: Tensor = last(h)
        return found.reshape(*x.shape[:-1], 1, -1)


class BridgePolicy(DenoisingPolicy):
    """A variance-exploding chain: a network `D(a, sigma, s)` predicts the clean action, steps are Gaussian bridges."""

    level: Tensor
    network: ResidualMlp

    def __init__(self, network: ResidualMlp, space: spaces.Box, levels: Tensor):
        super().__init__(network, space, len(levels))
        self.register_buffer("level", levels)

    def begun(self, noise: Tensor) -> Tensor:
        """Noise of the largest level."""
        return self.level[-1] * noise

    def place(self, step: Tensor) -> Tensor:
        """sigma itself."""
        return self.level[step.long()]

    def spoiled(self, action: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """a + sigma eps, and a (equation 6)."""
        return action + self.level[step] * noise, action

    def back(self, noisy: Tensor, predicted: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """rho a_t + (1 - rho) a_0 and sigma_p sqrt(1 - rho), rho = sigma_p^2 / sigma_t^2."""
        following = self.level[step - 1] if step else torch.zeros(())
        rho = (following / self.level[step]).square()
        return rho * noisy + (1 - rho) * predicted, following * (1 - rho).sqrt()

    def adapt(self, batch: Experience, draw: Draws, rate: float) -> float:
        """A gradient step of the factors alone down the loss of a batch, which is returned."""
        factors = self.network.factors()
        for factor in factors:
            factor.requires_grad_(True)
        loss = self.outputs(batch, {"imitation"}, draw)["imitation"].mean()
        gradients = torch.autograd.grad(loss, factors)
        for factor, gradient in zip(factors, gradients, strict=True):
            factor.requires_grad_(False).sub_(rate * gradient)
        return float(loss.detach())


@dataclass(frozen=True, kw_only=True)
class ActionPrior(Trained):
    """A diffusion model of given actions between bounds, with low-rank factors that adapt it."""

    slot: ClassVar[str] = "imitating-policy"
    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    learning_rate: float = hyperparameter(1e-3, "Adam step size", low=0, high=1e37)
    width: int = hyperparameter(64, "numbers of a hidden layer", low=1)
    blocks: int = hyperparameter(1, "residual blocks of two layers", low=0)
    levels: int = hyperparameter(5, "levels of noise, and steps of a chain", low=1)
    sigma_min: float = hyperparameter(0.02, "least level of noise, actions being in [-1, 1]", above=0)
    sigma_max: float = hyperparameter(1.0, "largest level of noise, which chains begin with", above=0)
    rank: int = hyperparameter(4, "of the factors beside each layer", low=1)

    def make(self, interface: Interface, stream: torch.Generator) -> BridgePolicy:
        """A network of the task's observations, an action and a level.

        Raises:
            UserError: actions are not between bounds, or levels do not grow.
        """
        space = interface.box("An action prior")
        if self.sigma_min >= self.sigma_max and self.levels > 1:
            raise UserError(f"--sigma-min {self.sigma_min:g} is to be below --sigma-max {self.sigma_max:g}.")
        numbers = math.prod(space.shape)
        inputs = interface.observation_size + numbers + 1
        network = ResidualMlp(inputs, numbers, width=self.width, blocks=self.blocks, rank=self.rank, generator=stream)
        least = self.sigma_min if self.levels > 1 else self.sigma_max
        levels = torch.logspace(math.log10(least), math.log10(self.sigma_max), self.levels)
        return BridgePolicy(network, space, levels)


def half_and_middle(space: spaces.Box) -> tuple[Tensor, Tensor]:
    """`[A]` each: an action between the bounds is middle + half u, u in [-1, 1]; 1 and the bound where both are one."""
    low, high = torch.from_numpy(space.low).flatten().float(), torch.from_numpy(space.high).flatten().float()
    return torch.where(high > low, (high - low) / 2, 1.0), (high + low) / 2


def executed(batch: Experience, see: See) -> Tensor:
    """What environments make of the batch's actions, in [-1, 1], `[B, T, A]`."""
    half, middle = half_and_middle(see["prior"].space)
    return ((batch["action"] - middle) / half).clamp(-1, 1)


@dataclass(frozen=True)
class AdaptPrior(OwnUpdate):
    """Plain gradient steps of the prior's low-rank factors on what the policy has done; all else of it is frozen."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})

    adapter_rate: float = hyperparameter(1e-4, "step size of the prior's factors; 0 leaves it frozen", low=0)
    adapter_share: float = hyperparameter(0.1, "steps of the factors for each update of the policy", low=0)
    adapter_batch: int = hyperparameter(256, "rows of a step of the factors", low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a prior without factors.

        Raises:
            UserError: it has none.
        """
        prior = recipe.models[self.trains]
        if self.adapter_rate and not isinstance(prior, ActionPrior):
            raise UserError(f"'{prior.name}' has no factors that could adapt it; set --adapter-rate 0.")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """So many steps down the denoising loss (equation 6) as are due, each on other rows."""
        if not self.adapter_rate:
            return {}
        prior, steps = see[self.trains], batch.with_fields(action=executed(batch, see)).steps()
        memory, losses = see.context.memory(self.name), list[float]()
        updates = int(see.context.optimizer["policy"].moments["step"])
        while memory.get("steps", 0) < math.floor(self.adapter_share * updates + 1e-9):
            memory["steps"] = memory.get("steps", 0) + 1
            rows = steps.rows(torch.randint(len(steps), (self.adapter_batch,), generator=see.generator))
            losses.append(prior.adapt(rows, see.draw, self.adapter_rate))
        if losses:
            see.context.log(prior__adapter_loss=sum(losses) / len(losses))
        return {}
