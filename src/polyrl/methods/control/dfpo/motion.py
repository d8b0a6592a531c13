"""What dfPO acts by: a network of costs, and an actor that moves by its gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.models.actor import ActionNotFinite, Actor, Moment, Player
from polyrl.models.base import PolicyNetwork, Trained
from polyrl.models.critics import StateCritic
from polyrl.models.networks import StackedMlp
from polyrl.models.normalization import Floats

Law = Callable[[Floats, Floats], Floats]
"""Velocities `[B, n]` of those of the step before and of grad C."""


class CostNetwork(StateCritic, PolicyNetwork):
    """C: what a state costs, and the policy that moves by its gradient."""

    observes = "labelled_state"
    closed_form = StateCritic.closed_form

    def __init__(self, network: StackedMlp, entry: Trained, law: Law, box: spaces.Box):
        super().__init__(network)
        self.entry, self.law, self.box = entry, law, box

    def actor(self) -> Actor:
        """Moves by the gradient."""
        return CostActor(self)

    def gradient(self, state: Floats) -> Floats:
        """grad C of states `[B, n]`."""
        x = torch.from_numpy(state)
        if (passes := self.network.passes(x)) is not None:
            passes.forward(x)
            return passes.to_input(torch.ones(1, len(x), 1)).numpy()
        with torch.enable_grad():
            x = x.requires_grad_()
            (found,) = torch.autograd.grad(self(x).sum(), x)
        return found.numpy()


class CostActor(Actor):
    """Velocities that follow from those of the step before and the gradient; the task gets them within its bounds."""

    action_dtype = np.float32
    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, network: CostNetwork):
        self.network, self.action_shape = network, network.box.shape
        self.memory = {"velocity": (network.box.shape, np.float32)}
        self.execute = self.within

    def within(self, velocity: NDArray[Any]) -> NDArray[Any]:
        """Velocities `[B, n]` between the task's bounds."""
        found: NDArray[Any] = np.clip(velocity, self.network.box.low, self.network.box.high)
        return found

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """None is used: `[steps, count]` of 0."""
        return np.zeros((steps, count), dtype=np.float32)

    def player(self) -> Player:
        """The law of motion; what it goes on from is the velocity that was possible."""
        gradient, law = self.network.gradient, self.network.law

        def play(moment: Moment) -> NDArray[Any]:
            kept = moment.memory["velocity"]
            found = law(kept, gradient(moment.seen))
            if not np.isfinite(found).all():
                raise ActionNotFinite
            kept[:] = self.within(found)
            return found

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """None: it has no likelihoods."""
        return {}

    def is_finite(self) -> bool:
        """The network's parameters."""
        return all(bool(torch.isfinite(p).all()) for p in self.network.parameters())
