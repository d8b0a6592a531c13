"""DR-LSVI-UCB: optimistic robust value iteration with linear features, acting greedily.

The value-based method that DR-RPO adds a policy to: the same regressions, adversary and bonus, and the limit eta = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.models.tables import ActionValueTable, PolicyTable, RidgeRegressions
from polyrl.parts.theory import KnownReward, RobustBackup, RollEpisode
from polyrl.recipe import Recipe
from polyrl.tasks.theory.mdp import soft_policy

SLUG = "dr-lsvi-ucb"
TITLE = "Distributionally Robust Least-Squares Value Iteration with UCB"
PAPER = "arXiv:2403.09621"
YEAR = 2024
FORMULA = "pi = argmax_a Q, Q = r + sum_i phi_i worst_i(V) + beta sum_i phi_i sqrt(Lambda^-1_ii)"
TASK = "linear-mdp"


@dataclass(frozen=True, kw_only=True)
class GreedyPolicy(OwnUpdate):
    """Install the policy that takes the action of the largest value, the first of equals."""

    solves: ClassVar[str] = "mdp"
    needs: ClassVar[frozenset[str]] = frozenset({"action_value"})
    models: ClassVar[frozenset[str]] = frozenset({"q"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    eta: ClassVar[float] = 0.0
    """The temperature whose values must have been backed up: `RobustBackup` checks it."""

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """pi_h(. | s) for all h and s at once."""
        policy, _ = soft_policy(see["q"].values, see.context.run_state.task.log_reference, 0.0)
        see[self.trains].assign(policy)
        return {}


def recipe() -> Recipe:
    """Algorithm 1: one episode, one backup over all data, act greedily."""
    return Recipe(
        name=SLUG,
        models={"policy": PolicyTable(), "q": ActionValueTable(), "regressions": RidgeRegressions()},
        collect=RollEpisode(),
        score=(KnownReward(),),
        credit=(RobustBackup(eta=0.0),),
        updates=(GreedyPolicy("policy", Fresh()),),
        adds=("robust-backup", "greedy-policy"),
        notes={
            "collect": "one episode in the nominal dynamics; the first acts at random, as nothing is known",
            "score": "the environment's reward, known as a function",
            "credit": "a backward sweep over all data: one regression a factor, moved to its worst, plus a bonus",
            "improve": "the greedy policy, which is deterministic",
        },
    )
