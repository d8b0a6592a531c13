"""Fields of the experience: each stands once, with what parts share or in the file of the part that alone brings it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from conftest import Command
from polyrl import Field, Part, UserError, catalogue
from polyrl.core.fields import FIELDS, documented, own_fields
from polyrl.core.update import OwnRows
from polyrl.data.base import Source
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.parts.credit import GAE
from polyrl.recipe import Stage

TOLD = {"action_mask", "next_action_mask"}
"""Fields that an environment tells (`info["action_mask"]`): no part gives or needs them."""


def classes() -> list[type[Part]]:
    """Every class of parts in the package, what parts derive from included."""
    for folder in ("parts", "methods", "data", "models"):
        package = importlib.import_module(f"polyrl.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def below(kind: type[Part]) -> Iterator[type[Part]]:
        for sub in kind.__subclasses__():
            yield from (sub, *below(sub))

    return [kind for kind in dict.fromkeys(below(Part)) if kind.__module__.startswith("polyrl.")]


def brought(kind: type[Part]) -> frozenset[str]:
    """Fields that a part gives, or that the rows have of a source or of a batch of a paper's own."""
    if kind in (Replay, Transitions):
        return kind(returns=True).sampled()
    own: Any = vars(kind)
    rows = own.get("fields", frozenset()) if issubclass(kind, Source | OwnRows) else frozenset()
    return frozenset(own.get("gives", frozenset()) | rows)


def modules_that(names: dict[str, set[type[Part]]], name: str) -> set[str]:
    """Modules of the classes that state a field first: those that derive from one of them state nothing new."""
    kinds = names.get(name, set())
    first = {kind for kind in kinds if not any(base in kinds for base in kind.__mro__[1:])}
    return {kind.__module__ for kind in first}


def stated(attribute: Any) -> dict[str, set[type[Part]]]:
    found: dict[str, set[type[Part]]] = {}
    for kind in classes():
        for name in attribute(kind):
            found.setdefault(name, set()).add(kind)
    return found


def test_what_a_part_gives_is_documented_and_stands_once() -> None:
    gives = stated(brought)
    declared = stated(lambda kind: vars(kind).get("own_fields", ()))
    assert set(gives) - set(declared) - set(FIELDS) == set()
    assert {name: kinds for name, kinds in declared.items() if len(kinds) > 1 or name in FIELDS} == {}
    assert len(declared) > 30 and len(FIELDS) > 30
    for name, (owner,) in declared.items():  # whoever says what it is gives it, or is what those derive from that do
        assert name in {n for kind in classes() if issubclass(kind, owner) for n in kind.gives}, name


def test_a_field_that_one_module_alone_gives_stands_there_and_no_other_does() -> None:
    gives = stated(brought)
    for name in FIELDS.keys() - TOLD:
        assert len(modules_that(gives, name)) >= 2, name
    for name, (_, owner) in own_fields(classes()).items():
        assert modules_that(gives, name) == {owner.__module__}, name


def test_every_field_says_shape_unit_and_meaning() -> None:
    for name, field in documented(classes()).items():
        assert field.shape.startswith("[B") and field.meaning and field.unit, name
        assert all(hasattr(torch, dtype) for dtype in field.dtype.split(", ")), name


def test_the_page_is_of_the_same_fields() -> None:
    assert documented(catalogue.part_classes()) == documented(classes())


LAG = Field("[B]", "float32", "steps", "how long the answer waited")


@dataclass(frozen=True, kw_only=True)
class Waiting(Part):
    """Say how long answers waited."""

    stage: ClassVar[Stage] = "score"
    gives: ClassVar[frozenset[str]] = frozenset({"lag"})
    own_fields: ClassVar[Mapping[str, Field]] = {"lag": LAG}


@dataclass(frozen=True, kw_only=True)
class WaitingMore(Waiting):
    """Says one thing more."""

    gives: ClassVar[frozenset[str]] = Waiting.gives | {"patience"}
    own_fields: ClassVar[Mapping[str, Field]] = {"patience": LAG}


def test_a_part_has_the_fields_of_what_it_derives_from() -> None:
    assert documented([WaitingMore]) == {**FIELDS, "lag": LAG, "patience": LAG}
    assert documented([Waiting, GAE, WaitingMore])["lag"] is LAG  # said twice is the same thing
    assert "lag" not in documented([GAE])
    assert own_fields([WaitingMore])["lag"] == (LAG, Waiting)


def test_one_name_is_not_two_things() -> None:
    other = Field("[B, T]", "bool", "-", "nothing of the kind")

    def class_of(name: str, fields: dict[str, Field]) -> Any:
        return type(name, (Part,), {"own_fields": fields, "stage": "score", "__doc__": "x"})

    with pytest.raises(UserError, match="'lag' that Slow says is its own is also one of Waiting's own"):
        documented([Waiting, class_of("Slow", {"lag": other})])
    with pytest.raises(UserError, match="'score' that Bold says is its own is one of every experience"):
        documented([class_of("Bold", {"score": other})])
    recipe = catalogue.build("rloo") + class_of("Bold", {"score": other})()
    with pytest.raises(UserError, match="give it another name"):
        recipe.check()


OWN = '''"""Late: rewards come late."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl import Experience, Field, Part, hyperparameter
from polyrl.catalogue import build

SLUG = "late"
FORMULA = "none"


@dataclass(frozen=True, kw_only=True)
class Delay(Part):
    """Say how late every reward is."""

    stage: ClassVar[str] = "score"
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    gives: ClassVar[frozenset[str]] = frozenset({"delay"})
    own_fields = {"delay": Field("[B, T]", "float32", "days", "how late the reward of a step is")}

    def __call__(self, experience, context):
        return experience.with_fields(delay=torch.full_like(experience["reward"], 3.0))


def recipe():
    return build("ppo", domain="control") + Delay()
'''


def test_trace_shows_what_a_method_file_says_of_its_fields(
    polyrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "late.py"
    file.write_text(OWN, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("trace", file, "--task", "CartPole-v1", "--seed", "1")
    assert told.code == 0 and told.err == ""
    said = " ".join(told.out.split())
    assert "how late the reward of a step is" in said and "days" in said
    assert "how much better than expected the action was" in said  # and what all parts share
