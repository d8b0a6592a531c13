"""Whether a recipe's list of updates holds together: models, sources, outputs and fields that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polyrl.core.part import Term
from polyrl.core.update import (
    Again,
    Batch,
    Epochs,
    Fresh,
    Move,
    OwnRows,
    OwnUpdate,
    Phase,
    Repeat,
    Step,
    Update,
    batches,
    flat,
)
from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.part import Part
    from polyrl.core.recipe import Recipe

Missing = Callable[[Step, "Part", str, set[str]], None]
"""Told of a part of a step that needs a field which its batch, with these fields, does not have."""
OUTPUTS = frozenset({"logprob", "entropy", "value", "cost", "score"})
"""What terms of an objective on the fresh batch may want of policy, critic and reward model."""
PROVIDED = frozenset({"policy", "critic", "reference", "reward-model"})
"""Models that a run makes where a part needs them, also of a recipe that lists none."""


class _Walk:
    """Goes through a list as a turn does, with the fields that each batch has."""

    def __init__(self, recipe: Recipe, given: Mapping[str, frozenset[str]], missing: Missing):
        self.recipe, self.given, self.missing = recipe, given, missing
        self.fields = set(given.get("", ()))
        self.fresh: str | None = ""  # the stream that the present batch is this turn's rows of; None: of a source's

    def steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if isinstance(step, Move):
                continue
            if isinstance(step, Repeat | Phase):
                self.steps(step.of)
                continue
            self._begin(step.batch)
            if isinstance(step, Epochs):
                self._parts(step, step.credit)
                fields, fresh = set(self.fields), self.fresh
                self.steps(step.of)
                self.fields, self.fresh = fields, fresh
                continue
            if isinstance(step, OwnUpdate):
                for batch in (*step.also, step.batch):
                    self._begin(batch)
                    self._parts(step, (step,))
                continue
            self._parts(step, (*step.credit, *step.terms))
            before = set(self.fields), self.fresh
            for on in step.also:
                self._begin(on.batch)
                self._parts(step, (*on.credit, *on.terms))
            self.fields, self.fresh = before
            if step.trains in self.recipe.models:
                self.fields |= self.recipe.models[step.trains].outputs

    def _begin(self, batch: Batch) -> None:
        if isinstance(batch, Again):
            return
        if isinstance(batch, OwnRows):
            self.fresh, self.fields = None, set(batch.fields)
            return
        self.fresh = None if batch.reads() else batch.stream if isinstance(batch, Fresh) else ""
        known = [set(self.recipe.sources[name].sampled()) for name in batch.reads() if name in self.recipe.sources]
        if self.fresh is not None:
            self.fields = set(self.given.get(self.fresh, ()))
        else:
            self.fields = set.intersection(*known) if known else set()

    def _parts(self, step: Step, parts: tuple[Part, ...]) -> None:
        for part in parts:
            for name in sorted(part.required() - self.fields):
                self.missing(step, part, name, self.fields)
            self.fields |= part.gives


def needed_of_stages(recipe: Recipe) -> frozenset[str]:
    """Fields that updates on its stream's fresh rows need and that nothing in the list gives: the stages have to."""
    found: set[str] = set()

    def missing(step: Step, part: Part, name: str, fields: set[str]) -> None:
        if walk.fresh == recipe.stream:
            found.add(name)
        fields.add(name)

    walk = _Walk(recipe, {}, missing)
    walk.steps(recipe.updates)
    if any(isinstance(batch, Fresh) and batch.stream == recipe.stream for batch in counting(recipe.updates)):
        found.add("weight")  # every update counts its steps
    return frozenset(found)


def counting(steps: tuple[Step, ...]) -> Iterator[Batch]:
    """The batches whose steps are counted: all but those of updates of a paper's own."""
    for step in steps:
        if isinstance(step, Update):
            yield from (on.batch for on in step.objectives)
        elif isinstance(step, Epochs):
            yield step.batch
        if isinstance(step, Repeat | Epochs | Phase):
            yield from counting(step.of)


def check_updates(recipe: Recipe, given: Mapping[str, frozenset[str]]) -> None:
    """Refuse a list of updates that does not hold together.

    Args:
        recipe: what is checked.
        given: fields that the stages of a turn give, by stream; "" is the recipe's own.

    Raises:
        UserError: a model or source that nobody states, an output that no model gives, a field that is not there, or
            fresh rows where there are none.
    """

    def known(name: str, what: str, entries: Mapping[str, Any], owner: str) -> None:
        if name not in entries:
            raise UserError(
                f"{recipe.name}: '{owner}' names the {what} '{name}', which the recipe does not state; it has "
                f"{', '.join(entries) or 'none'}."
            )

    def missing(step: Step, part: Part, name: str, fields: set[str]) -> None:
        owner = step.name if step.name.endswith("-update") else f"'{step.name}'"
        raise UserError(
            f"{recipe.name}: part '{part.name}' of the {owner} needs the field '{name}', which its batch does not "
            f"have; it has {', '.join(sorted(fields))}."
        )

    known(recipe.acts, "model", recipe.models, "acts")
    known(recipe.judged or recipe.acts, "model", recipe.models, "judged")
    for name, model in recipe.models.items():
        if model.copied:
            known(model.copied, "model", recipe.models, name)
    for name, stream in recipe.streams.items():
        if not name.isidentifier():  # files of checkpoints are named after it
            raise UserError(f"{recipe.name}: '{name}' cannot name a stream; use letters, digits and '_'.")
        known(stream.acts or recipe.acts, "model", recipe.models, f"acts of the stream {name}")
        if not any(isinstance(batch, Fresh) and batch.stream == name for batch in batches(recipe.updates)):
            raise UserError(f"{recipe.name}: no update is on the rows of the stream '{name}'.")
    for source in recipe.sources.values():
        for field in sorted(source.required() - given[""] if source.after else ()):
            raise UserError(
                f"{recipe.name}: the source '{source.name}' needs the field '{field}', which no stage gives."
            )
    for step in recipe.update_steps():
        if isinstance(step, Move):
            known(step.target, "model", recipe.models, step.name)
            known(step.towards, "model", recipe.models, step.name)
        if isinstance(step, Phase):
            for name in step.reset:
                known(name, "model", recipe.models, "reset")
                if recipe.models[name].copied:
                    raise UserError(f"{recipe.name}: a phase resets the optimizer of '{name}', which has none.")
        if isinstance(step, Update | OwnUpdate | Epochs):
            own = [step.batch] if isinstance(step, Epochs) else [*batches((step,))]
            for batch in own:
                for name in sorted(batch.reads()):
                    known(name, "source", recipe.sources, step.name)
                if isinstance(batch, Fresh) and batch.stream:
                    known(batch.stream, "stream", recipe.streams, step.name)
                elif isinstance(batch, Fresh) and recipe.collect is None:
                    raise UserError(f"{recipe.name}: the {step.name} is on fresh rows, and nothing is collected.")
        if isinstance(step, Update | OwnUpdate):
            known(step.trains, "model", recipe.models, step.name)
        changes = step.target if isinstance(step, Move) else step.trains if isinstance(step, Update | OwnUpdate) else ""
        if changes and recipe.models[changes].given:
            raise UserError(
                f"{recipe.name}: the {step.name} would change '{changes}', which is of another run and stays as it is."
            )
        parts = step.inner if isinstance(step, Update) else ()
        parts += step.credit if isinstance(step, Epochs) else (step,) if isinstance(step, OwnUpdate) else ()
        for part in parts:
            for name in sorted(part.required_models()):
                known(name, "model", recipe.models, part.name)
            part.check_within(recipe)
        if isinstance(step, Update):
            outputs = recipe.models[step.trains].outputs
            for term in (t for on in step.objectives for t in on.terms):
                for output in sorted(term.wants - outputs):
                    raise UserError(
                        f"{recipe.name}: the term '{term.name}' wants the output '{output}' of the model "
                        f"'{step.trains}', which gives {', '.join(sorted(outputs)) or 'none'}."
                    )
        if isinstance(step, Epochs):
            _check_within_epochs(recipe, step)
    _Walk(recipe, given, missing).steps(recipe.updates)


def _check_within_epochs(recipe: Recipe, step: Epochs) -> None:
    """Refuse what cannot run on the minibatches of a batch."""
    trained: list[str] = []
    if step.watches and step.watches not in {inner.trains for inner in flat(step.of) if isinstance(inner, Update)}:
        raise UserError(f"{recipe.name}: '{step.name}' watches how '{step.watches}' moves and does not train it.")
    for inner in flat(step.of):
        if isinstance(inner, Update | OwnUpdate) and isinstance(inner.batch, Fresh):
            raise UserError(
                f"{recipe.name}: the {inner.name} within '{step.name}' is on the fresh rows and not on a minibatch of "
                "them; write Again() for its batch."
            )
        trained += [inner.trains] if isinstance(inner, Update) else []
    plain = len(set(trained)) == len(trained) and all(isinstance(inner, Update) for inner in step.of)
    if step.joint_clip is not None and not plain:
        raise UserError(
            f"{recipe.name}: '{step.name}' clips the gradients of several models by one norm (joint_clip), so it may "
            "hold one update for each model and nothing else; set --joint-clip none."
        )


def check_domain(recipe: Recipe, task: str, domain: str) -> None:
    """Refuse a recipe on a task of another domain than its parts work on.

    Raises:
        UserError: names the part, or the stream in which another model would have to act.
    """
    for part in recipe.parts():
        if part.domain not in ("", domain):
            raise UserError(
                f"{recipe.name} cannot run on {task}: its part '{part.name}' works on tasks of {part.domain}, and this "
                f"is one of {domain}; give --task another one."
            )
    for name, stream in recipe.streams.items():
        if domain != "control" and stream.acts not in ("", recipe.acts):
            raise UserError(
                f"{recipe.name} cannot run on {task}: in its stream '{name}' the model '{stream.acts}' would act, and "
                f"in {domain} '{recipe.acts}' does in every stream."
            )


def check_asked(recipe: Recipe) -> None:
    """Refuse parts that ask for what is not there: models by name, or an environment for what they do not need.

    Raises:
        UserError: names the part, and what it asks for.
    """
    check_models(recipe)
    check_told(recipe)


def check_models(recipe: Recipe) -> None:
    """Refuse a part of a stage that reads a model which is not there; those of updates are checked with them.

    Raises:
        UserError: names the part and the model.
    """
    there = PROVIDED | recipe.models.keys()
    for one in (recipe, *map(recipe.of_stream, recipe.streams)):
        for part in (part for stage, parts in one.stages() if stage != "improve" for part in parts):
            for name in sorted(part.required_models() - there):
                has = f"has {', '.join(recipe.models)}" if recipe.models else "lists no models by name"
                raise UserError(
                    f"{recipe.name}: '{part.name}' names the model '{name}', which the recipe does not state; it {has}."
                )


def check_told(recipe: Recipe) -> None:
    """Refuse a part that asks the environment for what it does not need as it is set.

    Raises:
        UserError: names the part and the field.
    """
    for part in recipe.parts():
        for name in sorted(part.told - part.required()):
            raise UserError(
                f"{recipe.name}: part '{part.name}' asks the environment to tell '{name}' and does not need it as it "
                "is set; let its `told` name what its `required()` does, or less."
            )


def check_terms(recipe: Recipe) -> None:
    """Refuse terms of an objective on the fresh batch that need a list of updates, or an output that no model gives.

    Raises:
        UserError: names the term.
    """
    for term in recipe.terms:
        if type(term).summand is not Term.summand:
            raise UserError(
                f"{recipe.name}: the term '{term.name}' asks for models by name or for random numbers, which there "
                "are in a list of updates alone; take a method that has one, or a term that needs none."
            )
        for missing in sorted(term.wants - OUTPUTS):
            raise UserError(
                f"{recipe.name}: the term '{term.name}' wants the output '{missing}', which no model gives; there "
                f"are {', '.join(sorted(OUTPUTS))}."
            )
