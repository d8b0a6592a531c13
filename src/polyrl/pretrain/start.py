"""The starting model of a built-in task: a tiny model that polyrl makes itself, pretrains, and keeps in its cache.

The cache holds ordinary model folders. A folder's name says what it was made from, so the same task, size and seed give
the same model, and a change of any of them makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyrl.runtime.cache import cache_folder, cached
from polyrl.tasks.language.base import LanguageTask, digest
from polyrl.tasks.language.tabled import TabledTask

RECIPE_VERSION = 3
"""Raised when the way of making starting models changes."""


def start_folder(task: LanguageTask, seed: int = 0) -> Path:
    """Folder of the starting model, made or not."""
    task = task.starting()
    key = digest([RECIPE_VERSION, task.fingerprint(), seed, *([dict(task.start_size)] if task.start_size else [])])
    return cache_folder() / "models" / f"{task.name}-{task.difficulty}-{key}"


def start_model(task: LanguageTask, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of the task's starting model, making it first where it is not in the cache.

    Args:
        task: the task on whose worked completions the model is pretrained.
        seed: of weights and examples.
        say: told what is going on, for the terminal.
    """

    task = task.starting()

    def make(folder: Path) -> dict[str, Any]:
        if isinstance(task, TabledTask):
            from polyrl.models.language.tables import TablePolicy

            TablePolicy(task.tables).save(folder)
            return {"task": task.name, "kind": "tables"}
        from polyrl.pretrain.solutions import pretrain  # heavy

        return pretrain(task, folder, seed=seed, say=say, **task.start_size)

    return cached(start_folder(task, seed), make)
