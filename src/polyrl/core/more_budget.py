"""A run that goes on with more budget than it was given, and what that means for what follows the budget."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.runtime.figures import format_amount, format_budget

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.core.recipe import Recipe


def following_budget(recipe: Recipe) -> list[str]:
    """Settings of the recipe that change over the budget, `part.name` each: schedules, warm-ups, falling shares."""
    entries = {id(part): name for name, part in recipe.entries()}
    return [f"{entries.get(id(part), part.name)}.{name}" for part in recipe.parts() for name in part.follows_budget()]


def go_on_with(loop: Loop, facts: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A resumed run's config.yaml under the budget that its loop now has, and what is to be said of it.

    Raises:
        UserError: the run has spent that much already, or the method has ended it.
    """
    context, before = loop.context, facts["budget"]
    if context.finished:
        raise UserError(f"{_ended(loop)}; more budget would change nothing.")
    if context.progress >= 1:
        spent = dataclasses.asdict(context.spent)
        amounts = " and ".join(f"{format_amount(spent[unit])} {unit}" for unit in context.budget.limits())
        raise UserError(f"The run has spent {amounts} already; name more than that with --budget.")
    ended = {"until_iteration": context.iteration, "budget": before}
    facts = {
        **facts,
        "budget": dict(context.budget.limits()),
        "earlier_budgets": [*facts.get("earlier_budgets", []), ended],
        "run": {**facts["run"], "budget": str(context.budget)},
    }
    said: list[str] = []
    if names := following_budget(loop.recipe):
        at = 100 * context.budget.schedule_progress(context.spent)
        follow, they, them = ("follows", "it stands", "it") if len(names) == 1 else ("follow", "they stand", "them")
        said.append(
            f"{' and '.join(names)} {follow} the budget: from iteration {context.iteration + 1} on {they} where the "
            f"whole new budget puts {them}, at {at:.0f}% of the run, so this is not the run that had this budget from "
            "the start."
        )
    if loop.run_state.restarts_at_checkpoints():
        said.append(
            "The environments cannot be brought back to where they were and start anew at a checkpoint, so this is not "
            "the run that had this budget from the start."
        )
    return facts, said


def finished(loop: Loop) -> str:
    """One sentence on a run that has nothing left to do."""
    if loop.context.finished:
        return f"{_ended(loop)}."
    spent = f"{format_budget(str(loop.context.budget))} in {loop.context.iteration} iterations"
    return (
        f"The run is finished: it has spent its budget of {spent}; to go on with more, name it, as in --budget "
        "UNIT=AMOUNT (in Python budget=...)."
    )


def _ended(loop: Loop) -> str:
    context = loop.context
    return f"The run is finished: {loop.recipe.name} ended it in iteration {context.iteration}, {context.finished}"
