"""What evaluations judge beside a recipe's policy: another model, an actor with a wrapper, another task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from polyrl.core.part import Part, Stage
from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.recipe import Recipe
    from polyrl.models.actor import Actor, Making


@dataclass(frozen=True, kw_only=True)
class Judged(Part):
    """One thing more that every evaluation judges, `also_judged={"guide": Judged(model="guide")}`.

    Its metrics stand under its name, `eval/guide/return`. It plays in environments of evaluation, the most probable
    actions, and changes no number of training. A paper that judges with a wrapper of its own derives from it and writes
    `actor`.

    Attributes:
        model: which model acts, by name; empty: the one that the recipe judges.
        acting: whether the model's actor is taken as it acts in training, with the wrapper of the collect part.
        task: another task that it is judged on, by its name; empty: the one that is trained on.
    """

    stage: ClassVar[Stage] = "judged"
    domain: ClassVar[str] = "control"

    model: str = ""
    acting: bool = False
    task: str = ""

    def actor(self, inner: Actor, making: Making) -> Actor:
        """What is judged, made of the model's own actor: here that itself; a paper's wrapper in its own class.

        Raises:
            UserError: the wrapper does not fit the task.
        """
        return inner

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a name that no metric can have, and a model that the recipe does not state.

        Raises:
            UserError: says which.
        """
        name = next(key for key, judged in recipe.also_judged.items() if judged is self)
        if not name.isidentifier():
            raise UserError(f"{recipe.name}: '{name}' cannot name what is judged; use letters, digits and '_'.")
        known = [*recipe.models] or ["policy"]
        if self.model and self.model not in known:
            raise UserError(
                f"{recipe.name}: '{name}' judges the model '{self.model}', which the recipe does not state; it has "
                f"{', '.join(known)}."
            )
        if self.acting and self.model not in ("", recipe.acts, *(s.acts for s in recipe.streams.values())):
            raise UserError(f"{recipe.name}: '{name}' judges '{self.model}' as it acts in training, where it does not.")
