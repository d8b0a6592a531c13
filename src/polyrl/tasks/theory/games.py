"""Preference games: which answer beats which, regularized by a reference policy, with their exact Nash policies.

P(y > y') is the probability that answer y is preferred to y', with P + P^T = 1; cycles are allowed. The game of
arXiv:2312.00886 charges both players for leaving the reference,

    P_beta(p > q) = P(p > q) - beta KL(p || ref) + beta KL(q || ref),

and has one symmetric Nash policy, the solution of  log pi = log ref + P pi / beta + const.
All numbers are float64; policies are given by their log-probabilities `[n]`, so that none is ever exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.runtime.seeding import generator

# ---------------------------------------------------------------------------------------------- pure functions


def win_rates(preference: Tensor, log_opponent: Tensor) -> Tensor:
    """How often each answer beats the opponent, `(P q)(y) = sum_y' P(y > y') q(y')`: `[n, n]`, `[n]` -> `[n]`."""
    return preference @ log_opponent.exp()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats of two policies given by log-probabilities `[..., n]`."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def best_response(preference: Tensor, log_opponent: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """Log-probabilities of argmax_mu P_beta(mu > q): mu ~ ref exp(P q / beta), `[n]`."""
    return torch.log_softmax(log_reference + win_rates(preference, log_opponent) / beta, -1)


def exploitability(preference: Tensor, log_policy: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """Duality gap of a policy `[n]`: max_mu P_beta(mu > pi) - 1/2, at least 0, and 0 at the Nash policy only.

    The maximum is beta log sum_y ref(y) exp((P pi)(y) / beta) + beta KL(pi || ref), in closed form.
    """
    best = beta * torch.logsumexp(log_reference + win_rates(preference, log_policy) / beta, -1)
    return best + beta * kl(log_policy, log_reference) - 0.5


def nash_policy(
    preference: Tensor, log_reference: Tensor, beta: float, *, tolerance: float = 1e-12, newton_steps: int = 100
) -> Tensor:
    """Log-probabilities `[n]` of the regularized Nash policy, to rounding.

    Mirror prox (arXiv:2505.19731) brings the policy near, Newton's method on
    F(x) = x - log_softmax(log ref + P exp(x) / beta) finishes; each converges from anywhere here, and the result is
    checked, so neither is trusted.

    Raises:
        ArithmeticError: the residual, the largest entry of |F|, is above `tolerance` in the end.
    """
    policy = log_reference
    step = 2 * beta

    def prox(anchor: Tensor, opponent: Tensor) -> Tensor:
        moved = anchor + step * log_reference + (step / beta) * win_rates(preference, opponent)
        return torch.log_softmax(moved / (1 + step), -1)

    for _ in range(min(20_000, int(40 / step) + 50)):
        policy = prox(policy, prox(policy, policy))
    eye = torch.eye(len(policy), dtype=policy.dtype)
    for _ in range(newton_steps):
        mapped = best_response(preference, policy, log_reference, beta)
        residual = policy - mapped
        if float(residual.abs().max()) < tolerance / 100:
            break
        # d log_softmax(z) = (I - 1 softmax(z)^T) dz, and dz = P diag(pi) dx / beta
        slope = (preference * policy.exp()) / beta
        jacobian = eye - (slope - mapped.exp() @ slope)
        moved = torch.log_softmax(policy - torch.linalg.solve(jacobian, residual), -1)
        moved_residual = moved - best_response(preference, moved, log_reference, beta)
        if not float(moved_residual.abs().max()) < float(residual.abs().max()):
            break
        policy = moved
    left = float((policy - best_response(preference, policy, log_reference, beta)).abs().max())
    if not left < tolerance:
        raise ArithmeticError(f"the Nash policy was found to {left:.1e} only, not to {tolerance:.0e}")
    return policy


# ------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class PreferenceGame:
    """A preference game with its exact solution.

    Attributes:
        beta: strength of the regularization, in win rate per nat.
    """

    beta: float = 0.1

    name: ClassVar[str] = "preference-game"
    budget: ClassVar[str] = "iterations=400"
    access: ClassVar[frozenset[str]] = frozenset({"episodes", "model"})
    metric: ClassVar[Metric] = Metric(
        key="eval/kl_to_nash", label="KL to the Nash policy", unit="nats", higher_is_better=False, scale="log"
    )

    def __post_init__(self) -> None:
        """Refuse a game without regularization: its Nash policy need not be unique."""
        if not (self.beta > 0 and self.beta < float("inf")):
            raise UserError(f"The task {self.name} has beta={self.beta:g}; it must be a number above 0, such as 0.1.")

    @property
    def preference(self) -> Tensor:
        """P `[n, n]`: probability that the row's answer is preferred to the column's."""
        raise NotImplementedError

    @property
    def log_reference(self) -> Tensor:
        """Log-probabilities `[n]` of the reference policy, from which every method starts."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """What people call the answers."""
        return tuple(f"answer {i}" for i in range(len(self.log_reference)))

    @cached_property
    def nash(self) -> Tensor:
        """Log-probabilities `[n]` of the regularized Nash policy."""
        return nash_policy(self.preference, self.log_reference, self.beta)

    def measures(self, log_policy: Tensor) -> dict[str, float]:
        """What a policy `[n]` is judged by: KL(nash || policy), nats, its exploitability, and the same KL backwards."""
        return {
            "eval/kl_to_nash": max(0.0, float(kl(self.nash, log_policy))),
            "eval/exploitability": max(
                0.0, float(exploitability(self.preference, log_policy, self.log_reference, self.beta))
            ),
            "eval/kl_to_reference": max(0.0, float(kl(log_policy, self.log_reference))),
        }


@dataclass(frozen=True)
class RockPaperScissors(PreferenceGame):
    """Rock beats scissors beats paper beats rock; a tie is 1/2; the reference is (0.5, 0.3, 0.2)."""

    name: ClassVar[str] = "rock-paper-scissors"

    @cached_property
    def preference(self) -> Tensor:
        """P `[3, 3]`."""
        return torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)

    @cached_property
    def log_reference(self) -> Tensor:
        """log (0.5, 0.3, 0.2)."""
        return torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which each beats the next."""
        return ("rock", "scissors", "paper")


@dataclass(frozen=True)
class MatrixGame(PreferenceGame):
    """Random preferences: P(y > y') uniform in [0, 1] for each pair, log ref(y) ~ N(0, 1) before normalizing.

    Attributes:
        actions: how many answers there are.
        instance: which game; none takes the run's seed, so that seeds are games.
    """

    beta: float = 0.01
    actions: int = 10
    instance: int | None = None

    name: ClassVar[str] = "matrix-game"
    budget: ClassVar[str] = "iterations=800"

    def __post_init__(self) -> None:
        """Refuse games with nothing to choose from."""
        super().__post_init__()
        if self.actions < 2:
            raise UserError(f"The task {self.name} has actions={self.actions}; it needs at least 2.")

    @cached_property
    def preference(self) -> Tensor:
        """P `[actions, actions]`."""
        random = generator(self.instance or 0, "matrix-game", "preference", self.actions)
        upper = torch.rand(self.actions, self.actions, generator=random, dtype=torch.float64).triu(1)
        return upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(self.actions, dtype=torch.float64)

    @cached_property
    def log_reference(self) -> Tensor:
        """Log-probabilities `[actions]`."""
        random = generator(self.instance or 0, "matrix-game", "reference", self.actions)
        return torch.log_softmax(torch.randn(self.actions, generator=random, dtype=torch.float64), -1)
