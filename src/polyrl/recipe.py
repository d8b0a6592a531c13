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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from polyrl.errors import UserError, nearest
from polyrl.rows import SpecialRows
from polyrl.runtime.metric import Metric
from polyrl.settings import parse_value

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.experience import Experience
    from polyrl.runtime.context import Context

Stage = Literal["policy", "collect", "score", "credit", "select", "improve"]
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

    def step_weights(self, experience: Experience) -> Tensor:
        """Return weights, shaped like the loss, that turn its sum into the term's average over all rows given."""
        raise NotImplementedError

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Return quantities to log as means over the counted steps `[B, T]` or the counted rows `[B]`."""
        return {}

    def updated(self, metrics: dict[str, float], context: Context) -> None:
        """Called once after the update with what was measured in it: where a coefficient adapts, it adapts here."""


_BESIDE_THE_LOSS = frozenset(
    {"name", "averaging", "weights", "step_weights", "slopes", "updated", "required", "required_models", "check_within"}
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


@dataclass(frozen=True)
class Recipe:
    """Five stages filled with parts.

    Attributes:
        name: what the user typed, such as "grpo" or "ppo+k3".
        collect: the one part that brings experience.
        score, credit, select: chains of parts, run in order.
        terms: the objective, a sum.
        optimise: the part that takes the improvement step.
        policy: what acts, where polyrl makes it; None where a model is given.
        dropped: terms that went because a part that replaced another no longer gives what they need.
        adds: the parts (by class name in kebab case) that the paper itself contributes: what `a+b` takes from `b`.
        notes: one line a stage for `polyrl show` and `trace`; keys are stage names.
        metric: what its runs are judged by, where that is not what the task says.
    """

    name: str
    collect: Part
    score: tuple[Part, ...]
    credit: tuple[Part, ...]
    terms: tuple[Term, ...]
    optimise: Improver
    select: tuple[Part, ...] = ()
    policy: Architecture | None = None
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
            for part in list(chains[stage]):
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
            return (self.collect,)
        if stage == "improve":
            return (*self.terms, self.optimise)
        return typing.cast("tuple[Part, ...]", getattr(self, stage))

    def parts(self) -> Iterator[Part]:
        """Yield every part in the order of the stages, measuring parts included."""
        for _, parts in self.stages():
            yield from parts

    def models(self) -> frozenset[str]:
        """Models besides the policy that the recipe needs."""
        return frozenset().union(*(p.required_models() for p in self.parts()))

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter as `part.field` -> value."""
        return {
            f"{p.name}.{f.name}": getattr(p, f.name)
            for p in (*([self.policy] if self.policy else []), *self.parts())
            for f in dataclasses.fields(p)
            if not f.name.startswith("_")
        }

    # ---------------------------------------------------------------------------------------------- composing

    def __add__(self, other: Recipe | Part) -> Recipe:
        """Put another part, or the parts that another method adds, into this recipe."""
        if isinstance(other, Recipe):
            result = self
            own = [other.policy] if other.policy else []
            for part in [p for p in (*own, *other.parts()) if p.name in other.adds]:
                result = result._with(part)
            return dataclasses.replace(result, name=f"{self.name}+{other.name}", adds=self.adds + other.adds)
        result = self._with(other)
        return dataclasses.replace(result, name=f"{self.name}+{other.name}", adds=(*self.adds, other.name))

    def _with(self, part: Part) -> Recipe:
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

    def _without_orphans(self, replaced: Sequence[Part]) -> Recipe:
        """Drop terms whose needs only a replaced part gave: without GAE's targets a value loss has nothing to learn."""
        given = {g for p in (self.collect, *self.score, *self.credit, *self.select) for g in p.gives} | set(MEASURES)
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

        def changed(part: Part) -> Part:
            nonlocal hits
            if wanted_part and part.name.replace("-", "_") != wanted_part:
                return part
            for f in dataclasses.fields(part):
                if f.name == wanted:
                    hits += 1
                    hints = typing.get_type_hints(type(part))
                    return dataclasses.replace(part, **{wanted: parse_value(part.name, wanted, hints[wanted], value)})
            return part

        result = dataclasses.replace(
            self,
            collect=changed(self.collect),
            score=tuple(changed(p) for p in self.score),
            credit=tuple(changed(p) for p in self.credit),
            select=tuple(changed(p) for p in self.select),
            terms=typing.cast("tuple[Term, ...]", tuple(changed(p) for p in self.terms)),
            optimise=typing.cast("Improver", changed(self.optimise)),
            policy=typing.cast("Architecture | None", self.policy and changed(self.policy)),
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
        for stage, parts in self.stages():
            for part in parts:
                if part.stage != stage:
                    raise UserError(f"{self.name}: part '{part.name}' works in stage {part.stage}, not in {stage}.")
                for missing in sorted(part.required() - given):
                    late = [p.name for p in self.parts() if missing in p.gives - p.required()]
                    able = {p for p in providers if missing in p.gives - p.needs}
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
        return self
