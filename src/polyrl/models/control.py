"""Policies and critics of control: small networks, distributions over actions, statistics of normalisation.

Statistics belong to the policy: they are its buffers, are saved with its weights and stand still in evaluation. Acting
reads a NumPy copy of the weights, because at these sizes a framework costs several times what it computes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]
WayBack = Callable[[Floats, Floats], Floats]
"""A loss's slopes `[N]` by log-probability and entropy to its slope `[N, size]` by the distribution's numbers."""


class Forward(Protocol):
    """A network's forward pass without gradients."""

    def __call__(self, x: Floats, out: Floats | None = None) -> Floats:
        """Inputs `[N, D]` to outputs `[N, O]`, which are written to `out` if it is given."""
        ...


CLIP = 10.0
"""Normalised observations and rewards are cut at this many standard deviations."""
EPSILON = 1e-8
# operations on arrays are slower with plain numbers, which are made arrays every time
_MOST, _LEAST, _EPSILON, _ZERO = np.array(CLIP), np.array(-CLIP), np.array(EPSILON), np.zeros((), dtype=np.float32)


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

    def __init__(self, size: int, fixed: NDArray[np.bool_] | None = None):
        """`fixed` `[size]`: entries whose mean stays 0 and whose variance stays 1."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))
        self._fixed = fixed

    def arrays(self) -> MomentArrays:
        """The buffers' memory with the arithmetic on it, for loops over steps; load and save the buffers as always."""
        return MomentArrays(self.mean.numpy(), self.variance.numpy(), self.count.numpy(), self._fixed)

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in `batch` `[N, size]`."""
        self.arrays().update(batch)

    def normalise(self, batch: NDArray[np.float64]) -> Floats:
        """`batch` `[..., size]` with mean 0 and variance 1, cut at +-10."""
        return self.arrays().normalise(batch)


class MomentArrays:
    """What `RunningMoments` computes, on arrays: as few operations as can be, because each costs more than its numbers.

    Attributes:
        mean, variance: float64 `[1, size]`; count: float64 `[]`. Written in place.
    """

    def __init__(
        self,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        count: NDArray[np.float64],
        fixed: NDArray[np.bool_] | None = None,
    ):
        # one row each: operations on arrays of one shape take half as long as those that repeat a row
        self.mean, self.variance, self.count = mean[None], variance[None], count
        self.fixed = fixed

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in `batch` `[N, size]`."""
        n = len(batch)
        if not n:
            return
        mean, variance, before = self.mean, self.variance, self.count.item()
        total = before + n
        centre = batch if n == 1 else np.add.reduce(batch, 0, keepdims=True) / n
        off = centre - mean
        added = off * off
        added *= n / total
        variance += added
        variance *= before / total
        if n > 1:
            spread = batch - centre
            spread *= spread
            variance += np.add.reduce(spread, 0, keepdims=True) / total
        off *= n / total
        mean += off
        self.count[()] = total
        if self.fixed is not None:
            mean[:, self.fixed], variance[:, self.fixed] = 0.0, 1.0

    def normalise(self, batch: NDArray[np.float64], out: Floats | None = None) -> Floats:
        """`batch` `[..., size]` with mean 0 and variance 1, cut at +-10; written to `out` if it is given."""
        deviation = self.variance + _EPSILON
        np.sqrt(deviation, out=deviation)
        white = batch - self.mean
        white /= deviation
        np.minimum(white, _MOST, out=white)
        np.maximum(white, _LEAST, out=white)
        if out is None:
            return white.reshape(batch.shape).astype(np.float32)
        out[...] = white
        return out


# --------------------------------------------------------------------------------------------------- distributions


class Distribution(nn.Module):
    """A family of distributions over actions, described by `size` numbers a state.

    Sampling is `sample(numbers, noise)` with noise that fits the family, and the most probable action is
    `decide(numbers)`. Where noise need not depend on the state, as in most families, a sample is
    `decide(numbers + noise)`: no more than an addition.

    Attributes:
        size: how many numbers describe one distribution.
        action_shape: shape of one action, `()` or `(A,)`.
        dtype: NumPy dtype of actions.
    """

    size: int
    action_shape: tuple[int, ...]
    dtype: Any = np.int64

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Inherit no written derivative: a subclass may have another density. It has autograd's, or says its own."""
        super().__init_subclass__(**kwargs)
        if "differentiable" not in vars(cls):
            setattr(cls, "differentiable", Distribution.differentiable)  # noqa: B010 - mypy: no assignment to a method

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Noise for `sample`, `[*shape, ...]`, in most families `[*shape, size]`."""

    @abstractmethod
    def decide(self, numbers: Floats) -> NDArray[Any]:
        """Most probable actions `[B, *action_shape]` of numbers `[B, size]`."""

    def sample(self, numbers: Floats, noise: Floats) -> NDArray[Any]:
        """Actions `[B, *action_shape]` at random, of numbers `[B, size]` and noise `[B, ...]` of `noise`'s making."""
        return self.decide(numbers + noise)

    @abstractmethod
    def log_prob(self, numbers: Tensor, action: Tensor) -> Tensor:
        """Log-probability (density), `[...]`, of actions `[..., *action_shape]`; numbers `[..., size]`."""

    @abstractmethod
    def entropy(self, numbers: Tensor) -> Tensor:
        """Entropy in nats, `[...]`, of the distributions that numbers `[..., size]` describe."""

    def differentiable(self, numbers: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, WayBack]:
        """Log-probabilities and entropies `[N]` of numbers `[N, size]`, and the way back to the slope by `numbers`.

        The way back also writes the gradients of the distribution's own parameters, which must be there already. By
        autograd, unless a family knows it in closed form.
        """
        leaf = torch.from_numpy(numbers).requires_grad_()
        with torch.enable_grad():
            outputs = self.log_prob(leaf, torch.from_numpy(action)), self.entropy(leaf)

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()
            slopes = torch.from_numpy(by_logprob), torch.from_numpy(by_entropy)
            leaf.grad = torch.zeros_like(leaf)  # stays where nothing depends on the numbers
            depends = [(x, slope) for x, slope in zip(outputs, slopes, strict=True) if x.requires_grad]
            if depends:
                torch.autograd.backward([x for x, _ in depends], [slope for _, slope in depends])
            gradient: Floats = leaf.grad.numpy()
            return gradient

        return outputs[0].detach().numpy(), outputs[1].detach().numpy(), back


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

    def differentiable(self, numbers: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, WayBack]:
        """By the softmax's derivatives: d log p_a / d z = 1_a - p, d H / d z = -p (log p + H)."""
        # choices first: sums over the first axis are fast
        logits = np.ascontiguousarray(numbers.T)
        logits -= logits.max(0)
        probability = np.exp(logits)
        total = probability.sum(0)
        probability /= total
        logs = logits - np.log(total)
        steps = np.arange(len(action))
        logprob, entropy = logs[action, steps], -(probability * logs).sum(0)

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            slope = probability * -by_logprob
            slope[action, steps] += by_logprob
            if by_entropy.any():
                slope -= probability * (logs + entropy) * by_entropy
            gradient: Floats = slope.T
            return gradient

        return logprob, entropy, back


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

    def differentiable(self, numbers: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, WayBack]:
        """With z = (action - mean) / std: by the mean z / std, by log std z^2 - 1; entropy only by log std, 1."""
        log_std = self.log_std.detach().numpy()
        assert self.log_std.grad is not None
        log_std_slope, precision = self.log_std.grad.numpy(), np.exp(-log_std)
        standard = (action - numbers) * precision
        squares = standard * standard
        constant = np.float32(log_std.sum() + 0.5 * math.log(2 * math.pi) * self.size)
        logprob = squares.sum(1)
        logprob *= -0.5
        logprob -= constant
        entropy = np.full(len(numbers), constant + np.float32(0.5 * self.size))

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            log_std_slope[:] = by_logprob @ squares
            log_std_slope[:] += by_entropy.sum() - by_logprob.sum()
            gradient: Floats = standard * precision
            gradient *= by_logprob[:, None]
            return gradient

        return logprob, entropy, back


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
        fixed = None if continuous.all() else ~continuous
        self.observation_moments = RunningMoments(len(continuous), fixed) if normalise else None
        self.reward_moments = RunningMoments(1)

    def see(self, observations: NDArray[np.float64]) -> None:
        """Take raw observations `[N, D]` into the statistics."""
        if self.observation_moments is not None:
            self.observation_moments.update(observations)

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
        return snapshot(self.network)


class ControlCritic(nn.Module):
    """A network from normalised observations `[..., D]` to values `[...]`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]`."""
        value: Tensor = self.network(observation).squeeze(-1)
        return value

    def values(self, observation: Tensor) -> Tensor:
        """The same without gradients, for whole rollouts."""
        forward = snapshot(self.network)
        flat: Floats = observation.reshape(-1, observation.shape[-1]).numpy()
        return torch.from_numpy(forward(flat)).reshape(observation.shape[:-1])


def _tanh(x: Floats) -> None:
    np.tanh(x, out=x)


def _relu(x: Floats) -> None:
    np.maximum(x, _ZERO, out=x)


def _elu(x: Floats) -> None:
    np.copyto(x, np.expm1(x), where=x < 0)


IN_PLACE: dict[type[nn.Module], Callable[[Floats], None]] = {nn.Tanh: _tanh, nn.ReLU: _relu, nn.ELU: _elu}


def snapshot(network: nn.Module) -> Forward:
    """The forward pass of a network as it is now: in NumPy where its layers are known, else in torch."""
    return numpy_forward(network) or _torch_forward(network)


FEW_ROWS = 64
"""Up to so many inputs at a time, a bias is kept once a row: adding arrays of one shape takes a third of the time."""


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module computes what one of these classes does: no subclass, no hooks, and no alpha of ELU but 1."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in kinds and not hooked and (not isinstance(module, nn.ELU) or module.alpha == 1)


def numpy_forward(network: nn.Module) -> Forward | None:
    """The forward pass of linear layers and simple activations in NumPy, on a copy of the weights; None for others."""
    if not is_plain(network, nn.Sequential):
        return None
    assert isinstance(network, nn.Sequential)
    layers: list[tuple[Floats, Floats, Callable[[Floats], None] | None]] = []
    for module in network:
        if isinstance(module, nn.Linear) and is_plain(module, nn.Linear):
            if module.bias is None or module.weight.dtype != torch.float32:
                return None
            weight, bias = (p.detach().numpy().copy() for p in (module.weight, module.bias))
            layers.append((weight.T, bias, None))
        elif is_plain(module, *IN_PLACE) and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], IN_PLACE[type(module)])
        else:
            return None
    if not layers:
        return None
    *inner, (last_weight, last_bias, last_activate) = layers
    made: dict[int, tuple[list[tuple[Floats, Floats, Callable[[Floats], None] | None, Floats]], Floats]] = {}

    def rows_of(bias: Floats, n: int) -> Floats:
        return np.repeat(bias[None], n, 0) if n <= FEW_ROWS else bias

    def forward(x: Floats, out: Floats | None = None) -> Floats:
        n = len(x)
        if n not in made:
            hidden = [
                (weight, rows_of(bias, n), activate, np.empty((n, len(bias)), dtype=np.float32))
                for weight, bias, activate in inner
            ]
            made[n] = hidden, rows_of(last_bias, n)
        hidden, bias_rows = made[n]
        for weight, bias, activate, into in hidden:
            x = x.dot(weight, into)
            x += bias
            if activate is not None:
                activate(x)
        x = x.dot(last_weight, out)
        x += bias_rows
        if last_activate is not None:
            last_activate(x)
        return x

    return forward


def _torch_forward(network: nn.Module) -> Forward:
    def forward(x: Floats, out: Floats | None = None) -> Floats:
        with torch.inference_mode():
            numbers: Floats = network(torch.from_numpy(x)).numpy()
        if out is None:
            return numbers
        out[...] = numbers
        return out

    return forward
