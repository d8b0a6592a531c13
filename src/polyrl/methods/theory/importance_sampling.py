"""Importance sampling: play uniformly, and weigh the episodes that a policy would have played by A^H.

The baseline of agnostic policy learning that asks for nothing but episodes: one batch of them values all policies of a
class without bias, but each policy agrees with one episode in A^H, so the variance is of that order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.models.finite import FinitePolicy, PolicyClassValues
from polyrl.parts.finite import PlayEpisodes, check_horizon
from polyrl.parts.policy_class import TakeBest, agreeing
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP

SLUG = "importance-sampling"
TITLE = "Agnostic Reinforcement Learning: Foundations and Algorithms (its baseline)"
PAPER = "arXiv:2506.01884"
YEAR = 2025
FORMULA = "v(pi) = A^H / n sum_i 1[pi ~> tau_i] R(tau_i), actions uniform"
TASK = "singletons"


@dataclass(frozen=True, kw_only=True)
class PlayUniformly(PlayEpisodes):
    """Play episodes whose every action is drawn uniformly."""

    episodes: int = hyperparameter(500, "episodes in one iteration", low=1)

    def count(self, context: Context) -> int:
        """As many as is asked for, of a problem with a horizon."""
        check_horizon(SLUG, context.run_state.task)
        return self.episodes

    def policy(self, rows: Tensor, context: Context) -> Tensor:
        """Uniform, whatever was learned."""
        mdp: FiniteMDP = context.run_state.mdp
        return mdp.uniform


@dataclass(frozen=True)
class WeighEpisodes(OwnUpdate):
    """Value every policy of the class by the episodes that it would have played."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """All episodes so far."""
        mdp: FiniteMDP = see.context.run_state.mdp
        fields = {name: batch[name] for name in ("state", "action", "step")}
        plays = agreeing(mdp.policy_class.policies, fields).all(-1)  # pi ~> tau
        weight = float(mdp.shape[2]) ** batch["reward"].shape[1]
        see[self.trains].add((weight * plays * batch["reward"].sum(1)).T)
        return {"agreeing": float(plays.double().mean())}


def recipe() -> Recipe:
    """Uniform episodes, weights of A^H, the best of the class."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "values": PolicyClassValues()},
        collect=PlayUniformly(),
        updates=(WeighEpisodes("values", Fresh()), TakeBest("policy", Again())),
        adds=("play-uniformly", "weigh-episodes", "take-best"),
        notes={
            "collect": "plain episodes, every action uniform",
            "credit": "1 for the policies that would have acted so in every step, times A^H",
            "improve": "the largest estimated value of the class",
        },
    )
