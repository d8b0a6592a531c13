"""POPLER: value every policy of a class by short segments of episodes that a few core policies have played.

Plain episodes, and a class with a sunflower: a core of K policies, and for each policy at most D petals, so that what a
policy does between two of its petals is what some core policy does there. A uniform core policy agrees with a segment
with probability #{core ~> segment} / K, and not A^-H. Segments join in a small chain for each policy, from the start
over its petals to the end; a petal that a policy reaches with probability eps / (6 D) or more, as far as is known, is
explored from: follow the policy to the petal's layer, and a core policy from there. The body of the paper was not read;
threshold and order are recalled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.models.finite import FinitePolicy, PolicyClassValues
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import PlayEpisodes, check_horizon
from polyrl.parts.policy_class import TakeBest, agreeing, one_hot
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask
from polyrl.tasks.theory.policy_class import Petal, PolicyClass

SLUG = "popler"
TITLE = "When is Agnostic Reinforcement Learning Statistically Tractable?"
PAPER = "arXiv:2310.06113"
YEAR = 2023
FORMULA = "P(x -> y) = 1/|D_x| sum 1[pi ~> segment] K / #{core ~> segment}; values by dynamic programming over petals"
TASK = "singletons"


class PetalChains(Tables):
    """For each policy a chain from the start (0) over its petals (1..D) to the end, from explored nodes alone.

    Attributes:
        reached: `[N, D + 1, D + 1]`, probability of coming from a node to a petal next; the last column is the end.
        earned: the same shape, expected reward on the way, where it is that way.
        explored: `[P]` bool, of the distinct petals.
    """

    reached: Tensor
    earned: Tensor
    explored: Tensor

    def __init__(self, policies: int, most: int, petals: int):
        super().__init__()
        for name in ("reached", "earned"):
            self.register_buffer(name, torch.zeros(policies, most + 1, most + 1, dtype=torch.float64))
        self.register_buffer("explored", torch.zeros(petals, dtype=torch.bool))


def distinct(policies: PolicyClass) -> list[Petal]:
    """Every petal of some policy, in order."""
    return sorted({petal for of in policies.petals for petal in of})


@dataclass(frozen=True, kw_only=True)
class Chains(OfTheory):
    """Chains in which nothing is explored."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> PetalChains:
        """As large as the class."""
        check_horizon(SLUG, task)
        found = task.mdp.policy_class
        return PetalChains(len(found), max(map(len, found.petals)), len(distinct(found)))


@dataclass(frozen=True, kw_only=True)
class ExploreSunflower(PlayEpisodes):
    """Play uniform core policies from the start, then from one petal after another, to which a policy leads."""

    episodes: int = hyperparameter(4000, "n1, episodes of core policies from the start", low=1)
    attempts: int = hyperparameter(600, "n2, episodes towards each petal", low=1)

    def count(self, context: Context) -> int:
        """n1 in the first iteration, n2 afterwards."""
        return self.attempts if context.memory(SLUG).get("policy", -1) >= 0 else self.episodes

    def policy(self, rows: Tensor, context: Context) -> Tensor:
        """A core policy for each episode, behind the policy that leads to the petal `[B, H, S, A]`."""
        mdp: FiniteMDP = context.run_state.mdp
        memory, found = context.memory(SLUG), mdp.policy_class
        uniform = counted_uniforms(context.seed, self.stream, "core", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        played = found.core[(uniform * len(found.core)).long()]
        if memory.get("policy", -1) >= 0:
            layer = distinct(found)[memory["petal"]][0]
            played[:, :layer] = found.policies[memory["policy"], :layer]
        return one_hot(played, mdp.shape[2])


@dataclass(frozen=True)
class JoinSegments(OwnUpdate):
    """Take the segments from the explored node into the chains, value all policies, and say what is explored next."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "reward"})
    models: ClassVar[frozenset[str]] = frozenset({"chains"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    eps: float = hyperparameter(0.3, "accuracy: petals that are reached with eps / (6 D) or more are explored", above=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One node; when none is left to explore, the run is finished."""
        memory, chains = see.context.memory(SLUG), see["chains"]
        mdp: FiniteMDP = see.context.run_state.mdp
        found = mdp.policy_class
        petals = distinct(found)
        fields = {name: batch[name] for name in ("state", "action", "step", "reward")}
        if memory.get("policy", -1) < 0:
            node, begin = None, 0
        else:
            node = petals[memory["petal"]]
            begin = node[0]
            arrived = fields["state"][:, begin] == node[1]
            fields = {name: values[arrived] for name, values in fields.items()}
            chains.explored[memory["petal"]] = True
        join(chains, found, fields, node, begin)
        value, reach = valued(chains, found)
        see[self.trains].estimates.copy_(value)
        threshold = self.eps / (6 * max(1, chains.reached.shape[1] - 1))
        memory["policy"] = -2
        for number, of in enumerate(found.petals):
            for place, petal in enumerate(of):
                at = petals.index(petal)
                if memory["policy"] < 0 and not chains.explored[at] and reach[number, place + 1] >= threshold:
                    memory.update(policy=number, petal=at)
        if memory["policy"] < 0:
            see.context.finish("every petal that the class reaches often enough is explored")
        return {"explored": float(chains.explored.sum()), "kept": float(len(fields["state"]))}


def join(chains: PetalChains, found: PolicyClass, rows: Mapping[str, Tensor], node: Petal | None, begin: int) -> None:
    """Estimate from the episodes `[B, H]` that came to a node (none is the start) at step `begin` what follows it."""
    size, horizon = rows["state"].shape
    if not size:
        return

    def agrees_until(policies: Tensor) -> Tensor:
        """Whether policies take all actions from `begin` to before each step, `[N, B, H + 1]`."""
        agree = agreeing(policies, rows)
        agree[..., :begin] = True
        until = torch.ones(*agree.shape[:2], horizon + 1, dtype=torch.bool)
        until[..., 1:] = agree.long().cumprod(-1).bool()
        return until

    consistent, core = agrees_until(found.policies), agrees_until(found.core).sum(0)  # [N, B, H + 1], [B, H + 1]
    paid = torch.zeros(size, horizon + 1, dtype=torch.float64)
    paid[:, 1:] = rows["reward"].cumsum(1)
    every = torch.arange(size)
    for number, of in enumerate(found.petals):
        if node is not None and node not in of:
            continue
        source = 0 if node is None else of.index(node) + 1
        end, to = torch.full((size,), horizon), torch.full((size,), chains.reached.shape[2] - 1)
        for place in reversed(range(len(of))):  # the first one on the way stands in the end
            layer, state = of[place]
            if node is None or layer > begin:
                there = rows["state"][:, layer] == state
                end[there], to[there] = layer, place
        weight = consistent[number, every, end].double() * len(found.core) / core[every, end].clamp(min=1)
        gained = weight * (paid[every, end] - paid[:, begin])
        for table, what in ((chains.reached, weight), (chains.earned, gained)):
            table[number, source] = torch.zeros(table.shape[2], dtype=torch.float64).index_add_(0, to, what) / size


def valued(chains: PetalChains, found: PolicyClass) -> tuple[Tensor, Tensor]:
    """Value of each policy `[N]`, and how probably it comes to each node `[N, D + 1]`; unexplored nodes are worth 0."""
    reach = torch.zeros(chains.reached.shape[:2], dtype=torch.float64)
    reach[:, 0] = 1
    for place in range(reach.shape[1] - 1):  # petals stand in the order of their layers
        reach[:, place + 1] = (reach * chains.reached[:, :, place]).sum(1)
    return (reach[..., None] * chains.earned).sum((1, 2)), reach


def recipe() -> Recipe:
    """Core policies from the start and from petals, chains of segments, the best of the class."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "values": PolicyClassValues(), "chains": Chains()},
        collect=ExploreSunflower(),
        updates=(JoinSegments("values", Fresh()), TakeBest("policy", Again())),
        adds=("explore-sunflower", "join-segments", "take-best"),
        notes={
            "collect": "episodes of K core policies; towards a petal by the policy whose petal it is",
            "credit": "K over the number of core policies that agree with a segment, for all that do",
            "select": "segments between petals; petals above the threshold are explored",
            "improve": "the largest estimated value of the class",
        },
    )
