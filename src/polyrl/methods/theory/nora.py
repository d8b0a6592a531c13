"""NORA: an actor-critic whose critic is optimistic and seldom replaced, and whose actor begins anew with each critic.

The critic estimates the optimal values, r + max f and not r + E_pi f, from all data, and is kept until the data have
grown enough. While it stays, each episode moves the actor by pi <- pi exp(eta f), from a uniform policy: n episodes on
it is softmax(n eta f), so nothing of older critics is left in it.

Tabular: optimism is a bonus for each pair, f = min(V_max, r_n + P_n max f + c V_max sqrt(log(2 T H S A) / n)), and
V_max where a pair was never tried; with bonuses a joint set's test of 5 H^2 beta would not do, so the critic is
replaced when a pair has been tried twice as often as before. The body of the paper was not read: step 4 and eta are
what its complexity asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Fresh, OwnUpdate, See
from polyrl.models.finite import Counts, FinitePolicy, TransitionCounts
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import CountTransitions, PlayEpisodes, check_horizon, first_reached, optimistic_values
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteTask
from polyrl.tasks.theory.solving import greedy

SLUG = "nora"
TITLE = "Actor-Critics Can Achieve Optimal Sample Efficiency"
PAPER = "arXiv:2505.03710"
YEAR = 2025
FORMULA = "pi = softmax(n eta f), n episodes since f; f optimistic for r + max f on all data, anew when a count doubles"
TASK = "stochastic-lock"


class ActorCritic(Tables):
    """A frozen critic and the actor that follows it.

    Attributes:
        values: f `[H, S, A]`.
        logits: of the actor when the critic came `[H, S, A]`: 0, unless it is not reset.
        seen: how often each pair had been tried `[H, S, A]` when the critic came.
        age: `[]`, episodes since.
        highest, scale: the most that an episode can earn, and how much that is above the least.
        log_term: log(2 T H S A).
        eta: step of the actor.
    """

    values: Tensor
    logits: Tensor
    seen: Tensor
    age: Tensor

    def __init__(self, shape: tuple[int, int, int], highest: float, scale: float, log_term: float, eta: float):
        super().__init__()
        self.highest, self.scale, self.log_term, self.eta = highest, scale, log_term, eta
        self.register_buffer("values", torch.full(shape, highest, dtype=torch.float64))
        for name in ("logits", "seen"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("age", torch.zeros((), dtype=torch.float64))

    def after(self, episodes: Tensor) -> Tensor:
        """Logits `[B, H, S, A]` so many episodes `[B]` from now, the critic staying."""
        grown = (self.age + episodes)[:, None, None, None] * self.eta
        return self.logits + grown * self.values


def tuned_eta(shape: tuple[int, int, int], scale: float, episodes: int) -> float:
    """sqrt(2 N log A / (T V_max^2)), with N = H S A log2(T / (S A)) epochs, in each of which it loses and gains."""
    h, s, a = shape
    switches = h * s * a * max(1.0, math.log2(episodes / (s * a)))
    return math.sqrt(2 * switches * math.log(a) / (episodes * scale**2)) if scale else 1.0


@dataclass(frozen=True, kw_only=True)
class ResetActorCritic(OfTheory):
    """A critic that is worth the most everywhere at first, and a uniform actor."""

    solves: ClassVar[str] = "finite"

    eta: float | None = hyperparameter(None, "step of the actor; none is tuned to the episodes", low=0)
    total_episodes: int = hyperparameter(16_000, "T, which the actor's step and the bonus are for", low=1)

    def tables(self, task: FiniteTask) -> ActorCritic:
        """Without data."""
        mdp = task.mdp
        check_horizon(SLUG, task)
        lowest, highest = mdp.return_range
        shape, scale = mdp.shape, highest - lowest
        eta = tuned_eta(shape, scale, self.total_episodes) if self.eta is None else self.eta
        return ActorCritic(shape, highest, scale, math.log(2 * self.total_episodes * math.prod(shape)), eta)


@dataclass(frozen=True, kw_only=True)
class PlayUntilReplaced(PlayEpisodes):
    """Play episodes, each by the actor one step on, until a pair has been tried twice as often as when the critic came.

    Draws are functions of the episode's number, so that this is one episode after the other, drawn together.
    """

    models: ClassVar[frozenset[str]] = frozenset({"critic", "counts"})

    episodes: int = hyperparameter(
        200, "most episodes of one iteration; a quarter of those before it, if that is less", low=1
    )
    actor: Literal["softmax", "greedy"] = hyperparameter(
        "softmax", "what acts: the actor, or the greedy policy of the same critic"
    )

    def count(self, context: Context) -> int:
        """Iterations grow with the run, so that curves over the logarithm of episodes have points from early on."""
        return min(self.episodes, max(4, int(context.spent.samples) // 4))

    def policy(self, rows: Tensor, context: Context) -> Tensor:
        """The policies of the next episodes, `[B, H, S, A]`, or the greedy one for all."""
        critic: ActorCritic = context.run_state.models["critic"]
        context.memory(SLUG)["greedy"] = int(self.actor == "greedy")
        if self.actor == "greedy":
            return greedy(critic.values)
        return torch.softmax(critic.after(rows - rows[0]), -1)

    def taken(self, found: Mapping[str, Tensor], context: Context) -> int:
        """The episodes up to the one after which the critic is replaced."""
        critic: ActorCritic = context.run_state.models["critic"]
        counts: Counts = context.run_state.models["counts"]
        _, states, actions = critic.seen.shape
        cells = (found["step"] * states + found["state"]) * actions + found["action"]
        last = first_reached(counts.visits.sum(-1), 2 * critic.seen.clamp(min=0.5), cells.flatten())
        context.memory(SLUG)["stands"] = int(last is None)
        return len(cells) if last is None else last // cells.shape[1] + 1


@dataclass(frozen=True)
class ReplaceCritic(OwnUpdate):
    """Where a count has doubled: a new critic on all data, and a uniform actor. Else the actor goes on."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state"})
    models: ClassVar[frozenset[str]] = frozenset({"critic", "counts"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    bonus: float = hyperparameter(0.1, "c, by which the bonus is scaled; 0 is no optimism", low=0)
    reset: bool = hyperparameter(True, "whether the actor begins anew with each critic")

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Take the episodes of the batch as played."""
        memory, counts = see.context.memory(SLUG), see["counts"]
        critic: ActorCritic = see["critic"]
        critic.age.add_(len(batch))
        if not memory.get("stands", 1):
            if not self.reset:
                critic.logits.copy_(critic.after(torch.zeros(1))[0])
            raised = self.bonus * critic.scale * math.sqrt(critic.log_term)
            unknown = critic.highest if self.bonus else 0.0
            critic.values.copy_(optimistic_values(counts, raised, critic.highest, unknown))
            critic.seen.copy_(counts.visits.sum(-1))
            critic.age.zero_()
            memory["switches"] = memory.get("switches", 0) + 1
        actor = torch.softmax(critic.after(torch.zeros(1))[0], -1)
        see[self.trains].assign(greedy(critic.values) if memory.get("greedy") else actor)
        value = critic.values[0].max(-1).values @ see.context.run_state.mdp.initial
        return {"switches": memory.get("switches", 0), "optimistic_value": float(value)}


def recipe() -> Recipe:
    """Episodes one after the other, a critic that is seldom replaced, and an actor that begins anew with it."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "critic": ResetActorCritic(), "counts": TransitionCounts()},
        collect=PlayUntilReplaced(),
        updates=(CountTransitions("counts", Fresh()), ReplaceCritic("policy", Again())),
        adds=("play-until-replaced", "count-transitions", "replace-critic"),
        budget="samples=16000",
        notes={
            "collect": "one episode by each policy, each counted by its exact suboptimality",
            "credit": "optimistic values of the best policy from all data, frozen from one switch to the next",
            "select": "every transition counts; a doubled count decides when the critic may change",
            "improve": "pi exp(eta f), in closed form; uniform again with each new critic",
        },
    )
