"""Stochastic lot sizing: machines make items for a demand that is not known before; setting up costs.

The simulator of arXiv:2504.05150 and its code. What is decided is known before the demand comes: stock and setups after
production are the post-decision state, which the environment tells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError

Integers = NDArray[np.int64]
SMALL = (((20, 15, 0), (0, 15, 20)), ((2, 1, 2), (2, 2, 1)))
"""Production and setup costs of two machines by three items, which stand where nothing else is asked for."""
HOLDING, LOST_SALE, SETUP_LOSS, ROOM, PERIODS = 0.01, 0.2, 1, 100, 100
"""Costs of a unit in stock and of one that is lacking, units lost by a new setup, largest stock of an item, periods."""
ENOUGH = 40
"""Stock below which the heuristic produces."""


class LotSizing(gymnasium.Env[NDArray[np.float32], Any]):
    """`machines` that make one of `items` each a period, or nothing; the return is minus what 100 periods cost.

    A machine that makes another item than before is set up, which costs and loses a unit; one that stands idle loses
    its setup. Demands are binomial, 20 trials of 0.4 an item and period. Stock beyond 100 is gone. Shown are the stocks
    and what each machine is set up for, 0 for nothing.

    With the sizes 3 and 2 and the instance 0 it is one small problem. Others are drawn as the published ones were: a
    machine makes nothing of an item with probability 0.4, else 1 to 40 units; a setup costs 1 or 2.
    """

    stock: Integers
    setup: Integers
    demand: Integers
    t: int

    def __init__(self, items: int = 3, machines: int = 2, instance: int = 0):
        for name, value, least in (("items", items, 1), ("machines", machines, 1), ("instance", instance, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"The {name} of lot-sizing must be a whole number from {least}, not {value!r}.")
        self.items, self.machines = items, machines
        self.production, self.setup_cost = instance_of(items, machines, instance)
        self.observation_space = spaces.Box(0, 1_000, (items + machines,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.MultiDiscrete([items + 1] * machines)
        self.metadata = {
            "render_modes": [],
            "info_fields": {"post_observation": (items + machines,)},
            "lines": heuristic_returns(items, machines, instance),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Stocks from 0 to 99, each machine set up for something that it makes."""
        super().reset(seed=seed)
        begin(self, self.np_random)
        return self._shown(self.stock, self.setup), {}

    @staticmethod
    def _shown(stock: Integers, setup: Integers) -> NDArray[np.float32]:
        return np.concatenate([stock, setup]).astype(np.float32)

    def decided(self, action: Any) -> tuple[Integers, Integers, float]:
        """f(s, a): stock and setup after production, and what was paid for setting up. Changes nothing."""
        return decided(self.production, self.setup_cost, self.stock, self.setup, action)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Produce, then meet the demand."""
        stock, self.setup, cost = self.decided(action)
        told = {"post_observation": self._shown(stock, self.setup)}
        self.stock, running = met(stock, self.demand[self.t])
        self.t += 1
        return self._shown(self.stock, self.setup), -(cost + running), self.t >= PERIODS, False, told


def begin(problem: Any, draw: np.random.Generator) -> None:
    """Draw stocks, setups and the demand of all periods."""
    problem.stock = draw.integers(0, ROOM, problem.items)
    problem.setup = np.array([1 + draw.choice(np.flatnonzero(made)) for made in problem.production])
    problem.demand, problem.t = draw.binomial(20, 0.4, (PERIODS, problem.items)), 0


def decided(
    production: Integers, setup_cost: Integers, stock: Integers, setup: Integers, action: Any
) -> tuple[Integers, Integers, float]:
    """Stock `[I]` and setup `[M]` after each machine made item `action[m]`, 0 for none, and the cost of new setups."""
    stock, setup, cost = stock.copy(), setup.copy(), 0.0
    for machine, item in enumerate(np.asarray(action).reshape(-1)):
        if item > 0:
            changed = bool(setup[machine] != item)
            cost += changed * float(setup_cost[machine, item - 1])
            stock[item - 1] += production[machine, item - 1] - changed * SETUP_LOSS
        setup[machine] = item
    return stock, setup, cost


def met(stock: Integers, demand: Integers) -> tuple[Integers, float]:
    """Stock `[I]` after the demand `[I]`, and what lost sales and holding the rest cost."""
    left = stock - demand
    kept = left.clip(0, ROOM)
    return kept, LOST_SALE * float(-left.clip(max=0).sum()) + HOLDING * float(kept.sum())


@lru_cache
def instance_of(items: int, machines: int, instance: int) -> tuple[Integers, Integers]:
    """Production and setup costs `[M, I]`; every machine makes something."""
    if (items, machines, instance) == (3, 2, 0):
        return np.array(SMALL[0]), np.array(SMALL[1])
    draw = np.random.default_rng([items, machines, instance])
    made = draw.integers(1, 41, (machines, items)) * (draw.random((machines, items)) >= 0.4)
    for machine in np.flatnonzero(~made.any(1)):
        made[machine, draw.integers(items)] = draw.integers(1, 41)
    return made, draw.integers(1, 3, (machines, items))


def lowest_stock(production: Integers, stock: Integers) -> Integers:
    """What each machine makes by a simple rule: of its items the one with the least stock, if that is below 40."""
    found = []
    for made in production:
        item = min(np.flatnonzero(made), key=lambda i: stock[i])
        found.append(1 + item if stock[item] < ENOUGH else 0)
    return np.array(found)


@lru_cache
def heuristic_returns(items: int, machines: int, instance: int) -> dict[str, float]:
    """Mean returns over 20 demand paths of standing idle and of `lowest_stock`."""

    class Path:
        stock: Integers
        setup: Integers
        demand: Integers

    production, setup_cost = instance_of(items, machines, instance)
    found = dict.fromkeys(("idle", "lowest stock"), 0.0)
    for seed, name in ((seed, name) for seed in range(20) for name in found):
        path: Any = Path()
        path.items, path.production = items, production
        begin(path, np.random.default_rng([seed, 1]))
        for demand in path.demand:
            action = np.zeros(machines, int) if name == "idle" else lowest_stock(production, path.stock)
            stock, path.setup, cost = decided(production, setup_cost, path.stock, path.setup, action)
            path.stock, running = met(stock, demand)
            found[name] -= (cost + running) / 20
    return found
