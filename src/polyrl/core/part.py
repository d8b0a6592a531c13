"""Parts: one stage's work each; terms of an objective, improvers, architectures, and their hyperparameters.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from polyrl.core.fields import Field
from polyrl.core.special_rows import SpecialRows
from polyrl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.core.context import Context
    from polyrl.core.experience import Experience
    from polyrl.core.recipe import Recipe
    from polyrl.core.update import See
    from polyrl.models.stored import Stored

Stage = Literal["policy", "models", "data", "collect", "score", "credit", "select", "improve", "judged"]
Scope = Literal["step", "episode", "group", "batch"]
STAGES: tuple[Stage, ...] = ("collect", "score", "credit", "select", "improve")


def hyperparameter(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a hyperparameter: its default, one line of help and its range (`low <= x <= high`, `x > above`)."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above})


@functools.cache
def kebab(name: str) -> str:
    """`LeaveOneOut` -> `leave-one-out`; runs of capitals stay one word (`GAE` -> `gae`)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


class OwnModel(Protocol):
    """A model that a part brings and trains itself."""

    def stored(self, name: str) -> Stored:
        """How a checkpoint holds it under a name, with the parameters that an optimizer of that name trains."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage's work. Subclasses set `stage`, `needs`, `gives` and implement `__call__`.

    Class attributes:
        stage: which of the five stages the part works in.
        slot: parts of one slot exclude each other: adding one to a recipe replaces the other.
        needs, gives: names of experience fields. Override `required()` when a need depends on a hyperparameter.
        own_fields: those of its `gives` that no other part brings, each with what it is (`polyrl.core.fields`).
        models: models besides the policy that must exist: "reference", "critic".
        brings: models of language of the part's own, by name, each made of a run's state: `RunState.own` holds them,
            checkpoints keep them, and `optimizers` makes an optimizer for each.
        measures: the part only measures its `gives` and makes no choice, so recipes insert it by themselves.
        derives: parts that measure what this one needs, where they are this paper's own (`polyrl.core.derived`).
        scope: of parts of score, credit and select: what its result for a step may depend on, whatever its options:
            that step, its episode, its group, or the batch (it keeps a memory, draws, averages over rows).
            Rows within a scope must not be parted.
        special_rows: what it does with rows that are no ordinary responses (`polyrl.core.special_rows`); None says
            nothing, and is refused beside unfinished ones.
        fixed_pairs: of a part of *collect*: whether the task must have fixed pairs; where it has none, some are sampled
            from the start and labelled.
        given_completions: whether it reads responses that are given to be imitated: the data's, or the task's own.
        domain: the one domain whose tasks it can work on ("language", "control", "operations", "theory"); empty: any.
            Parts of *collect* that read a task of their domain declare it.
        access: what it asks of the task beyond plain episodes (`polyrl.core.access`): "generative", "reset-to-state".
            Override `required_access()` where that depends on a hyperparameter.
        solves: the one kind of problem that it is for, of those that a domain tells apart; empty: any.
    """

    stage: ClassVar[Stage]
    slot: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    own_fields: ClassVar[Mapping[str, Field]] = MappingProxyType({})
    models: ClassVar[frozenset[str]] = frozenset()
    brings: ClassVar[Mapping[str, Callable[[Any], OwnModel]]] = MappingProxyType({})
    measures: ClassVar[bool] = False
    derives: ClassVar[tuple[type[Part], ...]] = ()
    scope: ClassVar[Scope | None] = None
    special_rows: ClassVar[SpecialRows | None] = None
    fixed_pairs: ClassVar[bool] = False
    given_completions: ClassVar[bool] = False
    domain: ClassVar[str] = ""
    access: ClassVar[frozenset[str]] = frozenset()
    solves: ClassVar[str] = ""

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

    def required_access(self) -> frozenset[str]:
        """What the part asks of the task with its present hyperparameters."""
        return self.access

    @property
    def told(self) -> frozenset[str]:
        """Those of its present needs that nobody but the environment can give: entries of its info that it declares.

        A constant of the class, or a property where they depend on a hyperparameter.
        """
        return frozenset()

    def setting(self, name: str, default: Any) -> Any:
        """The hyperparameter or constant `name`, or `default` where the part's class declares none of that name."""
        declared = any(name in vars(kind).get("__annotations__", {}) for kind in type(self).__mro__)
        return getattr(self, name) if declared else default

    def follows_budget(self) -> tuple[str, ...]:
        """Hyperparameters by which it changes over the budget, so that more budget later is not more from the start."""
        return ()

    def prepare(self, task: Any, model: str, say: Callable[[str], None] = lambda _: None) -> Any:
        """Make what the part needs beside the run's models, such as frozen ones that it judges by, and return it.

        Args:
            task: what is solved.
            model: name or folder of the model that a run of language starts from.
            say: for what takes long.
        """

    def given_within(self, recipe: Recipe) -> frozenset[str]:
        """Fields that it gives in this recipe: `gives`, but where they depend on what else the recipe has."""
        return self.gives

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


RENAMED = {"slopes": "grad_outputs", "together": "grouped_by", "updated": "on_update_end"}
"""What a term's class called otherwise before 0.2."""


@dataclass(frozen=True, kw_only=True)
class Term(Part):
    """One summand of the objective: a loss per step, and how steps are averaged (`aggregation`)."""

    stage: ClassVar[Stage] = "improve"
    wants: ClassVar[frozenset[str]] = frozenset({"logprob"})
    """Differentiable outputs that the loss reads: "logprob", "entropy", "value", "cost"."""
    grouped_by: ClassVar[str] = ""
    """Rows with equal values of this field are judged together: no minibatch and no micro-batch parts them."""
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )
    """A term counts what selection gave a weight: of unfinished responses the tokens that were sampled just now."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep nothing inherited that was written for another loss.

        Written derivatives (`grad_outputs`, `grad_summand`) are those of the class that wrote them: a subclass has
        autograd's, unless it says its own or takes the others on knowingly (`grad_outputs = Parent.grad_outputs`).
        `statistics` are dropped in the same way where the loss is another one: where a subclass overrides `loss`, or a
        method or property that it may read.
        """
        super().__init_subclass__(**kwargs)
        for before, now in RENAMED.items():
            if before in vars(cls):
                raise UserError(
                    f"{cls.__name__}.{before} is called {now} since polyrl 0.2; rename it, for nothing looks at it."
                )
        if "grad_outputs" not in vars(cls):
            setattr(cls, "grad_outputs", Term.grad_outputs)  # noqa: B010 - mypy takes no plain assignment to a method
        if "grad_summand" not in vars(cls):
            setattr(cls, "grad_summand", Term.grad_summand)  # noqa: B010
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

    def grad_outputs(
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

    def grad_summand(
        self, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """What `grad_outputs` is to the loss, of `summand`; None where nobody has written it: then autograd does it.

        The sum of `weights` `[B, T]` times the summand, and its derivatives, each of the shape of its output.
        Written by a term whose summand asks other models; it may ask nothing of the model that it trains beside
        `outputs`. What a term says itself is compared with autograd's at a run's first step, and is not inherited.
        """
        if type(self).summand is not Term.summand:
            return None
        return self.grad_outputs(outputs, batch, weights)

    @property
    def is_written(self) -> bool:
        """Whether `grad_summand` gives derivatives, so that an update may do without autograd."""
        own = type(self)
        return own.summand is Term.summand or own.grad_summand is not Term.grad_summand

    def priority(self, outputs: Mapping[str, Tensor], batch: Experience) -> Tensor | None:
        """How much there is to learn from each row `[B, T]`, for sources that sample by it; None: it says nothing."""
        return None

    def step_weights(self, experience: Experience) -> Tensor:
        """Return weights, `[B, T]` or `[B]` like the loss, that turn its sum into the average over all rows given."""
        raise NotImplementedError

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Return quantities to log as means over the counted steps `[B, T]` or the counted rows `[B]`."""
        return {}

    def notices(self, run_state: Any) -> list[str]:
        """Return what is to be said before a run begins of how the term and its data fit, a sentence each."""
        return []

    def on_update_end(self, metrics: dict[str, float], context: Context) -> None:
        """Called once after the update with what was measured in it: where a coefficient adapts, it adapts here."""


_BESIDE_THE_LOSS = frozenset(
    {
        *(
            "name",
            "averaging",
            "weights",
            "step_weights",
            "grad_outputs",
            "grad_summand",
            "is_written",
            "on_update_end",
        ),
        *("priority", "notices", "required", "required_models", "check_within", "apply"),
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
    """What takes the improvement step: `parts.optimize.Optimize` by gradients; exact methods write their own."""

    stage: ClassVar[Stage] = "improve"

    def optimizers(self, run_state: Any) -> dict[str, Any]:
        """Return the torch optimizers whose state belongs in checkpoints, by model; none by default."""
        return {}

    def collects(self, context: Context) -> bool:
        """Whether the stages before *improve* run in this turn."""
        return True

    def set_rates(self, context: Context) -> None:
        """Set the step sizes of this iteration; called before *select*, whose parts may read the coming step's."""

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Improve what acts on one batch; metrics go to the context."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Architecture(Part):
    """What acts, where polyrl makes it: a network or a table, whose sizes are hyperparameters like any other.

    Language models come from `--model` instead. A run calls its domain's own method of the architecture. What it gives
    are fields that rollouts get of what acts, beside those of every rollout, such as what it remembered.
    """

    stage: ClassVar[Stage] = "policy"

    def fitted(self, observations: Any, task: str) -> Architecture:
        """The same for what a task shows, where its layers depend on more of that than how many numbers it is."""
        return self


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
