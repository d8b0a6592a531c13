"""Theory's tasks by name: problems small enough that every value, gap and optimum is computed, not estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyrl.tasks.by_name import make_task

if TYPE_CHECKING:
    from polyrl.tasks.theory.finite import FiniteMDP as FiniteMDP
    from polyrl.tasks.theory.finite import FiniteTask
    from polyrl.tasks.theory.games import PreferenceGame
    from polyrl.tasks.theory.mdp import RobustMDP

__all__ = ["TASKS", "FiniteMDP", "task"]

TASKS: dict[str, str] = {
    "american-put": "when to exercise an option whose price may drift otherwise than in training (a robust MDP)",
    "combination-lock": "find the secret action of each of `horizon` steps; only the last one pays (a finite MDP)",
    "hole-grid": "walk over a slippery grid with holes; each instance is a layout (a finite MDP)",
    "linear-mdp": "five states, sixteen actions, an adversary who moves one factor of the dynamics (a robust MDP)",
    "linear-river": "the river seen and swum in more ways than there are to learn, on average (a finite MDP)",
    "matrix-game": "find the Nash policy of random preferences among `actions` answers; each seed is a game",
    "reset-ladder": "two policies under resets: the best one is hidden by noise in the last layers (a finite MDP)",
    "reward-bandit": "learn the reward whose policy draws the pairs that it is judged on (a finite MDP of one step)",
    "rich-lock": "a lock seen through many observations, and a class of policies with noise (a finite MDP)",
    "river-class": "a river that is known to be one of 72, judged on average (a finite MDP)",
    "river-swim": "swim against the current for the reward of the far bank, judged on average (a finite MDP)",
    "rock-paper-scissors": "find the Nash policy of three answers that beat each other in a circle",
    "shared-pomdps": "tell small POMDPs apart whose models have a part in common (a finite MDP of histories)",
    "singletons": "one secret step among many, and a class with a policy for each (a finite MDP)",
    "stochastic-lock": "a combination lock that slips; each seed is another secret code (a finite MDP)",
}
"""Name of every built-in task and one line about it."""

_PLACES = {
    "american-put": "american_put:AmericanPut",
    "combination-lock": "families:CombinationLock",
    "hole-grid": "families:HoleGrid",
    "linear-mdp": "linear_mdp:SimulatedLinearMDP",
    "linear-river": "families:LinearRiver",
    "matrix-game": "games:MatrixGame",
    "reset-ladder": "agnostic:Ladder",
    "reward-bandit": "reward_bandit:RewardBandit",
    "rich-lock": "agnostic:RichLock",
    "river-class": "families:RiverClass",
    "river-swim": "families:RiverSwim",
    "rock-paper-scissors": "games:RockPaperScissors",
    "shared-pomdps": "shared_pomdps:SharedPOMDPs",
    "singletons": "agnostic:Singletons",
    "stochastic-lock": "families:StochasticLock",
}


def task(name: str, **settings: Any) -> PreferenceGame | RobustMDP | FiniteTask:
    """Return the built-in task `name`; `settings` are its fields (`beta`, `actions`, `rho`, ...) or their texts.

    The name may bring settings of its own: `matrix-game(actions=100, beta=0.05)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    made: PreferenceGame | RobustMDP | FiniteTask = make_task(__name__, _PLACES, name, settings)
    return made


def __getattr__(name: str) -> Any:
    """`FiniteMDP`, which loads torch, when it is asked for."""
    if name == "FiniteMDP":
        from polyrl.tasks.theory.finite import FiniteMDP

        return FiniteMDP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
