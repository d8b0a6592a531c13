"""The table of `make mutants` fits the sources: each mutation applies, and its tests are there."""

from __future__ import annotations

from mutate import SOURCE, listed, problems

LAYERS = (
    "cli",
    "methods",
    "parts",
    "models",
    "data",
    "kernels",
    "report",
    "reproduction",
    "runtime",
    "rollout",
    "tasks",
    "run_state",
)


def test_every_mutation_applies_and_its_tests_exist() -> None:
    assert [text for mutant in listed() for text in problems(mutant)] == []


def test_there_are_mutations_of_every_layer() -> None:
    found = listed()
    assert len(found) >= 200 and len({(m.file, m.old, m.new) for m in found}) == len(found)
    for layer in LAYERS:
        assert any(m.file.startswith(f"{layer}/") for m in found), layer
    assert {"core/loop.py", "core/experience.py", "core/recipe.py"} <= {m.file for m in found}
    assert all((SOURCE / "polyrl" / m.file).is_file() for m in found)


def test_a_stale_entry_is_told() -> None:
    first = listed()[0]
    for wrong in ({"old": "no such text"}, {"file": "nowhere.py"}, {"tests": "test_nothing.py"}, {"new": first.old}):
        assert [*problems(type(first)(**{**vars(first), **wrong}))]
