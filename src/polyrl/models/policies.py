"""Policies between bounds, `[-1, 1]` a number, which the environment gets scaled to its own: stochastic and not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.errors import UserError
from polyrl.models.actor import ALLOWED, BLOCKED, ActionNotFinite, Actor, Moment, Player
from polyrl.models.base import ClosedForm, Interface, Network, PolicyNetwork, Trained
from polyrl.models.distributions import Distribution, distribution_of
from polyrl.models.graph import Node
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp, live_forward
from polyrl.models.normalization import Floats
from polyrl.models.squashed import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    DeterministicPasses,
    SquashedPasses,
    gaussian_logprob,
    scaler,
    scaling,
    squashed_logprob,
)
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

FREE_LOG_STD = (-5.0, 2.0)
"""Bounds of log standard deviations that are the same in every state (arXiv:2110.06169's code)."""
LARGEST_ATANH = 1 - 1e-6
"""Actions of data are brought this near to their bounds before the inverse of tanh is taken."""


class NetworkActor(Actor):
    """Acts by what a policy's network says, in the policy's own way.

    Attributes:
        policy: what acts.
    """

    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, policy: ActingNetwork):
        self.policy = policy
        self.action_shape, self.action_dtype = policy.action_shape, policy.action_dtype

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """The policy's own kind, `[steps, count, ...]`."""
        return self.policy.noise((steps, count), generator)

    @cached_property
    def _forward(self) -> Callable[[Floats], Floats]:
        """Made once: it reads the weights as they are, and a turn may have a single step."""
        return live_forward(self.policy.network)

    def player(self) -> Player:
        """Its action, perturbed by the policy's own kind of noise."""
        forward, mode, explore = self._forward, self.policy.mode, self.policy.explore

        def play(moment: Moment) -> NDArray[Any]:
            said = forward(moment.seen)
            if not np.isfinite(said).all():
                raise ActionNotFinite
            if moment.mask is not None:
                said = np.where(moment.mask, said, BLOCKED)
            return mode(said) if moment.noise is None else explore(said, moment.noise)

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None: off-policy methods weigh by no likelihood of what acted."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """None: what trains is asked of the model, within an update."""
        return {}

    def is_finite(self) -> bool:
        """The policy's parameters."""
        return all(bool(torch.isfinite(p).all()) for p in self.policy.parameters())

    def greedy(self, masked: bool) -> list[Node]:
        """The network, and the policy's own way to an action."""
        return [*self.policy.nodes(), *(ALLOWED if masked else ()), *self.policy.greedy()]


class BoundedActor(NetworkActor):
    """Acts by a policy between bounds; the environment gets its actions scaled to its own."""

    def __init__(self, policy: BoundedPolicy, space: spaces.Box):
        super().__init__(policy)
        self.execute, self.space = scaler(space), space

    def greedy(self, masked: bool) -> list[Node]:
        """Scaled to the environment's bounds."""
        return [*super().greedy(masked), scaling(self.space)]


class RandomActor(Actor):
    """Acts at random, uniformly over the actions, to begin with something in a replay buffer."""

    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, space: spaces.Space[Any]):
        self.space = space
        self.discrete = isinstance(space, spaces.Discrete)
        self.action_shape = () if self.discrete else (int(np.prod(space.shape or ())),)
        self.action_dtype = np.int64 if self.discrete else np.float32
        if isinstance(space, spaces.Box):
            self.execute = scaler(space)

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """The actions themselves, `[steps, count, ...]`, between -1 and 1 where they are continuous; else in [0, 1)."""
        shape = (steps, count, *self.action_shape)
        if self.discrete:
            return torch.rand(shape, generator=generator).numpy()
        return torch.empty(shape).uniform_(-1, 1, generator=generator).numpy()

    def player(self) -> Player:
        """What was drawn."""

        def play(moment: Moment) -> NDArray[Any]:
            assert moment.noise is not None
            return self.actions(moment.noise, moment.mask)

        return play

    def actions(self, drawn: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Actions `[B, ...]` of what `noise` drew for them; of a few, each allowed one is as likely as another."""
        if not isinstance(self.space, spaces.Discrete):
            return drawn
        allowed = np.ones((len(drawn), int(self.space.n)), dtype=bool) if mask is None else mask
        place = np.floor(drawn * allowed.sum(1))  # of the allowed ones, in their order
        found: NDArray[Any] = (allowed.cumsum(1) > place[:, None]).argmax(1)
        return found

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """None."""
        return {}

    def is_finite(self) -> bool:
        """True: there is nothing to be otherwise."""
        return True


class ActingNetwork(PolicyNetwork):
    """A network from observations to what describes an action.

    Attributes:
        action_shape, action_dtype: of one action.
    """

    action_shape: tuple[int, ...]
    action_dtype: Any

    def __init__(self, network: StackedMlp):
        super().__init__()
        self.network = network

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[Any]:
        """What `explore` takes, `[*shape, ...]`."""

    @abstractmethod
    def mode(self, said: Floats) -> NDArray[Any]:
        """Most probable actions `[B, *action_shape]` of what the network says `[B, O]`."""

    def greedy(self) -> list[Node]:
        """What `mode` computes, for `polyrl export`.

        Raises:
            UserError: it has no form that leaves the house.
        """
        raise UserError(f"A {type(self).__name__} has no form that can be exported; polyrl.load(RUN) acts by any.")

    def nodes(self) -> list[Node]:
        """The network for export."""
        return self.network.nodes()

    @abstractmethod
    def explore(self, said: Floats, noise: NDArray[Any]) -> NDArray[Any]:
        """Actions `[B, *action_shape]` at random, by noise `[B, ...]`."""


class BoundedPolicy(ActingNetwork):
    """A network from observations to what describes an action in `[-1, 1]`."""

    action_dtype = np.float32

    def __init__(self, network: StackedMlp, space: spaces.Box):
        super().__init__(network)
        self.space = space
        self.numbers = int(np.prod(space.shape))
        self.action_shape = (self.numbers,)

    def actor(self) -> Actor:
        """Acts by this policy."""
        return BoundedActor(self, self.space)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[Any]:
        """Normal numbers, `[*shape, A]`."""
        return torch.randn((*shape, self.numbers), generator=generator).numpy()


class SquashedGaussianPolicy(BoundedPolicy):
    """tanh of a Gaussian whose mean and deviation depend on the state (arXiv:1812.05905, appendix C)."""

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation `[..., A]` before the tanh."""
        mean, log_std = self.network(observation).squeeze(-2).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `[..., A]` and their log-densities `[...]`, differentiable, by normal noise `[..., A]`."""
        mean, log_std = self.distribution(observation)
        before = mean + log_std.exp() * noise
        return torch.tanh(before), squashed_logprob(before, noise, log_std)

    def logprob(self, observation: Tensor, action: Tensor) -> Tensor:
        """Log-density `[...]` of actions `[..., A]`, of which those on a bound are brought just inside."""
        mean, log_std = self.distribution(observation)
        before = torch.atanh(action.clamp(-LARGEST_ATANH, LARGEST_ATANH))
        return squashed_logprob(before, (before - mean) * (-log_std).exp(), log_std)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "sampled_action" and "sampled_logprob" of fresh actions, "logprob" of stored ones, "mode"."""
        observation, found = batch["observation"], dict[str, Tensor]()
        if {"sampled_action", "sampled_logprob"} & set(wants):
            noise = draw(*observation.shape[:-1], self.numbers)
            found["sampled_action"], found["sampled_logprob"] = self.sample(observation, noise)
        if "logprob" in wants:
            found["logprob"] = self.logprob(observation, batch["action"])
        if "mode" in wants:
            found["mode"] = torch.tanh(self.distribution(observation)[0])
        return found

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """By the network's passes, for fresh actions."""
        passes = self.network.passes_to_train() if {"sampled_action", "sampled_logprob"} >= set(wants) else None
        return None if passes is None else SquashedPasses(passes, self.numbers)

    def mode(self, said: Floats) -> Floats:
        """tanh of the mean."""
        return np.tanh(said[:, : self.numbers])

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("take", settings={"begin": 0, "end": self.numbers}), Node("tanh")]

    def explore(self, said: Floats, noise: Floats) -> Floats:
        """tanh of mean plus deviation times noise."""
        deviation = np.exp(np.clip(said[:, self.numbers :], LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(said[:, : self.numbers] + deviation * noise)


@dataclass(frozen=True, kw_only=True)
class SquashedGaussian(Trained):
    """tanh of a Gaussian with state-dependent deviations, for actions between bounds."""

    outputs: ClassVar[frozenset[str]] = frozenset({"sampled_action", "sampled_logprob", "logprob", "mode"})

    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")

    def make(self, interface: Interface, stream: torch.Generator) -> SquashedGaussianPolicy:
        """A network to means and log deviations of the task's actions."""
        box = interface.box("A squashed Gaussian policy")
        sizes, numbers = layer_sizes(self.hidden), 2 * int(np.prod(box.shape))
        network = StackedMlp(interface.observation_size, sizes, numbers, activation=self.activation, generator=stream)
        return SquashedGaussianPolicy(network, box)


class DeterministicPolicyNetwork(BoundedPolicy):
    """One action a state; explored by normal noise on it (arXiv:1802.09477)."""

    def __init__(self, network: StackedMlp, space: spaces.Box, exploration_noise: float):
        super().__init__(network, space)
        self.exploration_noise = exploration_noise

    def forward(self, observation: Tensor) -> Tensor:
        """Actions `[..., A]` of observations `[..., D]`."""
        return torch.tanh(self.network(observation).squeeze(-2))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "mode" `[B, T, A]`: the action in each state."""
        return {"mode": self(batch["observation"])}

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """By the network's passes."""
        passes = self.network.passes_to_train()
        return None if passes is None else DeterministicPasses(passes)

    def mode(self, said: Floats) -> Floats:
        """tanh."""
        return np.tanh(said)

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("tanh")]

    def explore(self, said: Floats, noise: Floats) -> Floats:
        """The action with noise, cut at the bounds."""
        found: Floats = np.clip(np.tanh(said) + self.exploration_noise * noise, -1.0, 1.0)
        return found


@dataclass(frozen=True, kw_only=True)
class DeterministicPolicy(Trained):
    """One action a state, between bounds; acting adds normal noise."""

    outputs: ClassVar[frozenset[str]] = frozenset({"mode"})

    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")
    exploration_noise: float = hyperparameter(
        0.1, "deviation of the noise on actions, as a share of half their range", low=0
    )

    def make(self, interface: Interface, stream: torch.Generator) -> DeterministicPolicyNetwork:
        """A network to the task's actions."""
        box = interface.box("A deterministic policy")
        sizes, numbers = layer_sizes(self.hidden), int(np.prod(box.shape))
        network = StackedMlp(interface.observation_size, sizes, numbers, activation=self.activation, generator=stream)
        return DeterministicPolicyNetwork(network, box, self.exploration_noise)


class GaussianPolicyNetwork(BoundedPolicy):
    """A Gaussian whose mean lies between the bounds and whose deviations are the same in every state.

    Unlike a squashed one it gives actions on the bounds, of which data is full, a finite density (arXiv:2110.06169's
    code).
    """

    def __init__(self, network: StackedMlp, space: spaces.Box):
        super().__init__(network, space)
        self.log_std = nn.Parameter(torch.zeros(self.numbers))

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "mode" `[B, T, A]`, and "logprob" `[B, T]` of the batch's actions."""
        found = {"mode": torch.tanh(self.network(batch["observation"]).squeeze(-2))}
        if "logprob" in wants:
            log_std = self.log_std.clamp(*FREE_LOG_STD)
            found["logprob"] = gaussian_logprob((batch["action"] - found["mode"]) * (-log_std).exp(), log_std)
        return found

    def mode(self, said: Floats) -> Floats:
        """The mean."""
        return np.tanh(said)

    def greedy(self) -> list[Node]:
        """The same for export."""
        return [Node("tanh")]

    def explore(self, said: Floats, noise: Floats) -> Floats:
        """Mean plus deviation times noise, cut at the bounds."""
        deviation = np.exp(np.clip(self.log_std.detach().numpy(), *FREE_LOG_STD))
        found: Floats = np.clip(np.tanh(said) + deviation * noise, -1.0, 1.0)
        return found


@dataclass(frozen=True, kw_only=True)
class GaussianPolicy(Trained):
    """A Gaussian around a mean between the bounds, with one deviation for all states."""

    outputs: ClassVar[frozenset[str]] = frozenset({"mode", "logprob"})

    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """A network to the means of the task's actions."""
        box = interface.box("A Gaussian policy")
        sizes, numbers = layer_sizes(self.hidden), int(np.prod(box.shape))
        network = StackedMlp(interface.observation_size, sizes, numbers, activation=self.activation, generator=stream)
        return GaussianPolicyNetwork(network, box)


class ChoicePolicyNetwork(ActingNetwork):
    """Choices among a few actions, with a probability each."""

    def __init__(self, network: StackedMlp, distribution: Distribution):
        super().__init__(network)
        self.distribution = distribution
        self.action_shape, self.action_dtype = distribution.action_shape, distribution.dtype

    def actor(self) -> Actor:
        """Acts by this policy."""
        return NetworkActor(self)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[Any]:
        """The distribution's own."""
        return self.distribution.noise(shape, generator)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "logprob" `[B, T]` of the batch's actions."""
        numbers = self.network(batch["observation"]).squeeze(-2)
        return {"logprob": self.distribution.log_prob(numbers, batch["action"])}

    def mode(self, said: Floats) -> NDArray[Any]:
        """The most probable."""
        return self.distribution.mode(said)

    def greedy(self) -> list[Node]:
        """The same for export."""
        return self.distribution.greedy()

    def explore(self, said: Floats, noise: NDArray[Any]) -> NDArray[Any]:
        """One at random."""
        return self.distribution.sample(said, noise)


@dataclass(frozen=True, kw_only=True)
class StochasticPolicy(GaussianPolicy):
    """A policy that gives likelihoods, of whichever actions: a Gaussian between bounds, or choices among a few."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob"})

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """A network of the task's own kind of actions."""
        if isinstance(interface.action_space, spaces.Box):
            return super().make(interface, stream)
        distribution = distribution_of(interface.action_space)
        sizes = layer_sizes(self.hidden)
        network = StackedMlp(
            interface.observation_size, sizes, distribution.size, activation=self.activation, generator=stream
        )
        return ChoicePolicyNetwork(network, distribution)
