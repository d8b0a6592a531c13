"""LOOP: follow the hypothesis of the largest gain that the data allow, and plan anew only when it stops fitting them.

One stream without resets, judged by its average reward. A hypothesis is a gain J and values Q; how badly it fits is its
excess, the squared Bellman error of (Q, J) on all data less that of the best function, so that noise does not count.
While the excess of the hypothesis that is followed stays below three times the width of the confidence set, nothing
changes.

Tabular: the best function is the empirical backup, so the excess is sum n (Q + J - r_n - P_n V)^2 over all pairs. The
set has a width for each pair, so its hypothesis of the largest gain is that of a bonus sqrt(width / n), and the whole
set is S A times as wide: so is what the trigger is held against. (With the width of one pair it would fire at every
step.) The body of the paper was not read; its trigger and its width, c sp log(2 S A T), are recalled, and c is free.
`loop-amdp-models` is the same for a finite class of models, `loop-amdp-linear` for functions that are linear in
features, and `loop-amdp-mixture` for mixtures of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import Counts, FinitePolicy, TransitionCounts
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import CountTransitions, FollowStream, first_reached
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask
from polyrl.tasks.theory.solving import greedy

SLUG = "loop-amdp"
TITLE = "Sample-efficient Learning of Infinite-horizon Average-reward MDPs with General Function Approximation"
PAPER = "arXiv:2404.12648"
YEAR = 2024
FORMULA = "f = argmax J_f with excess(f) = sum n (Q_f + J_f - r_n - P_n V_f)^2 <= beta; anew when excess(f) >= 3 beta"
TASK = "river-swim"


Array = NDArray[np.float64]
TOLERANCE = 1e-6


class Followed(Tables):
    """The hypothesis that is followed, and the set that it is of.

    Attributes:
        backed_up: Q + J `[S, A]`, which unlike Q does not depend on where V is 0.
        value: V `[S]`, whose minimum is 0.
        seen: how often each pair had been tried `[S, A]` when the hypothesis was chosen.
        highest: the most that a step can pay.
        span: the bound on the span of V.
        width: of the set for one pair, beta / (S A).
        unsettled: span of the last change of V in the last choice: 0, but for rounding, where it solves its equation.
    """

    most_sweeps: ClassVar[int] = 20_000
    patience: ClassVar[int] = most_sweeps
    """Sweeps after which steps become smaller, as 1 over their number: backups of other classes may go in circles."""

    backed_up: Tensor
    value: Tensor
    seen: Tensor

    def __init__(self, states: int, actions: int, highest: float, span: float, width: float):
        super().__init__()
        self.highest, self.span, self.width, self.unsettled = highest, span, width, 0.0
        self.register_buffer("backed_up", torch.full((states, actions), highest, dtype=torch.float64))
        self.register_buffer("value", torch.zeros(states, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(states, actions, dtype=torch.float64))

    def excess(self, counts: Counts) -> Tensor:
        """n (Q + J - r_n - P_n V)^2 of every pair, `[S, A]`: its squared errors less those of the empirical backup."""
        visits = counts.visits[0]
        n = visits.sum(-1)
        backup = (counts.earned[0] + visits @ self.value) / n.clamp(min=1)
        return n * (self.backed_up - backup).square()

    def left(self, counts: Counts, pairs: Tensor, reward: Tensor, after: Tensor) -> int | None:
        """The first of these steps after which the excess is 3 beta or more, beta = S A width; None if there is none.

        Args:
            counts: the data before these steps.
            pairs: `[T]` numbers of the pairs, s A + a.
            reward, after: `[T]` what they paid, and the states that followed.
        """
        n = counts.visits[0].sum(-1).flatten().tolist()
        total = (counts.earned[0] + counts.visits[0] @ self.value).flatten().tolist()
        claimed, errors = self.backed_up.flatten().tolist(), self.excess(counts).flatten().tolist()
        limit, found = 3 * len(n) * self.width, math.fsum(errors)
        for t, (pair, target) in enumerate(zip(pairs.tolist(), (reward + self.value[after]).tolist(), strict=True)):
            n[pair] += 1
            total[pair] += target
            now = n[pair] * (claimed[pair] - total[pair] / n[pair]) ** 2
            found, errors[pair] = found + now - errors[pair], now
            if found >= limit:
                return t
        return None

    def chosen(self, counts: Counts, luck: float = 0.0) -> tuple[Tensor, Tensor, float]:
        """Q + J `[S, A]`, V `[S]` and J of the largest gain in the set of each pair's width, by damped value iteration.

        A backup is at most `highest` above the best value, and that where a pair was never tried; V is cut at its span.
        Other classes break ties by `luck`, a number below 1.
        """
        visits = counts.visits[0].numpy()
        n = visits.sum(-1)
        tried = np.maximum(n, 1)
        reward, moves = counts.earned[0].numpy() / tried + np.sqrt(self.width / tried), visits / tried[..., None]
        return self.settled(lambda value: np.where(n > 0, reward + moves @ value, np.inf))

    def settled(self, raised: Callable[[Array], Array]) -> tuple[Tensor, Tensor, float]:
        """Q + J `[S, A]`, V `[S]` and J of a backup of V `[S]` to `[S, A]`, infinite where nothing is known."""
        value = np.zeros(len(self.value))
        for sweep in range(self.most_sweeps):
            backed_up = np.minimum(raised(value), self.highest + value.max())
            best = backed_up.max(-1)
            change = np.minimum(best, best.min() + self.span) - value
            if change.max() - change.min() < TOLERANCE:
                break
            value = value + 0.9 * min(1.0, self.patience / (sweep + 1)) * change
            value -= value.min()
        gain, self.unsettled = float(change.max() + change.min()) / 2, float(change.max() - change.min())
        return torch.from_numpy(backed_up), torch.from_numpy(value), gain

    def doubled(self, counts: Counts, pairs: Tensor) -> int | None:
        """The first of these steps `[T]` after which what is known has doubled since the choice; None if it has not."""
        return first_reached(counts.visits[0].sum(-1), 2 * self.seen.clamp(min=0.5), pairs)


def checked_criterion(task: FiniteTask) -> FiniteMDP:
    """The problem.

    Raises:
        UserError: it is not judged by its average reward.
    """
    if task.mdp.criterion != "average":
        raise UserError(
            f"{SLUG} is for problems of average reward, and {task.name} has a horizon or a discount; "
            "try --task river-swim."
        )
    return task.mdp


@dataclass(frozen=True, kw_only=True)
class GainHypothesis(OfTheory):
    """The hypothesis of the largest gain in a confidence set; at first every step is worth the most that it can pay."""

    solves: ClassVar[str] = "finite"

    width: float = hyperparameter(0.03, "c of the width c sp log(2 S A T); 0 is no optimism", low=0)
    span: float | None = hyperparameter(None, "sp, known span of the best values; none is the task's own", above=0)
    total_steps: int = hyperparameter(100_000, "T in the width's logarithm", low=1)

    def tables(self, task: FiniteTask) -> Followed:
        """Without data."""
        mdp = checked_criterion(task)
        _, states, actions = mdp.shape
        return Followed(states, actions, *self.bounds(mdp, states * actions))

    def bounds(self, mdp: FiniteMDP, dimension: int) -> tuple[float, float, float]:
        """The most that a step can pay, the span, and the width where so many numbers are to be learned."""
        lowest, highest = mdp.reward_range
        span = self.span or max(mdp.constants["span"], TOLERANCE)
        return highest, span, self.width * span * (highest - lowest) * math.log(2 * dimension * self.total_steps)


@dataclass(frozen=True, kw_only=True)
class FollowHypothesis(FollowStream):
    """Follow the stream by the present policy, until its hypothesis has to be chosen anew."""

    models: ClassVar[frozenset[str]] = frozenset({"hypothesis", "counts"})

    steps: int = hyperparameter(
        1000, "most steps of one iteration; a quarter of those before it, if that is less", low=1
    )
    replan: Literal["excess", "doubling"] = hyperparameter(
        "excess",
        "when a hypothesis is chosen anew: its excess comes to three times the width, or a count (in linear classes a "
        "determinant) has doubled",
    )

    def length(self, time: int) -> int:
        """Iterations grow with the stream, so that curves over the logarithm of steps have points from early on."""
        return min(self.steps, max(8, time // 4))

    def taken(self, found: Mapping[str, Tensor], context: Context) -> int:
        """The steps up to the one after which the hypothesis no longer stands."""
        followed: Followed = context.run_state.models["hypothesis"]
        counts: Counts = context.run_state.models["counts"]
        state, action, after, reward = (found[name][0] for name in ("state", "action", "next_state", "reward"))
        pairs = state * followed.seen.shape[1] + action
        if self.replan == "doubling":
            last = followed.doubled(counts, pairs)
        elif followed.width == 0:
            raise UserError(
                f"{SLUG} with --width 0 has a set of one hypothesis; say when to leave it, --replan doubling."
            )
        else:
            last = followed.left(counts, pairs, reward, after)
        context.memory(SLUG)["stands"] = int(last is None)
        return len(pairs) if last is None else last + 1


@dataclass(frozen=True)
class ChooseHypothesis(OwnUpdate):
    """Where the hypothesis no longer stands, take the one of the largest gain in the set, and act greedily by it."""

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"hypothesis", "counts"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Choose, or leave everything as it is."""
        memory, followed, counts = see.context.memory(SLUG), see["hypothesis"], see["counts"]
        if not memory.get("stands", 1):
            at = torch.full((1,), int(counts.visits.sum()))
            luck = counted_uniforms(see.context.seed, SLUG, "ties", rows=0 * at, times=at)[0, 0, 0]
            backed_up, value, memory["gain"] = followed.chosen(counts, float(luck))
            for table, found in ((followed.backed_up, backed_up), (followed.value, value)):
                table.copy_(found)
            followed.seen.copy_(counts.visits[0].sum(-1))
            see[self.trains].assign(greedy(backed_up)[None])
            memory["switches"] = memory.get("switches", 0) + 1
            memory["unsettled"] = followed.unsettled
        return {
            "switches": memory.get("switches", 0),
            "optimistic_gain": memory.get("gain", followed.highest),
            "excess": float(followed.excess(counts).sum()),
            **({"unsettled": memory["unsettled"]} if memory.get("unsettled", 0) >= TOLERANCE else {}),
        }


def recipe() -> Recipe:
    """One stream, a confidence set, and its hypothesis of the largest gain for as long as it fits."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "hypothesis": GainHypothesis(), "counts": TransitionCounts()},
        collect=FollowHypothesis(),
        updates=(CountTransitions("counts", Fresh()), ChooseHypothesis("policy", Again())),
        adds=("follow-hypothesis", "count-transitions", "choose-hypothesis"),
        budget="steps=100000",
        notes={
            "collect": "one stream that nothing resets, by the greedy policy of the hypothesis that is followed",
            "credit": "the squared Bellman error of (Q, J) on all data, less that of the best function",
            "select": "every transition counts; the test of three times the width decides when anything changes",
            "improve": "the largest gain in the confidence set, and the greedy policy; no gradient",
        },
    )
