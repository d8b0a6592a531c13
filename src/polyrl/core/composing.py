"""Composing where a recipe lists its updates: in which of them a part belongs that is added with `+`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from polyrl.core.derived import DERIVED
from polyrl.core.part import Part, Term, options
from polyrl.core.update import Epochs, Move, On, OwnUpdate, Phase, Repeat, Step, Update
from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.recipe import Recipe
    from polyrl.models.base import Model


def within_updates(recipe: Recipe, part: Part) -> Recipe | None:
    """Put a part where one of its slot stands in an update, or a term into the one update that gives what it wants.

    An own update takes the place of the one that improves the same model. None where it is nothing of a list: then it
    belongs to a stage.
    """
    if isinstance(part, OwnUpdate | Move):
        return _in_place(recipe, part)
    updates = [u for u in recipe.update_steps() if isinstance(u, Update)]
    rivals = {
        t.grouped_by for u in updates for on in u.objectives for t in on.terms if part.slot and t.slot == part.slot
    }

    def alike(other: Part) -> bool:
        if type(other) is type(part):
            return True
        if not part.slot or other.slot != part.slot:
            return False
        if len(rivals) > 1 and isinstance(part, Term) and isinstance(other, Term):
            return other.grouped_by == part.grouped_by  # of two streams: that of pairs, or that of single rows
        return True

    def placed(step: Update | Epochs) -> Update | Epochs:
        if isinstance(step, Update):
            return step.changed(lambda p: part if alike(p) else p)
        return dataclasses.replace(step, credit=tuple(part if alike(p) else p for p in step.credit))

    passes = [step for step in recipe.update_steps() if isinstance(step, Epochs)]
    if any(map(alike, (p for u in updates for p in u.inner))) or any(alike(p) for step in passes for p in step.credit):
        return with_updates(recipe, placed)
    if not isinstance(part, Term):
        return _behind_credit(recipe, part, steps=[*updates, *passes])
    able = [u for u in updates if part.wants <= recipe.models[u.trains].outputs]
    if len(able) != 1:
        which = f"the updates of {', '.join(u.trains for u in able)} all do" if able else "no update does"
        raise UserError(
            f"{recipe.name}: the term '{part.name}' belongs to an update of a model that gives "
            f"{' and '.join(sorted(part.wants))}, and {which}; say where it belongs in a method file."
        )
    beside = [on for on in able[0].also if part.required() <= _given_beside(recipe, on)]
    if len(beside) == 1 and not part.required() <= _given_by_stages(recipe):  # only that stream's rows can tell it
        (home,) = beside
        wider = dataclasses.replace(home, terms=(*home.terms, part))
        joined = dataclasses.replace(able[0], also=tuple(wider if on is home else on for on in able[0].also))
    else:
        joined = dataclasses.replace(able[0], terms=(*able[0].terms, part))
    return with_updates(recipe, lambda update: joined if update == able[0] else update)


def _given_by_stages(recipe: Recipe) -> frozenset[str]:
    """Fields that the stages give, those included that are measured where they are needed."""
    return recipe.collected.union(DERIVED, *(p.gives for p in (*recipe.score, *recipe.credit, *recipe.select)))


def _given_beside(recipe: Recipe, on: On) -> frozenset[str]:
    """Fields of the rows of a second stream, with what its credit gives; none where its rows are of no source."""
    sources = [recipe.sources[name].fields for name in on.batch.places() if name in recipe.sources]
    if not sources:
        return frozenset()
    return frozenset.intersection(*sources).union(*(p.gives for p in on.credit))


def where_needed(recipe: Recipe) -> Recipe:
    """Move parts of *score* and *credit* that a second stream's terms alone need into the credit of that stream.

    Its rows must be able to tell what they need: so the guide of `hypo+tgdpo` is asked about the given pairs.
    """
    updates = [u for u in recipe.update_steps() if isinstance(u, Update)]
    for on in (on for u in updates for on in u.also):
        given = _given_beside(recipe, on)
        wanted = frozenset[str]().union(*(t.required() for t in on.terms)) - given
        for part in (*recipe.score, *recipe.credit):
            others = [p for p in (*recipe.score, *recipe.credit, *recipe.select, *recipe.terms) if p is not part]
            others += [p for u in updates for p in (*u.credit, *u.terms)]
            read = frozenset[str]().union(*(p.required() for p in others))
            if part.gives & wanted and part.required() <= given and not part.gives & read:
                return where_needed(_moved_into(recipe, part, on))
    return recipe


def _moved_into(recipe: Recipe, part: Part, on: On) -> Recipe:
    wider = dataclasses.replace(on, credit=(*on.credit, part))

    def changed(step: Update | Epochs) -> Update | Epochs:
        if not isinstance(step, Update):
            return step
        return dataclasses.replace(step, also=tuple(wider if beside is on else beside for beside in step.also))

    without: dict[str, Any] = {part.stage: tuple(p for p in recipe.listed(part.stage) if p is not part)}
    return dataclasses.replace(with_updates(recipe, changed), **without)


def _in_place(recipe: Recipe, part: OwnUpdate | Move) -> Recipe:
    """Put an own update into the place of the one that improves the same model by the same others, or a move likewise.

    Raises:
        UserError: there is no such step, so that something else of the list would have to change with it.
    """

    def aim(step: OwnUpdate | Move) -> tuple[str, frozenset[str]]:
        if isinstance(step, Move):
            return step.target, frozenset({step.towards})
        return step.trains, step.required_models()

    kind = OwnUpdate if isinstance(part, OwnUpdate) else Move
    rivals = [step for step in recipe.update_steps() if isinstance(step, kind) and aim(step) == aim(part)]
    if len(rivals) != 1:
        raise UserError(
            f"{recipe.name}: '{part.name}' would take the place of a step for the model '{aim(part)[0]}' that reads "
            f"{' and '.join(sorted(aim(part)[1])) or 'no other model'}, and the list has "
            f"{len(rivals) or 'none'}; say where it belongs in a method file."
        )
    shared = {f.name for f in options(part)} & {f.name for f in options(rivals[0])}
    changes: dict[str, Any] = {name: getattr(rivals[0], name) for name in shared}
    placed = dataclasses.replace(part, **changes)

    def walk(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        opened = (dataclasses.replace(s, of=walk(s.of)) if isinstance(s, Repeat | Epochs | Phase) else s for s in steps)
        return tuple(placed if step is rivals[0] else step for step in opened)

    return dataclasses.replace(recipe, updates=walk(recipe.updates))


def _behind_credit(recipe: Recipe, part: Part, steps: Sequence[Update | Epochs]) -> Recipe | None:
    """Put a part of *credit* behind the credit of the one step that gives what no stage does, else None."""
    given = recipe.collected.union(*(p.gives for p in (*recipe.score, *recipe.credit)))
    wanted = part.required() - given
    able = [s for s in steps if wanted & frozenset[str]().union(*(p.gives for p in s.credit))]
    if part.stage != "credit" or len(able) != 1:
        return None
    (home,) = able
    behind = dataclasses.replace(home, credit=(*home.credit, part))
    return with_updates(recipe, lambda step: behind if step == home else step)


def with_updates(recipe: Recipe, changed: Callable[[Update | Epochs], Update | Epochs]) -> Recipe:
    """The recipe with every update and every pass over epochs changed, those in repeats too."""

    def walk(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        opened = (dataclasses.replace(s, of=walk(s.of)) if isinstance(s, Repeat | Epochs | Phase) else s for s in steps)
        return tuple(changed(s) if isinstance(s, Update | Epochs) else s for s in opened)

    return dataclasses.replace(recipe, updates=walk(recipe.updates))


def with_model(recipe: Recipe, name: str, model: Model) -> Recipe:
    """Put a model into the place of one of the same name, which must give what is read of it.

    Raises:
        UserError: the recipe states none of that name.
    """
    old = recipe.models.get(name)
    if old is None:
        what = f"lists {', '.join(recipe.models)}" if recipe.models else "lists no models by name"
        raise UserError(f"{recipe.name} {what}, so '{model.name}', which is to be its '{name}', replaces nothing.")
    shared = {f.name for f in options(model)} & {f.name for f in options(old)}
    model = dataclasses.replace(model, **{f: getattr(old, f) for f in shared})
    return dataclasses.replace(recipe, models={**recipe.models, name: model})


def without_orphans(recipe: Recipe, replaced: Sequence[Part]) -> Recipe:
    """Drop terms whose needs only a replaced part gave: without GAE's targets a value loss has nothing to learn."""
    before = (*recipe.listed("collect"), *recipe.score, *recipe.credit, *recipe.select)
    derived = {g for p in recipe.stated_parts() for kind in p.derives for g in kind.gives} | set(DERIVED)
    given = {g for p in before for g in p.gives} | derived
    lost = {g for p in replaced for g in p.gives} - given
    orphans = tuple(t for t in recipe.terms if t.required() & lost)
    if not orphans:
        return recipe
    kept = tuple(t for t in recipe.terms if t not in orphans)
    return dataclasses.replace(recipe, terms=kept, dropped=recipe.dropped + tuple(t.name for t in orphans))
