"""The claim about losses on fixed pairs: what it measures by hand, and what a claim of several methods is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polyrl import catalogue
from polyrl.claims import claim, claims, family_of, studies_of
from polyrl.claims.daa_scaling import CLAIM, BestAt, LawsAlong, LawsOverEnds, Rose, SinceBest, log_over_quadratic
from polyrl.cli.reproduce import chosen_claims
from polyrl.errors import UserError
from polyrl.report.hump import Hump
from polyrl.reproduction.claim import Arm, Claim, Criterion, fingerprint
from polyrl.reproduction.judging import Observed, judge
from polyrl.reproduction.page import claim_page
from polyrl.reproduction.quantities import Final, Gain, Of
from polyrl.runtime.metric import Metric
from test_claims import a_claim, made_run

GOLD = Metric(key="eval/gold", label="gold")


def way(*points: tuple[float, float, float], status: str = "finished") -> Any:
    """A run that was evaluated at iterations 0, 10, 20, ...: (gold, root of the KL, accuracy)."""
    rows = [
        {"iteration": 10.0 * i, "eval/gold": gold, "eval/root_kl": d, "eval/pair_accuracy": accuracy}
        for i, (gold, d, accuracy) in enumerate(points)
    ]
    return made_run(rows, start=rows[0], final=rows[-1], status=status)


def test_what_has_become_of_a_run_since_its_best_evaluation() -> None:
    run = way((-0.1, 0, 0.5), (1.2, 1, 0.6), (0.7, 2, 0.7), (0.4, 3, 0.65))
    assert SinceBest().of(run, GOLD) == pytest.approx(0.4 - 1.2)
    assert SinceBest(key="eval/pair_accuracy").of(run, GOLD) == pytest.approx(0.65 - 0.6)
    assert BestAt().of(run, GOLD) == pytest.approx(10 / 30)
    healthy = way((-0.1, 0, 0.5), (1.2, 1, 0.6))
    assert SinceBest().of(healthy, GOLD) == 0 and BestAt().of(healthy, GOLD) == 1
    broken = way((-0.1, 0, 0.5), (1.2, 1, 0.6), status="failed")
    assert SinceBest().of(broken, GOLD) is None and BestAt().of(broken, GOLD) is None


def test_mass_that_rose_is_told_from_mass_that_rounding_moved() -> None:
    def gained(by: float) -> Any:
        return made_run([], start={"eval/off_data": 0.2}, final={"eval/off_data": 0.2 + by})

    rose = Rose(key="eval/off_data")
    assert [rose.of(gained(by), GOLD) for by in (0.3, 0.0011, 0.0009, -0.1)] == [1, 1, 0, 0]
    assert rose.of(made_run([], start={}, final={}), GOLD) is None


@pytest.mark.parametrize("law", ["log", "quadratic"])
def test_the_law_that_the_points_were_made_by_fits_better(law: Any) -> None:
    noise = np.random.default_rng(0).normal(size=5) * 1e-3
    points = [
        (d, Hump(law, 1.2, 0.9, 0.0).at(d) + e) for d, e in zip((0.25, 0.5, 1, 2, 3), noise.tolist(), strict=True)
    ]
    found = log_over_quadratic(points)
    assert found is not None and (found < -3 if law == "log" else found > 3)
    # along one run, from its own start, and through the ends of five: the same points, the same number
    along = way((0.7, 0, 0.5), *((0.7 + r, d, 0.5) for d, r in points))
    assert LawsAlong().of(along, GOLD) == pytest.approx(found)
    ends = LawsOverEnds(Final(key="eval/root_kl"), Gain(), tuple("abcde"))
    assert ends.combine([*(d for d, _ in points), *(r for _, r in points)]) == pytest.approx(found)
    assert math.isnan(ends.combine([1.0] * 10))


def test_halving_the_error_is_minus_one() -> None:
    """Errors by numpy's least squares, and their ratio as powers of two."""
    d, r = np.array([0.5, 1.0, 2.0, 3.0]), np.array([0.6, 1.0, 0.9, 0.1])

    def error(falls: Any) -> float:
        basis = np.stack([d, -d * falls], 1)
        return float(np.sqrt(np.mean((basis @ np.linalg.lstsq(basis, r, rcond=None)[0] - r) ** 2)))

    found = log_over_quadratic([*zip(d.tolist(), r.tolist(), strict=True)])
    assert found == pytest.approx(math.log2(error(np.log(d)) / error(d)))


# ---------------------------------------------------------------------------------------- claims of several methods


def test_a_study_belongs_to_the_family_of_its_methods_and_is_named_by_each() -> None:
    assert CLAIM.slug not in catalogue.methods() and CLAIM.methods() == ("dpo", "ipo", "slic")
    assert claims()["dpo"].methods() == ("dpo",)
    assert family_of("daa-scaling") == "preference" and studies_of("slic") == ["daa-scaling"] and not studies_of("rpo")
    assert claim("daa-scaling") is CLAIM
    with pytest.raises(UserError, match="No claim of ipo has been written down yet; daa-scaling studies it"):
        claim("ipo")
    asked = {one.slug for one in chosen_claims(None, False, "preference", None)}
    assert {"daa-scaling", "dpo", "rpo"} <= asked and "grpo" not in asked


def test_its_page_names_every_method() -> None:
    page = claim_page(CLAIM, None, None, ["a.md", "b.md", "c.md"])
    assert "The methods that it studies: [dpo](a.md), [ipo](b.md), [slic](c.md)." in page
    assert "The method: [dpo](d.md)." in claim_page(claims()["dpo"], None, None, ["d.md"])


def study(quantity: Any, **more: Any) -> Claim:
    arms = (Arm("a", "dpo"), Arm("b", "ipo"))
    return a_claim(arms=arms, criteria=(Criterion("it fits", quantity, at_most=0),), seeds=(20, 21, 22), **more)


def test_a_method_of_the_name_is_none_that_is_studied() -> None:
    with pytest.raises(ValueError, match="its own slug among the methods that it studies"):
        study(Of(Final(), "a"), studies=("grpo", "ipo"))


def test_a_quantity_may_read_two_measures_of_an_arm() -> None:
    """Each is taken of its own arm, and a run without one takes the worst of that measure, not of the other."""
    both = LawsOverEnds(Final(key="eval/root_kl", better="lower"), Gain(), ("a", "b"))
    ends = {"a": (0.8, 1.0), "b": (0.5, 2.0)}
    seen: list[list[float]] = []

    class Seen(LawsOverEnds):
        def combine(self, values: Any) -> float:
            seen.append(list(values))
            return 0.0

    tested = study(Seen(both.measure, both.gain, both.names))
    observed = []
    for seed in tested.seeds:
        for arm, (gold, d) in ends.items():
            lost = seed == 22 and arm == "a"
            run = way((0.0, 0.0, 0.5), (gold, d, 0.5), status="failed" if lost else "finished")
            if lost:
                run.summary["diverged"] = True
            observed.append(Observed(arm, seed, run, GOLD))
    (judged,) = judge(tested, observed, tested.seeds)
    assert seen == [[1.0, 2.0, 0.8, 0.5]] * 2 + [[2.0, 2.0, 0.5, 0.5]]
    assert judged.worst_taken == (("a", 22), ("a", 22))


def test_what_is_measured_twice_is_of_the_experiment() -> None:
    """Another second measure is another experiment, and so is another order of them."""
    first = fingerprint(study(LawsOverEnds(Final(key="eval/root_kl"), Gain(), ("a", "b"))))
    other = fingerprint(study(LawsOverEnds(Final(key="eval/root_kl"), Gain(key="eval/kl"), ("a", "b"))))

    class Turned(LawsOverEnds):
        def measures(self) -> Any:
            return (self.gain,) * len(self.names) + (self.measure,) * len(self.names)

    Turned.__name__ = LawsOverEnds.__name__  # else its name alone would tell
    turned = fingerprint(study(Turned(Final(key="eval/root_kl"), Gain(), ("a", "b"))))
    assert len({first, other, turned}) == 3
