"""Looks fixed beforehand: boundaries, simulated error and power, and what a claim's verdict makes of premises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from polyrl.reproduction.claim import Criterion
from polyrl.reproduction.judging import (
    CONFIRMED,
    INCONCLUSIVE,
    NOT_MET,
    REFUTED,
    Rule,
    verdict_of,
    verdict_of_entry,
)
from polyrl.reproduction.looks import ALPHA, evenly, factor, levels, power, seeds_wanted, spent
from polyrl.reproduction.quantities import Final, Of

CLAIMS = 10_000
NOISE = 3 * math.sqrt(0.05 * 0.95 / CLAIMS)
"""Three standard errors of a simulated rate of 5%."""
DESIGNS = [(5,), (5, 10), (5, 8, 12), (8, 12, 16), (4, 6, 8), (10, 20, 30)]


def decided(values: Any, looks: tuple[int, ...], failing: float = ALPHA) -> tuple[Any, Any]:
    """Of criteria [n] with numbers [n, seeds] and the threshold 0: which are met, and which have failed."""
    met = failed = np.zeros(len(values), dtype=bool)
    for seeds in looks:
        seen = values[:, :seeds]
        t = seen.mean(1) / (seen.std(1, ddof=1) / math.sqrt(seeds))
        undecided = ~(met | failed)
        met = met | undecided & (t >= factor(looks, seeds))
        failed = failed | undecided & (t < -factor(looks, seeds, failing))
    return met, failed


def numbers(mean: float, seeds: int, claims: int = CLAIMS, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(mean, 1, size=(claims, seeds))


def test_the_boundaries_are_those_of_the_tables() -> None:
    """Of an O'Brien-Fleming spending at one-sided 2.5%, equally spaced looks."""
    published = {2: (2.963, 1.969), 3: (3.710, 2.511, 1.993), 5: (4.877, 3.357, 2.680, 2.290, 2.031)}
    for looks, boundaries in published.items():
        # the whole of 2.5% is spent, as the tables do
        found = levels(tuple(range(1, looks + 1)), 0.025 / 0.92)
        assert [float(stats.norm.isf(p)) for p in found] == pytest.approx(boundaries, abs=0.006)
    assert levels((7,)) == (pytest.approx(ALPHA),)
    assert spent(1.0) == pytest.approx(ALPHA) and spent(0.25) < 1e-4 < spent(0.5) < spent(0.75) < ALPHA


def test_one_look_is_the_t_interval() -> None:
    assert factor((5,), 5) == pytest.approx(stats.t.ppf(0.975, 4))


@pytest.mark.parametrize("looks", DESIGNS, ids=str)
def test_claims_without_effect_get_no_more_false_verdicts_than_stated(looks: tuple[int, ...]) -> None:
    """On the margin either verdict is false: at most 5% of them together."""
    met, failed = decided(numbers(0, looks[-1]), looks)
    assert met.mean() + failed.mean() <= 0.05 + NOISE
    assert min(met.mean(), failed.mean()) > 0.015  # and the error is spent, not wasted


def test_looking_as_often_at_plain_intervals_would_not_do() -> None:
    """What the spending is for: five looks at a 95% interval decide one claim in seven or more."""
    values, found = numbers(0, 25), np.zeros(CLAIMS, dtype=bool)
    for seeds in (5, 10, 15, 20, 25):
        seen = values[:, :seeds]
        t = seen.mean(1) / (seen.std(1, ddof=1) / math.sqrt(seeds))
        found |= abs(t) >= stats.t.ppf(0.975, seeds - 1)
    assert found.mean() > 0.12


@pytest.mark.parametrize("effects", [2, 4])
def test_several_effects_refute_by_chance_no_more_often_than_one(effects: int) -> None:
    looks = (5, 8, 12)
    rule_of_any = [decided(numbers(0, 12, seed=i), looks, ALPHA / effects)[1] for i in range(effects)]
    assert np.any(rule_of_any, axis=0).mean() <= ALPHA + NOISE
    all_of = [decided(numbers(0, 12, seed=i), looks)[0] for i in range(effects)]
    assert np.all(all_of, axis=0).mean() < ALPHA  # and all of them are met by chance hardly ever


@pytest.mark.parametrize("effect", [0.6, 1.0, 1.5])
def test_the_seeds_that_are_wanted_decide_four_times_in_five(effect: float) -> None:
    seeds = seeds_wanted(effect, 1.0)
    looks = evenly(seeds)
    met, failed = decided(numbers(effect, seeds), looks)
    assert 0.79 <= met.mean() <= 0.92 and failed.mean() < 0.001
    assert power(looks, effect, 1.0) == pytest.approx(met.mean(), abs=0.025)
    assert power(evenly(seeds - 1), effect, 1.0) < 0.8 <= power(looks, effect, 1.0)
    # twice the noise and twice the effect are the same experiment
    assert seeds_wanted(2 * effect, 2.0) == seeds


def test_the_rule_of_one_criterion_is_what_is_simulated() -> None:
    looks = (5, 8, 12)
    values = np.concatenate([numbers(0.7, 12, 150), numbers(-0.7, 12, 150)])
    met, failed = decided(values, looks, ALPHA / 2)
    rule = Rule(looks, {"effect": 2})
    found = [rule.outcome(list(row), 0.0, None, "effect") for row in values]
    assert [o == "met" for o, _ in found] == list(met) and [o == "failed" for o, _ in found] == list(failed)
    assert {seeds for _, seeds in found} == {None, 5, 8, 12}
    mirrored = [rule.outcome([-v for v in row], None, 0.0, "effect") for row in values]
    assert mirrored == found
    moved = [rule.outcome([v + 3 for v in row], 3.0, None, "effect") for row in values]
    assert [o for o, _ in moved] == [o for o, _ in found]


def test_a_decision_stands_whatever_later_seeds_say() -> None:
    """Else a claim could be run until it says what is wanted."""
    rule = Rule((5, 10), {"effect": 1})
    early = [1.0, 1.01, 0.99, 1.02, 0.98]
    assert rule.outcome(early, 0.0, None, "effect") == ("met", 5)
    assert rule.outcome([*early, -9, -9, -9, -9, -9], 0.0, None, "effect") == ("met", 5)
    assert rule.outcome([0.5, 1.5, 0.9, 1.1, -0.3], 0.0, None, "effect") == ("open", None)


def test_two_seeds_and_numbers_that_are_not_finite_decide_nothing() -> None:
    assert Rule((3,), {}).outcome([9, 9], 0.0, None, "effect") == ("open", None)
    assert Rule((3,), {}).outcome([9, 9, math.inf], 0.0, None, "effect") == ("open", None)
    assert Rule((3,), {}).outcome([5, 5, 5], 5.0, None, "effect") == ("met", 3)
    assert Rule((1,), {}, exact=True).outcome([0.3], None, 0.29, "effect") == ("failed", 1)


# --------------------------------------------------------------------------------------------------- premises


@pytest.mark.parametrize(
    ("premises", "effects", "expected"),
    [
        (["met"], ["met", "met"], CONFIRMED),
        (["met"], ["failed", "open"], REFUTED),
        (["met"], ["open", "met"], INCONCLUSIVE),
        (["met", "failed"], ["failed"], NOT_MET),  # never refuted where there was nothing to test
        (["failed"], ["met"], NOT_MET),
        (["open"], ["failed"], INCONCLUSIVE),
        (["open"], ["met"], INCONCLUSIVE),
        ([], ["met"], CONFIRMED),
    ],
)
def test_an_unmet_premise_is_never_a_refutation(premises: Any, effects: Any, expected: str) -> None:
    outcomes = [("effect", o) for o in effects] + [("premise", o) for o in premises] + [("control", "failed")]
    assert verdict_of(outcomes) == expected


def entry(**outcomes: list[float]) -> dict[str, Any]:
    criteria = [
        {
            "kind": name.rstrip("0123456789"),
            "at_least": 0.0,
            "at_most": None,
            "per_seed": dict(zip("12345", v, strict=True)),
        }
        for name, v in outcomes.items()
    ]
    return {"rule": "today's", "exact": False, "seeds": [1, 2, 3, 4, 5], "looks": [5], "criteria": criteria}


def test_an_entry_is_judged_by_kind_from_its_numbers() -> None:
    up, down, mixed = [1.0, 1.1, 0.9, 1.2, 0.8], [-1.0, -1.1, -0.9, -1.2, -0.8], [1.0, -1.0, 2.0, -2.0, 0.1]
    assert verdict_of_entry(entry(premise=up, effect=up)) == CONFIRMED
    assert verdict_of_entry(entry(premise=up, effect=down)) == REFUTED
    assert verdict_of_entry(entry(premise=down, effect=down)) == NOT_MET
    assert verdict_of_entry(entry(premise=mixed, effect=down)) == INCONCLUSIVE
    assert verdict_of_entry(entry(effect=up, control=down)) == CONFIRMED


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "primary"}, "is a primary, not one of premise, effect, control"),
        ({"expected": 0.1}, "both expected and deviation, or not at all"),
        ({"expected": 0.02, "deviation": 0.1}, "expects 0.02, which would not meet it"),
    ],
)
def test_criteria_that_plan_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Criterion("c", Of(Final(), "grpo"), at_least=0.05, **changes)
