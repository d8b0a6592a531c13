"""The simulated linear MDP of arXiv:2403.09621."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.theory.mdp import RobustMDP


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
