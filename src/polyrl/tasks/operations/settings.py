"""Inventory settings: networks with their costs and demand, and what is known about their optima.

A setting is a frozen record of numbers; traces are pure functions of (seed, split, index), so nothing random is saved.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.runtime.seeding import generator
from polyrl.tasks.operations import heuristics, optima
from polyrl.tasks.operations.demand import Demand, NormalDemand, PoissonDemand
from polyrl.tasks.operations.network import Network
from polyrl.tasks.operations.simulator import Simulator

Split = Literal["train", "dev", "test"]

FIVE_MEANS = (3.743, 4.75, 4.555, 3.801, 6.852)
FIVE_STDS = (1.765, 2.124, 1.622, 1.405, 1.714)
"""The five stores of the official configuration of the transshipment setting."""

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("penalty", "holding", "mean", "std"), ("above 0", lambda x: x > 0)),
    **dict.fromkeys(("lead_time", "warehouse_lead_time", "stores"), ("at least 1", lambda x: x >= 1)),
    "correlation": ("from 0 to 1", lambda x: 0 <= x <= 1),
}
"""What the settings of this name may be."""


@dataclass(frozen=True)
class InventoryTask:
    """What all settings share. Costs are per unit and period, demand is in units per period, times are in periods.

    `penalty` is paid for every unit of demand not met in a period, `holding` for every unit left at its end.
    """

    name: ClassVar[str]
    budget: ClassVar[str] = "samples=768000"  # 1500 updates on 512 scenarios
    access: ClassVar[frozenset[str]] = frozenset({"episodes", "reset-to-state", "generative", "differentiable"})
    """What it grants (`polyrl.core.access`): the simulator takes any state and is differentiable."""
    exact: ClassVar[bool] = True
    """Whether the target line is an optimum or a bound that is reached; otherwise it is a heuristic's cost."""

    penalty: float = 9.0
    holding: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a number out of its range.
        """
        for name, (wanted, good) in RANGES.items():
            if hasattr(type(self), name):
                self._check(name, good(getattr(self, name)), wanted)
        _ = self.network  # which checks itself

    def _check(self, name: str, good: bool, wanted: str) -> None:
        value = getattr(self, name)
        if not good or not math.isfinite(value):
            raise UserError(f"{self.name}.{name} is {value:g} but must be {wanted}.")

    @cached_property
    @abstractmethod
    def network(self) -> Network:
        """Who supplies whom, how long it takes and what it costs."""

    @cached_property
    @abstractmethod
    def customers(self) -> Demand:
        """The stores' demand."""

    @abstractmethod
    def lines(self) -> dict[str, float]:
        """Costs that stand beside every result; the first is the one to reach."""

    @cached_property
    def simulator(self) -> Simulator:
        """The setting's simulator."""
        return Simulator(self.network)

    @cached_property
    def metric(self) -> Metric:
        """Cost on the test traces, beside what is known of the setting."""
        lines = self.lines()
        return Metric(
            key="eval/cost",
            label="cost per period and store",
            higher_is_better=False,
            lines=lines,
            target=next(iter(lines)) if self.exact else "",
        )

    def traces(self, seed: int, split: Split, index: int, scenarios: int, periods: int) -> tuple[Tensor, Tensor]:
        """Block `index` of a split: a pure function of (seed, split, index) and the sizes.

        Returns:
            demand `[scenarios, periods, n]` and inventories at the start `[scenarios, N, slots]`, float32 units. At the
            start every slot of a store holds U[0, 1] of a period's mean demand, and there is nothing upstream.
        """
        return self.drawn(generator(seed, "traces", split, index), scenarios, periods)

    def drawn(self, stream: torch.Generator, scenarios: int, periods: int) -> tuple[Tensor, Tensor]:
        """The same from a random stream: `[scenarios, periods, n]` and `[scenarios, N, slots]`."""
        demand = self.customers.draw(stream, scenarios, periods)
        net = self.network
        start = torch.zeros(scenarios, net.locations, net.slots)
        share = torch.rand(scenarios, net.stores, net.slots, generator=stream)
        used = torch.arange(net.slots) < torch.tensor(net.lead_time[net.upstream :])[:, None]
        start[:, net.upstream :] = share * used * torch.tensor(self.customers.mean)[:, None]
        return demand, start

    def describe(self) -> str:
        """The setting in a few words."""
        net = self.network
        times = "x".join(map(str, net.lead_time))
        unmet = "lost" if net.lost else "waits"
        return f"{net.upstream} upstream, {net.stores} stores, lead times {times}, unmet demand {unmet}"


# ----------------------------------------------------------------------------------------------------- one store


@dataclass(frozen=True)
class Backlog(InventoryTask):
    """One store with normal demand, clipped at 0; customers wait."""

    name: ClassVar[str] = "backlog"

    lead_time: int = 4
    mean: float = 5.0
    std: float = 1.6

    @cached_property
    def network(self) -> Network:
        """One location, supplied from outside."""
        return Network((-1,), (self.lead_time,), (self.holding,), (self.penalty,))

    @cached_property
    def customers(self) -> Demand:
        """Normal demand, clipped at 0, which moves the optimum by less than 0.2% while mean > 3 std."""
        return NormalDemand((self.mean,), (self.std,))

    def lines(self) -> dict[str, float]:
        """The newsvendor's optimum: the best base stock."""
        return {"optimum": optima.newsvendor(self.lead_time, self.penalty, self.mean, self.std, self.holding)[1]}


@dataclass(frozen=True)
class LostSales(InventoryTask):
    """One store with Poisson demand; customers who find nothing go away. Orders are whole units at test time.

    `ordering_cost` is paid for every order above 0, whatever its size. Its gradient is 0 everywhere, so methods that
    differentiate the simulator cannot see it: there (s, S) rules are the ones to beat.
    """

    name: ClassVar[str] = "lost-sales"

    lead_time: int = 2
    mean: float = 5.0
    ordering_cost: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what the dynamic program cannot solve in seconds."""
        super().__post_init__()
        self._check("ordering_cost", 0 <= self.ordering_cost <= 100, "from 0 to 100")
        if self.ordering_cost and self.lead_time > 2:
            raise UserError(
                "lost-sales with an ordering_cost needs a lead_time of at most 2, or its optimum is unknown."
            )
        self._check("lead_time", self.lead_time <= 4, "at most 4, where the optimum can still be computed")
        self._check("mean", self.mean <= 10, "at most 10, where the optimum can still be computed")

    @cached_property
    def network(self) -> Network:
        """One location, supplied from outside; unmet demand is lost."""
        own = (self.lead_time,), (self.holding,), (self.penalty,)
        return Network((-1,), *own, lost=True, ordering_cost=self.ordering_cost)

    @cached_property
    def customers(self) -> Demand:
        """Poisson demand."""
        return PoissonDemand((self.mean,))

    def lines(self) -> dict[str, float]:
        """The dynamic program's optimum, and the classical rules at their best levels."""
        own = self.lead_time, self.penalty, self.mean, self.holding, self.ordering_cost
        best = optima.lost_sales(*own).cost
        return {"optimum": best, **heuristics.lost_sales_lines(self)}


# ---------------------------------------------------------------------------------------------- several locations


def _numbers(owner: str, name: str, text: str) -> tuple[float, ...]:
    """`2x4x3x4` -> (2, 4, 3, 4)."""
    try:
        return tuple(float(t) for t in text.split("x"))
    except ValueError:
        raise UserError(
            f"{owner}.{name} is '{text}'; write its values from the top to the store joined by x, such as 2x4x3x4."
        ) from None


@dataclass(frozen=True)
class Serial(InventoryTask):
    """A chain of stocking points, the last of which is a store with normal demand, clipped at 0; customers wait.

    `lead_times` and `echelon_holding` go from the top to the store; `holding` scales all holding costs.
    """

    name: ClassVar[str] = "serial"

    lead_times: str = "2x4x3x4"
    holding_costs: str = "0.1x0.2x0.5x1"
    mean: float = 5.0
    std: float = 2.0

    def __post_init__(self) -> None:
        """Refuse chains that cannot be solved."""
        super().__post_init__()
        costs = self.network.holding
        if any(a > b for a, b in pairwise(costs)):
            raise UserError(f"{self.name}.holding_costs is '{self.holding_costs}' but must not fall towards the store.")

    @cached_property
    def network(self) -> Network:
        """Each location orders from the one before it, the first from outside."""
        times = _numbers(self.name, "lead_times", self.lead_times)
        costs = _numbers(self.name, "holding_costs", self.holding_costs)
        if any(t != int(t) for t in times):
            raise UserError(f"{self.name}.lead_times is '{self.lead_times}' but must be whole periods.")
        holding = tuple(self.holding * c for c in costs)
        penalty = (*([0.0] * (len(times) - 1)), self.penalty)
        return Network(tuple(range(-1, len(times) - 1)), tuple(map(int, times)), holding, penalty)

    @cached_property
    def customers(self) -> Demand:
        """Normal demand, clipped at 0."""
        return NormalDemand((self.mean,), (self.std,))

    def lines(self) -> dict[str, float]:
        """Clark and Scarf's optimum."""
        net = self.network
        best = optima.clark_scarf(net.lead_time, net.holding, self.penalty, self.mean, self.std)
        return {"optimum": best.cost}


def drawn_stores(count: int, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means U[2.5, 7.5] and coefficients of variation U[0.25, 0.5] of `count` stores: means and standard deviations."""
    stream = generator(seed, "stores", count)
    mean = 2.5 + 5 * torch.rand(count, generator=stream, dtype=torch.float64)
    variation = 0.25 + 0.25 * torch.rand(count, generator=stream, dtype=torch.float64)
    return tuple(mean.tolist()), tuple((mean * variation).tolist())


def _stores(count: int, seed: int) -> tuple[Sequence[float], Sequence[float]]:
    """The official five stores, or others by a seed."""
    return (FIVE_MEANS, FIVE_STDS) if count == 5 and seed == 0 else drawn_stores(count, seed)


@dataclass(frozen=True)
class Transshipment(InventoryTask):
    """A warehouse that may not keep stock and stores with correlated normal demand, not clipped; customers wait.

    `stores=5, instance=0` are the official five; other stores are drawn by the seed `instance`.
    """

    name: ClassVar[str] = "transshipment"

    stores: int = 5
    lead_time: int = 2
    warehouse_lead_time: int = 3
    correlation: float = 0.5
    instance: int = 0

    @cached_property
    def network(self) -> Network:
        """The warehouse first, then the stores."""
        n = self.stores
        return Network(
            (-1, *([0] * n)),
            (self.warehouse_lead_time, *([self.lead_time] * n)),
            (0.0, *([self.holding] * n)),
            (0.0, *([self.penalty] * n)),
            stores=n,
            transit=True,
        )

    @cached_property
    def customers(self) -> Demand:
        """Correlated normal demand; where it is negative, goods come back."""
        mean, std = _stores(self.stores, self.instance)
        return NormalDemand(tuple(mean), tuple(std), self.correlation, clipped=False)

    def lines(self) -> dict[str, float]:
        """The bound of the pooled system, which dealing out equal fractiles reaches within 0.2%."""
        std = self.customers.std
        bound = optima.transshipment_bound(
            std, self.correlation, self.lead_time, self.warehouse_lead_time, self.penalty, self.holding
        )
        return {"lower bound": bound}


@dataclass(frozen=True)
class OneWarehouse(InventoryTask):
    """A warehouse and several stores with correlated normal demand, clipped at 0; unmet demand is lost.

    Stores' costs are drawn around `holding` (0.7 to 1.3 times) and `penalty` (0.7 to 1.3 times) by the seed `instance`.
    """

    name: ClassVar[str] = "one-warehouse"
    exact: ClassVar[bool] = False

    stores: int = 3
    lead_time: int = 2
    warehouse_lead_time: int = 3
    warehouse_holding: float = 0.3
    correlation: float = 0.5
    instance: int = 0

    @cached_property
    def network(self) -> Network:
        """The warehouse first, then the stores."""
        n = self.stores
        factor = 0.7 + 0.6 * torch.rand(2, n, generator=generator(self.instance, "costs", n), dtype=torch.float64)
        return Network(
            (-1, *([0] * n)),
            (self.warehouse_lead_time, *([self.lead_time] * n)),
            (self.warehouse_holding, *(self.holding * factor[0]).tolist()),
            (0.0, *(self.penalty * factor[1]).tolist()),
            stores=n,
            lost=True,
        )

    @cached_property
    def customers(self) -> Demand:
        """Correlated normal demand, clipped at 0."""
        mean, std = drawn_stores(self.stores, self.instance)
        return NormalDemand(tuple(mean), tuple(std), self.correlation)

    def lines(self) -> dict[str, float]:
        """The best of the rules with two levels of service; no optimum is known."""
        return heuristics.one_warehouse_lines(self)
