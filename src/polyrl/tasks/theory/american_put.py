"""When to exercise an American put, if prices may move otherwise later than they do in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.theory.mdp import RobustMDP


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
        """Price in each node, `[S - 1]`."""
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
