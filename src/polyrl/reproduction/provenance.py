"""Where an entry's numbers come from: the code that they depend on, and the processor that computed them.

The code is what `files_of` finds: the methods' files of all arms, the modules of their tasks and domain, the loop, the
formulas and the rule of verdicts, and every module of polyrl that one of them imports, at any depth and also inside
functions. The command line, pages and pictures show numbers and make none: they are left out. Comments, docstrings and
annotations do not count. What other packages compute stands in the entry's versions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.reproduction.claim import Claim, shape
from polyrl.request import make_recipe, make_task
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.runtime.run_folder import commit_of_source
from polyrl.tasks import domain_of

PACKAGE = Path(__file__).parents[1]
ROOTS = ("polyrl.runs", "polyrl.reproduction.judging", "polyrl.reproduction.quantities")
"""What every run and every verdict goes through."""
SHOWS = ("polyrl.cli", "polyrl.api", "polyrl.report.page", "polyrl.report.drawing", "polyrl.reproduction.picture")
"""What shows numbers and makes none."""


def files_of(claim: Claim, configs: Iterable[RunConfig]) -> list[Path]:
    """The files of polyrl that the runs of `configs`, one of each arm, and the claim's verdict depend on, sorted."""
    modules = {*ROOTS}
    files: set[Path] = set()
    for config in configs:
        recipe = make_recipe(config)
        files |= {f.path for slug, f in catalogue.methods().items() if slug in _words(config.method)}
        modules.add(f"polyrl.run_state.{domain_of(config.task)}")
        task = make_task(config, PythonObjects())
        modules |= {c.__module__ for thing in (task, *recipe.parts()) for c in type(thing).__mro__}
        modules |= {c.__module__ for _, entry in recipe.entries() for c in type(entry).__mro__}
    modules |= {type(c.quantity).__module__ for c in claim.criteria}
    modules |= {type(measure).__module__ for c in claim.criteria for measure in c.quantity.measures()}
    files |= {file for module in modules if (file := _file(module)) is not None}
    todo, seen = [*files], {*files}
    while todo:
        for found in _imports(todo.pop()):
            if found not in seen:
                seen.add(found)
                todo.append(found)
    # the claim's own file holds the experiment, whose fingerprint is apart; formulas in it are in that fingerprint
    return sorted(f for f in seen if f.is_relative_to(PACKAGE) and f.parent != PACKAGE / "claims")


def code_of(claim: Claim, configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Hash and number of those files, as an entry holds them."""
    files = files_of(claim, configs)
    parts = {str(f.relative_to(PACKAGE)): _shape_of(f, f.stat().st_mtime) for f in files}
    text = json.dumps(parts, sort_keys=True)
    return {"hash": f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}", "files": len(files)}


def _words(method: str) -> set[str]:
    """Names that a composition is put together of: `a(x=1)+b` -> {"a", "b"}, and values that are none."""
    for sign in "()+,=":
        method = method.replace(sign, " ")
    return set(method.split())


@cache
def _file(module: str) -> Path | None:
    if module.partition(".")[0] != "polyrl" or module.startswith(SHOWS):
        return None
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


@cache
def _imports(file: Path) -> frozenset[Path]:
    """Files of polyrl that a file imports anywhere in it, but for type checkers."""
    found: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(f for name in found if (f := _file(name)) is not None)


@cache
def _shape_of(file: Path, changed: float) -> str:
    text = json.dumps(shape(ast.parse(file.read_text(encoding="utf-8"))))
    return hashlib.sha256(text.encode()).hexdigest()


def machine() -> dict[str, Any]:
    """The system, the processor and the instruction set that PyTorch uses on it: what the last digits depend on."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "model": processor_name(),
        "instructions": str(torch.backends.cpu.get_cpu_capability()),
        "cores": os.cpu_count(),
    }


def processor_name() -> str:
    """What the processor calls itself; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def same_kind(entry_machine: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether digits may be compared: the same processor with the same instruction set, both of them known."""
    keys = ("processor", "model", "instructions")
    return all(entry_machine.get(key) and entry_machine.get(key) == now.get(key) for key in keys)


def refuse_uncommitted() -> None:
    """Refuse what would end in a verdict from code that nobody can look up.

    Raises:
        UserError: polyrl's sources have changes that are not committed.
    """
    if (commit_of_source() or "").endswith("+"):
        raise UserError(
            "polyrl's sources have changes that are not committed, and a verdict must say which code it is of; commit "
            "them first. --quick and --seeds work without."
        )


def commits_are_clean(commits: Iterable[str]) -> bool:
    """Whether no run was made from sources with uncommitted changes."""
    return not any(commit.endswith("+") for commit in commits)
