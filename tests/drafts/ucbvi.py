"""UCBVI: plan in the estimated model with a bonus for what was seldom tried, and act greedily, episode by episode.

A draft of the plain algorithm of arXiv:1703.05449 with the bonus of Chernoff and Hoeffding: for n visits of a pair the
value is raised by c V sqrt(log(2 + t) / n), V the most that can still be earned and t the episodes so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.parts.finite import PlayEpisodes
from polyrl.recipe import Improver, Recipe, Term, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP
from polyrl.tasks.theory.solving import greedy

SLUG = "ucbvi-draft"
TITLE = "Minimax Regret Bounds for Reinforcement Learning"
PAPER = "arXiv:1703.05449"
YEAR = 2017
FORMULA = "pi_h(s) = argmax_a min(V_max, r_n + P_n V_{h+1} + c V_max sqrt(log(2 + t) / n))"
TASK = "combination-lock"


@dataclass(frozen=True, kw_only=True)
class OptimisticPlan(Improver):
    """Plan in the estimated model, values raised where little is known; rewards lie in [0, `highest`] a step."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "next_state", "step", "reward", "present"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    bonus: float = hyperparameter(0.1, "c, by which the bonus is scaled; 0 is greedy", low=0)
    highest: float = hyperparameter(1.0, "the most that an episode can earn from any step on", above=0)

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Take the episodes in and plan anew."""
        run_state = context.run_state
        mdp: FiniteMDP = run_state.mdp
        if not mdp.horizon:
            raise UserError(f"{SLUG} plans for a horizon, and {run_state.task.name} has none.")
        visits = run_state.get_or_create("visits", lambda: torch.zeros_like(mdp.transition)).clone()
        earned = run_state.get_or_create("earned", lambda: torch.zeros_like(mdp.reward)).clone()
        at = tuple(experience[name][experience["present"]] for name in ("step", "state", "action"))
        following, reward = (experience[name][experience["present"]] for name in ("next_state", "reward"))
        visits.index_put_((*at, following), torch.ones_like(reward), accumulate=True)
        earned.index_put_(at, reward, accumulate=True)
        context.params_updated = True
        run_state.tables.update(visits=visits, earned=earned)
        q = optimistic(visits, earned, self.bonus, self.highest, context.spent.samples)
        run_state.set_policy(greedy(q), context)
        context.spent.updates += 1
        context.log(optimistic_value=(q[0].max(-1).values * mdp.initial).sum())


def optimistic(visits: Tensor, earned: Tensor, bonus: float, highest: float, episodes: int) -> Tensor:
    """Optimistic values `[H, S, A]` by visits `[H, S, A, S]` and sums of rewards `[H, S, A]`."""
    count = visits.sum(-1)
    raised = bonus * highest * torch.sqrt(math.log(2 + episodes) / count.clamp(min=1))
    q = torch.zeros_like(earned)
    value = torch.zeros(earned.shape[1], dtype=torch.float64)
    for h in range(len(q) - 1, -1, -1):
        known = (earned[h] + visits[h] @ value) / count[h].clamp(min=1) + raised[h]
        q[h] = torch.where(count[h] > 0, known.clamp(max=highest), highest)
        value = q[h].max(-1).values
    return q


def recipe() -> Recipe:
    """One episode for each plan, and a hundred of them an iteration."""
    return Recipe(
        name=SLUG,
        collect=PlayEpisodes(),
        optimize=OptimisticPlan(),
        turns=100,
        adds=("play-episodes", "optimistic-plan"),
    )
