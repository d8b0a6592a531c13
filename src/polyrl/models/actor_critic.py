"""Policy and critic of on-policy methods, each a model of its own for recipes that list their models.

They compute what `mlp-actor-critic` does: networks of equal layers, a distribution over whatever actions the task takes
(a Gaussian is not cut at bounds), running statistics that belong to the policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl import kernels
from polyrl.models.actor import Actor, DistributionActor, MaskedActor
from polyrl.models.base import LIKELIHOODS, ClosedForm, Interface, PolicyNetwork, Trained
from polyrl.models.closed_form import ActorCriticPasses, Layers
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
        self._passes: _StepPasses | None = None

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

    def closed_form_acting(self, wants: Collection[str], actor: Actor) -> ClosedForm | None:
        """In NumPy, for networks of known layers."""
        if not kernels.ENABLED or not set(wants) <= LIKELIHOODS:
            return None
        if self._passes is None or not self._passes.stands(actor):
            passes = ActorCriticPasses.of(self.policy, None, actor)
            self._passes = None if passes is None else _StepPasses(passes)
        return self._passes


class _StepPasses(ClosedForm):
    """Likelihoods of single steps, and their way back."""

    def __init__(self, passes: ActorCriticPasses):
        self.passes = passes

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: a copy of a network has parameters of its own, and finds its passes when it needs them."""

    def stands(self, actor: Actor) -> bool:
        """Whether it is still this actor's, and its parameters where they were."""
        layers = self.passes.actor
        return self.passes.acting is actor and layers is not None and layers.stands()

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "logprob" and "entropy" `[N, 1]`."""
        found = self.passes.forward(batch, frozenset(wants))
        return {name: found[name] for name in wants}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To network and distribution."""
        self.passes.backward(grad_outputs)


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
        self._passes: _ValuePasses | None = None

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]` of observations `[..., D]`."""
        found: Tensor = self.critic(observation)
        return found

    def values(self, observation: Tensor) -> Tensor:
        """The same without gradients, for whole rollouts."""
        return self.critic.values(observation)

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """In NumPy, for a network of known layers."""
        if not kernels.ENABLED:
            return None
        if self._passes is None or not self._passes.layers.stands():
            layers = Layers.of(self.critic.network)
            self._passes = None if layers is None else _ValuePasses(layers)
        return self._passes


class _ValuePasses(ClosedForm):
    """ "value" and its way back."""

    def __init__(self, layers: Layers):
        self.layers = layers

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Nothing: see `_StepPasses`."""

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Values `[B, T]` of the states."""
        observation = batch["observation"]
        values = self.layers.forward(observation.reshape(-1, observation.shape[-1]).numpy())
        return {"value": torch.from_numpy(values).reshape(observation.shape[:-1])}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the critic."""
        self.layers.backward(grad_outputs["value"].reshape(-1, 1).numpy())


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
