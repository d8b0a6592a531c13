"""What a claim is: a sentence of a paper, the experiment that can refute it, and numbers fixed before it is run.

Nothing here is heavy, so that a claim can be read where only its words are wanted. `fingerprint` is what the ledger
keeps of an experiment: it changes with every number, arm, seed and formula, and with no comment, docstring or sentence.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal

from polyrl.reproduction.quantities import Quantity

RULE = (
    "premises and effects; one-sided group-sequential t tests over seeds, each with its own starting model, "
    "spending 2.5% a side as O'Brien and Fleming"
)
"""What a verdict is made by. It enters every fingerprint: verdicts by another rule are other verdicts."""
EARLIER_RULE = "95% t interval over seeds, whole interval on one side of the threshold"
"""What verdicts were made by until 30 November 2026: one look, no premises, one starting model for all seeds."""

Kind = Literal["premise", "effect", "control"]
KINDS: dict[str, str] = {
    "premise": "a premise: without it there is nothing to test",
    "effect": "the paper's own idea: the verdict rests on it",
    "control": "a control or a limit: told, and decides nothing",
}
"""What a criterion is there for."""


@dataclass(frozen=True)
class Arm:
    """One side of the experiment.

    Attributes:
        name: how it is called in tables and pictures.
        method: what `polyrl train` would be given: a method, a composition, with settings in parentheses.
        task, budget: where they differ from the claim's.
        why: a few words about what it is there for, where that is not plain.
        drawn: whether its curve belongs into the picture.
    """

    name: str
    method: str
    task: str = ""
    budget: str = ""
    why: str = ""
    drawn: bool = True


@dataclass(frozen=True)
class Criterion:
    """One number a seed, and the threshold that its interval over seeds has to keep to.

    Attributes:
        name: what is asked, such as "clipping ends higher".
        quantity: how a seed's runs become the number.
        at_least, at_most: the threshold, exactly one of them.
        unit: of the number.
        kind: what it is there for (`KINDS`). What holds by construction, whatever the method is worth, is a control.
        expected: the mean at which the experiment is to decide with a power of 0.8; None where none was planned for.
        deviation: its standard deviation over tuning seeds, from which the seeds that this takes are computed.
    """

    name: str
    quantity: Quantity
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    kind: Kind = "effect"
    expected: float | None = None
    deviation: float | None = None

    def __post_init__(self) -> None:
        """Refuse a criterion without a threshold, or with two, and a plan that is none."""
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"the criterion '{self.name}' needs either at_least or at_most")
        if self.kind not in KINDS:
            raise ValueError(f"the criterion '{self.name}' is a {self.kind}, not one of {', '.join(KINDS)}")
        if (self.expected is None) != (self.deviation is None):
            raise ValueError(f"the criterion '{self.name}' is planned by both expected and deviation, or not at all")
        if self.expected is not None and self.beyond(self.expected) <= 0:
            raise ValueError(f"the criterion '{self.name}' expects {self.expected:g}, which would not meet it")

    @property
    def primary(self) -> bool:
        """Whether it is an effect."""
        return self.kind == "effect"

    def beyond(self, value: float) -> float:
        """How far a value is on the wanted side of the threshold; negative on the other side."""
        if self.at_least is not None:
            return value - self.at_least
        assert self.at_most is not None
        return self.at_most - value


@dataclass(frozen=True)
class Quick:
    """How `--quick` shortens the experiment to a smoke test of less than a minute.

    Attributes:
        share: of every budget.
        seeds: how many of the seeds that were tuned on: those of the test are not looked at.
        options: settings of runs that replace the claim's, such as {"eval_prompts": 20}.
        hyperparameters: the same for hyperparameters.
    """

    share: float
    seeds: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper and the experiment that could refute it, written down before it is run.

    Attributes:
        slug: of the method whose claim it is; of a study of several methods a name of its own.
        studies: slugs of the methods that a paper without a method of its own is about; empty for a method's claim.
        sentence: the claim, in one sentence.
        place: where the paper makes it.
        source: the paper, as "arXiv:1707.06347".
        question: what the experiment asks, in one or two sentences.
        task, budget: of every arm that names none of its own.
        arms: what is compared; names are unique.
        hyperparameters: set in every arm, over what its `method` says; an arm's own stand there, and none in both.
        options: other settings of runs (fields of `RunConfig`).
        criteria: what decides.
        seeds: of the test, in the order in which they are run; their number is the cap.
        looks: numbers of seeds after which the verdict may be made, rising to the cap; empty is one look, at all.
        start: whether each seed has a starting model of its own ("own") or all have the same ("shared").
        shared: what else all seeds share (instance, layout, test set), in words.
        tuning_seeds: those that settings were chosen on; never seeds of the test.
        tuning: what was chosen on them, in words.
        equal: what is held equal, in words.
        refuted_by: what would refute the claim, in words.
        limits: what this scale cannot say.
        exact: whether one run is the answer: exact computations with no noise need no interval.
        curve: the logged series that the picture shows; empty for the task's metric.
        curve_from: share of the run from which the picture shows it, where a steep start would hide the rest.
        minutes: expected on two cores.
        quick: the smoke test.
        replaces: the fingerprint of the ledger's entry whose experiment this one was written to replace. Until this
            one has been run that entry stands, and pages and tests know that it is of another experiment.
    """

    slug: str
    sentence: str
    place: str
    source: str
    question: str
    task: str
    budget: str
    arms: tuple[Arm, ...]
    criteria: tuple[Criterion, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    tuning: str
    equal: str
    refuted_by: str
    limits: str
    minutes: float
    quick: Quick
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    looks: tuple[int, ...] = ()
    start: Literal["own", "shared"] = "own"
    shared: str = ""
    curve: str = ""
    curve_from: float = 0.0
    replaces: str = ""
    studies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an experiment that cannot be judged as it says."""
        names = [a.name for a in self.arms]
        both = set(self.seeds) & set(self.tuning_seeds)
        unknown = {n for c in self.criteria for n in c.quantity.arms()} - set(names)
        everywhere = {name.replace("-", "_") for name in self.hyperparameters}
        twice = {(a.name, name) for a in self.arms for name in settings_in(a.method) if name in everywhere}
        problems = {
            "its own slug among the methods that it studies": self.slug in self.studies,
            "two arms of one name": len(set(names)) < len(names),
            "a seed twice": len(set(self.seeds)) < len(self.seeds),
            f"seeds that were tuned on among its test seeds: {sorted(both)}": bool(both),
            f"criteria about arms that it has not: {sorted(unknown)}": bool(unknown),
            f"settings of arms that are set in every arm too, where they would not count: {sorted(twice)}": bool(twice),
            "no seed that a smoke test may use": len(self.tuning_seeds) < self.quick.seeds,
            "no effect among its criteria": not any(c.kind == "effect" for c in self.criteria),
            f"looks at {list(self.looks)} seeds, which do not rise from 3 to the {len(self.seeds)} that it has": bool(
                self.looks
            )
            and (sorted({*self.looks}) != [*self.looks] or self.looks[0] < 3 or self.looks[-1] != len(self.seeds)),
            "too few seeds for an interval, which takes three": len(self.seeds) < (1 if self.exact else 3),
        }
        for problem, there in problems.items():
            if there:
                raise ValueError(f"the claim of {self.slug} has {problem}")

    def methods(self) -> tuple[str, ...]:
        """Slugs of the methods that it is about: the one that it is called after, or those that it studies."""
        return self.studies or (self.slug,)

    def looks_at(self) -> tuple[int, ...]:
        """Numbers of seeds after which the verdict may be made."""
        return self.looks or (len(self.seeds),)

    def task_of(self, arm: Arm) -> str:
        """The task of an arm."""
        return arm.task or self.task

    def budget_of(self, arm: Arm) -> str:
        """The budget of an arm."""
        return arm.budget or self.budget


def settings_in(method: str) -> list[str]:
    """Names of the settings in a method's text, such as `base.learning_rate` of `sac(base.learning-rate=1)`."""
    return [name.replace("-", "_") for name in re.findall(r"[(,]\s*([\w.-]+)\s*=", method)]


# -------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(claim: Claim) -> str:
    """A hash of the experiment and of the formulas that judge it; words about it do not count."""
    return _hash(
        {
            **_experiment(claim),
            "rule": RULE,
            "seeds": list(claim.seeds),
            "looks": list(claim.looks_at()),
            "start": claim.start,
            "criteria": [_criterion(c, kind=c.kind) for c in claim.criteria],
        }
    )


def earlier_fingerprint(claim: Claim, primary: Sequence[bool], seeds: Sequence[int]) -> str:
    """The hash of the claim's experiment under `EARLIER_RULE`, with the primary criteria and the seeds of that day."""
    criteria = [_criterion(c, primary=p) for c, p in zip(claim.criteria, primary, strict=True)]
    return _hash({**_experiment(claim), "rule": EARLIER_RULE, "seeds": list(seeds), "criteria": criteria})


def awaited(claim: Claim, entry: Mapping[str, Any]) -> bool:
    """Whether a ledger entry is of the experiment that the claim's own replaces, which has not been run yet."""
    return bool(claim.replaces) and entry["fingerprint"] == claim.replaces


def _experiment(claim: Claim) -> dict[str, Any]:
    return {
        "task": claim.task,
        "budget": claim.budget,
        "arms": [[a.name, a.method, a.task, a.budget] for a in claim.arms],
        "hyperparameters": dict(claim.hyperparameters),
        "options": dict(claim.options),
        "exact": claim.exact,
        "formulas": {name: shape(tree) for name, tree in sorted(_formulas(claim))},
    }


def _criterion(criterion: Criterion, **more: Any) -> dict[str, Any]:
    told = ("name", "quantity", "at_least", "at_most", "unit")
    return {"": "Criterion", **{name: _plain(vars(criterion)[name]) for name in told}, **more}


def _hash(parts: Mapping[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _plain(value: Any) -> Any:
    """Dataclasses as their class's name and fields, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__, **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _formulas(claim: Claim) -> Iterator[tuple[str, ast.AST]]:
    """What computes the numbers: methods of the measures and quantities in use, and functions they call."""
    used = {type(v) for c in claim.criteria for v in _walk(c.quantity)}
    seen: set[str] = set()
    todo: list[FunctionType] = [
        getattr(base, name)
        for cls in used
        for base in cls.__mro__
        for name in ("of", "combine", "measures")
        if isinstance(vars(base).get(name), FunctionType) and (name != "measures" or base is not Quantity)
    ]
    while todo:
        function = todo.pop()
        if function.__qualname__ in seen:
            continue
        seen.add(function.__qualname__)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        yield function.__qualname__, tree
        home = vars(sys.modules[function.__module__])
        for node in ast.walk(tree):
            called = home.get(node.id) if isinstance(node, ast.Name) else None
            if isinstance(called, FunctionType) and called.__module__ == function.__module__:
                todo.append(called)


def _walk(value: Any) -> Iterator[Any]:
    """A dataclass and every dataclass in its fields."""
    if dataclasses.is_dataclass(value):
        yield value
        for f in dataclasses.fields(value):
            inner = getattr(value, f.name)
            for item in inner if isinstance(inner, tuple) else (inner,):
                yield from _walk(item)


def shape(node: Any) -> Any:
    """A syntax tree as plain lists, without docstrings, annotations and what differs between versions of Python."""
    if isinstance(node, list):
        return [shape(n) for n in node if not _is_text(n)]
    if not isinstance(node, ast.AST):
        return repr(node)
    skipped = ("ctx", "kind", "type_comment", "annotation", "returns", "type_params")
    fields = {k: v for k, v in ast.iter_fields(node) if k not in skipped and v is not None and v != []}
    return [type(node).__name__, {k: shape(v) for k, v in fields.items()}]


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
