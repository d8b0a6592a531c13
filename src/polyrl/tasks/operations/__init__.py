"""Inventory tasks by name. Importing this costs next to nothing: torch is loaded when a task is asked for."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from polyrl.errors import UserError, nearest
from polyrl.settings import parse_call, parse_value

if TYPE_CHECKING:
    from polyrl.tasks.operations.settings import InventoryTask

__all__ = ["TASKS", "task"]

TASKS: dict[str, str] = {
    "backlog": "one store, normal demand, unmet demand waits; the optimum is the newsvendor's base stock",
    "lost-sales": "one store, Poisson demand, unmet demand is lost; the optimum comes from dynamic programming",
    "one-warehouse": "one warehouse and several stores, unmet demand is lost; no optimum is known",
    "serial": "a chain of stocking points before one store, backlog; the optimum is Clark and Scarf's",
    "transshipment": "a warehouse that may not keep stock and several stores, backlog; a tight lower bound is known",
}
"""Name of every inventory task and one line about it."""


def task(name: str, **settings: Any) -> InventoryTask:
    """Return the inventory task `name`; `settings` are its fields (`lead_time`, `penalty`, ...) or their texts.

    The name may bring settings of its own: `lost-sales(lead_time=2, penalty=9)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    name, own = parse_call(name)
    settings = {**own, **settings}
    if name not in TASKS:
        raise UserError(f"There is no task '{name}'.{nearest(name, TASKS)} The tasks are {', '.join(sorted(TASKS))}.")
    from polyrl.tasks.operations.settings import KINDS

    cls = KINDS[name]
    known, kinds = {f.name for f in fields(cls) if f.init}, get_type_hints(cls)
    for key in settings:
        if key not in known:
            raise UserError(f"The task '{name}' has no setting '{key}'.{nearest(key, known)}")
    return cls(**{k: parse_value(name, k, kinds[k], v) for k, v in settings.items()})
