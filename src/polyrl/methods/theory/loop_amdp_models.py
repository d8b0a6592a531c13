"""LOOP over a finite class of models: follow the model whose own gain is the largest of all that fit the data.

A hypothesis f is a model of the class that the problem states; solved exactly it has a gain J_f and values Q_f, V_f.
What noise alone costs is the error of the best function, which here is one of the backups r_m + P_m V_f by the models m
of the class. So

    excess(f) = sum_t (Q_f + J_f - r_t - V_f(s'_t))^2 - min_m sum_t (r_m + P_m V_f - r_t - V_f(s'_t))^2

over all steps, which is 0 or more, and small for the true model. The set has the models whose excess is beta or less;
the one that is followed is left when its excess comes to three times that, as in `loop-amdp`, whose loop this is. Both
are computed from counts, without approximation. The width c log(2 T M^2) and the trigger are recalled, and c is free;
where no model is within the width, the one that fits the best is followed, which is derived.

Without optimism (`width=0`) it follows one of the models that fit the best, drawn from those that fit equally well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.methods.theory import loop_amdp
from polyrl.methods.theory.loop_amdp import Followed, checked_criterion
from polyrl.models.finite import Counts
from polyrl.models.tables import OfTheory
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

SLUG = "loop-amdp-models"
TITLE = "Sample-efficient Learning of Infinite-horizon Average-reward MDPs with General Function Approximation (finite)"
PAPER = "arXiv:2404.12648"
YEAR = 2024
FORMULA = "f = argmax J_f with excess(f) = L(f, f) - min_m L(f, m) <= beta; anew when excess(f) >= 3 beta"
TASK = "river-class"


class FollowedModel(Followed):
    """The model that is followed, and the class that it is of.

    Attributes:
        number: that of the model `[]`; -1 before there is one, and the first step is uniform.
        values: V of every model `[M, S]`.
        gains: J of every model `[M]`.
        backups: r_m + P_m V_f of every model f and each m, `[M, M, S, A]`.
        claims: Q + J of every model `[M, S, A]`, its backup by itself.
    """

    number: Tensor

    def __init__(self, mdp: FiniteMDP, width: float):
        _, states, actions = mdp.shape
        super().__init__(states, actions, mdp.reward_range[1], mdp.constants["span"], width)
        self.register_buffer("number", torch.tensor(-1))
        solutions = [model.solution for model in mdp.models]
        self.values = torch.stack([found.value for found in solutions])
        self.gains = torch.stack([found.gain[0] for found in solutions])
        moves = torch.stack([model.transition[0] for model in mdp.models])
        rewards = torch.stack([model.reward[0] for model in mdp.models])
        self.backups = rewards + torch.einsum("msat,ft->fmsa", moves, self.values)
        self.claims = torch.stack([of[f] for f, of in enumerate(self.backups)])

    def ahead(self, counts: Counts) -> Tensor:
        """By how much each m is ahead of f in squared error, L(f, f) - L(f, m), `[M, M]`."""
        visits = counts.visits[0]
        total = counts.earned[0] + torch.einsum("sat,ft->fsa", visits, self.values)
        n, own, others = visits.sum(-1), self.claims[:, None], self.backups
        return ((own - others) * (n * (own + others) - 2 * total[:, None])).sum((-1, -2))

    def excess(self, counts: Counts) -> Tensor:
        """That of the model that is followed, `[]`."""
        return self.ahead(counts)[self.number].max() if self.number >= 0 else torch.zeros(())

    def left(self, counts: Counts, pairs: Tensor, reward: Tensor, after: Tensor) -> int | None:
        """The first of these steps `[T]` after which the excess is 3 beta or more; without a model, the first."""
        if self.number < 0:
            return 0
        target = reward + self.values[self.number, after]
        errors = (self.backups[self.number].flatten(1)[:, pairs] - target).square()  # [M, T]
        ahead = self.ahead(counts)[self.number][:, None] + (errors[self.number] - errors).cumsum(1)
        reached = (ahead.max(0).values >= 3 * self.width).nonzero()
        return int(reached[0]) if len(reached) else None

    def chosen(self, counts: Counts, luck: float = 0.0) -> tuple[Tensor, Tensor, float]:
        """Q + J `[S, A]`, V `[S]` and J of the model of the set's largest gain, or of a drawn one without optimism."""
        excess = self.ahead(counts).max(1).values
        fits = (excess <= max(self.width, float(excess.min()) + 1e-9)).nonzero()[:, 0]
        at = int(luck * len(fits)) if self.width == 0 else int(self.gains[fits].argmax())
        self.number.copy_(fits[at])
        return self.claims[self.number], self.values[self.number], float(self.gains[self.number])


@dataclass(frozen=True, kw_only=True)
class ModelOfClass(OfTheory):
    """A model of the class that the problem states: that of the largest gain in a confidence set."""

    solves: ClassVar[str] = "finite"

    width: float = hyperparameter(0.3, "c of the width c log(2 T M^2), of rewards from 0 to 1; 0: no optimism", low=0)
    total_steps: int = hyperparameter(20_000, "T in the width's logarithm", low=1)

    def tables(self, task: FiniteTask) -> FollowedModel:
        """Without data.

        Raises:
            UserError: the problem states no class, or is not judged by its average reward.
        """
        mdp = checked_criterion(task)
        if not mdp.models:
            raise UserError(f"{SLUG} looks for a model of a class, and {task.name} states none; try --task {TASK}.")
        lowest, highest = mdp.reward_range
        logarithm = math.log(2 * self.total_steps * len(mdp.models) ** 2)
        return FollowedModel(mdp, self.width * (highest - lowest) ** 2 * logarithm)


def recipe() -> Recipe:
    """The loop of `loop-amdp`, its hypotheses the models of a class."""
    base = loop_amdp.recipe()
    return replace(
        base,
        name=SLUG,
        models={**base.models, "hypothesis": ModelOfClass()},
        adds=("choose-hypothesis",),
        budget="steps=20000",
        notes={
            **base.notes,
            "credit": "the squared Bellman error of (Q_f, J_f) on all data, less that of the best backup of the class",
            "improve": "the largest gain in the confidence set, and that model's greedy policy; no gradient",
        },
    )
