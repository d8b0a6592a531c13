"""The ledger as a page and the short paper: every claim is there, what is replaced says so, the filter filters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from polyrl.claims import claims, family_of
from polyrl.reproduction import ledger
from polyrl.reproduction.claim import awaited
from polyrl.reproduction.ledger_page import REACH, SCRIPT, findings, forest, ledger_page
from polyrl.reproduction.page import cost_of

ROOT = Path(__file__).parents[1]
ENTRIES = {slug: entry for slug in claims() if (entry := ledger.read(slug, ROOT / "ledger"))}
ADDRESSES = {slug: f"{slug}.md" for slug in claims()}
FAMILIES = {slug: family_of(slug) for slug in claims()}


def whole(entries: dict[str, Any]) -> str:
    return ledger_page(claims(), entries, FAMILIES, ADDRESSES, {"grpo": "there.svg"})


def test_every_claim_stands_on_the_page_with_what_decided_it() -> None:
    page = whole(ENTRIES)
    found = re.findall(r'<div class="claim" data-family="([^"]+)" data-verdict="([^"]+)"', page)
    said = [(FAMILIES[s], ENTRIES[s]["verdict"] if s in ENTRIES else "not yet re-tested") for s in claims()]
    assert found == said and page.count("</div>") == len(claims()) + 1
    for slug, entry in ENTRIES.items():
        one = page.split(f"## {slug}: ")[1].split("</div>")[0]
        assert entry["claim"] in one and all(c["name"] in one for c in entry["criteria"] if c["primary"])
        assert ("has not been run" in one) == awaited(claims()[slug], entry)
        assert ("What it does not say" in one) != awaited(claims()[slug], entry)
        assert ("Earlier verdicts: " in one) == bool(entry.get("history"))
    assert page.count("there.svg") == 1
    without = whole({s: e for s, e in ENTRIES.items() if s != "grpo"})
    assert "## grpo: not yet re-tested" in without and claims()["grpo"].sentence in without


@pytest.mark.skipif(not shutil.which("node"), reason="runs the page's script in node")
def test_the_filter_leaves_what_is_chosen() -> None:
    code = SCRIPT.removeprefix("<script>").removesuffix("</script>")
    page = """
    const lists = ["family", "verdict"].map((name) => ({name, value: "", addEventListener(_, f) {this.change = f}}));
    const given = [["a", "met"], ["a", "open"], ["b", "open"]];
    const claims = given.map(([family, verdict]) => ({dataset: {family, verdict}}));
    const output = {}, box = {hidden: true};
    const document = {
      querySelectorAll: (asked) => asked === ".claim" ? claims : lists,
      querySelector: (asked) => asked.endsWith("output") ? output : box,
    };
    const seen = [];
    const note = () => seen.push([output.textContent, claims.map((c) => !c.hidden)]);
    CODE
    note(); lists[0].value = "a"; lists[0].change(); note(); lists[1].value = "open"; lists[1].change(); note();
    console.log(JSON.stringify([box.hidden, ...seen]));
    """
    made = subprocess.run(["node", "-e", page.replace("CODE", code)], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == [
        False,
        ["3 of 3", [True, True, True]],
        ["2 of 3", [True, True, False]],
        ["1 of 3", [False, True, False]],
    ]


def test_the_findings_sort_claims_by_verdict_and_name_what_has_not_run() -> None:
    text = findings(claims(), {s: e for s, e in ENTRIES.items() if s != "dpo"}, ADDRESSES)
    held = text.split("### Held at this scale")[1].split("###")[0]
    assert [s for s in ENTRIES if s != "dpo" and f"| [{s}](" in held] == [
        s for s, e in ENTRIES.items() if s != "dpo" and e["verdict"] == "confirmed"
    ]
    assert "[dpo](dpo.md)" in text.split("### Written down and not run")[1]
    marks = [("(earlier experiment)" in line) for line in held.splitlines() if line.startswith("| [")]
    assert marks == sorted(marks)


def test_the_picture_of_effects_lies_on_the_side_of_the_threshold() -> None:
    def criterion(name: str, value: float, half: float, **more: Any) -> dict[str, Any]:
        estimate = {"value": value, "low": value - half, "high": value + half, "n": 5}
        wanted = {"at_least": None, "at_most": None, "unit": "", "kind": "effect", "primary": True, "outcome": "open"}
        return {"name": name, "quantity": "q", "estimate": estimate, **wanted, **more}

    entry = {
        "criteria": [
            criterion("a", 3.0, 1.0, at_least=1.0),
            criterion("b", 3.0, 1.0, at_most=1.0),
            criterion("c", 900.0, 1.0, at_least=1.0),
            criterion("d", 0.0, 1.0, at_least=0.0, kind="control"),
        ]
    }
    drawn = ElementTree.fromstring(forest(claims(), {"grpo": entry}))
    name = "{http://www.w3.org/2000/svg}"
    middle = float(drawn.findall(f"{name}line")[0].get("x1", "nan"))
    places = [float(c.get("cx", "nan")) - middle for c in drawn.iter(f"{name}circle")]
    assert len(places) == 3  # a control is no effect
    assert places[0] == pytest.approx(-places[1], abs=0.2) and places[0] > 0
    assert places[2] == pytest.approx(places[0] / 2 * (REACH - 1), rel=0.01)


def test_the_committed_paper_and_picture_are_up_to_date() -> None:
    addresses = {s: f"claims/{s.replace('-', '_')}.md" for s in claims()}
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    assert findings(claims(), ENTRIES, addresses) in text, "run: python docs/hooks.py"
    file = ROOT / "docs" / "assets" / "claims" / "all-effects.svg"
    assert file.read_text(encoding="utf-8") == forest(claims(), ENTRIES), "run: python docs/hooks.py"


def test_the_cost_is_of_the_arms_of_the_first_effect() -> None:
    def entry(quantity: str) -> dict[str, Any]:
        arms = [{"name": n, "runs": [{"seconds": s}]} for n, s in (("a", 1.0), ("a, more", 2.0), ("b", 4.0))]
        return {"arms": arms, "criteria": [{"quantity": quantity, "kind": "effect", "primary": True}]}

    assert cost_of(entry("end: a, more minus b")) == "a, more took 0.5 times the computing time of b"
    assert cost_of(entry("end: b over a")) == "b took 4 times the computing time of a"
    assert cost_of(entry("end, the better one: a or a, more minus b")) == "a took 0.25 times the computing time of b"
    assert cost_of(entry("end: a")) == "a took 0.5 times the computing time of a, more"  # the first two arms
