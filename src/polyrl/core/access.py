"""Access: in which ways a task may be used, what a part asks of it, and the refusal where these do not fit.

The same problem is easy or hard depending on how it may be reached: played from the start, set to a state, or known.
So a task says what it grants (`task.access`), a part what it asks for (`Part.access`), and a recipe is refused where
it asks for more, before any model is made.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.recipe import Recipe

ACCESS: dict[str, str] = {
    "episodes": "episodes that begin at the start and end by themselves or at a horizon",
    "stream": "one stream of steps without end and without resets",
    "reset-to-state": "an episode may go on from a state that was seen before",
    "reset-to-distribution": "an episode may begin at any step, in a state drawn from a given distribution",
    "generative": "a next state and a reward may be drawn at any state and action",
    "model": "the dynamics and rewards, or the exact answers that follow from them, are known",
    "post-decision": "the state between a decision and what chance makes of it is told",
    "differentiable": "a simulated step can be differentiated",
}
"""Every kind of access, and what it means."""


class Granting(Protocol):
    """A task, as far as access goes."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def access(self) -> frozenset[str]:
        """What it grants, of `ACCESS`."""
        ...


def in_words(kinds: Collection[str]) -> str:
    """`episodes, generative and stream`; `nothing` of none."""
    names = [name for name in ACCESS if name in kinds] + sorted(set(kinds) - set(ACCESS))
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "nothing"


def check_access(recipe: Recipe, task: Granting) -> None:
    """Refuse a recipe on a task that does not grant what one of its parts asks for.

    Raises:
        UserError: names the part, what it asks for, and what the task grants.
    """
    for part in recipe.parts():
        asked = part.required_access()
        if lacking := asked - task.access if asked else asked:  # what a task grants may take a while to find out
            raise UserError(
                f"{recipe.name} cannot run on {task.name}: its part '{part.name}' asks for {in_words(lacking)} access, "
                f"and this task grants {in_words(task.access)}; give --task another one, or take a method that asks "
                "for less."
            )
