"""Policy emulator: with resets to states and to a distribution, a small table of sampled observations values a class.

The states of the table are observations themselves, m for each layer, so every policy acts on them directly. Layer by
layer from the last, a drawn next observation is decoded to a group of the table's by one test, the value of a fixed
action and a fixed policy behind it, which depends on the latent state alone. What follows then is known for all
policies at once: the mean of their values over the group. So samples do not grow with the class.

A simplification of arXiv:2504.05405 for deterministic latent moves and two groups a layer; the whole algorithm, with
all tests, a graph for decoding and a step that refits wrong layers, was not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.models.finite import FinitePolicy, PolicyClassValues
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import FromFinite, check_horizon
from polyrl.parts.policy_class import TakeBest, one_hot
from polyrl.recipe import Recipe, hyperparameter
from polyrl.rollout.finite import NUMBERS, drawn, outcomes, rolled
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask, thresholds

SLUG = "policy-emulator"
TITLE = "Agnostic Reinforcement Learning in the Hybrid Reset Model"
PAPER = "arXiv:2504.05405"
YEAR = 2025
FORMULA = "Q_h^pi(x, a) = mean of V_{h+1}^pi over the group that x' ~ P(x, a) is decoded to, for all pi at once"
TASK = "rich-lock"


class Emulated(Tables):
    """The table's layer that was built last, and the test that tells its two groups apart.

    Attributes:
        observed: the m observations of each layer `[L, m]`, -1 where there are none yet.
        values: V of every policy `[N, m]` at the layer that was built last.
        high: which of its observations are in the group of the high test values `[m]` bool.
        test: `[2]`, the test's policy and action.
        middle: `[]`, what a test value of the high group exceeds.
    """

    observed: Tensor
    values: Tensor
    high: Tensor
    test: Tensor
    middle: Tensor

    def __init__(self, layers: int, policies: int, size: int):
        super().__init__()
        self.register_buffer("observed", torch.full((layers, size), -1))
        self.register_buffer("values", torch.zeros(policies, size, dtype=torch.float64))
        self.register_buffer("high", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("test", torch.zeros(2, dtype=torch.long))
        self.register_buffer("middle", torch.zeros((), dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Emulator(OfTheory):
    """A table of sampled observations, empty at first."""

    solves: ClassVar[str] = "finite"

    table_states: int = hyperparameter(60, "m, observations of a layer", low=2)

    def tables(self, task: FiniteTask) -> Emulated:
        """One column for each observation."""
        check_horizon(SLUG, task)
        return Emulated(task.mdp.layers, len(task.mdp.policy_class), self.table_states)


@dataclass(frozen=True, kw_only=True)
class ProbeLayer(FromFinite):
    """Draw a layer's observations, for each and each action a next one, and rollouts of the test from there."""

    access: ClassVar[frozenset[str]] = frozenset({"reset-to-distribution", "reset-to-state"})
    stream: ClassVar[str] = "emulator"
    models: ClassVar[frozenset[str]] = frozenset({"emulator"})
    gives: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "paid", "test_value", "mask", "present"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "paid": Field("[B]", "float64", "reward", "mean reward of an observation and an action (theory)"),
        "test_value": Field("[B]", "float64", "reward", "mean return of the test from what followed (theory)"),
    }

    rollouts: int = hyperparameter(30, "rollouts for each observation and action", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """A row for each observation and action of the last layer that is not built yet."""
        mdp: FiniteMDP = context.run_state.mdp
        table: Emulated = context.run_state.models["emulator"]
        size, actions = table.observed.shape[1], mdp.shape[2]
        layer = mdp.layers - 1 - context.memory(SLUG).get("layers", 0)
        rows = torch.arange(size)
        law = mdp.restart[layer] if layer else mdp.initial
        uniform = counted_uniforms(context.seed, self.stream, "observe", rows=rows, times=torch.tensor([layer]))
        state = drawn(thresholds(law), uniform[:, 0, 0]).repeat_interleave(actions)
        action = torch.arange(actions).repeat(size)
        pairs = torch.arange(len(state))
        times = layer * self.rollouts + torch.arange(self.rollouts)
        chance = counted_uniforms(context.seed, self.stream, "move", rows=pairs, times=times, numbers=2)
        here = torch.full((len(state), self.rollouts), layer)
        one = (state[:, None].expand_as(here), action[:, None].expand_as(here))
        after, reward = outcomes(mdp, here, *one, chance)
        context.spent.queries += 2 * len(state)  # a reset to the observation, and the step
        context.spent.steps += len(state)
        test = torch.zeros(len(state), dtype=torch.float64)
        if layer + 1 < mdp.layers:  # all rollouts go on from the first draw
            begin = after[:, 0].repeat_interleave(self.rollouts)
            policy, act = table.test.tolist()
            length = mdp.layers - layer - 1
            names = torch.arange(len(begin))
            uniform = counted_uniforms(
                context.seed,
                self.stream,
                "test",
                layer,
                rows=names,
                times=torch.arange(length),
                numbers=NUMBERS,
            )
            first = torch.zeros(len(begin), actions, dtype=torch.float64)
            first[:, act] = 1
            acts = one_hot(mdp.policy_class.policies[policy], actions)
            found = rolled(mdp, acts, begin, torch.full_like(begin, layer + 1), uniform, first)
            test = found["reward"].sum(1).view(len(state), -1).mean(1)
            context.spent.steps += int(found["present"].sum())
        context.spent.samples += len(state) * self.rollouts
        context.spent.queries += len(state) * self.rollouts
        there = torch.ones(len(state), 1, dtype=torch.bool)
        step = torch.full((len(state), 1), layer)
        table.observed[layer] = state[::actions]
        named = {"state": state[:, None], "action": action[:, None], "step": step}
        return Experience({**named, "paid": reward.mean(1), "test_value": test, "mask": there, "present": there})


@dataclass(frozen=True)
class BuildLayer(OwnUpdate):
    """Decode what followed, value every policy at this layer, and choose the test of the next one; value the class."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "step", "paid", "test_value"})
    models: ClassVar[frozenset[str]] = frozenset({"emulator"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One layer; after the first one of an episode the run is finished."""
        mdp: FiniteMDP = see.context.run_state.mdp
        table: Emulated = see["emulator"]
        memory, layer = see.context.memory(SLUG), int(batch["step"][0, 0])
        policies = mdp.policy_class.policies
        actions = mdp.shape[2]
        q = batch["paid"].expand(len(policies), -1)
        if layer + 1 < mdp.layers:
            groups = [
                table.values[:, g].mean(1) if bool(g.any()) else table.values.mean(1) for g in (table.high, ~table.high)
            ]
            high = batch["test_value"] >= table.middle
            q = q + torch.where(high, groups[0][:, None], groups[1][:, None])
        q = q.view(len(policies), -1, actions)  # [N, m, A]
        chosen = policies[:, layer, table.observed[layer]]  # [N, m]
        table.values.copy_(q.gather(-1, chosen[..., None])[..., 0])
        spread = q.max(1).values - q.min(1).values  # of each test over the observations, [N, A]
        best = int(spread.flatten().argmax())
        table.test.copy_(torch.tensor(divmod(best, actions)))
        values = q[best // actions, :, best % actions]
        table.middle.fill_(float(values.max() + values.min()) / 2)
        table.high.copy_(values >= table.middle)
        memory["layers"] = memory.get("layers", 0) + 1
        if layer == 0:
            see[self.trains].estimates.copy_(table.values.mean(1))
            see.context.finish("every layer of the emulator is built")
        return {"layer": layer + 1, "test_spread": float(spread.max())}


def recipe() -> Recipe:
    """A layer an iteration, from the last to the first; then the best of the class."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "values": PolicyClassValues(), "emulator": Emulator()},
        collect=ProbeLayer(),
        updates=(BuildLayer("values", Fresh()), TakeBest("policy", Again())),
        adds=("probe-layer", "build-layer", "take-best"),
        budget="samples=1000000",
        notes={
            "collect": "resets to a distribution for observations, resets to what followed for the test",
            "credit": "the test decodes what followed to one of two groups; values of all policies are means over it",
            "improve": "the largest value in the emulator",
        },
    )
