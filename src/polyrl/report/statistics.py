"""Statistics of few seeds: intervals, paired differences, probability of improvement, interquartile mean.

The seed is the unit of every interval, never the episode. One task takes t intervals, which keep their 95% from three
seeds on; suites of tasks take the interquartile mean with a stratified bootstrap (rliable, arXiv:2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]

LEVEL = 0.95
LEAST_SEEDS = 3
"""Fewest seeds that get an interval in a table."""
LEAST_SEEDS_FOR_BAND = 5
"""Fewest seeds that get a band or an error bar in a drawing; below, a drawing shows points."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `low` and `high` are None where `n` seeds are too few for one."""

    value: float
    low: float | None
    high: float | None
    n: int

    def excludes(self, point: float) -> bool:
        """Return whether there is an interval and `point` lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= point <= self.high


def _vector(values: Sequence[float] | Array) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"one value a seed is wanted, shape [N] with N >= 1, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite: leave failed seeds out and count them")
    return array


def _matrix(scores: Sequence[Sequence[float]] | Array) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"scores are wanted as [N seeds, M tasks], not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite: leave failed seeds out and count them")
    return array


def t_factor(n: int, level: float = LEVEL) -> float:
    """Return the factor on the standard error of a mean of `n` values (n >= 2) that gives a two-sided interval."""
    return float(special.stdtrit(n - 1, 0.5 + level / 2))


def mean_interval(values: Sequence[float] | Array, level: float = LEVEL, least: int = LEAST_SEEDS) -> Estimate:
    """Mean of `values` [N] with a t interval, or without one below `least` seeds."""
    x = _vector(values)
    mean, n = float(x.mean()), int(x.size)
    if n < max(least, 2):
        return Estimate(mean, None, None, n)
    half = t_factor(n, level) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(x: Sequence[float] | Array, y: Sequence[float] | Array, level: float = LEVEL) -> Estimate:
    """Mean of `x - y` with a t interval; `x` [N] and `y` [N] hold the same seeds in the same order."""
    a, b = _vector(x), _vector(y)
    if a.shape != b.shape:
        raise ValueError(f"paired values need the same seeds on both sides, not {a.size} and {b.size}")
    return mean_interval(a - b, level)


def paired_p_value(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float | None:
    """Two-sided p value of the paired t test, or None below three seeds.

    Differences that are all the same number leave the test no noise to measure: 1 when they are zero, else 0.
    """
    a, b = _vector(x), _vector(y)
    if a.shape != b.shape:
        raise ValueError(f"paired values need the same seeds on both sides, not {a.size} and {b.size}")
    if a.size < LEAST_SEEDS:
        return None
    difference = a - b
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(a.size))
    return float(2 * special.stdtr(a.size - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values [K] for K comparisons (Holm 1979): compare the result with 0.05, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _superiority(x: Array, y: Array) -> Array:
    """Share of pairs with x > y, ties half: x [..., N, M] and y [..., K, M] give [...], the mean over M tasks."""
    left, right = x[..., :, None, :], y[..., None, :, :]
    return np.asarray(((left > right) + 0.5 * (left == right)).mean(axis=(-3, -2, -1)), dtype=np.float64)


def probability_of_improvement(x: Sequence[float] | Array, y: Sequence[float] | Array) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run of `x` [N] and a run of `y` [K] on one task, with a 95% interval.

    The estimate is the Mann-Whitney statistic over N * K (arXiv:2108.13264, section 4.3). The interval is Newcombe's
    score method (2006, method 5): unlike a bootstrap of five seeds it keeps a width when every pair agrees, and on
    simulated normal results it covers 94 to 97% at five seeds and 90 to 97% at three.
    The seeds are not paired here. `n` is the smaller of N and K; below three there is no interval.
    """
    a, b = _vector(x), _vector(y)
    value, least = float(_superiority(a[:, None], b[:, None])), int(min(a.size, b.size))
    if least < LEAST_SEEDS:
        return Estimate(value, None, None, least)
    from scipy import optimize  # whose import costs more than a page without intervals

    star, pairs = (a.size + b.size) / 2 - 1, a.size * b.size
    z = float(special.ndtri(0.5 + LEVEL / 2))

    def distance(theta: float) -> float:
        inner = 1 + star * (1 - theta) / (2 - theta) + star * theta / (1 + theta)
        return abs(theta - value) - z * math.sqrt(theta * (1 - theta) * inner / pairs)

    # The distance is negative just inside the interval and positive at 0 and 1, so each side holds one root.
    tiny = 1e-9
    low = 0.0 if value == 0 else float(optimize.brentq(distance, 0.0, min(value, 1 - tiny)))
    high = 1.0 if value == 1 else float(optimize.brentq(distance, max(value, tiny), 1.0))
    return Estimate(value, low, high, least)


def interquartile_mean(scores: Sequence[Sequence[float]] | Array) -> float:
    """Mean of the middle half of all entries of `scores` [N seeds, M tasks] (arXiv:2108.13264, section 4.2).

    A quarter of the entries, rounded down, is dropped at each end.
    """
    return float(_middle_mean(_matrix(scores).reshape(1, -1))[0])


def _middle_mean(values: Array) -> Array:
    """Mean of the middle half of each row `[R, n]`, of which a quarter, rounded down, is dropped at each end."""
    dropped = values.shape[1] // 4
    last = values.shape[1] - dropped
    parted = np.partition(values, (dropped, last - 1), axis=1)
    return np.asarray(parted[:, dropped:last].mean(axis=1), dtype=np.float64)


def stratified_bootstrap(
    scores: Sequence[Array],
    statistic: Callable[..., Array],
    seed: int = 0,
    resamples: int = 2000,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile interval of `statistic` when the seeds of every task are drawn anew, task by task.

    `scores` are matrices [N_i seeds, M tasks]; `statistic` takes them resampled as [R, N_i, M] and returns [R].
    The draws come from `numpy.random.default_rng(seed)`, so the interval is the same every time.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for matrix in map(_matrix, scores):
        rows, tasks = matrix.shape
        index = rng.integers(rows, size=(resamples, rows, tasks))
        drawn.append(matrix[index, np.arange(tasks)])
    low, high = np.quantile(statistic(*drawn), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def suite_interquartile_mean(scores: Sequence[Sequence[float]] | Array, seed: int = 0) -> Estimate:
    """Interquartile mean of `scores` [N seeds, M tasks] with a 95% stratified bootstrap interval.

    Scores of different tasks must be on one scale. Five seeds of a single task are too few for any bootstrap (it covers
    84%): use `mean_interval` there.
    """
    matrix = _matrix(scores)

    def middle(drawn: Array) -> Array:
        return _middle_mean(drawn.reshape(len(drawn), -1))

    low, high = stratified_bootstrap([matrix], middle, seed)
    return Estimate(interquartile_mean(matrix), low, high, len(matrix))


def suite_probability_of_improvement(
    x: Sequence[Sequence[float]] | Array, y: Sequence[Sequence[float]] | Array, seed: int = 0
) -> Estimate:
    """Probability of improvement of `x` [N, M] over `y` [K, M], averaged over M tasks, with its 95% interval."""
    a, b = _matrix(x), _matrix(y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sides need the same tasks, not {a.shape[1]} and {b.shape[1]}")
    low, high = stratified_bootstrap([a, b], _superiority, seed)
    return Estimate(float(_superiority(a, b)), low, high, int(min(len(a), len(b))))
