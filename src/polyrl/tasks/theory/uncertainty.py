"""What an adversary can do to an expectation: the inner problem of robust reinforcement learning, by its dual.

For one distribution q over next states, values V and a divergence D, the adversary either stays within a radius,
inf { E_p V : D(p || q) <= rho }, or pays for leaving, inf_p E_p V + lambda D(p || q). D is the total variation
(1/2 L1), the Kullback-Leibler divergence or chi2 = sum (p - q)^2 / q. Each has a dual in one scalar (arXiv:2403.09621
for the radius with TV, arXiv:2411.18612 for the penalties), and the dual reads q only through expectations: so the
same functions take estimated, signed "probabilities" such as the rows of a ridge regression.

A dual that is piecewise smooth in its scalar `a` is maximized exactly, over the kinks (the values themselves) and the
stationary points between them; only the KL radius needs a search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyrl.errors import UserError

Divergence = Literal["tv", "kl", "chi2"]
Constraint = Literal["radius", "penalty"]
DIVERGENCES: tuple[Divergence, ...] = ("tv", "kl", "chi2")
CONSTRAINTS: tuple[Constraint, ...] = ("radius", "penalty")

GRID = 96
"""Points of the search for the KL radius's dual variable before it is refined."""
REFINEMENTS = 48
"""Steps of golden-section search after the grid."""


@dataclass(frozen=True)
class Uncertainty:
    """A divergence and how much of it the adversary has.

    Attributes:
        divergence: "tv", "kl" or "chi2".
        constraint: "radius": the divergence is at most `level` (rho; 0 is no adversary); "penalty": the adversary
            pays `level` (lambda; infinite is no adversary) for each unit.
        level: rho or lambda.
    """

    divergence: Divergence = "tv"
    constraint: Constraint = "radius"
    level: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown divergences and impossible levels."""
        if self.divergence not in DIVERGENCES:
            raise UserError(f"There is no divergence '{self.divergence}'; it is one of {', '.join(DIVERGENCES)}.")
        if self.constraint not in CONSTRAINTS:
            raise UserError(f"There is no constraint '{self.constraint}'; it is one of {', '.join(CONSTRAINTS)}.")
        if math.isnan(self.level) or (self.constraint == "radius" and not 0 <= self.level < math.inf):
            raise UserError(f"The radius rho of the adversary is {self.level:g}; it must be a number from 0 on.")
        if self.constraint == "penalty" and not self.level > 0:
            raise UserError(f"The price lambda of the adversary is {self.level:g}; it must be above 0 (inf: none).")

    @property
    def none(self) -> bool:
        """Whether there is no adversary at all."""
        return self.level == (0 if self.constraint == "radius" else math.inf)

    def worst_case(
        self, weights: Tensor, values: Tensor, *, highest: float, floor: float = 0.0, centred: bool = False
    ) -> Tensor:
        """Worst expectation of `values` for each row of `weights`.

        Args:
            weights: `[m, S]` float64, distributions or estimates of them (then they may be signed and sum to less).
            values: `[S]` float64. The total variation may move mass to any of these states; KL and chi2 only within
                the support of the row.
            highest: largest value that there can be: what KL gives to a row without any mass.
            floor: KL with a radius searches its dual variable from here on. Above 0 for estimates, whose signed
                weights make no sense near 0; 0 for distributions, for which the limit is known.
            centred: KL estimates exp(-V/a) - 1 and adds the 1 back, so that a row without data gets the value 0
                instead of `highest`.

        Returns:
            `[m]` float64.
        """
        if self.none:
            return weights @ values
        if self.divergence == "kl":
            if self.constraint == "penalty":
                return _entropic(weights, values, torch.tensor([self.level]), highest, centred)[:, 0]
            return _kl_radius(weights, values, self.level, highest, floor, centred)
        if self.divergence == "tv" and self.constraint == "penalty":
            return weights @ values.clamp(max=float(values.min()) + self.level)
        # [V]_a = min(V, a): its first two moments are polynomials in a between the sorted values
        order = values.argsort()
        sorted_values, mass = values[order], weights[:, order]
        first, second = (mass * sorted_values).cumsum(1), (mass * sorted_values.square()).cumsum(1)
        above = mass.sum(1, keepdim=True) - mass.cumsum(1)
        if self.divergence == "tv":
            # piecewise linear: the kinks are the values; the smallest one takes the place of 0 in a fail-state dual
            dual = first + above * sorted_values - self.level * (sorted_values - sorted_values[0])
            return dual.max(1).values
        return _chi2(sorted_values, first, second, above, self)


def _entropic(weights: Tensor, values: Tensor, a: Tensor, highest: float, centred: bool) -> Tensor:
    """-a log E exp(-V / a) for each row and each `a` `[k]`: `[m, k]`, at most `highest`."""
    a = a.to(values.dtype)
    least = values.min()
    scaled = torch.exp(-(values - least) / a[:, None])  # [k, S], at most 1: no overflow for small a
    moment = weights @ scaled.T
    if centred:  # 1 + w (exp(-V/a) - 1), with exp(-V/a) = exp(-least/a) scaled
        moment = moment + (1 - weights.sum(1, keepdim=True)) * torch.exp(least / a)
    return _bounded_log(moment, a, least, highest)


def _bounded_log(moment: Tensor, a: Tensor, least: Tensor, highest: float) -> Tensor:
    """-a log(moment) + least, not above `highest` also where an estimated moment is not positive."""
    lowest = torch.exp((least - highest) / a)
    return least - a * torch.log(torch.maximum(moment, lowest).clamp(min=torch.finfo(moment.dtype).tiny))


def _kl_radius(weights: Tensor, values: Tensor, radius: float, highest: float, floor: float, centred: bool) -> Tensor:
    """sup over a > floor of -a log E exp(-V / a) - a rho, per row: a grid in log a, then golden section in it."""
    spread = max(float(values.max() - values.min()), 1e-12)
    # the maximizer is at most spread / rho: beyond, the slope -rho outweighs all that the log can still gain
    high = max(spread / radius, 2 * floor) * 2
    low = max(floor, high * 1e-8)
    grid = torch.logspace(math.log10(low), math.log10(high), GRID, dtype=values.dtype)
    heights = _entropic(weights, values, grid, highest, centred) - grid * radius
    best = heights.argmax(1)
    left, right = grid[(best - 1).clamp(min=0)].log(), grid[(best + 1).clamp(max=GRID - 1)].log()
    ratio = (math.sqrt(5) - 1) / 2
    least = values.min()

    def height(log_a: Tensor) -> Tensor:
        a = log_a.exp()
        moment = (weights * torch.exp(-(values - least) / a[:, None])).sum(1)
        if centred:
            moment = moment + (1 - weights.sum(1)) * torch.exp(least / a)
        return _bounded_log(moment, a, least, highest) - a * radius

    x, y = right - ratio * (right - left), left + ratio * (right - left)
    at_x, at_y = height(x), height(y)
    for _ in range(REFINEMENTS):
        lower = at_x > at_y  # the maximum lies left of y
        left, right = torch.where(lower, left, x), torch.where(lower, y, right)
        x_new, y_new = right - ratio * (right - left), left + ratio * (right - left)
        x, y = torch.where(lower, x_new, y), torch.where(lower, x, y_new)
        fresh = height(torch.where(lower, x, y))
        at_x, at_y = torch.where(lower, fresh, at_y), torch.where(lower, at_x, fresh)
    found = torch.maximum(heights.max(1).values, torch.maximum(at_x, at_y))
    if floor == 0:  # the limit a -> 0: all mass on the worst state of the support
        limit = torch.where(weights > 0, values, torch.inf).min(1).values
        found = torch.maximum(found, torch.where(limit.isfinite(), limit, found))
    return found


def _chi2(values: Tensor, first: Tensor, second: Tensor, above: Tensor, what: Uncertainty) -> Tensor:
    """Exact maximum over `a` of both chi2 duals.

    Between the sorted values v_k <= a <= v_{k+1}, with E the (signed) expectation and b the mass above v_k,
    E[V]_a = f + b a and E[V]_a^2 = s + b a^2, so the "variance" is c0 + c1 a + c2 a^2.
    """
    lower, upper = values.expand_as(first), torch.cat([values[1:], values[-1:]]).expand_as(first)
    c0, c1, c2 = second - first.square(), -2 * first * above, above - above.square()
    if what.constraint == "penalty":  # maximize f + b a - variance / (4 lambda): a parabola
        stationary = [(4 * what.level * above - c1) / (2 * c2)]
    else:  # maximize f + b a - sqrt(rho variance): squared, 4 b^2 Q = rho Q'^2; and where the variance turns negative
        rho, b2 = what.level, above.square()
        stationary = [
            *_roots(4 * c2 * (rho * c2 - b2), 4 * c1 * (rho * c2 - b2), rho * c1.square() - 4 * b2 * c0),
            *_roots(c2, c1, c0),
        ]
    heights = []
    for a in (lower, upper, *stationary):
        inside = torch.where(a.isfinite(), a, lower).clamp(lower, upper)
        variance = c0 + c1 * inside + c2 * inside.square()
        cost = (
            variance / (4 * what.level) if what.constraint == "penalty" else (what.level * variance.clamp(min=0)).sqrt()
        )
        heights.append((first + above * inside - cost).max(1).values)
    return torch.stack(heights).max(0).values


def _roots(quadratic: Tensor, linear: Tensor, constant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Real roots of a quadratic, and that of its linear part; not finite where there is none."""
    root = (linear.square() - 4 * quadratic * constant).sqrt()
    return (-linear + root) / (2 * quadratic), (-linear - root) / (2 * quadratic), -constant / linear
