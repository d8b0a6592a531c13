"""The drawings that a task asks for, with what is fitted to them: slopes of powers, humps of over-optimization."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import numpy as np

from polyrl.report.hump import LAWS, WORDS, fitted
from polyrl.report.runs import Comparison, Run
from polyrl.report.statistics import mean_interval


def chart_table(comparison: Comparison, keys: Collection[str], axes: Collection[str] = ()) -> list[dict[str, Any]]:
    """The drawings of which something was logged, with the slopes of powers and with fitted laws."""
    found = []
    for chart in comparison.charts:
        y = [key for key in chart.y if key in keys]
        if not y or chart.x not in (*keys, *axes):
            continue
        stated: dict[str, Any] = {**chart.stated(), "y": y}
        stated["slopes"] = {key: slopes(comparison, chart.x, key) for key in y} if chart.powers else {}
        if chart.fitted in y:
            stated["fits"] = {m: fits(comparison, m, chart.x, chart.fitted) for m in comparison.methods}
        found.append(stated)
    return found


def slopes(comparison: Comparison, x: str, key: str) -> dict[str, dict[str, Any]]:
    """By method: the mean over finished seeds, with its interval, of the slope of log `key` over log `x`.

    The slope is of the last decade of `x`, by least squares: of the order of a regret there is no more in its start.
    """
    found = {}
    for method in comparison.methods:
        runs = [run for run in comparison.of(method) if run.status == "finished"]
        each = [slope for run in runs if (slope := last_decade_slope(run, x, key)) is not None]
        if each:
            found[method] = asdict(mean_interval(each))
    return found


def last_decade_slope(run: Run, x: str, key: str) -> float | None:
    """The slope of log `key` over log `x` over the last decade of x; None for fewer than three points above 0."""
    across, up = run.records.column(x), run.records.column(key)
    good = (across > 0) & (up > 0)  # and neither is missing
    good[good] = across[good] >= across[good].max(initial=0) / 10
    across, up = np.log10(across[good]), np.log10(up[good])
    spread = ((across - across.mean()) ** 2).sum() if len(across) > 2 else 0.0
    return float(((across - across.mean()) * (up - up.mean())).sum() / spread) if spread > 0 else None


def fits(comparison: Comparison, method: str, x: str, y: str) -> list[dict[str, Any]]:
    """The laws of `polyrl.report.hump`, fitted to what a method's finished runs gained over their start.

    Each has `words`, `alpha`, `beta`, `rmse` and `points`, (x, y) along the law from the mean of the starts.
    """
    gained: list[tuple[float, float]] = []
    starts: list[float] = []
    for run in comparison.of(method):
        both = [(row[x], row[y]) for row in run.metrics if x in row and y in row]
        if run.status == "finished" and both:
            starts.append(both[0][1])
            gained += [(math.sqrt(max(0.0, a)), b - both[0][1]) for a, b in both]
    found = [hump for law in LAWS if (hump := fitted(gained, law))]
    if not found:
        return []
    start, far = sum(starts) / len(starts), max(d for d, _ in gained)
    along = [far * i / 60 for i in range(61)]
    return [
        {
            "words": WORDS[hump.law],
            "law": hump.law,
            "alpha": hump.alpha,
            "beta": hump.beta,
            "rmse": hump.rmse,
            "points": [[d * d, start + hump.at(d)] for d in along],
        }
        for hump in found
    ]
