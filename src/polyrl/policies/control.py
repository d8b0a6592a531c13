"""Policies and critics of control: small networks, distributions over actions, statistics of normalisation.

Statistics belong to the policy: they are its buffers, are saved with its weights and stand still in evaluation. Acting
reads a NumPy copy of the weights, because at these sizes a framework costs several times what it computes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]
"""Observations `[B, D]` to the numbers that describe a distribution over actions `[B, O]`."""

CLIP = 10.0
"""Normalised observations and rewards are cut at this many standard deviations."""
EPSILON = 1e-8


# ------------------------------------------------------------------------------------------------------ statistics


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al., 1979), in float64.

    Attributes:
        mean, variance: buffers `[size]`, 0 and 1 before anything is seen.
        count: buffer `[]`; starts at 1e-4, as in OpenAI's baselines and Stable-Baselines3.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in `batch` `[N, size]`."""
        n = len(batch)
        if not n:
            return
        # the arrays share memory with the buffers
        mean, variance, count = self.mean.numpy(), self.variance.numpy(), float(self.count)
        batch_mean = batch.sum(0) / n
        off = batch_mean - mean
        total = count + n
        variance *= count
        if n > 1:
            spread = batch - batch_mean
            variance += (spread * spread).sum(0)
        variance += off * off * (count * n / total)
        variance /= total
        mean += off * (n / total)
        self.count.fill_(total)

    def normalise(self, batch: NDArray[np.float64]) -> Floats:
        """`batch` `[..., size]` with mean 0 and variance 1, cut at +-10."""
        white = (batch - self.mean.numpy()) / np.sqrt(self.variance.numpy() + EPSILON)
        cut: Floats = np.clip(white, -CLIP, CLIP, out=white).astype(np.float32)
        return cut


# --------------------------------------------------------------------------------------------------- distributions


class Distribution(nn.Module):
    """A family of distributions over actions, described by `size` numbers a state.

    Sampling is `decide(numbers + noise)` with noise that fits the family, and the most probable action is
    `decide(numbers)`; so acting needs no more than an addition.

    Attributes:
        size: how many numbers describe one distribution.
        action_shape: shape of one action, `()` or `(A,)`.
        dtype: NumPy dtype of actions.
    """

    size: int
    action_shape: tuple[int, ...]
    dtype: Any = np.int64

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Noise that makes `decide` a sample, `[*shape, size]`."""

    @abstractmethod
    def decide(self, numbers: Floats) -> NDArray[Any]:
        """Actions `[B, *action_shape]` of perturbed numbers `[B, size]`."""

    @abstractmethod
    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Log-probability (density), `[...]`, of actions `[..., *action_shape]`; numbers `[..., size]`."""

    @abstractmethod
    def entropy(self, numbers: Tensor) -> Tensor:
        """Entropy in nats, `[...]`, of the distributions that numbers `[..., size]` describe."""


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Floats:
    """Noise whose argmax with logits is a sample of the softmax (Gumbel, 1954)."""
    noise: Floats = torch.empty(shape).exponential_(generator=generator).log_().neg_().numpy()
    return noise


class Categorical(Distribution):
    """One of `choices` actions, int64 `[]`; the numbers are logits."""

    action_shape = ()

    def __init__(self, choices: int):
        super().__init__()
        self.size = choices

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Gumbel noise."""
        return _gumbel((*shape, self.size), generator)

    def decide(self, numbers: Floats) -> NDArray[Any]:
        """The largest."""
        chosen: NDArray[Any] = numbers.argmax(1)
        return chosen

    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Log-softmax at the action."""
        return numbers.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, numbers: Tensor) -> Tensor:
        """-sum p log p."""
        logs = numbers.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)


class MultiCategorical(Distribution):
    """Several independent choices, int64 `[A]`; the numbers are their logits, one after another."""

    def __init__(self, choices: list[int]):
        super().__init__()
        self.choices = choices
        self.size, self.action_shape = sum(choices), (len(choices),)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Gumbel noise."""
        return _gumbel((*shape, self.size), generator)

    def decide(self, numbers: Floats) -> NDArray[Any]:
        """The largest of each."""
        pieces = np.split(numbers, np.cumsum(self.choices)[:-1], axis=1)
        return np.stack([piece.argmax(1) for piece in pieces], axis=1)

    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Sum of the choices' log-probabilities."""
        logs = [piece.log_softmax(-1) for piece in torch.split(numbers, self.choices, -1)]
        chosen = [log.gather(-1, action[..., i, None]).squeeze(-1) for i, log in enumerate(logs)]
        return torch.stack(chosen, -1).sum(-1)

    def entropy(self, numbers: Tensor) -> Tensor:
        """Sum of the choices' entropies."""
        logs = [piece.log_softmax(-1) for piece in torch.split(numbers, self.choices, -1)]
        return -torch.stack([(log.exp() * log).sum(-1) for log in logs], -1).sum(-1)


class Bernoulli(Distribution):
    """Independent bits, int64 `[A]`; the numbers are logits of 1."""

    def __init__(self, bits: int):
        super().__init__()
        self.size, self.action_shape = bits, (bits,)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Logistic noise."""
        uniform = torch.rand((*shape, self.size), generator=generator)
        noise: Floats = (uniform.log() - torch.log1p(-uniform)).numpy()
        return noise

    def decide(self, numbers: Floats) -> NDArray[Any]:
        """1 where positive."""
        return (numbers > 0).astype(np.int64)

    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Sum of the bits' log-probabilities."""
        return -nn.functional.softplus(torch.where(action > 0, -numbers, numbers)).sum(-1)

    def entropy(self, numbers: Tensor) -> Tensor:
        """Sum of the bits' entropies."""
        ones = numbers.sigmoid()
        return (nn.functional.softplus(numbers) - ones * numbers).sum(-1)


class DiagonalGaussian(Distribution):
    """Independent normal numbers, float32 `[A]`; the numbers are means, the log standard deviations a free vector."""

    dtype = np.float32

    def __init__(self, numbers: int, log_std_init: float = 0.0):
        super().__init__()
        self.size, self.action_shape = numbers, (numbers,)
        self.log_std = nn.Parameter(torch.full((numbers,), log_std_init))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Normal noise of the present standard deviations."""
        noise: Floats = (torch.randn((*shape, self.size), generator=generator) * self.log_std.detach().exp()).numpy()
        return noise

    def decide(self, numbers: Floats) -> NDArray[Any]:
        """The numbers themselves."""
        return numbers

    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Log-density of the action as it was sampled, before any clipping to the environment's bounds."""
        standard = (action - numbers) * (-self.log_std).exp()
        constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi) * self.size
        return -0.5 * standard.square().sum(-1) - constant

    def entropy(self, numbers: Tensor) -> Tensor:
        """The same in every state."""
        per_number = 0.5 * (1 + math.log(2 * math.pi))
        return (self.log_std + per_number).sum().expand(numbers.shape[:-1])


def distribution_of(space: spaces.Space[Any], log_std_init: float = 0.0) -> Distribution:
    """The standard distribution over a Gymnasium action space (one that `ActionAdapter` accepts)."""
    if isinstance(space, spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical([int(n) for n in space.nvec.reshape(-1)])
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(int(np.prod(space.shape)))
    if isinstance(space, spaces.Box):
        return DiagonalGaussian(int(np.prod(space.shape)), log_std_init)
    raise TypeError(f"no distribution over {space}")


# ------------------------------------------------------------------------------------------------ policy and critic


class ControlPolicy(nn.Module):
    """A network that describes a distribution over actions, with the statistics that its inputs need.

    Attributes:
        network: normalised observations `[..., D]` -> numbers `[..., distribution.size]`.
        distribution: see `Distribution`; its own parameters are trained too.
        observation_moments: running statistics of observations; None leaves observations as they are.
        reward_moments: running statistics of the discounted return, for parts that scale rewards by them.
        continuous: bool `[D]`, which entries of an observation are normalised; not saved.
    """

    def __init__(
        self, network: nn.Module, distribution: Distribution, continuous: NDArray[np.bool_], *, normalise: bool
    ):
        super().__init__()
        self.network, self.distribution = network, distribution
        self.observation_moments = RunningMoments(len(continuous)) if normalise else None
        self.reward_moments = RunningMoments(1)
        self._fixed = None if continuous.all() else ~continuous

    def see(self, observations: NDArray[np.float64]) -> None:
        """Take raw observations `[N, D]` into the statistics."""
        if self.observation_moments is not None:
            self.observation_moments.update(observations)
            if self._fixed is not None:
                self.observation_moments.mean.numpy()[self._fixed] = 0.0
                self.observation_moments.variance.numpy()[self._fixed] = 1.0

    def normalise(self, observations: NDArray[np.float64]) -> Floats:
        """Raw observations `[..., D]` as the network gets them, float32 `[..., D]`."""
        if self.observation_moments is None:
            return observations.astype(np.float32)
        return self.observation_moments.normalise(observations)

    def outputs(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        """Differentiable "logprob" and "entropy" `[...]` of normalised observations `[..., D]` and their actions."""
        numbers = self.network(observation)
        return {
            "logprob": self.distribution.log_prob(numbers, action),
            "entropy": self.distribution.entropy(numbers),
        }

    def snapshot(self) -> Forward:
        """The network as it is now, for acting: in NumPy where its layers are known, else in torch."""
        return numpy_forward(self.network) or _torch_forward(self.network)


class ControlCritic(nn.Module):
    """A network from normalised observations `[..., D]` to values `[...]`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]`."""
        value: Tensor = self.network(observation).squeeze(-1)
        return value


def _tanh(x: Floats) -> None:
    np.tanh(x, out=x)


def _relu(x: Floats) -> None:
    np.maximum(x, 0, out=x)


def _elu(x: Floats) -> None:
    np.copyto(x, np.expm1(x), where=x < 0)


IN_PLACE: dict[type[nn.Module], Callable[[Floats], None]] = {nn.Tanh: _tanh, nn.ReLU: _relu, nn.ELU: _elu}


def numpy_forward(network: nn.Module) -> Forward | None:
    """The forward pass of linear layers and simple activations in NumPy, on a copy of the weights; None for others."""
    if not isinstance(network, nn.Sequential):
        return None
    steps: list[tuple[Floats, Floats] | Callable[[Floats], None]] = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()
            steps.append((weight, bias))
        elif type(layer) in IN_PLACE:
            steps.append(IN_PLACE[type(layer)])
        else:
            return None

    def forward(x: Floats) -> Floats:
        for step in steps:
            if isinstance(step, tuple):
                x = x @ step[0]
                x += step[1]
            else:
                step(x)
        return x

    return forward


def _torch_forward(network: nn.Module) -> Forward:
    def forward(x: Floats) -> Floats:
        with torch.inference_mode():
            numbers: Floats = network(torch.from_numpy(x)).numpy()
        return numbers

    return forward
