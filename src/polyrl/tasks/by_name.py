"""Making a built-in task from its name and settings, as a person types them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from polyrl.errors import UserError, nearest
from polyrl.settings import parse_call, parse_value


def make_task(package: str, places: Mapping[str, str], name: str, settings: Mapping[str, Any]) -> Any:
    """Return the task `name`; its module is imported only now.

    Args:
        package: the domain's package of tasks.
        places: name -> `module:Class` in that package; the class is a dataclass whose fields are the settings.
        name: the task, which may bring settings of its own: `countdown(difficulty=4)`.
        settings: more of them, as values or as their texts.

    Raises:
        UserError: an unknown name, an unknown setting, or a setting out of its range.
    """
    name, own = parse_call(name)
    settings = {**own, **settings}
    if name not in places:
        raise UserError(f"There is no task '{name}'.{nearest(name, places)} The tasks are {', '.join(sorted(places))}.")
    module, _, class_name = places[name].partition(":")
    cls = getattr(importlib.import_module(f"{package}.{module}"), class_name)
    known = [f.name for f in fields(cls) if f.init]
    for setting in settings:
        if setting not in known:
            raise UserError(
                f"The task '{name}' has no setting '{setting}'.{nearest(setting, known)} It has {', '.join(known)}."
            )
    return cls(**{k: parse_value(f"the task {name}", k, _kind(cls, k), v) for k, v in settings.items()})


def _kind(cls: type, setting: str) -> Any:
    """The type of one setting; others may be annotated with what is imported for type checkers only."""
    owner = next(c for c in cls.__mro__ if setting in vars(c).get("__annotations__", {}))
    alone = type(setting, (), {"__annotations__": {setting: owner.__annotations__[setting]}})
    alone.__module__ = owner.__module__
    return get_type_hints(alone)[setting]
