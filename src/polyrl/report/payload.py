"""The data of the page: plain lists and mappings, thinned until the page stays small."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from polyrl.report.findings import final_summary, improvement, metric_digits, pairs
from polyrl.report.runs import Comparison, Run
from polyrl.report.statistics import LEAST_SEEDS_FOR_BAND, Estimate, t_factor

AXES: dict[str, tuple[str, str]] = {
    "samples": ("Samples", "completions"),
    "tokens": ("Tokens", ""),
    "steps": ("Steps", ""),
    "reward_calls": ("Reward calls", ""),
    "seconds": ("Training time", "s"),
    "iteration": ("Iterations", ""),
}
"""Budget axes a reader can switch between: key -> label and unit."""

LABELS: dict[str, tuple[str, str]] = {
    "reward": ("Training reward", "mean score"),
    "reward_std": ("Spread of rewards", "standard deviation"),
    "kl": ("KL to the start", "nats per sequence"),
    "entropy": ("Entropy", "nats per token"),
    "completions/mean_length": ("Response length", "tokens"),
    "clip_ratio": ("Clipped ratios", "share of tokens"),
    "approx_kl": ("KL to the sampling policy", "nats per token"),
    "kl_per_token": ("KL to the start, per token", "nats per token"),
    "perplexity": ("Perplexity of samples", "per token"),
    "frac_reward_zero_std": ("Groups without a spread", "share of groups"),
    "completions/max_length": ("Longest response", "tokens"),
    "completions/clipped_ratio": ("Responses cut at the limit", "share of responses"),
    "tokens_per_second": ("Sampling speed", "tokens per second"),
    "learning_rate": ("Learning rate", ""),
    "logprob_gap": ("Sampler against trainer", "nats, largest gap"),
    "value/explained_variance": ("Explained variance of the critic", "share of variance"),
    "eval/accuracy": ("Evaluation accuracy", "share of prompts"),
    "eval/reward": ("Evaluation reward", "mean score"),
    "eval/mean_length": ("Evaluation response length", "tokens"),
}
"""Known metrics: key -> label and unit; others are shown under their own key."""

STAGES = ("collect", "score", "credit", "select", "improve", "evaluate", "monitor", "checkpoint")
"""The order of stages in a drawing; others follow."""

MOST_CELLS = 36_000
"""Numbers of curves that one page carries; more are averaged in buckets of neighbouring iterations."""
MOST_PROMPTS = 8
MOST_CHARACTERS = 3_000


def _figures(value: float) -> float | int:
    """Round to five figures: enough for any pixel, and a third of the bytes."""
    if value == 0:
        return 0
    rounded = round(value, 4 - math.floor(math.log10(abs(value)))) if abs(value) < 1e5 else round(value)
    return int(rounded) if float(rounded).is_integer() else rounded


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def metric_table(comparison: Comparison) -> list[dict[str, str]]:
    """List the metrics that some run logged: key, label, unit and group, the deciding metric first."""
    logged = {key for run in comparison.runs for row in run.metrics for key in row}
    hidden = {*AXES, "updates"}
    order = [comparison.metric.key, *LABELS]
    keys = [key for key in dict.fromkeys(order) if key in logged] + sorted(logged - {*order} - hidden)
    table = []
    for key in keys:
        label, unit = LABELS.get(key, (key, ""))
        if key == comparison.metric.key and key not in LABELS:
            label, unit = f"Evaluation {comparison.metric.label}", comparison.metric.unit
        elif key == comparison.metric.key:
            unit = comparison.metric.unit or unit
        group = "Evaluation" if key.startswith("eval/") or key == comparison.metric.key else "Training"
        if key.startswith("seconds/"):
            label, unit, group = f"Time of {key.removeprefix('seconds/')}", "s per iteration", "Time by stage"
        elif key.startswith("loss/"):
            label, group = f"Loss: {key.removeprefix('loss/')}", "Losses"
        table.append({"key": key, "label": label, "unit": unit, "group": group})
    return table


def axis_table(comparison: Comparison) -> list[dict[str, str]]:
    """List the budget axes along which some run moved, the budget's own first."""
    budget = next((key for key in comparison.budget if key in AXES), "samples")
    moved = {key for run in comparison.runs for key in AXES if len(set(run.series(key))) > 1}
    keys = sorted((key for key in AXES if key in moved), key=lambda key: key != budget)
    return [{"key": key, "label": AXES[key][0], "unit": AXES[key][1]} for key in keys or ["iteration"]]


def _bucketed(rows: Sequence[dict[str, float]], axes: Sequence[str], keys: Sequence[str], most: int) -> dict[str, Any]:
    """Columns of `rows`, averaged over neighbours when there are more than `most`; axes take the end of a bucket."""
    size = max(1, math.ceil(len(rows) / most))
    first = len(rows) % size or size  # the short bucket comes first, so that the last point is a full one
    cuts = [0, *range(first, len(rows) + 1, size)]
    buckets = [rows[a:b] for a, b in itertools.pairwise(cuts)]

    def mean(bucket: Sequence[dict[str, float]], key: str) -> float | int | None:
        values = [row[key] for row in bucket if key in row]
        return _figures(sum(values) / len(values)) if values else None

    return {
        "x": {axis: [bucket[-1].get(axis) and _figures(bucket[-1][axis]) for bucket in buckets] for axis in axes},
        "y": {key: [mean(bucket, key) for bucket in buckets] for key in keys},
    }


def curves(run: Run, axes: Sequence[str], keys: Sequence[str], cells: int) -> list[dict[str, Any]]:
    """Columns of a run's curves in blocks `{"x": {axis: [N]}, "y": {metric: [N]}}`, about `cells` numbers in all.

    Metrics that are logged at the same iterations share a block, so evaluations keep their own points.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        where = tuple(i for i, row in enumerate(run.metrics) if key in row)
        if where:
            together.setdefault(where, []).append(key)
    columns = sum(len(axes) + len(own) for own in together.values())
    most = max(30, cells // max(1, columns))
    return [_bucketed([run.metrics[i] for i in where], axes, own, most) for where, own in together.items()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    return (
        text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}\n[… {len(text) - MOST_CHARACTERS:,} more]"
    )


def sample_table(comparison: Comparison) -> dict[str, Any]:
    """Completions of the last evaluation for prompts that the methods share, all of one seed where possible."""
    last: dict[str, dict[int, Run]] = {m: {} for m in comparison.methods}
    for run in comparison.runs:
        if run.samples:
            last[run.label][run.seed] = run
    have = [m for m in comparison.methods if last[m]]
    if not have:
        return {"prompts": []}
    shared = set.intersection(*(set(last[m]) for m in have))
    done = {s for s in shared if all(last[m][s].status == "finished" for m in have)}
    prompts: dict[str, dict[str, Any]] = {}
    seeds = {}
    for method in have:
        seed = min(done or shared or set(last[method]))
        seeds[method] = seed
        run = last[method][seed]
        final = max(row.get("iteration") or 0 for row in run.samples)
        for row in run.samples:
            if (row.get("iteration") or 0) != final:
                continue
            prompt = _plain(row.get("prompt", ""))
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
            }
            if all(other["method"] != method for other in entry["answers"]):
                entry["answers"].append({**answer, "seed": seed, "iteration": final})
    # Prompts that every method answered come first: only those can be read side by side.
    ranked = sorted(prompts.values(), key=lambda entry: -len(entry["answers"]))[:MOST_PROMPTS]
    return {"prompts": ranked, "one_seed": len(set(seeds.values())) == 1}


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
                **{key: _median([run.spent(key) for run in runs]) for key in AXES if key != "iteration"},
                "total": _median([sum(run.seconds_by_stage.values()) or run.spent("seconds") for run in runs]),
                "memory": _median([run.peak_memory_bytes for run in runs]),
                "n": len(runs),
            }
        )
    return table


def build_payload(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page's script draws, as JSON types."""
    axes, metrics = axis_table(comparison), metric_table(comparison)
    keys = [axis["key"] for axis in axes], [metric["key"] for metric in metrics]
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
        },
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
                "curves": curves(run, *keys, cells),
            }
            for run in comparison.runs
        ],
        "final": {method: _estimate(estimate) for method, estimate in summary.items()},
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "shown": pair.shown,
                "p": pair.p_value,
                "difference": _estimate(pair.difference),
                "improvement": _estimate(pair.improvement),
            }
            for pair in pairs(comparison)
        ],
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
