"""What tools did in a response: the turns that they part, and the calls that they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import ALONE, PAID_AT_THE_END, SpecialRows, finished_rows, scored_rows
from polyrl.errors import UserError
from polyrl.parts.score import at_last_step
from polyrl.recipe import Part, Scope, Stage, hyperparameter


def turns(mask: Tensor, present: Tensor) -> Tensor:
    """Number of the turn that each token belongs to, counted from 0.

    A turn begins where the policy speaks again after a tool has; what the tool says belongs to the turn that it
    answers. A call that is answered with nothing does not end a turn.

    Args:
        mask: `[B, T]` bool, tokens that the policy chose.
        present: `[B, T]` bool, all tokens of the response.

    Returns:
        `[B, T]` int64; 0 outside `present`.
    """
    mask = mask & present
    before = torch.zeros_like(mask)
    before[:, 1:] = mask[:, :-1]
    number = (mask & ~before).cumsum(1) - 1
    return (number.clamp(min=0) * present).long()


def calls_of(experience: Experience, part: Part, context: Context) -> Tensor:
    """Tool calls of each response, `[B]` float, as the environment counted them.

    Raises:
        UserError: the task counts none.
    """
    calls: Sequence[Any] | None = experience.columns.get("calls")
    if calls is None:
        raise UserError(
            f"Part '{part.name}' needs the number of tool calls, and the task '{context.run_state.task.name}' has no "
            "tool that counts them; take tool-arithmetic, calculator or office, or let its session report 'calls'."
        )
    found = torch.tensor(calls, dtype=experience["score"].dtype)
    counted = scored_rows(experience)
    if bool(counted.any()):
        context.log(tool_calls=found[counted].mean())
    return found


def rescored(experience: Experience, score: Tensor) -> Experience:
    """Replace `score` [B] of finished responses, and by as much their last `reward`: penalties that are in it stay."""
    score = torch.where(finished_rows(experience), score, experience["score"])
    moved = at_last_step(score - experience["score"], experience["mask"])
    return experience.with_fields(score=score, reward=experience["reward"] + moved)


@dataclass(frozen=True, kw_only=True)
class Turns(Part):
    """Number the turns of every response, as tools part them."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"mask", "present"})
    gives: ClassVar[frozenset[str]] = frozenset({"turn"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "turn": Field("[B, T]", "int64", "index", "turn that the token belongs to, from 0: tool returns part them"),
    }
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `turn` [B, T] int64."""
        found = turns(experience["mask"], experience["present"])
        whole = scored_rows(experience)
        if bool(whole.any()):
            context.log(turns__per_response=(found.amax(1) + 1)[whole].float().mean())
        return experience.with_fields(turn=found)


@dataclass(frozen=True, kw_only=True)
class CallPrice(Part):
    """Take a fixed price off the score for every tool call, whatever the question needs: the plain alternative."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "score"})
    special_rows: ClassVar[SpecialRows | None] = PAID_AT_THE_END

    call_price: float = hyperparameter(0.1, "what a tool call costs, in units of score", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Lower `score` [B] and the last `reward` by the price of the calls."""
        return rescored(experience, experience["score"] - self.call_price * calls_of(experience, self, context))
