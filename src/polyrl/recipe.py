"""Parts, the five stages, recipes, composition with `+`, and the check that a recipe holds together.

A **part** does one stage's work: a small frozen dataclass whose fields are its hyperparameters, called with the
experience and returning it with more fields. It states what it needs and gives by field name. A **recipe** fills the
five stages with parts. A **method** is a named recipe from a paper.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from polyrl.errors import UserError, nearest
from polyrl.rows import SpecialRows
from polyrl.runtime.metric import Metric
from polyrl.settings import parse_value

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.core.update import See, Step, Update
    from polyrl.data.base import Source
    from polyrl.experience import Experience
    from polyrl.models.base import Model
    from polyrl.runtime.context import Context

Stage = Literal["policy", "models", "data", "collect", "score", "credit", "select", "improve"]
STAGES: tuple[Stage, ...] = ("collect", "score", "credit", "select", "improve")


def knob(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a hyperparameter: its default, one line of help and its range (`low <= x <= high`, `x > above`)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above})


@functools.cache
def kebab(name: str) -> str:
    """`LeaveOneOut` -> `leave-one-out`; runs of capitals stay one word (`GAE` -> `gae`)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


MOST_NAMED = 4
"""Parts that an error names as those that would give a missing field."""

MEASURES: dict[str, type[Part]] = {}
"""Field -> the part that measures it. A recipe that needs such a field gets the part without asking for it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage's work. Subclasses set `stage`, `needs`, `gives` and implement `__call__`.

    Class attributes:
        stage: which of the five stages the part works in.
        slot: parts of one slot exclude each other: adding one to a recipe replaces the other.
        needs, gives: names of experience fields. Override `required()` when a need depends on a hyperparameter.
        models: models besides the policy that must exist: "reference", "critic".
        measures: the part only measures its `gives` and makes no choice, so recipes insert it by themselves.
        special_rows: what it does with rows that are no ordinary responses (`polyrl.rows`); None says nothing, and is
            refused beside unfinished ones.
    """

    stage: ClassVar[Stage]
    slot: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    models: ClassVar[frozenset[str]] = frozenset()
    measures: ClassVar[bool] = False
    special_rows: ClassVar[SpecialRows | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register parts that only measure a field."""
        super().__init_subclass__(**kwargs)
        if cls.measures:
            for name in cls.gives:
                MEASURES[name] = cls

    def __post_init__(self) -> None:
        """Refuse hyperparameters out of their declared range."""
        for f in dataclasses.fields(self):
            _check_range(self.name, f, getattr(self, f.name))

    @property
    def name(self) -> str:
        """The part's name on the command line, in configs and logs."""
        return kebab(type(self).__name__)

    def required(self) -> frozenset[str]:
        """Fields that the part needs with its present hyperparameters."""
        return self.needs

    def required_models(self) -> frozenset[str]:
        """Models that the part needs with its present hyperparameters."""
        return self.models

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a recipe in which the part cannot do its work although its fields are there; raises `UserError`."""

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Return the experience with the fields that the part gives."""
        raise NotImplementedError

    def apply(self, batch: Experience, see: See) -> Experience:
        """The same within an update, where models and draws may be seen; no gradient flows through it."""
        return self(batch, see.context)


@dataclass(frozen=True, kw_only=True)
class Change(Part):
    """What changes an entry of a recipe when it is added: `sac+n-step` sums more rewards in the replay's rows."""

    stage: ClassVar[Stage] = "data"

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with the entry changed.

        Raises:
            UserError: the recipe has no such entry.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Term(Part):
    """One summand of the objective: a loss per step, and how steps are averaged (`aggregation`)."""

    stage: ClassVar[Stage] = "improve"
    wants: ClassVar[frozenset[str]] = frozenset({"logprob"})
    """Differentiable outputs that the loss reads: "logprob", "entropy", "value", "cost"."""
    together: ClassVar[str] = ""
    """Rows with equal values of this field are judged together: no minibatch and no micro-batch parts them."""
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )
    """A term counts what selection gave a weight: of unfinished responses the tokens that were sampled just now."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep nothing inherited that was written for another loss.

        Written derivatives (`slopes`) are those of the class that wrote them: a subclass has autograd's, unless it says
        its own or takes the others on knowingly (`slopes = Parent.slopes`). `statistics` are dropped in the same way
        where the loss is another one: where a subclass overrides `loss`, or a method or property that it may read.
        """
        super().__init_subclass__(**kwargs)
        if "slopes" not in vars(cls):
            setattr(cls, "slopes", Term.slopes)  # noqa: B010 - mypy takes no plain assignment to a method
        writer = next(c for c in cls.__mro__ if "statistics" in vars(c))
        below = cls.__mro__[: cls.__mro__.index(writer)]
        if any(_is_another_loss(name, value, writer) for c in below for name, value in vars(c).items()):
            setattr(cls, "statistics", Term.statistics)  # noqa: B010

    @property
    def averaging(self) -> str:
        """How the term averages: terms of one objective that say the same share their `step_weights`."""
        return self.name

    def weights(self, experience: Experience) -> Tensor:
        """How much each step counts for this term, `[B, T]`, 0 for not at all: what selection left in `weight`."""
        return experience["weight"]

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Return the loss of every step, `[B, T]`, or of every row, `[B]`, before weights and averaging."""
        raise NotImplementedError

    def slopes(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of `weights` times the loss, and its derivatives by the outputs, `[B, T]` each.

        By autograd, unless a term knows them in closed form. What the loss does not depend on may be left out. What a
        term says itself is compared with autograd's at a run's first step, and is not inherited.
        """
        import torch

        leaves = {name: x.detach().requires_grad_() for name, x in outputs.items()}
        with torch.enable_grad():
            total = (self.loss(leaves, experience) * weights).sum()
        if not total.requires_grad:
            return total, {}
        found = torch.autograd.grad(total, [*leaves.values()], allow_unused=True)
        return total.detach(), {name: x for name, x in zip(leaves, found, strict=True) if x is not None}

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """The loss within an update, where other models and draws may be seen; `loss` unless a term needs these."""
        return self.loss(outputs, batch)

    def priority(self, outputs: Mapping[str, Tensor], batch: Experience) -> Tensor | None:
        """How much there is to learn from each row `[B, T]`, for sources that sample by it; None: it says nothing."""
        return None

    def step_weights(self, experience: Experience) -> Tensor:
        """Return weights, shaped like the loss, that turn its sum into the term's average over all rows given."""
        raise NotImplementedError

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Return quantities to log as means over the counted steps `[B, T]` or the counted rows `[B]`."""
        return {}

    def updated(self, metrics: dict[str, float], context: Context) -> None:
        """Called once after the update with what was measured in it: where a coefficient adapts, it adapts here."""


_BESIDE_THE_LOSS = frozenset(
    {
        *("name", "averaging", "weights", "step_weights", "slopes", "updated", "priority"),
        *("required", "required_models", "check_within", "apply"),
    }
)
"""Methods and properties of a term that neither its loss nor its statistics are made of."""


def _is_another_loss(name: str, value: object, writer: type) -> bool:
    """Whether `name`, overridden by `value`, may change what the loss is that the class `writer` tells statistics of.

    What is abstract there (`@abstractmethod`) is filled in and not overridden.
    """
    computes = callable(value) or isinstance(value, property | functools.cached_property | classmethod | staticmethod)
    if not computes or name.startswith("__") or name in _BESIDE_THE_LOSS:
        return False
    there = inspect.getattr_static(writer, name, None)
    return there is not None and not getattr(there, "__isabstractmethod__", False)


@dataclass(frozen=True, kw_only=True)
class Improver(Part):
    """What takes the improvement step: `parts.optimise.Optimise` by gradients; exact methods write their own."""

    stage: ClassVar[Stage] = "improve"

    def optimisers(self, world: Any) -> dict[str, Any]:
        """Return the torch optimisers whose state belongs in checkpoints, by model; none by default."""
        return {}

    def set_rates(self, context: Context) -> None:
        """Set the step sizes of this iteration; called before *select*, whose parts may read the coming step's."""

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Improve what acts on one batch; metrics go to the context."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Architecture(Part):
    """What acts, where polyrl makes it: a network or a table, whose sizes are hyperparameters like any other.

    Language models come from `--model` instead. A world calls its wing's own method of the architecture to build it.
    """

    stage: ClassVar[Stage] = "policy"


def _check_range(owner: str, f: dataclasses.Field[Any], value: Any) -> None:
    low, high, above = (f.metadata.get(k) for k in ("low", "high", "above"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    bad = not math.isfinite(value)
    bad = bad or (low is not None and value < low) or (high is not None and value > high)
    bad = bad or (above is not None and value <= above)
    if bad:
        left = f"above {above:g}" if above is not None else f"at least {low:g}" if low is not None else ""
        right = f"at most {high:g}" if high is not None else ""
        wanted = " and ".join(w for w in (left, right) if w) or "finite"
        raise UserError(f"{owner}.{f.name} is {value!r} but must be {wanted}.")


def options(part: Part) -> list[dataclasses.Field[Any]]:
    """The fields of a part that are hyperparameters; others say how parts are joined (`Sample("replay")`)."""
    return [f for f in dataclasses.fields(part) if not f.name.startswith("_") and (f.metadata or not _joins(part, f))]


def _joins(part: Part, f: dataclasses.Field[Any]) -> bool:
    value = getattr(part, f.name)
    return not f.kw_only or isinstance(value, Part | tuple | Mapping)


def _rebuilt(
    step: Step, changed: Callable[[Part], Part], within: Callable[[tuple[Step, ...]], tuple[Step, ...]]
) -> Step:
    """An update, move or repeat whose parts are changed."""
    from polyrl.core.update import Repeat, Update

    if isinstance(step, Repeat):
        return dataclasses.replace(step, of=within(step.of))
    if isinstance(step, Update):
        inner: dict[str, Any] = {
            "batch": changed(step.batch),
            "credit": tuple(map(changed, step.credit)),
            "terms": tuple(map(changed, step.terms)),
        }
        return dataclasses.replace(step, **inner)
    return step


def check_updates(recipe: Recipe, given: set[str]) -> None:
    """Refuse a list of updates that does not hold together.

    Args:
        recipe: what is checked.
        given: fields that the stages of a turn give.

    Raises:
        UserError: a model or source that nobody states, an output that no model gives, or a field that is not there.
    """
    from polyrl.core.update import Again, Move, Update, flat

    def known(name: str, what: str, entries: Mapping[str, Any], owner: str) -> None:
        if name not in entries:
            raise UserError(
                f"{recipe.name}: '{owner}' names the {what} '{name}', which the recipe does not state; it has "
                f"{', '.join(entries) or 'none'}."
            )

    known(recipe.acts, "model", recipe.models, "acts")
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
        for term in step.terms:
            for missing in sorted(term.wants - outputs):
                raise UserError(
                    f"{recipe.name}: the term '{term.name}' wants the output '{missing}' of the model "
                    f"'{step.trains}', which gives {', '.join(sorted(outputs)) or 'none'}."
                )
        if isinstance(step, Update) and step.batch.reads():
            for name in step.batch.reads():
                known(name, "source", recipe.sources, step.name)
            fields = set.intersection(*(set(recipe.sources[name].fields) for name in step.batch.reads()))
        elif not isinstance(step.batch, Again):
            fields = set(given)
        for part in (*step.credit, *step.terms):
            for missing in sorted(part.required() - fields):
                raise UserError(
                    f"{recipe.name}: part '{part.name}' of the {step.name} needs the field '{missing}', which its "
                    f"batch does not have; it has {', '.join(sorted(fields))}."
                )
            for name in sorted(part.required_models()):
                known(name, "model", recipe.models, part.name)
            fields |= part.gives
        fields |= outputs


@dataclass(frozen=True)
class Recipe:
    """Five stages filled with parts, and what they work on.

    Attributes:
        name: what the user typed, such as "grpo" or "ppo+k3".
        collect: the one part that brings experience; None where all rows are given.
        score, credit, select: chains of parts, run in order on what was collected.
        terms: the objective, a sum; with `optimise` the case of one update on the fresh batch.
        optimise: the part that takes the improvement step; None where `updates` say what is done.
        updates: what improves which model on which batch, in order (`polyrl.core.update`).
        models: what has parameters, by name (`polyrl.models.base`), where the recipe says so.
        sources: rows beside the fresh ones, by name (`polyrl.data.base`).
        acts: the model that acts, by name.
        turns: passes through the stages and the updates in one iteration.
        policy: what acts, where polyrl makes it for `optimise`; None where a model is given.
        dropped: terms that went because a part that replaced another no longer gives what they need.
        adds: the parts (by class name in kebab case) that the paper itself contributes: what `a+b` takes from `b`.
        notes: one line a stage for `polyrl show` and `trace`; keys are stage names.
        metric: what its runs are judged by, where that is not what the task says.
    """

    name: str
    collect: Part | None = None
    score: tuple[Part, ...] = ()
    credit: tuple[Part, ...] = ()
    terms: tuple[Term, ...] = ()
    optimise: Improver | None = None
    select: tuple[Part, ...] = ()
    policy: Architecture | None = None
    models: Mapping[str, Model] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    updates: tuple[Step, ...] = ()
    acts: str = "policy"
    turns: int = 1
    adds: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    metric: Metric | None = None

    # ------------------------------------------------------------------------------------------------ reading

    def stages(self) -> list[tuple[Stage, tuple[Part, ...]]]:
        """Each stage with its parts; measuring parts are put in where a field that nobody gives is first needed."""
        chains: dict[Stage, list[Part]] = {stage: list(self.listed(stage)) for stage in STAGES}
        given: set[str] = set()
        for stage in STAGES:
            kept = [source for source in self.sources.values() if source.after == stage]  # they read what is there then
            for part in [*chains[stage], *kept]:
                for name in sorted(part.required() - given):
                    if name not in MEASURES:
                        continue
                    measure = MEASURES[name]()
                    chain = chains[measure.stage]
                    # before the first part of its own stage that needs it, else at that stage's end
                    chain.insert(chain.index(part) if part in chain else len(chain), measure)
                    given |= measure.gives
                given |= part.gives
        return [(stage, tuple(chains[stage])) for stage in STAGES]

    def listed(self, stage: Stage) -> tuple[Part, ...]:
        """Parts of a stage as the recipe states them (for improve: the terms, then the optimiser)."""
        if stage == "collect":
            return (self.collect,) if self.collect else ()
        if stage == "improve":
            return (*self.terms, self.improver)
        return typing.cast("tuple[Part, ...]", getattr(self, stage))

    @property
    def collected(self) -> frozenset[str]:
        """Fields that *collect* gives; none where all rows are given."""
        return self.collect.gives if self.collect else frozenset()

    @functools.cached_property
    def improver(self) -> Improver:
        """What improves: `optimise`, or the list of updates."""
        if self.optimise is not None:
            return self.optimise
        from polyrl.core.update import UpdateList

        return UpdateList(updates=self.updates)

    def update_steps(self) -> list[Step]:
        """Every update, move and repeat, what is repeated behind its repeat."""
        from polyrl.core.update import Repeat

        found: list[Step] = []

        def walk(steps: tuple[Step, ...]) -> None:
            for step in steps:
                found.append(step)
                if isinstance(step, Repeat):
                    walk(step.of)

        walk(self.updates)
        return found

    def entries(self) -> list[tuple[str, Part]]:
        """Models, sources and what the updates are made of, each with the name by which its hyperparameters are set."""
        from polyrl.core.update import Update

        found: list[tuple[str, Part]] = [*self.models.items(), *self.sources.items()]
        for step in self.update_steps():
            if isinstance(step, Update):
                found.append((step.batch.name, step.batch))
                found += [(part.name, part) for part in (*step.credit, *step.terms)]
            found.append((step.name, step))
        return found

    def parts(self) -> Iterator[Part]:
        """Yield every part in the order of the stages, measuring parts included, those of updates at the end."""
        for _, parts in self.stages():
            yield from parts
        for _, part in self.entries():
            yield part

    def required_models(self) -> frozenset[str]:
        """Models besides the policy that parts need, where the recipe does not list its models itself."""
        return frozenset().union(*(p.required_models() for p in self.parts()))

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter as `part.field` -> value; of models and sources as `name.field`.

        A bare field sets it in every part, model and source that has it.
        """
        parts = [(p.name, p) for p in (*([self.policy] if self.policy else []), *self._stage_parts())]
        found = {
            f"{name.replace('_', '-')}.{f.name}": getattr(p, f.name)
            for name, p in (*parts, *self.entries())
            for f in options(p)
        }
        return found | ({"iteration.turns": self.turns} if self.updates else {})

    def _stage_parts(self) -> Iterator[Part]:
        for _, parts in self.stages():
            yield from parts

    # ---------------------------------------------------------------------------------------------- composing

    def __add__(self, other: Recipe | Part) -> Recipe:
        """Put another part, or the parts that another method adds, into this recipe."""
        if isinstance(other, Recipe):
            result = self
            own = [other.policy] if other.policy else []
            for name, model in other.models.items():
                if name in other.adds:
                    result = result._with_model(name, model)
            for part in [p for p in (*own, *other.parts()) if p.name in other.adds]:
                result = result._with(part)
            return dataclasses.replace(result, name=f"{self.name}+{other.name}", adds=self.adds + other.adds)
        result = self._with(other)
        return dataclasses.replace(result, name=f"{self.name}+{other.name}", adds=(*self.adds, other.name))

    def _with_model(self, name: str, model: Model) -> Recipe:
        """Put a model into the place of one of the same name, which must give what is read of it."""
        old = self.models.get(name)
        if old is None:
            raise UserError(f"{self.name} has no model '{name}', so '{model.name}' has nothing to replace.")
        shared = {f.name for f in options(model)} & {f.name for f in options(old)}
        model = dataclasses.replace(model, **{f: getattr(old, f) for f in shared})
        return dataclasses.replace(self, models={**self.models, name: model})

    def _with(self, part: Part) -> Recipe:
        if isinstance(part, Change):
            return part.change(self)
        if self.updates and (found := self._within_updates(part)) is not None:
            return found
        which = "optimise" if isinstance(part, Improver) else part.stage
        if which in ("policy", "collect", "optimise"):
            old = getattr(self, which)
            if old is None:
                raise UserError(f"{self.name} is given its policy, so '{part.name}' has nothing to replace.")
            shared = {f.name for f in dataclasses.fields(part)} & {f.name for f in dataclasses.fields(old)}
            kept = {name: getattr(old, name) for name in shared}
            return self._changed(which, dataclasses.replace(part, **kept))
        where = "terms" if part.stage == "improve" else part.stage
        chain: tuple[Part, ...] = getattr(self, where)
        replaced = [p for p in chain if part.slot and p.slot == part.slot]
        same = [i for i, p in enumerate(chain) if type(p) is type(part) or (part.slot and p.slot == part.slot)]
        if same:
            chain = tuple(part if i == same[0] else p for i, p in enumerate(chain) if i not in same[1:])
        else:
            chain = (*chain, part)
        return self._changed(where, chain)._without_orphans(replaced)

    def _within_updates(self, part: Part) -> Recipe | None:
        """Put a part where one of its slot stands in an update, or a term into the one update that gives what it wants.

        None where it is neither: then it belongs to a stage.
        """
        from polyrl.core.update import Update

        def alike(other: Part) -> bool:
            return type(other) is type(part) or (bool(part.slot) and other.slot == part.slot)

        def placed(update: Update) -> Update:
            return dataclasses.replace(
                update,
                credit=tuple(part if alike(p) else p for p in update.credit),
                terms=typing.cast("tuple[Term, ...]", tuple(part if alike(t) else t for t in update.terms)),
            )

        updates = [u for u in self.update_steps() if isinstance(u, Update)]
        if any(alike(p) for u in updates for p in (*u.credit, *u.terms)):
            return self._with_updates(placed)
        if not isinstance(part, Term):
            return None
        able = [u for u in updates if part.wants <= self.models[u.trains].outputs]
        if len(able) != 1:
            which = f"the updates of {', '.join(u.trains for u in able)} all do" if able else "no update does"
            raise UserError(
                f"{self.name}: the term '{part.name}' belongs to an update of a model that gives "
                f"{' and '.join(sorted(part.wants))}, and {which}; say where it belongs in a method file."
            )
        joined = dataclasses.replace(able[0], terms=(*able[0].terms, part))
        return self._with_updates(lambda update: joined if update == able[0] else update)

    def _with_updates(self, changed: Callable[[Update], Update]) -> Recipe:
        """The recipe with every update changed, those in repeats too."""
        from polyrl.core.update import Repeat, Update

        def walk(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple(
                dataclasses.replace(s, of=walk(s.of))
                if isinstance(s, Repeat)
                else changed(s)
                if isinstance(s, Update)
                else s
                for s in steps
            )

        return dataclasses.replace(self, updates=walk(self.updates))

    def _without_orphans(self, replaced: Sequence[Part]) -> Recipe:
        """Drop terms whose needs only a replaced part gave: without GAE's targets a value loss has nothing to learn."""
        given = {g for p in (*self.listed("collect"), *self.score, *self.credit, *self.select) for g in p.gives} | set(
            MEASURES
        )
        lost = {g for p in replaced for g in p.gives} - given
        orphans = tuple(t for t in self.terms if t.required() & lost)
        if not orphans:
            return self
        kept = tuple(t for t in self.terms if t not in orphans)
        return dataclasses.replace(self, terms=kept, dropped=self.dropped + tuple(t.name for t in orphans))

    def _changed(self, stage: str, value: Any) -> Recipe:
        changes: dict[str, Any] = {stage: value}
        return dataclasses.replace(self, **changes)

    def set(self, name: str, value: Any) -> Recipe:
        """Return the recipe with a hyperparameter set.

        Args:
            name: `field` (set in every part that has it) or `part.field`.
            value: the value, or its text.

        Raises:
            UserError: no part has such a hyperparameter, or the value is malformed or out of range.
        """
        wanted_part, _, wanted = name.replace("-", "_").rpartition(".")
        hits = 0
        if self.updates and wanted == "turns" and wanted_part in ("", "iteration"):
            turns: int = parse_value("iteration", "turns", int, value)
            if turns < 1:
                raise UserError(f"iteration.turns is {turns} but must be at least 1.")
            return dataclasses.replace(self, turns=turns)

        def changed(part: Part, called: str = "") -> Part:
            nonlocal hits
            if wanted_part and (called or part.name).replace("-", "_") != wanted_part:
                return part
            for f in options(part):
                if f.name == wanted:
                    hits += 1
                    hints = typing.get_type_hints(type(part))
                    value_ = parse_value(called or part.name, wanted, hints[wanted], value)
                    return dataclasses.replace(part, **{wanted: value_})
            return part

        def within(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            return tuple(typing.cast("Step", changed(_rebuilt(step, changed, within))) for step in steps)

        result = dataclasses.replace(
            self,
            collect=self.collect and changed(self.collect),
            score=tuple(changed(p) for p in self.score),
            credit=tuple(changed(p) for p in self.credit),
            select=tuple(changed(p) for p in self.select),
            terms=typing.cast("tuple[Term, ...]", tuple(changed(p) for p in self.terms)),
            optimise=typing.cast("Improver | None", self.optimise and changed(self.optimise)),
            policy=typing.cast("Architecture | None", self.policy and changed(self.policy)),
            models={k: typing.cast("Model", changed(m, k)) for k, m in self.models.items()},
            sources={k: typing.cast("Source", changed(m, k)) for k, m in self.sources.items()},
            updates=within(self.updates),
        )
        if not hits:
            names = [k for key in self.hyperparameters() for k in (key, key.rpartition(".")[2])]
            near = nearest(name.replace("-", "_"), dict.fromkeys(names))
            raise UserError(
                f"{self.name} has no hyperparameter '{name}'.{near} `polyrl show {self.name}` lists them all."
            )
        return result

    # ----------------------------------------------------------------------------------------------- checking

    def check(self, *, providers: Sequence[type[Part]] = ()) -> Recipe:
        """Return the recipe if it holds together.

        Args:
            providers: known part classes, named in the error as those that would give a missing field.

        Raises:
            UserError: a part needs a field that no earlier part gives, or stands in the wrong stage.
        """
        given: set[str] = set()
        if self.policy:
            self.policy.check_within(self)
        if (self.optimise is None) == (not self.updates):
            raise UserError(
                f"{self.name} must say how it improves: either terms and optimise, or a list of updates, and not both."
            )
        for stage, parts in self.stages():
            for part in parts:
                if part.stage != stage:
                    raise UserError(f"{self.name}: part '{part.name}' works in stage {part.stage}, not in {stage}.")
                for missing in sorted(part.required() - given):
                    late = [p.name for p in self.parts() if missing in p.gives - p.required()]
                    # what sees models works within updates only
                    able = {p for p in providers if missing in p.gives - p.needs and p.apply is Part.apply}
                    # of many those that no paper owns
                    able = {p for p in able if ".methods." not in p.__module__} if len(able) > MOST_NAMED else able
                    would = late or sorted(kebab(p.__name__) for p in able)
                    how = " or ".join(f"'{w}'" for w in would[:MOST_NAMED])
                    way = (
                        f"{how} gives it, but later"
                        if late
                        else f"{how} would give it"
                        if would
                        else "no known part gives it"
                    )
                    raise UserError(
                        f"{self.name}: part '{part.name}' needs the field '{missing}', which nobody gives; {way}."
                    )
                given |= part.gives
                part.check_within(self)
        if self.updates:
            check_updates(self, given)
        return self
