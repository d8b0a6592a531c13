"""Penalty bilevel by samples: two policies take steps on drawn pairs, and the reward one on their difference.

Algorithm 1 with minibatches: T steps of y on sigma f + g and of z on g, then one of x on

    f_x(x, y) + (g_x(x, y) - g_x(x, z)) / sigma.

All is estimated on pairs of answers that the penalized policy y draws at that moment, with labels that the gold scores
draw: at any point an objective is a mean over the pairs, weighted by the ratio of the policy at that point to the one
that drew, so every gradient is unbiased. The two gradients of g by x are of the same minibatch (`shared`): independent
ones have a variance of the order of 1 / sigma^2. Constants are subtracted from what is weighted, which moves no mean.

Algorithm 2, the single loop, is `lower_steps=1` and `momentum` below 1: each gradient q_k(w_k) is replaced by
q_k(w_k) + (1 - momentum) (estimate before - q_k(w_{k-1})), both on the same pairs. Recalled, and here the momentum is
constant; the upper gradient is taken behind the lower step and not beside it. Policies are softmaxes of numbers for
each answer, whose lower level is no convex one: for such levels are the Moreau terms. With u_0 = y_k a lower step is
against sigma f_y + g_y + (u - y_k) / rho, and y_{k+1} = (1 - b) y_k + b u_T; z the same. Without `rho` there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import NotFinite, UserError
from polyrl.methods.theory.bilevel_penalty import KnowBandit, exact_gradient
from polyrl.models.finite import FinitePolicy
from polyrl.models.tables import OfTheory, Tables
from polyrl.recipe import Recipe, hyperparameter
from polyrl.rollout.finite import drawn
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteTask, thresholds
from polyrl.tasks.theory.reward_bandit import RewardBandit

SLUG = "bilevel-penalty-sampled"
TITLE = "On Penalty Methods for Nonconvex Bilevel Optimization and First-Order Stochastic Approximation (minibatches)"
PAPER = "arXiv:2309.01753"
YEAR = 2023
FORMULA = "T times y -= g q(sigma f_y + g_y), z -= g q(g_z); then x -= a q(f_x(x, y) + (g_x(x, y) - g_x(x, z)) / sigma)"
TASK = "reward-bandit"


class Pairs(NamedTuple):
    """A minibatch: answers `[M]` int64, whether the first is preferred `[M]`, and what drew them.

    Attributes:
        first, second, prefers: the pairs.
        log_drew: log-probabilities `[K]`.
        cost: the lower objective of what drew them, `[]`, a baseline.
    """

    first: Tensor
    second: Tensor
    prefers: Tensor
    log_drew: Tensor
    cost: Tensor


def upper(task: RewardBandit, x: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """The upper objective less log 2 on a minibatch, `[]`: unbiased, and so are its gradients."""
    weight, reward = (torch.log_softmax(logits, -1) - pairs.log_drew).exp(), task.seen @ x
    margin = reward[pairs.first] - reward[pairs.second]
    loss = -torch.nn.functional.logsigmoid(torch.where(pairs.prefers, margin, -margin))
    mean = (weight[pairs.first] * weight[pairs.second] * (loss - math.log(2))).mean()
    return mean + task.ridge * x.square().sum()


def lower(task: RewardBandit, x: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """The lower objective less the baseline on the answers of a minibatch, `[]`."""
    log_policy = torch.log_softmax(logits, -1)
    cost = task.tau * (log_policy - task.log_reference) - task.seen @ x - pairs.cost
    answers = torch.cat([pairs.first, pairs.second])
    return ((log_policy - pairs.log_drew).exp() * cost)[answers].mean()


class BothLevels(Tables):
    """A reward, two policies, and what momentum remembers of both kinds of steps.

    Attributes:
        point: x, y and z in one, `[d + 2 K]`: weights, logits of the penalized policy and of the reward's.
        before: the points of the last lower and upper step `[2, d + 2 K]`.
        estimate: their gradients `[2, d + 2 K]`, NaN before there is one.
    """

    point: Tensor
    before: Tensor
    estimate: Tensor

    def __init__(self, features: int, log_reference: Tensor):
        super().__init__()
        point = torch.cat([torch.zeros(features, dtype=torch.float64), log_reference, log_reference])
        self.register_buffer("point", point)
        self.register_buffer("before", point.repeat(2, 1))
        self.register_buffer("estimate", torch.full_like(self.before, math.nan))

    def descend(self, kind: int, objective: Callable[[Tensor], Tensor], size: float, momentum: float) -> None:
        """One step of `point` against the gradient of the objective, a number `[]`; kind 0 is lower, 1 is upper."""

        def gradient(point: Tensor) -> Tensor:
            at = point.clone().requires_grad_()
            with torch.enable_grad():
                found: Tensor = torch.autograd.grad(objective(at), at)[0]
            return found

        found = gradient(self.point)
        if momentum < 1 and not bool(self.estimate[kind].isnan().any()):
            found = found + (1 - momentum) * (self.estimate[kind] - gradient(self.before[kind]))
        self.before[kind], self.estimate[kind] = self.point, found
        self.point.sub_(size * found)


@dataclass(frozen=True, kw_only=True)
class SampledReward(OfTheory):
    """A reward that is linear in a bandit's features, 0 at first, and two policies, which begin at the reference."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> BothLevels:
        """Both levels.

        Raises:
            UserError: the problem has no features.
        """
        if not isinstance(task, RewardBandit):
            raise UserError(f"{SLUG} learns a reward of features, and {task.name} has none; try --task {TASK}.")
        return BothLevels(task.features, task.log_reference)


@dataclass(frozen=True)
class DescendOnPairs(OwnUpdate):
    """Steps of both policies on pairs that are drawn for each, then one of the reward's weights."""

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"levels"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    sigma: float = hyperparameter(0.05, "the gradient is wrong by O(sigma)", above=0)
    step_size: float = hyperparameter(0.05, "a, step of the reward's weights", above=0)
    lower_step_size: float = hyperparameter(1.0, "g, step of the policies' logits", above=0)
    lower_steps: int = hyperparameter(4, "T, steps of the policies for each one of the reward; 1: single loop", low=1)
    pairs: int = hyperparameter(16, "M, pairs of a minibatch", low=1)
    shared: bool = hyperparameter(True, "take both policies' gradients by the reward's weights on the same minibatch")
    momentum: float = hyperparameter(1.0, "share of a gradient that is new; 1 is no momentum", above=0, high=1)
    rho: float | None = hyperparameter(None, "proximal term of both policies' steps, |u - y|^2 / (2 rho)", above=0)
    relaxation: float = hyperparameter(1.0, "b, how far both policies go to where their steps came", above=0, high=1)

    def drawn(self, task: RewardBandit, levels: BothLevels, number: int, see: See) -> Pairs:
        """The next minibatch, by the penalized policy as it is; each answer is a query."""
        rows, time = torch.arange(number * self.pairs, (number + 1) * self.pairs), torch.zeros(1).long()
        luck = counted_uniforms(see.context.seed, "bilevel pairs", rows=rows, times=time, numbers=3)[:, 0].T
        x, y, _ = torch.split(levels.point, [task.features, task.choices, task.choices])
        log_policy = torch.log_softmax(y, -1)
        first, second = (drawn(thresholds(log_policy.exp()).expand(self.pairs, -1), u) for u in luck[:2])
        prefers = luck[2] < torch.sigmoid(task.gold[first] - task.gold[second])
        see.context.spent.queries += 2 * self.pairs
        return Pairs(first, second, prefers, log_policy, task.lower(x, log_policy))

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """T lower steps and an upper one; the figures are of before them, and exact."""
        task: RewardBandit = see.context.run_state.task
        levels: BothLevels = see["levels"]
        sizes, memory = [task.features, task.choices, task.choices], see.context.memory(SLUG)
        x, y, z = (part.clone() for part in torch.split(levels.point, sizes))
        apart = float((torch.softmax(y, -1) - torch.softmax(z, -1)).abs().sum()) / self.sigma
        figures = {
            "hyper_objective": float(task.upper(x, task.response(x))),
            "gradient_norm": float(exact_gradient(task.upper, task.response, x).norm()),
            "lower_error": float((torch.softmax(z, -1) - task.response(x).exp()).abs().sum()),
            "policies_apart": apart,
        }

        def minibatch() -> Pairs:
            memory["minibatches"] = memory.get("minibatches", 0) + 1
            return self.drawn(task, levels, memory["minibatches"] - 1, see)

        begun = levels.point.clone()
        for _ in range(self.lower_steps):
            pairs = minibatch()

            def policies(point: Tensor, pairs: Pairs = pairs) -> Tensor:
                x, y, z = torch.split(point, sizes)
                x = x.detach()
                both = self.sigma * upper(task, x, y, pairs) + lower(task, x, y, pairs) + lower(task, x, z, pairs)
                if self.rho is None:
                    return both
                return both + (point - begun)[task.features :].square().sum() / (2 * self.rho)

            levels.descend(0, policies, self.lower_step_size, self.momentum)
        if self.relaxation < 1:
            levels.point.lerp_(begun, 1 - self.relaxation)  # the reward has not moved yet
        pairs = minibatch()
        others = pairs if self.shared else minibatch()

        def penalty(point: Tensor) -> Tensor:
            x, y, z = torch.split(point, sizes)
            y, z = y.detach(), z.detach()
            return upper(task, x, y, pairs) + (lower(task, x, y, pairs) - lower(task, x, z, others)) / self.sigma

        levels.descend(1, penalty, self.step_size, self.momentum)
        if not bool(levels.point.isfinite().all()):
            raise NotFinite(f"The reward or a policy of {SLUG} is no longer finite; lower the step sizes.")
        see[self.trains].assign(torch.softmax(torch.split(levels.point, sizes)[2], -1)[None, None])
        return figures


def recipe() -> Recipe:
    """Lower steps of two policies, one step of the upper variable, all on drawn pairs."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "levels": SampledReward()},
        collect=KnowBandit(),
        updates=(DescendOnPairs("policy", Fresh()),),
        adds=("descend-on-pairs",),
        budget="queries=200000",
        notes={
            "collect": "nothing yet: each step draws its own pairs from the penalized policy, and their labels",
            "credit": "two policies: of the reward, and of the reward less sigma times the upper loss",
            "improve": "T steps of the policies, one of the reward's weights; the policy is the reward's as it stands",
        },
    )
