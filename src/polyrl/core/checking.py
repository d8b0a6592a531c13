"""Whether a recipe's list of updates holds together: models, sources, outputs and fields that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyrl.core.update import Again, Move, OwnUpdate, flat
from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.recipe import Recipe


def check_updates(recipe: Recipe, given: set[str]) -> None:
    """Refuse a list of updates that does not hold together.

    Args:
        recipe: what is checked.
        given: fields that the stages of a turn give.

    Raises:
        UserError: a model or source that nobody states, an output that no model gives, or a field that is not there.
    """

    def known(name: str, what: str, entries: Mapping[str, Any], owner: str) -> None:
        if name not in entries:
            raise UserError(
                f"{recipe.name}: '{owner}' names the {what} '{name}', which the recipe does not state; it has "
                f"{', '.join(entries) or 'none'}."
            )

    known(recipe.acts, "model", recipe.models, "acts")
    known(recipe.judged or recipe.acts, "model", recipe.models, "judged")
    for name, model in recipe.models.items():
        if model.copied:
            known(model.copied, "model", recipe.models, name)
    for source in recipe.sources.values():
        for missing in sorted(source.required() - given if source.after else ()):
            raise UserError(
                f"{recipe.name}: the source '{source.name}' needs the field '{missing}', which no stage gives."
            )
    fields: set[str] = set(given)
    for step in flat(recipe.updates):
        if isinstance(step, Move):
            known(step.target, "model", recipe.models, step.name)
            known(step.towards, "model", recipe.models, step.name)
            continue
        known(step.trains, "model", recipe.models, step.name)
        outputs = recipe.models[step.trains].outputs
        if step.batch.reads():
            for name in step.batch.reads():
                known(name, "source", recipe.sources, step.name)
            fields = set.intersection(*(set(recipe.sources[name].fields) for name in step.batch.reads()))
        elif not isinstance(step.batch, Again):
            fields = set(given)
        own = (step,) if isinstance(step, OwnUpdate) else (*step.credit, *step.terms)
        for term in () if isinstance(step, OwnUpdate) else step.terms:
            for missing in sorted(term.wants - outputs):
                raise UserError(
                    f"{recipe.name}: the term '{term.name}' wants the output '{missing}' of the model "
                    f"'{step.trains}', which gives {', '.join(sorted(outputs)) or 'none'}."
                )
        for part in own:
            for missing in sorted(part.required() - fields):
                raise UserError(
                    f"{recipe.name}: part '{part.name}' of the {step.name} needs the field '{missing}', which its "
                    f"batch does not have; it has {', '.join(sorted(fields))}."
                )
            for name in sorted(part.required_models()):
                known(name, "model", recipe.models, part.name)
            fields |= part.gives
        fields |= outputs
