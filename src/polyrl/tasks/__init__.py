"""What is to be solved: one folder a wing. Nothing here imports torch."""

from __future__ import annotations

import importlib
import re

from polyrl.errors import UserError, nearest
from polyrl.settings import parse_call

WINGS = ("language", "control", "operations", "theory")
"""The kinds of task. Each has a folder of tasks here and a world in `polyrl.worlds`."""

ENVIRONMENT = re.compile(r"^(?:[\w.]+:)?(?:[\w.-]+/)?[\w.-]+-v\d+$")
"""How Gymnasium names its environments: CartPole-v1, ALE/Pong-v5, package:Name-v0."""


def built_in(wing: str) -> dict[str, str]:
    """Name of every built-in task of a wing and one line about it."""
    tasks: dict[str, str] = importlib.import_module(f"polyrl.tasks.{wing}").TASKS
    return tasks


def wing_of(task: str) -> str:
    """The wing that a task belongs to, by its name.

    Raises:
        UserError: nothing bears this name.
    """
    if task == "dataset":
        return "language"
    name = parse_call(task)[0] if "(" in task else task
    for wing in WINGS:
        if name in built_in(wing):
            return wing
    if ENVIRONMENT.match(name) or ":" in name:
        return "control"
    known = [n for wing in WINGS for n in built_in(wing)]
    raise UserError(
        f"There is no task '{name}'.{nearest(name, known)} `polyrl list tasks` shows what there is; a Gymnasium "
        "environment is named like CartPole-v1, your own like file.py:function."
    )
