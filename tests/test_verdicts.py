"""Verdicts that stand: runs in the order of the looks, history, clean sources, the code's hash, one seed run again."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from polyrl import comparison
from polyrl.claims import claims
from polyrl.cli.main import polyrl
from polyrl.errors import UserError
from polyrl.reproduction import checking, ledger, provenance, running
from polyrl.reproduction.checking import check, expected
from polyrl.reproduction.claim import Arm, Claim, Criterion, Quick, awaited
from polyrl.reproduction.judging import CONFIRMED, INCONCLUSIVE, NOT_MET, verdict_of_entry
from polyrl.reproduction.page import claim_page
from polyrl.reproduction.quantities import Difference, Final, Of, Orders, Seconds
from polyrl.reproduction.variance import variance_of_share
from polyrl.reproduction.words import cost_text
from polyrl.runtime import run_folder
from polyrl.runtime.executor import Job, LocalProcesses

GAP = Orders(key="eval/kl_to_nash")


def game_claim(**changes: Any) -> Claim:
    """Mirror prox against one prox step, a matter of milliseconds; every seed is another game."""
    values: dict[str, Any] = {
        "slug": "nash-mp",
        "sentence": "It is nearer.",
        "place": "abstract",
        "source": "arXiv:2505.19731",
        "question": "Is it?",
        "task": "matrix-game(actions=3,beta=0.05)",
        "budget": "reward_calls=30",
        "options": {"evaluations": 3},
        "arms": (Arm("two", "nash-mp"), Arm("one", "nash-mp(prox_steps=one)"), Arm("far", "nash-mp(eta=0.001)")),
        "criteria": (Criterion("nearer than afar", Difference(GAP, "two", "far"), at_most=0.0),),
        "seeds": tuple(range(10, 18)),
        "looks": (4, 6, 8),
        "tuning_seeds": (0,),
        "tuning": "nothing",
        "equal": "everything",
        "refuted_by": "no difference",
        "limits": "small",
        "minutes": 1,
        "quick": Quick(share=0.5),
    }
    return Claim(**{**values, **changes})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Runs are made in this process; names those that were made. The sources count as committed."""
    found: list[str] = []

    def work(_: Any, job: Job) -> str:
        found.append(Path(job.folder).name)
        return comparison.work(job.values, job.folder)

    monkeypatch.setattr(LocalProcesses, "work", work)
    monkeypatch.setattr(running, "refuse_uncommitted", lambda: None)
    monkeypatch.setattr(running, "commits_are_clean", lambda _: True)
    monkeypatch.setenv("POLYRL_RUNS", str(tmp_path / "runs"))
    return found


def reproduced(claim: Claim, tmp_path: Path, **more: Any) -> running.Reproduction:
    return running.reproduce(claim, ledger_folder=tmp_path / "ledger", workers=1, quiet=True, **more)


# ------------------------------------------------------------------------------------------------------------ looks


def test_seeds_are_run_until_a_look_decides(made: list[str], tmp_path: Path) -> None:
    entry = reproduced(game_claim(), tmp_path).entry
    ran = len(entry["seeds"])
    assert entry["verdict"] == CONFIRMED == verdict_of_entry(entry) and ran in (4, 6)
    assert entry["seeds"] == list(range(10, 10 + ran)) and len(made) == 3 * ran
    assert entry["criteria"][0]["decided_after"] == ran and entry["cap"] == 8 and entry["looks"] == [4, 6, 8]
    assert (tmp_path / "runs" / "reproduce-nash-mp" / "seeds-10-to-13").is_dir()
    page = claim_page(game_claim(), entry, None, ["m.md"])
    assert f"Decided after {ran} of at most 8 seeds" in page and "Looks at" not in page


def test_what_is_never_decided_ends_at_the_cap(made: list[str], tmp_path: Path) -> None:
    other = Criterion("it is farther", Difference(GAP, "two", "far"), at_least=0.0, kind="premise")
    first = reproduced(game_claim(criteria=(*game_claim().criteria, other)), tmp_path)
    assert first.entry["verdict"] == NOT_MET and len(first.entry["seeds"]) < 8
    made.clear()
    never = Criterion("no number", Of(Final(key="eval/nothing"), "two"), at_least=0.0)
    entry = reproduced(game_claim(criteria=(never,)), tmp_path, overwrite=True).entry
    assert entry["verdict"] == INCONCLUSIVE and entry["seeds"] == list(range(10, 18)) and len(made) == 24


def test_an_interrupted_reproduction_goes_on_within_its_looks(made: list[str], tmp_path: Path) -> None:
    claim = game_claim(criteria=(Criterion("no number", Of(Final(key="eval/nothing"), "two"), at_least=0.0),))
    first = reproduced(claim, tmp_path).entry
    shutil.rmtree(tmp_path / "runs" / "reproduce-nash-mp" / "seeds-14-to-15" / "far-seed14")
    made.clear()
    again = reproduced(claim, tmp_path).entry
    assert made == ["far-seed14"]
    ends = [[r["final"] for r in arm["runs"]] for arm in again["arms"]]
    assert ends == [[r["final"] for r in arm["runs"]] for arm in first["arms"]]


def test_looks_that_cannot_be_are_refused() -> None:
    for looks in ((4, 6), (6, 4, 8), (2, 8), (4, 4, 8), (4, 9)):
        with pytest.raises(ValueError, match="which do not rise from 3"):
            game_claim(looks=looks)


# ---------------------------------------------------------------------------------------------------------- history


def test_a_replaced_verdict_stays_in_the_history(made: list[str], tmp_path: Path) -> None:
    earlier = json.loads((Path(__file__).parents[1] / "ledger" / "aihf.json").read_text()) | {"slug": "nash-mp"}
    assert not earlier.get("history") and earlier["rule"]
    ledger.write(earlier, tmp_path / "ledger")
    claim = game_claim()
    reproduced(claim, tmp_path)
    entry = ledger.read("nash-mp", tmp_path / "ledger")
    assert entry and [h["verdict"] for h in entry["history"]] == [earlier["verdict"]]
    assert entry["history"][0]["rule"] == earlier["rule"] and len(entry["history"][0]["criteria"]) == len(
        earlier["criteria"]
    )
    page = claim_page(claim, entry, None, ["m.md"])
    assert "## Earlier verdicts" in page and "(earlier rule)" in page
    reproduced(claim, tmp_path)  # the same numbers again are no other verdict
    assert len((ledger.read("nash-mp", tmp_path / "ledger") or {})["history"]) == 1
    reproduced(dataclasses.replace(claim, budget="reward_calls=20"), tmp_path, overwrite=True)
    assert len((ledger.read("nash-mp", tmp_path / "ledger") or {})["history"]) == 2


# ------------------------------------------------------------------------------------------------------- provenance


def test_no_verdict_from_sources_that_are_not_committed(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "commit_of_source", lambda: "0123456789ab+")
    monkeypatch.setattr(running, "refuse_uncommitted", provenance.refuse_uncommitted)
    with pytest.raises(UserError, match="not committed, and a verdict must say which code it is of"):
        reproduced(game_claim(), tmp_path)
    assert not made
    assert reproduced(game_claim(), tmp_path, quick=True).written is None  # a smoke test may
    # and none from runs that an earlier command made of such sources
    monkeypatch.setattr(provenance, "commit_of_source", lambda: "0123456789ab")
    monkeypatch.setattr(run_folder, "commit_of_source", lambda: "0123456789ab+")
    monkeypatch.setattr(running, "commits_are_clean", provenance.commits_are_clean)
    found = reproduced(game_claim(), tmp_path)
    assert found.written is None and "sources with uncommitted changes" in found.why_not
    monkeypatch.setattr(run_folder, "commit_of_source", lambda: "0123456789ab")
    assert reproduced(game_claim(), tmp_path, overwrite=True).written


def test_uncommitted_is_what_git_says_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "src" / "polyrl" / "runtime" / "run_folder.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    monkeypatch.setattr(run_folder, "__file__", str(file))
    clean = run_folder.commit_of_source()
    assert clean and len(clean) == 12
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "grpo.json").write_text("{}")  # the verdict before it changes no number
    assert run_folder.commit_of_source() == clean
    (file.parent / "new.py").write_text("y = 2\n")
    assert run_folder.commit_of_source() == clean + "+"


def test_the_code_of_an_entry_is_what_its_numbers_depend_on() -> None:
    def names(slug: str) -> set[str]:
        claim = claims()[slug]
        files = provenance.files_of(claim, running.arm_configs(claim))
        return {str(f.relative_to(provenance.PACKAGE)) for f in files}

    grpo, hdpo = names("grpo"), names("hdpo")
    both = {"core/loop.py", "runs.py", "reproduction/judging.py", "reproduction/looks.py", "reproduction/quantities.py"}
    assert both <= grpo & hdpo
    assert {"methods/language/grpo.py", "tasks/language/addition.py", "pretrain/solutions.py"} <= grpo - hdpo
    assert "methods/control/reinforce.py" not in grpo
    assert any(name.startswith("tasks/operations/") for name in hdpo)
    assert not any(name.startswith(("cli/", "claims/")) or name == "reproduction/page.py" for name in grpo | hdpo)


def test_the_hash_of_code_changes_with_code_and_with_no_comment(tmp_path: Path) -> None:
    file = tmp_path / "a.py"

    def of(text: str, when: float) -> str:
        file.write_text(text)
        return provenance._shape_of(file, when)

    first = of('def f(x: int) -> int:\n    """Twice."""\n    return 2 * x\n', 1.0)
    assert of("def f(x):\n    return 2 * x  # twice\n", 2.0) == first
    assert of("def f(x):\n    return 3 * x\n", 3.0) != first


# ------------------------------------------------------------------------------------------------------------ check


def test_a_seed_is_run_again_and_compared(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = game_claim()
    entry = reproduced(claim, tmp_path).entry
    assert entry["code"]["hash"].startswith("sha256:") and entry["machine"]["instructions"]
    made.clear()
    same = check(claim, entry, workers=1, quiet=True)
    assert same.agrees and same.digits and same.same_code and made == ["two-seed10", "one-seed10", "far-seed10"]
    per_seed = entry["criteria"][0]["per_seed"]
    moved = json.loads(json.dumps(entry))
    moved["criteria"][0]["per_seed"]["10"] = per_seed["10"] * (1 + 1e-9)
    found = check(claim, moved, workers=1, quiet=True)
    assert not found.agrees and found.compared[0].now == per_seed["10"]
    # on another processor the ninth digit says nothing, but a number that no seed had does
    moved["machine"]["instructions"] = "another"
    other = check(claim, moved, workers=1, quiet=True)
    assert other.agrees and not other.digits and "another" in other.why
    moved["criteria"][0]["per_seed"] = {seed: 100 + value for seed, value in per_seed.items()}
    assert not check(claim, moved, workers=1, quiet=True).agrees
    versions = {**entry, "versions": {**entry["versions"], "torch": "1.0"}}
    assert "torch 1.0" in check(claim, versions, workers=1, quiet=True).why


def test_what_another_seed_may_be_holds_for_nearly_all_of_them() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for row in rng.normal(3, 2, size=(4000, 6)):
        low, high = expected(list(row[:5]), 0.01)
        inside += low <= row[5] <= high
    assert inside / 4000 == pytest.approx(0.99, abs=0.005)
    assert expected([2.0, 2.0, 2.0], 0.01) == pytest.approx((2.0, 2.0), abs=1e-5)


def test_the_command_checks_entries(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Criterion("seconds", Difference(Seconds(), "two", "one"), at_most=1e6, kind="control")
    claim = game_claim(criteria=(*game_claim().criteria, timed))  # no two runs take the same time
    monkeypatch.setattr("polyrl.cli.reproduce.claims", lambda: {"nash-mp": claim})
    monkeypatch.setattr("polyrl.cli.reproduce.claim", lambda _: claim)
    there = tmp_path / "ledger"
    reproduced(claim, tmp_path)

    def command(*more: str) -> Any:
        asked = ["reproduce", "--check", "--workers", "1", "--ledger", str(there), *more]
        return CliRunner().invoke(polyrl, asked, standalone_mode=False)

    for more in ((), ("nash-mp",), ("--all",)):
        done = command(*more)
        assert done.exception is None and "nash-mp  seed 10: as entered, to the digit" in done.output
    file = there / "nash-mp.json"
    entry = json.loads(file.read_text())
    entry["criteria"][0]["per_seed"]["10"] += 1.0
    file.write_text(json.dumps(entry))
    done = command()
    assert "nearer than afar:" in done.output and "Not what the ledger says: nash-mp" in str(done.exception)
    assert "leave --quick, --seeds and --overwrite away" in str(command("--quick").exception)
    file.unlink()
    assert "has no entry of nash-mp to check" in str(command().exception)


def test_an_entry_of_the_earlier_rule_is_run_again_from_the_start_that_all_shared(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Claim] = []

    def stop(claim: Claim, *_: Any, **__: Any) -> None:
        asked.append(claim)
        raise UserError("enough")

    monkeypatch.setattr(checking, "run_seeds", stop)
    claim = dataclasses.replace(claims()["grpo"], replaces="")
    for entry in ({"seeds": [20], "fingerprint": "then"}, {"seeds": [20], "fingerprint": "then", "start": "own"}):
        with pytest.raises(UserError, match="enough"):
            check(claim, entry, quiet=True)
    assert [c.start for c in asked] == ["shared", "own"] and claim.start == "own"


# --------------------------------------------------------------------------------- an experiment that replaces another


def test_the_entry_of_an_experiment_that_was_replaced_stands_and_says_so(made: list[str], tmp_path: Path) -> None:
    first = game_claim()
    entry = reproduced(first, tmp_path).entry
    seeds = tuple(range(40, 48))
    second = game_claim(
        seeds=seeds, replaces=entry["fingerprint"], arms=(*first.arms, Arm("farther", "nash-mp(eta=0.0001)"))
    )
    assert awaited(second, entry) and not awaited(first, entry)
    page = claim_page(second, entry, None, ["there.md"])
    assert f"Verdict: {entry['verdict']}" in page and "has not been run yet" in page
    before, after = page.split("## The new experiment, not yet run")
    assert "farther" in after and "farther" not in before and "`reward_calls=30`" in before
    assert "What would refute it" in after and "40, 41" in after
    with pytest.raises(UserError, match="earlier experiment, which cannot be run again"):
        check(second, entry, quiet=True)
    made.clear()
    now = reproduced(second, tmp_path, out=tmp_path / "second").entry
    assert made and not awaited(second, now)
    page = claim_page(second, now, None, ["there.md"])
    assert "has not been run yet" not in page and "What would have refuted it" in page and "What it cost" in page
    kept = ledger.read("nash-mp", tmp_path / "ledger")
    assert kept and [one["fingerprint"] for one in kept["history"]] == [second.replaces]


def test_only_the_entry_that_it_names_is_replaced() -> None:
    claim = game_claim(replaces="sha256:1")
    assert awaited(claim, {"fingerprint": "sha256:1"}) and not awaited(claim, {"fingerprint": "sha256:2"})
    assert not awaited(game_claim(), {"fingerprint": ""})


# --------------------------------------------------------------------------------------------------- cost, variance


def test_the_cost_of_an_arm_is_told_beside_the_other() -> None:
    def arm(name: str, **spent: float) -> dict[str, Any]:
        seconds = spent.pop("seconds")
        return {"name": name, "runs": [{"seconds": seconds, "spent": spent}] * 3}

    entry = {
        "arms": [arm("vine", seconds=34.0, tokens=4600, samples=10), arm("ppo", seconds=10.0, tokens=100, samples=10)]
    }
    assert cost_text(entry, "vine", "ppo") == "vine took 46 times the tokens and 3.4 times the computing time of ppo"
    assert (
        cost_text(entry, "ppo", "vine") == "ppo took 0.022 times the tokens and 0.29 times the computing time of vine"
    )
    same = {"arms": [arm("a", seconds=10.0), arm("b", seconds=10.4)]}
    assert cost_text(same, "a", "b") == "a took as much computing time as b"
    assert cost_text({"arms": [arm("a", seconds=0.0), arm("b", seconds=1.0)]}, "a", "b") == ""


def test_the_variance_of_shares_is_the_binomial_one() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(200, 0.3, size=100_000) / 200
    assert variance_of_share([0.3], 200) == pytest.approx(drawn.var(), rel=0.02)
    assert variance_of_share([0.0, 1.0], 200) == 0.0
