"""The data of the page: plain lists and mappings, thinned until the page stays small."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polyrl.report.findings import Gap, Pair, final_summary, gap_words, gaps, improvement, metric_digits, pairs
from polyrl.report.labels import AXIS_KEYS, axis_label, axis_order, metric_label, metric_order, panels
from polyrl.report.records import Records
from polyrl.report.runs import Comparison, Run
from polyrl.report.scale import FLOOR, unlogged
from polyrl.report.statistics import LEAST_SEEDS_FOR_BAND, Estimate, t_factor
from polyrl.report.task_charts import chart_table
from polyrl.runtime.figures import format_value, whole
from polyrl.tasks.language.chat import transcript

Rows = npt.NDArray[np.intp]

STAGES = ("collect", "score", "credit", "select", "improve", "evaluate", "monitor", "checkpoint")
"""The order of stages in a drawing; others follow."""

MOST_CELLS = 36_000
"""Numbers of curves that one page carries; more are averaged in buckets of neighbouring iterations."""
MOST_PROMPTS = 8
MOST_CHARACTERS = 3_000
MOST_ROWS = 8
MOST_COLUMNS = 12
MOST_CELL = 160
"""Samples that are no completions: rows a method, columns, characters of one cell."""
DECADES = 100.0
"""An evaluation beside a log metric is drawn on a log axis too where its values span this factor."""


def _figures(value: float) -> float | int:
    """Round to five figures: enough for any pixel, and a third of the bytes."""
    if value == 0:
        return 0
    rounded = round(value, 4 - math.floor(math.log10(abs(value)))) if abs(value) < 1e5 else round(value)
    return int(rounded) if float(rounded).is_integer() else rounded


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def metric_table(comparison: Comparison) -> list[dict[str, Any]]:
    """List the metrics that some run logged: key, label, unit, group and log axis, the deciding metric first."""
    first, domain = comparison.metric, comparison.domain
    logged = {key for run in comparison.runs for key in run.records.keys}
    table = []
    for key in metric_order(logged, first.key):
        label, unit, group = metric_label(domain, key)
        log = False
        if key == first.key:
            label, unit, group = first.label[:1].upper() + first.label[1:], first.unit or unit, "Evaluation"
            log = first.scale == "log"
        elif key.startswith("eval/") and first.scale == "log":
            values = [value for run in comparison.runs for value in run.series(key)]
            log = min(values) > 0 and max(values) > DECADES * min(values)
        table.append({"key": key, "label": label, "unit": unit, "group": group, "log": log})
    return table


def axis_table(comparison: Comparison) -> list[dict[str, str]]:
    """List the budget axes along which some run moved, the budget's own first."""
    domain = comparison.domain
    order = axis_order(domain)
    units = ["iteration" if key == "iterations" else key for key in comparison.budget]
    budget = next((key for key in units if key in order), order[0])
    moved = {key for run in comparison.runs for key in order if _moved(run.series(key))}
    keys = sorted((key for key in order if key in moved), key=lambda key: key != budget) or ["iteration"]
    return [dict(zip(("key", "label", "unit"), (key, *axis_label(domain, key)), strict=True)) for key in keys]


def _moved(values: Sequence[float]) -> bool:
    return bool(values) and min(values) != max(values)


def _bucketed(
    records: Records, where: Rows, axes: Sequence[str], keys: Sequence[str], most: int, logs: Collection[str]
) -> dict[str, Any]:
    """Columns of the rows `where` [n], averaged over neighbours when there are more than `most`.

    Axes take the end of a bucket. All rows have all `keys`; those in `logs` are averaged geometrically.
    """
    size = max(1, math.ceil(len(where) / most))
    first = len(where) % size or size  # the short bucket comes first, so that the last point is a full one
    cuts = np.array([0, *range(first, len(where), size)])
    ends = np.array([*cuts[1:], len(where)])

    def mean(key: str) -> list[float | int]:
        values = records.column(key)[where]
        if size == 1:
            return [_figures(value) for value in values.tolist()]
        log = key in logs
        values = np.log10(np.maximum(values, FLOOR)) if log else values
        means = np.add.reduceat(values, cuts) / (ends - cuts)
        return [_figures(value) for value in (10**means if log else means).tolist()]

    def last(axis: str) -> list[float | int | None]:
        values = records.column(axis)[where[ends - 1]].tolist()
        return [None if math.isnan(value) else _figures(value) for value in values]

    return {"x": {axis: last(axis) for axis in axes}, "y": {key: mean(key) for key in keys}}


def curves(
    run: Run, axes: Sequence[str], keys: Sequence[str], cells: int, logs: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Columns of a run's curves in blocks `{"x": {axis: [N]}, "y": {metric: [N]}}`, about `cells` numbers in all.

    Metrics that are logged at the same iterations share a block, so evaluations keep their own points.
    """
    records = run.records
    together: dict[bytes, tuple[Rows, list[str]]] = {}
    for key in keys:
        where = records.where(key)
        if len(where):
            together.setdefault(where.tobytes(), (where, []))[1].append(key)
    columns = sum(len(axes) + len(own) for _, own in together.values())
    most = max(30, cells // max(1, columns))
    return [_bucketed(records, where, axes, own, most, logs) for where, own in together.values()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _transcript(prompt: Any) -> str:
    """A prompt to be read: of messages a line each, with the role before it."""
    if isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt):
        return transcript(prompt)
    return _plain(prompt)


def _cut(text: str) -> str:
    return (
        text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}\n[… {len(text) - MOST_CHARACTERS:,} more]"
    )


def sample_table(comparison: Comparison) -> dict[str, Any]:
    """What the last evaluation kept, of one seed where possible: completions by prompt, or rows by method."""
    last: dict[str, dict[int, Run]] = {m: {} for m in comparison.methods}
    for run in comparison.runs:
        if run.samples:
            last[run.label][run.seed] = run
    have = [m for m in comparison.methods if last[m]]
    if not have:
        return {"prompts": [], "tables": []}
    shared = set.intersection(*(set(last[m]) for m in have))
    done = {s for s in shared if all(last[m][s].status == "finished" for m in have)}
    prompts: dict[str, dict[str, Any]] = {}
    tables: list[dict[str, Any]] = []
    seeds = {}
    for method in have:
        seed = min(done or shared or set(last[method]))
        seeds[method] = seed
        run = last[method][seed]
        final = max(row.get("iteration") or 0 for row in run.samples)
        last_rows = [row for row in run.samples if (row.get("iteration") or 0) == final]
        if not any("completion" in row for row in last_rows):
            tables.append({"method": method, "seed": seed, "iteration": final, **_rows(last_rows)})
            continue
        for row in last_rows:
            prompt = _transcript(row.get("prompt", ""))
            entry = prompts.setdefault(prompt, {"prompt": _cut(prompt), "expected": "", "answers": []})
            if row.get("expected") is not None:
                entry["expected"] = _cut(_plain(row["expected"]))
            score = row.get("score")
            number = isinstance(score, int | float) and math.isfinite(score)
            right = row.get("correct")
            right = right if isinstance(right, bool) else score >= 1 if number and score in (0, 1) else None
            answer = {
                "method": method,
                "text": _cut(_plain(row.get("completion", ""))),
                "score": score if number else None,
                "right": right,
                "logged": _logged(row.get("logged")),
            }
            if all(other["method"] != method for other in entry["answers"]):
                entry["answers"].append({**answer, "seed": seed, "iteration": final})
    # Prompts that every method answered come first: only those can be read side by side.
    ranked = sorted(prompts.values(), key=lambda entry: -len(entry["answers"]))[:MOST_PROMPTS]
    return {"prompts": ranked, "tables": tables, "one_seed": len(set(seeds.values())) == 1}


def _logged(shown: Any) -> list[list[str]]:
    """Name and value of what rewards showed beside a response."""
    if not isinstance(shown, dict):
        return []
    return [[_plain(str(name)), _cell(value)] for name, value in [*shown.items()][:MOST_COLUMNS]]


def _cell(value: Any) -> str:
    """A value of a sample in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
        value = ", ".join(map(_cell, value))
    text = "–" if value is None else _plain(value)
    return text if len(text) <= MOST_CELL else f"{text[:MOST_CELL]}…"


def _rows(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples as a table: the columns that they have, and the first rows as text."""
    columns = list(dict.fromkeys(str(key) for row in samples for key in row if key not in ("iteration", "split")))
    shown = columns[:MOST_COLUMNS]
    rows = [[_cell(row.get(column)) for column in shown] for row in samples[:MOST_ROWS]]
    return {"columns": [column.replace("_", " ") for column in shown], "rows": rows, "more": len(samples) - len(rows)}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def stage_names(runs: Sequence[Run]) -> list[str]:
    """Stages that some run timed, in the order of the loop."""
    logged = {stage for run in runs for stage in run.seconds_by_stage}
    return [*(stage for stage in STAGES if stage in logged), *sorted(logged - {*STAGES})]


def cost_table(comparison: Comparison) -> list[dict[str, Any]]:
    """Median spending of each method's finished runs (of all its runs when none finished)."""
    table = []
    for method in comparison.methods:
        runs = [run for run in comparison.of(method) if run.status == "finished"] or comparison.of(method)
        names = stage_names(runs)
        table.append(
            {
                "method": method,
                "stages": {stage: _median([run.seconds_by_stage.get(stage) for run in runs]) for stage in names},
                **{key: _median([run.spent(key) for run in runs]) for key in AXIS_KEYS if key != "iteration"},
                "total": _median([sum(run.seconds_by_stage.values()) or run.spent("seconds") for run in runs]),
                "memory": _median([run.peak_memory_bytes for run in runs]),
                "n": len(runs),
            }
        )
    return table


def spending_columns(comparison: Comparison, costs: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What was spent besides time, where some run spent it: key and label."""
    keys = [key for key in axis_order(comparison.domain) if key not in ("seconds", "iteration", "updates")]
    if comparison.domain == "language":
        keys.remove("steps")  # they are the tokens
    return [{"key": key, "label": axis_label(comparison.domain, key)[0]} for key in keys if any(c[key] for c in costs)]


def line_table(comparison: Comparison) -> list[dict[str, Any]]:
    """The lines that stand beside the results: name, value and its text, the target first."""
    metric = comparison.metric
    targets = {found.target for found in (metric, *comparison.metrics)} - {""}
    lines = sorted(metric.lines.items(), key=lambda item: item[0] not in targets)
    digits = metric_digits(comparison)
    return [
        {
            "name": name,
            "value": value,
            "text": whole(format_value(metric, value, digits)),
            "target": name in targets,
        }
        for name, value in lines
    ]


def _gap(gap: Gap, comparison: Comparison) -> dict[str, Any]:
    words, interval = gap_words(gap, comparison)
    return {"text": words.removesuffix(" with"), "interval": interval.strip()}


def gap_table(comparison: Comparison) -> list[dict[str, Any]]:
    """By method: how far its results lie from each line, in words."""
    found = gaps(comparison)
    blank = {line: {"text": "–", "interval": ""} for line in comparison.metric.lines}  # of another problem
    return [
        {"method": method, "lines": blank | {g.line: _gap(g, comparison) for g in found if g.method == method}}
        for method in comparison.methods
        if any(g.method == method for g in found)
    ]


def _pair(pair: Pair, comparison: Comparison) -> dict[str, Any]:
    """A pair for the drawing; the difference of a log metric is given as a factor."""
    log = comparison.metric.scale == "log"
    return {
        "first": pair.first,
        "second": pair.second,
        "shown": pair.shown,
        "p": pair.p_value,
        "difference": _estimate(unlogged(pair.difference) if log else pair.difference),
        "improvement": _estimate(pair.improvement),
    }


def build_payload(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page's script draws, as JSON types."""
    axes, metrics = axis_table(comparison), metric_table(comparison)
    keys = [axis["key"] for axis in axes], [metric["key"] for metric in metrics]
    logs = {metric["key"] for metric in metrics if metric["log"]}
    cells = MOST_CELLS // max(1, len(comparison.runs))
    key = comparison.metric.key
    most_seeds = max((len(comparison.of(m)) for m in comparison.methods), default=0)
    summary = final_summary(comparison)
    return {
        "name": comparison.name,
        "metric": {
            "key": key,
            "label": comparison.metric.label,
            "unit": comparison.metric.unit,
            "higher_is_better": comparison.metric.higher_is_better,
            "digits": metric_digits(comparison),
            "log": comparison.metric.scale == "log",
            "lines": line_table(comparison),
        },
        "floor": FLOOR,
        "domain": comparison.domain,
        "charts": chart_table(comparison, keys[1], keys[0]),
        "panels": panels(comparison.domain, keys[1], key),
        "methods": comparison.methods,
        "axes": axes,
        "metrics": metrics,
        "least_seeds_for_band": LEAST_SEEDS_FOR_BAND,
        "t": {str(n): t_factor(n) for n in range(LEAST_SEEDS_FOR_BAND, most_seeds + 1)},
        "runs": [
            {
                "method": run.label,
                "seed": run.seed,
                "status": run.status,
                "start": run.start(key),
                "final": run.final(key),
                "spent": {axis: run.spent(axis) for axis in keys[0]},
                "curves": curves(run, *keys, cells, logs),
            }
            for run in comparison.runs
        ],
        "final": {method: _estimate(estimate) for method, estimate in summary.items()},
        "pairs": [_pair(pair, comparison) for pair in pairs(comparison)],
        "gaps": gap_table(comparison),
        "improvement": {
            first: {
                second: _estimate(chance)
                for second in comparison.methods
                if second != first and (chance := improvement(comparison, first, second)) is not None
            }
            for first in comparison.methods
        },
        "stages": stage_names(comparison.runs),
        "costs": cost_table(comparison),
        "samples": sample_table(comparison),
    }
