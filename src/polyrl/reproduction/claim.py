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
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from polyrl.reproduction.quantities import Quantity

RULE = "95% t interval over seeds, whole interval on one side of the threshold"
"""What a verdict is made by. It enters every fingerprint: verdicts by another rule are other verdicts."""


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
        primary: whether the verdict rests on it; the others are told and decide nothing.
    """

    name: str
    quantity: Quantity
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    primary: bool = True

    def __post_init__(self) -> None:
        """Refuse a criterion without a threshold, or with two."""
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"the criterion '{self.name}' needs either at_least or at_most")


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
        slug: of the method whose claim it is.
        sentence: the claim, in one sentence.
        place: where the paper makes it.
        source: the paper, as "arXiv:1707.06347".
        question: what the experiment asks, in one or two sentences.
        task, budget: of every arm that names none of its own.
        arms: what is compared; names are unique.
        hyperparameters: set in every arm, over what its `method` says; an arm's own stand there.
        options: other settings of runs (fields of `RunConfig`).
        criteria: what decides.
        seeds: of the test.
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
    curve: str = ""
    curve_from: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an experiment that cannot be judged as it says."""
        names = [a.name for a in self.arms]
        both = set(self.seeds) & set(self.tuning_seeds)
        unknown = {n for c in self.criteria for n in c.quantity.arms()} - set(names)
        problems = {
            "two arms of one name": len(set(names)) < len(names),
            "a seed twice": len(set(self.seeds)) < len(self.seeds),
            f"seeds that were tuned on among its test seeds: {sorted(both)}": bool(both),
            f"criteria about arms that it has not: {sorted(unknown)}": bool(unknown),
            "no seed that a smoke test may use": len(self.tuning_seeds) < self.quick.seeds,
            "no primary criterion": not any(c.primary for c in self.criteria),
            "too few seeds for an interval, which takes three": len(self.seeds) < (1 if self.exact else 3),
        }
        for problem, there in problems.items():
            if there:
                raise ValueError(f"the claim of {self.slug} has {problem}")

    def task_of(self, arm: Arm) -> str:
        """The task of an arm."""
        return arm.task or self.task

    def budget_of(self, arm: Arm) -> str:
        """The budget of an arm."""
        return arm.budget or self.budget


# -------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(claim: Claim) -> str:
    """A hash of the experiment and of the formulas that judge it; words about it do not count."""
    parts = {
        "rule": RULE,
        "task": claim.task,
        "budget": claim.budget,
        "arms": [[a.name, a.method, a.task, a.budget] for a in claim.arms],
        "hyperparameters": dict(claim.hyperparameters),
        "options": dict(claim.options),
        "seeds": list(claim.seeds),
        "exact": claim.exact,
        "criteria": [_plain(c) for c in claim.criteria],
        "formulas": {name: _shape(tree) for name, tree in sorted(_formulas(claim))},
    }
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
        for name in ("of", "combine")
        if isinstance(vars(base).get(name), FunctionType)
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


def _shape(node: Any) -> Any:
    """A syntax tree as plain lists, without docstrings, annotations and what differs between versions of Python."""
    if isinstance(node, list):
        return [_shape(n) for n in node if not _is_text(n)]
    if not isinstance(node, ast.AST):
        return repr(node)
    skipped = ("ctx", "kind", "type_comment", "annotation", "returns", "type_params")
    fields = {k: v for k, v in ast.iter_fields(node) if k not in skipped and v is not None and v != []}
    return [type(node).__name__, {k: _shape(v) for k, v in fields.items()}]


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
