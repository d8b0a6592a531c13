"""Synchronous Q-learning: draw every state and action once from a generative model, and move all values at once.

With a horizon the step size is (H + 1) / (H + k), with a discount 1 / (1 + (1 - gamma) (k - 1)), for the k-th draw: the
first draw replaces the values, and in problems without chance a pass over the layers makes them exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy, FiniteValues
from polyrl.parts.finite import DrawEveryPair
from polyrl.recipe import Recipe
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


@dataclass(frozen=True)
class SynchronousQ(OwnUpdate):
    """Move the values of all pairs towards their draws."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"next_state", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One move for each draw of every pair, in their order."""
        run_state, memory = see.context.run_state, see.context.memory("q-learning")
        mdp: FiniteMDP = run_state.mdp
        if mdp.criterion == "average":
            raise UserError(f"{SLUG} needs a horizon or a discount, and {run_state.task.name} has neither.")
        q = see[self.trains].values.clone()
        following = batch["next_state"].view(*mdp.shape, -1)
        reward = batch["reward"].view(*mdp.shape, -1)
        for k in range(following.shape[-1]):
            memory["draws"] = memory.get("draws", 0) + 1
            value = q.max(-1).values  # [L, S]
            if mdp.horizon:
                value = torch.cat([value[1:], torch.zeros(1, value.shape[1], dtype=torch.float64)])
            ahead = value.gather(1, following[..., k].flatten(1)).view(mdp.shape)
            q += step_size(mdp, memory["draws"]) * (reward[..., k] + (mdp.discount or 1.0) * ahead - q)
        see[self.trains].assign(q)
        return {}


@dataclass(frozen=True)
class ActGreedily(OwnUpdate):
    """Act by the largest value, the first of equals."""

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"q"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """The policy for all steps and states at once."""
        see[self.trains].assign(greedy(see["q"].values))
        return {}


def recipe() -> Recipe:
    """One draw of every pair an iteration."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "q": FiniteValues()},
        collect=DrawEveryPair(),
        updates=(SynchronousQ("q", Fresh()), ActGreedily("policy", Again())),
        adds=("draw-every-pair", "synchronous-q", "act-greedily"),
    )
