"""The rule of docs/claims.md: numbers of every seed -> intervals -> criteria met, failed or open -> a verdict.

It looks at nothing but the numbers, the thresholds and the looks that were fixed beforehand, so that a ledger entry can
be judged again from what it holds (`verdict_of_entry`); one of the earlier rule by that rule.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polyrl.errors import UserError
from polyrl.report.runs import Run
from polyrl.report.statistics import Estimate, mean_interval, probability_of_improvement, t_factor
from polyrl.reproduction.claim import EARLIER_RULE, Claim, Criterion
from polyrl.reproduction.looks import ALPHA, factor
from polyrl.reproduction.quantities import Difference, Measure, Ratio
from polyrl.runtime.metric import Metric

Outcome = Literal["met", "failed", "open"]
CONFIRMED, REFUTED, INCONCLUSIVE = "confirmed", "refuted", "inconclusive at this scale"
NOT_MET = "premise not met"


@dataclass(frozen=True)
class Observed:
    """One run of the experiment and what it is judged by."""

    arm: str
    seed: int
    run: Run
    metric: Metric


@dataclass(frozen=True)
class Judged:
    """What came out of one criterion. `worst_taken` names (arm, seed) of runs that took the worst value seen.

    `decided` is the number of seeds of the look that decided, None while it is open.
    """

    criterion: Criterion
    per_seed: dict[int, float]
    estimate: Estimate | None
    outcome: Outcome
    decided: int | None
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


@dataclass(frozen=True)
class Rule:
    """What judges the criteria of one experiment.

    Attributes:
        looks: numbers of seeds, rising.
        alone: of each kind, how many criteria there are: the chance of a false failure is shared among them.
        exact: whether one run is the answer.
    """

    looks: tuple[int, ...]
    alone: Mapping[str, int]
    exact: bool = False

    def outcome(
        self, values: Sequence[float], at_least: float | None, at_most: float | None, kind: str
    ) -> tuple[Outcome, int | None]:
        """Whether a criterion is met, has failed or is open, and after how many seeds: the first look that decides.

        Args:
            values: one a seed, in the order of the seeds.
            at_least, at_most: the threshold, one of them.
            kind: of the criterion.
        """
        if self.exact and len(values) == 1:
            found = outcome_of(interval(values, exact=True), at_least, at_most)
            return found, 1 if found != "open" else None
        sign, threshold = (1.0, at_least) if at_least is not None else (-1.0, at_most)
        assert threshold is not None
        # a claim is confirmed by all its effects, and refuted by any of them
        failing = ALPHA / (self.alone.get(kind, 1) if kind != "control" else 1)
        for seeds in self.looks:
            estimate = interval(values[:seeds])
            if len(values) < seeds or estimate is None or estimate.high is None:
                return "open", None
            error = (estimate.high - estimate.value) / t_factor(seeds)  # of the mean
            beyond = sign * (estimate.value - threshold)
            if beyond >= factor(self.looks, seeds) * error:
                return "met", seeds
            if beyond < 0 and -beyond > factor(self.looks, seeds, failing) * error:
                return "failed", seeds
        return "open", None


def rule_of(claim: Claim, seeds: Sequence[int]) -> Rule:
    """What judges a claim on these seeds: its looks, where they are its own seeds or the first of them, else one."""
    own = list(seeds) == list(claim.seeds[: len(seeds)])
    looks = claim.looks_at() if own and len(seeds) in claim.looks_at() else (len(seeds),)
    return Rule(looks, Counter(c.kind for c in claim.criteria), claim.exact)


def rule_of_entry(entry: Mapping[str, Any]) -> Rule:
    """What judged a ledger entry."""
    return Rule(tuple(entry["looks"]), Counter(c["kind"] for c in entry["criteria"]), entry["exact"])


def outcome_of(estimate: Estimate | None, at_least: float | None, at_most: float | None) -> Outcome:
    """`met` if the whole interval keeps to the threshold, `failed` if all of it is beyond, else `open`.

    The earlier rule; that of today where an exact experiment is one run.
    """
    if estimate is None or estimate.low is None or estimate.high is None:
        return "open"
    if at_least is not None:
        return "met" if estimate.low >= at_least else "failed" if estimate.high < at_least else "open"
    assert at_most is not None
    return "met" if estimate.high <= at_most else "failed" if estimate.low > at_most else "open"


def verdict_of(outcomes: Iterable[tuple[str, Outcome]]) -> str:
    """The verdict, from kind and outcome of the criteria: first of the premises, then of the effects."""
    found = list(outcomes)
    premises = [o for kind, o in found if kind == "premise"]
    effects = [o for kind, o in found if kind == "effect"]
    if "failed" in premises:
        return NOT_MET
    if "open" in premises:
        return INCONCLUSIVE
    if "failed" in effects:
        return REFUTED
    return CONFIRMED if effects and all(o == "met" for o in effects) else INCONCLUSIVE


def earlier(entry: Mapping[str, Any]) -> bool:
    """Whether an entry was made under the earlier rule."""
    return bool(entry["rule"] == EARLIER_RULE)


def verdict_of_entry(entry: Mapping[str, Any]) -> str:
    """Judge a ledger entry again, by its own rule and from its own numbers of every seed."""
    if earlier(entry):
        return verdict_of(
            ("effect", outcome_of(interval(list(c["per_seed"].values()), entry["exact"]), c["at_least"], c["at_most"]))
            for c in entry["criteria"]
            if c["primary"]
        )
    return verdict_of((c["kind"], outcome_in_entry(entry, c)[0]) for c in entry["criteria"])


def outcome_in_entry(entry: Mapping[str, Any], criterion: Mapping[str, Any]) -> tuple[Outcome, int | None]:
    """Outcome and deciding look of a criterion of an entry of today's rule, from its numbers of every seed."""
    numbers = criterion["per_seed"]
    values = [numbers[str(seed)] for seed in entry["seeds"]] if len(numbers) == len(entry["seeds"]) else []
    return rule_of_entry(entry).outcome(values, criterion["at_least"], criterion["at_most"], criterion["kind"])


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
    measures = quantity.measures()
    measured: dict[str, list[float]] = {name: [] for name in names}
    per_seed: dict[int, float] = {}
    taken: list[tuple[str, int]] = []
    for seed in seeds:
        values = []
        for name, measure in zip(names, measures, strict=True):
            o = runs[name, seed]
            value = measure.of(o.run, o.metric)
            if value is None or not math.isfinite(value):
                taken.append((name, seed))
                value = _worst(measure, observed, _task(o))
            values.append(value)
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            continue  # no run at all has such a number
        for name, number in zip(names, known, strict=True):
            measured[name].append(number)
        per_seed[seed] = float(f"{quantity.combine(known):.12g}")  # as the ledger keeps it
    values_seen = list(per_seed.values()) if len(per_seed) == len(seeds) else []
    estimate = interval(values_seen, claim.exact)
    chance = None
    if isinstance(quantity, Difference | Ratio) and len(per_seed) == len(seeds):
        x, y = measured[quantity.first], measured[quantity.second]
        better = quantity.measure.higher_is_better(runs[quantity.first, seeds[0]].metric)
        chance = probability_of_improvement(x, y) if better else probability_of_improvement(y, x)
    rule = rule_of(claim, seeds)
    outcome, decided = rule.outcome(values_seen, criterion.at_least, criterion.at_most, criterion.kind)
    return Judged(criterion, per_seed, estimate, outcome, decided, chance, tuple(taken))
