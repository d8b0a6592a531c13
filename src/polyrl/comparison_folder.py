"""A comparison's folder: what its compare.yaml asks, which run folders are its own, and how it is replaced."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from polyrl.errors import UserError
from polyrl.runtime import ownership
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.runtime.files import read_yaml, short_name, write_atomically, writing
from polyrl.runtime.lock import FolderLock
from polyrl.runtime.run_folder import check_place, provenance


def folder_name(label: str) -> str:
    """A label as a folder name: letters, digits, `+`, `-` and `.` stay; a hash stands for the end of a long one."""
    return short_name("".join(c if c.isalnum() or c in "+-." else "-" for c in label).strip("-.") or "method")


def arm_folder(label: str, seed: int) -> str:
    """The name of a run's folder in its comparison."""
    return f"{folder_name(label)}-seed{seed}"


def begin(
    folder: Path,
    methods: Sequence[str] | Mapping[str, str],
    base: RunConfig,
    seeds: Sequence[int],
    overwrite: bool,
) -> dict[str, Any]:
    """The comparison's compare.yaml; checks that an existing folder holds this very comparison."""
    named = dict(methods) if isinstance(methods, Mapping) else list(methods)
    question = {"methods": named, "seeds": list(seeds), "base": base.as_dict()}
    check_place(folder, "comparison")
    if folder.exists() and not ownership.is_unbegun(folder):
        if not (folder / "compare.yaml").is_file():
            raise UserError(f"The folder {folder} exists already and is no comparison; choose another --out.")
        if not overwrite:
            before = read_comparison(folder)
            if not _same(before["question"], question, folder):
                raise UserError(f"{folder} holds another comparison; choose another --out or say --overwrite.")
            return dict(before)
        if (holding := holding_of(folder)).foreign:
            raise UserError(
                f"The comparison {folder} holds what polyrl did not write ({holding.named()}), so it is not "
                "overwritten; move that away, or choose another --out."
            )
    return {
        **{k: v for k, v in provenance().items() if k in ("command", "versions", "commit")},
        "task": base.task,
        "budget": dict(Budget.parse(base.budget).limits()),
        "methods": list(methods),
        "seeds": list(seeds),
        "started": datetime.datetime.now().isoformat(timespec="seconds"),
        "question": question,
    }


WRITTEN_OUT = {"precision": "float32", "micro_batch_tokens": 1024}
"""Settings that were written out where nobody had asked for them, and now depend on the device."""


def _same(before: dict[str, Any], question: dict[str, Any], folder: Path) -> bool:
    """Whether two questions are the same; settings that an older version did not know have their defaults."""
    known = RunConfig.from_dict(before["base"], folder / "compare.yaml").as_dict()
    asked = question["base"]
    known |= {name: None for name, value in WRITTEN_OUT.items() if asked[name] is None and known[name] == value}
    return {**before, "base": known} == question


def holding_of(folder: Path) -> ownership.Holding:
    """What a comparison's folder holds, by what its compare.yaml says that was compared.

    Raises:
        UserError: it is no comparison.
    """
    if not ownership.is_comparison(folder):
        raise UserError(f"{folder} holds something else than a comparison; choose another --out.")
    question = read_comparison(folder)["question"]
    arms = [arm_folder(name, seed) for name in question["methods"] for seed in question["seeds"]]
    return ownership.comparison_holding(folder, arms)


def clear(folder: Path) -> None:
    """Remove an earlier comparison: its runs, page and question, and nothing that polyrl did not write.

    Raises:
        FolderInUse: one of its runs is being written.
    """
    with writing(folder):
        if not (folder / "compare.yaml").is_file():
            return
        holding = holding_of(folder)
        held = [FolderLock(f) for f in holding.folders if f.parent == folder and f.is_dir()]
        for lock in held:
            lock.release()
        holding.remove()


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read the compare.yaml of a comparison.

    Raises:
        UserError: it cannot be read, or does not say what was compared.
    """
    file = folder / "compare.yaml"
    stated = read_yaml(file)
    question = stated.get("question")
    if not isinstance(question, dict) or not _is_question(question):
        raise UserError(f"{file} does not say what was compared; choose another --out or start with --overwrite.")
    return stated


def asked_of(folder: Path) -> RunConfig | None:
    """What the comparison around `folder` asks of the run of this name; None where there is none that asks it.

    Raises:
        UserError: the comparison's compare.yaml cannot be read.
    """
    around = folder.absolute().parent
    if not ownership.is_comparison(around):
        return None
    question = read_comparison(around)["question"]
    named = question["methods"]
    called = named if isinstance(named, dict) else {method: method for method in named}
    for seed in question["seeds"]:
        for name, method in called.items():
            if arm_folder(name, seed) == folder.absolute().name:
                base = RunConfig.from_dict(question["base"], around / "compare.yaml")
                return replace(base, method=method, label="" if name == method else name, seed=seed)
    return None


def _is_question(question: dict[str, Any]) -> bool:
    methods, seeds = question.get("methods"), question.get("seeds")
    named = [*methods.keys(), *methods.values()] if isinstance(methods, dict) else methods
    return (
        isinstance(named, list)
        and bool(named)
        and bool(seeds)
        and all(isinstance(method, str) for method in named)
        and isinstance(seeds, list)
        and all(type(seed) is int for seed in seeds)
        and isinstance(question.get("base"), dict)
    )


def write(folder: Path, stated: dict[str, Any]) -> None:
    """Write compare.yaml."""
    with writing(folder / "compare.yaml"):
        write_atomically(folder / "compare.yaml", yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
