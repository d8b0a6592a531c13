"""DR-LSVI-UCB: optimistic robust value iteration with linear features, acting greedily.

The value-based method that DR-RPO adds a policy to: the same regressions, adversary and bonus, and the limit eta = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.parts.theory import KnownReward, RobustBackup, RollEpisode
from polyrl.recipe import Improver, Recipe, Term
from polyrl.tasks.theory.mdp import soft_policy

SLUG = "dr-lsvi-ucb"
TITLE = "Distributionally Robust Least-Squares Value Iteration with UCB"
PAPER = "arXiv:2403.09621"
YEAR = 2024
FORMULA = "pi = argmax_a Q, Q = r + sum_i phi_i worst_i(V) + beta sum_i phi_i sqrt(Lambda^-1_ii)"
TASK = "linear-mdp"


@dataclass(frozen=True, kw_only=True)
class GreedyPolicy(Improver):
    """Install the policy that takes the action of the largest value, the first of equals."""

    solves: ClassVar[str] = "mdp"
    needs: ClassVar[frozenset[str]] = frozenset({"action_value"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    eta: ClassVar[float] = 0.0
    """The temperature whose values must have been backed up: `RobustBackup` checks it."""

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """pi_h(. | s) for all h and s at once."""
        run_state = context.run_state
        run_state.set_policy(soft_policy(run_state.tables["q"], run_state.task.log_reference, 0.0)[0])
        context.spent.updates += 1


def recipe() -> Recipe:
    """Algorithm 1: one episode, one backup over all data, act greedily."""
    return Recipe(
        name=SLUG,
        collect=RollEpisode(),
        score=(KnownReward(),),
        credit=(RobustBackup(eta=0.0),),
        terms=(),
        optimize=GreedyPolicy(),
        adds=("robust-backup", "greedy-policy"),
        notes={
            "collect": "one episode in the nominal dynamics; the first acts at random, as nothing is known",
            "score": "the environment's reward, known as a function",
            "credit": "a backward sweep over all data: one regression a factor, moved to its worst, plus a bonus",
            "improve": "the greedy policy, which is deterministic",
        },
    )
