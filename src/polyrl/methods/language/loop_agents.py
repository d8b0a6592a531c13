"""LOOP: PPO without a critic for agents of many turns: leave-one-out credit, a clip per token, turn or rollout.

Turns are averaged alike, which the paper leaves open; its code has only tokens and whole rollouts. The mean is over all
rollouts sampled, dropped ones included (the code's nominal minibatch), so batches of little use make small steps.
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
from polyrl.core.special_rows import SpecialRows
from polyrl.methods.language.rloo import LeaveOneOut
from polyrl.parts.collect import SampleResponses
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.parts.select import log_selected
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter

SLUG = "loop-agents"
TITLE = "LOOP: leave-one-out PPO for interactive agents"
PAPER = "arXiv:2502.01600"
YEAR = 2025
FORMULA = "J = mean over tokens (turns, rollouts) of min(rho A, A + eps |A|), A_i = R_i - mean of R_j over j != i"
TASK = "office"
ALIAS = "loop"

Level = Literal["token", "turn", "trajectory"]
LARGEST_LOG_RATIO = 20.0
"""Of a unit, nats: beyond it, as the authors' threshold, the exponential says nothing and its gradient would be NaN."""


def clipped_gain(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """min(rho A, g(A)) with g(A) = (1 + high) A for A > 0 and (1 - low) A for A < 0, any shape (section 4).

    With `low = high = eps`, g(A) = A + eps |A|.
    """
    bound = torch.where(advantage > 0, (1 + high) * advantage, (1 - low) * advantage)
    return torch.minimum(ratio * advantage, bound)


def units_of(level: Level, counted: Tensor, turn: Tensor | None = None) -> Tensor:
    """Which unit of its row each step belongs to, `[B, T]` int64 within [0, T): its own, its turn's, or the row's.

    Args:
        level: what shares one ratio.
        counted: `[B, T]`, gives the shape.
        turn: `[B, T]` int64 turns, for "turn".
    """
    if level == "turn":
        if turn is None:
            raise ValueError("the level 'turn' needs turns")
        return turn
    steps = torch.arange(counted.shape[1], device=counted.device) * (level == "token")
    return steps.expand(counted.shape)


def unit_log_ratios(log_ratio: Tensor, counted: Tensor, unit: Tensor) -> Tensor:
    """Log-ratio of each step's unit, `[B, T]`: the sum over the unit's counted steps."""
    own = torch.where(counted, log_ratio, torch.zeros_like(log_ratio))
    return torch.zeros_like(own).scatter_add(1, unit, own).gather(1, unit)


def unit_weights(weight: Tensor, unit: Tensor) -> Tensor:
    """Weights `[B, T]` of steps such that units weigh alike in a row, steps alike in a unit, and a row's sum is 1."""
    size = torch.zeros_like(weight).scatter_add(1, unit, weight)
    units = (size > 0).sum(1, keepdim=True).clamp(min=1)
    return weight / size.gather(1, unit).clamp(min=1e-12) / units


@dataclass(frozen=True, kw_only=True)
class DropSmallAdvantages(Part):
    """Leave out rollouts whose advantage is next to nothing: they would cost backward passes and move nothing."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "kept_share"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "kept_share": Field(
            "[B]", "float32", "0 to 1", "share of the responses that a filter left in: what is divided by"
        ),
    }
    # the window of an unfinished response is a rollout that trains, or does not
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )

    smallest_advantage: float = hyperparameter(0.01, "rollouts with all advantages below this are left out", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 in them; add `kept_share` [B], the share of rollouts that is left."""
        weight = experience["weight"]
        size = torch.where(weight != 0, experience["advantage"].abs(), 0.0).amax(1)
        before, kept = (weight != 0).any(1), size >= self.smallest_advantage
        share = (before & kept).sum() / before.sum().clamp(min=1)
        weight = weight * kept[:, None]
        context.log(rollouts__kept=share)
        log_selected(weight, context)
        return experience.with_fields(weight=weight, kept_share=share.to(weight.dtype).expand(len(weight)).clone())


@dataclass(frozen=True, kw_only=True)
class RatioSurrogate(Term):
    """PPO's clipped surrogate with one probability ratio per token, per turn or per rollout."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "behaviour_logprob", "weight"})

    ratio_level: Level = hyperparameter(
        "token", "what shares one ratio: token, turn (between two tool returns) or trajectory"
    )
    clip_range: float = hyperparameter(
        0.1, "eps: how far a ratio may leave 1 before its gradient stops", above=0, high=1
    )
    log_symmetric: bool = hyperparameter(False, "lower bound 1 / (1 + eps), as the authors' code, instead of 1 - eps")
    nominal: bool = hyperparameter(True, "divide by all rollouts, those that drop-small-advantages left out included")

    def required(self) -> frozenset[str]:
        """Turns are needed only where they share a ratio; the share of rollouts that is left only where it counts."""
        return (
            self.needs
            | ({"turn"} if self.ratio_level == "turn" else set())
            | ({"kept_share"} if self.nominal else set())
        )

    @property
    def _low(self) -> float:
        return 1 - 1 / (1 + self.clip_range) if self.log_symmetric else self.clip_range

    def _unit(self, experience: Experience) -> Tensor:
        return units_of(self.ratio_level, experience["weight"], experience.data.get("turn"))

    def _ratio(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        log_ratio = outputs["logprob"] - experience["behaviour_logprob"]
        found = unit_log_ratios(log_ratio, experience["weight"] != 0, self._unit(experience))
        return found.clamp(max=LARGEST_LOG_RATIO).exp()

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Minus the clipped gain of each step's unit, `[B, T]`."""
        return -clipped_gain(self._ratio(outputs, experience), experience["advantage"], self._low, self.clip_range)

    def step_weights(self, experience: Experience) -> Tensor:
        """Mean over the units of a rollout, then over rollouts, `[B, T]`."""
        weight = self.weights(experience)
        rollouts = (weight > 0).any(1).sum().clamp(min=1)
        mean = unit_weights(weight, self._unit(experience)) / rollouts
        return mean * experience["kept_share"][:, None] if self.nominal else mean

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Share of steps in units whose gradient the clip stopped, and the mean ratio of units."""
        ratio, advantage = self._ratio(outputs, experience), experience["advantage"]
        stopped = ((ratio > 1 + self.clip_range) & (advantage > 0)) | ((ratio < 1 - self._low) & (advantage < 0))
        return {"clip_ratio": stopped.float(), "ratio": ratio}


def recipe() -> Recipe:
    """LOOP with ratios per token, the paper's best: six rollouts of a task, four epochs on them, no KL."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=10, completions_per_prompt=6),
        score=(TaskReward(),),
        credit=(LeaveOneOut(),),
        select=(DropSmallAdvantages(),),
        terms=(RatioSurrogate(),),
        optimize=Optimize(epochs=4, minibatches=2),
        adds=("leave-one-out", "drop-small-advantages", "ratio-surrogate"),
        notes={
            "collect": "several rollouts of one task, each in a world of its own that begins the same",
            "score": "the share of hidden tests that the world passes at the end",
            "credit": "a rollout's baseline is what the others in its task earned; no critic, no deviation",
            "select": "what the agent wrote, in rollouts that were better or worse than their siblings",
            "improve": "several epochs with a clipped ratio per token, turn or rollout (--ratio-level); no KL",
        },
    )
