"""What is to be solved: one folder a domain. Nothing here imports torch."""

from __future__ import annotations

import importlib
import re

from polyrl.errors import UserError, nearest
from polyrl.settings import parse_call

DOMAINS = ("language", "control", "operations", "theory")
"""The kinds of task. Each has a folder of tasks here and a module in `polyrl.run_state`."""

ENVIRONMENT = re.compile(r"^(?:[\w.]+:)?(?:[\w.-]+/)?[\w.-]+-v\d+$")
"""How Gymnasium names its environments: CartPole-v1, ALE/Pong-v5, package:Name-v0."""


def built_in(domain: str) -> dict[str, str]:
    """Name of every built-in task of a domain and one line about it."""
    tasks: dict[str, str] = importlib.import_module(f"polyrl.tasks.{domain}").TASKS
    return tasks


def domain_of(task: str) -> str:
    """The domain that a task belongs to, by its name; a function of the user's by what it says that it returns.

    A function that is annotated `-> FiniteMDP` is of theory, every other one of control. It is read and not run.

    Raises:
        UserError: nothing bears this name.
    """
    if task == "dataset":
        return "language"
    name = parse_call(task)[0] if "(" in task else task
    for domain in DOMAINS:
        if name in built_in(domain):
            return domain
    if ENVIRONMENT.match(name):
        return "control"
    if ":" in name:
        from polyrl.tasks.user_code import FINITE_MDP, stated_return

        return "theory" if stated_return(name) == FINITE_MDP else "control"
    known = [n for domain in DOMAINS for n in built_in(domain)]
    raise UserError(
        f"There is no task '{name}'.{nearest(name, known)} `polyrl list tasks` shows what there is; a Gymnasium "
        "environment is named like CartPole-v1, your own like file.py:function."
    )
