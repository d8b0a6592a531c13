"""Critics: values of actions, of states, and of each of a few actions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.kernels.passes import Passes
from polyrl.models.actor import ALLOWED, ActionNotFinite, Actor, Moment, Player
from polyrl.models.base import ClosedForm, Interface, Network, PolicyNetwork, Trained
from polyrl.models.graph import Node
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

    def way_back(
        self, observation: Tensor, action: Tensor, members: int | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Values `[..., K]` of the first `members` critics, and what brings gradients by them to gradients by actions.

        The critics' own parameters get none. The way back is that of the latest call alone.
        """
        size = action.shape[-1]
        x = torch.cat([observation, action], -1)
        flat = x.reshape(-1, x.shape[-1])
        passes = self.network.passes(flat)
        if passes is not None:
            out = passes.forward(flat, members)
            number = passes.number

            def back(grad_values: Tensor) -> Tensor:
                assert passes is not None and passes.number == number
                by_input = passes.to_input(_by_member(grad_values))
                return by_input[:, -size:].reshape(action.shape)

            return out.squeeze(-1).t().reshape(*x.shape[:-1], len(out)), back
        with torch.enable_grad():
            leaf = action.detach().requires_grad_()
            chosen = None if members is None else slice(members)
            values = self.network(torch.cat([observation, leaf], -1), chosen).squeeze(-1)
        return values.detach(), lambda grad_values: torch.autograd.grad(values, leaf, grad_values)[0]

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "q" `[B, T, K]` of the actions that were taken."""
        return {"q": self(batch["observation"], batch["action"])}

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """By the network's passes."""
        passes = self.network.passes_to_train()
        return None if passes is None else _ActionCriticPasses(passes)


def _by_member(values: Tensor) -> Tensor:
    """`[..., K]` as `[K, N, 1]`, in one piece."""
    return values.reshape(-1, values.shape[-1]).t().contiguous().unsqueeze(-1)


class _ActionCriticPasses(ClosedForm):
    """ "q" and its way back."""

    def __init__(self, passes: Passes):
        self.passes = passes

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """The values of the actions that were taken."""
        x = torch.cat([batch["observation"], batch["action"]], -1)
        out = self.passes.forward(x.reshape(-1, x.shape[-1]))
        return {"q": out.squeeze(-1).t().reshape(*x.shape[:-1], len(out))}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the critics."""
        self.passes.to_parameters(_by_member(grad_outputs["q"]))


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

    def greedy(self, masked: bool) -> list[Node]:
        """The same for export."""
        network, dueling = self.values.network, self.values.dueling
        advantages = [Node("take", settings={"begin": 1, "end": network.biases[-1].shape[-1]})] if dueling else []
        return [*network.nodes(), *advantages, *(ALLOWED if masked else ()), Node("argmax")]

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

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """By the network's passes, where it gives the values themselves."""
        passes = None if self.dueling else self.network.passes_to_train()
        return None if passes is None else _ActionValuePasses(passes)


class _ActionValuePasses(ClosedForm):
    """ "q" and "action_values", and their way back."""

    def __init__(self, passes: Passes):
        self.passes, self.action = passes, torch.empty(0)

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Of the actions that were taken, and of all."""
        observation, self.action = batch["observation"], batch["action"].unsqueeze(-1)
        values = self.passes.forward(observation.reshape(-1, observation.shape[-1]))[0]
        values = values.reshape(*observation.shape[:-1], values.shape[-1])
        return {"action_values": values, "q": values.gather(-1, self.action).squeeze(-1)}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the network."""
        size = self.passes.size
        by_values = grad_outputs.get("action_values")
        by_values = torch.zeros(*self.action.shape[:-1], size) if by_values is None else by_values.clone()
        if "q" in grad_outputs:
            by_values.scatter_add_(-1, self.action, grad_outputs["q"].unsqueeze(-1))
        self.passes.to_parameters(by_values.reshape(1, -1, size))


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

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """By the network's passes."""
        passes = self.network.passes_to_train()
        return None if passes is None else _StatePasses(passes, self.observes)


class _StatePasses(ClosedForm):
    """ "value" and its way back."""

    def __init__(self, passes: Passes, observes: str):
        self.passes, self.observes = passes, observes

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Values of the states."""
        observation = batch[self.observes]
        out = self.passes.forward(observation.reshape(-1, observation.shape[-1]))
        return {"value": out.reshape(observation.shape[:-1])}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the critic."""
        self.passes.to_parameters(grad_outputs["value"].reshape(1, -1, 1))


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
