"""LOOP with a linear class: hypotheses are linear in features of a state and action, and all pairs learn together.

A hypothesis has Q + J = phi u, u = w + J e_0 where phi has a constant, and the best function for its V is the
regression of r + V(s') on the features of all steps, u_V. So what is left without noise is a quadratic form,

    excess(f) = |u - u_V|^2_Lambda = sum n (phi u - phi u_V)^2, Lambda = sum phi phi^T over all steps.

The largest gain of {excess <= beta} has no closed form; as with a table the set of each pair is taken, whose hypothesis
is the regression with a bonus sqrt(width phi^T Lambda^-1 phi), and the whole set is d times as wide, d the rank of the
features. A pair whose features are no sum of those that were seen is not known at all. There is no ridge, so features
may be replaced by any invertible mixture of them, and one for each pair gives `loop-amdp` again.

The width c sp log(2 d T) and the trigger 3 d width are those of a table with d pairs; c is free (the theory has a
further d). The bonus and its cut are not linear, and a hypothesis' excess is its squared distance from the regression.
Value iteration by regression may go in circles, where data are few; then its steps become smaller, and what is left
when it gives up is logged (`unsettled`).
Doubling is that of the determinant of I + Lambda.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.methods.theory import loop_amdp
from polyrl.methods.theory.loop_amdp import Array, Followed, GainHypothesis, checked_criterion
from polyrl.models.finite import Counts
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

SLUG = "loop-amdp-linear"
TITLE = "Sample-efficient Learning of Infinite-horizon Average-reward MDPs with General Function Approximation (linear)"
PAPER = "arXiv:2404.12648"
YEAR = 2024
FORMULA = "f = argmax J_f with excess(f) = |u - u_V|^2_Lambda <= beta, u_V of r + V(s') on phi; anew when it is 3 beta"
TASK = "linear-river"

SMALLEST = 1e-11
"""Of the largest eigenvalue: below it one of Lambda is 0, and nothing was seen in its direction."""
APART = 1e-9
"""Share of a pair's features that may lie where nothing was seen, by rounding."""
ENTRIES = 4_000_000
"""Numbers of all Lambdas that are held at once."""


def orthonormal(features: Array) -> Array:
    """An orthonormal basis `[N, r]` of what features `[N, d]` span: the same linear functions of N pairs."""
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    found: Array = left[:, sizes > APART * max(float(sizes.max(initial=0.0)), 1e-300)]
    return found


class Fitted(Followed):
    """The hypothesis that is followed, and a class whose best function is a regression on `basis`.

    Attributes:
        dimension: d, the rank of the class.
    """

    most_sweeps: ClassVar[int] = 3_000
    patience: ClassVar[int] = 200

    def __init__(self, mdp: FiniteMDP, dimension: int, highest: float, span: float, width: float):
        super().__init__(*mdp.shape[1:], highest, span, width)
        self.dimension = dimension

    def basis(self, value: Array) -> tuple[Array, Array]:
        """What all backups of V `[S]` have in common `[SA]`, and a basis `[SA, r]`, orthonormal, of what they add."""
        raise NotImplementedError

    def possible(self, value: Array, found: Array) -> Array:
        """Backups `[SA]` of V, brought to what the class can have; infinite ones are of pairs that are not known."""
        return found

    def seen_by(self, n: Array, basis: Array) -> tuple[Array, Array]:
        """H `[SA, SA]`, by which a regression of sums over each pair's steps is known; and which pairs are `[SA]`.

        Its diagonal is phi^T Lambda^-1 phi, with n `[SA]` steps of each pair.
        """
        sizes, directions = np.linalg.eigh(basis.T @ (n[:, None] * basis))
        there = sizes > SMALLEST * max(float(sizes.max(initial=0.0)), 1e-300)
        half = basis @ (directions[:, there] / np.sqrt(sizes[there]))
        unseen = ((basis @ directions[:, ~there]) ** 2).sum(-1)
        return half @ half.T, unseen <= APART * (basis**2).sum(-1) + APART**2

    def sums(self, counts: Counts, value: Array) -> tuple[Array, Array]:
        """Steps of each pair `[SA]`, and their sums of r + V(s') `[SA]`."""
        visits = counts.visits[0].numpy()
        return visits.sum(-1).ravel(), (counts.earned[0].numpy() + visits @ value).ravel()

    def excess(self, counts: Counts) -> Tensor:
        """n (Q + J - regression)^2 of every pair, `[S, A]`."""
        value, claimed = self.value.numpy(), self.backed_up.numpy()
        n, total = self.sums(counts, value)
        common, basis = self.basis(value)
        fitted = common + self.seen_by(n, basis)[0] @ (total - n * common)
        return torch.from_numpy((n * (claimed.ravel() - fitted) ** 2).reshape(claimed.shape))

    def chosen(self, counts: Counts, luck: float = 0.0) -> tuple[Tensor, Tensor, float]:
        """Q + J `[S, A]`, V `[S]` and J of the regression with the bonus of each pair's set."""

        def raised(value: Array) -> Array:
            n, total = self.sums(counts, value)
            common, basis = self.basis(value)
            regress, known = self.seen_by(n, basis)
            found = common + regress @ (total - n * common) + np.sqrt(self.width * regress.diagonal())
            return self.possible(value, np.where(known, found, np.inf)).reshape(self.backed_up.shape)

        return self.settled(raised)

    def left(self, counts: Counts, pairs: Tensor, reward: Tensor, after: Tensor) -> int | None:
        """The first of these steps `[T]` after which the excess is 3 beta or more, beta = d width; None: there is none.

        The sum of n (F - u)^2 over pairs is that of n F^2 less 2 u b + u Lambda u, all of them sums over steps.
        """
        value = self.value.numpy()
        n, total = self.sums(counts, value)
        common, basis = self.basis(value)
        beyond = self.backed_up.numpy().ravel() - common  # F, what is claimed beyond what all have in common
        where, target = pairs.numpy(), reward.numpy() + value[after.numpy()]
        precision, claims, squares = basis.T @ (n[:, None] * basis), basis.T @ (n * beyond), n @ beyond**2
        moments, many = basis.T @ (total - n * common), max(1, ENTRIES // max(1, basis.shape[1]) ** 2)
        for first in range(0, len(where), many):
            at = where[first : first + many]
            rows, off = basis[at], (target[first : first + many] - common[at])[:, None]
            precisions = precision + (rows[:, :, None] * rows[:, None]).cumsum(0)
            all_claims, all_moments = claims + (rows * beyond[at, None]).cumsum(0), moments + (rows * off).cumsum(0)
            all_squares = squares + (beyond[at] ** 2).cumsum()
            sizes, directions = np.linalg.eigh(precisions)
            there = sizes > SMALLEST * np.maximum(sizes.max(-1, keepdims=True, initial=0.0), 1e-300)
            inverse = np.where(there, 1 / np.where(there, sizes, 1), 0)
            turned = np.einsum("tij,ti->tj", directions, all_moments) * inverse  # u, by directions
            claimed = np.einsum("tij,ti->tj", directions, all_claims)
            excess = all_squares - (turned * (2 * claimed - np.where(there, sizes, 0) * turned)).sum(-1)
            reached = np.flatnonzero(excess >= 3 * self.dimension * self.width)
            if len(reached):
                return first + int(reached[0])
            precision, claims, moments, squares = precisions[-1], all_claims[-1], all_moments[-1], all_squares[-1]
        return None

    def doubled(self, counts: Counts, pairs: Tensor) -> int | None:
        """The first of these steps `[T]` after which det(I + Lambda) has doubled since the choice."""
        _, basis = self.basis(self.value.numpy())
        eye, before = np.eye(basis.shape[1]), self.seen.numpy().ravel()
        limit = np.linalg.slogdet(eye + basis.T @ (before[:, None] * basis))[1] + np.log(2)
        n = counts.visits[0].numpy().sum(-1).ravel()
        inverse = np.linalg.inv(eye + basis.T @ (n[:, None] * basis))
        found = -np.linalg.slogdet(inverse)[1]
        for t, pair in enumerate(pairs.tolist()):
            turned = inverse @ basis[pair]
            grown = 1 + float(basis[pair] @ turned)
            found += np.log(grown)
            inverse = inverse - np.outer(turned, turned) / grown
            if found >= limit - 1e-9:
                return t
        return None


class LinearlyFitted(Fitted):
    """A class of functions that are linear in features of a pair."""

    def __init__(self, mdp: FiniteMDP, dimension: int, highest: float, span: float, width: float):
        super().__init__(mdp, dimension, highest, span, width)
        self.spanned = orthonormal(mdp.features.numpy().reshape(-1, mdp.features.shape[-1]))

    def basis(self, value: Array) -> tuple[Array, Array]:
        """Nothing in common, and what the features span, whatever V is."""
        return np.zeros(len(self.spanned)), self.spanned


@dataclass(frozen=True, kw_only=True)
class LinearHypothesis(GainHypothesis):
    """The hypothesis of the largest gain among functions that are linear in the features which the problem states."""

    solves: ClassVar[str] = "finite"

    width: float = hyperparameter(0.03, "c of the width c sp log(2 d T); 0 is no optimism", low=0)

    def tables(self, task: FiniteTask) -> LinearlyFitted:
        """Without data.

        Raises:
            UserError: the problem states no features, or is not judged by its average reward.
        """
        mdp = checked_criterion(task)
        if mdp.features is None:
            raise UserError(f"{SLUG} is linear in features, and {task.name} states none; try --task {TASK}.")
        rank = orthonormal(mdp.features.numpy().reshape(-1, mdp.features.shape[-1])).shape[1]
        return LinearlyFitted(mdp, rank, *self.bounds(mdp, rank))


def recipe() -> Recipe:
    """The loop of `loop-amdp`, its hypotheses linear in features."""
    base = loop_amdp.recipe()
    return replace(
        base,
        name=SLUG,
        models={**base.models, "hypothesis": LinearHypothesis()},
        adds=("choose-hypothesis",),
        budget="steps=20000",
        notes={
            **base.notes,
            "credit": "the squared distance of Q + J from the regression of r + V(s') on the features of all steps",
            "improve": "the regression with a bonus by how often its direction was seen, and the greedy policy",
        },
    )
