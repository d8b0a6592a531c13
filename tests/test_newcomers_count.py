"""The count in docs/design.md of the papers that came last: they are there, and so is what it says is not."""

from __future__ import annotations

import re
from pathlib import Path

from polyrl import catalogue
from polyrl.rollout.environments import Environments
from test_docs import text

ROOT = Path(__file__).parents[1]
SECTION = text("design.md").partition("## A newcomer's count")[2].partition("\n## ")[0]
PAPERS = re.findall(r"^\| `([\w-]+)` \| (\S+) \| (fits|stretch|missing)\b(.*) \| (.*) \|$", SECTION, re.MULTILINE)
DRAFTS = {"bilevel_reward", "ppo_list", "q_learning_generative", "ucbvi"}
"""What papers are compared with, or what shows a contract; no paper to come."""


def test_the_papers_that_came_last_are_methods_where_it_says() -> None:
    assert len(PAPERS) == 7 and SECTION.strip().splitlines()[2].startswith("Every paper that polyrl set out with")
    for slug, place, *_ in PAPERS:
        assert slug in catalogue.methods()
        assert (ROOT / "src" / "polyrl" / place).exists(), place


def test_no_paper_stands_as_a_draft() -> None:
    assert {file.stem for file in (ROOT / "tests" / "drafts").glob("*.py")} == DRAFTS


def test_environments_of_control_are_still_not_set_to_a_state() -> None:
    """The section says so, though no paper waits for it."""
    assert "are not set to a state" in " ".join(SECTION.split())
    assert not {"reset_to", "restore", "set_state"} & set(dir(Environments))
