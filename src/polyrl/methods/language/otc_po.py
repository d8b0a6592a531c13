"""OTC-PO: a right answer is worth most when it took as few tool calls as the question is known to need.

The coefficient multiplies the score, so a wrong answer earns nothing however it was reached. The added form that the
paper rejects (`form=additive`) and a plain price per call (`call-price`) are there to be compared with.

Neither the paper's smoothing constant c nor its reward scale is known to us: both are 1 here, and c = 1 is strict.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import PAID_AT_THE_END, SpecialRows, scored_rows
from polyrl.errors import UserError
from polyrl.methods.language import grpo
from polyrl.parts.tools import calls_of, rescored
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "otc-po"
TITLE = "Optimal Tool Call-controlled Policy Optimization"
PAPER = "arXiv:2504.14870"
YEAR = 2025
FORMULA = "r = score * sin(pi m / (m + n)), m calls, n the fewest that a right answer took"
TASK = "tool-arithmetic"
ALIAS = "otc"

Minimum = Literal["group", "running", "zero"]
Form = Literal["multiplicative", "additive"]


def cosine_coefficient(calls: Tensor, smoothing: float) -> Tensor:
    """cos(m pi / (2 m + c)) for m calls, any shape: 1 for none, falling towards 0 (OTC-PPO)."""
    return torch.cos(calls * math.pi / (2 * calls + smoothing))


def tool_coefficient(calls: Tensor, minimum: Tensor, smoothing: float) -> Tensor:
    """Worth of m calls where n suffice, within [0, 1] (OTC-GRPO): sin(f pi / (2 n)) with f = 2 n m / (m + n).

    That is sin(pi m / (m + n)): 1 at m = n, 0 at m = 0. Where n is 0, the cosine.

    Args:
        calls: `[B]` float, m.
        minimum: `[B]` float, n.
        smoothing: c of the cosine; a larger one is milder.
    """
    sine = torch.sin(math.pi * calls / (calls + minimum).clamp(min=1))
    return torch.where(minimum == 0, cosine_coefficient(calls, smoothing), sine)


def fewest_calls(calls: Tensor, right: Tensor, group: Tensor) -> Tensor:
    """Fewest calls of a right answer in each row's group, `[B]` float; infinity where none is right."""
    _, index = torch.unique(group, return_inverse=True)
    entering = torch.where(right, calls, torch.inf)
    found = torch.full((int(index.max()) + 1,), torch.inf, dtype=calls.dtype)
    return found.scatter_reduce(0, index, entering, "amin")[index]


@dataclass(frozen=True, kw_only=True)
class ToolCoefficient(Part):
    """Multiply each score by how near its number of tool calls is to the fewest that are known to suffice."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "mask", "group", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "score"})
    special_rows: ClassVar[SpecialRows | None] = PAID_AT_THE_END

    minimum: Minimum = hyperparameter(
        "running", "fewest calls known: running (of all groups of the prompt so far), group, or zero (no group needed)"
    )
    smoothing: float = hyperparameter(1.0, "c of the cosine where the fewest is 0: a larger one is milder", above=0)
    form: Form = hyperparameter("multiplicative", "multiplicative, or additive: score + additive_weight * coefficient")
    additive_weight: float = hyperparameter(0.5, "weight of the coefficient where it is added", low=0)
    right_from: float = hyperparameter(1.0, "score from which an answer is right, and its calls enter the minimum")

    def check_within(self, recipe: Recipe) -> None:
        """Without other answers nothing is known of the fewest calls."""
        if self.minimum != "zero" and recipe.collected_by("completions_per_prompt", 2) < 2:
            raise UserError(
                f"{recipe.name}: part '{self.name}' takes the fewest calls from other answers to the prompt, but only "
                "one is sampled; set --minimum zero (OTC-PPO) or --completions-per-prompt 4."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Scale `score` [B], and by as much change the last `reward`."""
        calls, score, counted = calls_of(experience, self, context), experience["score"], scored_rows(experience)
        fewest = torch.zeros_like(calls)
        if self.minimum != "zero":
            right = (score >= self.right_from - 1e-6) & counted
            fewest = fewest_calls(calls, right, experience["group"])
        if self.minimum == "running":
            known = context.memory(self.name)
            keys = [json.dumps(prompt, sort_keys=True) for prompt in experience.columns["prompt"]]
            for key, n in zip(keys, fewest.tolist(), strict=True):
                if n < known.get(key, math.inf):
                    known[key] = n
            fewest = torch.tensor([known.get(key, math.inf) for key in keys], dtype=calls.dtype)
        # where no answer has ever been right n is unknown: there is nothing to scale, and nothing to add
        known_here = torch.isfinite(fewest)
        coefficient = tool_coefficient(calls, torch.where(known_here, fewest, 0.0), self.smoothing)
        told = known_here & counted
        if bool(told.any()):
            context.log(tools__minimum=fewest[told].mean(), tools__coefficient=coefficient[told].mean())
        if self.form == "additive":
            return rescored(experience, score + self.additive_weight * torch.where(known_here, coefficient, 0.0))
        return rescored(experience, score * torch.where(known_here, coefficient, 1.0))


def recipe() -> Recipe:
    """OTC-GRPO; OTC-PPO is `ppo+otc(minimum=zero)`."""
    base = grpo.recipe()
    return Recipe(
        name=SLUG,
        collect=base.collect,
        score=(*base.score, ToolCoefficient()),
        credit=base.credit,
        terms=base.terms,
        optimize=base.optimize,
        adds=("tool-coefficient",),
        notes={
            **base.notes,
            "collect": "answers to the same question, which may call tools; the environment counts the calls",
            "score": "right answers are worth most with the fewest calls that were ever enough; wrong ones nothing",
        },
    )
