"""Theory's tasks by name: problems small enough that every value, gap and optimum is computed, not estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyrl.tasks.by_name import make_task

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
    "american-put": "american_put:AmericanPut",
    "linear-mdp": "linear_mdp:SimulatedLinearMDP",
    "matrix-game": "games:MatrixGame",
    "rock-paper-scissors": "games:RockPaperScissors",
}


def task(name: str, **settings: Any) -> PreferenceGame | RobustMDP:
    """Return the built-in task `name`; `settings` are its fields (`beta`, `actions`, `rho`, ...) or their texts.

    The name may bring settings of its own: `matrix-game(actions=100, beta=0.05)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    made: PreferenceGame | RobustMDP = make_task(__name__, _PLACES, name, settings)
    return made
