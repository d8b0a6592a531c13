"""Trajectory trees: with a generative model one random tree values every policy of a class.

A tree is one outcome of chance: the first time that any policy needs a step, state and action, a reward and a next
state are drawn, and all policies that come there share them. So a tree costs as many draws as the class can reach
together (at most H times its spanning capacity), however many policies there are, and a policy's value is its mean over
trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.models.finite import FinitePolicy, PolicyClassValues
from polyrl.parts.finite import FromFinite, check_horizon
from polyrl.parts.policy_class import TakeBest
from polyrl.recipe import Recipe, hyperparameter
from polyrl.rollout.finite import drawn, outcomes
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, thresholds

SLUG = "trajectory-tree"
TITLE = "Agnostic Reinforcement Learning: Foundations and Algorithms (its trees)"
PAPER = "arXiv:2506.01884"
YEAR = 2025
FORMULA = "v(pi) = mean over trees of pi's return in the tree, each (h, s, a) drawn once a tree for all policies"
TASK = "singletons"


@dataclass(frozen=True, kw_only=True)
class GrowTrees(FromFinite):
    """Draw trees, one query for each step, state and action that some policy of the class comes to."""

    access: ClassVar[frozenset[str]] = frozenset({"generative"})
    stream: ClassVar[str] = "trees"
    gives: ClassVar[frozenset[str]] = frozenset({"class_return", "mask", "present"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "class_return": Field("[B, N]", "float64", "reward", "what each policy of the class earns in a tree (theory)"),
    }

    trees: int = hyperparameter(20, "trees in one iteration", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """A row a tree."""
        mdp: FiniteMDP = context.run_state.mdp
        check_horizon(SLUG, context.run_state.task)
        policies = mdp.policy_class.policies
        _, states, actions = mdp.shape
        rows = self.numbered(self.trees, context)
        start = counted_uniforms(context.seed, self.stream, "start", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        state = drawn(thresholds(mdp.initial), start)[:, None].expand(-1, len(policies))  # [B, N]
        total, needed = torch.zeros(state.shape, dtype=torch.float64), 0
        for h in range(mdp.layers):
            chosen = policies[:, h].T[state, torch.arange(len(policies))]
            cell = state * actions + chosen
            uniform = counted_uniforms(
                context.seed, self.stream, h, rows=rows, times=torch.arange(states * actions), numbers=2
            )
            shared = uniform.gather(1, cell[..., None].expand(-1, -1, 2))  # the same for all that come to a cell
            layer = torch.full_like(state, h)
            asked = torch.zeros(len(rows), states * actions, dtype=torch.bool)
            needed += int(asked.scatter_(1, cell, True).sum())
            state, reward = outcomes(mdp, layer, state, chosen, shared)
            total += reward
        context.spent.queries += needed
        context.log(queries_of_a_tree=needed / len(rows))
        there = torch.ones(len(rows), 1, dtype=torch.bool)
        return Experience({"class_return": total, "mask": there, "present": there})


@dataclass(frozen=True)
class AverageTrees(OwnUpdate):
    """Value every policy of the class by the mean of its returns in all trees so far."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"class_return"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Take the trees in."""
        see[self.trains].add(batch["class_return"])
        return {}


def recipe() -> Recipe:
    """Trees that all policies share, and the best of the class."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "values": PolicyClassValues()},
        collect=GrowTrees(),
        updates=(AverageTrees("values", Fresh()), TakeBest("policy", Again())),
        adds=("grow-trees", "average-trees", "take-best"),
        budget="queries=20000",
        notes={
            "collect": "draws of a generative model, cached in each tree",
            "credit": "each policy's return in each tree",
            "improve": "the largest estimated value of the class",
        },
    )
