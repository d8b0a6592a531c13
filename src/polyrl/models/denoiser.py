"""Policies that denoise: an action is noise at first, of which a network takes some away in every step of a chain.

Two kinds, over actions in [-1, 1]. A DDPM (arXiv:2006.11239) has the variance-preserving schedule of arXiv:2011.13456
at a few steps, as arXiv:2208.06193 has it, or the cosine of arXiv:2102.09672: at the end of the way next to nothing is
left of the action, which is where chains begin. Of short chains the cosine's last step begins with less noise, so that
they tell ways apart which are nearer to each other. A flow (arXiv:2210.02747, straight paths) goes the same way without
noise, by Euler steps of a velocity.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.models.actor import Actor
from polyrl.models.base import Interface, Trained
from polyrl.models.imitating import ImitatingActor, ImitatingPolicy
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp
from polyrl.models.squashed import gaussian_logprob
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


Guide = Callable[[int, Tensor], Tensor]
"""What is added to what a step leads to, `[..., A]`, by its number and the noisy actions that it began with."""


class DenoisingPolicy(ImitatingPolicy):
    """A chain: each kind says how actions are spoiled, and what a step makes of what the network predicts.

    Steps are counted from 0, the one that ends with the action; a chain begins with the last.

    Attributes:
        network: from observation, noisy action and place in the chain to what the kind lets it predict.
        numbers: A, numbers of an action.
        steps: of the chain.
    """

    def __init__(self, network: nn.Module, space: spaces.Box, steps: int):
        super().__init__()
        self.network, self.space, self.steps = network, space, steps
        self.numbers = int(np.prod(space.shape))
        self.proposal_size = steps * self.numbers

    @abstractmethod
    def spoiled(self, action: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `[..., A]` with the noise of steps `[..., 1]`, and what the network is to predict of them."""
        raise NotImplementedError

    @abstractmethod
    def back(self, noisy: Tensor, predicted: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean `[..., A]` and deviation `[]` of what a step makes of noisy actions `[..., A]`."""
        raise NotImplementedError

    def begun(self, noise: Tensor) -> Tensor:
        """What chains begin with, of standard normal numbers `[..., A]`."""
        return noise

    def place(self, step: Tensor) -> Tensor:
        """What the network is told of steps `[..., 1]`."""
        return step.float() / self.steps

    def predicted(self, observation: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """What the network says `[..., A]` of noisy actions `[..., A]` at steps `[..., 1]`."""
        said: Tensor = self.network(torch.cat([observation, noisy, self.place(step)], -1))
        return said.squeeze(-2)

    def _step(self, observation: Tensor, noisy: Tensor, step: int) -> tuple[Tensor, Tensor]:
        steps = torch.full((*noisy.shape[:-1], 1), float(step))
        return self.back(noisy, self.predicted(observation, noisy, steps), step)

    def chain(self, observation: Tensor, noise: Tensor, guide: Guide | None = None) -> list[Tensor]:
        """What each step leads to, `steps + 1` of `[..., A]` from noise to action, by noise `[..., steps, A]`."""
        found = [self.begun(noise[..., 0, :])]
        for step in reversed(range(self.steps)):
            mean, deviation = self._step(observation, found[-1], step)
            following = mean + deviation * noise[..., step, :] if step else mean
            found.append(following if guide is None else following + guide(step, found[-1]))
        return found

    def sample(self, observation: Tensor, noise: Tensor, guide: Guide | None = None) -> Tensor:
        """Actions `[..., A]` of observations `[..., D]` by noise `[..., steps, A]`: the whole chain."""
        return self.chain(observation, noise, guide)[-1]

    def step_logprobs(self, observation: Tensor, chain: Tensor, *, least: float) -> Tensor:
        """Log-densities `[..., steps]` of the steps of chains `[..., steps + 1, A]`, in their order.

        A step is normal (arXiv:2409.00588, equation 4.3). Where its deviation is smaller than `least`, as that of the
        last one, which has none, it counts as `least`; so do those of a flow.
        """
        found = list[Tensor]()
        for k, step in enumerate(reversed(range(self.steps))):
            mean, deviation = self._step(observation, chain[..., k, :], step)
            deviation = deviation.clamp(min=least)
            found.append(gaussian_logprob((chain[..., k + 1, :] - mean) / deviation, deviation.log()))
        return torch.stack(found, -1)

    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The whole chain by noise `[..., steps * A]`."""
        return self.sample(observation, noise.reshape(*noise.shape[:-1], self.steps, self.numbers))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: the squared error of what is predicted of the batch's actions, at a step by chance."""
        action = batch["action"]
        step = (draw.uniform(*action.shape[:-1], 1) * self.steps).long()
        noisy, wanted = self.spoiled(action, draw(*action.shape), step)
        return {"imitation": (self.predicted(batch["observation"], noisy, step) - wanted).square().sum(-1)}

    def actor(self) -> Actor:
        """Samples from it."""
        return DenoisingActor(self)


class DiffusionPolicy(DenoisingPolicy):
    """A DDPM: the network predicts the noise that was added."""

    beta: Tensor
    kept: Tensor

    def __init__(
        self,
        network: nn.Module,
        space: spaces.Box,
        steps: int,
        schedule: NoiseSchedule = "variance-preserving",
    ):
        super().__init__(network, space, steps)
        beta = noise_rates(steps, schedule)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", torch.cumprod(1 - beta, 0))  # abar_t

    def spoiled(self, action: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar) a + sqrt(1 - abar) eps, and eps (equation 14)."""
        kept = self.kept[step]
        return kept.sqrt() * action + (1 - kept).sqrt() * noise, noise

    def back(self, noisy: Tensor, predicted: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The posterior (equation 7), around what the network takes the action for, which is brought to [-1, 1]."""
        beta, kept = self.beta[step], self.kept[step]
        before = self.kept[step - 1] if step else torch.ones(())
        clean = ((noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()).clamp(-1, 1)
        mean = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * noisy) / (1 - kept)
        return mean, (beta * (1 - before) / (1 - kept)).sqrt()


class FlowPolicy(DenoisingPolicy):
    """A flow along straight lines from noise to actions: the network predicts action less noise."""

    def spoiled(self, action: Tensor, noise: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - u) a + u eps, u = (step + 1) / steps, and a - eps (arXiv:2210.02747, equations 20 to 23)."""
        share = (step + 1) / self.steps
        return (1 - share) * action + share * noise, action - noise

    def back(self, noisy: Tensor, predicted: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """An Euler step, after the last one brought to [-1, 1]; nothing is drawn."""
        following = noisy + predicted / self.steps
        return following if step else following.clamp(-1, 1), torch.zeros(())


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
    noise_schedule: Literal["variance-preserving", "cosine", "straight"] = hyperparameter(
        "variance-preserving",
        "of a DDPM: variance-preserving, or cosine, which leaves less noise to the last step of short chains; or "
        "straight, a flow, which draws nothing on its way",
    )

    def make(self, interface: Interface, stream: torch.Generator) -> DenoisingPolicy:
        """A network of the task's observations, an action and a place in the chain.

        Raises:
            UserError: actions are not between bounds.
        """
        space = interface.box("A denoiser")
        numbers = math.prod(space.shape)
        network = StackedMlp(
            interface.observation_size + numbers + 1,
            layer_sizes(self.hidden),
            numbers,
            activation=self.activation,
            generator=stream,
        )
        if self.noise_schedule == "straight":
            return FlowPolicy(network, space, self.denoising_steps)
        return DiffusionPolicy(network, space, self.denoising_steps, self.noise_schedule)
