"""Families of distributions over actions, described by parameters that a network gives."""

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

from polyrl.errors import UserError
from polyrl.models.graph import Node
from polyrl.models.normalization import Floats

Backward = Callable[[Floats, Floats], Floats]
"""A loss's gradients `[N]` by log-probability and entropy to its gradient `[N, size]` by the distribution's params."""


class Distribution(nn.Module):
    """A family of distributions over actions, described by `size` parameters a state.

    Sampling is `sample(params, noise)` with noise that fits the family, and the most probable action is
    `mode(params)`. Where noise need not depend on the state, as in most families, a sample is
    `mode(params + noise)`: no more than an addition.

    Attributes:
        size: how many parameters describe one distribution.
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
    def mode(self, params: Floats) -> NDArray[Any]:
        """Most probable actions `[B, *action_shape]` of params `[B, size]`."""

    def greedy(self) -> list[Node]:
        """What `mode` computes, for `polyrl export`.

        Raises:
            UserError: it has no form that leaves the house.
        """
        raise UserError(f"Actions of a {type(self).__name__} have no form that can be exported; polyrl.load(RUN) acts.")

    def sample(self, params: Floats, noise: Floats) -> NDArray[Any]:
        """Actions `[B, *action_shape]` at random, of params `[B, size]` and noise `[B, ...]` of `noise`'s making."""
        return self.mode(params + noise)

    @abstractmethod
    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability (density), `[...]`, of actions `[..., *action_shape]`; params `[..., size]`."""

    @abstractmethod
    def entropy(self, params: Tensor) -> Tensor:
        """Entropy in nats, `[...]`, of the distributions that params `[..., size]` describe."""

    def divergence(self, params: Tensor, other: Distribution, others: Tensor) -> Tensor:
        """KL(self || other) in nats, `[...]`, of params `[..., size]` and those of another of the same family.

        Raises:
            UserError: nobody has written it for this family.
        """
        raise UserError(f"Nobody has written how far two distributions of {type(self).__name__} are apart.")

    def differentiable(self, params: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, Backward]:
        """Log-probabilities and entropies `[N]` of params `[N, size]`, and the way back to the gradient by `params`.

        The way back also writes the gradients of the distribution's own parameters, which must be there already. By
        autograd, unless a family knows it in closed form.
        """
        leaf = torch.from_numpy(params).requires_grad_()
        with torch.enable_grad():
            outputs = self.log_prob(leaf, torch.from_numpy(action)), self.entropy(leaf)

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()
            grad_outputs = torch.from_numpy(by_logprob), torch.from_numpy(by_entropy)
            leaf.grad = torch.zeros_like(leaf)  # stays where nothing depends on the params
            depends = [
                (x, grad_output) for x, grad_output in zip(outputs, grad_outputs, strict=True) if x.requires_grad
            ]
            if depends:
                torch.autograd.backward([x for x, _ in depends], [grad_output for _, grad_output in depends])
            gradient: Floats = leaf.grad.numpy()
            return gradient

        return outputs[0].detach().numpy(), outputs[1].detach().numpy(), back


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Floats:
    """Noise whose argmax with logits is a sample of the softmax (Gumbel, 1954)."""
    noise: Floats = torch.empty(shape).exponential_(generator=generator).log_().neg_().numpy()
    return noise


def _categorical_divergence(params: Tensor, others: Tensor) -> Tensor:
    logs = params.log_softmax(-1)
    return (logs.exp() * (logs - others.log_softmax(-1))).sum(-1)


class Categorical(Distribution):
    """One of `choices` actions, int64 `[]`; the params are logits."""

    action_shape = ()

    def __init__(self, choices: int):
        super().__init__()
        self.size = choices

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Gumbel noise."""
        return _gumbel((*shape, self.size), generator)

    def mode(self, params: Floats) -> NDArray[Any]:
        """The largest."""
        chosen: NDArray[Any] = params.argmax(1)
        return chosen

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("argmax")]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-softmax at the action."""
        return params.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """-sum p log p."""
        logs = params.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)

    def divergence(self, params: Tensor, other: Distribution, others: Tensor) -> Tensor:
        """sum p (log p - log q)."""
        return _categorical_divergence(params, others)

    def differentiable(self, params: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, Backward]:
        """By the softmax's derivatives: d log p_a / d z = 1_a - p, d H / d z = -p (log p + H)."""
        # choices first: sums over the first axis are fast
        logits = np.ascontiguousarray(params.T)
        logits -= logits.max(0)
        probability = np.exp(logits)
        total = probability.sum(0)
        probability /= total
        logs = logits - np.log(total)
        steps = np.arange(len(action))
        logprob, entropy = logs[action, steps], -(probability * logs).sum(0)

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            grad_output = probability * -by_logprob
            grad_output[action, steps] += by_logprob
            if by_entropy.any():
                grad_output -= probability * (logs + entropy) * by_entropy
            gradient: Floats = grad_output.T
            return gradient

        return logprob, entropy, back


class MultiCategorical(Distribution):
    """Several independent choices, int64 `[A]`; the params are their logits, one after another."""

    def __init__(self, choices: list[int]):
        super().__init__()
        self.choices = choices
        self.size, self.action_shape = sum(choices), (len(choices),)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Gumbel noise."""
        return _gumbel((*shape, self.size), generator)

    def mode(self, params: Floats) -> NDArray[Any]:
        """The largest of each."""
        pieces = np.split(params, np.cumsum(self.choices)[:-1], axis=1)
        return np.stack([piece.argmax(1) for piece in pieces], axis=1)

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("argmax-each", settings={"sizes": self.choices})]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Sum of the choices' log-probabilities."""
        logs = [piece.log_softmax(-1) for piece in torch.split(params, self.choices, -1)]
        chosen = [log.gather(-1, action[..., i, None]).squeeze(-1) for i, log in enumerate(logs)]
        return torch.stack(chosen, -1).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Sum of the choices' entropies."""
        logs = [piece.log_softmax(-1) for piece in torch.split(params, self.choices, -1)]
        return -torch.stack([(log.exp() * log).sum(-1) for log in logs], -1).sum(-1)

    def divergence(self, params: Tensor, other: Distribution, others: Tensor) -> Tensor:
        """Sum of the choices' divergences."""
        pieces = (torch.split(x, self.choices, -1) for x in (params, others))
        return torch.stack([*map(_categorical_divergence, *pieces)], -1).sum(-1)


class Bernoulli(Distribution):
    """Independent bits, int64 `[A]`; the params are logits of 1."""

    def __init__(self, bits: int):
        super().__init__()
        self.size, self.action_shape = bits, (bits,)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Logistic noise."""
        uniform = torch.rand((*shape, self.size), generator=generator)
        noise: Floats = (uniform.log() - torch.log1p(-uniform)).numpy()
        return noise

    def mode(self, params: Floats) -> NDArray[Any]:
        """1 where positive."""
        return (params > 0).astype(np.int64)

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("positive")]

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Sum of the bits' log-probabilities."""
        return -nn.functional.softplus(torch.where(action > 0, -params, params)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Sum of the bits' entropies."""
        ones = params.sigmoid()
        return (nn.functional.softplus(params) - ones * params).sum(-1)

    def divergence(self, params: Tensor, other: Distribution, others: Tensor) -> Tensor:
        """Sum of the bits' divergences."""
        softplus = nn.functional.softplus
        return (params.sigmoid() * (params - others) + softplus(others) - softplus(params)).sum(-1)


class DiagonalGaussian(Distribution):
    """Independent normal numbers, float32 `[A]`; the params are means, the log standard deviations a free vector."""

    dtype = np.float32

    def __init__(self, params: int, log_std_init: float = 0.0):
        super().__init__()
        self.size, self.action_shape = params, (params,)
        self.log_std = nn.Parameter(torch.full((params,), log_std_init))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Floats:
        """Normal noise of the present standard deviations."""
        noise: Floats = (torch.randn((*shape, self.size), generator=generator) * self.log_std.detach().exp()).numpy()
        return noise

    def mode(self, params: Floats) -> NDArray[Any]:
        """The params themselves."""
        return params

    def greedy(self) -> list[Node]:
        """The same for export."""
        return []

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-density of the action as it was sampled, before any clipping to the environment's bounds."""
        standard = (action - params) * (-self.log_std).exp()
        constant = self.log_std.sum() + 0.5 * math.log(2 * math.pi) * self.size
        return -0.5 * standard.square().sum(-1) - constant

    def entropy(self, params: Tensor) -> Tensor:
        """The same in every state."""
        per_number = 0.5 * (1 + math.log(2 * math.pi))
        return (self.log_std + per_number).sum().expand(params.shape[:-1])

    def divergence(self, params: Tensor, other: Distribution, others: Tensor) -> Tensor:
        """sum log (b / a) + (a^2 + (m - n)^2) / (2 b^2) - 1/2, of means m, n and standard deviations a, b."""
        assert isinstance(other, DiagonalGaussian)
        ratio = self.log_std - other.log_std
        apart = (params - others) * (-other.log_std).exp()
        return (((2 * ratio).exp() + apart.square() - 1) / 2 - ratio).sum(-1)

    def differentiable(self, params: Floats, action: NDArray[Any]) -> tuple[Floats, Floats, Backward]:
        """With z = (action - mean) / std: by the mean z / std, by log std z^2 - 1; entropy only by log std, 1."""
        log_std = self.log_std.detach().numpy()
        assert self.log_std.grad is not None
        log_std_grad, precision = self.log_std.grad.numpy(), np.exp(-log_std)
        standard = (action - params) * precision
        squares = standard * standard
        constant = np.float32(log_std.sum() + 0.5 * math.log(2 * math.pi) * self.size)
        logprob = squares.sum(1)
        logprob *= -0.5
        logprob -= constant
        entropy = np.full(len(params), constant + np.float32(0.5 * self.size))

        def back(by_logprob: Floats, by_entropy: Floats) -> Floats:
            log_std_grad[:] = by_logprob @ squares
            log_std_grad[:] += by_entropy.sum() - by_logprob.sum()
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
