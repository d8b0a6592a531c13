"""Recipes: five stages filled with parts, composition with `+`, and the check that a recipe holds together."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyrl.core.derived import measuring
from polyrl.core.fields import own_fields
from polyrl.core.part import STAGES, Architecture, Change, Improver, Part, Stage, Term, kebab, options
from polyrl.errors import UserError, nearest
from polyrl.names_elsewhere import option_elsewhere
from polyrl.runtime.metric import Metric
from polyrl.settings import american, parse_value

if TYPE_CHECKING:
    from polyrl.core.judged import Judged
    from polyrl.core.streams import Stream
    from polyrl.core.update import Step
    from polyrl.data.base import Source
    from polyrl.models.base import Model

MOST_NAMED = 4
"""Parts that an error names as those that would give a missing field."""


@dataclass(frozen=True)
class Recipe:
    """Five stages filled with parts, and what they work on.

    Attributes:
        name: what the user typed, such as "grpo" or "ppo+k3".
        collect: the one part that brings experience; None where all rows are given.
        score, credit, select: chains of parts, run in order on what was collected.
        terms: the objective, a sum; with `optimize` the case of one update on the fresh batch.
        optimize: the part that takes the improvement step; None where `updates` say what is done.
        streams: fresh rows beside those, by name, each with a collect and stages of its own (`polyrl.core.streams`).
        updates: what improves which model on which batch, in order (`polyrl.core.update`).
        models: what has parameters, by name (`polyrl.models.base`), where the recipe says so.
        sources: rows beside the fresh ones, by name (`polyrl.data.base`).
        acts: the model that acts, by name.
        judged: the model that evaluations judge, by name; empty is the one that acts.
        also_judged: what evaluations judge beside it, by the name that its metrics get (`polyrl.core.judged`).
        turns: passes through the stages and the updates in one iteration.
        policy: what acts, where polyrl makes it for `optimize`; None where a model is given.
        dropped: terms that went because a part that replaced another no longer gives what they need.
        adds: the parts (by class name in kebab case) that the paper itself contributes: what `a+b` takes from `b`.
        joins: parts that `a+b` takes from `b` besides and `b` does without, such as changes of an entry of `a`.
        notes: one line a stage for `polyrl show` and `trace`; keys are stage names.
        metric: what its runs are judged by, where that is not what the task says.
        budget: what ends a run where nobody says, if not the task's own.
        stream: the stream that this is the view of (`of_stream`); empty: a whole recipe.
    """

    name: str
    collect: Part | None = None
    score: tuple[Part, ...] = ()
    credit: tuple[Part, ...] = ()
    terms: tuple[Term, ...] = ()
    optimize: Improver | None = None
    select: tuple[Part, ...] = ()
    policy: Architecture | None = None
    models: Mapping[str, Model] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    updates: tuple[Step, ...] = ()
    acts: str = "policy"
    judged: str = ""
    also_judged: Mapping[str, Judged] = field(default_factory=dict)
    turns: int = 1
    adds: tuple[str, ...] = ()
    joins: tuple[Part, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    metric: Metric | None = None
    budget: str = ""
    stream: str = ""

    # ------------------------------------------------------------------------------------------------ reading

    def stages(self) -> list[tuple[Stage, tuple[Part, ...]]]:
        """Each stage with its parts; measuring parts are put in where a field that nobody gives is first needed."""
        chains: dict[Stage, list[Part]] = {stage: list(self.listed(stage)) for stage in STAGES}
        given: set[str] = set()
        for stage in STAGES:
            kept = [source for source in self.sources.values() if source.after == stage]  # they read what is there then
            for part in [*chains[stage], *kept]:
                needed = part.required()
                if self.updates and self.collect and stage == "improve":
                    from polyrl.core.checking import needed_of_stages

                    needed = needed_of_stages(self)
                for name in sorted(needed - given):
                    kind = measuring(name, self.stated_parts())
                    # where models have names, a critic is asked by a part that says which
                    if kind is None or (self.models and kind.models - ({"reference"} & self.models.keys())):
                        continue
                    measure = kind()
                    chain = chains[measure.stage]
                    # before the first part of its own stage that needs it, else at that stage's end
                    chain.insert(chain.index(part) if part in chain else len(chain), measure)
                    given |= measure.gives
                given |= part.given_within(self)
        return [(stage, tuple(chains[stage])) for stage in STAGES]

    def of_stream(self, name: str) -> Recipe:
        """The recipe as the parts of a named stream see it: its stages are theirs, what acts is who acts there."""
        own = self.streams[name]
        return dataclasses.replace(
            self,
            collect=own.collect,
            score=own.score,
            credit=own.credit,
            select=own.select,
            acts=own.acts or self.acts,
            streams={},
            sources={},
            stream=name,
        )

    def stated_parts(self) -> list[Part]:
        """The parts that the recipe states, those of updates too."""
        own = [part for stage in STAGES for part in self.listed(stage)]
        return own + [part for _, part in self.entries()]

    def listed(self, stage: Stage) -> tuple[Part, ...]:
        """Parts of a stage as the recipe states them (for improve: the terms, then the optimizer)."""
        if stage == "collect":
            return (self.collect,) if self.collect else ()
        if stage == "improve":
            return (*self.terms, self.improver)
        return typing.cast("tuple[Part, ...]", getattr(self, stage))

    def collected_by(self, name: str, default: Any) -> Any:
        """The hyperparameter `name` of *collect*, or `default` where it has none or nothing is collected."""
        return self.collect.setting(name, default) if self.collect else default

    @property
    def fixed_pairs(self) -> bool:
        """Whether it learns from preference pairs that are given."""
        return any(part.fixed_pairs for part in (self.collect, *self.sources.values()) if part)

    @property
    def acting(self) -> Model | None:
        """What acts as the recipe states it, of a copy what it is a copy of; None where it states no models."""
        found = self.models.get(self.acts)
        while found is not None and found.copied:
            found = self.models.get(found.copied)
        return found

    @property
    def moved(self) -> frozenset[str]:
        """Models that moves of its updates change."""
        from polyrl.core.update import Move

        return frozenset(step.target for step in self.update_steps() if isinstance(step, Move))

    @property
    def collected(self) -> frozenset[str]:
        """Fields that *collect* gives; none where all rows are given."""
        return self.collect.given_within(self) if self.collect else frozenset()

    @property
    def told(self) -> frozenset[str]:
        """Fields that parts ask of the environment (`Part.told`)."""
        stated = self.stated_parts()
        return frozenset[str]().union(*(p.told for p in stated), *(kind().told for p in stated for kind in p.derives))

    @functools.cached_property
    def improver(self) -> Improver:
        """What improves: `optimize`, or the list of updates."""
        if self.optimize is not None:
            return self.optimize
        from polyrl.core.updating import UpdateList

        acting = {name: stream.acts for name, stream in self.streams.items() if stream.acts}
        return UpdateList(updates=self.updates, acting=acting)

    def update_steps(self) -> list[Step]:
        """Every update, move, repeat and pass over epochs, what is within behind it."""
        from polyrl.core.update import Epochs, Phase, Repeat

        found: list[Step] = []

        def walk(steps: tuple[Step, ...]) -> None:
            for step in steps:
                found.append(step)
                if isinstance(step, Repeat | Epochs | Phase):
                    walk(step.of)

        walk(self.updates)
        return found

    def entries(self) -> list[tuple[str, Part]]:
        """Models, sources and what the updates are made of, each with the name by which its hyperparameters are set."""
        from polyrl.core.update import Epochs, OwnUpdate, Update

        found: list[tuple[str, Part]] = [*self.models.items(), *self.sources.items(), *self.also_judged.items()]
        for step in self.update_steps():
            if isinstance(step, Update):
                found += [(on.batch.name, on.batch) for on in step.objectives]
                found += [(part.name, part) for part in step.inner]
            elif isinstance(step, Epochs):
                found += [(part.name, part) for part in (step.batch, *step.credit)]
            elif isinstance(step, OwnUpdate):
                found += [(batch.name, batch) for batch in (step.batch, *step.also)]
            found.append((step.name, step))
        found += [(f"{name}.{part.name}", part) for name, stream in self.streams.items() for part in stream.parts()]
        return found

    def parts(self) -> Iterator[Part]:
        """Yield every part in the order of the stages, measuring parts included, those of updates at the end."""
        for _, parts in self.stages():
            yield from parts
        for _, part in self.entries():
            yield part
        for name in self.streams:
            own = [part for stage, parts in self.of_stream(name).stages() if stage != "improve" for part in parts]
            yield from (part for part in own if part.measures)

    def required_models(self) -> frozenset[str]:
        """Models besides the policy that parts need, where the recipe does not list its models itself."""
        critic = {"critic"} if any("value" in term.wants for term in self.terms) else set[str]()
        return frozenset(critic).union(*(p.required_models() for p in self.parts()))

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
            from polyrl.core.composing import where_needed, with_model

            result = self
            own = [other.policy] if other.policy else []
            for name, model in other.models.items():
                if name in other.adds:
                    result = with_model(result, name, model)
            also = {name: judged for name, judged in other.also_judged.items() if name in other.adds}
            result = dataclasses.replace(result, also_judged={**result.also_judged, **also})
            for part in [*(p for p in (*own, *other.parts()) if p.name in other.adds), *other.joins]:
                result = result._with(part)
            return dataclasses.replace(
                where_needed(result),
                name=f"{self.name}+{other.name}",
                adds=self.adds + other.adds,
                joins=self.joins + other.joins,
            )
        result = self._with(other)
        return dataclasses.replace(result, name=f"{self.name}+{other.name}", adds=(*self.adds, other.name))

    def _with(self, part: Part) -> Recipe:
        from polyrl.core import composing

        if isinstance(part, Change):
            return part.change(self)
        if self.updates:
            found = composing.within_updates(self, part)
            if found is not None:
                return found
        which = "optimize" if isinstance(part, Improver) else part.stage
        if which == "judged":
            name = part.name.replace("-", "_")
            return dataclasses.replace(self, also_judged={**self.also_judged, name: typing.cast("Judged", part)})
        if which == "models":
            model = typing.cast("Model", part)
            rivals = [name for name, old in self.models.items() if part.slot and old.slot == part.slot]
            return composing.with_model(self, rivals[0] if len(rivals) == 1 else part.name, model)
        if which == "data":
            kin = [name for name, old in self.sources.items() if type(old) is type(part)]
            if len(kin) != 1:
                raise UserError(f"{self.name} has no source that '{part.name}' would take the place of.")
            return dataclasses.replace(self, sources={**self.sources, kin[0]: typing.cast("Source", part)})
        if which in ("policy", "collect", "optimize"):
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
        return composing.without_orphans(self._changed(where, chain), replaced)

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
        wanted_part, _, wanted = american(name.replace("-", "_")).rpartition(".")
        hits = 0
        if self.updates and wanted_part == "optimize":  # where the optimizer's were before models had their own
            wanted_part = ""
        if self.updates and wanted == "turns" and wanted_part in ("", "iteration"):
            turns: int = parse_value("iteration", "turns", int, value)
            if turns < 1:
                raise UserError(f"iteration.turns is {turns} but must be at least 1.")
            return dataclasses.replace(self, turns=turns)

        def changed(part: Part, called: str = "") -> Part:
            nonlocal hits
            if wanted_part and wanted_part not in (called.replace("-", "_"), part.name.replace("-", "_")):
                return part
            for f in options(part):
                if f.name == wanted:
                    hits += 1
                    hints = typing.get_type_hints(type(part))
                    value_ = parse_value(called or part.name, wanted, hints[wanted], value)
                    return dataclasses.replace(part, **{wanted: value_})
            return part

        def of(stream: str, part: Part) -> Part:
            return changed(part, f"{stream}.{part.name}")

        def within(steps: tuple[Step, ...]) -> tuple[Step, ...]:
            from polyrl.core.update import rebuilt

            return tuple(typing.cast("Step", changed(rebuilt(step, changed, within))) for step in steps)

        result = dataclasses.replace(
            self,
            collect=self.collect and changed(self.collect),
            score=tuple(changed(p) for p in self.score),
            credit=tuple(changed(p) for p in self.credit),
            select=tuple(changed(p) for p in self.select),
            terms=typing.cast("tuple[Term, ...]", tuple(changed(p) for p in self.terms)),
            optimize=typing.cast("Improver | None", self.optimize and changed(self.optimize)),
            policy=typing.cast("Architecture | None", self.policy and changed(self.policy)),
            models={k: typing.cast("Model", changed(m, k)) for k, m in self.models.items()},
            sources={k: typing.cast("Source", changed(m, k)) for k, m in self.sources.items()},
            also_judged={k: typing.cast("Judged", changed(m, k)) for k, m in self.also_judged.items()},
            streams={name: stream.changed(functools.partial(of, name)) for name, stream in self.streams.items()},
            updates=within(self.updates),
        )
        if not hits:
            names = [k for key in self.hyperparameters() for k in (key, key.rpartition(".")[2])]
            homes = [key for key in self.hyperparameters() if wanted_part and key.rpartition(".")[2] == wanted]
            near = f" Did you mean {' or '.join(repr(key) for key in homes)}?" if homes else ""
            near = near or option_elsewhere(name, None) or nearest(name.replace("-", "_"), dict.fromkeys(names))
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
            UserError: a part needs a field that no earlier part gives, or stands in the wrong stage; or a field would
                be two different things.
        """
        if self.policy:
            self.policy.check_within(self)
        if (self.optimize is None) == (not self.updates):
            raise UserError(
                f"{self.name} must say how it improves: either terms and optimize, or a list of updates, and not both."
            )
        given = {"": self._checked_stages(providers)}
        for name in self.streams:
            if not self.updates:
                raise UserError(f"{self.name}: the stream '{name}' is read by updates, and it has no list of them.")
            given[name] = self.of_stream(name)._checked_stages(providers)
        from polyrl.core.checking import check_asked, check_terms, check_updates

        own_fields(map(type, self.parts()))
        check_asked(self)
        for entry in (*self.models.values(), *self.sources.values(), *self.also_judged.values()):
            entry.check_within(self)
        check_terms(self)
        if self.updates:
            check_updates(self, given)
        return self

    def _checked_stages(self, providers: Sequence[type[Part]]) -> frozenset[str]:
        """Refuse stages that do not hold together; returns the fields that they give."""
        given: set[str] = set()
        for stage, parts in self.stages():
            for part in parts:
                if part.stage != stage:
                    raise UserError(f"{self.name}: part '{part.name}' works in stage {part.stage}, not in {stage}.")
                if type(part).apply is not Part.apply and type(part).__call__ is Part.__call__:
                    raise UserError(f"{self.name}: part '{part.name}' sees models by name: put it into an update.")
                for missing in sorted(part.required() - given):
                    late = [p.name for p in self.parts() if missing in p.gives - p.required()]
                    # what sees models works within updates only
                    able = {p for p in providers if missing in p.gives - p.needs and p.apply is Part.apply}
                    able = {p for p in able if not any(base in able for base in p.__mro__[1:])}
                    # what works on other tasks, or on other kinds of problem, would not help
                    homes = (
                        {"", *(p.domain for p in self.stated_parts())},
                        {"", *(p.solves for p in self.stated_parts())},
                    )
                    able = {p for p in able if p.domain in homes[0] and p.solves in homes[1]}
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
                given |= part.given_within(self)
                part.check_within(self)
        return frozenset(given)
