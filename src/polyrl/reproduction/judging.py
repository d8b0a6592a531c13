"""The rule of docs/claims.md: numbers of every seed -> intervals -> criteria met, failed or open -> a verdict.

The rule was fixed before any claim was judged. It looks at nothing but the numbers and the thresholds, so that a ledger
entry can be judged again from what it holds (`verdict_of_entry`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polyrl.errors import UserError
from polyrl.report.runs import Run
from polyrl.report.statistics import Estimate, mean_interval, probability_of_improvement
from polyrl.reproduction.claim import Claim, Criterion
from polyrl.reproduction.quantities import Difference, Measure, Ratio
from polyrl.runtime.metric import Metric

Outcome = Literal["met", "failed", "open"]
CONFIRMED, REFUTED, INCONCLUSIVE = "confirmed", "refuted", "inconclusive at this scale"


@dataclass(frozen=True)
class Observed:
    """One run of the experiment and what it is judged by."""

    arm: str
    seed: int
    run: Run
    metric: Metric


@dataclass(frozen=True)
class Judged:
    """What came out of one criterion. `worst_taken` names (arm, seed) of runs that took the worst value seen."""

    criterion: Criterion
    per_seed: dict[int, float]
    estimate: Estimate | None
    outcome: Outcome
    improvement: Estimate | None
    worst_taken: tuple[tuple[str, int], ...]


def interval(values: Sequence[float], exact: bool = False) -> Estimate | None:
    """The mean with its 95% t interval over seeds; of an exact experiment with one seed, the number itself.

    None where there is no number, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        return None
    if exact and len(values) == 1:
        return Estimate(values[0], values[0], values[0], 1)
    return mean_interval(values)


def outcome_of(estimate: Estimate | None, at_least: float | None, at_most: float | None) -> Outcome:
    """`met` if the whole interval keeps to the threshold, `failed` if all of it is beyond, else `open`."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    if at_least is not None:
        return "met" if estimate.low >= at_least else "failed" if estimate.high < at_least else "open"
    assert at_most is not None
    return "met" if estimate.high <= at_most else "failed" if estimate.low > at_most else "open"


def verdict_of(outcomes: Iterable[Outcome]) -> str:
    """The verdict, from the outcomes of the primary criteria."""
    found = list(outcomes)
    if "failed" in found:
        return REFUTED
    return CONFIRMED if found and all(o == "met" for o in found) else INCONCLUSIVE


def verdict_of_entry(entry: Mapping[str, Any]) -> str:
    """Judge a ledger entry again, from its own numbers of every seed."""
    return verdict_of(
        outcome_of(interval(list(c["per_seed"].values()), entry["exact"]), c["at_least"], c["at_most"])
        for c in entry["criteria"]
        if c["primary"]
    )


# ------------------------------------------------------------------------------------------------ runs that ended badly


def diverged(run: Run) -> bool:
    """Whether the run failed because its numbers stopped being finite: the method's own doing."""
    return run.status == "failed" and run.summary.get("diverged") is True


def check_all_ended(observed: Sequence[Observed]) -> None:
    """Refuse to judge while a run is missing for another reason than its own divergence.

    Raises:
        UserError: a run is unfinished, or broke for a reason that says nothing about the method.
    """
    for o in observed:
        if o.run.status == "unfinished":
            raise UserError(f"{o.arm}, seed {o.seed} has not finished; the same command goes on with it.")
        if o.run.status == "failed" and not diverged(o.run):
            raise UserError(
                f"{o.arm}, seed {o.seed} broke, so there is no verdict: {o.run.error or 'it was killed'} "
                "Mend that and give the same command again."
            )


def _worst(measure: Measure, observed: Sequence[Observed], task: str) -> float | None:
    """The worst value of the measure in any run on the task."""
    same = [o for o in observed if _task(o) == task]
    values = [v for o in same if (v := measure.of(o.run, o.metric)) is not None]
    if not values:
        return None
    return min(values) if measure.higher_is_better(same[0].metric) else max(values)


def _task(observed: Observed) -> str:
    run = observed.run.config.get("run")
    return str((run if isinstance(run, Mapping) else observed.run.config).get("task", ""))


# ------------------------------------------------------------------------------------------------------ criteria


def judge(claim: Claim, observed: Sequence[Observed], seeds: Sequence[int]) -> list[Judged]:
    """Judge every criterion on the runs of `seeds`.

    Raises:
        UserError: a run is missing, unfinished, or broke for a reason that says nothing about its method.
    """
    check_all_ended(observed)
    runs = {(o.arm, o.seed): o for o in observed}
    for arm in claim.arms:
        for seed in seeds:
            if (arm.name, seed) not in runs:
                raise UserError(f"There is no run of {arm.name} with seed {seed}; give the same command again.")
    return [_judge(claim, criterion, runs, observed, seeds) for criterion in claim.criteria]


def _judge(
    claim: Claim,
    criterion: Criterion,
    runs: Mapping[tuple[str, int], Observed],
    observed: Sequence[Observed],
    seeds: Sequence[int],
) -> Judged:
    quantity = criterion.quantity
    names = quantity.arms()
    measured: dict[str, list[float]] = {name: [] for name in names}
    per_seed: dict[int, float] = {}
    taken: list[tuple[str, int]] = []
    for seed in seeds:
        values = []
        for name in names:
            o = runs[name, seed]
            value = quantity.measure.of(o.run, o.metric)
            if value is None or not math.isfinite(value):
                taken.append((name, seed))
                value = _worst(quantity.measure, observed, _task(o))
            values.append(value)
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            continue  # no run at all has such a number
        for name, number in zip(names, known, strict=True):
            measured[name].append(number)
        per_seed[seed] = float(f"{quantity.combine(known):.12g}")  # as the ledger keeps it
    estimate = interval(list(per_seed.values()), claim.exact) if len(per_seed) == len(seeds) else None
    chance = None
    if isinstance(quantity, Difference | Ratio) and len(per_seed) == len(seeds):
        x, y = measured[quantity.first], measured[quantity.second]
        better = quantity.measure.higher_is_better(runs[quantity.first, seeds[0]].metric)
        chance = probability_of_improvement(x, y) if better else probability_of_improvement(y, x)
    outcome = outcome_of(estimate, criterion.at_least, criterion.at_most)
    return Judged(criterion, per_seed, estimate, outcome, chance, tuple(taken))
