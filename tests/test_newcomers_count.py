"""The count of papers to come in docs/design.md: no paper is counted that is there, and no gap that is mended."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from polyrl import catalogue
from polyrl.rollout.environments import Environments
from test_docs import text

ROOT = Path(__file__).parents[1]
SECTION = text("design.md").partition("## A newcomer's count")[2].partition("\n## ")[0]
GAPS = dict(re.findall(r"^\| ([A-Z]) \| (.*) \|$", SECTION, re.MULTILINE))
PAPERS = re.findall(r"^\| `([\w-]+)` \| (.*) \| (fits|stretch|missing) \| (.*) \|$", SECTION, re.MULTILINE)


def named(said: str) -> set[str]:
    """Gaps that a row names: `(A)`, `(H, M)`."""
    return {letter for found in re.findall(r"\(([A-Z](?:, [A-Z])*)\)", said) for letter in found.split(", ")}


def test_papers_that_have_come_have_left_the_count() -> None:
    slugs = [slug for slug, *_ in PAPERS]
    come = sorted(set(slugs) & (set(catalogue.methods()) | {info.alias for info in catalogue.methods().values()}))
    assert not come, f"{come} are methods now: take them out of the count in docs/design.md"
    assert 0 < len(slugs) == len(set(slugs)) <= 25


def test_the_sums_are_right() -> None:
    words = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    words += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"]
    counts = [sum(verdict == kind for _, _, verdict, _ in PAPERS) for kind in ("fits", "stretch", "missing")]
    fit, around, wait = (words[n] for n in counts)
    waits = f"{wait} waits" if wait == "one" else f"{wait} wait"
    wants = f"{around} wants" if around == "one" else f"{around} want"
    assert f"So {fit} fit as files, {wants} a way around, {waits}." in SECTION
    assert SECTION.strip().startswith(f": the papers to come\n\n{words[len(PAPERS)].capitalize()} papers have a card")


def test_every_gap_is_named_and_every_name_is_a_gap() -> None:
    assert set().union(*(named(said) for *_, said in PAPERS)) == set(GAPS)
    assert all(named(said) for _, _, verdict, said in PAPERS if verdict == "missing")


def test_files_that_are_said_to_be_new_are_new_and_others_are_there() -> None:
    there = {"tasks/theory/mdp.py", "run_state/theory.py", "tasks/theory/"}
    source = ROOT / "src" / "polyrl"
    for slug, files, *_ in PAPERS:
        for file in re.findall(r"[\w/]+/(?:\w+\.py)?", files):
            assert (source / file).exists() == (file in there), f"{slug}: {file}"
    drafts = {slug.replace("-", "_") for slug, _, _, said in PAPERS if "stands as a draft" in said}
    known = {
        "bilevel_reward",
        "ppo_list",
        "q_learning_generative",
        "ucbvi",
    }  # what is there already, or what papers compare with
    assert drafts | known == {file.stem for file in (ROOT / "tests" / "drafts").glob("*.py")}


STILL: dict[str, Callable[[], bool]] = {}
"""Whether the code still lacks what a gap says, by what its mending would most likely bring."""


def test_a_gap_that_is_mended_is_no_longer_told() -> None:
    assert set(STILL) == set(GAPS)
    mended = [gap for gap, lacks in STILL.items() if not lacks()]
    assert not mended, f"the gaps {mended} seem to be mended: see to the count in docs/design.md"


def test_environments_of_control_are_still_not_set_to_a_state() -> None:
    """The count says so, though no paper in it waits for it."""
    assert "are not set to a state" in " ".join(SECTION.split())
    assert not {"reset_to", "restore", "set_state"} & set(dir(Environments))
