"""Looks at stated numbers of seeds, with error that is spent by a function fixed beforehand.

A one-sided group-sequential t test. The spending function is the one of Lan and DeMets (Biometrika 70, 1983) that comes
near O'Brien and Fleming: at a share t of the seeds it has spent 2 - 2 Phi(z(1 - alpha/2) / sqrt(t)), so early looks
decide only what is plain. The boundaries are those of a normal mean, found by integrating from look to look (Armitage,
McPherson and Rowe, 1969). Their tail probabilities are taken over to the t distribution of each look's own degrees of
freedom (Jennison and Turnbull, Group Sequential Methods, 2000, section 4.4). With few seeds that approximation spends
up to a twelfth too much, so several looks together are given `OF_ALPHA` of the error. A test simulates the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special

ALPHA = 0.025
"""Chance that one criterion is met, or fails, where its truth lies on the threshold: over all looks together."""
OF_ALPHA = 0.92
"""Share of the error that several looks spend by the normal boundaries; a single look is an exact t test."""
POWER = 0.8
"""Chance of a decision that an experiment is planned for, where the effect is the one that it expects."""
GRID = 801
"""Points on which a density is integrated, within `REACH` standard deviations."""
REACH = 9.0
MOST_SEEDS = 1000

Array = npt.NDArray[np.float64]


def spent(share: float, alpha: float = ALPHA) -> float:
    """The error that may be spent when a share of the seeds, 0 to 1, has been seen."""
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / np.sqrt(share)))


@cache
def levels(looks: tuple[int, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """The one-sided level of each look, by the numbers of seeds at which they are, rising.

    With one look it is `alpha`. A criterion is decided at a look if its one-sided t test there has a p-value of at most
    this level.
    """
    boundaries: list[float] = []
    grid: Array = np.zeros(0)
    density: Array = np.zeros(0)
    before, used = 0, 0.0
    for look in looks:
        target = spent(look / looks[-1], alpha if len(looks) == 1 else OF_ALPHA * alpha)
        step = float(np.sqrt(look - before))

        # the sum of all seeds so far, of those paths that no earlier look has ended
        def beyond(z: float, at: int = look, step: float = step, grid: Array = grid, density: Array = density) -> float:
            edge = z * np.sqrt(at)
            if not len(grid):
                return float(special.ndtr(-z))
            return float(np.trapezoid(density * special.ndtr((grid - edge) / step), grid))

        low, high = 0.0, REACH
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if beyond(middle) > target - used else (low, middle)
        boundaries.append(high)
        edge = high * np.sqrt(look)
        points = np.linspace(-REACH * np.sqrt(look), edge, GRID)
        kernel = (points[:, None] - grid[None]) / step if len(grid) else points[:, None] / step
        weight = np.exp(-0.5 * kernel**2) / (step * np.sqrt(2 * np.pi))
        density = np.trapezoid(weight * density, grid, axis=1) if len(grid) else weight[:, 0]
        grid, before, used = points, look, target
    return tuple(float(special.ndtr(-z)) for z in boundaries)


def factor(looks: Sequence[int], seeds: int, alpha: float = ALPHA) -> float:
    """How many standard errors the mean of `seeds` seeds, one of `looks`, must be beyond its threshold."""
    level = levels(tuple(looks), alpha)[list(looks).index(seeds)]
    return float(special.stdtrit(seeds - 1, 1 - level))


def power(looks: Sequence[int], effect: float, deviation: float, alpha: float = ALPHA) -> float:
    """The chance that the last look decides, where the mean lies `effect` beyond the threshold.

    Earlier looks can only add to it, by less than a hundredth. `deviation` is the standard deviation over seeds.
    """
    seeds = looks[-1]
    away = abs(effect) / deviation * np.sqrt(seeds)
    return float(1 - special.nctdtr(seeds - 1, away, factor(looks, seeds, alpha)))


def seeds_wanted(effect: float, deviation: float, alpha: float = ALPHA, chance: float = POWER) -> int:
    """The fewest seeds with which `evenly` placed looks have a power of `chance`, and `MOST_SEEDS` where none have.

    Args:
        effect: how far the expected mean lies beyond the threshold.
        deviation: of the number over seeds, from seeds that were tuned on.
        alpha: of one side.
    """
    low, high = 3, MOST_SEEDS
    if deviation <= 0 or effect == 0:
        return low if effect else high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(evenly(middle), effect, deviation, alpha) >= chance else (middle + 1, high)
    return low


def evenly(seeds: int) -> tuple[int, ...]:
    """Looks at a half, three quarters and all of the seeds; with fewer than ten only at all of them."""
    return (seeds,) if seeds < 10 else (round(seeds / 2), round(3 * seeds / 4), seeds)
