"""LOOP with mixtures of models: what follows is sum theta_k P_k, paid sum theta_k r_k, and theta is learned by values.

For the V of a hypothesis the backup of the k-th model is a number of each pair, x_k(s, a) = r_k + P_k V, and the
backup of a mixture is theta x with sum theta = 1: so for each V the class is linear in x, and theta is the regression
of the targets r + V(s') on it (value-targeted regression). The excess, the bonus by directions that were seen, the
trigger and the loop are those of `loop-amdp-linear`, and d is in how many directions backups of one V can differ.
Because the sum is 1, models are counted from their mean: where all of them agree a backup is known before it was ever
tried, and a constant added to V changes nothing. A backup lies between the least and the largest of the models', and is
the largest where nothing is known. Models that are each sure of one outcome of one pair give `loop-amdp` again.

Two things are derived and not the paper's, whose body was not read: all steps are regressed on the V of the hypothesis
itself, as `loop-amdp-models` does, and not on the V of the time; and a bonus of each pair has a theta of its own there,
as in extended value iteration, which may lie outside of the simplex.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from polyrl.errors import UserError
from polyrl.methods.theory import loop_amdp
from polyrl.methods.theory.loop_amdp import Array, GainHypothesis, checked_criterion
from polyrl.methods.theory.loop_amdp_linear import Fitted, orthonormal
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

SLUG = "loop-amdp-mixture"
TITLE = (
    "Sample-efficient Learning of Infinite-horizon Average-reward MDPs with General Function Approximation (mixtures)"
)
PAPER = "arXiv:2404.12648"
YEAR = 2024
FORMULA = (
    "f = argmax J_f with excess(f) <= beta, the best function theta x, x_k = r_k + P_k V, by regression of r + V(s')"
)
TASK = "river-class"


class MixtureFitted(Fitted):
    """A class of mixtures of the models that a problem states.

    Attributes:
        rewards: `[K, SA]`.
        moves: `[K, SA, S]`.
    """

    def __init__(self, mdp: FiniteMDP, dimension: int, highest: float, span: float, width: float):
        super().__init__(mdp, dimension, highest, span, width)
        states = mdp.shape[1]
        self.rewards = np.stack([model.reward[0].numpy().ravel() for model in mdp.models])
        self.moves = np.stack([model.transition[0].numpy().reshape(-1, states) for model in mdp.models])

    def backups(self, value: Array) -> Array:
        """x_k(s, a) of V `[S]`, `[K, SA]`."""
        found: Array = self.rewards + self.moves @ value
        return found

    def basis(self, value: Array) -> tuple[Array, Array]:
        """The mean of the models' backups of V, and what these differ from it by."""
        backups = self.backups(value)
        mean = backups.mean(0)
        return mean, orthonormal((backups - mean).T)

    def possible(self, value: Array, found: Array) -> Array:
        """Between the least and the largest of the models' backups."""
        backups = self.backups(value)
        return np.clip(found, backups.min(0), backups.max(0))


@dataclass(frozen=True, kw_only=True)
class MixtureHypothesis(GainHypothesis):
    """The hypothesis of the largest gain among mixtures of the models which the problem states."""

    solves: ClassVar[str] = "finite"

    width: float = hyperparameter(0.03, "c of the width c sp log(2 d T); 0 is no optimism", low=0)

    def tables(self, task: FiniteTask) -> MixtureFitted:
        """Without data.

        Raises:
            UserError: the problem states fewer than two models, or is not judged by its average reward.
        """
        mdp = checked_criterion(task)
        if len(mdp.models) < 2:
            raise UserError(
                f"{SLUG} mixes the models of a class, and {task.name} states {len(mdp.models) or 'none'}; "
                f"try --task {TASK}."
            )
        unlike = np.sqrt(np.arange(mdp.shape[1]))  # values by which no two differences of moves are alike by chance
        rank = max(1, MixtureFitted(mdp, 0, 0.0, 0.0, 0.0).basis(unlike)[1].shape[1])
        return MixtureFitted(mdp, rank, *self.bounds(mdp, rank))


def recipe() -> Recipe:
    """The loop of `loop-amdp`, its hypotheses mixtures of models."""
    base = loop_amdp.recipe()
    return replace(
        base,
        name=SLUG,
        models={**base.models, "hypothesis": MixtureHypothesis()},
        adds=("choose-hypothesis",),
        budget="steps=20000",
        notes={
            **base.notes,
            "credit": "the squared distance of Q + J from the regression of r + V(s') on the models' backups of V",
            "improve": "that regression with a bonus by how often its direction was seen, and the greedy policy",
        },
    )
