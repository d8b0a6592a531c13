"""The picture of a verdict: learning curves of the arms, and each criterion's seeds with their interval and threshold.

It is described from a ledger entry alone, so it can be drawn again without a run. Needs the extra `figures`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyrl.report.drawing import save
from polyrl.report.labels import axis_label
from polyrl.report.scale import mean
from polyrl.report.statistics import LEAST_SEEDS_FOR_BAND
from polyrl.reproduction.quantities import named as called
from polyrl.reproduction.words import criterion_digits, estimate_text, signed, standing, threshold_text
from polyrl.runtime.drawing import Axis, Curves, Dot, Line, Placed, Point, Row, Rows, Series, Sheet, Words
from polyrl.runtime.metric import Metric
from polyrl.tasks import domain_of

MARGIN, GAP = 16, 36
"""Pixels around everything, and between curves and criteria."""
CURVES_WIDTH, LEAST_HEIGHT, GRID_POINTS = 570, 300, 40
STRIP_WIDTH, STRIP_HEIGHT, STRIP_GAP = 340, 62, 20
"""Of one criterion with its axis, and the room above the next."""


def save_picture(entry: Mapping[str, Any], file: Path, scale: float = 2) -> Path:
    """Draw an entry's picture into an SVG or PNG file; return the file.

    Raises:
        UserError: the extra `figures` is not installed.
    """
    return save(describe(entry), file, scale)


def describe(entry: Mapping[str, Any]) -> Sheet:
    """The picture: the claim and its verdict above, curves at the left, criteria at the right."""
    curves = _curves(entry)
    left = MARGIN + (CURVES_WIDTH + GAP if curves is not None else 0)
    heading = Words(lines=textwrap.wrap(entry["claim"], 104 if curves is not None else 42), size=15, weight=600)
    verdict = Words(
        lines=[f"{entry['slug']}, {entry['source']}: {entry['verdict']}"],
        size=14,
        weight=600,
        tone=entry["verdict"] if entry["verdict"] in ("confirmed", "refuted") else "inconclusive",
    )
    top = MARGIN + heading.height + 4
    items: list[Placed] = [(MARGIN, MARGIN, heading), (MARGIN, top, verdict)]
    begin = y = top + verdict.height + 22
    for criterion in entry["criteria"]:
        for words in _strip_words(criterion):
            items.append((left, y, words))
            y += words.height + 2
        items.append((left, y + 5, _strip(criterion)))
        y += 5 + STRIP_HEIGHT + STRIP_GAP
    several = len(entry["seeds"]) > 1
    legend = "dots: seeds · bar: 95% t interval · shaded: wanted" if several else "shaded: wanted"
    items.append((left, y, Words(lines=[legend], size=12, tone="soft")))
    height = y + 16
    if curves is not None:
        words = Words(lines=[_curves_words(entry)], size=12.5, tone="soft")
        drawn = curves(int(max(LEAST_HEIGHT, height - begin - 24)))
        items += [(MARGIN, begin, words), (MARGIN, begin + 24, drawn)]
        height = max(height, begin + 24 + drawn.height)
    width = int(left + STRIP_WIDTH + MARGIN)
    label = f"{entry['claim']} {entry['slug']}: {entry['verdict']}"
    return Sheet(width=width, height=int(height + MARGIN), label=label, items=items)


# ---------------------------------------------------------------------------------------------------------- curves


def _mean_curves(arm: Mapping[str, Any], start: float, scale: Metric) -> list[dict[str, float]]:
    """Mean over seeds on a common grid of x, from a share `start` of it on, with a t interval from five seeds on.

    Where `scale` is logarithmic, the mean is geometric and the interval is that of the logarithm.
    """
    curves = [(r["curve"]["x"], r["curve"]["y"]) for r in arm["runs"] if r["curve"]["x"]]
    if not curves:
        return []
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    first = max(first, start * last)
    same = all(x == curves[0][0] for x, _ in curves)
    grid = [x for x in curves[0][0] if first <= x <= last] if same else list(np.linspace(first, last, GRID_POINTS))
    rows = []
    for x in grid:
        values = [float(np.interp(x, xs, ys)) for xs, ys in curves]
        found = mean(scale, values)
        row = {"x": float(x), "y": found.value, "low": found.value, "high": found.value}
        if found.n >= LEAST_SEEDS_FOR_BAND and found.low is not None and found.high is not None:
            # beyond the seeds' own range the interval speaks of values that no run had, such as costs below 0
            row |= {"low": max(found.low, min(values)), "high": min(found.high, max(values))}
        rows.append(row)
    return rows


def _scale(entry: Mapping[str, Any]) -> Metric:
    """What the curves are averaged on: a curve of another quantity than the metric has no logarithm promised."""
    metric = Metric.read(entry["metric"])
    return metric if entry["curve"]["key"] == metric.key else Metric()


def _drawn_arms(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Arms that share the first one's task and budget, and are to be drawn."""
    main = entry["arms"][0]
    return [a for a in entry["arms"] if (a["task"], a["budget"]) == (main["task"], main["budget"]) and a["drawn"]]


def _curves_words(entry: Mapping[str, Any]) -> str:
    seeds = len(entry["arms"][0]["runs"])
    what = "geometric mean over seeds" if _scale(entry).scale == "log" else "mean over seeds"
    what += ", band: 95% t interval within the seeds' range" if seeds >= LEAST_SEEDS_FOR_BAND else ""
    alone = "one exact run" if entry["exact"] else f"seed {entry['seeds'][0]}"
    return f"{seeds} seeds; {what}" if seeds > 1 else alone


def _curves(entry: Mapping[str, Any]) -> Callable[[int], Curves] | None:
    """Curves of the arms, by their height; None where they logged nothing."""
    metric, scale = Metric.read(entry["metric"]), _scale(entry)
    arms = _drawn_arms(entry)
    found = {arm["name"]: _mean_curves(arm, entry["curve"]["from"], scale) for arm in arms}
    rows = [row for of in found.values() for row in of]
    if len({row["x"] for row in rows}) < 2:
        return None
    logarithmic = metric.scale == "log" and all(row["y"] > 0 for row in rows)
    least = min(row["y"] for row in rows) / 2

    def unit(value: float) -> float:
        return math.log10(max(value, least)) if logarithmic else value

    named = entry["curve"]["key"]
    shown = {n: v for n, v in metric.lines.items() if named == metric.key and (v > 0 or not logarithmic)}
    low = unit(min([r["low"] for r in rows] + list(shown.values())))
    high = unit(max([r["high"] for r in rows] + list(shown.values())))
    room = 0.0 if logarithmic else 0.07 * (high - low or 1)
    banded = len(arms[0]["runs"]) >= LEAST_SEEDS_FOR_BAND
    series = [
        Series(
            name=name,
            look=look,
            band=[(r["x"], unit(r["low"]), unit(r["high"])) for r in of] if banded else None,
            mean=[(r["x"], unit(r["y"])) for r in of],
            end=(of[-1]["x"], unit(of[-1]["y"])),
        )
        for look, (name, of) in enumerate(found.items())
        if of
    ]
    x = Axis(
        domain=(min(r["x"] for r in rows), max(r["x"] for r in rows)),
        title=axis_label(domain_of(entry["arms"][0]["task"]), entry["curve"]["x"])[0].lower(),
    )
    title = called(named, metric) + (f" ({metric.unit})" if metric.unit and named == metric.key else "")
    y = Axis(domain=(low - room, high + room or low + 1), title=title, log=logarithmic)
    merged = _merged(shown, 0.05 * (high - low), logarithmic)
    lines = [
        Line(name=name, value=unit(value), target=metric.target in name.split(", ")) for name, value in merged.items()
    ]
    return lambda height: Curves(
        width=CURVES_WIDTH, height=height, x=x, y=y, series=series, lines=lines, beside=0, alone=True
    )


def _merged(shown: Mapping[str, float], near: float, logarithmic: bool) -> dict[str, float]:
    """Lines by their names; those that are too near each other to be named apart share one name, at the lowest."""
    found: list[tuple[list[str], float]] = []
    for name, value in sorted(shown.items(), key=lambda item: item[1]):
        if found and value - found[-1][1] < near and not logarithmic:
            found[-1][0].append(name)
        else:
            found.append(([name], value))
    return {", ".join(names): value for names, value in found}


# ---------------------------------------------------------------------------------------------------------- strips


def _strip(criterion: Mapping[str, Any]) -> Rows:
    """One criterion: a point a seed, the interval, and the threshold with the side that it asks for."""
    values = list(criterion["per_seed"].values())
    estimate, least = criterion["estimate"], criterion["at_least"] is not None
    threshold = criterion["at_least"] if least else criterion["at_most"]
    bar: Point | None = None
    if estimate is not None and estimate["low"] is not None and estimate["n"] > 1:
        bar = (estimate["low"], estimate["high"])
    ends = [threshold, *values, *(bar or ()), *([estimate["value"]] if estimate else [])]
    low, high = min(ends), max(ends)
    room = 0.08 * ((high - low) or abs(high) or 1)
    low, high = low - room, high + room
    row = Row(
        tone=criterion["outcome"],
        value=None if estimate is None else estimate["value"],
        bar=bar,
        dots=[Dot(value=value) for value in values],
    )
    return Rows(
        width=STRIP_WIDTH,
        domain=(low, high),
        items=[row],
        lines=[Line(name="", value=threshold, target=True)],
        shade=(threshold, high) if least else (low, threshold),
        bare=True,
    )


def _strip_words(criterion: Mapping[str, Any]) -> tuple[Words, Words]:
    """What the criterion is called, and what came of it."""
    unit = f" {criterion['unit']}" if criterion["unit"] else ""
    numbers = estimate_text(criterion["estimate"], criterion_digits(criterion), signed(criterion))
    said = f"{numbers}{unit}; wanted {threshold_text(criterion)}: {criterion['outcome']}"
    behind = standing(criterion)
    name = f"{criterion['name']} ({behind})" if behind else criterion["name"]
    weight = 600 if criterion["primary"] else 400
    return (
        Words(lines=textwrap.wrap(name, 41), size=13.5, weight=weight),
        Words(lines=textwrap.wrap(said, 54), size=12, tone=criterion["outcome"]),
    )
