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
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
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
    """<pi, q> - eta KL(pi || ref) over the last dimension; probabilities of 0 are fine."""
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
            value = torch.zeros(len(self.states), dtype=torch.float64)
            for h in range(self.horizon - 1, -1, -1):
                value = (policy[h] * (self.reward[h] + kernel[h] @ value)).sum(-1)
            found[name] = float(value[0])
        return found

    @cached_property
    def optimum(self) -> float:
        """Worst value of the best policy from the start, in the task's own objective."""
        return float(self.plan().value[0, 0])

    def suboptimality(self, policy: Tensor) -> float:
        """How much worse than the best policy a policy is in the worst case, exactly; at least 0."""
        return max(0.0, self.optimum - float(self.judge(policy).value[0, 0]))


@dataclass(frozen=True)
class SimulatedLinearMDP(RobustMDP):
    """The simulated linear MDP of arXiv:2403.09621: a risky action that pays well unless its factor is moved.

    Five states, of which one fails and one is good for ever, and actions {-1, 1}^4. With c(a) = delta + <xi, a>, the
    first step leads to the good state with probability c, and the adversary may move just this factor to the fail
    state. Shift q moves it there with probability q.

    Attributes:
        xi: L1 norm of the action's effect, equal in each coordinate.
        delta: probability of the risky factor without an effect of the action.
    """

    rho: float = 0.5
    eta: float = 0.02
    xi: float = 0.3
    delta: float = 0.3

    name: ClassVar[str] = "linear-mdp"
    horizon: ClassVar[int] = 3

    def __post_init__(self) -> None:
        """Refuse features that are no probabilities."""
        super().__post_init__()
        if not (0 <= self.xi <= min(self.delta, 1 - self.delta)):
            raise UserError(
                f"The task {self.name} has xi={self.xi:g} and delta={self.delta:g}; delta - xi and delta + xi must be "
                "probabilities."
            )

    @property
    def states(self) -> tuple[str, ...]:
        """x1 to x5 of the paper."""
        return ("start", "middle", "end", "fail", "good")

    @cached_property
    def actions(self) -> tuple[str, ...]:
        """Signs of the four coordinates."""
        return tuple("".join("+" if x > 0 else "-" for x in a) for a in product((-1, 1), repeat=4))

    @property
    def ends(self) -> tuple[int, ...]:
        """The fail state."""
        return (3,)

    @cached_property
    def features(self) -> Tensor:
        """phi `[5, 16, 4]`: (1-c, 0, 0, c), (0, 1-c, 0, c), (0, 0, 1-c, c), (0, 0, 1, 0), (0, 0, 0, 1)."""
        signs = torch.tensor(list(product((-1, 1), repeat=4)), dtype=torch.float64)
        c = (self.delta + self.xi / 4 * signs.sum(1)).clamp(0, 1)
        phi = torch.zeros(5, 16, 4, dtype=torch.float64)
        for state in range(3):
            phi[state, :, state], phi[state, :, 3] = 1 - c, c
        phi[3, :, 2] = phi[4, :, 3] = 1
        return phi

    @property
    def mixture(self) -> Tensor:
        """The features: d-rectangular."""
        return self.features

    @cached_property
    def factors(self) -> Tensor:
        """`[3, 4, 5]`; factors that no state of a step mixes in lead to the fail state."""
        mu = torch.zeros(3, 4, 5, dtype=torch.float64)
        mu[:, :, 3] = 1
        mu[:, 3] = torch.tensor([0.0, 0, 0, 0, 1])
        mu[0, 0] = torch.tensor([0, 0.999, 0, 0.001, 0], dtype=torch.float64)
        mu[1, 1] = torch.tensor([0, 0, 0.999, 0.001, 0], dtype=torch.float64)
        return mu

    @cached_property
    def exposed(self) -> Tensor:
        """The risky factor of the first step."""
        exposed = torch.zeros(3, 4, dtype=torch.bool)
        exposed[0, 3] = True
        return exposed

    @property
    def exposed_features(self) -> Tensor:
        """The same."""
        return self.exposed

    @cached_property
    def reward(self) -> Tensor:
        """theta_1 = 0, theta_2 = theta_3 = e_4: the probability of the risky factor."""
        reward = self.features[..., 3].repeat(3, 1, 1)
        reward[0] = 0
        return reward

    @property
    def highest(self) -> Tensor:
        """H - h: rewards are at most 1."""
        return torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)

    @cached_property
    def shifts(self) -> dict[str, Tensor]:
        """q = 0, 0.25, 0.5, 0.75, 1: probability that the risky factor fails in the first step."""
        shifts = {}
        for q in (0.0, 0.25, 0.5, 0.75, 1.0):
            # as in the test environment of the public code, the middle state is reached for certain here
            first = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, q, 1 - q]], dtype=torch.float64)
            kernel = self.kernel.clone()
            kernel[0, 0] = self.features[0][:, [0, 3]] @ first
            shifts[f"q{q:g}"] = kernel
        return shifts


@dataclass(frozen=True)
class AmericanPut(RobustMDP):
    """When to exercise an American put: each step the price rises by 2% or falls by 2%, and may do so otherwise later.

    Exercising pays max(0, strike - price) and ends the episode; what is never exercised pays nothing. The learner sees
    `d` hat functions of the price, in which the dynamics are only nearly linear, so it is judged by the exact
    (s, a)-rectangular adversary on the lattice of prices. Shift p is the probability of a rise.

    Attributes:
        start_price, strike: prices.
        rise: nominal probability of a rise.
        hats: number of hat features, 5 apart, from 80 on.
    """

    rho: float = 0.2
    start_price: float = 100.0
    strike: float = 100.0
    rise: float = 0.5
    hats: int = 20

    name: ClassVar[str] = "american-put"
    horizon: ClassVar[int] = 10

    def __post_init__(self) -> None:
        """Refuse prices that the features do not cover."""
        super().__post_init__()
        if not 0 < self.rise < 1:
            raise UserError(f"The task {self.name} has rise={self.rise:g}; it must be a probability above 0, below 1.")
        if self.hats < 2:
            raise UserError(f"The task {self.name} has hats={self.hats}; it needs at least 2.")
        low, high = self.start_price * 0.98**self.horizon, self.start_price * 1.02**self.horizon
        if low < 80 or high > 80 + 5 * (self.hats - 1) or self.strike <= 0:
            raise UserError(
                f"The task {self.name} reaches prices from {low:.1f} to {high:.1f}, but its {self.hats} features cover "
                f"80 to {80 + 5 * (self.hats - 1)}; choose another start_price or more hats."
            )

    @cached_property
    def nodes(self) -> list[tuple[int, int]]:
        """(rises, falls) of each state but the last, the start first."""
        return [(n - falls, falls) for n in range(self.horizon) for falls in range(n + 1)]

    @cached_property
    def prices(self) -> Tensor:
        """Price in each node."""
        return torch.tensor([self.start_price * 1.02**u * 0.98**d for u, d in self.nodes], dtype=torch.float64)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Prices, and `out` once the option is exercised or over."""
        return (*(f"{p:.1f}" for p in self.prices.tolist()), "out")

    @property
    def actions(self) -> tuple[str, ...]:
        """Hold or exercise."""
        return ("hold", "exercise")

    @property
    def ends(self) -> tuple[int, ...]:
        """`out`."""
        return (len(self.nodes),)

    @cached_property
    def features(self) -> Tensor:
        """`[S, 2, hats]`: hat functions of the price where the option is held, 0 where nothing follows."""
        anchors = 80 + 5 * torch.arange(self.hats, dtype=torch.float64)
        phi = torch.zeros(len(self.states), 2, self.hats, dtype=torch.float64)
        phi[:-1, 0] = (1 - (self.prices[:, None] - anchors).abs() / 5).clamp(min=0)
        return phi

    @cached_property
    def mixture(self) -> Tensor:
        """Every pair has its own factor: (s, a)-rectangular."""
        size = 2 * len(self.states)
        return torch.eye(size, dtype=torch.float64).reshape(len(self.states), 2, size)

    def _lattice(self, rise: float) -> Tensor:
        """Dynamics `[S, 2, S]` with that probability of a rise."""
        where = {node: i for i, node in enumerate(self.nodes)}
        out = len(self.nodes)
        kernel = torch.zeros(out + 1, 2, out + 1, dtype=torch.float64)
        kernel[:, 1, out] = kernel[out, 0, out] = 1
        for (u, d), i in where.items():
            kernel[i, 0, where.get((u + 1, d), out)] += rise
            kernel[i, 0, where.get((u, d + 1), out)] += 1 - rise
        return kernel

    @cached_property
    def factors(self) -> Tensor:
        """`[10, 2 S, S]`."""
        size = len(self.states)
        return self._lattice(self.rise).reshape(1, 2 * size, size).repeat(self.horizon, 1, 1)

    @cached_property
    def exposed(self) -> Tensor:
        """Every pair that holds the option."""
        holds = torch.zeros(len(self.states), 2, dtype=torch.bool)
        holds[:-1, 0] = True
        return holds.flatten().repeat(self.horizon, 1)

    @cached_property
    def exposed_features(self) -> Tensor:
        """All of them."""
        return torch.ones(self.horizon, self.hats, dtype=torch.bool)

    @cached_property
    def reward(self) -> Tensor:
        """The payoff of exercising."""
        reward = torch.zeros(len(self.states), 2, dtype=torch.float64)
        reward[:-1, 1] = (self.strike - self.prices).clamp(min=0)
        return reward.repeat(self.horizon, 1, 1)

    @cached_property
    def highest(self) -> Tensor:
        """The largest payoff on the lattice."""
        return self.reward.amax((1, 2))

    @cached_property
    def shifts(self) -> dict[str, Tensor]:
        """p = 0.15, 0.5, 0.7, 0.85."""
        return {f"p{p:g}": self._lattice(p).repeat(self.horizon, 1, 1, 1) for p in (0.15, 0.5, 0.7, 0.85)}
