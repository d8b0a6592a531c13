"""Collecting on finite MDPs, one part for each way in which a task may be used: each says which access it asks for.

All draws are functions of the run's seed, the row and the time: an episode is the same in whatever batch it is drawn,
as long as the same policy acts. Rows are numbered over the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.errors import UserError
from polyrl.recipe import Part, Stage, hyperparameter
from polyrl.rollout.finite import NUMBERS, drawn, outcomes, rolled
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, thresholds

FIELDS = frozenset(
    {"state", "action", "next_state", "step", "reward", "terminated", "truncated", "mask", "present"}
    | {"behaviour_logprob"}
)


@dataclass(frozen=True, kw_only=True)
class FromFinite(Part):
    """What parts have in common that collect on finite MDPs."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "theory"
    solves: ClassVar[str] = "finite"
    own_fields: ClassVar[Mapping[str, Field]] = {
        "step": Field("[B, T]", "int64", "index", "step of the episode or stream, from 0 (theory)"),
    }
    stream: ClassVar[str]
    """Name of its random numbers, which a paper's own part keeps."""

    def numbered(self, rows: int, context: Context) -> Tensor:
        """Numbers `[rows]` of new rows, counted over the run."""
        memory = context.memory(self.name)
        before = memory.get("rows", 0)
        memory["rows"] = before + rows
        return torch.arange(before, before + rows)


@dataclass(frozen=True, kw_only=True)
class Episodes(FromFinite):
    """What parts have in common that collect episodes; they say where these begin."""

    gives: ClassVar[frozenset[str]] = FIELDS
    asked: ClassVar[bool] = True
    """Whether each beginning is a query, as a reset to a state is."""

    episodes: int = hyperparameter(1, "episodes in one iteration", low=1)
    steps: int | None = hyperparameter(None, "steps after which an episode is cut, where there is no horizon", low=1)

    def length(self, mdp: FiniteMDP) -> int:
        """Steps of the longest episode.

        Raises:
            UserError: nothing says when one ends.
        """
        if mdp.horizon:
            return min(self.steps or mdp.horizon, mdp.horizon)
        if self.steps is None:
            raise UserError(
                f"'{self.name}' collects episodes, and without a horizon none ends: say after how many steps one is "
                "cut with --steps."
            )
        return self.steps

    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Steps and states `[B]` int64 in which the episodes of these numbers `[B]` begin."""
        raise NotImplementedError

    def first_actions(self, step: Tensor, state: Tensor, context: Context) -> Tensor | None:
        """Probabilities `[B, A]` of the episodes' first actions; None: the policy's."""
        return None

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `episodes` rows, from each one's beginning to the horizon or the cut."""
        run_state = context.run_state
        mdp: FiniteMDP = run_state.mdp
        rows = self.numbered(self.episodes, context)
        step, state = self.starts(rows, context)
        length = self.length(mdp)
        if mdp.horizon:
            length = min(length, mdp.horizon - int(step.min()))
        times = step[:, None] + torch.arange(length)
        uniform = counted_uniforms(context.seed, self.stream, rows=rows, times=times, numbers=NUMBERS)
        first = self.first_actions(step, state, context)
        found = dict(rolled(mdp, run_state.policy, state, step, uniform, first))
        present = found["present"]
        context.spent.samples += len(rows)
        context.spent.steps += int(present.sum())
        context.spent.queries += len(rows) if self.asked else 0
        run_state.count_seen(found["step"][present], found["state"][present], context)
        run_state.count_seen(found["step"][present] + 1, found["next_state"][present], context)
        context.log(reward=found["reward"].sum(1).mean())
        return Experience({**found, "mask": present})


@dataclass(frozen=True, kw_only=True)
class PlayEpisodes(Episodes):
    """Play episodes from the start, and count what they cost: the exact suboptimality of the policy that plays."""

    access: ClassVar[frozenset[str]] = frozenset({"episodes"})
    stream: ClassVar[str] = "episodes"
    asked: ClassVar[bool] = False

    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The start, by the initial distribution."""
        mdp: FiniteMDP = context.run_state.mdp
        uniform = counted_uniforms(context.seed, self.stream, "start", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        return torch.zeros_like(rows), drawn(thresholds(mdp.initial), uniform)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `episodes` rows."""
        run_state = context.run_state
        gap = max(0.0, run_state.mdp.optimum - float(run_state.mdp.worth(run_state.policy)))
        run_state.count_regret(gap * self.episodes, self.episodes, context)
        context.log(suboptimality=gap)
        return super().__call__(experience, context)


@dataclass(frozen=True, kw_only=True)
class RestartEpisodes(Episodes):
    """Begin episodes at any step, in a state of the distribution that the task gives for it: one query each."""

    access: ClassVar[frozenset[str]] = frozenset({"reset-to-distribution"})
    stream: ClassVar[str] = "restarts"

    first_action: Literal["policy", "uniform"] = hyperparameter(
        "policy", "how an episode's first action is chosen: as every other one, or each equally often"
    )

    def first_steps(self, rows: Tensor, context: Context) -> Tensor:
        """Steps `[B]` at which these episodes begin: any, equally often. Papers say otherwise."""
        layers: int = context.run_state.mdp.layers
        uniform = counted_uniforms(context.seed, self.stream, "step", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        return (uniform * layers).long()

    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """States of the task's own distribution at these steps."""
        mdp: FiniteMDP = context.run_state.mdp
        step = self.first_steps(rows, context)
        uniform = counted_uniforms(context.seed, self.stream, "start", rows=rows, times=step[:, None])[:, 0, 0]
        return step, drawn(thresholds(mdp.restart)[step.clamp(max=mdp.layers - 1)], uniform)

    def first_actions(self, step: Tensor, state: Tensor, context: Context) -> Tensor | None:
        """Uniform ones where asked."""
        mdp: FiniteMDP = context.run_state.mdp
        uniform: Tensor = mdp.uniform[0]
        return None if self.first_action == "policy" else uniform[state]


@dataclass(frozen=True, kw_only=True)
class ReturnToStates(Episodes):
    """Begin episodes in states that were seen before, each equally often: a local simulator, one query each."""

    access: ClassVar[frozenset[str]] = frozenset({"reset-to-state"})
    stream: ClassVar[str] = "returns"

    def chosen(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Steps and states `[B]` to go back to: any that was seen, equally often. Papers say otherwise."""
        seen = context.run_state.acting["seen"].nonzero()
        uniform = counted_uniforms(context.seed, self.stream, "state", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        step, state = seen[(uniform * len(seen)).long()].unbind(1)
        return step, state

    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Those that are chosen.

        Raises:
            UserError: one was never seen.
        """
        mdp: FiniteMDP = context.run_state.mdp
        step, state = self.chosen(rows, context)
        fresh = ~context.run_state.acting["seen"][step.clamp(max=mdp.layers - 1), state]
        if bool(fresh.any()):
            h, s = int(step[fresh][0]), int(state[fresh][0])
            raise UserError(
                f"'{self.name}' goes back to the state {mdp.states[s]} at step {h + 1}, where the run has never been; "
                "only states that were seen can be returned to."
            )
        return step, state


@dataclass(frozen=True, kw_only=True)
class FollowStream(FromFinite):
    """Go on with the one stream of steps, which nothing resets; count what it costs, the gap of each action.

    The state lives from one iteration to the next. The gap is the value that an action gives away against the best
    one, the best policy following: its sum is the regret up to the span of the values and noise of mean 0.
    """

    access: ClassVar[frozenset[str]] = frozenset({"stream"})
    stream: ClassVar[str] = "stream"
    gives: ClassVar[frozenset[str]] = FIELDS

    steps: int = hyperparameter(1, "steps in one iteration", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return one row of `steps` steps."""
        run_state, memory = context.run_state, context.memory(self.name)
        mdp: FiniteMDP = run_state.mdp
        row = torch.zeros(1).long()
        if "state" not in memory:
            uniform = counted_uniforms(context.seed, self.stream, "start", rows=row, times=row)[:, 0, 0]
            memory.update(state=int(drawn(thresholds(mdp.initial), uniform)[0]), time=0)
        first = torch.tensor([memory["time"]])
        times = first + torch.arange(self.steps)
        uniform = counted_uniforms(context.seed, self.stream, rows=row, times=times, numbers=NUMBERS)
        found = dict(rolled(mdp, run_state.policy, torch.tensor([memory["state"]]), first, uniform))
        memory.update(state=int(found["next_state"][0, -1]), time=memory["time"] + self.steps)
        gap = mdp.gaps[0, found["state"][0], found["action"][0]]
        run_state.count_regret(float(gap.sum()), self.steps, context)
        run_state.count_seen(found["step"], found["state"], context)
        run_state.count_seen(found["step"], found["next_state"], context)
        context.spent.steps += self.steps
        context.log(reward=found["reward"].mean(), gap=gap.mean())
        return Experience({**found, "mask": found["present"]})


@dataclass(frozen=True, kw_only=True)
class DrawEveryPair(FromFinite):
    """Draw a next state and a reward at every step, state and action alike, from a generative model: one query each."""

    access: ClassVar[frozenset[str]] = frozenset({"generative"})
    stream: ClassVar[str] = "generative"
    gives: ClassVar[frozenset[str]] = frozenset({"state", "action", "next_state", "step", "reward", "mask", "present"})

    draws: int = hyperparameter(1, "draws of each pair in one iteration", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `L S A draws` rows of one step, the draws of a pair side by side; `reward` and `next_state` [B, 1]."""
        mdp: FiniteMDP = context.run_state.mdp
        layers, states, actions = mdp.shape
        pairs = layers * states * actions
        times = self.numbered(self.draws, context)  # of each pair
        uniform = counted_uniforms(context.seed, self.stream, rows=torch.arange(pairs), times=times, numbers=2)
        pair = torch.arange(pairs)[:, None].expand(pairs, self.draws)
        layer, state, action = pair // (states * actions), pair // actions % states, pair % actions
        following, reward = outcomes(mdp, layer, state, action, uniform)
        context.spent.queries += pairs * self.draws
        there = torch.ones(pairs * self.draws, 1, dtype=torch.bool)
        found = {"state": state, "action": action, "next_state": following, "step": layer, "reward": reward}
        return Experience({**{k: v.reshape(-1, 1) for k, v in found.items()}, "mask": there, "present": there})
