"""Finite-horizon MDPs whose dynamics may shift after training, solved exactly by robust dynamic programming.

A learner acts in the nominal dynamics only. It is judged by the worst dynamics of an uncertainty set, and by its return
under a few named shifts, all computed. Values may be regularized by a reference policy (arXiv:2510.14246):

    V_h(s) = <pi_h(.|s), Q_h(s, .)> - eta KL(pi_h(.|s) || ref(.|s)),   Q_h(s, a) = r_h(s, a) + worst E V_{h+1}.

Steps count from 0. Tensors are float64: H steps, S states, A actions, d features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.tasks.theory.solving import finite_horizon_values
from polyrl.tasks.theory.uncertainty import Constraint, Divergence, Uncertainty

# ---------------------------------------------------------------------------------------------- pure functions


def soft_policy(q: Tensor, log_reference: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Best policy for <pi, q> - eta KL(pi || ref) and its value: pi ~ ref exp(q / eta), V = eta log E_ref exp(q / eta).

    Args:
        q: `[..., A]`.
        log_reference: `[..., A]`, broadcast.
        eta: temperature; 0 is argmax (the first of equals) and max.

    Returns:
        Probabilities `[..., A]` and values `[...]`.
    """
    if eta == 0:
        best = q.argmax(-1, keepdim=True)
        return torch.zeros_like(q).scatter_(-1, best, 1.0), q.gather(-1, best)[..., 0]
    scores = log_reference + q / eta
    total = torch.logsumexp(scores, -1, keepdim=True)
    return (scores - total).exp(), eta * total[..., 0]


def regularized_value(policy: Tensor, q: Tensor, log_reference: Tensor, eta: float) -> Tensor:
    """<pi, q> - eta KL(pi || ref) over the last dimension of `[..., A]`; probabilities of 0 are fine."""
    value = (policy * q).sum(-1)
    if eta:
        value = value - eta * (torch.xlogy(policy, policy) - policy * log_reference).sum(-1)
    return value


@dataclass(frozen=True)
class Plan:
    """A policy and what it is worth, step by step.

    Attributes:
        policy: `[H, S, A]` probabilities.
        q: `[H, S, A]`.
        value: `[H + 1, S]`; the last row is 0.
    """

    policy: Tensor
    q: Tensor
    value: Tensor


# ------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class RobustMDP:
    """An MDP with an uncertainty set around its nominal dynamics, and exact answers.

    The adversary chooses one distribution for every row of `factors`, and the dynamics are their mixture,
    P_h(. | s, a) = sum_i mixture(s, a)_i factor_{h,i}: d-rectangular where the rows are the learner's features,
    (s, a)-rectangular where every pair has a row of its own.

    Attributes:
        divergence, constraint: kind of the uncertainty set.
        rho: radius of the set, for constraint "radius"; 0 is no adversary.
        lam: price of the adversary's divergence, for constraint "penalty"; inf is no adversary.
        eta: temperature of the regularization towards the uniform reference in the objective; 0 is none.
    """

    divergence: Divergence = "tv"
    constraint: Constraint = "radius"
    rho: float = 0.0
    lam: float = 1.0
    eta: float = 0.0

    name: ClassVar[str] = "robust-mdp"
    budget: ClassVar[str] = "samples=1500"
    access: ClassVar[frozenset[str]] = frozenset({"episodes", "model"})
    metric: ClassVar[Metric] = Metric(
        key="eval/regret",
        label="average robust suboptimality",
        unit="reward",
        higher_is_better=False,
        scale="log",
    )

    def __post_init__(self) -> None:
        """Refuse an impossible adversary or temperature."""
        for name in ("eta", "rho"):
            value = getattr(self, name)
            if not (0 <= value < math.inf):
                raise UserError(f"The task {self.name} has {name}={value:g}; it must be a number from 0 on.")
        _ = self.uncertainty

    @property
    def uncertainty(self) -> Uncertainty:
        """The adversary against which policies are judged."""
        return Uncertainty(self.divergence, self.constraint, self.rho if self.constraint == "radius" else self.lam)

    # -- what a task defines

    horizon: ClassVar[int]

    @property
    def features(self) -> Tensor:
        """phi `[S, A, d]`: what the learner knows of a state and action; of sum 1, or 0 where nothing follows."""
        raise NotImplementedError

    @property
    def mixture(self) -> Tensor:
        """`[S, A, m]` weights of the factors."""
        raise NotImplementedError

    @property
    def factors(self) -> Tensor:
        """`[H, m, S]` nominal distributions over next states."""
        raise NotImplementedError

    @property
    def exposed(self) -> Tensor:
        """`[H, m]` bool: which factors the adversary may move."""
        raise NotImplementedError

    @property
    def exposed_features(self) -> Tensor:
        """`[H, d]` bool: for which features a learner has to fear the adversary."""
        raise NotImplementedError

    @property
    def reward(self) -> Tensor:
        """`[H, S, A]`, known to the learner."""
        raise NotImplementedError

    @property
    def highest(self) -> Tensor:
        """`[H]` upper bound of the return from each step on."""
        raise NotImplementedError

    @property
    def ends(self) -> tuple[int, ...]:
        """States of which it is known that nothing follows: fail and exit states."""
        raise NotImplementedError

    @property
    def shifts(self) -> dict[str, Tensor]:
        """Name of each shift -> its dynamics `[H, S, A, S]`."""
        raise NotImplementedError

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states; episodes start in the first."""
        raise NotImplementedError

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        raise NotImplementedError

    # -- what follows from it

    @cached_property
    def kernel(self) -> Tensor:
        """Nominal dynamics `[H, S, A, S]`."""
        return torch.einsum("sam,hmt->hsat", self.mixture, self.factors)

    @cached_property
    def log_reference(self) -> Tensor:
        """Log-probabilities `[A]` of the reference policy, uniform in every state."""
        return torch.full((len(self.actions),), -math.log(len(self.actions)), dtype=torch.float64)

    @cached_property
    def _exposed_rows(self) -> list[Tensor]:
        return [row.nonzero()[:, 0] for row in self.exposed]

    def future(self, step: int, value: Tensor, uncertainty: Uncertainty) -> Tensor:
        """Worst expectation `[S, A]` of the next state's `value` `[S]`."""
        factors = self.factors[step]
        worst = factors @ value
        rows = self._exposed_rows[step]
        if len(rows) and not uncertainty.none:
            worst[rows] = uncertainty.worst_case(factors[rows], value, highest=float(value.max()))
        return self.mixture @ worst

    def plan(self, uncertainty: Uncertainty | None = None, eta: float | None = None) -> Plan:
        """The best policy against `uncertainty` with temperature `eta` (the task's own by default), exactly."""
        return self._backup(None, uncertainty, eta)

    def judge(self, policy: Tensor, uncertainty: Uncertainty | None = None, eta: float | None = None) -> Plan:
        """The worst value of a policy `[H, S, A]`, by robust dynamic programming."""
        return self._backup(policy, uncertainty, eta)

    def _backup(self, policy: Tensor | None, uncertainty: Uncertainty | None, eta: float | None) -> Plan:
        uncertainty = self.uncertainty if uncertainty is None else uncertainty
        eta = self.eta if eta is None else eta
        value = torch.zeros(self.horizon + 1, len(self.states), dtype=torch.float64)
        q = torch.zeros(self.horizon, len(self.states), len(self.actions), dtype=torch.float64)
        chosen = torch.zeros_like(q) if policy is None else policy
        for h in range(self.horizon - 1, -1, -1):
            q[h] = self.reward[h] + self.future(h, value[h + 1], uncertainty)
            if policy is None:
                chosen[h], value[h] = soft_policy(q[h], self.log_reference, eta)
            else:
                value[h] = regularized_value(chosen[h], q[h], self.log_reference, eta)
        return Plan(chosen, q, value)

    def returns(self, policy: Tensor) -> dict[str, float]:
        """Expected return of a policy `[H, S, A]` under each shift, without regularization."""
        found = {}
        for name, kernel in self.shifts.items():
            found[name] = float(finite_horizon_values(kernel, self.reward, policy)[0, 0])
        return found

    @cached_property
    def optimum(self) -> float:
        """Worst value of the best policy from the start, in the task's own objective."""
        return float(self.plan().value[0, 0])

    def suboptimality(self, policy: Tensor) -> float:
        """How much worse than the best policy `[H, S, A]` is in the worst case, exactly; at least 0."""
        return max(0.0, self.optimum - float(self.judge(policy).value[0, 0]))
