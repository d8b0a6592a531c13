"""Classical rules with the best levels that a search finds: the lines that stand beside every result.

Levels are searched on the dev traces, many candidates at once; what the best one costs is measured on the same test
traces as every policy, so that the traces' own luck is in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from scipy.stats import norm, poisson
from torch import Tensor

from polyrl.tasks.operations.demand import EVALUATION_SEED
from polyrl.tasks.operations.rules import base_stock, capped_base_stock, reorder_point

if TYPE_CHECKING:
    from polyrl.tasks.operations.settings import InventoryTask, LostSales

Rule = Callable[[Tensor, Tensor], Tensor]
"""Levels `[B, K]` and inventories `[B, N, slots]` -> orders `[B, N]`: every row may have levels of its own."""


# ----------------------------------------------------------------------------------------------------- the search


@torch.no_grad()
def costs(task: InventoryTask, rule: Rule, candidates: Tensor, traces: int = 64, periods: int = 400) -> Tensor:
    """Mean cost per period and store of each row of `candidates` `[C, K]` on the same dev traces: `[C]`.

    The first quarter of the periods is not counted.
    """
    demand, start = task.traces(EVALUATION_SEED, "dev", 1, traces, periods)
    many = len(candidates)
    levels = candidates.repeat_interleave(traces, 0)
    run = task.simulator.run(
        lambda state: rule(levels, state),
        start.repeat(many, 1, 1),
        demand.repeat(many, 1, 1),
        integer=task.customers.integer,
    )
    return run.cost[:, periods // 4 :].mean(1, dtype=torch.float64).view(many, traces).mean(1)


@torch.no_grad()
def judged(task: InventoryTask, rule: Rule, levels: Sequence[float], traces: int = 4096) -> float:
    """Cost of one candidate on the test traces, as policies are judged."""
    demand, start = task.traces(EVALUATION_SEED, "test", 0, traces, 600)
    row = torch.tensor([list(levels)])
    run = task.simulator.run(
        lambda state: rule(row.expand(len(state), -1), state),
        start,
        demand,
        integer=task.customers.integer,
    )
    return float(run.cost[:, 200:].mean(dtype=torch.float64))


def best(task: InventoryTask, rule: Rule, candidates: Tensor, finalists: int = 6) -> tuple[float, ...]:
    """The cheapest of `candidates` `[C, K]`: a short look at all of them, a long one at the finalists."""
    first = costs(task, rule, candidates, traces=32, periods=300)
    few = candidates[first.argsort()[:finalists]]
    return tuple(few[costs(task, rule, few, traces=512, periods=600).argmin()].tolist())


# ----------------------------------------------------------------------------------------------------- the lines

LINES: dict[tuple[int, float], tuple[float, float]] = {
    (1, 4.0): (4.1631, 4.0650),
    (1, 9.0): (5.5462, 5.4804),
    (1, 19.0): (6.7232, 6.6831),
    (1, 39.0): (7.8526, 7.8346),
    (2, 4.0): (4.6365, 4.4038),
    (2, 9.0): (6.3126, 6.1176),
    (2, 19.0): (7.8342, 7.7143),
    (2, 39.0): (9.1744, 9.1175),
    (3, 4.0): (4.9753, 4.6288),
    (3, 9.0): (6.8647, 6.6180),
    (3, 19.0): (8.6035, 8.3983),
    (3, 39.0): (10.2125, 10.0791),
    (4, 4.0): (5.1935, 4.7955),
    (4, 9.0): (7.2651, 6.9085),
    (4, 19.0): (9.2261, 8.9474),
    (4, 39.0): (11.0545, 10.8718),
}
"""Lost sales with Poisson(5), holding cost 1 and no cost of an order, by (lead time, penalty): the best base stock and
the best capped base stock, as `searched_lost_sales` finds them."""


def lost_sales_lines(task: LostSales) -> dict[str, float]:
    """Cost of the classical rules at their best levels: tabulated, or searched in seconds.

    (s, S) is a line only where an order costs something by itself: otherwise its best s is S - 1, which is base stock.
    """
    usual = (task.mean, task.holding, task.ordering_cost) == (5.0, 1.0, 0.0)
    if usual and (task.lead_time, task.penalty) in LINES:
        return dict(
            zip(("best base stock", "best capped base stock"), LINES[task.lead_time, task.penalty], strict=True)
        )
    found = {f"best {name}": cost for name, (_, cost) in searched_lost_sales(task).items()}
    return {name: cost for name, cost in found.items() if task.ordering_cost or name != "best (s, S)"}


@lru_cache(maxsize=32)
def searched_lost_sales(task: LostSales) -> dict[str, tuple[tuple[float, ...], float]]:
    """Best levels of each rule, in whole units, and their cost on the test traces."""
    ratio = task.penalty / (task.penalty + task.holding)
    top = int(poisson.ppf(ratio, (task.lead_time + 1) * task.mean)) + 1
    batch = math.ceil(math.sqrt(2 * task.ordering_cost * task.mean / task.holding))  # the economic order quantity
    levels = range(max(int(0.6 * top), 1), top + 1)
    caps = range(max(int(task.mean), 1), int(poisson.ppf(ratio, task.mean)) + 3)
    gaps = sorted({1, 2, 3, 4, *range(max(batch // 2, 1), 2 * batch + 1)})
    grids: dict[str, tuple[Rule, list[list[float]]]] = {
        "base stock": (lambda x, i: base_stock(i, x), [[s] for s in levels]),
        "capped base stock": (
            lambda x, i: capped_base_stock(i, x[:, :1], x[:, 1:]),
            [[s, c] for s in levels for c in caps],
        ),
        "(s, S)": (
            lambda x, i: reorder_point(i, x[:, :1], x[:, 1:]),
            [[s - 1, s - 1 + gap] for s in levels for gap in gaps],
        ),
    }
    found = {n: (rule, best(task, rule, torch.tensor(grid, dtype=torch.float32))) for n, (rule, grid) in grids.items()}
    return {name: (at, judged(task, rule, at)) for name, (rule, at) in found.items()}


TWO_FACTORS = 5.5643
"""Cost of the rule of `searched_one_warehouse` in the default setting."""


def one_warehouse_lines(task: InventoryTask) -> dict[str, float]:
    """Cost of the best echelon levels with one safety factor for the stores and one for the warehouse.

    It is searched in seconds, except for the default setting.
    """
    cost = TWO_FACTORS if task == type(task)() else searched_one_warehouse(task)[1]
    return {"best two-factor echelon stock": cost}


@lru_cache(maxsize=32)
def searched_one_warehouse(task: InventoryTask) -> tuple[tuple[float, ...], float]:
    """Best safety factors (stores, warehouse) and their cost on the test traces.

    Store i orders up to (L + 1) mu_i + z_i sigma_i sqrt(L + 1), where z_i is the stores' factor above the fractile
    p_i / (p_i + h_i); the warehouse orders up to the same for the whole system, of independent periods.
    """
    net, demand = task.network, task.customers
    mean, std = torch.tensor(demand.mean), torch.tensor(demand.std)
    own = torch.tensor(net.lead_time[1:]) + 1
    ratio = [p / (p + h) for p, h in zip(net.penalty[1:], net.holding[1:], strict=True)]
    fractile = torch.tensor(norm.ppf(ratio), dtype=torch.float32)
    together = demand.correlation
    whole = math.sqrt(together * float(std.sum()) ** 2 + (1 - together) * float(std.square().sum()))
    periods = float(net.lead_time[0] + own.float().mean())

    def rule(levels: Tensor, state: Tensor) -> Tensor:
        position = state.sum(-1)
        stores = own * mean + (fractile + levels[:, :1]) * std * own.sqrt()
        system = periods * mean.sum() + levels[:, 1:] * whole * math.sqrt(periods)
        wanted = torch.cat([system - position.sum(1, keepdim=True), stores - position[:, 1:]], 1)
        return wanted.clamp(min=0)

    steps = [i / 4 for i in range(-6, 9)]
    grid = torch.tensor([[a, b] for a in steps for b in steps])
    found = best(task, rule, grid, finalists=3)
    return found, judged(task, rule, found, traces=4096 if net.stores <= 5 else 512)
