"""Parts of methods that let a policy imitate by the loss of its own class, and improve the actions that it proposes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import See
from polyrl.models.actor import Actor, Making
from polyrl.models.base import Interface, Trained
from polyrl.models.imitating import BinnedPolicyNetwork, ChoosingActor, ImitatingGaussianPolicy
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import Activation, StackedMlp
from polyrl.parts.replayed import OffPolicyTerm, StepAndKeep
from polyrl.recipe import Part, Scope, Stage, hyperparameter

# ------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, kw_only=True)
class ImitatingGaussian(Trained):
    """A Gaussian around a mean between the bounds that imitates by its likelihood."""

    slot: ClassVar[str] = "imitating-policy"
    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    hidden: str = hyperparameter("128x128x128", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")

    def make(self, interface: Interface, stream: torch.Generator) -> ImitatingGaussianPolicy:
        """A network to the means of the task's actions."""
        box = interface.box("A Gaussian policy")
        sizes, numbers = layer_sizes(self.hidden), math.prod(box.shape)
        network = StackedMlp(interface.observation_size, sizes, numbers, activation=self.activation, generator=stream)
        return ImitatingGaussianPolicy(network, box)


@dataclass(frozen=True, kw_only=True)
class BinnedPolicy(Trained):
    """One number of an action after the other, each one of a few values; it imitates by their cross-entropy."""

    slot: ClassVar[str] = "imitating-policy"
    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    hidden: str = hyperparameter("128x128x128", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("relu", "between layers: relu, tanh or elu")
    bins: int = hyperparameter(21, "values that each number of an action may have, evenly from -1 to 1", low=2)

    def make(self, interface: Interface, stream: torch.Generator) -> BinnedPolicyNetwork:
        """A network of the task's observations, the numbers that are known and which comes next."""
        box = interface.box("A binned policy")
        inputs = interface.observation_size + 2 * math.prod(box.shape)
        sizes = layer_sizes(self.hidden)
        network = StackedMlp(inputs, sizes, self.bins, activation=self.activation, generator=stream)
        return BinnedPolicyNetwork(network, box, self.bins)


# ------------------------------------------------------------------------------------------------------------ collect


def taken(actions: Tensor, which: Tensor) -> Tensor:
    """The actions number `which` `[...]` of `[..., N, A]`: `[..., A]`."""
    return actions.gather(-2, which[..., None, None].expand(*which.shape, 1, actions.shape[-1])).squeeze(-2)


@dataclass(frozen=True, kw_only=True)
class ActByChoice(StepAndKeep):
    """Step environments with what a paper's own `choice` makes of several proposals of the policy."""

    @abstractmethod
    def choice(self, models: Mapping[str, Any]) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]:
        """What chooses actions `[B, A]` of observations `[B, D]` and noise `[B, *shape]`, and that shape."""
        raise NotImplementedError

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Put the choice around the policy."""
        choose, shape = self.choice(making.models)
        return ChoosingActor(inner, choose, shape, tuple(making.models[name] for name in sorted(self.models)))


# ------------------------------------------------------------------------------------------------------------- credit


@dataclass(frozen=True, kw_only=True)
class ProposalTarget(Part):
    """Targets of critics: r + discount min Q'(s', a'), the least of a few critics, a' of a paper's own."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})

    subset: int = hyperparameter(2, "critics of whose values the least counts, drawn anew for each update", low=1)

    @abstractmethod
    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` `[B, T]`, by `valued`."""
        raise NotImplementedError

    def valued(self, batch: Experience, action: Tensor, see: See) -> Experience:
        """Add `value_target` `[B, T]`, where `action` `[B, T, A]` follows."""
        shown, critics = batch["next_observation"], see["q_target"]
        members = torch.randperm(critics.network.members, generator=see.generator)[: self.subset]
        value = critics.some(shown, action, members).amin(-1)
        return batch.with_fields(value_target=batch["reward"] + batch["discount"] * value)


# ------------------------------------------------------------------------------------------------------------ improve


@dataclass(frozen=True, kw_only=True)
class OwnImitation(OffPolicyTerm):
    """Imitate the batch's actions by the loss of the policy's own class."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"imitation"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every action, `[B, T]`."""
        return outputs["imitation"]
