"""Demand traces: drawn in blocks that are pure functions of a random stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EVALUATION_SEED = 1234
"""Every method, rule and seed is judged on the dev and test traces of this seed."""


class Demand(Protocol):
    """What customers ask for, per store and period, independent over periods and of every action.

    Attributes:
        mean, std: units per period, one number a store.
        integer: whether demand comes in whole units (then so do orders, at test time).
    """

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean demand of each store, units per period."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each store's demand, units per period."""
        ...

    @property
    def correlation(self) -> float:
        """Between any two stores."""
        ...

    @property
    def integer(self) -> bool:
        """Whether demand is in whole units."""
        ...

    def draw(self, generator: torch.Generator, scenarios: int, periods: int) -> Tensor:
        """`[scenarios, periods, stores]` float32 units."""
        ...


@dataclass(frozen=True)
class NormalDemand:
    """Normal demand with one correlation between all pairs of stores; `clipped` at 0 or not."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    correlation: float = 0.0
    clipped: bool = True
    integer: bool = False

    def draw(self, generator: torch.Generator, scenarios: int, periods: int) -> Tensor:
        """`[scenarios, periods, stores]` float32 units; z_i = sqrt(rho) z_0 + sqrt(1 - rho) e_i has correlation rho."""
        noise = torch.randn(scenarios, periods, len(self.mean), generator=generator)
        if self.correlation:
            shared = torch.randn(scenarios, periods, 1, generator=generator)
            noise = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * noise
        demand = torch.tensor(self.mean) + torch.tensor(self.std) * noise
        return demand.clamp(min=0) if self.clipped else demand


@dataclass(frozen=True)
class PoissonDemand:
    """Independent Poisson demand: whole units."""

    mean: tuple[float, ...]
    integer: bool = True

    @property
    def std(self) -> tuple[float, ...]:
        """The square root of the mean."""
        return tuple(m**0.5 for m in self.mean)

    @property
    def correlation(self) -> float:
        """None: stores are independent."""
        return 0.0

    def draw(self, generator: torch.Generator, scenarios: int, periods: int) -> Tensor:
        """`[scenarios, periods, stores]` float32 units."""
        return torch.poisson(torch.tensor(self.mean).expand(scenarios, periods, -1), generator=generator)
