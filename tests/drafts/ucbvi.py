"""UCBVI: plan in the estimated model with a bonus for what was seldom tried, and act greedily, episode by episode.

A draft of the plain algorithm of arXiv:1703.05449 with the bonus of Chernoff and Hoeffding: for n visits of a pair the
value is raised by c V sqrt(log(2 + t) / n), V the most that can still be earned and t the episodes so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy, TransitionCounts
from polyrl.parts.finite import CountTransitions, PlayEpisodes
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP
from polyrl.tasks.theory.solving import greedy

SLUG = "ucbvi-draft"
TITLE = "Minimax Regret Bounds for Reinforcement Learning"
PAPER = "arXiv:1703.05449"
YEAR = 2017
FORMULA = "pi_h(s) = argmax_a min(V_max, r_n + P_n V_{h+1} + c V_max sqrt(log(2 + t) / n))"
TASK = "combination-lock"


@dataclass(frozen=True)
class OptimisticPlan(OwnUpdate):
    """Plan in the estimated model, values raised where little is known; rewards lie in [0, `highest`] a step."""

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"counts"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    bonus: float = hyperparameter(0.1, "c, by which the bonus is scaled; 0 is greedy", low=0)
    highest: float = hyperparameter(1.0, "the most that an episode can earn from any step on", above=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Plan anew."""
        run_state, counts = see.context.run_state, see["counts"]
        mdp: FiniteMDP = run_state.mdp
        if not mdp.horizon:
            raise UserError(f"{SLUG} plans for a horizon, and {run_state.task.name} has none.")
        q = optimistic(counts.visits, counts.earned, self.bonus, self.highest, see.context.spent.samples)
        see[self.trains].assign(greedy(q))
        return {"optimistic_value": float((q[0].max(-1).values * mdp.initial).sum())}


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
        models={"policy": FinitePolicy(), "counts": TransitionCounts()},
        collect=PlayEpisodes(),
        updates=(CountTransitions("counts", Fresh()), OptimisticPlan("policy", Again())),
        turns=100,
        adds=("play-episodes", "count-transitions", "optimistic-plan"),
    )
