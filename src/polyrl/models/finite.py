"""Models of finite MDPs: float64 tables of policies, values and counts, one layer for each step or one for all.

models={"policy": FinitePolicy(), "q": FiniteValues(), "counts": TransitionCounts()}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import NotFinite
from polyrl.models.tables import ActionProbabilities, ActionValues, OfTheory, Tables
from polyrl.tasks.theory.finite import FiniteTask


class LayeredProbabilities(ActionProbabilities):
    """Probabilities of the actions, `probabilities` `[L, S, A]`."""

    def assign(self, probabilities: Tensor) -> None:
        """Take other probabilities `[L, S, A]`.

        Raises:
            NotFinite: they are none: of another shape, NaN, below 0, or not of sum 1.
        """
        shape = self.probabilities.shape
        if probabilities.shape != shape:
            raise NotFinite(f"A policy of the shape {[*probabilities.shape]} was to act, and {[*shape]} is needed.")
        total = probabilities.sum(-1)
        if not bool(((probabilities >= 0).all(-1) & ((total - 1).abs() < 1e-9)).all()):
            raise NotFinite(
                f"What was to act is no policy: its probabilities sum to {float(total.min()):g} at least and "
                f"{float(total.max()):g} at most, or are below 0 or NaN; so the run stopped before it acted."
            )
        super().assign(probabilities)


@dataclass(frozen=True, kw_only=True)
class FinitePolicy(OfTheory):
    """A probability of every action in every state of a finite MDP, at every step where it has a horizon; uniform."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> LayeredProbabilities:
        """Probabilities `[L, S, A]`."""
        return LayeredProbabilities(task.mdp.uniform)


@dataclass(frozen=True, kw_only=True)
class FiniteValues(OfTheory):
    """A value of every action in every state of a finite MDP, at every step where it has a horizon; 0 at first."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> ActionValues:
        """Values `[L, S, A]`."""
        return ActionValues(torch.zeros(task.mdp.shape, dtype=torch.float64))


class Counts(Tables):
    """What was seen of a finite MDP.

    Attributes:
        visits: `[L, S, A, S]`, how often each state followed.
        earned: `[L, S, A]`, sums of rewards.
    """

    visits: Tensor
    earned: Tensor

    def __init__(self, layers: int, states: int, actions: int):
        super().__init__()
        self.register_buffer("visits", torch.zeros(layers, states, actions, states, dtype=torch.float64))
        self.register_buffer("earned", torch.zeros(layers, states, actions, dtype=torch.float64))

    def add(self, step: Tensor, state: Tensor, action: Tensor, next_state: Tensor, reward: Tensor) -> None:
        """Take in transitions, `[N]` each; without a horizon the step says nothing."""
        at = (step.clamp(max=len(self.earned) - 1), state, action)
        self.visits.index_put_((*at, next_state), torch.ones_like(reward), accumulate=True)
        self.earned.index_put_(at, reward, accumulate=True)


@dataclass(frozen=True, kw_only=True)
class TransitionCounts(OfTheory):
    """How often each state followed each pair of a finite MDP, and the sums of their rewards."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> Counts:
        """Without data."""
        return Counts(*task.mdp.shape)


class ClassValues(Tables):
    """What the policies of a class are estimated to be worth.

    Attributes:
        estimates: `[N]`; NaN as long as nothing is known.
        total: `[N]`, sums over what was seen, for estimates that are means.
        count: `[]`, of how many.
    """

    estimates: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, policies: int):
        super().__init__()
        self.register_buffer("estimates", torch.full((policies,), math.nan, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(policies, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def add(self, returns: Tensor) -> None:
        """Take in unbiased estimates of every policy `[B, N]`, and be their mean."""
        self.total.add_(returns.sum(0))
        self.count.add_(len(returns))
        self.estimates.copy_(self.total / self.count)


@dataclass(frozen=True, kw_only=True)
class PolicyClassValues(OfTheory):
    """A value for each policy of the class; where a problem states none, of those that take one action everywhere."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> ClassValues:
        """Without data."""
        return ClassValues(len(task.mdp.policy_class))
