"""Exact optima and bounds of inventory settings: cost per period and store, in the simulator's accounting.

All are in float64. An order of period t serves demand of period t + L, so a level must cover L + 1 periods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, poisson

Array = NDArray[np.float64]


# ----------------------------------------------------------------------------------------------- one store, backlog


def newsvendor(lead_time: int, penalty: float, mean: float, std: float, holding: float = 1.0) -> tuple[float, float]:
    """Best base-stock level and its cost for one store with backlog and normal demand (not clipped): the optimum.

    S* = (L+1) mu + z sigma sqrt(L+1) with z = Phi^-1(p / (p+h)), and C* = (h+p) phi(z) sigma sqrt(L+1).
    """
    spread = std * math.sqrt(lead_time + 1)
    z = float(norm.ppf(penalty / (penalty + holding)))
    return (lead_time + 1) * mean + z * spread, (holding + penalty) * float(norm.pdf(z)) * spread


def base_stock_cost(
    level: float, lead_time: int, penalty: float, mean: float, std: float, holding: float = 1.0
) -> tuple[float, float]:
    """Cost of a base-stock level, and its derivative, in the setting of `newsvendor`.

    C(S) = h (S - m) + (h+p) s (phi(k) - k (1 - Phi(k))) and C'(S) = (h+p) Phi(k) - p, with m = (L+1) mu,
    s = sigma sqrt(L+1) and k = (S - m) / s.
    """
    centre, spread = (lead_time + 1) * mean, std * math.sqrt(lead_time + 1)
    k = (level - centre) / spread
    missing = spread * float(norm.pdf(k) - k * norm.sf(k))
    slope = (holding + penalty) * float(norm.cdf(k)) - penalty
    return holding * (level - centre + missing) + penalty * missing, slope


# ------------------------------------------------------------------------------------------------------ lost sales


@dataclass(frozen=True)
class LostSalesOptimum:
    """Solution of the lost-sales problem.

    Attributes:
        cost: the optimal average cost per period.
        order: int64 `[on hand, second slot, ..., last slot]`: the optimal order in every state.
    """

    cost: float
    order: NDArray[np.int64]


@lru_cache(maxsize=32)
def lost_sales(
    lead_time: int, penalty: float, mean: float, holding: float = 1.0, ordering_cost: float = 0.0
) -> LostSalesOptimum:
    """Relative value iteration for one store with lost sales, Poisson demand and whole orders; exact to 1e-6.

    The state is what is on hand and what arrives in 1, ..., L-1 periods. Two bounds keep it finite: no order beyond the
    newsvendor's for one period pays (one unit more helps only in the period in which it arrives; for later ones it
    could have been ordered later), and no stock beyond the base-stock level of the backlog problem is ever reached.
    Where an order costs something by itself, the bounds are raised until the optimal orders stay below them. With
    Poisson(5) and L = 3 it takes 0.03 seconds; every period more multiplies that by the number of possible orders.
    """
    ratio = penalty / (penalty + holding)
    most = int(poisson.ppf(ratio, mean)) + 1 + math.ceil(math.sqrt(2 * ordering_cost * mean / holding))
    while True:
        top = max(int(poisson.ppf(ratio, (lead_time + 1) * mean)), most) + most
        found = _lost_sales(lead_time, penalty, mean, holding, ordering_cost, most, top)
        if not ordering_cost or found.order.max() < most:
            return found
        most = math.ceil(1.5 * most)


def _lost_sales(
    lead_time: int, penalty: float, mean: float, holding: float, ordering_cost: float, most: int, top: int
) -> LostSalesOptimum:
    """Relative value iteration with orders up to `most` and stock on hand up to `top`."""
    stock = np.arange(top + 1)
    # after[i, j]: probability that j are left of i once demand is lost or met
    after = np.tril(poisson.pmf(stock[:, None] - stock[None, :], mean))
    after[:, 0] = poisson.sf(stock - 1, mean)
    left = after @ stock
    cost = holding * left + penalty * (mean - (stock - left))  # sold = on hand - left
    orders = most + 1
    value = np.zeros((top + 1, *([orders] * (lead_time - 1))))
    shape = (-1, *([1] * (lead_time - 1)))
    arrivals = np.minimum(stock[:, None] + np.arange(orders), top)
    while True:
        if lead_time == 1:  # the order itself joins what is left: [on hand, order]
            future = after @ value[arrivals]
        else:  # [on hand, arriving, ..., order]: the first slot arrives, the others move up, the order comes last
            future = np.stack([np.tensordot(after, value[arrivals[:, a]], 1) for a in range(orders)], 1)
        future[..., 1:] += ordering_cost
        update = cost.reshape(shape) + future.min(-1)
        change = update - value
        low, high = float(change.min()), float(change.max())
        if high - low < 1e-6:
            return LostSalesOptimum((low + high) / 2, future.argmin(-1))
        value = update - update.flat[0]


# ----------------------------------------------------------------------------------------------------- serial chain


@dataclass(frozen=True)
class SerialOptimum:
    """Solution of the serial problem.

    Attributes:
        cost: optimal cost per period, without what is in transit.
        in_transit: what the goods in transit would cost at their supplier's rate: a constant of the setting.
        levels: optimal echelon base-stock levels, from the top to the store, units.
    """

    cost: float
    in_transit: float
    levels: tuple[float, ...]


@lru_cache(maxsize=32)
def clark_scarf(
    lead_times: tuple[int, ...],
    holding: tuple[float, ...],
    penalty: float,
    mean: float,
    std: float,
    clipped: bool = True,
    grid: float = 0.05,
) -> SerialOptimum:
    """Clark and Scarf's decomposition (1960) of a chain with backlog and normal demand, on a grid of inventories.

    With echelon costs e_k = h_k - h_(k-1), counted from the top, and the store first:

        G_1(y) = e_1 (y - (L_1 + 1) mu) + (p + h_1) E[(D_(L_1 + 1) - y)+]
        G_k(y) = e_k (y - (L_k + 1) mu) + E[G_(k-1)(min(S_(k-1), y - D_(L_k)))],      S_k = argmin G_k,

    where D_L is the demand of L periods. The optimal cost is G(S) at the top; it charges goods in transit at their
    supplier's holding cost, which no policy can change and which is taken off.

    Args:
        lead_times, holding: from the top to the store; holding costs must not fall on the way.
        penalty, mean, std: of the store, and its demand, which is `clipped` at 0 or not.
        grid: step of the grid, units.
    """
    one = _normal_masses(mean, std, clipped, grid)
    mean = float(one.masses @ one.points)
    chain = list(zip(lead_times, holding, (0.0, *holding[:-1]), strict=True))[::-1]
    total = sum(lead_times) + 1
    top = math.ceil((total * mean + 8 * std * math.sqrt(total)) / grid)
    # echelon stock may be negative: far enough below 0 that what happens there has no weight
    bottom = -math.ceil((6 * mean + 8 * std * math.sqrt(total)) / grid)
    stock: Array = np.arange(bottom, top + 1, dtype=np.float64) * grid
    levels: list[float] = []
    induced: Array | None = None
    for lead, own, above in chain:
        extra = (own - above) * (stock - (lead + 1) * mean)
        if induced is None:
            demand = one.sum(lead + 1)
            short = np.maximum(demand.points[:, None] - stock[None, :], 0)
            cost = extra + (penalty + own) * (demand.masses @ short)
        else:
            demand = one.sum(lead)
            cost = extra + demand.expect_behind(stock, np.where(stock > levels[-1], induced.min(), induced))
        best = int(cost.argmin())
        levels.append(float(stock[best]))
        induced = cost
    assert induced is not None
    transit = sum(above * lead * mean for lead, _, above in chain)
    return SerialOptimum(float(induced.min()) - transit, transit, tuple(levels[::-1]))


@dataclass(frozen=True)
class _Masses:
    """A distribution on grid points."""

    points: Array
    masses: Array

    def sum(self, periods: int) -> _Masses:
        """Distribution of the sum of `periods` independent draws."""
        step = float(self.points[1] - self.points[0])
        masses = self.masses
        for _ in range(periods - 1):
            masses = np.convolve(masses, self.masses)
        kept = masses > 1e-14  # the tails have no weight
        first, last = int(kept.argmax()), len(kept) - int(kept[::-1].argmax())
        points = periods * self.points[0] + step * np.arange(first, last)
        return _Masses(points, masses[first:last] / masses[first:last].sum())

    def expect_behind(self, stock: Array, values: Array) -> Array:
        """E[f(y - D)] at every grid point y; below the grid, f goes on as a straight line."""
        step = stock[1] - stock[0]
        shift = np.round(self.points / step).astype(int)
        low, high = min(int(-shift.max()), 0), max(int(-shift.min()), 0)
        slope = values[1] - values[0]
        before = values[0] + slope * np.arange(low, 0)
        behind = np.concatenate([before, values, np.full(high, values[-1])])
        kernel = np.zeros(high - low + 1)
        kernel[-shift - low] = self.masses
        return np.correlate(behind, kernel, "valid")


def _normal_masses(mean: float, std: float, clipped: bool, grid: float) -> _Masses:
    """Normal demand on a grid; each point holds the mass of the half steps around it."""
    reach = math.ceil(8 * std / grid)
    centre = round(mean / grid)
    points: Array = np.arange(centre - reach, centre + reach + 1, dtype=np.float64) * grid
    masses = norm.cdf(points + grid / 2, mean, std) - norm.cdf(points - grid / 2, mean, std)
    if clipped:
        masses[np.abs(points) < grid / 2] += masses[points < -grid / 2].sum()
        points, masses = points[points > -grid / 2], masses[points > -grid / 2]
        points[0] = max(points[0], 0.0)
    return _Masses(points, masses / masses.sum())


# --------------------------------------------------------------------------------------------------- transshipment


def transshipment_bound(
    std: Sequence[float],
    correlation: float,
    store_lead_time: int,
    warehouse_lead_time: int,
    penalty: float,
    holding: float = 1.0,
) -> float:
    """Lower bound on the cost per store of a warehouse that may not keep stock, with backlog and normal demand.

    Were stores allowed to trade stock at no cost, the system would be one newsvendor:
    (h+p) phi(z) sqrt(L_w 1'Sigma 1 + (L_s + 1) (sum_i sigma_i)^2) / n. Dealing out equal fractiles comes within 0.2%.
    """
    s = np.asarray(std, dtype=np.float64)
    together = correlation * s.sum() ** 2 + (1 - correlation) * (s**2).sum()
    z = float(norm.ppf(penalty / (penalty + holding)))
    spread = math.sqrt(warehouse_lead_time * together + (store_lead_time + 1) * s.sum() ** 2)
    return (holding + penalty) * float(norm.pdf(z)) * spread / len(s)
