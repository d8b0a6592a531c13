"""Improve as a list of updates: which terms train which model, on which batch, and which copies move after that.

    updates=(
        Update("q", (SquaredTD(),), Sample("replay", batch_size=256), credit=(SoftTarget(),)),
        Update("policy", (SoftValue(),), Again()),
        Update("temperature", (EntropyTarget(),), Again()),
        Move("q_target", "q", tau=0.005),
    )

They run in this order once a turn; `Repeat` runs some of them several times, `Epochs` on the shuffled minibatches of
one batch. Copies move nowhere else, so that the order is what stands there. `Recipe(terms=, optimize=)` stays and is
the case of one update on the fresh batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.part import Part, Stage, Term, hyperparameter

if TYPE_CHECKING:
    from polyrl.models.base import NamedModels

# ------------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Batch(Part):
    """Where the rows of an update come from."""

    stage: ClassVar[Stage] = "improve"

    def reads(self) -> frozenset[str]:
        """Names of the sources that it takes rows of."""
        return frozenset(self.places())

    def places(self) -> dict[str, slice]:
        """The sources that it takes rows of, and where in the batch theirs stand."""
        return {}


@dataclass(frozen=True)
class Fresh(Batch):
    """The rows that this turn collected, after its score, credit and select; those of a named stream where one is said.

    Attributes:
        stream: name of a stream of the recipe; empty: the rows of its own stages.
    """

    stream: str = ""


@dataclass(frozen=True)
class Sample(Batch):
    """Rows of one source, drawn anew for each update."""

    source: str
    batch_size: int = hyperparameter(256, "rows of one update", low=1)

    def places(self) -> dict[str, slice]:
        """All are the source's."""
        return {self.source: slice(None)}


@dataclass(frozen=True)
class Mix(Batch):
    """Rows of two sources in one batch, such as half of a replay and half of data (arXiv:2302.02948)."""

    first: str
    second: str
    batch_size: int = hyperparameter(256, "rows of one update", low=2)
    share: float = hyperparameter(0.5, "share of the first source", low=0, high=1)

    @property
    def first_rows(self) -> int:
        """How many rows are the first source's."""
        return round(self.share * self.batch_size)

    def places(self) -> dict[str, slice]:
        """The first source's rows, then the second's."""
        return {self.first: slice(self.first_rows), self.second: slice(self.first_rows, None)}


@dataclass(frozen=True)
class OwnRows(Batch):
    """Rows that a paper makes itself and no source keeps, a pure function of how far the run is: write `rows`.

    Class attributes:
        fields: what its rows have; `weight` among them.
    """

    fields: ClassVar[frozenset[str]] = frozenset()

    def rows(self, context: Context) -> Experience:
        """Those of the update that comes next; `context.spent.updates` optimizer steps were taken before it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Again(Batch):
    """The batch of the update before, with what its credit gave; its outputs stand there as fields, as constants.

    An output does not take the place of a field that the rows came with, such as the `value` that advantages are of.
    """


# ------------------------------------------------------------------------------------------------- what is in a list


@dataclass(frozen=True)
class On(Part):
    """Terms on a batch of their own, whose gradients join those of an update before its step is taken.

    So one objective has two streams: fresh samples, and pairs or demonstrations beside them.

    Attributes:
        batch: where its rows come from.
        terms: summands of the objective, averaged over this batch.
        credit: parts that run on this batch before the terms.
    """

    stage: ClassVar[Stage] = "improve"

    batch: Batch
    terms: tuple[Term, ...]
    credit: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Update(Part):
    """One optimizer step of one model, on the sum of its terms over a batch.

    Attributes:
        trains: name of the model.
        terms: the objective.
        batch: where its rows come from.
        credit: parts that run on this batch before the terms, such as targets.
        also: terms on other batches.
    """

    stage: ClassVar[Stage] = "improve"

    trains: str
    terms: tuple[Term, ...]
    batch: Batch
    credit: tuple[Part, ...] = ()
    also: tuple[On, ...] = ()
    every: int = hyperparameter(1, "turns, or repeats of them, from one of these updates to the next", low=1)

    @property
    def name(self) -> str:
        """Such as `q-update`."""
        return f"{self.trains.replace('_', '-')}-update"

    @cached_property  # asked in every update, and a part is checked when it is made
    def objectives(self) -> tuple[On, ...]:
        """Each batch with its credit and its terms, the update's own first."""
        return (On(self.batch, self.terms, self.credit), *self.also)

    @property
    def inner(self) -> tuple[Part, ...]:
        """Credit and terms of all its batches."""
        return tuple(part for on in self.objectives for part in (*on.credit, *on.terms))

    def changed(self, change: Callable[[Part], Part], *, batches: bool = False) -> Update:
        """The update with all credit and terms changed, and where asked the batches."""

        def of(on: On) -> On:
            return On(
                cast("Batch", change(on.batch)) if batches else on.batch,
                cast("tuple[Term, ...]", tuple(map(change, on.terms))),
                tuple(map(change, on.credit)),
            )

        own, *also = map(of, self.objectives)
        return replace(self, batch=own.batch, terms=own.terms, credit=own.credit, also=tuple(also))


@dataclass(frozen=True)
class Move(Part):
    """Move a model's parameters a share of the way towards another's: Polyak averaging, copying, extrapolating."""

    stage: ClassVar[Stage] = "improve"

    target: str
    towards: str
    tau: float = hyperparameter(1.0, "share of the way: 1 copies, 0.005 averages, a negative one extrapolates")
    every: int = hyperparameter(1, "turns, or repeats of them, from one move to the next", low=1)

    @property
    def name(self) -> str:
        """Such as `q-target-move`."""
        return f"{self.target.replace('_', '-')}-move"

    def after_move(self, see: See) -> Mapping[str, float]:
        """What is logged after the move, by its name; nothing, unless a paper's own move says it."""
        return {}


@dataclass(frozen=True)
class Repeat(Part):
    """Run some updates and moves several times in one turn."""

    stage: ClassVar[Stage] = "improve"

    gradient_steps: int = hyperparameter(1, "how often in one turn", low=1)
    of: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Epochs(Part):
    """Pass several times over one batch, in shuffled minibatches: the updates within run on each in turn.

    Random orders are of the stream `minibatches`. Where no step of a minibatch counts for an update's terms, its model
    takes no step.

    Class attributes, for a paper's own passes:
        watches: name of the model whose move from `behaviour_logprob` is measured and ends the passes (`target_kl`);
            empty: that of the model that acted. Its metrics have its name behind them, `approx_kl/behaviour`.
        stops_at_minibatch: whether the first minibatch beyond `target_kl` ends them, before a step is taken on it;
            else they end with a pass whose mean is beyond it.

    Attributes:
        of: updates and moves; the first `Again()` is the minibatch.
        batch: what is passed over.
        credit: parts that run once, on the whole batch, before it is shuffled.
    """

    stage: ClassVar[Stage] = "improve"
    watches: ClassVar[str] = ""
    stops_at_minibatch: ClassVar[bool] = False

    of: tuple[Step, ...]
    batch: Batch = Fresh()
    credit: tuple[Part, ...] = ()
    epochs: int = hyperparameter(1, "passes over each batch", low=1)
    minibatches: int = hyperparameter(1, "minibatches in one pass", low=1)
    minibatch_of: Literal["rows", "steps"] = hyperparameter(
        "rows", "what is shuffled into minibatches: whole rows, or single steps where models see one at a time"
    )
    joint_clip: float | None = hyperparameter(
        None,
        "norm over all models trained within at which gradients are clipped; none: each by its own",
        above=0,
    )
    target_kl: float | None = hyperparameter(
        None, "stop the epochs when the approximate KL per step exceeds this", above=0
    )
    max_logprob_gap: float | None = hyperparameter(
        None, "stop where sampler and trainer disagree on a log-probability by more; none is 0.2", low=0
    )
    every: int = hyperparameter(
        1, "turns from one of these passes to the next; 0: once an iteration, in its last turn", low=0
    )

    def called(self, metric: str) -> str:
        """Name of a metric of what is watched: with the model's behind it where that is not what acted."""
        return f"{metric}/{self.watches}" if self.watches else metric


@dataclass(frozen=True)
class OwnUpdate(Part):
    """An improvement that is no optimizer step on a sum of terms: a formula, or an optimizer of a paper's own.

    A paper derives from it and writes `step`.

    Attributes:
        trains: name of the model.
        batch: the rows that `step` is given.
        also: other rows that it reads, in `see.rows`, with the same fields.
    """

    stage: ClassVar[Stage] = "improve"

    trains: str
    batch: Batch
    every: int = hyperparameter(1, "turns, or repeats of them, from one of these updates to the next", low=1)
    also: tuple[Batch, ...] = ()

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Improve the model `trains` by the batch; return what is logged.

        `see.gradients(name)` asks a model's parameters for gradients while it is entered.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Phase(Part):
    """A part of a run with updates of its own. Phases follow one another in the order of the list; the last one stays.

    What stands in the list outside of phases runs in all of them.

    Attributes:
        of: the updates.
        reset: models whose optimizer forgets its moments and its step count when the phase begins.
    """

    stage: ClassVar[Stage] = "improve"

    of: tuple[Step, ...]
    optimizer_steps: int = hyperparameter(
        0, "optimizer steps after which the next phase begins; 0 in the last one", low=0
    )
    collects: bool = hyperparameter(True, "whether the stages before improve run")
    reset: tuple[str, ...] = ()


Step = Update | Move | Repeat | Epochs | OwnUpdate | Phase


def rebuilt(
    step: Step, changed: Callable[[Part], Part], within: Callable[[tuple[Step, ...]], tuple[Step, ...]]
) -> Step:
    """A step whose batches, credit and terms are changed; `within` changes the steps that it runs."""
    if isinstance(step, Repeat | Phase):
        return replace(step, of=within(step.of))
    if isinstance(step, Epochs):
        around: dict[str, Any] = {"batch": changed(step.batch), "credit": tuple(map(changed, step.credit))}
        return replace(step, of=within(step.of), **around)
    if isinstance(step, OwnUpdate):
        also = cast("tuple[Batch, ...]", tuple(map(changed, step.also)))
        return replace(step, batch=cast("Batch", changed(step.batch)), also=also)
    return step.changed(changed, batches=True) if isinstance(step, Update) else step


def flat(steps: tuple[Step, ...]) -> Iterator[Update | Move | OwnUpdate]:
    """Every update and move, repeats, epochs and phases opened, in their order."""
    for step in steps:
        if isinstance(step, Repeat | Epochs | Phase):
            yield from flat(step.of)
        else:
            yield step


def batches(steps: tuple[Step, ...]) -> Iterator[Batch]:
    """The batch of every update and of every pass over epochs, in their order."""
    for step in steps:
        if isinstance(step, Update | OwnUpdate | Epochs):
            yield step.batch
        if isinstance(step, Update):
            yield from (on.batch for on in step.also)
        if isinstance(step, OwnUpdate):
            yield from step.also
        if isinstance(step, Repeat | Epochs | Phase):
            yield from batches(step.of)


def fresh_alone(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """What can run while a source has too few rows: updates on fresh rows, and moves towards what they train."""
    trained: set[str] = set()

    def kept(steps: tuple[Step, ...], on_fresh: bool) -> tuple[Step, ...]:
        found: list[Step] = []
        for step in steps:
            if isinstance(step, Move):
                found += [step] if step.towards in trained else []
            elif isinstance(step, Repeat | Phase):
                inner = kept(step.of, on_fresh)
                found += [dataclasses.replace(step, of=inner)] if inner else []
            else:
                on_fresh = on_fresh if isinstance(step.batch, Again) else not step.batch.reads()
                others = () if isinstance(step, Epochs) else batches((step,))
                if not on_fresh or any(batch.reads() for batch in others):
                    continue
                if isinstance(step, Epochs):
                    step = dataclasses.replace(step, of=kept(step.of, True))
                else:
                    trained.add(step.trains)
                found.append(step)
        return tuple(found)

    return kept(steps, False)


# ------------------------------------------------------------------------------------------------------------ running


@dataclass
class Draws:
    """Random numbers of one stream."""

    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        """Normal numbers of this shape."""
        return torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) of this shape."""
        return torch.rand(shape, generator=self.generator)


@dataclass
class See:
    """What a term or a part of an update sees beside its batch.

    Attributes:
        models: the run's models by name.
        context: of the run.
        name: of the update, which its random stream is named after.
        rows: of an update of a paper's own, the batches beside its first (`OwnUpdate.also`).
    """

    models: NamedModels
    context: Context
    name: str
    rows: tuple[Experience, ...] = ()

    def __getitem__(self, model: str) -> Any:
        return self.models[model]

    @cached_property
    def generator(self) -> torch.Generator:
        """The update's own random stream in this turn."""
        return self.context.generator(self.name)

    @cached_property
    def draw(self) -> Draws:
        """Random numbers of the update's own stream."""
        return Draws(self.generator)

    @contextmanager
    def gradients(self, model: str) -> Iterator[Any]:
        """Let what is computed within carry gradients to a model's parameters; gives the model, its gradient at 0."""
        self.models.zero_gradients(model)
        self.models.ask_gradients(model, True)
        try:
            yield self.models[model]
        finally:
            self.models.ask_gradients(model, False)
