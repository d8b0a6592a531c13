"""The picture of a verdict: learning curves of the arms, and each criterion's seeds with their interval and threshold.

It is drawn from a ledger entry alone, so it can be drawn again without a run. Needs the extra `figures`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyrl.errors import UserError
from polyrl.report.labels import axis_label
from polyrl.report.scale import mean
from polyrl.report.statistics import LEAST_SEEDS_FOR_BAND
from polyrl.reproduction.quantities import named as called
from polyrl.reproduction.words import criterion_digits, estimate_text, signed, threshold_text
from polyrl.runtime.metric import Metric
from polyrl.tasks import domain_of

PALETTE = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#64748b", "#be185d")
"""Of arms, in their order; told apart also by people who see few colours, and labelled in place."""
VERDICT_COLOURS = {"confirmed": "#15803d", "refuted": "#b91c1c"}
OUTCOME_COLOURS = {"met": "#15803d", "failed": "#b91c1c", "open": "#a16207"}
INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
CURVE_WIDTH, GRID_POINTS = 430, 40
STRIP_WIDTH, STRIP_HEIGHT = 330, 40
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"


def import_altair() -> Any:
    """The drawing library.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError:
        raise UserError(
            "The picture needs the extra `figures`: pip install 'polyrl[figures]', then give the same command again."
        ) from None
    return altair


def save_picture(entry: Mapping[str, Any], file: Path, scale: float = 2) -> Path:
    """Draw an entry's picture into an SVG or PNG file; return the file.

    Raises:
        UserError: the extra `figures` is not installed.
    """
    chart = draw(entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        chart.save(str(file), scale_factor=scale)
    else:
        chart.save(str(file))
    return file


def draw(entry: Mapping[str, Any]) -> Any:
    """The picture as an Altair chart: the claim and its verdict above, curves at the left, criteria at the right."""
    alt = import_altair()
    strips = [_strip(alt, c) for c in entry["criteria"]]
    right = alt.vconcat(*strips, _legend(alt, entry), spacing=22)
    curves = _curves(alt, entry, max(250, 108 * len(strips) - 60))
    chart = alt.hconcat(curves, right, spacing=40) if curves is not None else right
    wide = 100 if curves is not None else 46
    heading = alt.Title(
        textwrap.wrap(entry["claim"], wide),
        subtitle=f"{entry['slug']}, {entry['source']}: {entry['verdict']}",
        subtitleColor=VERDICT_COLOURS.get(entry["verdict"], OUTCOME_COLOURS["open"]),
        subtitleFontSize=14,
        subtitleFontWeight="bold",
        subtitlePadding=6,
        fontSize=15,
        offset=20,
    )
    return chart.properties(title=heading).configure(
        font=FONT,
        background="white",
        padding={"left": 14, "right": 14, "top": 12, "bottom": 12},
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=FAINT, titleColor=INK, gridColor=GRID, domainColor="#9ca3af", tickColor="#9ca3af",
            labelFontSize=12, titleFontSize=13, titleFontWeight="normal", titlePadding=8,
        ),
        title=alt.TitleConfig(color=INK, anchor="start", fontSize=14, subtitleColor=FAINT, subtitleFontSize=12),
    )  # fmt: skip


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


def _curves(alt: Any, entry: Mapping[str, Any], height: int) -> Any:
    """Curves of the arms that share the first arm's task; None where they logged nothing."""
    metric = Metric.read(entry["metric"])
    main = entry["arms"][0]
    same = [a for a in entry["arms"] if (a["task"], a["budget"]) == (main["task"], main["budget"])]
    arms = [a for a in same if a["drawn"]]
    # a curve of another quantity than the metric has no logarithm promised
    scale = metric if entry["curve"]["key"] == metric.key else Metric()
    rows = [{**row, "arm": arm["name"]} for arm in arms for row in _mean_curves(arm, entry["curve"]["from"], scale)]
    if len({row["x"] for row in rows}) < 2:
        return None
    logarithmic = metric.scale == "log" and all(row["y"] > 0 for row in rows)
    if logarithmic:
        least = min(row["y"] for row in rows)
        rows = [{**row, "low": max(row["low"], least / 2)} for row in rows]
    named = entry["curve"]["key"]
    title = called(named, metric) + (f" ({metric.unit})" if metric.unit and named == metric.key else "")
    names = [a["name"] for a in arms]
    colour = alt.Color("arm:N", scale=alt.Scale(domain=names, range=list(PALETTE[: len(names)])), legend=None)
    shown = {n: v for n, v in metric.lines.items() if named == metric.key and (v > 0 or not logarithmic)}
    low = min([r["low"] for r in rows] + list(shown.values()))
    high = max([r["high"] for r in rows] + list(shown.values()))
    room = 0.0 if logarithmic else 0.07 * (high - low or 1)
    y = alt.Y(
        "y:Q",
        title=title,
        scale=alt.Scale(
            type="log" if logarithmic else "linear", domain=[low - room, high + room], nice=False, zero=False
        ),
        axis=_height_axis(alt, logarithmic, low, high),
    )
    x = alt.X(
        "x:Q",
        title=axis_label(domain_of(main["task"]), entry["curve"]["x"])[0].lower(),
        axis=alt.Axis(grid=False, tickCount=5, labelExpr="datum.value ? format(datum.value, '~s') : '0'"),
        scale=alt.Scale(nice=False),
    )
    base = alt.Chart(alt.Data(values=rows))
    layers = [
        base.mark_area(opacity=0.14).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour),
        _line_layer(alt, _merged(shown, 0.05 * (high - low), logarithmic), y),
        _label_layer(alt, rows, names, colour, logarithmic, low - room, high + room, height),
    ]
    seeds = len(main["runs"])
    what = "geometric mean over seeds" if scale.scale == "log" else "mean over seeds"
    what += ", band: 95% t interval within the seeds' range" if seeds >= LEAST_SEEDS_FOR_BAND else ""
    alone = "one exact run" if entry["exact"] else f"seed {entry['seeds'][0]}"
    heading = alt.Title(f"{seeds} seeds; {what}" if seeds > 1 else alone, fontSize=12.5, fontWeight="normal")
    kept = [layer for layer in layers if layer is not None]
    return alt.layer(*kept).properties(width=CURVE_WIDTH, height=height, title=heading)


def _height_axis(alt: Any, logarithmic: bool, low: float, high: float) -> Any:
    """The axis of the curves' values; a logarithmic one has its lines at round numbers only."""
    if not logarithmic:
        return alt.Axis(tickCount=6, domain=False, ticks=False)
    values = log_ticks(low, high)
    words = "datum.value >= 1e-3 && datum.value < 1e5 ? format(datum.value, '~g') : format(datum.value, '.0e')"
    return alt.Axis(values=values, domain=False, ticks=False, labelExpr=words)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], every second or further where they are many, also 2 and 5 where they are few."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 8))
    digits = (1,) if last - first >= 2 else (1, 2, 5)
    found = [float(f"{d}e{e}") for e in range(first - 1, last + 1) for d in digits if (e - first) % step == 0]
    return [v for v in found if low <= v <= high]


def _merged(shown: Mapping[str, float], near: float, logarithmic: bool) -> dict[str, float]:
    """Lines by their names; those that are too near each other to be named apart share one name, at the lowest."""
    found: list[tuple[list[str], float]] = []
    for name, value in sorted(shown.items(), key=lambda item: item[1]):
        if found and value - found[-1][1] < near and not logarithmic:
            found[-1][0].append(name)
        else:
            found.append(([name], value))
    return {", ".join(names): value for names, value in found}


def _line_layer(alt: Any, shown: Mapping[str, float], y: Any) -> Any:
    """Reference values as dashed lines, named at the right."""
    if not shown:
        return None
    data = alt.Data(values=[{"y": value, "name": name, "x": 0.0} for name, value in shown.items()])
    rule = alt.Chart(data).mark_rule(strokeDash=[5, 4], color=FAINT, strokeWidth=1.2).encode(y=y)
    words = alt.Chart(data).mark_text(align="right", baseline="bottom", dy=-3, color=FAINT, fontSize=12)
    return rule + words.encode(y=y, x=alt.value(CURVE_WIDTH), text="name:N")


def _label_layer(
    alt: Any,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    colour: Any,
    logarithmic: bool,
    low: float,
    high: float,
    height: int,
) -> Any:
    """The arm's name at the end of its curve, moved apart where two would overlap."""
    ends = {name: [r for r in rows if r["arm"] == name][-1] for name in names if any(r["arm"] == name for r in rows)}

    def pixel(value: float) -> float:
        a, b, v = (math.log(t) if logarithmic else t for t in (low, high, value))
        return height * (1 - (v - a) / ((b - a) or 1))

    places = spread_apart([pixel(e["y"]) for e in ends.values()], 15, height)
    data = [{"arm": n, "at": p} for n, p in zip(ends, places, strict=True)]
    layers = [
        alt.Chart(alt.Data(values=[row]))
        .mark_text(align="left", dx=8, fontSize=12.5, fontWeight="bold")
        .encode(x=alt.value(CURVE_WIDTH), y=alt.value(row["at"]), text="arm:N", color=colour)
        for row in data
    ]
    return alt.layer(*layers)


def spread_apart(places: Sequence[float], gap: float, height: float) -> list[float]:
    """Positions in `[0, height]`, each as near to its own as a distance of `gap` between neighbours allows."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [min(max(places[i], 0.0), height) for i in order]
    for _ in range(200):
        worst = 0.0
        for i in range(len(moved) - 1):
            lack = gap - (moved[i + 1] - moved[i])
            if lack > 0:
                worst = max(worst, lack)
                moved[i] -= lack / 2
                moved[i + 1] += lack / 2
        if worst < 0.1:
            break
    result = [0.0] * len(places)
    for position, i in zip(moved, order, strict=True):
        result[i] = position
    return result


# ---------------------------------------------------------------------------------------------------------- strips


def _strip(alt: Any, criterion: Mapping[str, Any]) -> Any:
    """One criterion: a point a seed, the interval, and the threshold with the side that it asks for."""
    values = list(criterion["per_seed"].values())
    estimate, least = criterion["estimate"], criterion["at_least"] is not None
    threshold = criterion["at_least"] if least else criterion["at_most"]
    ends = [
        threshold,
        *values,
        *([estimate["low"], estimate["high"]] if estimate and estimate["low"] is not None else []),
    ]
    low, high = min(ends), max(ends)
    room = 0.08 * ((high - low) or abs(high) or 1)
    low, high = low - room, high + room
    colour = OUTCOME_COLOURS[criterion["outcome"]]
    x = alt.X(
        "x:Q", title=None, scale=alt.Scale(domain=[low, high], nice=False, zero=False), axis=_strip_axis(alt, low, high)
    )
    side = {"x": threshold, "x2": high} if least else {"x": low, "x2": threshold}

    def one(row: Mapping[str, Any]) -> Any:
        return alt.Chart(alt.Data(values=[row]))

    layers = [
        one(side).mark_rect(color="#dcfce7").encode(x=x, x2="x2:Q", y=alt.value(0), y2=alt.value(STRIP_HEIGHT)),
        one({"x": threshold}).mark_rule(color=INK, strokeWidth=1.5, strokeDash=[4, 3]).encode(x=x),
    ]
    if estimate is not None:
        if estimate["low"] is not None and estimate["n"] > 1:
            row = {"x": estimate["low"], "x2": estimate["high"]}
            layers.append(
                one(row)
                .mark_rule(color=colour, strokeWidth=3.5, strokeCap="round")
                .encode(x=x, x2="x2:Q", y=alt.value(13))
            )
        point = one({"x": estimate["value"]}).mark_point(
            shape="diamond", filled=True, size=130, color=colour, opacity=1
        )
        layers.append(point.encode(x=x, y=alt.value(13)))
    dots = alt.Chart(alt.Data(values=[{"x": v} for v in values]))
    layers.append(dots.mark_circle(size=48, color=INK, opacity=0.45).encode(x=x, y=alt.value(29)))
    return alt.layer(*layers).properties(
        width=STRIP_WIDTH, height=STRIP_HEIGHT, title=_strip_title(alt, criterion, colour)
    )


def _strip_axis(alt: Any, low: float, high: float) -> Any:
    size = max(abs(low), abs(high))
    form = ".1e" if size < 1e-3 or size >= 1e6 else "~g"
    return alt.Axis(tickCount=5, grid=False, domain=True, labelExpr=f"format(datum.value, '{form}')")


def _strip_title(alt: Any, criterion: Mapping[str, Any], colour: str) -> Any:
    unit = f" {criterion['unit']}" if criterion["unit"] else ""
    numbers = estimate_text(criterion["estimate"], criterion_digits(criterion), signed(criterion))
    said = f"{numbers}{unit}; wanted {threshold_text(criterion)}: {criterion['outcome']}"
    name = criterion["name"] if criterion["primary"] else f"{criterion['name']} (decides nothing)"
    return alt.Title(
        textwrap.wrap(name, 46),
        subtitle=textwrap.wrap(said, 58),
        subtitleColor=colour,
        fontSize=13.5,
        fontWeight="bold" if criterion["primary"] else "normal",
        offset=6,
    )


def _legend(alt: Any, entry: Mapping[str, Any]) -> Any:
    """What the marks of the strips mean."""
    several = len(entry["seeds"]) > 1
    words = "dots: seeds · bar: 95% t interval · shaded: wanted" if several else "shaded: wanted"
    mark = alt.Chart(alt.Data(values=[{"text": words}])).mark_text(align="left", color=FAINT, fontSize=12)
    return mark.encode(x=alt.value(0), y=alt.value(6), text="text:N").properties(width=STRIP_WIDTH, height=12)
