"""Names that a method's hyperparameters can have, read from the sources without importing them.

So a name that is none is refused at once, and not after torch is imported. The names are those of every class that a
method's `recipe()` can come by, so they may be a few too many and never one too few: what is among them is looked up in
the recipe itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from polyrl import catalogue
from polyrl.method_files import read_source

Symbol = tuple[str, str]
"""A module of polyrl and a name in it; an empty name is the module itself."""
ALWAYS = frozenset({"turns"})
"""Hyperparameters of a recipe itself."""
BUILDERS = frozenset({"change", "given_within"})
"""Methods of parts in which other parts may be made."""
ROOMS = ("polyrl.recipe", "polyrl.core.", "polyrl.parts.", "polyrl.methods.", "polyrl.models.", "polyrl.data.")
"""Where parts, models and sources are written."""
NOT_SET = {("polyrl.core.recipe", "Recipe"), ("polyrl.core.fields", "Field")}
"""Classes whose fields are no hyperparameters."""


def stated_names(spec: str, domain: str | None = None) -> frozenset[str] | None:
    """Every name that a hyperparameter of the composition can have; None where its sources are not polyrl's own.

    Args:
        spec: what the user typed, all of whose names are known.
        domain: the kind of task; None is any.
    """
    found = set(ALWAYS)
    for name in catalogue.names_in(spec):
        if name in catalogue.methods():
            infos = catalogue.variants()[name]
            places = [(i.module, "recipe") for i in infos if domain is None or i.domain in (domain, "")]
        elif name in catalogue.parts():
            places = [(catalogue.parts()[name].module, catalogue.parts()[name].class_name)]
        else:
            return None
        if not all(module.startswith("polyrl.") for module, _ in places):
            return None
        found |= _fields(places)
    measures = [(p.module, p.class_name) for p in catalogue.parts().values() if p.measures]
    return frozenset(found | _fields(measures))


def _fields(places: list[Symbol]) -> set[str]:
    """Fields of all classes that can be reached from these places."""
    found: set[str] = set()
    seen: set[Symbol] = set()
    waiting = [*places]
    while waiting:
        symbol = waiting.pop()
        if symbol in seen:
            continue
        seen.add(symbol)
        module, name = symbol
        if not module.startswith(ROOMS) or symbol in NOT_SET:
            continue
        stated = _namespace(module).get(name)
        if isinstance(stated, tuple):
            waiting.append(stated)
        elif stated is not None:
            if isinstance(stated, ast.ClassDef):
                found |= {i.target.id for i in stated.body if isinstance(i, ast.AnnAssign) and _is_field(i)}  # type: ignore[union-attr]
            waiting += _mentioned(module, stated)
    return found


def _is_field(item: ast.AnnAssign) -> bool:
    return isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation)


@cache
def _file_of(module: str) -> Path | None:
    """The source of a module of polyrl, or None."""
    base = catalogue.PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _namespace(module: str) -> dict[str, ast.stmt | Symbol]:
    """What the names of a module stand for: statements in it, or names of other modules."""
    file = _file_of(module)
    found: dict[str, ast.stmt | Symbol] = {}
    for item in read_source(file).body if file else ():
        found |= _bound(item)
    return found


def _bound(item: ast.stmt) -> dict[str, ast.stmt | Symbol]:
    if isinstance(item, ast.ClassDef | ast.FunctionDef):
        return {item.name: item}
    if isinstance(item, ast.Assign):
        return {t.id: item for t in item.targets if isinstance(t, ast.Name)}
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        return {item.target.id: item}
    if isinstance(item, ast.ImportFrom) and (item.module or "").partition(".")[0] == "polyrl":
        return {a.asname or a.name: _imported(str(item.module), a.name) for a in item.names}
    return {}


def _imported(module: str, name: str) -> Symbol:
    """`from module import name`, which may be a module too."""
    return (f"{module}.{name}", "") if _file_of(f"{module}.{name}") else (module, name)


def _mentioned(module: str, stated: ast.stmt) -> Iterator[Symbol]:
    """What a function, a constant or the statements of a class mention; of a class's methods, those that make parts."""
    within: list[ast.AST] = [stated]
    if isinstance(stated, ast.ClassDef):
        own = [i for i in stated.body if not isinstance(i, ast.FunctionDef) or i.name in BUILDERS]
        within = [*stated.bases, *own]
    known = dict(_namespace(module))
    nodes = [node for root in within for node in ast.walk(root)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            known |= _bound(node)
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in known:
            what = known[node.id]
            yield what if isinstance(what, tuple) else (module, node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = known.get(node.value.id)
            if isinstance(owner, tuple) and not owner[1]:
                yield owner[0], node.attr
