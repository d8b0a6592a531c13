"""Critics: values of actions, of states, and of each of a few actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.models.actor import ActionNotFinite, Actor, Moment, Player
from polyrl.models.base import Interface, Network, PolicyNetwork, Trained
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp, live_forward
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws


class ActionCritics(Network):
    """Critics of continuous actions, `Q_1 ... Q_K`."""

    def __init__(self, network: StackedMlp):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values `[..., K]` of actions `[..., A]` in observations `[..., D]`."""
        found: Tensor = self.network(torch.cat([observation, action], -1)).squeeze(-1)
        return found

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """The first critic's values `[...]`; the others are not computed."""
        found: Tensor = self.network(torch.cat([observation, action], -1), slice(1))[..., 0, 0]
        return found

    def some(self, observation: Tensor, action: Tensor, members: Tensor) -> Tensor:
        """Values `[..., M]` of the critics number `members` `[M]`; the others are not computed."""
        found: Tensor = self.network(torch.cat([observation, action], -1), members).squeeze(-1)
        return found

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "q" `[B, T, K]` of the actions that were taken."""
        return {"q": self(batch["observation"], batch["action"])}


@dataclass(frozen=True, kw_only=True)
class QNetwork(Trained):
    """Critics of continuous actions: several networks from observation and action to a value."""

    outputs: ClassVar[frozenset[str]] = frozenset({"q"})

    critics: int = hyperparameter(2, "networks, of whose values targets and policies take the least", low=1)
    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")
    layer_norm: bool = hyperparameter(False, "layer normalization before each activation")

    def make(self, interface: Interface, stream: torch.Generator) -> ActionCritics:
        """`K` critics of the task's observations and actions."""
        box = interface.box("A critic of continuous actions")
        numbers = interface.observation_size + int(torch.tensor(box.shape).prod())
        return ActionCritics(
            StackedMlp(
                numbers,
                layer_sizes(self.hidden),
                1,
                members=self.critics,
                activation=self.activation,
                layer_norm=self.layer_norm,
                generator=stream,
            )
        )


class GreedyActor(Actor):
    """Takes the action of largest value; what explores is put around it."""

    action_shape, action_dtype = (), np.int64
    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, values: ActionValues):
        self.values = values

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """None is used: `[steps, count]` of 0."""
        return np.zeros((steps, count), dtype=np.float32)

    def player(self) -> Player:
        """The largest."""
        forward, dueling = live_forward(self.values.network), self.values.dueling

        def play(moment: Moment) -> NDArray[Any]:
            values = forward(moment.seen)
            if not np.isfinite(values).all():
                raise ActionNotFinite
            # the state's value moves all actions alike
            values = values[:, 1:] if dueling else values
            if moment.mask is not None:
                values = np.where(moment.mask, values, -np.inf)
            best: NDArray[Any] = values.argmax(1)
            return best

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The model's."""
        return {name: x for name, x in self.values.valued(batch).items() if name in wants}

    def is_finite(self) -> bool:
        """The model's parameters."""
        return all(bool(torch.isfinite(p).all()) for p in self.values.parameters())


class ActionValues(PolicyNetwork):
    """Values of each of a few actions; where `dueling`, the state's value plus centred advantages."""

    def __init__(self, network: StackedMlp, *, dueling: bool):
        super().__init__()
        self.network, self.dueling = network, dueling

    def actor(self) -> Actor:
        """Greedy."""
        return GreedyActor(self)

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[..., A]` of observations `[..., D]`."""
        found: Tensor = self.network(observation).squeeze(-2)
        return dueling_values(found[..., :1], found[..., 1:]) if self.dueling else found

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "q" `[B, T]` of the actions that were taken, and "action_values" `[B, T, A]`."""
        return self.valued(batch)

    def valued(self, batch: Experience) -> dict[str, Tensor]:
        """The same `[...]`, which need no draws."""
        values = self(batch["observation"])
        return {"action_values": values, "q": values.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)}


def dueling_values(value: Tensor, advantage: Tensor) -> Tensor:
    """V + A - mean A (arXiv:1511.06581, equation 9): `[..., 1]` and `[..., A]` to `[..., A]`."""
    return value + advantage - advantage.mean(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class DiscreteQNetwork(Trained):
    """Values of each of a few actions, by one network."""

    outputs: ClassVar[frozenset[str]] = frozenset({"q", "action_values"})

    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")
    dueling: bool = hyperparameter(False, "the value of the state and advantages apart (arXiv:1511.06581)")

    def make(self, interface: Interface, stream: torch.Generator) -> ActionValues:
        """A network of the task's observations and its few actions."""
        outputs = interface.choices("A critic of each action") + self.dueling
        network = StackedMlp(
            interface.observation_size,
            layer_sizes(self.hidden),
            outputs,
            activation=self.activation,
            generator=stream,
        )
        return ActionValues(network, dueling=self.dueling)


class ValueModel(Network):
    """Gives values of states: `values` for parts that measure them, "value" for terms."""

    observes: str = "observation"
    """Field of the experience that it looks at."""

    @torch.no_grad()
    def values(self, observation: Tensor) -> Tensor:
        """Values `[...]` of observations `[..., D]`, without gradients."""
        found: Tensor = self(observation)
        return found

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "value" `[B, T]`."""
        return {"value": self(batch[self.observes])}


class StateCritic(ValueModel):
    """A critic of states."""

    def __init__(self, network: StackedMlp):
        super().__init__()
        self.network = network

    def forward(self, observation: Tensor) -> Tensor:
        """Values `[...]` of observations `[..., D]`."""
        found: Tensor = self.network(observation).squeeze(-1).squeeze(-1)
        return found


@dataclass(frozen=True, kw_only=True)
class ValueNetwork(Trained):
    """A critic of states: a network from observation to value."""

    outputs: ClassVar[frozenset[str]] = frozenset({"value"})

    hidden: str = hyperparameter("256x256", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")

    def make(self, interface: Interface, stream: torch.Generator) -> StateCritic:
        """A network of the task's observations."""
        sizes = layer_sizes(self.hidden)
        network = StackedMlp(interface.observation_size, sizes, 1, activation=self.activation, generator=stream)
        return StateCritic(network)
