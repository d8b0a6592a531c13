"""What somebody asks for, read once: methods, options and hyperparameters become checked recipes and a typed config.

The command line, Python, a recipe file and a claim ask in words of their own (`Frontend`). Everything behind those
words is here and nowhere else: which names there are, what a text means, which task and budget are taken where none is
named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyrl import catalogue
from polyrl.errors import UserError, nearest
from polyrl.names_elsewhere import option_elsewhere
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.settings import american, as_text
from polyrl.stated_names import stated_names
from polyrl.tasks import domain_of
from polyrl.tasks.control import has_demonstrations
from polyrl.tasks.user_code import FINITE_MDP, stated_return

if TYPE_CHECKING:
    from polyrl.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        config: of the run; of several methods what all of them share, with an empty `method`.
        recipes: each method's, checked and with its hyperparameters set, by the method's name.
        given: what only Python can give, by the method's name.
    """

    config: RunConfig
    recipes: Mapping[str, Recipe]
    given: Mapping[str, PythonObjects]

    @property
    def recipe(self) -> Recipe:
        """The recipe of the one method."""
        (recipe,) = self.recipes.values()
        return recipe


def is_recipe_file(method: str) -> bool:
    """Whether this names a recipe file (`polyrl.recipe_file`) and no method."""
    return method.endswith((".yaml", ".yml"))


class Frontend:
    """A way of asking, and the words in which its mistakes are told.

    Attributes:
        name: what was called, such as `polyrl train`.
        options: names of its options, as they are written there.
    """

    def __init__(self, name: str, options: Iterable[str] = ()):
        self.name, self.options = name, tuple(options)

    def written(self, name: str) -> str:
        """A name of a hyperparameter as it is written there."""
        return name

    def unknown(self, name: str, methods: str) -> str:
        """A sentence: nothing bears this name."""
        return f"{self.name} has no option '{name}', and {methods} no hyperparameter of that name."

    def last_hint(self, method: str) -> str:
        """What is said where nothing is near an unknown name."""
        return ""

    def check_rest(self) -> None:
        """Refuse what else is wrong with what was written, where all names in it are known.

        Raises:
            UserError: it is no option with a value.
        """

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Say where options stand that are refused within."""
        yield

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[None]:
        """Say where an option or hyperparameter stands, if it is refused within."""
        yield


# -------------------------------------------------------------------------------------------------- task and domain


def domain(config: RunConfig, given: PythonObjects | None = None) -> str:
    """The run's domain."""
    if given and given.environment:
        return "theory" if stated_return(given.environment) == FINITE_MDP else "control"
    return domain_of(config.task)


def domain_module(config: RunConfig, given: PythonObjects | None = None) -> Any:
    """The module of the run's domain."""
    return importlib.import_module(f"polyrl.run_state.{domain(config, given)}")


def default_task(methods: Sequence[str]) -> str:
    """The task that these methods run on when none is named.

    Raises:
        UserError: they have none in common.
    """
    tasks = {catalogue.default_task(method): method for method in methods}
    if len(tasks) > 1:
        said = " and ".join(f"{task} ({method})" for task, method in tasks.items())
        raise UserError(f"These methods have different tasks of their own, {said}; name one with --task.")
    return next(iter(tasks))


def make_task(config: RunConfig, given: PythonObjects | None = None) -> Any:
    """What is to be solved: a built-in task, an environment, or the user's dataset with the user's rewards."""
    return domain_module(config, given).make_task(config, given or PythonObjects())


def completed(
    config: RunConfig,
    given: PythonObjects | None = None,
    methods: Sequence[str] = (),
    recipes: Mapping[str, Recipe] | None = None,
) -> RunConfig:
    """The same run with what was not said filled in: the method's own task, the method's or the task's own budget.

    Args:
        config: what was said.
        given: what Python gave.
        methods: those of a comparison, which must have one budget.
        recipes: of the methods, where they are made already.

    Raises:
        UserError: the task is unknown, or the methods have different budgets of their own.
    """
    if not config.task:
        config = dataclasses.replace(config, task=default_task([config.method]))
    if config.budget:
        return config
    found = recipes or {
        m: make_recipe(dataclasses.replace(config, method=m), given) for m in methods or [config.method]
    }
    own = {recipe.budget: method for method, recipe in found.items()}
    if len(own) > 1:
        said = " and ".join(f"{budget or 'that of the task'} ({method})" for budget, method in own.items())
        raise UserError(f"These methods have different budgets of their own, {said}; name one with --budget.")
    return dataclasses.replace(config, budget=next(iter(own)) or make_task(config, given).budget)


# ----------------------------------------------------------------------------------------------------------- recipes


def make_recipe(config: RunConfig, given: PythonObjects | None = None) -> Recipe:
    """Build and check the recipe of a config, as it stands in a run's folder or in a claim.

    Raises:
        UserError: it does not hold together, a hyperparameter is unknown or malformed, or it learns from data where
            none is named.
    """
    return _finished(_composed(config, given), config, given, config.hyperparameters, Frontend(""))


def _composed(config: RunConfig, given: PythonObjects | None) -> Recipe:
    """The recipe that the method names, before anything is set."""
    return given.recipe if given and given.recipe else catalogue.compose(config.method, domain(config, given))


def _finished(
    recipe: Recipe,
    config: RunConfig,
    given: PythonObjects | None,
    hyperparameters: Mapping[str, Any],
    frontend: Frontend,
) -> Recipe:
    """The recipe with its hyperparameters, texts or values, checked."""
    for name, value in hyperparameters.items():
        with frontend.place(name):
            recipe = recipe.set(name, value)
    recipe = catalogue.checked(recipe)
    rows = given is not None and given.dataset is not None  # refused where the task is made
    given_data = config.dataset or rows or has_demonstrations(config.task)
    if not given_data and any(source.from_dataset for source in recipe.sources.values()):
        raise UserError(
            f"{recipe.name} learns from recorded transitions; name their file or folder with --dataset, such as one "
            "that `polyrl record` has written."
        )
    return recipe


def _check_names(
    frontend: Frontend,
    given: Mapping[str, Any],
    names: Iterable[str],
    domains: Mapping[str, str],
    *,
    whole: bool = True,
) -> None:
    """Refuse what is not among the names of hyperparameters; only its last word is looked up, unless `whole`.

    Raises:
        UserError: there is none of that name; with what another library means by it, or the nearest one.
    """
    names = [*dict.fromkeys(names)]
    known = {k.replace("-", "_") for k in names}
    for name, value in given.items():
        plain = american(name.replace("-", "_"))
        if plain in known or (not whole and plain.rpartition(".")[2] in known):
            continue
        kinds = {*domains.values()}
        there = {*names, *known, *(o.replace("-", "_") for o in frontend.options)}
        text = value if isinstance(value, str) else ""
        said = option_elsewhere(plain, kinds.pop() if len(kinds) == 1 else None, there, text)
        said = said or nearest(
            frontend.written(name), dict.fromkeys([*frontend.options, *map(frontend.written, names)])
        )
        said = said or frontend.last_hint(next(iter(domains)))
        raise UserError(f"{frontend.unknown(name, ' or '.join(domains))}{said}")


# ---------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Asked:
    """What was asked for, as a frontend hands it over.

    Attributes:
        methods: their names; of recipes that were given as objects their own.
        settings: fields of `RunConfig` that were said, as values.
        hyperparameters: texts or values.
        given: what only Python can give, but recipes.
        recipes: those that were given as objects, by name.
        several: whether the methods are to be compared, be it only one.
    """

    methods: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    given: PythonObjects = field(default_factory=PythonObjects)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    several: bool = False


def read(frontend: Frontend, asked: Asked) -> Request:
    """What was asked for, or the first mistake in it: names first, which takes no import, then values, then recipes.

    Raises:
        UserError: a name that there is not, a value that cannot be, or a recipe that does not hold together.
    """
    named = [method for method in asked.methods if method not in asked.recipes]
    for method in named:
        catalogue.check_names(method)
    settings = {**asked.settings, "method": "" if asked.several else asked.methods[0]}
    task = settings.get("task") or ""
    if (settings.get("dataset") or asked.given.dataset is not None) and not asked.given.environment and asked.methods:
        task = catalogue.task_with_data(task, asked.methods) or ""
    settings["task"] = task
    hyperparameters = {american(name.replace("-", "_")): value for name, value in asked.hyperparameters.items()}
    kinds: dict[str, str] = {}
    if hyperparameters:
        kinds = {m: _kind(task, m, asked.given) for m in asked.methods}
        stated = [stated_names(method, kinds[method]) if method in named else None for method in asked.methods]
        if None not in stated:  # what there is not has neither value nor words behind it
            _check_names(frontend, hyperparameters, {n for s in stated for n in s or ()}, kinds, whole=False)
    frontend.check_rest()
    texts = {name: as_text(value) for name, value in hyperparameters.items()}
    with frontend.settings():
        config = RunConfig.stated({**settings, "hyperparameters": texts}, frontend.name)
    given = {m: dataclasses.replace(asked.given, recipe=asked.recipes.get(m)) for m in asked.methods}
    configs = {m: dataclasses.replace(config, method=m, task=task or catalogue.default_task(m)) for m in asked.methods}
    composed = {m: _composed(configs[m], given[m]) for m in asked.methods}
    if hyperparameters:
        keys = [key for recipe in composed.values() for key in recipe.hyperparameters()]
        names = [name for key in keys for name in (key, key.rpartition(".")[2])]
        _check_names(frontend, hyperparameters, names, kinds)
    made = {m: _finished(composed[m], configs[m], given[m], hyperparameters, frontend) for m in asked.methods}
    return Request(config, made, given)


def _kind(task: str, method: str, given: PythonObjects) -> str:
    """The domain of a method on a task, or on its own where none is named."""
    return "control" if given.environment else domain_of(task or catalogue.default_task(method))
