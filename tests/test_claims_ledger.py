"""The committed ledger and the claims agree: experiments, rule, tables, pages, and defaults that arms were run with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyrl import catalogue
from polyrl.claims import claims, studies_of, verdict
from polyrl.reproduction import ledger
from polyrl.reproduction.claim import RULE, Arm, Claim, awaited, earlier_fingerprint, fingerprint
from polyrl.reproduction.judging import earlier, interval, outcome_in_entry, outcome_of, verdict_of_entry
from polyrl.reproduction.running import problems, shortened
from polyrl.request import make_recipe, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.settings import american

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ENTERED = sorted(f.stem for f in (ROOT / "ledger").glob("*.json"))
STANDING = [slug for slug in ENTERED if not awaited(claims()[slug], ledger.read(slug, ROOT / "ledger") or {})]
"""Entries of the experiment that their claim states; the others are of an earlier one, whose successor has not run."""
OWED = ("ppo", "remax", "grpo", "rloo", "dpo", "hdpo", "dr-rpo", "nash-mp")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("polyrl_docs_hooks_of_claims", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry_of(slug: str) -> dict[str, Any]:
    entry = ledger.read(slug, ROOT / "ledger")
    assert entry
    return entry


def config_of(claim: Claim, arm: Arm) -> RunConfig:
    return RunConfig(
        method=arm.method,
        label=arm.name,
        task=claim.task_of(arm),
        budget=claim.budget_of(arm),
        hyperparameters=dict(claim.hyperparameters),
        **claim.options,
    )


# ----------------------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("slug", OWED)
def test_the_claims_that_are_owed_are_written_down(slug: str) -> None:
    claim = claims()[slug]
    assert claim.slug == slug and slug in catalogue.methods()
    assert catalogue.methods()[slug].paper == claim.source
    assert claim.sentence.endswith(".") and claim.place and claim.refuted_by and claim.limits
    assert claim.minutes <= 20
    assert not set(claim.seeds) & set(claim.tuning_seeds)


@pytest.mark.parametrize("slug", sorted(claims()))
def test_a_claims_file_is_named_as_its_methods(slug: str) -> None:
    """A study of several has no method of its name, and is of methods of one family that are there."""
    claim = claims()[slug]
    of_its_own = bool(claim.studies)
    assert of_its_own != (slug in catalogue.methods())
    assert len({catalogue.methods()[method].family for method in claim.methods()}) == 1
    assert not of_its_own or all(slug in studies_of(method) for method in claim.studies)
    stem = slug.replace("-", "_") if of_its_own else catalogue.methods()[slug].path.stem
    assert (catalogue.PACKAGE / "claims" / f"{stem}.py").is_file()


@pytest.mark.parametrize(("slug", "arm"), [(s, a) for s, c in claims().items() for a in c.arms], ids=str)
def test_every_arm_can_be_run(slug: str, arm: Arm) -> None:
    """The recipe builds and its lines are there, so that no experiment fails in its last minute."""
    claim = claims()[slug]
    config = config_of(claim, arm)
    assert make_recipe(config).check()
    metric = make_task(config).metric
    for criterion in claim.criteria:
        if arm.name in criterion.quantity.arms() and hasattr(criterion.quantity.measure, "line"):
            assert criterion.quantity.measure.line in metric.lines
    Budget.parse(config.budget)
    quick = shortened(claim)
    full, short = (Budget.parse(b).limits() for b in (config.budget, quick.budget_of(arm) or quick.budget))
    assert full.keys() == short.keys() and all(short[u] <= full[u] for u in full)


def test_reading_verdicts_imports_nothing_heavy() -> None:
    code = "import sys; from polyrl.claims import verdict, claims; verdict('hdpo'); claims(); "
    code += "print([m for m in ('torch', 'numpy', 'scipy', 'gymnasium', 'altair') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------------- ledger


@pytest.mark.parametrize("slug", STANDING)
def test_an_experiment_has_not_changed_since_its_verdict(slug: str) -> None:
    claim, entry = claims()[slug], entry_of(slug)
    assert entry["slug"] == slug
    changed = f"the experiment of {slug} was changed after its verdict: polyrl reproduce {slug}"
    if earlier(entry):
        primary = [c["primary"] for c in entry["criteria"]]
        assert entry["fingerprint"] == earlier_fingerprint(claim, primary, entry["seeds"]), changed
    else:
        assert entry["rule"] == RULE and entry["fingerprint"] == fingerprint(claim), changed
        assert len(entry["seeds"]) in claim.looks_at() and not entry["commit"].count("+")
    assert entry["seeds"] == list(claim.seeds[: len(entry["seeds"])])
    assert not set(entry["seeds"]) & set(claim.tuning_seeds)
    assert [a["name"] for a in entry["arms"]] == [a.name for a in claim.arms]
    for arm in entry["arms"]:
        assert [run["seed"] for run in arm["runs"]] == entry["seeds"]


@pytest.mark.parametrize("slug", ENTERED)
def test_a_verdict_follows_from_its_own_numbers(slug: str) -> None:
    claim, entry = claims()[slug], entry_of(slug)
    assert verdict_of_entry(entry) == entry["verdict"] == verdict(slug)
    for criterion, stated in zip(claim.criteria, entry["criteria"], strict=True) if slug in STANDING else ():
        assert stated["name"] == criterion.name and stated.get("kind") in (None, criterion.kind)
        assert (stated["at_least"], stated["at_most"]) == (criterion.at_least, criterion.at_most)
    for stated in entry["criteria"]:
        estimate = interval(list(stated["per_seed"].values()), entry["exact"])
        assert stated["outcome"] == (
            outcome_of(estimate, stated["at_least"], stated["at_most"])
            if earlier(entry)
            else outcome_in_entry(entry, stated)[0]
        )
        for name in ("value", "low", "high"):
            assert stated["estimate"][name] == pytest.approx(getattr(estimate, name))


@pytest.mark.parametrize("slug", [slug for slug in ENTERED if claims()[slug].replaces])
def test_an_experiment_that_replaces_another_names_it_and_uses_new_seeds(slug: str) -> None:
    """What is replaced is the entry, or stands in its history; no seed of it is one of the new test."""
    claim, entry = claims()[slug], entry_of(slug)
    replaced = [one for one in (entry, *entry.get("history", ())) if one["fingerprint"] == claim.replaces]
    assert len(replaced) == 1, f"the entry of {slug} is of no experiment that the claim knows"
    known = replaced[0] is entry
    assert known or entry["fingerprint"] == fingerprint(claim)
    seen = {seed for one in (replaced[0], *(entry.get("history", ()) if known else ())) for seed in one["seeds"]}
    assert not seen & {*claim.seeds}
    assert not {*claim.seeds} & {*claim.tuning_seeds}


@pytest.mark.parametrize("slug", sorted(claims()))
def test_what_all_seeds_share_is_named(slug: str) -> None:
    claim = claims()[slug]
    assert claim.shared or not claim.replaces


def present_name(key: str) -> str:
    """What `part.field` is called today; entries keep the names of their day."""
    moved = {"mirror-prox.prox_steps": "anchor-move.prox_steps", "robust-backup.ridge": "regressions.ridge"}
    return moved.get(key, american(key).replace("greedy-twin", "greedy-baseline"))


WITHOUT_EFFECT = {"warmup": 0.0, "normalize_advantage": False, "joint_clip": False, "adam_form": "torch"}
"""Options of `optimize` that lists of updates lack or say otherwise, at the value at which they do nothing."""


def present_key(key: str, value: Any, now: dict[str, Any]) -> str:
    """Where a hyperparameter of an entry stands today; empty for one that had no effect and is gone.

    A recipe that has come to list its models has at `policy` what stood at the architecture, and there and at `epochs`
    what stood at the optimizer.
    """
    name = present_name(key)
    owner, _, field = name.rpartition(".")
    if "epochs.epochs" not in now or owner not in ("optimize", "order-network"):
        return name
    if field.startswith("critic_") or WITHOUT_EFFECT.get(field, ...) == value:
        return ""
    return next((f"{place}.{field}" for place in ("policy", "epochs") if f"{place}.{field}" in now), name)


@pytest.mark.parametrize("slug", STANDING)
def test_the_defaults_are_those_that_the_arms_were_run_with(slug: str) -> None:
    """A default that was changed since is another experiment, although no claim's file was touched."""
    claim, entry = claims()[slug], entry_of(slug)
    for arm, stated in zip(claim.arms, entry["arms"], strict=True):
        now = json.loads(json.dumps(make_recipe(config_of(claim, arm)).hyperparameters()))
        stood = {k: american(v) if isinstance(v, str) else v for k, v in stated["hyperparameters"].items()}
        then = {place: v for k, v in stood.items() if (place := present_key(k, v, now))}
        changed = {k: (v, now.get(k)) for k, v in then.items() if now.get(k, ...) != v}
        assert not changed, f"{slug}, {arm.name}: {changed}; polyrl reproduce {slug}"


@pytest.mark.parametrize("slug", [slug for slug in STANDING if entry_of(slug).get("problems")])
def test_the_tasks_ask_what_they_asked(slug: str) -> None:
    """So is a task whose problems, demonstrations or start have changed."""
    assert entry_of(slug)["problems"] == problems(claims()[slug]), f"polyrl reproduce {slug}"


# ----------------------------------------------------------------------------------------------------- tables, pages


def test_the_tables_say_what_the_ledger_says(hooks: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    overview = hooks.methods_page()
    for slug in catalogue.methods():
        entry = ledger.read(slug, ROOT / "ledger")
        said = entry["verdict"] if entry else "not yet re-tested"
        stem = hooks.file_name(slug)
        shown, linked = (said, said) if slug not in claims() else (
            f"[{said}](docs/claims/{stem}.md)", f"[{said}](../claims/{stem}.md)"
        )  # fmt: skip
        assert [line for line in readme.splitlines() if line.startswith(f"| `{slug}` |") and shown in line], slug
        assert [line for line in overview.splitlines() if f"[`{slug}`]" in line and linked in line], slug


def test_the_pages_of_the_claims_are_up_to_date(hooks: ModuleType) -> None:
    pages = hooks.claim_pages()
    assert {f.name for f in (DOCS / "claims").glob("*.md")} == {Path(a).name for a in pages}
    for address, text in pages.items():
        assert (DOCS / address).read_text(encoding="utf-8") == text, "run: python docs/hooks.py"


@pytest.mark.parametrize("slug", ENTERED)
def test_a_page_shows_the_numbers_and_the_picture(hooks: ModuleType, slug: str) -> None:
    page, entry = hooks.claim_pages()[f"claims/{hooks.file_name(slug)}.md"], entry_of(slug)
    assert claims()[slug].sentence in page and (slug in STANDING) != ("has not been run yet" in page)
    assert f"Verdict: {entry['verdict']}" in page
    for criterion in entry["criteria"]:
        assert criterion["name"] in page and f"| {criterion['outcome']} |" in page
    assert all(f"seed {s}" in page for s in entry["seeds"])
    picture = DOCS / "assets" / "claims" / f"{slug}.svg"
    assert picture.is_file(), f"polyrl reproduce {slug} draws it"
    assert f"(../assets/claims/{slug}.svg)" in page
    assert f"arXiv:{entry['source'][6:]}: {entry['verdict']}" in picture.read_text(encoding="utf-8")


def test_the_rule_in_words_names_what_the_code_does() -> None:
    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    for words in ("95% t interval", "three seeds", "worst value", "inconclusive at this scale", "diverged", "paired"):
        assert words in text
