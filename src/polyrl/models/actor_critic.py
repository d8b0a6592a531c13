"""Policy and critic of on-policy methods, each a model of its own for recipes that list their models.

They compute what `mlp-actor-critic` does: networks of equal layers, a distribution over whatever actions the task takes
(a Gaussian is not cut at bounds), running statistics that belong to the policy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.models.actor import Actor, DistributionActor, MaskedActor
from polyrl.models.base import Interface, PolicyNetwork, Trained
from polyrl.models.control import ControlCritic, ControlPolicy
from polyrl.models.critics import ValueModel
from polyrl.models.distributions import Distribution, distribution_of
from polyrl.models.mlp import Activation, layer_sizes, mlp
from polyrl.models.normalization import RunningMoments
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

ORTHOGONAL_HELP = "orthogonal initial weights, gains sqrt 2, 0.01 (policy) and 1 (critic); biases 0"


def mlp_policy(
    distribution: Distribution,
    continuous: NDArray[np.bool_],
    *,
    hidden: str,
    activation: Activation,
    orthogonal: bool,
    normalize: bool,
    stream: torch.Generator,
) -> ControlPolicy:
    """A policy from observations `[..., D]`, of which the `continuous` entries `[D]` are normalized, to actions."""
    gain = 0.01 if orthogonal else None
    network = mlp(len(continuous), layer_sizes(hidden), distribution.size, activation, gain=gain, generator=stream)
    return ControlPolicy(network, distribution, continuous, normalize=normalize)


def mlp_critic(
    inputs: int, *, hidden: str, activation: Activation, orthogonal: bool, stream: torch.Generator
) -> ControlCritic:
    """A critic from normalized observations `[..., inputs]` to values."""
    gain = 1.0 if orthogonal else None
    return ControlCritic(mlp(inputs, layer_sizes(hidden), 1, activation, gain=gain, generator=stream))


class MlpPolicyNetwork(PolicyNetwork):
    """A policy that gives likelihoods of what it did, with the statistics of its inputs.

    Attributes:
        policy: network, distribution and statistics.
        masked: whether the environment tells which actions are allowed.
    """

    def __init__(self, policy: ControlPolicy, *, masked: bool):
        super().__init__()
        self.policy, self.masked = policy, masked
        self._actor = (MaskedActor if masked else DistributionActor)(policy)

    @property
    def reward_moments(self) -> RunningMoments:
        """Statistics of the discounted return, by which parts scale rewards."""
        return self.policy.reward_moments

    def actor(self) -> Actor:
        """Samples from the distribution."""
        return self._actor

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "logprob" of the batch's actions and "entropy", `[B, T]` each."""
        return self._actor.outputs(batch, wants)


@dataclass(frozen=True, kw_only=True)
class MlpPolicy(Trained):
    """A policy over any kind of actions that gives the likelihood of what it did, for on-policy methods.

    Gaussian actions are not cut at bounds but by the environment; their log standard deviations are a free vector.
    """

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy"})
    acting_gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})
    scales_rewards: ClassVar[bool] = True

    hidden: str = hyperparameter("64x64", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("tanh", "between layers: tanh, relu or elu")
    orthogonal: bool = hyperparameter(True, ORTHOGONAL_HELP)
    log_std_init: float = hyperparameter(0.0, "initial log standard deviation of continuous actions")
    normalize_observation: bool = hyperparameter(
        True, "running mean and variance of observations, kept with the policy"
    )

    def distribution(self, interface: Interface) -> Distribution:
        """Over the task's actions; a paper whose policy decides something else says over what."""
        return distribution_of(interface.action_space, self.log_std_init)

    def make(self, interface: Interface, stream: torch.Generator) -> MlpPolicyNetwork:
        """A network of the task's observations and actions."""
        policy = mlp_policy(
            self.distribution(interface),
            interface.continuous,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            normalize=self.normalize_observation,
            stream=stream,
        )
        return MlpPolicyNetwork(policy, masked=interface.masked > 0)


class MlpCriticNetwork(ValueModel):
    """A critic of states.

    Attributes:
        critic: from observations to values.
    """

    def __init__(self, critic: ControlCritic):
        super().__init__()
        self.critic = critic

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]` of observations `[..., D]`."""
        found: Tensor = self.critic(observation)
        return found

    def values(self, observation: Tensor) -> Tensor:
        """The same without gradients, for whole rollouts."""
        return self.critic.values(observation)


@dataclass(frozen=True, kw_only=True)
class MlpCritic(Trained):
    """A critic of states beside an `MlpPolicy`: what it is shown is normalized by the policy."""

    outputs: ClassVar[frozenset[str]] = frozenset({"value"})

    hidden: str = hyperparameter("64x64", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("tanh", "between layers: tanh, relu or elu")
    orthogonal: bool = hyperparameter(True, ORTHOGONAL_HELP)

    def make(self, interface: Interface, stream: torch.Generator) -> MlpCriticNetwork:
        """A network of the task's observations."""
        return MlpCriticNetwork(
            mlp_critic(
                interface.observation_size,
                hidden=self.hidden,
                activation=self.activation,
                orthogonal=self.orthogonal,
                stream=stream,
            )
        )
