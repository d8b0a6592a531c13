"""Every pair of online methods on a tiny model: which compose, and why the others do not, as docs/composition.md says.

`POLYRL_WRITE_COMPOSITION=1 pytest tests/test_composition.py` writes docs/composition.json anew; `python docs/hooks.py`
makes the page of it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.pretrain.tiny import build_tiny
from polyrl.recipe import Recipe
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig

FILE = Path(__file__).parents[1] / "docs" / "composition.json"
PREFERENCE_FILE = FILE.with_name("preference-composition.json")
WRITE = "POLYRL_WRITE_COMPOSITION"
SIZE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 16, "context": 256}
SMALL_TASKS = {
    "addition": "addition(difficulty=1)",
    "learned-reverse": "learned-reverse(difficulty=3,pairs=32)",
    "learned-sort": "learned-sort(difficulty=4,pairs=32)",
    "sort-pairs": "sort-pairs(difficulty=4,pairs=32)",
}
"""Tasks that methods name, as small as they come."""
SMALL_BATCH = {
    "prompts_per_step": 4,
    "continuations": 2,
    "members": 2,
    "problems": 4,
    "solutions": 4,
    "kept": 2,
    "demonstrations": 8,
}
"""Hyperparameters that cost time, where a method has them."""
BASES = [m for m in catalogue.family("language-online") if catalogue.methods()[m].domain == "language"]
ADDED = [*BASES, "wco", "uwo"]
PREFERENCE = [
    name
    for name in catalogue.family("preference")
    if catalogue.methods()[name].domain == "language" and name not in ("reward-model", "kto", "plackett-luce", "sft")
]
"""Methods that train a policy on pairs; what each adds to another is a table of its own."""
ASKED = re.compile(r"set --([a-z-]+) (\w+)")
"""How an error says which setting would mend a composition."""


def tasks_of(base: str, added: str) -> list[str]:
    """What the added method was made for, and the base: a pair composes if it runs on either."""
    if "aihf" in (base, added):  # elsewhere it makes pairs first, which takes long where answers are rarely right
        return [SMALL_TASKS["sort-pairs"]]
    named = [catalogue.methods()[m].task if m in catalogue.methods() else "learned-reverse" for m in (added, base)]
    own = [n for n in named if n != "addition"] or ["addition"]
    return [SMALL_TASKS.get(name, name) for name in dict.fromkeys(own)]


def joined(base: str, added: str) -> Recipe:
    """The composition as objects, before anybody checks it."""
    other = catalogue.part_classes() if added in catalogue.parts() else []
    part = next((p() for p in other if p().name == added), None)
    return catalogue.build(base, domain="language") + (part or catalogue.build(added, domain="language"))


def one_iteration(base: str, added: str, task: str, model: Path, settings: dict[str, str]) -> None:
    """Build the composition and run one iteration of it.

    Raises:
        UserError: it does not compose.
    """
    known = {k.rpartition(".")[2] for k in joined(base, added).hyperparameters()}
    hyperparameters = {k: str(v) for k, v in {**SMALL_BATCH, **settings}.items() if k in known}
    spec = f"{base}+{added}"
    config = RunConfig(method=spec, task=task, model=str(model), budget="iterations=1", hyperparameters=hyperparameters)
    loop, _ = make_loop(config)
    loop.iterate()
    assert loop.context.spent.iterations == 1 and loop.context.spent.samples > 0


def settled(base: str, added: str, task: str, model: Path) -> tuple[str, bool]:
    """The settings that it needs (`completions_per_prompt=4`) and True, or why it does not run and False."""
    settings: dict[str, str] = {}
    while True:
        try:
            one_iteration(base, added, task, model, settings)
        except UserError as error:
            asked = ASKED.search(str(error))
            if not asked or asked[1].replace("-", "_") in settings:
                return str(error), False
            settings[asked[1].replace("-", "_")] = asked[2]
        else:
            return ",".join(f"{name}={value}" for name, value in settings.items()), True


def outcome(base: str, added: str, model: Path) -> str:
    """Empty where the pair runs as it is, settings where it needs them, else why it runs on neither's task."""
    said = ""
    for task in tasks_of(base, added):
        found, runs = settled(base, added, task, model)
        if runs:
            return found
        said = said or found
    return said


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", 0, **SIZE)


@pytest.fixture(scope="module")
def stated() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return found


@pytest.mark.parametrize("base", BASES)
def test_pairs_compose_as_the_table_says(base: str, tiny: Path, stated: dict[str, dict[str, str]]) -> None:
    found = {added: outcome(base, added, tiny) for added in ADDED if added != base}
    if os.environ.get(WRITE):
        stated[base] = found
        FILE.write_text(json.dumps(dict(sorted(stated.items())), indent=1) + "\n", encoding="utf-8")
    assert found == stated.get(base), f"run {WRITE}=1 pytest tests/{Path(__file__).name} && python docs/hooks.py"
    assert all(len(reason) < 300 and "\n" not in reason for reason in found.values())


@pytest.mark.parametrize("base", PREFERENCE)
def test_pairs_of_preference_methods_compose_as_the_table_says(base: str, tiny: Path) -> None:
    known = json.loads(PREFERENCE_FILE.read_text(encoding="utf-8")) if PREFERENCE_FILE.is_file() else {}
    found = {added: outcome(base, added, tiny) for added in PREFERENCE if added != base}
    if os.environ.get(WRITE):
        text = json.dumps(dict(sorted({**known, base: found}.items())), indent=1)
        PREFERENCE_FILE.write_text(text + "\n", encoding="utf-8")
        known[base] = found
    assert found == known.get(base), f"run {WRITE}=1 pytest tests/{Path(__file__).name} && python docs/hooks.py"
    assert all(len(reason) < 500 and "\n" not in reason for reason in found.values())
    assert sorted(known) == sorted(PREFERENCE) or os.environ.get(WRITE)


@pytest.mark.parametrize("spec", ["grpo+capo", "ppo+d3s", "ppo+wco", "grpo+otc-po", "t-ppo+pf-ppo"])
def test_what_the_first_lines_promise_composes(spec: str, stated: dict[str, dict[str, str]]) -> None:
    base, _, added = spec.partition("+")
    assert stated[base][added] == "", spec


def test_the_table_is_of_the_methods_that_there_are(stated: dict[str, dict[str, str]]) -> None:
    assert sorted(stated) == sorted(BASES)
