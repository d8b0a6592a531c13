"""What a comparison shows, in numbers and in sentences."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polyrl.report import scale
from polyrl.report.labels import budget_words
from polyrl.report.problems import Problem, differences
from polyrl.report.runs import Comparison, Run
from polyrl.report.settings import compare_settings
from polyrl.report.statistics import LEAST_SEEDS, LEVEL, Estimate, holm, mean_interval, probability_of_improvement
from polyrl.runtime.figures import format_factor, format_value, places, whole

MOST_PAIRS_IN_WORDS = 3
"""With more pairs than this without a difference, one sentence names them all."""
MOST_WINS_IN_WORDS = 10
"""With more wins than this, one sentence names them all."""
UNEQUAL_TIME = 1.5
"""Ratio of training times from which an equal budget of another kind is said to hide them."""


@dataclass(frozen=True)
class Pair:
    """Two methods on their common seeds: `difference` is final of `first` minus final of `second`, in its unit.

    For a log metric it is the difference of the decimal logarithms: 10 to its power is the factor between them.
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
    """A method's way from its start to its end, averaged over the `gain.n` seeds that have both.

    For a log metric the averages are geometric and `gain` is the difference of the decimal logarithms.
    """

    method: str
    start: float
    end: float
    gain: Estimate


@dataclass(frozen=True)
class Gap:
    """How far a method's results lie from a line that stands beside them, such as an optimum.

    `estimate` is the mean over seeds of result against line: in percent of the line, in the metric's unit where the
    line is zero or results lie on its other side, or for a log metric the decimal logarithm of the factor. `reached`
    counts the seeds that got there.
    """

    method: str
    line: str
    value: float
    kind: Literal["percent", "difference", "factor"]
    estimate: Estimate
    reached: int


def metric_digits(comparison: Comparison) -> int:
    """Digits behind the point that suit the metric: three for shares such as accuracy, four figures for the rest."""
    metric = comparison.metric
    if metric.key.endswith("accuracy") and metric.scale == "linear":
        return 3
    if target := metric.lines.get(metric.target):  # what is held against it needs its digits
        return places(abs(target))
    tables = (comparison.finals, comparison.starts)
    values = [abs(v) for table in tables for seeds in table.values() for v in seeds.values()]
    return places(max(values, default=1.0))


def _said(comparison: Comparison, value: float) -> str:
    """A value of the metric, without its unit."""
    return format_value(comparison.metric, value, metric_digits(comparison))


def _number(value: float, digits: int, signed: bool = False) -> str:
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text if float(text) else text.lstrip("+-")  # no sign where nothing is left


def _interval(estimate: Estimate, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{_number(estimate.low, digits)}, {_number(estimate.high, digits)}]"


def _factor(estimate: Estimate, *, downwards: bool) -> tuple[str, str]:
    """A difference of decimal logarithms as a factor, and its interval; `downwards` says how many times smaller."""
    factor = scale.unlogged(scale.below(estimate) if downwards else estimate)
    if factor.low is None or factor.high is None:
        return format_factor(factor.value), ""
    return format_factor(factor.value), f" [{format_factor(factor.low)}, {format_factor(factor.high)}]"


def _seeds(n: int, kind: str = "") -> str:
    return f"{n} {kind}seed{'' if n == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def improvement(comparison: Comparison, first: str, second: str) -> Estimate | None:
    """Probability that a run of `first` ends better than a run of `second`; None when one has no finished run."""
    x, y = list(comparison.finals[first].values()), list(comparison.finals[second].values())
    if not x or not y or not comparison.comparable(first, second):
        return None
    return probability_of_improvement(x, y) if comparison.metric.higher_is_better else probability_of_improvement(y, x)


def pairs(comparison: Comparison) -> list[Pair]:
    """Compare all methods two by two on their common seeds; pairs without a common finished seed are left out.

    So are pairs of methods that were given different problems: their results say nothing of which is better.
    The better one of a pair comes first, and the pairs come in the order of the methods' mean results.
    """
    found: list[tuple[str, str, list[float], list[float], float | None]] = []
    for first, second in itertools.combinations(comparison.methods, 2):
        a, b = comparison.finals[first], comparison.finals[second]
        common = sorted(a.keys() & b.keys())
        if common and comparison.comparable(first, second):
            x, y = [a[s] for s in common], [b[s] for s in common]
            found.append((first, second, x, y, scale.p_value(comparison.metric, x, y)))
    adjusted = iter(holm([p for *_, p in found if p is not None]))
    ends = {m: estimate.value for m, estimate in final_summary(comparison).items()}
    rank = sorted(ends, key=lambda m: ends[m], reverse=comparison.metric.higher_is_better)
    result = []
    for first, second, x, y, p in found:
        corrected = None if p is None else next(adjusted)
        gap = scale.difference(comparison.metric, x, y)
        if gap.value and (gap.value < 0) == comparison.metric.higher_is_better:
            first, second, gap = second, first, scale.below(gap)
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
            gain = scale.difference(comparison.metric, x, y)
            before, after = (scale.mean(comparison.metric, values).value for values in (y, x))
            result.append(Change(method, before, after, gain))
    return result


def gaps(comparison: Comparison) -> list[Gap]:
    """Every method's results against every line of its problem, the target's line first."""
    result = []
    for method in comparison.methods:
        metric = comparison.metric_of(method)
        values = list(comparison.finals[method].values())
        for line, value in sorted(metric.lines.items(), key=lambda item: item[0] != metric.target):
            if not values:
                continue
            kind: Literal["percent", "difference", "factor"] = "difference"
            if metric.scale == "log":
                kind, estimate = "factor", scale.difference(metric, values, [value] * len(values))
            elif value == 0 or min(*values, value) < 0 < max(*values, value):  # across 0 there is no percent
                estimate = mean_interval([x - value for x in values])
            else:
                kind, estimate = "percent", mean_interval([100 * (x - value) / abs(value) for x in values])
            reached = sum(x >= value if metric.higher_is_better else x <= value for x in values)
            result.append(Gap(method, line, value, kind, estimate, reached))
    return result


def _pair_sentence(pair: Pair, comparison: Comparison, compared: int) -> str:
    """Say what one pair shows."""
    metric, gap = comparison.metric, pair.difference
    paired = _seeds(gap.n, "paired ")
    if metric.scale == "log":
        smaller = gap.value < 0
        times, interval = _factor(gap, downwards=smaller)
        by = f"a factor of {times}{interval}"
        beaten = f"{metric.label} {times} times {'smaller' if smaller else 'larger'}{interval}"
    else:
        unit, digits = f" {metric.unit}" if metric.unit else "", metric_digits(comparison)
        by = f"{_number(gap.value, digits, True)}{_interval(gap, digits)}{unit}"
        beaten = f"{metric.label} {by}"
    if gap.low is None:
        few = f"too few for a verdict, which takes {LEAST_SEEDS} or more"
        return f"{pair.first} and {pair.second} differ in {metric.label} by {by} over {paired}: {few}."
    if pair.shown:
        return f"{pair.first} beats {pair.second}: {beaten}, {paired}."
    if gap.excludes(0):
        but = f"but not after correcting for {compared} comparisons"
        return f"{pair.first} looks better than {pair.second}: {beaten}, {paired}, {but}."
    return f"This budget shows no difference between {pair.first} and {pair.second}: {by}, {paired}."


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
        named = "; ".join(f"{pair.first} and {pair.second}" for pair in none)
        sentences.append(f"This budget shows no difference in {len(none)} of {len(compared)} pairs: {named}.")
    if len(few) <= MOST_PAIRS_IN_WORDS:
        return sentences + said(few)
    which = "any pair" if len(few) == len(compared) else f"{len(few)} of {len(compared)} pairs"
    return [*sentences, f"No verdict on {which}: it takes {LEAST_SEEDS} paired seeds or more."]


def _change_sentence(change: Change, comparison: Comparison) -> str:
    metric, gain = comparison.metric, change.gain
    digits, unit = metric_digits(comparison), f" {metric.unit}" if metric.unit else ""
    way = f"{metric.label} {_said(comparison, change.start)} -> {_said(comparison, change.end)}{unit}"
    if metric.scale == "log":
        times, interval = _factor(gain, downwards=gain.value < 0)
        moved = f"{'fell' if gain.value < 0 else 'rose'} {times}-fold{interval}"
    else:
        moved = f"{_number(gain.value, digits, True)}{_interval(gain, digits)}"
    numbers = f"{way}, {moved}, {_seeds(gain.n)}"
    if gain.low is None:
        return f"{change.method} went from start to end: {numbers}, too few for an interval."
    if not gain.excludes(0):
        return f"{change.method} shows no improvement over its start: {numbers}."
    better = (gain.value > 0) == metric.higher_is_better
    return f"{change.method} {'improved on' if better else 'got worse than'} its start: {numbers}."


def line_name(line: str) -> str:
    """A line's name in a sentence: "the optimum", "the best base stock", but "solved" as it is."""
    named = ("optim", "best", "exact", "lower", "upper", "bound", "nash", "random", "greedy", "untrained")
    return f"the {line}" if line.lower().startswith(named) else line


def gap_words(gap: Gap, comparison: Comparison) -> tuple[str, str]:
    """How far results lie from a line, and the interval of that: `("0.3% above", " [0.1, 0.5]")`."""
    low_side = gap.estimate.value < 0
    side = "below" if low_side else "above"
    if gap.kind == "factor":
        times, interval = _factor(gap.estimate, downwards=low_side)
        return f"{times} times {side}", interval
    turned = scale.below(gap.estimate) if low_side else gap.estimate
    if gap.kind == "difference":
        digits = metric_digits(comparison)
        return f"{_number(turned.value, digits)} {side}", _interval(turned, digits)
    digits = 2 if turned.value < 0.1 else 1 if turned.value < 100 else 0
    nought = round(turned.value, digits) == 0
    return "level with" if nought else f"{turned.value:,.{digits}f}% {side}", _interval(turned, digits)


def _target_sentence(gap: Gap, comparison: Comparison) -> str:
    metric, name, seeds = comparison.metric, line_name(gap.line), _seeds(gap.estimate.n)
    unit = f" {metric.unit}" if metric.unit else ""
    value = whole(_said(comparison, gap.value))
    if not metric.higher_is_better or name != gap.line:
        words, interval = gap_words(gap, comparison)
        return f"{gap.method}'s {metric.label} is {words} {name} ({value}{unit}){interval}, {seeds}."
    # a threshold, not an optimum: what counts is who got there
    mean = scale.mean(metric, list(comparison.finals[gap.method].values()))
    end = _said(comparison, mean.value)
    if mean.low is not None and mean.high is not None:
        end += f" [{_said(comparison, mean.low)}, {_said(comparison, mean.high)}]"
    return f"{gap.method} reached {metric.label} {end}{unit} of {value} for {name}: {gap.reached} of {seeds} got there."


def target_sentences(comparison: Comparison) -> list[str]:
    """Say for each method how it stands to the value that is to be reached; nothing where there is none."""
    found = gaps(comparison)
    return [_target_sentence(gap, comparison) for gap in found if gap.line == comparison.metric_of(gap.method).target]


def _lost(runs: Sequence[Run], total: int, method: str, said: str) -> list[str]:
    if not runs:
        return []
    named = _listed([f"seed {run.seed}" for run in runs])
    return [f"{len(runs)} of {_seeds(total)} of {method} {said}, left out of every final number: {named}."]


def _uneven(comparison: Comparison) -> list[str]:
    """Name methods that spent more than 5% beside the budget: then the comparison is not at an equal budget.

    Runs whose own budget has no such unit, as beside runs of another method, have nothing to come up to.
    """
    result = []
    for key, limit in comparison.budget.items():
        if not isinstance(limit, (int, float)) or limit <= 0:
            continue
        for method in comparison.methods:
            runs = [run for run in comparison.of(method) if run.status == "finished" and _is_limited(run, key)]
            known = [value for run in runs if (value := run.spent(key)) is not None]
            mean = sum(known) / len(known) if known else limit
            if abs(mean / limit - 1) > 0.05:
                unit = budget_words(comparison.domain, key)
                result.append(f"{method} spent {mean:,.0f} {unit} of a budget of {limit:,.0f}.")
    return result


def _is_limited(run: Run, unit: str) -> bool:
    """Whether a run's own budget is in this unit, or it states none."""
    own = run.config.get("budget")
    return not isinstance(own, dict) or unit in own


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
    if any(not _is_limited(run, unit) for run in comparison.runs for unit in comparison.budget):
        return []  # nothing is equal
    slow, fast = max(taken, key=lambda m: taken[m]), min(taken, key=lambda m: taken[m])
    if taken[slow] < UNEQUAL_TIME * taken[fast]:
        return []
    units = _listed([budget_words(comparison.domain, unit) for unit in comparison.budget])
    return [
        f"Equal in {units}, not in time: the median run of {slow} trained for {taken[slow]:.3g} s, "
        f"that of {fast} for {taken[fast]:.3g} s."
    ]


def _without_chance(comparison: Comparison) -> list[str]:
    """Name methods whose seeds were judged alike to the last digit: then no interval says anything."""
    same, judged = list[str](), list[str]()
    for method in comparison.methods:
        runs = [run for run in comparison.of(method) if run.status == "finished"]
        ways = [run.series(comparison.metric.key) for run in runs]
        if len(ways) > 1 and len(ways[0]) > 1 and all(way == ways[0] for way in ways):
            (same if all(run.untimed() == runs[0].untimed() for run in runs) else judged).append(method)
    whole = "went the same way: chance has no part in it, so intervals have no width."
    alone = f"was judged by the same {comparison.metric.label} all along, whatever else differs: it has no interval."
    return [f"Every seed of {_listed(names)} {said}" for names, said in ((same, whole), (judged, alone)) if names]


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
    result += _without_chance(comparison)
    differing = compare_settings(comparison.runs).differing
    if "start" in differing:
        result.append("The runs did not start from the same model: their starting fingerprints differ.")
    judged = ("evaluation.", "budget.") if len(comparison.asked) < 2 else ("budget.",)  # the rest is said first
    unequal = [
        key for key in differing if key.startswith(judged) or (key == "difficulty" and len(comparison.asked) < 2)
    ]
    if unequal:
        result.append(f"The runs are not judged alike: {_listed(unequal)} differ{'s' if len(unequal) == 1 else ''}.")
    broken = sum(run.skipped_lines for run in comparison.runs)
    if broken:
        result.append(f"{broken} unreadable line{'' if broken == 1 else 's'} in the logs were skipped.")
    return result


def change_sentences(comparison: Comparison) -> list[str]:
    """Say for each method whether it improved on its start."""
    return [_change_sentence(change, comparison) for change in changes(comparison)]


def _different_problems(comparison: Comparison) -> list[str]:
    """Say that the runs were given different problems, which ones, and in what these differ."""
    asked = comparison.asked
    if len(asked) < 2:
        return []
    of = {
        name: [m for m in comparison.methods if asked[comparison.problem_of(m)].name == name] for name in _names(asked)
    }
    named = _listed([f"{name} ({', '.join(methods)})" for name, methods in of.items()])
    configs = [run.config for run in comparison.runs]
    found = [f"{word} ({'; '.join(values)})" for word, values in differences(asked, configs)]
    said = f"They differ in {_listed(found)}." if found else "Their configs state different problems."
    return [f"No verdict between different problems: these runs are of {named}. {said}"]


def _names(asked: Sequence[Problem]) -> list[str]:
    return [problem.name for problem in asked]


def headline(comparison: Comparison) -> list[str]:
    """Say how the methods differ, or, for a single method, how it changed; never between different problems."""
    apart = _different_problems(comparison)
    if len(comparison.methods) > 1:
        compared = _pair_sentences(comparison)
        alone = "No two methods share a finished seed, so nothing can be compared."
        return [*apart, *(compared or ([] if apart else [alone]))]
    said = [*target_sentences(comparison), *change_sentences(comparison)]
    return said or [f"No finished run has a first and a last {comparison.metric.label}, so nothing can be said."]


def ways(comparison: Comparison) -> list[str]:
    """Say what `headline` left out: how several methods stand to the target, and to their own starts."""
    if len(comparison.methods) == 1:
        return []
    return [*target_sentences(comparison), *change_sentences(comparison)]


def verdict(comparison: Comparison) -> list[str]:
    """Say what the comparison shows: differences between methods, then each one's target and change, then cautions."""
    return headline(comparison) + ways(comparison) + cautions(comparison)


def final_summary(comparison: Comparison) -> dict[str, Estimate]:
    """Mean final value with its t interval, by method; methods without a finished run are left out."""
    return {m: scale.mean(comparison.metric, list(seeds.values())) for m, seeds in comparison.finals.items() if seeds}
