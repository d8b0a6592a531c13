"""Claims: measures and quantities, the rule, fingerprints, the ledger, running and going on, the command."""

from __future__ import annotations

import importlib.util
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from polyrl import catalogue, comparison
from polyrl import claims as all_claims
from polyrl.claims.adacot import HalfKept
from polyrl.claims.airllm import NotBehindInBoth
from polyrl.cli.main import polyrl
from polyrl.errors import UserError
from polyrl.report.runs import Run
from polyrl.report.statistics import Estimate
from polyrl.reproduction import ledger, running
from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick, fingerprint
from polyrl.reproduction.judging import (
    CONFIRMED,
    INCONCLUSIVE,
    REFUTED,
    interval,
    judge,
    outcome_of,
    verdict_of,
    verdict_of_entry,
)
from polyrl.reproduction.quantities import (
    Area,
    BestDifference,
    BeyondLine,
    Difference,
    FarthestFrom,
    Final,
    Gain,
    Gap,
    Largest,
    LastEpisodes,
    MeanSquare,
    Measure,
    Of,
    Orders,
    Ratio,
    Seconds,
    Slope,
    Spread,
    Tail,
)
from polyrl.runtime.executor import Job, LocalProcesses
from polyrl.runtime.metric import Metric
from run_folders import write_comparison

ROOT = Path(__file__).parents[1]
COST = Metric(key="eval/cost", label="cost", higher_is_better=False, lines={"optimum": 5.0, "rule": 5.5})
SCORE = Metric(key="eval/score", label="score", lines={"target": 8.0})


def made_run(
    rows: Sequence[Mapping[str, float]] = (),
    start: Mapping[str, float] | None = None,
    final: Mapping[str, float] | None = None,
    status: str = "finished",
    **summary: Any,
) -> Run:
    numbers = [dict(row) for row in rows]
    ends = {"status": status, "start": dict(start or {}), "final": dict(final or {}), **summary}
    return Run(Path("run"), "arm", 0, {"task": "toy"}, numbers, [], ends)


def a_claim(**changes: Any) -> Claim:
    values: dict[str, Any] = {
        "slug": "grpo",
        "sentence": "It is better.",
        "place": "abstract",
        "source": "arXiv:2402.03300",
        "question": "Is it?",
        "task": "addition",
        "budget": "samples=3840",
        "arms": (Arm("grpo", "grpo"), Arm("ppo", "ppo")),
        "criteria": (Criterion("better", Difference(Final(), "grpo", "ppo"), at_least=0.02),),
        "seeds": (0, 1, 2, 3, 4),
        "tuning_seeds": (100, 101),
        "tuning": "nothing",
        "equal": "everything",
        "refuted_by": "no difference",
        "limits": "small",
        "minutes": 1,
        "quick": Quick(share=0.1),
    }
    return Claim(**{**values, **changes})


# --------------------------------------------------------------------------------------------------------- measures

CURVE = [
    {"iteration": 0, "samples": 0, "eval/score": 1.0},
    {"iteration": 1, "samples": 10, "eval/score": 3.0, "r": 1.0, "n": 1.0},
    {"iteration": 2, "samples": 20, "r": 2.0, "n": 3.0},
    {"iteration": 3, "samples": 40, "eval/score": 5.0, "r": 6.0, "n": 2.0},
    {"iteration": 4, "samples": 40, "eval/score": 9.0, "r": -2.0, "n": 2.0},
]


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (Final(), 9.0),
        (Final(key="eval/other"), 7.0),
        (Gain(), 8.0),
        (Orders(key="eval/tiny"), -3.0),
        (Orders(key="eval/zero", floor=1e-6), -6.0),
        (Gap(line="target"), -12.5),  # 9 is 1 above a target of 8, and more is better
        (BeyondLine(line="target"), 1.0),
        (BeyondLine(line="unknown"), None),
        (Area(x="samples"), (10 * 2 + 30 * 4) / 40),
        (Tail(key="r", last=2), 2.0),
        (Tail(key="r", last=100), 7 / 4),
        (LastEpisodes(key="r", count="n", last=4), 2.0),  # (2 * -2 + 2 * 6) / 4: one more iteration is not needed
        (LastEpisodes(key="r", count="n", last=5), 2.0),  # (2 * -2 + 2 * 6 + 3 * 2) / 7
        (MeanSquare(key="r"), (1 + 4 + 36 + 4) / 4),
        (Seconds(), 12.5),
        (Spread(after=0.75), math.sqrt(8)),  # of 5 and 9
        (FarthestFrom(wanted=(("eval/score", 8.5), ("eval/other", 8.0))), 1.0),
        (FarthestFrom(wanted=(("eval/score", 8.5), ("eval/missing", 8.0))), None),
    ],
)
def test_measures_of_a_run(measure: Measure, expected: float | None) -> None:
    final = {"eval/score": 9.0, "eval/other": 7.0, "eval/tiny": 1e-3, "eval/zero": 0.0}
    run = made_run(CURVE, {"eval/score": 1.0}, final, spent={"seconds": 12.5})
    found = measure.of(run, SCORE)
    assert found == (None if expected is None else pytest.approx(expected))
    assert measure.says(SCORE)


def test_gaps_have_the_sign_of_the_metric() -> None:
    run = made_run(final={"eval/cost": 5.1})
    assert Gap(line="optimum").of(run, COST) == pytest.approx(2.0)  # costs 2% more than the optimum
    assert BeyondLine(line="rule").of(run, COST) == pytest.approx(0.4)  # costs 0.4 less than the rule
    assert not Gap(line="optimum").higher_is_better(COST) and BeyondLine(line="rule").higher_is_better(COST)
    assert not Final().higher_is_better(COST) and Final().higher_is_better(SCORE)


def test_slopes_recover_powers_and_rates() -> None:
    power = [{"iteration": k, "eval/score": 3.0 * k**-0.7} for k in range(1, 200)]
    measured = Slope(log_x=True, log_y=True, low=10, high=150).of(made_run(power), SCORE)
    assert measured == pytest.approx(-0.7)
    # a rate that ends in rounding: with the floor the flat end does not count
    decay = [{"iteration": k, "eval/score": max(math.exp(-0.5 * k), 1e-14)} for k in range(200)]
    assert Slope(log_y=True, floor=1e-13).of(made_run(decay), SCORE) == pytest.approx(-0.5)
    assert Slope(log_y=True).of(made_run(decay), SCORE) > -0.2  # type: ignore[operator]
    assert Slope(log_y=True).of(made_run(decay[:1]), SCORE) is None


@pytest.mark.parametrize(
    "measure", [Final(), Gain(), Area(x="samples"), Tail(key="r", last=1), Spread(after=0), Slope()]
)
def test_runs_that_failed_measure_nothing(measure: Measure) -> None:
    assert measure.of(made_run(CURVE, {"eval/score": 1.0}, {"eval/score": 9.0}, status="failed"), SCORE) is None


def test_quantities_join_arms() -> None:
    assert Difference(Final(), "a", "b").combine([3.0, 5.0]) == -2.0
    assert Ratio(Final(), "a", "b").combine([3.0, 4.0]) == 0.75
    assert math.isinf(Ratio(Final(), "a", "b").combine([3.0, 0.0]))
    assert Largest(Final(), ("a", "b", "c")).combine([1.0, 7.0, 3.0]) == 7.0
    assert Difference(Final(), "a", "b").says(SCORE) == "score at the end: a minus b"
    best = BestDifference(Final(), ("a", "b"), ("c", "d", "e"))
    assert best.arms() == ("a", "b", "c", "d", "e") and best.combine([3.0, 5.0, 1.0, 9.0, 2.0]) == -4.0
    assert best.says(SCORE) == "score at the end, the better one: a or b minus c or d or e"
    assert HalfKept(Final(), "a", "b").combine([-0.02, -0.1]) == pytest.approx(0.03)
    both = NotBehindInBoth(Final(), "a", "b", Seconds())
    assert both.combine([0.6, 0.7, 80, 100]) == pytest.approx(20) and both.combine([0.6, 0.7, 120, 100]) < 0


# --------------------------------------------------------------------------------------------------------- the rule

T4 = 2.7764451052  # t quantile at 97.5%, 4 degrees of freedom


@pytest.mark.parametrize(
    ("values", "at_least", "expected"),
    [
        # mean 2, sample deviation 1, five values: half-width T4 * 1 / sqrt(5) * sqrt(2.5/2.5)
        ([1, 2, 3], -0.49, "met"),  # 2 - 4.3027/sqrt(3) = -0.4841
        ([1, 2, 3], -0.48, "open"),
        ([1, 2, 3], 4.48, "open"),  # 2 + 4.3027/sqrt(3) = 4.4841
        ([1, 2, 3], 4.49, "failed"),
        ([5, 5, 5], 5, "met"),  # no spread: the number itself, and the threshold belongs to the wanted side
        ([5, 5, 5], 5.000001, "failed"),
        ([9, 9], 0, "open"),  # two seeds have no interval
        ([9], 0, "open"),
        ([], 0, "open"),
        ([1, 2, math.inf], 0, "open"),
    ],
)
def test_a_criterion_is_met_failed_or_open(values: list[float], at_least: float, expected: str) -> None:
    assert outcome_of(interval(values), at_least, None) == expected
    # the mirror image, with the threshold as an upper bound
    assert outcome_of(interval([-v for v in values]), None, -at_least) == expected


def test_one_run_of_an_exact_experiment_is_its_own_interval() -> None:
    assert interval([0.3], exact=True) == Estimate(0.3, 0.3, 0.3, 1)
    assert outcome_of(interval([0.3], exact=True), 0.3, None) == "met"
    assert outcome_of(interval([0.3], exact=True), None, 0.29) == "failed"
    # several seeds are several experiments, and get an interval like any
    assert interval([1.0, 2.0, 3.0], exact=True) == interval([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["met", "met"], CONFIRMED),
        (["met", "open"], INCONCLUSIVE),
        (["met", "open", "failed"], REFUTED),
        (["open"], INCONCLUSIVE),
        ([], INCONCLUSIVE),
    ],
)
def test_the_verdict_follows_from_the_effects(outcomes: Any, expected: str) -> None:
    assert verdict_of([("effect", o) for o in outcomes] + [("control", "failed")]) == expected


def test_a_truth_on_the_threshold_is_met_or_failed_by_chance_in_one_of_forty_cases_each() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 5))
    found = [outcome_of(interval(list(row)), 0.0, None) for row in values]
    assert found.count("failed") / 4000 == pytest.approx(0.025, abs=0.008)
    assert found.count("met") / 4000 == pytest.approx(0.025, abs=0.008)


def judged_runs(claim: Claim, folder: Path, **comparison_files: Any) -> dict[str, Any]:
    write_comparison(folder, methods=[a.name for a in claim.arms], seeds=5, **comparison_files)
    observed = running.observe(claim, folder)
    return running.make_entry(claim, observed, judge(claim, observed, claim.seeds), claim.seeds, 3.0)


def finals(folder: Path, arm: str) -> list[float | None]:
    summaries = [json.loads((folder / f"{arm}-seed{s}" / "summary.json").read_text()) for s in range(5)]
    return [s["final"]["eval/accuracy"] if "final" in s else None for s in summaries]


def test_numbers_are_paired_by_seed_and_judged(tmp_path: Path) -> None:
    entry = judged_runs(a_claim(), tmp_path / "runs")
    x, y = (np.array(finals(tmp_path / "runs", m), dtype=float) for m in ("grpo", "ppo"))
    criterion = entry["criteria"][0]
    assert list(criterion["per_seed"].values()) == pytest.approx(list(x - y))
    half = T4 * (x - y).std(ddof=1) / math.sqrt(5)
    assert criterion["estimate"]["low"] == pytest.approx((x - y).mean() - half)
    assert criterion["outcome"] == "met" and entry["verdict"] == CONFIRMED == verdict_of_entry(entry)
    assert criterion["probability_of_improvement"]["value"] == np.mean(x[:, None] > y[None])
    other = a_claim(criteria=(Criterion("much better", Difference(Final(), "grpo", "ppo"), at_least=0.5),))
    assert judged_runs(other, tmp_path / "again")["verdict"] == REFUTED


def test_the_probability_of_improvement_knows_which_way_is_better(tmp_path: Path) -> None:
    measure = Final(better="lower")
    entry = judged_runs(
        a_claim(criteria=(Criterion("less", Difference(measure, "grpo", "ppo"), at_most=0.0),)), tmp_path / "runs"
    )
    x, y = (np.array(finals(tmp_path / "runs", m), dtype=float) for m in ("grpo", "ppo"))
    chance = entry["criteria"][0]["probability_of_improvement"]["value"]
    assert chance == np.mean(x[:, None] < y[None]) != np.mean(x[:, None] > y[None])


def test_a_diverged_run_takes_the_worst_value_seen(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_comparison(folder, methods=["grpo", "ppo"], seeds=5, failed=[("grpo", 2)])
    summary = folder / "grpo-seed2" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "diverged": True}), encoding="utf-8")
    claim = a_claim()
    observed = running.observe(claim, folder)
    entry = running.make_entry(claim, observed, judge(claim, observed, claim.seeds), claim.seeds, None)
    ends = {m: finals(folder, m) for m in ("grpo", "ppo")}
    worst = min(v for values in ends.values() for v in values if v is not None)
    criterion = entry["criteria"][0]
    assert criterion["per_seed"]["2"] == pytest.approx(worst - ends["ppo"][2])  # type: ignore[operator]
    assert criterion["took_the_worst"] == ["grpo, seed 2"]
    assert [r["status"] for r in entry["arms"][0]["runs"]] == ["finished"] * 2 + ["diverged"] + ["finished"] * 2
    # where less is better, the worst is the most
    costly = tuple(Criterion("c", Difference(Final(better="lower"), "grpo", "ppo"), at_most=0) for _ in "1")
    reversed_claim = a_claim(criteria=costly)
    again = judge(reversed_claim, observed, claim.seeds)[0].per_seed[2]
    most = max(v for values in ends.values() for v in values if v is not None)
    assert again == pytest.approx(most - ends["ppo"][2])  # type: ignore[operator]


def test_a_run_that_broke_for_another_reason_gives_no_verdict(tmp_path: Path) -> None:
    for name, ended in (("failed", {"failed": [("ppo", 1)]}), ("killed", {"killed": [("ppo", 1)]})):
        folder = tmp_path / name
        write_comparison(folder, methods=["grpo", "ppo"], seeds=5, **ended)  # type: ignore[arg-type]
        with pytest.raises(
            UserError, match=r"ppo, seed 1 (broke, so there is no verdict: RewardError|has not finished)"
        ):
            judge(a_claim(), running.observe(a_claim(), folder), range(5))


def test_a_measure_that_no_run_has_leaves_its_criterion_open(tmp_path: Path) -> None:
    claim = a_claim(criteria=(Criterion("c", Of(Final(key="eval/nothing"), "grpo"), at_least=0),))
    entry = judged_runs(claim, tmp_path / "runs")
    assert entry["criteria"][0]["estimate"] is None and entry["verdict"] == INCONCLUSIVE
    assert not entry["criteria"][0]["per_seed"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (0, 1, 100)}, r"tuned on among its test seeds: \[100\]"),
        ({"seeds": (0, 1)}, "too few seeds"),
        ({"seeds": (0, 1, 1)}, "a seed twice"),
        ({"arms": (Arm("grpo", "grpo"), Arm("grpo", "ppo"))}, "two arms of one name"),
        (
            {"hyperparameters": {"kl-coef": "0"}, "arms": (Arm("grpo", "grpo(x=1, kl_coef=1)"), Arm("ppo", "ppo"))},
            r"set in every arm too, where they would not count: \[\('grpo', 'kl_coef'\)\]",
        ),
        ({"arms": (Arm("grpo", "grpo"),)}, r"about arms that it has not: \['ppo'\]"),
        ({"criteria": (Criterion("c", Of(Final(), "grpo"), at_least=0, kind="control"),)}, "no effect among"),
    ],
)
def test_experiments_that_cannot_be_judged_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        a_claim(**changes)


def test_a_criterion_has_one_threshold() -> None:
    with pytest.raises(ValueError, match="either at_least or at_most"):
        Criterion("c", Of(Final(), "grpo"))
    with pytest.raises(ValueError, match="either at_least or at_most"):
        Criterion("c", Of(Final(), "grpo"), at_least=0, at_most=1)


# ------------------------------------------------------------------------------------------------------ fingerprint


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"sentence": "It is much better."}, True),
        ({"limits": "tiny"}, True),
        ({"minutes": 3}, True),
        ({"quick": Quick(share=0.5)}, True),
        ({"budget": "samples=3841"}, False),
        ({"task": "reverse"}, False),
        ({"seeds": (0, 1, 2, 3, 5)}, False),
        ({"hyperparameters": {"learning_rate": "1e-3"}}, False),
        ({"options": {"evaluations": 3}}, False),
        ({"arms": (Arm("grpo", "grpo"), Arm("ppo", "ppo(epochs=3)"))}, False),
        ({"arms": (Arm("grpo", "grpo", why="so"), Arm("ppo", "ppo"))}, True),
        ({"criteria": (Criterion("better", Difference(Final(), "grpo", "ppo"), at_least=0.03),)}, False),
        ({"criteria": (Criterion("better", Difference(Final(), "grpo", "ppo"), at_most=0.02),)}, False),
        ({"criteria": (Criterion("better", Difference(Gain(), "grpo", "ppo"), at_least=0.02),)}, False),
        ({"criteria": (Criterion("better", Difference(Final(), "ppo", "grpo"), at_least=0.02),)}, False),
    ],
)
def test_the_fingerprint_changes_with_the_experiment_alone(changes: dict[str, Any], same: bool) -> None:
    assert (fingerprint(a_claim(**changes)) == fingerprint(a_claim())) == same


OWN_MEASURE = '''
"""A claim with a measure of its own."""
from dataclasses import dataclass
from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick
from polyrl.reproduction.quantities import Difference, Measure

def scaled(value):
    """Twice."""
    return 2 * value  # doubled

@dataclass(frozen=True, kw_only=True)
class Twice(Measure):
    """Twice the last value."""

    def of(self, run, metric):
        """Return it."""
        return scaled(run.final("x"))

    def says(self, metric):
        return "twice x"

CRITERION = Criterion("better", Difference(Twice(), "grpo", "ppo"), at_least=0.02)
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# doubled", "# two times", True),
        ('"""Return it."""', '"""Return twice the value."""', True),
        ('"""Twice."""\n    ', "", True),
        ('"twice x"', '"2 x"', True),  # words, no formula
        ("2 * value", "3 * value", False),  # in a function that the measure calls
        ('run.final("x")', 'run.start("x")', False),
    ],
)
def test_the_fingerprint_reads_formulas_and_no_comments(tmp_path: Path, old: str, new: str, same: bool) -> None:
    assert old in OWN_MEASURE

    def of(name: str, source: str) -> str:
        file = tmp_path / f"{name}.py"
        file.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, module)
            spec.loader.exec_module(module)
            return fingerprint(a_claim(criteria=(module.CRITERION,)))

    assert (of("before", OWN_MEASURE) == of("after", OWN_MEASURE.replace(old, new))) == same


# ----------------------------------------------------------------------------------------------------------- ledger


def test_an_entry_goes_through_the_ledger_unchanged(tmp_path: Path) -> None:
    entry = judged_runs(a_claim(), tmp_path / "runs")
    file = ledger.write(entry, tmp_path / "ledger")
    assert file.name == "grpo.json" and ledger.read("grpo", tmp_path / "ledger") == entry
    assert verdict_of_entry(json.loads(file.read_text())) == entry["verdict"]
    ledger.write({**entry, "verdict": "other"}, tmp_path / "ledger")
    assert ledger.read("grpo", tmp_path / "ledger")["verdict"] == "other"  # type: ignore[index]
    assert ledger.read("ppo", tmp_path / "ledger") is None
    assert max(map(len, file.read_text().splitlines())) < 2000  # people compare two versions line by line
    file.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"grpo\.json cannot be read"):
        ledger.read("grpo", tmp_path / "ledger")


def test_an_installed_polyrl_carries_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.in_checkout() and ledger.committed_ledger() == ROOT / "ledger" == ledger.writable_ledger()
    package = tmp_path / "site-packages" / "polyrl"
    (package / "ledger").mkdir(parents=True)
    (package / "ledger" / "grpo.json").write_text('{"format": 1, "verdict": "confirmed"}', encoding="utf-8")
    monkeypatch.setattr(ledger, "PACKAGE", package)
    monkeypatch.setattr(ledger, "CHECKOUT", package.parents[1])
    assert ledger.verdict("grpo") == "confirmed" and ledger.verdict("ppo") is None
    assert ledger.writable_ledger() == Path("ledger")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["ledger"] == "polyrl/ledger"


# ---------------------------------------------------------------------------------------------------------- running


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Runs are made in this process, so that a test of them takes a second; names those that were made."""
    made: list[str] = []

    def work(_: Any, job: Job) -> str:
        made.append(Path(job.folder).name)
        return comparison.work(job.values, job.folder)

    monkeypatch.setattr(LocalProcesses, "work", work)
    # whoever works on polyrl runs its tests before the commit
    monkeypatch.setattr(running, "refuse_uncommitted", lambda: None)
    monkeypatch.setattr(running, "commits_are_clean", lambda _: True)
    monkeypatch.setenv("POLYRL_RUNS", str(tmp_path / "runs"))
    return made


def game_claim(**changes: Any) -> Claim:
    """Mirror prox against one prox step on two games, a matter of milliseconds."""
    gap = Final(key="eval/kl_to_nash")
    return a_claim(
        slug="nash-mp",
        task="rock-paper-scissors(beta=0.02)",
        budget="reward_calls=60",
        options={"evaluations": 6},
        arms=(
            Arm("two", "nash-mp"),
            Arm("one", "nash-mp(prox_steps=one)"),
            Arm("elsewhere", "nash-mp", task="matrix-game(actions=3,beta=0.1)", budget="reward_calls=20"),
        ),
        criteria=(
            Criterion("nearer", Difference(gap, "two", "one"), at_most=0.0),
            Criterion("it falls", Of(Slope(log_y=True, x="reward_calls"), "elsewhere"), at_most=0.0),
        ),
        seeds=(10, 11, 12),
        quick=Quick(share=0.2),
        **changes,
    )


def test_a_reproduction_runs_judges_and_enters(in_process: list[str], tmp_path: Path) -> None:
    made = running.reproduce(game_claim(), ledger_folder=tmp_path / "ledger", workers=1, quiet=True)
    assert made.folder == tmp_path / "runs" / "reproduce-nash-mp" and len(in_process) == 9
    entry = ledger.read("nash-mp", tmp_path / "ledger")
    assert entry == made.entry and entry["verdict"] == CONFIRMED and not made.why_not
    assert entry["fingerprint"] == fingerprint(game_claim())
    assert [a["task"] for a in entry["arms"]][1:] == [
        "rock-paper-scissors(beta=0.02)",
        "matrix-game(actions=3,beta=0.1)",
    ]
    assert entry["arms"][1]["hyperparameters"]["anchor-move.prox_steps"] == "one"
    slopes = entry["criteria"][1]["per_seed"]
    assert len(set(slopes.values())) == 3  # each seed is another game
    assert entry["arms"][0]["runs"][0]["curve"]["x"] == [0, 10, 20, 30, 40, 50, 60]
    assert entry["versions"]["torch"] and entry["machine"]["cores"] and entry["seconds"] > 0


def test_a_half_done_reproduction_goes_on_to_the_same_numbers(in_process: list[str], tmp_path: Path) -> None:
    import shutil

    first = running.reproduce(game_claim(), tmp_path / "r", ledger_folder=tmp_path / "ledger", workers=1, quiet=True)
    place = running.group_folders(game_claim(), tmp_path / "r")[("matrix-game(actions=3,beta=0.1)", "reward_calls=20")]
    shutil.rmtree(place / "elsewhere-seed11")
    in_process.clear()
    again = running.reproduce(game_claim(), tmp_path / "r", ledger_folder=tmp_path / "ledger", workers=1, quiet=True)
    assert in_process == ["elsewhere-seed11"]
    assert again.entry["criteria"] == first.entry["criteria"] and again.entry["wall_seconds"] is None
    with pytest.raises(UserError, match="holds another comparison"):
        running.reproduce(game_claim(hyperparameters={"eta": "0.01"}), tmp_path / "r", workers=1, quiet=True)


def test_quick_and_other_seeds_are_told_and_never_entered(in_process: list[str], tmp_path: Path) -> None:
    quick = running.reproduce(game_claim(), quick=True, ledger_folder=tmp_path / "ledger", workers=1, quiet=True)
    assert quick.written is None and "smoke test" in quick.why_not and quick.quick
    assert [a["budget"] for a in quick.entry["arms"]] == ["reward_calls=12", "reward_calls=12", "reward_calls=4"]
    assert len(in_process) == 3 and quick.folder.name.endswith("-quick")
    other = running.reproduce(
        game_claim(), seeds=[20, 21, 22], ledger_folder=tmp_path / "ledger", workers=1, quiet=True
    )
    assert other.written is None and "10 to 12" in other.why_not and other.entry["verdict"] == CONFIRMED
    assert not (tmp_path / "ledger").exists()


def test_a_diverging_method_is_counted_against_itself(in_process: list[str], tmp_path: Path) -> None:
    """The loop marks its own broken numbers, and the judge reads the mark."""
    file = tmp_path / "broken.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass, replace\n"
        "from polyrl.methods.preference import nash_mp\nfrom polyrl.core.update import Fresh, OwnUpdate\n"
        "from polyrl.parts.theory import check_finite\n"
        "@dataclass(frozen=True)\n"
        "class Breaks(OwnUpdate):\n"
        "    needs = frozenset({'score'})\n"
        "    def step(self, batch, see):\n"
        "        if see.context.seed == 11 and see.context.iteration == 3:\n"
        "            check_finite(self, see.context, policy=torch.tensor(float('nan')))\n"
        "        return {}\n"
        "def recipe():\n    return replace(nash_mp.recipe(), updates=(Breaks('policy', Fresh()),), adds=())\n",
        encoding="utf-8",
    )
    arms = (Arm("two", "nash-mp"), Arm("one", str(file)))
    claim = a_claim(
        slug="nash-mp",
        task="rock-paper-scissors",
        budget="reward_calls=10",
        arms=arms,
        criteria=(Criterion("c", Difference(Final(), "one", "two"), at_least=0),),
        seeds=(10, 11, 12),
    )
    entry = running.reproduce(claim, tmp_path / "r", ledger_folder=tmp_path / "l", workers=1, quiet=True).entry
    assert [r["status"] for r in entry["arms"][1]["runs"]] == ["finished", "diverged", "finished"]
    assert entry["criteria"][0]["took_the_worst"] == ["one, seed 11"]


# ---------------------------------------------------------------------------------------------------------- command


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(polyrl, arguments, standalone_mode=False, catch_exceptions=True)


def test_unknown_methods_and_methods_without_a_claim() -> None:
    with pytest.raises(UserError, match=r"There is no method 'hdp'\. Did you mean 'hdpo'.*Claims have been written"):
        all_claims.claim("hdp")
    with pytest.raises(UserError, match=r"No claim of gspo has been written down yet; there are those of adacot,"):
        all_claims.claim("gspo")
    assert "Name one method to reproduce, or say --family NAME or --all" in str(run_command("reproduce").exception)
    assert "Name one method" in str(run_command("reproduce", "hdpo", "--all").exception)
    assert "--out is for one method" in str(run_command("reproduce", "--all", "--out", "x").exception)
    assert "Name one method" in str(run_command("reproduce", "grpo", "--family", "control").exception)
    families = "There is no family 'langage-online'. Did you mean 'language-online'?"
    assert families in str(run_command("reproduce", "--family", "langage-online").exception)
    assert "write how many" in str(run_command("reproduce", "hdpo", "--seeds", "x").exception)


def test_the_command_says_what_came_of_it(
    in_process: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyrl.cli.reproduce.claim", lambda _: game_claim())
    there = str(tmp_path / "ledger")
    done = run_command("reproduce", "nash-mp", "--workers", "1", "--ledger", there)
    assert done.exception is None
    said = done.output
    assert "It is better." in said and "CONFIRMED" in said and "met" in said and "nash-mp.json" in said
    assert "wanted at most 0" in said and "chance of improvement 1.00" in said
    if importlib.util.find_spec("quickjs"):
        assert (tmp_path / "runs" / "reproduce-nash-mp" / "claim.svg").is_file()
    quick = run_command("reproduce", "nash-mp", "--workers", "1", "--quick", "--ledger", there)
    assert "No verdict: --quick is only a smoke test." in quick.output and "CONFIRMED" not in quick.output


def test_list_and_show_tell_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hdpo.json").write_text('{"format": 1, "verdict": "refuted"}', encoding="utf-8")
    monkeypatch.setattr(ledger, "committed_ledger", lambda: tmp_path)
    assert all_claims.verdict("hdpo") == "refuted" and all_claims.verdict("grpo") is None
    listed = " ".join(run_command("list", "methods").output.split())
    assert "hdpo refuted Differentiate the simulated cost" in listed and "grpo - The answers" in listed
    assert "the paper's claim: refuted" in run_command("show", "hdpo").output
    assert "the paper's claim: not yet re-tested" in run_command("show", "grpo").output


# ---------------------------------------------------------------------------------------------------------- picture

drawing = pytest.mark.skipif(
    not (importlib.util.find_spec("quickjs") and importlib.util.find_spec("vl_convert")),
    reason="the extra `figures` is not installed",
)


@drawing
def test_the_picture_shows_every_arm_criterion_and_verdict(tmp_path: Path) -> None:
    from polyrl.reproduction.picture import save_picture

    control = Criterion("a control", Of(Gain(), "grpo"), at_most=0.5, kind="control")
    claim = a_claim(criteria=(*a_claim().criteria, control))
    entry = judged_runs(claim, tmp_path / "runs", stated={"lines": {"perfect": 0.9}})
    text = save_picture(entry, tmp_path / "claim.svg").read_text(encoding="utf-8")
    for words in ("It is better.", "grpo, arXiv:2402.03300: confirmed", "better", "a control (decides nothing)"):
        assert words in text
    for words in ("grpo", "ppo", "perfect", "wanted at least 0.02: met", "5 seeds"):
        assert words in text
    assert "http" not in text.replace("http://www.w3.org", "")
    assert (save_picture(entry, tmp_path / "claim.png")).read_bytes()[:4] == b"\x89PNG"


def test_without_the_extra_the_verdict_stands_and_the_picture_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from polyrl.reproduction.picture import save_picture

    monkeypatch.setitem(__import__("sys").modules, "quickjs", None)
    with pytest.raises(UserError, match=r"extra `figures`: pip install 'polyrl\[figures\]'"):
        save_picture(judged_runs(a_claim(), tmp_path / "runs"), tmp_path / "claim.svg")


# ------------------------------------------------------------------------------- what the experiments need besides


def test_plain_return_is_the_reward_to_go_and_nothing_else() -> None:
    import torch

    from polyrl.catalogue import build
    from polyrl.core.experience import Experience
    from polyrl.parts.credit import PlainReturn

    mask = torch.tensor([[True, True, True], [True, True, False]])
    never = torch.zeros_like(mask)
    batch = Experience({"reward": torch.tensor([[1.0, 0.0, 4.0], [2.0, 2.0, 9.0]]), "mask": mask})
    batch = batch.with_fields(terminated=never, truncated=never)
    assert PlainReturn()(batch, None)["advantage"].tolist() == [[5.0, 4.0, 4.0], [4.0, 2.0, 0.0]]  # type: ignore[arg-type]
    assert PlainReturn(gamma=0.5)(batch, None)["advantage"].tolist()[0] == [2.0, 2.0, 4.0]  # type: ignore[arg-type]
    for cut in ("terminated", "truncated"):  # rewards of the next episode in the row are not this one's
        ends = torch.tensor([[True, False, False], [False, True, False]])
        assert PlainReturn()(batch.with_fields(**{cut: ends}), None)["advantage"].tolist() == [[1, 4, 4], [4, 2, 0]]  # type: ignore[arg-type]
    recipe = build("rloo(completions_per_prompt=1)+plain-return")
    assert [p.name for p in recipe.credit] == ["plain-return"]  # and no complaint about groups of one


def test_an_offset_belongs_to_the_prompt_and_to_no_model() -> None:
    from polyrl.tasks.language import task

    plain, moved = task("learned-reverse", difficulty=3), task("learned-reverse", difficulty=3, prompt_offset=2.0)
    offsets = [moved.offset(f"reverse {i}=") for i in range(2000)]  # type: ignore[attr-defined]
    assert offsets[:5] == [moved.offset(f"reverse {i}=") for i in range(5)]  # type: ignore[attr-defined]
    assert np.std(offsets) == pytest.approx(2.0, rel=0.06) and abs(np.mean(offsets)) < 0.15
    assert plain.offset("reverse 1=") == 0.0  # type: ignore[attr-defined]
    assert plain.start_settings() == moved.start_settings()  # one start and one reward model serve both
    with pytest.raises(UserError, match="prompt_offset"):
        task("learned-reverse", prompt_offset=-1.0)


def test_reproduce_in_python_says_the_same(tmp_path: Path) -> None:
    """A quick run judges and gives no verdict; the numbers of its arms are there."""
    import polyrl

    entry = polyrl.reproduce("dr-rpo", quick=True, out=tmp_path / "quick", workers=1, quiet=True)
    assert entry["verdict"] is None and {arm["name"] for arm in entry["arms"]} >= {"DR-RPO", "DR-LSVI-UCB"}
    assert all(run["final"] < run["start"] for arm in entry["arms"] for run in arm["runs"])
    with pytest.raises(polyrl.UserError, match=r"no method 'dr-rop'\. Did you mean"):
        polyrl.reproduce("dr-rop")


def test_of_several_claims_one_that_breaks_keeps_none_from_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from polyrl.cli import reproduce as command

    asked: list[str] = []

    def one(tested: Claim, *_: Any, **__: Any) -> Any:
        asked.append(tested.slug)
        if tested.slug == "grpo":
            raise UserError("the disk is full.")
        return SimpleNamespace(entry={"verdict": "confirmed", "slug": tested.slug})

    monkeypatch.setattr(command, "reproduce", one)
    monkeypatch.setattr(command, "_draw", lambda *_: [])
    with pytest.raises(UserError, match="No verdict for grpo; what was finished is kept"):
        command.run_reproductions(None, False, family="language-online", quiet=True)
    members = [slug for slug in all_claims.claims() if slug in catalogue.family("language-online")]
    assert asked == members and len(members) >= 15 and "dpo" not in members
