"""Collecting on finite MDPs, one part for each way in which a task may be used: each says which access it asks for.

All draws are functions of the run's seed, the row and the time: an episode is the same in whatever batch it is drawn,
as long as the same policy acts. Rows are numbered over the whole run.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import Counts
from polyrl.recipe import Part, Stage, hyperparameter
from polyrl.rollout.finite import NUMBERS, drawn, outcomes, rolled
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask, thresholds

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

    @abstractmethod
    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Steps and states `[B]` int64 in which the episodes of these numbers `[B]` begin."""
        raise NotImplementedError

    def first_actions(self, step: Tensor, state: Tensor, context: Context) -> Tensor | None:
        """Probabilities `[B, A]` of the episodes' first actions; None: the policy's."""
        return None

    def count(self, context: Context) -> int:
        """Episodes that this iteration draws. Papers say otherwise."""
        return self.episodes

    def policy(self, rows: Tensor, context: Context) -> Tensor:
        """What acts: probabilities `[L, S, A]`, or `[B, L, S, A]` where the episodes of these numbers `[B]` differ."""
        found: Tensor = context.run_state.policy
        return found

    def taken(self, found: Mapping[str, Tensor], context: Context) -> int:
        """How many of the drawn episodes `[B, T]` are taken: all. Papers stop where their policy is to change.

        Draws are functions of the episode's number, so one that is not taken is as if it had never been drawn.
        """
        return len(found["state"])

    def account(self, policy: Tensor, episodes: int, context: Context) -> None:
        """Count what so many episodes of this policy, `[L, S, A]` or `[B, L, S, A]`, have cost; here nothing."""

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return the episodes that are taken, from each one's beginning to the horizon or the cut."""
        run_state, memory = context.run_state, context.memory(self.name)
        mdp: FiniteMDP = run_state.mdp
        rows = self.numbered(self.count(context), context)
        step, state = self.starts(rows, context)
        length = self.length(mdp)
        if mdp.horizon:
            length = min(length, mdp.horizon - int(step.min()))
        times = step[:, None] + torch.arange(length)
        uniform = counted_uniforms(context.seed, self.stream, rows=rows, times=times, numbers=NUMBERS)
        first = self.first_actions(step, state, context)
        policy = self.policy(rows, context)
        drawn_rows = rolled(mdp, policy, state, step, uniform, first)
        taken = self.taken(drawn_rows, context)
        memory["rows"] -= len(rows) - taken
        found = {name: values[:taken] for name, values in drawn_rows.items()}
        self.account(policy, taken, context)
        present = found["present"]
        context.spent.samples += taken
        context.spent.steps += int(present.sum())
        context.spent.queries += taken if self.asked else 0
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

    def account(self, policy: Tensor, episodes: int, context: Context) -> None:
        """Regret: the exact suboptimality of what played, episode by episode where they differ."""
        run_state = context.run_state
        mdp: FiniteMDP = run_state.mdp
        if policy.dim() == 4:
            gaps = (mdp.optimum - mdp.worth(policy[:episodes])).clamp(min=0)
            total, gap = float(gaps.sum()), float(gaps.mean())
        else:
            gap = max(0.0, mdp.optimum - float(mdp.worth(policy)))
            total = gap * episodes
        run_state.count_regret(total, episodes, context)
        context.log(suboptimality=gap)


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

    def length(self, time: int) -> int:
        """Steps that this iteration draws, `time` steps into the stream. Papers say otherwise."""
        return self.steps

    def taken(self, found: Mapping[str, Tensor], context: Context) -> int:
        """How many of the drawn steps `[1, T]` are taken: all. Papers stop where their policy is to change.

        Draws are functions of the time, so a step that is not taken is as if it had never been drawn.
        """
        return found["state"].shape[1]

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return one row of the steps that are taken."""
        run_state, memory = context.run_state, context.memory(self.name)
        mdp: FiniteMDP = run_state.mdp
        row = torch.zeros(1).long()
        if "state" not in memory:
            uniform = counted_uniforms(context.seed, self.stream, "start", rows=row, times=row)[:, 0, 0]
            memory.update(state=int(drawn(thresholds(mdp.initial), uniform)[0]), time=0)
        first = torch.tensor([memory["time"]])
        times = first + torch.arange(self.length(memory["time"]))
        uniform = counted_uniforms(context.seed, self.stream, rows=row, times=times, numbers=NUMBERS)
        found = dict(rolled(mdp, run_state.policy, torch.tensor([memory["state"]]), first, uniform))
        steps = self.taken(found, context)
        found = {name: values[:, :steps] for name, values in found.items()}
        found["truncated"][:, -1] = True  # a stream ends nowhere
        memory.update(state=int(found["next_state"][0, -1]), time=memory["time"] + steps)
        gap = mdp.gaps[0, found["state"][0], found["action"][0]]
        run_state.count_regret(float(gap.sum()), steps, context)
        run_state.count_seen(found["step"], found["state"], context)
        run_state.count_seen(found["step"], found["next_state"], context)
        context.spent.steps += steps
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


@dataclass(frozen=True)
class CountTransitions(OwnUpdate):
    """Take every step into the counts."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "next_state", "step", "reward", "present"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Every step that there was."""
        fields = ("step", "state", "action", "next_state", "reward")
        see[self.trains].add(*(batch[name][batch["present"]] for name in fields))
        return {}


def first_reached(counted: Tensor, limit: Tensor, cells: Tensor) -> int | None:
    """The first of these visits at which the count of its cell comes to its limit; None if none does.

    Args:
        counted: how often each cell was visited before, `[...]`.
        limit: the same shape.
        cells: `[N]` numbers of the cells, flattened, in the order of the visits.
    """
    counts, limits = counted.flatten().tolist(), limit.flatten().tolist()
    for visit, cell in enumerate(cells.tolist()):
        counts[cell] += 1
        if counts[cell] >= limits[cell]:
            return visit
    return None


def optimistic_values(counts: Counts, bonus: float, highest: float, unknown: float) -> Tensor:
    """Values `[H, S, A]` of acting the best in the estimated model, raised by `bonus` / sqrt(n), at most `highest`.

    A pair that was never tried is worth `unknown`.
    """
    count = counts.visits.sum(-1)
    raised = bonus / torch.sqrt(count.clamp(min=1))
    q = torch.zeros_like(counts.earned)
    value = torch.zeros(q.shape[1], dtype=torch.float64)
    for h in range(len(q) - 1, -1, -1):
        known = (counts.earned[h] + counts.visits[h] @ value) / count[h].clamp(min=1) + raised[h]
        q[h] = torch.where(count[h] > 0, known.clamp(max=highest), unknown)
        value = q[h].max(-1).values
    return q


def check_horizon(who: str, task: FiniteTask) -> None:
    """Refuse a problem whose episodes do not end by themselves.

    Raises:
        UserError: it has no horizon.
    """
    if not task.mdp.horizon:
        raise UserError(f"{who} is for problems with a horizon, and {task.name} has none; try --task stochastic-lock.")
