"""Means and differences on the metric's own scale.

A log metric (a gap, a regret) is averaged and compared by its decimal logarithm: its mean is a geometric mean, its
t intervals are of the logarithm, and a difference is a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from polyrl.report.statistics import Estimate, mean_interval, paired_difference, paired_p_value
from polyrl.runtime.metric import Metric

FLOOR = 1e-16
"""Least value of a log metric: what lies below, zero among it, is the rounding of a double and counts as this."""


def on_scale(metric: Metric, values: Sequence[float]) -> list[float]:
    """Values as they are averaged: as they are, or their log10."""
    return [math.log10(max(value, FLOOR)) for value in values] if metric.scale == "log" else list(values)


def unlogged(estimate: Estimate) -> Estimate:
    """`10 ** x` of an estimate and its interval: a geometric mean, or a factor."""
    low, high = (None if x is None else 10**x for x in (estimate.low, estimate.high))
    return Estimate(10**estimate.value, low, high, estimate.n)


def mean(metric: Metric, values: Sequence[float]) -> Estimate:
    """Mean over seeds with its t interval, in the metric's unit; geometric for a log metric."""
    found = mean_interval(on_scale(metric, values))
    return unlogged(found) if metric.scale == "log" else found


def difference(metric: Metric, x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Paired difference `x - y` with its t interval; for a log metric of log10, so `unlogged` gives the factor."""
    return paired_difference(on_scale(metric, x), on_scale(metric, y))


def p_value(metric: Metric, x: Sequence[float], y: Sequence[float]) -> float | None:
    """Two-sided p value of the paired t test on the metric's scale, or None below three seeds."""
    return paired_p_value(on_scale(metric, x), on_scale(metric, y))


def below(estimate: Estimate) -> Estimate:
    """The estimate turned round: of `y - x` where it was of `x - y`."""
    low, high = (None if x is None else -x for x in (estimate.high, estimate.low))
    return Estimate(-estimate.value, low, high, estimate.n)
