"""A call of `train` that asks for phases (`polyrl.phases`): a list, a text such as "sft,dpo", or a file with some."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from polyrl.arguments import asked_by
from polyrl.errors import UserError
from polyrl.phases import RunPhase, asked_of_phases, read_phases, split_phases
from polyrl.recipe_file import read_phases as read_phases_file
from polyrl.request import Asked, is_recipe_file
from polyrl.runtime.config import PythonObjects


def read_phases_call(method: Any, *, trust_code: bool = False, **call: Any) -> list[RunPhase] | None:
    """The phases that a call of `train` asks for; None where it asks for one run.

    Args:
        method: a list of names, recipes, or mappings of `method` and further arguments of `train`, which hold in that
            phase alone; a text such as "sft,dpo"; or a recipe file with `phases`.
        trust_code: run the code that a recipe file names though the user has not run it before.
        call: the other arguments of `read_call`.

    Raises:
        UserError: an argument is not what it must be, or what `polyrl.phases.read_phases` refuses.
    """
    if isinstance(method, str | os.PathLike) and is_recipe_file(os.fspath(method)):
        what, frontend = asked_by("train", [method], **call)
        said = read_phases_file(os.fspath(method), what, frontend, trust_code=trust_code)
        return None if said is None else read_phases(said)
    items = split_phases(method) if isinstance(method, str) else method
    if not isinstance(items, list | tuple) or (isinstance(method, str) and len(items) < 2):
        return None
    if trust_code:
        raise UserError("trust_code is for code that a recipe file names; what the call names runs anyway.")
    own = [dict(item) if isinstance(item, Mapping) else {"method": item} for item in items]
    if not own or not all("method" in one for one in own):
        raise UserError("Phases are a list of methods, or of mappings with a 'method' each, and one of them has none.")
    methods = [one.pop("method") for one in own]
    alone = [asked_by("train", [m], **_call_of(one)) for m, one in zip(methods, own, strict=True)]
    names = [what.methods[0] for what, _ in alone]
    recipes = {name: recipe for what, _ in alone for name, recipe in what.recipes.items()}
    together, frontend = asked_by("train", ["phases"], **call)
    shared = asked_of_phases(dataclasses.replace(together, recipes=recipes), names)
    return read_phases([(frontend, _over(base, what)) for base, (what, _) in zip(shared, alone, strict=True)])


def _call_of(own: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `asked_by` of one phase: those of `train`, and keywords."""
    named = ("task", "model", "reward", "preference", "dataset", "test_dataset", "options")
    found = {name: own.pop(name, None) for name in named}
    return {**found, "budget": own.pop("budget", ""), "keywords": own}


def _over(base: Asked, own: Asked) -> Asked:
    """What is asked of all phases, and over it what is asked of one."""
    fields = {f.name: getattr(own.given, f.name) or getattr(base.given, f.name) for f in dataclasses.fields(own.given)}
    given = PythonObjects(**fields)
    python = given.names() + (("method",) if own.methods[0] in own.recipes else ())
    settings = {**base.settings, **own.settings, **({"from_python": python} if python else {})}
    merged = {**base.hyperparameters, **own.hyperparameters}
    return dataclasses.replace(own, settings=settings, hyperparameters=merged, given=given)
