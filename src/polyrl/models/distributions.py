"""Families of distributions over actions, described by the numbers that a network says."""

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

from polyrl.models.normalisation import Floats

WayBack = Callable[[Floats, Floats], Floats]
"""A loss's slopes `[N]` by log-probability and entropy to its slope `[N, size]` by the distribution's numbers."""


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
