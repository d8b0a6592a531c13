"""Models by name: what a recipe says of them, and the modules that are made of that.

A recipe lists its models, `{"policy": ..., "q": QNetwork(), "q_target": Copy("q"), "temperature": Temperature()}`. Each
entry states the outputs that it gives, by which what terms want is checked before a run; each is initialized from a
random stream of its own, so that one model more changes no other; each trained one has its own Adam.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.core.schedules import Schedule
from polyrl.errors import UserError
from polyrl.kernels.flat import FlatParameters, VectorAdamW
from polyrl.models.actor import Actor
from polyrl.models.normalization import RunningMoments
from polyrl.models.stored import Stored, StoredModule
from polyrl.recipe import Part, Stage, hyperparameter
from polyrl.runtime.seeding import generator

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws
    from polyrl.tasks.control.environment import ControlTask
    from polyrl.tasks.control.spaces import Image


@dataclass(frozen=True)
class Interface:
    """What a task shows and takes, which models are made for.

    Attributes:
        task: its name, for errors.
        observation_size: D, numbers of one observation.
        continuous: bool `[D]`, which of them vary continuously.
        action_space: Gymnasium's.
        masked: how many actions the environment tells the allowed ones of; 0 where it tells nothing.
        images: those that an observation has in it.
    """

    task: str
    observation_size: int
    continuous: NDArray[np.bool_]
    action_space: spaces.Space[Any]
    masked: int = 0
    images: tuple[Image, ...] = ()

    @classmethod
    def of(cls, task: ControlTask) -> Interface:
        """That of a task."""
        seen = task.observations
        return cls(task.name, seen.size, seen.continuous, task.actions.space, task.masked, seen.images)

    def box(self, owner: str) -> spaces.Box:
        """The action space, which must be a Box of finite bounds.

        Raises:
            UserError: it is not.
        """
        space = self.action_space
        if not isinstance(space, spaces.Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UserError(
                f"{owner} acts by continuous numbers between bounds, and the actions of {self.task} are {space}; take "
                "a method for such actions, such as dqn or ppo, or give the environment a Box with finite bounds."
            )
        return space

    def choices(self, owner: str) -> int:
        """How many actions there are, of a Discrete space.

        Raises:
            UserError: it is another space.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise UserError(
                f"{owner} chooses one of a few actions, and the actions of {self.task} are {self.action_space}; take a "
                "method for such actions, such as sac or ppo."
            )
        return int(self.action_space.n)


Forward = Callable[..., Tensor]


class ClosedForm(ABC):
    """A model's forward pass, and the way back of the latest one, written out: no autograd, and nothing added up."""

    @abstractmethod
    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """What `Network.outputs` gives, as constants."""

    @abstractmethod
    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """Write the gradient of every parameter, given the objective's gradients by the latest outputs."""


class Network(nn.Module):
    """A model's module: `outputs` for what terms read, and named methods for what its own papers ask of it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Inherit no written passes: a subclass may compute in another way. It has autograd's, or says its own."""
        super().__init_subclass__(**kwargs)
        if "closed_form" not in vars(cls):
            setattr(cls, "closed_form", Network.closed_form)  # noqa: B010 - mypy takes no plain assignment to a method

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """Passes without autograd that give these outputs; None where autograd must do it. It is not inherited."""
        return None

    @abstractmethod
    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Differentiable outputs of the batch's steps, `[B, T, ...]` each, those that are wanted.

        Args:
            batch: rows of steps.
            wants: names among the model's `outputs`.
            draw: random numbers of the update's own stream: `draw(*shape)` normal, `draw.uniform(*shape)`.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Model(Part):
    """A model as a recipe states it. Subclasses name their `outputs` and make the module."""

    stage: ClassVar[Stage] = "models"
    outputs: ClassVar[frozenset[str]] = frozenset()
    """What terms may want of it."""
    acting_gives: ClassVar[frozenset[str]] = frozenset()
    """Fields that a rollout gets of its actor where it acts, such as `behaviour_logprob`."""
    scales_rewards: ClassVar[bool] = False
    """Whether its network keeps `reward_moments`."""
    given: ClassVar[bool] = False
    """Whether it is read from elsewhere and never trained."""
    copied: ClassVar[str] = ""
    """Name of the model that this one is a copy of; empty for one of its own."""

    @property
    def said(self) -> str:
        """What it is, in a few words."""
        return (type(self).__doc__ or "").partition("\n")[0].rstrip(".")

    @abstractmethod
    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """A new module, initialized from `stream`.

        Raises:
            UserError: it does not fit the task.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Trained(Model):
    """A model with an Adam of its own."""

    learning_rate: float = hyperparameter(3e-4, "Adam step size", low=0, high=1e37)
    schedule: Schedule = hyperparameter("constant", "learning rate over the budget")
    adam_epsilon: float = hyperparameter(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = hyperparameter(0.0, "AdamW weight decay", low=0)
    max_grad_norm: float | None = hyperparameter(None, "norm at which the gradient is clipped; none is off", above=0)

    def follows_budget(self) -> tuple[str, ...]:
        """The schedule, where it is not constant."""
        return () if self.schedule == "constant" else ("schedule",)


@dataclass(frozen=True)
class Copy(Model):
    """A model's copy, equal to it at first, which only moves of the list of updates change."""

    of: str

    @property
    def copied(self) -> str:  # type: ignore[override]
        """The model that it is a copy of."""
        return self.of

    @property
    def said(self) -> str:
        """Whose copy it is."""
        return f"a copy of {self.of}"

    def make(self, interface: Interface, stream: torch.Generator) -> Network:
        """Copies are made of modules: see `Models`."""
        raise AssertionError("a copy is made of the model that it copies")


LIKELIHOODS = frozenset({"logprob", "entropy"})
"""Outputs that are an actor's own of the rows that it collected: a wrapper's are not its model's."""
Passes = Iterator[tuple[Tensor | None, dict[str, Tensor]]]
"""Row numbers `[b]` of a batch, None for all of it, and what a model gives of them, `[b, T, ...]`."""


class NamedModels(Mapping[str, Any], ABC):
    """The models of a run, by name, as a list of updates needs them.

    No model's parameters ask for gradients but while an update trains it, so that nothing is computed for the others.

    Attributes:
        entries: what the recipe says of each.
        acts: name of the model that acts.
    """

    entries: dict[str, Model]
    acts: str

    @abstractmethod
    def ask_gradients(self, name: str, asked: bool) -> None:
        """Whether what is computed from now on carries gradients to the parameters of this model."""

    @abstractmethod
    def zero_gradients(self, name: str) -> None:
        """Forget the gradients of a model."""

    @abstractmethod
    def gradients(self, name: str) -> list[Tensor]:
        """The gradients of a model, each `[...]` as its parameter."""

    @abstractmethod
    def passes(
        self,
        name: str,
        batch: Experience,
        wants: Collection[str],
        draw: Draws,
        grouped_by: str = "",
        *,
        own: bool = False,
    ) -> AbstractContextManager[Passes]:
        """Forward passes of a batch, a part of its rows at a time: each must go backward before the next one is taken.

        Gradients of what the parts share are whole at a clean exit.

        Args:
            name: of the model.
            batch: rows.
            wants: names among the model's `outputs`.
            draw: random numbers of the update's own stream.
            grouped_by: a field; rows with equal values of it stay together.
            own: whether the run collected these rows: then the likelihoods of what acted are those of its actor.
        """

    def closed_form(self, name: str, wants: Collection[str]) -> ClosedForm | None:
        """Passes of a model without autograd, over all rows of a batch at once; None where autograd must do it."""
        return None

    def closed_form_of_steps(self, name: str, wants: Collection[str]) -> ClosedForm | None:
        """The same for single steps `[N, 1]` that the run collected, whose likelihoods are those of what acted."""
        return None

    @abstractmethod
    def optimizers(self) -> Mapping[str, Any]:
        """One optimizer for each trained model."""

    @abstractmethod
    def move(self, target: str, towards: str, tau: float) -> None:
        """Move the parameters of `target` the share `tau` of the way `towards` another model's."""

    @abstractmethod
    def distance(self, one: str, other: str) -> float:
        """Euclidean distance of two models' parameters."""

    @abstractmethod
    def stored(self) -> Mapping[str, Stored]:
        """Each model as a checkpoint holds it."""


class Models(NamedModels):
    """The modules of a run, by name, with their flat vectors.

    No module's parameters ask for gradients but while an update trains it, so that nothing is computed for the others.

    Attributes:
        entries: what the recipe says of each.
        flat: each module's parameters as one vector; none for a module without parameters.
        actors: what acts with a model, by its name, once that is known.
    """

    def __init__(self, entries: Mapping[str, Model], interface: Any, seed: int, acts: str = "policy"):
        self.entries, self.acts = dict(entries), acts
        self.actors: dict[str, Actor] = {}
        self._modules: dict[str, Network] = {}
        self.flat: dict[str, FlatParameters] = {}
        for name, entry in self.entries.items():
            if not entry.copied:
                self._modules[name] = entry.make(interface, self.stream(seed, name))
        for name, entry in self.entries.items():
            if entry.copied:
                self._modules[name] = copy.deepcopy(self._modules[entry.copied])
        for name, module in self._modules.items():
            if any(True for _ in module.parameters()):
                self.flat[name] = FlatParameters(module)
        self._buffered = {name: any(True for _ in module.buffers()) for name, module in self._modules.items()}
        self._parameters = {name: [*module.parameters()] for name, module in self._modules.items()}
        for name in self._modules:
            self.ask_gradients(name, False)

    def stream(self, seed: int, name: str) -> torch.Generator:
        """The random stream that a model is initialized from."""
        return generator(seed, "model", name)

    def ask_gradients(self, name: str, asked: bool) -> None:
        """Whether what is computed from now on carries gradients to the parameters of this model."""
        for parameter in self._parameters[name]:
            parameter.requires_grad = asked

    def zero_gradients(self, name: str) -> None:
        """Forget the gradients, which stay where they are: those of the layers are views of them."""
        gradient = self.flat[name].vector.grad
        assert gradient is not None
        gradient.zero_()

    def gradients(self, name: str) -> list[Tensor]:
        """The gradient of all parameters as one vector."""
        gradient = self.flat[name].vector.grad
        assert gradient is not None
        return [gradient]

    def passes(
        self,
        name: str,
        batch: Experience,
        wants: Collection[str],
        draw: Draws,
        grouped_by: str = "",
        *,
        own: bool = False,
    ) -> AbstractContextManager[Passes]:
        """All rows at once."""
        found, asked = dict[str, Tensor](), frozenset(wants)
        if own and name in self.actors:
            found = self.actors[name].outputs(batch, asked & LIKELIHOODS)
        if not asked <= found.keys():
            found |= self[name].outputs(batch, asked - found.keys(), draw)
        return nullcontext(iter([(None, found)]))

    def closed_form(self, name: str, wants: Collection[str]) -> ClosedForm | None:
        """The module's own."""
        return self._modules[name].closed_form(wants)

    def closed_form_of_steps(self, name: str, wants: Collection[str]) -> ClosedForm | None:
        """The module's own; where likelihoods are asked for those of the actor, also of a policy that does not act."""
        module, actor = self._modules[name], self.actors.get(name)
        found = module.closed_form(wants) if actor is None or not LIKELIHOODS & set(wants) else None
        if found is None and LIKELIHOODS & set(wants) and isinstance(module, PolicyNetwork):
            found = module.closed_form_acting(wants, actor or module.actor())
        return found

    def __getitem__(self, name: str) -> Network:
        return self._modules[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def trained(self) -> dict[str, FlatParameters]:
        """The vectors of the models that have an Adam."""
        return {name: flat for name, flat in self.flat.items() if isinstance(self.entries[name], Trained)}

    def optimizers(self) -> dict[str, VectorAdamW]:
        """One Adam for each trained model."""
        found = {}
        for name, flat in self.trained().items():
            entry = self.entries[name]
            assert isinstance(entry, Trained)
            found[name] = VectorAdamW(
                flat.vector,
                lr=entry.learning_rate,
                eps=entry.adam_epsilon,
                weight_decay=entry.weight_decay,
                betas=(0.9, 0.999),
            )
        return found

    def move(self, target: str, towards: str, tau: float) -> None:
        """Move the parameters and buffers of `target` the share `tau` of the way `towards` another model's."""
        for moved, goal in self._pairs(target, towards):
            if moved.is_floating_point() and tau != 1:
                moved.lerp_(goal, tau)
            else:
                moved.copy_(goal)

    def _pairs(self, target: str, towards: str) -> list[tuple[Tensor, Tensor]]:
        pairs = list[tuple[Tensor, Tensor]]()
        if self._buffered[target]:  # asking a module for none costs more than a small move
            pairs += zip(self[target].buffers(), self[towards].buffers(), strict=True)
        if target in self.flat:
            pairs.append((self.flat[target].vector.data, self.flat[towards].vector.data))
        return pairs

    def distance(self, one: str, other: str) -> float:
        """Euclidean distance of two models' parameters."""
        if one not in self.flat:
            return 0.0
        return float((self.flat[one].vector.data - self.flat[other].vector.data).norm())

    def stored(self) -> dict[str, Stored]:
        """`NAME.safetensors` for each."""
        learns = self.trained()
        return {
            name: StoredModule(name, module, [("parameters", learns[name].vector)] if name in learns else ())
            for name, module in self._modules.items()
        }


class PolicyNetwork(Network):
    """A model that can act."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Inherit no written passes of what acts either."""
        super().__init_subclass__(**kwargs)
        if "closed_form_acting" not in vars(cls):
            setattr(cls, "closed_form_acting", PolicyNetwork.closed_form_acting)  # noqa: B010

    def closed_form_acting(self, wants: Collection[str], actor: Actor) -> ClosedForm | None:
        """Passes without autograd that give `actor`'s likelihoods of single steps `[N, 1]`, with this model in it.

        None where autograd must do it. It is not inherited.
        """
        return None

    @property
    def reward_moments(self) -> RunningMoments | None:
        """Statistics of the discounted return, by which parts scale rewards; None where it keeps none."""
        return None

    @abstractmethod
    def actor(self) -> Actor:
        """What acts with it."""
        raise NotImplementedError
