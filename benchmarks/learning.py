"""Whether speed costs learning: curves of GRPO from the same start, polyrl's and TRL's, over a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from language import FOLDER, OURS, command, prepare, python_of
from language_work import LEARNING
from results import table, write
from turns import started

SEEDS, STEPS, PIECES = 5, 50, 5
NAME = "learning"
SIDES = ("trl", OURS)
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% points of Student's t, by degrees of freedom."""


def curve(side: str, seed: int, steps: int) -> list[float]:
    """Mean reward of every step of one run."""
    model, rows = prepare(NAME, seed)
    words = {side: command(side, NAME, model, rows, "--seed", str(seed))}
    with started(words, lambda s: FOLDER / NAME / f"{s}-seed{seed}.log") as processes:
        return [row["reward"] for row in processes[side].turn(steps)["rows"]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over seeds."""
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def compare(curves: dict[str, list[list[float]]], pieces: int) -> list[dict[str, Any]]:
    """Mean reward by piece of the curve and side, with intervals over seeds, and whether they overlap."""
    length = len(curves[OURS][0]) // pieces
    found = []
    for i in range(pieces):
        steps = slice(i * length, (i + 1) * length)
        means = {side: [statistics.fmean(c[steps]) for c in runs] for side, runs in curves.items()}
        intervals = {side: interval(values) for side, values in means.items()}
        agree = max(low for low, _ in intervals.values()) <= min(high for _, high in intervals.values())
        by_side = {side: {"mean": statistics.fmean(means[side]), "interval": intervals[side]} for side in means}
        found.append({"steps": [steps.start + 1, steps.stop], "sides": by_side, "agree": agree})
    return found


def main(only: Sequence[str], repeats: int, quick: bool) -> None:
    """Run the seeds in alternation, compare, print, write."""
    seeds, steps = (2, 10) if quick else (SEEDS, STEPS)
    curves: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for seed in range(seeds):
        for side in SIDES:
            curves[side].append(curve(side, seed, steps))
    pieces = compare(curves, PIECES)
    size = LEARNING.shape
    print(
        f"\nlearning: share of digits in completions, {seeds} seeds, {size.prompts} x {size.group} completions a step"
    )
    rows = []
    for piece in pieces:
        cells = [f"{s['mean']:.3f} ({s['interval'][0]:.3f}-{s['interval'][1]:.3f})" for s in piece["sides"].values()]
        rows.append(["-".join(map(str, piece["steps"])), *cells, "yes" if piece["agree"] else "NO"])
    print(table(["steps", *SIDES, "intervals overlap"], rows))
    if not quick:
        write(
            NAME, {side: python_of(side) for side in SIDES}, {"grpo": {"pieces": pieces, "curves": curves}}, seeds=seeds
        )
