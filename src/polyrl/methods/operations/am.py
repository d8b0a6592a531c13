"""Attention model: read an instance once, point at the next node step by step, and learn from a greedy rollout.

An encoder of attention layers reads the nodes, without positions; a decoder asks by where the tour stands which node
comes next, with what may not come masked. REINFORCE raises solutions that are cheaper than the greedy one of the best
policy so far. With `am+multi-start` the baseline is the mean of several solutions of the same instance, each begun in
another node (POMO, arXiv:2010.16011), and no second model is needed.

Against the paper: layers are normalized over the nodes of each instance (as in POMO), not over the batch, so that what
a policy does with an instance does not depend on those beside it; the first node of a tour is given, so there is no
learned placeholder; there is no exponential baseline in the first epoch; the network is smaller by default;
`width=128, heads=8, feed_forward=512` are the paper's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See, Update
from polyrl.errors import UserError
from polyrl.models.base import Copy
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen, by_heads, draw_weights, feed_forward_layers
from polyrl.parts.combinatorial import AttentionPolicy, BuildSolutions
from polyrl.parts.improve import PolicyGradient
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter
from polyrl.rollout.construction import build
from polyrl.runtime.seeding import stream_seed

SLUG, TITLE, PAPER, YEAR = "am", "Attention, Learn to Solve Routing Problems!", "arXiv:1803.08475", 2018
FORMULA = "grad J = E[(L(pi) - L(greedy rollout of the best policy so far)) grad log p(pi)]"
TASK = "tsp"


class InstanceNorm(nn.Module):
    """Each of the D numbers normalized over the nodes of an instance, then scaled and moved."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """`[B, N, D]` -> `[B, N, D]`; nodes that are not present, bool `[B, N]`, enter nothing."""
        share = (present / present.sum(1, keepdim=True))[..., None]
        centered = h - (h * share).sum(1, keepdim=True)
        variance = (centered.square() * share).sum(1, keepdim=True)
        return centered * (variance + 1e-5).rsqrt() * self.scale + self.shift


class AttentionNetwork(ConstructiveNetwork):
    """Encoder and decoder of section 3."""

    def __init__(
        self, features: int, context: int, width: int, heads: int, layers: int, feed_forward: int, clip: float
    ):
        super().__init__()
        self.heads, self.clip = heads, clip
        self.embed = nn.Linear(features, width)
        self.into = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.forth = feed_forward_layers(layers, width, feed_forward)
        self.norms = nn.ModuleList(InstanceNorm(width) for _ in range(2 * layers))
        self.keys = nn.Linear(width, 3 * width, bias=False)  # of the glimpse: keys and values; of the logits: keys
        self.graph, self.state = nn.Linear(width, width, bias=False), nn.Linear(2 * width + context, width, bias=False)
        self.glimpse = nn.Linear(width, width, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        return by_heads(x, self.heads)

    def read(self, nodes: Tensor, present: Tensor) -> Memory:
        """The encoder (3.1), and what the decoder asks of each node whatever its state."""
        h, seen = self.embed(nodes), present[:, None, None]
        for i, (into, out, forth) in enumerate(zip(self.into, self.out, self.forth, strict=True)):
            q, k, v = (self._heads(x) for x in into(h).chunk(3, -1))
            attended = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            h = self.norms[2 * i](h + out(attended), present)
            h = self.norms[2 * i + 1](h + forth(h), present)
        share = (present / present.sum(1, keepdim=True))[..., None]
        keys, values, last = self.keys(h).chunk(3, -1)
        mean = self.graph((h * share).sum(1))  # of the whole instance
        return {"nodes": h, "keys": self._heads(keys), "values": self._heads(values), "last": last, "mean": mean}

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """The decoder (3.2): a glimpse at what may come next, and logits within +-clip of its answer."""
        nodes = memory["nodes"]
        width = nodes.shape[-1]

        def at(which: Tensor) -> Tensor:
            return nodes.gather(1, which[..., None].expand(*which.shape, width))

        state = self.state(torch.cat([at(seen.here), at(seen.end), seen.context], -1))
        query = self._heads(memory["mean"][:, None] + state)  # eq. 4, 5
        allowed = seen.mask | ~seen.mask.any(-1, keepdim=True)  # of ended states everything, so that nothing is NaN
        glimpse = scaled_dot_product_attention(query, memory["keys"], memory["values"], attn_mask=allowed[:, None])
        answer = self.glimpse(glimpse.transpose(1, 2).flatten(2))  # eq. 6
        return self.clip * torch.tanh(answer @ memory["last"].mT / math.sqrt(width))  # eq. 7


@dataclass(frozen=True, kw_only=True)
class AttentionModel(AttentionPolicy):
    """Attention layers over the nodes, read once, and a pointer that asks for the next one."""

    tanh_clip: float = hyperparameter(10.0, "bound of the logits", above=0)

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> AttentionNetwork:
        """The network, all its matrices uniform within +-1 / sqrt(their inputs).

        Raises:
            UserError: the width is no multiple of the heads.
        """
        network = AttentionNetwork(node_features, context_features, *self.sizes(), self.tanh_clip)
        draw_weights(network, stream)
        for norm in network.norms:
            assert isinstance(norm, InstanceNorm)
            nn.init.ones_(norm.scale), nn.init.zeros_(norm.shift)
        return network


# ---------------------------------------------------------------------------------------------------------- baselines


@dataclass(frozen=True, kw_only=True)
class GreedyRolloutBaseline(Part):
    """Judge a solution against the one that the best policy so far comes to greedily on the same instance."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask", "group"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    models: ClassVar[frozenset[str]] = frozenset({"baseline"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T], the same for all steps of a solution."""
        run_state = context.run_state
        built = build(run_state.network("baseline"), run_state.environment)
        context.log(baseline=-built.costs.mean())
        total = experience["reward"].sum(1) + built.costs[experience["group"]]
        return experience.with_fields(advantage=total[:, None] * experience["mask"])


@dataclass(frozen=True, kw_only=True)
class MultiStartBaseline(Part):
    """Judge a solution against the mean of those of the same instance (POMO, arXiv:2010.16011, eq. 4)."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask", "group"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a single solution of each instance, which is its own mean.

        Raises:
            UserError: says what to set.
        """
        if isinstance(recipe.collect, BuildSolutions) and recipe.collect.starts < 2:
            raise UserError(
                f"{recipe.name}: '{self.name}' judges solutions of an instance against their mean, and of one alone "
                "that says nothing; set --starts 2 or more."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T], the same for all steps of a solution."""
        total = experience["reward"].sum(1)
        _, number, count = torch.unique(experience["group"], return_inverse=True, return_counts=True)
        mean = total.new_zeros(len(count)).index_add(0, number, total) / count
        return experience.with_fields(advantage=(total - mean[number])[:, None] * experience["mask"])


@dataclass(frozen=True)
class BetterBaseline(OwnUpdate):
    """Make the policy the baseline where it is better on fresh instances, by a paired t-test (algorithm 1).

    The instances are drawn anew each time, so that no baseline is chosen for its luck with them.
    """

    every: int = hyperparameter(50, "turns from one test to the next, an epoch of the paper", low=1)
    test_instances: int = hyperparameter(1_000, "instances of the test (paper: 10,000)", low=2)
    significance: float = hyperparameter(0.05, "largest p of one side", above=0, high=1)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Test, and copy the policy's weights where it is better."""
        from scipy.stats import ttest_rel

        context, run_state = see.context, see.context.run_state
        seed = stream_seed(context.seed, self.name, context.iteration, context.turn)
        environment = run_state.task.environment(seed, self.test_instances)
        mine, best = (
            build(run_state.network(name), environment).costs for name in (run_state.models.acts, self.trains)
        )
        better = float((mine - best).mean()) < 0
        p = float(ttest_rel(mine.numpy(), best.numpy(), alternative="less").pvalue) if better else 1.0
        if p < self.significance:
            run_state.models.move(self.trains, run_state.models.acts, 1.0)
        return {"baseline/replaced": float(p < self.significance)}


@dataclass(frozen=True, kw_only=True)
class MultiStart(Change):
    """Build several solutions of each instance, and judge each against their mean: no second model."""

    starts: int = hyperparameter(20, "solutions of each instance", low=2)
    instances: int = hyperparameter(64, "random instances in one iteration", low=1)

    def change(self, recipe: Recipe) -> Recipe:
        """Other sizes of *collect*, another baseline.

        Raises:
            UserError: the recipe builds no solutions.
        """
        if not isinstance(recipe.collect, BuildSolutions):
            raise UserError(
                f"{recipe.name}: 'multi-start' is for what builds solutions of random instances, such as am."
            )
        credit = tuple(p for p in recipe.credit if p.slot != "advantage")
        return replace(
            recipe,
            collect=replace(recipe.collect, instances=self.instances, starts=self.starts),
            credit=(MultiStartBaseline(), *credit),
            models={name: model for name, model in recipe.models.items() if name != "baseline"},
            updates=tuple(step for step in recipe.updates if not isinstance(step, BetterBaseline)),
            notes={
                **recipe.notes,
                "credit": "cheaper than the other solutions of the same instance is good, dearer is bad",
                "improve": "one step of the plain policy gradient",
            },
        )


def recipe() -> Recipe:
    """The paper's, on a network that one core trains in minutes."""
    return Recipe(
        name=SLUG,
        models={"policy": AttentionModel(), "baseline": Copy("policy")},
        collect=BuildSolutions(),
        credit=(GreedyRolloutBaseline(),),
        updates=(Update("policy", (PolicyGradient(),), Fresh()), BetterBaseline("baseline", Fresh())),
        adds=("policy", "greedy-rollout-baseline"),
        notes={
            "collect": "each instance is read once; nodes are sampled one after another from what may come next",
            "credit": "cheaper than the best policy's greedy solution is good, dearer is bad",
            "select": "every step of a solution counts the same",
            "improve": "one step of the plain policy gradient; the baseline follows where a test says it may",
        },
    )
