"""Penalty bilevel: the gradient of a reward whose policy responds, from two policies and first derivatives alone.

min_x f(x, y) over y that minimizes g(x, .): here x is a reward's weights, y its policy, g the policy's own objective
and f a loss of the reward on pairs that the policy draws. With z = argmin g and y = argmin sigma f + g,

    grad f(x, y) + (grad g(x, y) - grad g(x, z)) / sigma        (by x alone; y and z are constants)

is within O(sigma) of the gradient of f(x, z(x)). Without the difference it is the naive gradient, which takes the
policy for fixed and may point the other way. Algorithm 1 without noise: the lower solves are exact up to `tolerance`,
warm from one step to the next; minibatches and the single loop with momentum are those of `bilevel-penalty-sampled`.
Its indices are recalled.

For lower levels that are not convex it has Moreau terms, a proximal step from the policies of the step before:
z_{k+1} = (1 - b) z_k + b argmin g + D(., z_k) / rho, and y_{k+1} the same of sigma f + g. The gradient above is then
that of the difference of the two Moreau envelopes over sigma. The paper's D is half the squared distance of variables;
of policies it is KL here, as everything else in this bandit is, so that z has a closed form. Without `rho` there is no
such term; a large one comes to the same, and at a small one neither policy follows the reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import NotFinite, UserError
from polyrl.models.finite import FinitePolicy
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import FromFinite
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteTask
from polyrl.tasks.theory.reward_bandit import RewardBandit

SLUG = "bilevel-penalty"
TITLE = "On Penalty Methods for Nonconvex Bilevel Optimization and First-Order Stochastic Approximation"
PAPER = "arXiv:2309.01753"
YEAR = 2023
FORMULA = "x -= a (f_x(x, y) + (g_x(x, y) - g_x(x, z)) / sigma), z = argmin g, y = argmin sigma f + g"
TASK = "reward-bandit"

Level = Callable[[Tensor, Tensor], Tensor]
"""An objective of the upper variable and the lower one."""
MOST_STEPS = 10_000


def penalty_gradient(upper: Level, lower: Level, x: Tensor, y: Tensor, z: Tensor, sigma: float) -> Tensor:
    """The gradient by x `[...]` of f(x, y) + (g(x, y) - g(x, z)) / sigma, y = argmin sigma f + g and z = argmin g."""
    x, y, z = x.detach().requires_grad_(), y.detach(), z.detach()
    with torch.enable_grad():
        value = upper(x, y) + (lower(x, y) - lower(x, z)) / sigma
        found: Tensor = torch.autograd.grad(value, x)[0]
    return found


def exact_gradient(upper: Level, response: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient by x `[...]` of f(x, z(x)) where z(x) is known in closed form: what the other is held against."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        found: Tensor = torch.autograd.grad(upper(x, response(x)), x)[0]
    return found


def proximal(task: RewardBandit, start: Tensor, rho: float | None) -> tuple[Tensor, float]:
    """The reference `[K]` and the temperature of tau KL(. || reference) + KL(. || start) / rho, up to a constant."""
    if rho is None:
        return task.log_reference, task.tau
    temperature = task.tau + 1 / rho
    return (task.tau * task.log_reference + start / rho) / temperature, temperature


def nearest(task: RewardBandit, weights: Tensor, start: Tensor, rho: float | None) -> Tensor:
    """argmin over policies of g + KL(. || start) / rho, in closed form: log-probabilities `[K]`."""
    reference, temperature = proximal(task, start, rho)
    return torch.log_softmax(reference + task.seen @ weights / temperature, -1)


def penalized(
    task: RewardBandit, weights: Tensor, start: Tensor, sigma: float, tolerance: float, rho: float | None = None
) -> Tensor:
    """argmin over policies of sigma f + g, and of + KL(. || start) / rho: log-probabilities `[K]`, by mirror steps.

    The fixed point is ref exp((r - sigma f_pi) / tau); half a step at a time settles also where f is not convex.

    Raises:
        NotFinite: it does not settle; sigma is too large beside tau.
    """
    log_policy = start
    log_reference, temperature = proximal(task, start, rho)
    for _ in range(MOST_STEPS):
        policy = log_policy.exp().detach().requires_grad_()
        with torch.enable_grad():
            slope = torch.autograd.grad(task.upper(weights, policy.log()), policy)[0]
        goal = torch.log_softmax(log_reference + (task.seen @ weights - sigma * slope) / temperature, -1)
        moved = torch.log_softmax((log_policy + goal) / 2, -1)
        if float((moved - log_policy).abs().max()) < tolerance:
            return moved
        log_policy = moved
    raise NotFinite(f"The penalized policy of {SLUG} did not settle in {MOST_STEPS} steps; lower --sigma.")


def relaxed(before: Tensor, solved: Tensor, share: float) -> Tensor:
    """(1 - share) of one policy and `share` of another, as log-probabilities `[K]`."""
    return solved if share == 1 else torch.logaddexp(before + math.log1p(-share), solved + math.log(share))


class RewardWeights(Tables):
    """A linear reward `weights` `[d]`, and the penalized policy of the step before `[K]`, where the next one begins."""

    weights: Tensor
    log_penalized: Tensor

    def __init__(self, features: int, log_reference: Tensor):
        super().__init__()
        self.register_buffer("weights", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("log_penalized", log_reference.clone())


@dataclass(frozen=True, kw_only=True)
class LinearReward(OfTheory):
    """A reward that is linear in a bandit's features, 0 at first."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> RewardWeights:
        """Weights `[d]`.

        Raises:
            UserError: the problem has no features.
        """
        if not isinstance(task, RewardBandit):
            raise UserError(f"{SLUG} learns a reward of features, and {task.name} has none; try --task {TASK}.")
        return RewardWeights(task.features, task.log_reference)


@dataclass(frozen=True, kw_only=True)
class KnowBandit(FromFinite):
    """Nothing is drawn: both levels are known functions. One row, so that there is something to pass on."""

    access: ClassVar[frozenset[str]] = frozenset({"model"})
    stream: ClassVar[str] = "bandit"
    gives: ClassVar[frozenset[str]] = frozenset({"mask", "present"})

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """One row `[1, 1]`."""
        there = torch.ones(1, 1, dtype=torch.bool)
        return Experience({"mask": there, "present": there})


@dataclass(frozen=True)
class DescendReward(OwnUpdate):
    """One step of the reward's weights, and the policy that responds to them."""

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    gradient: Literal["penalty", "naive", "exact"] = hyperparameter(
        "penalty", "by two policies, with the policy taken for fixed, or by the closed form of the response"
    )
    sigma: float = hyperparameter(0.05, "penalty: the gradient is wrong by O(sigma)", above=0)
    step_size: float = hyperparameter(0.1, "a, step of the reward's weights", above=0)
    tolerance: float = hyperparameter(1e-12, "change of log-probabilities at which a lower solve ends", above=0)
    rho: float | None = hyperparameter(None, "of the proximal steps of both policies; none solves them out", above=0)
    relaxation: float = hyperparameter(1.0, "b, how far both policies go to what was solved", above=0, high=1)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse proximal steps of policies that no gradient asks for.

        Raises:
            UserError: there are some.
        """
        if self.gradient != "penalty" and (self.rho is not None or self.relaxation < 1):
            raise UserError(
                f"--rho and --relaxation are about the two policies of the penalty gradient, and --gradient "
                f"{self.gradient} has none; leave them out."
            )

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """x <- x - a gradient; the figures are of before the step, and exact."""
        task: RewardBandit = see.context.run_state.task
        reward: RewardWeights = see["reward"]
        x, z = reward.weights.clone(), task.response(reward.weights)
        exact = exact_gradient(task.upper, task.response, x)
        if self.gradient == "penalty" and (self.rho is not None or self.relaxation < 1):
            kept = see.context.tensors(SLUG)
            before = kept.get("log_nearest", task.log_reference)
            near = relaxed(before, nearest(task, x, before, self.rho), self.relaxation)
            y = penalized(task, x, reward.log_penalized, self.sigma, self.tolerance, self.rho)
            y = relaxed(reward.log_penalized, y, self.relaxation)
            kept["log_nearest"] = near
            reward.log_penalized.copy_(y)
            found = penalty_gradient(task.upper, task.lower, x, y, near, self.sigma)
        elif self.gradient == "penalty":
            y = penalized(task, x, reward.log_penalized, self.sigma, self.tolerance)
            reward.log_penalized.copy_(y)
            found = penalty_gradient(task.upper, task.lower, x, y, z, self.sigma)
        elif self.gradient == "naive":
            found = penalty_gradient(task.upper, task.lower, x, z, z, 1.0)
        else:
            found = exact
        reward.weights.copy_(x - self.step_size * found)
        see[self.trains].assign(task.response(reward.weights).exp()[None, None])
        return {
            "hyper_objective": float(task.upper(x, z)),
            "gradient_error": float((found - exact).norm()),
            "gradient_norm": float(exact.norm()),
        }


def recipe() -> Recipe:
    """Two lower solves, one step of the upper variable."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "reward": LinearReward()},
        collect=KnowBandit(),
        updates=(DescendReward("policy", Fresh()),),
        adds=("descend-reward",),
        notes={
            "collect": "nothing: both levels are known",
            "credit": "two policies: of the reward, and of the reward less sigma times the upper loss",
            "improve": "a step against the penalty gradient; the policy is the reward's, in closed form",
        },
    )
