"""What the files of methods and parts say of themselves, read from their source without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from polyrl.recipe import kebab
from polyrl.tasks import DOMAINS

ABSTRACT = {
    "Part",
    "Term",
    "Improver",
    "Architecture",
    "Averaged",
    "PairTerm",
    "ImplicitRewardLoss",
    "LogRatioLoss",
    "ImitationNLL",
    "OffPolicyTerm",
    "ReplayChange",
    "Trained",
    "Descended",
    "ActByChoice",
    "CostPolicy",
    "ProposalTarget",
    "OfTheory",
    "OrderingPolicy",
    "ConstructivePolicy",
    "Source",
    "AttentionPolicy",
    "Episodes",
    "FromFinite",
}
ROOTS = {
    "Term": "improve",
    "Improver": "improve",
    "Architecture": "policy",
    "Change": "data",
    "Trained": "models",
    "Judged": "judged",
    "Source": "data",
}
"""Stage of the classes of `polyrl.core.part` that parts derive from."""
DOMAIN_OF_FOLDER = {"preference": "language"}
"""Folders of methods that run in the domain of another name."""
FAMILIES = {
    "language-online": "Language models that learn from what they sample",
    "preference": "Language models that learn from preferences and demonstrations",
    "control": "Control",
    "operations": "Operations research",
    "theory": "Theory",
}
"""Families of methods in the order of lists, and what they are."""
FAMILY_OF_FOLDER = {"language": "language-online"}
"""Families that are not called like their folder."""


@dataclass(frozen=True)
class MethodInfo:
    """What the catalogue knows of a method without importing it."""

    slug: str
    title: str
    paper: str
    year: int
    formula: str
    family: str
    summary: str
    module: str
    path: Path
    task: str = ""
    """The task that it runs on when none is named."""
    alias: str = ""
    """A shorter name for compositions: `grpo+otc`."""
    domain: str = ""
    """The kind of task that it runs on; empty where that is not known (files and installed packages)."""
    first: bool = False
    """Whether its name means this file where no kind of task is said, whatever the domains' order."""


@dataclass(frozen=True)
class PartInfo:
    """What the catalogue knows of a part without importing it."""

    name: str
    stage: str
    summary: str
    class_name: str
    module: str
    path: Path
    measures: bool = False
    """Whether recipes put it in by themselves."""


# -------------------------------------------------------------------------------------------- reading the sources


@cache
def read_source(path: Path) -> ast.Module:
    """The syntax tree of a file, read once."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _constants(tree: ast.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = [*zip(target.elts, node.value.elts, strict=False)]
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    found[name.id] = value.value
    return found


def _class_constants(node: ast.ClassDef) -> dict[str, Any]:
    """`stage: ClassVar[Stage] = "score"` -> {"stage": "score"}."""
    return {
        item.target.id: item.value.value
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and isinstance(item.value, ast.Constant)
    }


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()


def _sentence(line: str) -> str:
    """`GRPO: the answers ...` -> `The answers ...`."""
    text = line.partition(": ")[2] or line
    return text[:1].upper() + text[1:]


def method_info(path: Path, module: str, folder: str) -> MethodInfo | None:
    """Read the file of a method in `methods/folder`; None if it defines no recipe."""
    tree = read_source(path)
    if not any(isinstance(n, ast.FunctionDef) and n.name == "recipe" for n in tree.body):
        return None
    known = _constants(tree)
    slug = str(known.get("SLUG", path.stem.replace("_", "-")))
    return MethodInfo(
        slug=slug,
        title=str(known.get("TITLE", slug)),
        paper=str(known.get("PAPER", "")),
        year=int(known.get("YEAR", 0)),
        formula=str(known.get("FORMULA", "")),
        family=str(known.get("FAMILY", FAMILY_OF_FOLDER.get(folder, folder))),
        summary=_sentence(_first_line(tree)),
        module=module,
        path=path,
        task=str(known.get("TASK", "addition" if folder == "language" else "")),
        alias=str(known.get("ALIAS", "")),
        domain=str(known.get("DOMAIN", DOMAIN_OF_FOLDER.get(folder, folder if folder in DOMAINS else ""))),
        first=known.get("FIRST") is True,
    )


def part_infos(files: Iterable[tuple[Path, str]]) -> dict[str, PartInfo]:
    """The parts that files (path, module) define, by name."""
    classes = {
        node.name: (node, module, path)
        for path, module in files
        for node in read_source(path).body
        if isinstance(node, ast.ClassDef)
    }

    def stage_of(name: str) -> str | None:
        if name in ROOTS:
            return ROOTS[name]
        if name not in classes:
            return None
        stated = _class_constants(classes[name][0])
        if "stage" in stated:
            return str(stated["stage"])
        bases = [b.id for b in classes[name][0].bases if isinstance(b, ast.Name)]
        return next((s for s in map(stage_of, bases) if s), None)

    infos = {}
    for name, (node, module, path) in classes.items():
        stage = stage_of(name)
        if stage and name not in ABSTRACT:
            key = kebab(name)
            measures = bool(_class_constants(node).get("measures"))
            infos[key] = PartInfo(key, stage, _first_line(node), name, module, path, measures)
    return infos
