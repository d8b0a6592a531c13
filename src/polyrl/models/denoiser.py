"""Policies that denoise: an action is noise at first, of which a network takes some away in every step of a chain.

A DDPM (arXiv:2006.11239) over actions in [-1, 1], with the variance-preserving schedule of arXiv:2011.13456 at a few
steps, as arXiv:2208.06193 has it, or the cosine of arXiv:2102.09672: at the end of the way next to nothing is left of
the action, which is where chains begin. Of short chains the cosine's last step begins with less noise, so that they
tell ways apart which are nearer to each other.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.models.actor import Actor
from polyrl.models.base import Interface, Trained
from polyrl.models.imitating import ImitatingActor, ImitatingPolicy
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

NoiseSchedule = Literal["variance-preserving", "cosine"]
LEAST, MOST = 0.1, 10.0
"""Rates of noise at the beginning and at the end of the way (arXiv:2208.06193's code)."""


def noise_rates(steps: int, schedule: NoiseSchedule = "variance-preserving") -> Tensor:
    """beta_t `[steps]`, t = 1..T, as float32.

    1 - exp(-LEAST / T - (MOST - LEAST) (2 t - 1) / (2 T^2)), or 1 - f(t) / f(t - 1), at most 0.999, with the cosine
    f(t) = cos^2((t / T + 0.008) / 1.008 pi / 2) (arXiv:2102.09672, equation 17).
    """
    t = torch.arange(steps + 1, dtype=torch.float64)
    if schedule == "cosine":
        kept = ((t / steps + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - kept[1:] / kept[:-1]).clamp(max=0.999).float()
    return (1 - torch.exp(-LEAST / steps - (MOST - LEAST) * (2 * t[1:] - 1) / (2 * steps**2))).float()


class DenoisingPolicy(ImitatingPolicy):
    """A chain whose network predicts the noise that was added.

    Attributes:
        network: from observation, noisy action and place in the chain to noise.
        numbers: A, numbers of an action.
        steps: of the chain.
    """

    beta: Tensor
    kept: Tensor

    def __init__(
        self,
        network: StackedMlp,
        space: spaces.Box,
        steps: int,
        schedule: NoiseSchedule = "variance-preserving",
    ):
        super().__init__()
        self.network, self.space, self.steps = network, space, steps
        self.numbers = int(np.prod(space.shape))
        self.proposal_size = steps * self.numbers
        beta = noise_rates(steps, schedule)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", torch.cumprod(1 - beta, 0))  # abar_t

    def noise_of(self, observation: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """Predicted noise `[..., A]` of noisy actions `[..., A]` at steps `[..., 1]`, counted from 0."""
        said: Tensor = self.network(torch.cat([observation, noisy, step.float() / self.steps], -1))
        return said.squeeze(-2)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions `[..., A]` of observations `[..., D]` by noise `[..., steps, A]`: the whole chain (algorithm 2).

        What the network takes the action for is brought to [-1, 1] in every step.
        """
        action = noise[..., 0, :]
        for t in reversed(range(self.steps)):
            step = torch.full((*action.shape[:-1], 1), float(t))
            beta, kept = self.beta[t], self.kept[t]
            before = self.kept[t - 1] if t else torch.ones(())
            clean = (action - (1 - kept).sqrt() * self.noise_of(observation, action, step)) / kept.sqrt()
            clean = clean.clamp(-1, 1)
            mean = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * action) / (1 - kept)  # eq. 7
            action = mean + (beta * (1 - before) / (1 - kept)).sqrt() * noise[..., t, :] if t else mean
        return action

    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The same by noise `[..., steps * A]`."""
        return self.sample(observation, noise.unflatten(-1, (self.steps, self.numbers)))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: the squared error of the noise predicted on the batch's actions (equation 14)."""
        action = batch["action"]
        step = (draw.uniform(*action.shape[:-1], 1) * self.steps).long()
        noise, kept = draw(*action.shape), self.kept[step]
        noisy = kept.sqrt() * action + (1 - kept).sqrt() * noise
        return {"imitation": (self.noise_of(batch["observation"], noisy, step) - noise).square().sum(-1)}

    def actor(self) -> Actor:
        """Samples from it."""
        return DenoisingActor(self)


class DenoisingActor(ImitatingActor):
    """Acts by a chain; while it is judged, by the chain without noise on its way from 0."""

    policy: DenoisingPolicy

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """`[steps, count, steps of a chain, A]`."""
        return super().noise(steps, count, generator).reshape(steps, count, self.policy.steps, self.policy.numbers)


@dataclass(frozen=True, kw_only=True)
class Denoiser(Trained):
    """A denoising chain over actions between bounds, which imitates."""

    slot: ClassVar[str] = "imitating-policy"
    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    hidden: str = hyperparameter("128x128x128", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")
    denoising_steps: int = hyperparameter(5, "steps of the chain", low=1)
    noise_schedule: NoiseSchedule = hyperparameter(
        "variance-preserving",
        "variance-preserving, or cosine, which leaves less noise to the last step of short chains",
    )

    def make(self, interface: Interface, stream: torch.Generator) -> DenoisingPolicy:
        """A network of the task's observations, an action and a place in the chain."""
        space = interface.box("A denoiser")
        numbers = math.prod(space.shape)
        network = StackedMlp(
            interface.observation_size + numbers + 1,
            layer_sizes(self.hidden),
            numbers,
            activation=self.activation,
            generator=stream,
        )
        return DenoisingPolicy(network, space, self.denoising_steps, self.noise_schedule)
