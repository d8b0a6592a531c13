"""Synchronous Q-learning: draw every state and action once from a generative model, and move all values at once.

With a horizon the step size is (H + 1) / (H + k), with a discount 1 / (1 + (1 - gamma) (k - 1)), for the k-th draw: the
first draw replaces the values, and in problems without chance a pass over the layers makes them exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.parts.finite import DrawEveryPair
from polyrl.recipe import Improver, Recipe, Term
from polyrl.tasks.theory.finite import FiniteMDP
from polyrl.tasks.theory.solving import greedy

SLUG = "q-learning-generative-draft"
TITLE = "Synchronous Q-learning with a generative model"
PAPER = "arXiv:2102.06548"
YEAR = 2021
FORMULA = "Q_h(s, a) += alpha_k (r + max_a' Q_{h+1}(s', a') - Q_h(s, a)), all s and a at once"
TASK = "combination-lock"


def step_size(mdp: FiniteMDP, draw: int) -> float:
    """alpha_k of the k-th draw, from 1; 1 for the first."""
    if mdp.horizon:
        return (mdp.horizon + 1) / (mdp.horizon + draw)
    assert mdp.discount is not None
    return 1 / (1 + (1 - mdp.discount) * (draw - 1))


@dataclass(frozen=True, kw_only=True)
class SynchronousQ(Improver):
    """Move the values of all pairs towards their draws, and act greedily by them."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"next_state", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """One update for each draw of every pair, in their order."""
        run_state, memory = context.run_state, context.memory("q-learning")
        mdp: FiniteMDP = run_state.mdp
        if mdp.criterion == "average":
            raise UserError(f"{SLUG} needs a horizon or a discount, and {run_state.task.name} has neither.")
        q: Tensor = run_state.get_or_create("q", lambda: torch.zeros(mdp.shape, dtype=torch.float64)).clone()
        following = experience["next_state"].view(*mdp.shape, -1)
        reward = experience["reward"].view(*mdp.shape, -1)
        for k in range(following.shape[-1]):
            memory["draws"] = memory.get("draws", 0) + 1
            value = q.max(-1).values  # [L, S]
            if mdp.horizon:
                value = torch.cat([value[1:], torch.zeros(1, value.shape[1], dtype=torch.float64)])
            ahead = value.gather(1, following[..., k].flatten(1)).view(mdp.shape)
            target = reward[..., k] + (mdp.discount or 1.0) * ahead
            q += step_size(mdp, memory["draws"]) * (target - q)
        context.params_updated = True
        run_state.tables["q"] = q
        run_state.set_policy(greedy(q), context)
        context.spent.updates += following.shape[-1]


def recipe() -> Recipe:
    """One draw of every pair an iteration."""
    return Recipe(
        name=SLUG,
        collect=DrawEveryPair(),
        optimize=SynchronousQ(),
        adds=("draw-every-pair", "synchronous-q"),
    )
