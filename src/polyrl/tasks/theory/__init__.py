"""Theory's tasks by name: problems small enough that every value, gap and optimum is computed, not estimated."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from polyrl.errors import UserError, nearest
from polyrl.settings import parse_call, parse_value

if TYPE_CHECKING:
    from polyrl.tasks.theory.games import PreferenceGame
    from polyrl.tasks.theory.mdp import RobustMDP

__all__ = ["TASKS", "task"]

TASKS: dict[str, str] = {
    "american-put": "when to exercise an option whose price may drift otherwise than in training (a robust MDP)",
    "linear-mdp": "five states, sixteen actions, an adversary who moves one factor of the dynamics (a robust MDP)",
    "matrix-game": "find the Nash policy of random preferences among `actions` answers; each seed is a game",
    "rock-paper-scissors": "find the Nash policy of three answers that beat each other in a circle",
}
"""Name of every built-in task and one line about it."""

_PLACES = {
    "american-put": "mdp:AmericanPut",
    "linear-mdp": "mdp:SimulatedLinearMDP",
    "matrix-game": "games:MatrixGame",
    "rock-paper-scissors": "games:RockPaperScissors",
}


def task(name: str, **settings: Any) -> PreferenceGame | RobustMDP:
    """Return the built-in task `name`; `settings` are its fields (`beta`, `actions`, `rho`, ...) or their texts.

    The name may bring settings of its own: `matrix-game(actions=100, beta=0.05)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    name, own = parse_call(name)
    settings = {**own, **settings}
    if name not in _PLACES:
        raise UserError(f"There is no task '{name}'.{nearest(name, TASKS)} The tasks are {', '.join(sorted(TASKS))}.")
    module, _, cls_name = _PLACES[name].partition(":")
    cls = getattr(importlib.import_module(f"{__name__}.{module}"), cls_name)
    known = [f.name for f in fields(cls) if f.init]
    for setting in settings:
        if setting not in known:
            raise UserError(
                f"The task '{name}' has no setting '{setting}'.{nearest(setting, known)} It has {', '.join(known)}."
            )
    kinds = get_type_hints(cls)
    made: PreferenceGame | RobustMDP = cls(
        **{k: parse_value(f"the task {name}", k, kinds[k], v) for k, v in settings.items()}
    )
    return made
