"""What a comparison shows, in numbers and in sentences."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from polyrl.report.runs import Comparison, Run
from polyrl.report.settings import compare_settings
from polyrl.report.statistics import (
    LEAST_SEEDS,
    LEVEL,
    Estimate,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
    probability_of_improvement,
)

MOST_PAIRS_IN_WORDS = 3
"""With more pairs than this without a difference, one sentence names them all."""
MOST_WINS_IN_WORDS = 10
"""With more wins than this, one sentence names them all."""
UNEQUAL_TIME = 1.5
"""Ratio of training times from which an equal budget of another kind is said to hide them."""


@dataclass(frozen=True)
class Pair:
    """Two methods on their common seeds: `difference` is final of `first` minus final of `second`, in its unit.

    `p_value` is corrected by Holm over all pairs of the comparison. `first` ended better on average;
    `shown` says that the difference holds.
    """

    first: str
    second: str
    difference: Estimate
    p_value: float | None
    improvement: Estimate
    shown: bool


@dataclass(frozen=True)
class Change:
    """A method's way from its start to its end, averaged over the `gain.n` seeds that have both."""

    method: str
    start: float
    end: float
    gain: Estimate


def metric_digits(comparison: Comparison) -> int:
    """Digits behind the point that suit the metric: three for shares such as accuracy, four figures for the rest."""
    values = [
        abs(v) for table in (comparison.finals, comparison.starts) for seeds in table.values() for v in seeds.values()
    ]
    largest = max(values, default=1.0)
    if largest == 0 or 0.1 <= largest <= 1 or comparison.metric.key.endswith("accuracy"):
        return 3
    return min(8, max(0, 3 - math.floor(math.log10(largest))))


def _number(value: float, digits: int, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text if float(text) else text.replace("-", "+" if signed else "")


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{_number(estimate.low, digits)}, {_number(estimate.high, digits)}]"


def _seeds(n: int, kind: str = "") -> str:
    return f"{n} {kind}seed{'' if n == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def improvement(comparison: Comparison, first: str, second: str) -> Estimate | None:
    """Probability that a run of `first` ends better than a run of `second`; None when one has no finished run."""
    x, y = list(comparison.finals[first].values()), list(comparison.finals[second].values())
    if not x or not y:
        return None
    return probability_of_improvement(x, y) if comparison.metric.higher_is_better else probability_of_improvement(y, x)


def pairs(comparison: Comparison) -> list[Pair]:
    """Compare all methods two by two on their common seeds; pairs without a common finished seed are left out.

    The better one of a pair comes first, and the pairs come in the order of the methods' mean results.
    """
    found: list[tuple[str, str, list[float], list[float], float | None]] = []
    for first, second in itertools.combinations(comparison.methods, 2):
        a, b = comparison.finals[first], comparison.finals[second]
        common = sorted(a.keys() & b.keys())
        if common:
            x, y = [a[s] for s in common], [b[s] for s in common]
            found.append((first, second, x, y, paired_p_value(x, y)))
    adjusted = iter(holm([p for *_, p in found if p is not None]))
    ends = {m: sum(seeds.values()) / len(seeds) for m, seeds in comparison.finals.items() if seeds}
    rank = sorted(ends, key=lambda m: ends[m], reverse=comparison.metric.higher_is_better)
    result = []
    for first, second, x, y, p in found:
        corrected = None if p is None else next(adjusted)
        gap = paired_difference(x, y)
        if gap.value and (gap.value < 0) == comparison.metric.higher_is_better:
            first, second, gap = second, first, paired_difference(y, x)
        shown = corrected is not None and corrected < 1 - LEVEL and gap.excludes(0)
        chance = improvement(comparison, first, second)
        assert chance is not None  # both have a finished run, or they would share no seed
        result.append(Pair(first, second, gap, corrected, chance, shown))
    return sorted(result, key=lambda pair: (rank.index(pair.first), rank.index(pair.second)))


def changes(comparison: Comparison) -> list[Change]:
    """Start, end and gain of every method that has a seed with both."""
    result = []
    for method in comparison.methods:
        start, end = comparison.starts[method], comparison.finals[method]
        common = sorted(start.keys() & end.keys())
        if common:
            x, y = [end[s] for s in common], [start[s] for s in common]
            gain = paired_difference(x, y)
            result.append(Change(method, sum(y) / len(y), sum(x) / len(x), gain))
    return result


def _pair_sentence(pair: Pair, comparison: Comparison, compared: int) -> str:
    """Say what one pair shows."""
    label, gap = comparison.metric.label, pair.difference
    unit = f" {comparison.metric.unit}" if comparison.metric.unit else ""
    numbers = f"{_number(gap.value, metric_digits(comparison), True)}{_interval(gap, metric_digits(comparison))}{unit}"
    paired = _seeds(gap.n, "paired ")
    if gap.low is None:
        few = f"too few for a verdict, which takes {LEAST_SEEDS} or more"
        return f"{pair.first} and {pair.second} differ in {label} by {numbers} over {paired}: {few}."
    if pair.shown:
        return f"{pair.first} beats {pair.second}: {label} {numbers}, {paired}."
    if gap.excludes(0):
        but = f"but not after correcting for {compared} comparisons"
        return f"{pair.first} looks better than {pair.second}: {label} {numbers}, {paired}, {but}."
    return f"This budget shows no difference between {pair.first} and {pair.second}: {numbers}, {paired}."


def _pair_sentences(comparison: Comparison) -> list[str]:
    """Say what all pairs show, the strongest first; many pairs of one kind share a sentence."""
    compared = pairs(comparison)

    def said(chosen: Sequence[Pair]) -> list[str]:
        return [_pair_sentence(pair, comparison, len(compared)) for pair in chosen]

    beaten = [pair for pair in compared if pair.shown]
    hinted = [pair for pair in compared if not pair.shown and pair.difference.excludes(0)]
    few = [pair for pair in compared if pair.difference.low is None]
    none = [pair for pair in compared if pair.difference.low is not None and not pair.difference.excludes(0)]
    sentences = said(beaten[:MOST_WINS_IN_WORDS])
    if len(beaten) > MOST_WINS_IN_WORDS:
        sentences.append(f"{len(beaten) - MOST_WINS_IN_WORDS} more pairs differ: see the table of differences.")
    sentences += said(hinted)
    if len(none) <= MOST_PAIRS_IN_WORDS:
        sentences += said(none)
    elif len(none) == len(compared):
        sentences.append(f"This budget shows no difference between any two of {_listed(comparison.methods)}.")
    else:
        named = _listed([f"{pair.first} and {pair.second}" for pair in none])
        sentences.append(f"This budget shows no difference in {len(none)} of {len(compared)} pairs: {named}.")
    if len(few) <= MOST_PAIRS_IN_WORDS:
        return sentences + said(few)
    which = "any pair" if len(few) == len(compared) else f"{len(few)} of {len(compared)} pairs"
    return [*sentences, f"No verdict on {which}: it takes {LEAST_SEEDS} paired seeds or more."]


def _change_sentence(change: Change, comparison: Comparison) -> str:
    digits, gain = metric_digits(comparison), change.gain
    unit = f" {comparison.metric.unit}" if comparison.metric.unit else ""
    way = f"{comparison.metric.label} {_number(change.start, digits)} -> {_number(change.end, digits)}{unit}"
    numbers = f"{way}, {_number(gain.value, digits, True)}{_interval(gain, digits)}, {_seeds(gain.n)}"
    if gain.low is None:
        return f"{change.method} went from start to end: {numbers}, too few for an interval."
    if not gain.excludes(0):
        return f"{change.method} shows no improvement over its start: {numbers}."
    better = (gain.value > 0) == comparison.metric.higher_is_better
    return f"{change.method} {'improved on' if better else 'got worse than'} its start: {numbers}."


def _lost(runs: Sequence[Run], total: int, method: str, said: str) -> list[str]:
    if not runs:
        return []
    named = _listed([f"seed {run.seed}" for run in runs])
    return [f"{len(runs)} of {_seeds(total)} of {method} {said}, left out of every final number: {named}."]


def _uneven(comparison: Comparison) -> list[str]:
    """Name methods that spent more than 5% beside the budget: then the comparison is not at an equal budget."""
    result = []
    for key, limit in comparison.budget.items():
        if not isinstance(limit, (int, float)) or limit <= 0:
            continue
        for method in comparison.methods:
            spent = [run.spent(key) for run in comparison.of(method) if run.status == "finished"]
            known = [value for value in spent if value is not None]
            mean = sum(known) / len(known) if known else limit
            if abs(mean / limit - 1) > 0.05:
                result.append(f"{method} spent {mean:,.0f} {key.replace('_', ' ')} of a budget of {limit:,.0f}.")
    return result


def _unequal_time(comparison: Comparison) -> list[str]:
    """Say so where an equal budget of another kind hides that methods took very different times."""
    taken: dict[str, float] = {}
    for method in comparison.methods:
        known = [run.spent("seconds") for run in comparison.of(method) if run.status == "finished"]
        seconds = [value for value in known if value]
        if seconds:
            taken[method] = statistics.median(seconds)
    if len(taken) < 2 or "seconds" in comparison.budget or not comparison.budget:
        return []
    slow, fast = max(taken, key=lambda m: taken[m]), min(taken, key=lambda m: taken[m])
    if taken[slow] < UNEQUAL_TIME * taken[fast]:
        return []
    units = _listed([unit.replace("_", " ") for unit in comparison.budget])
    return [
        f"Equal in {units}, not in time: the median run of {slow} trained for {taken[slow]:.3g} s, "
        f"that of {fast} for {taken[fast]:.3g} s."
    ]


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know first: failed and missing runs, uneven budgets, unequal times and starts."""
    result: list[str] = []
    for method in comparison.methods:
        runs = comparison.of(method)
        for status, said in (("failed", "failed"), ("unfinished", "did not finish")):
            result += _lost([run for run in runs if run.status == status], len(runs), method, said)
        silent = [r for r in runs if r.status == "finished" and r.final(comparison.metric.key) is None]
        result += _lost(silent, len(runs), method, f"logged no finite {comparison.metric.label}")
    result += comparison.problems
    result += _uneven(comparison)
    result += _unequal_time(comparison)
    differing = compare_settings(comparison.runs).differing
    if "start" in differing:
        result.append("The runs did not start from the same model: their starting fingerprints differ.")
    unequal = [key for key in differing if key.startswith(("evaluation.", "budget.")) or key in ("task", "difficulty")]
    if unequal:
        result.append(f"The runs are not judged alike: {_listed(unequal)} differ{'s' if len(unequal) == 1 else ''}.")
    broken = sum(run.skipped_lines for run in comparison.runs)
    if broken:
        result.append(f"{broken} unreadable line{'' if broken == 1 else 's'} in the logs were skipped.")
    return result


def change_sentences(comparison: Comparison) -> list[str]:
    """Say for each method whether it improved on its start."""
    return [_change_sentence(change, comparison) for change in changes(comparison)]


def headline(comparison: Comparison) -> list[str]:
    """Say how the methods differ, or, for a single method, how it changed."""
    if len(comparison.methods) > 1:
        return _pair_sentences(comparison) or ["No two methods share a finished seed, so nothing can be compared."]
    said = change_sentences(comparison)
    return said or [f"No finished run has a first and a last {comparison.metric.label}, so nothing can be said."]


def verdict(comparison: Comparison) -> list[str]:
    """Say what the comparison shows: differences between methods, then each method's change, then cautions."""
    ways = change_sentences(comparison) if len(comparison.methods) > 1 else []
    return headline(comparison) + ways + cautions(comparison)


def final_summary(comparison: Comparison) -> dict[str, Estimate]:
    """Mean final value with its t interval, by method; methods without a finished run are left out."""
    return {m: mean_interval(list(seeds.values())) for m, seeds in comparison.finals.items() if seeds}
