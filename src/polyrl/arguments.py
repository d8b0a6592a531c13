"""The Python API as a way of asking (`polyrl.request`): plain values, names, and objects that no config can hold."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.recipe_file import read_recipe_file
from polyrl.request import Asked, Frontend, Request, is_recipe_file, read
from polyrl.runtime.config import PythonObjects
from polyrl.runtime.options import by_name

if TYPE_CHECKING:
    from polyrl.tasks.theory.finite import FiniteMDP

OWN = ("task", "model", "reward", "preference", "dataset", "test_dataset", "budget", "out", "overwrite", "quiet")
"""Arguments of `train` and `compare` besides the keywords."""


class Call(Frontend):
    """A call of `polyrl.train` or `polyrl.compare`, and its words for a keyword that is none."""

    def __init__(self, function: str):
        seed = "seed" if function == "train" else "seeds"
        super().__init__(f"polyrl.{function}", [*(set(by_name()) - {"seed", "rewards"}), *OWN, seed])


def read_call(
    function: str,
    methods: Sequence[Any],
    *,
    task: Any,
    model: Any,
    reward: Any,
    preference: Any,
    dataset: Any,
    test_dataset: Any,
    budget: Any,
    options: Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    trust_code: bool = False,
    **own: Any,
) -> Request:
    """What a call of `train` or `compare` asks.

    Args:
        function: "train", whose one method may be a recipe file, or "compare".
        methods: names, files and recipes.
        options: options among the keywords, as a mapping.
        keywords: options of a run, and hyperparameters.
        trust_code: run the code that a recipe file names though the user has not run it before.
        own: further fields of the config that are arguments of this function.

    Raises:
        UserError: an argument is not what it must be, or what `polyrl.request.read` refuses.
    """
    what, frontend = asked_by(
        function,
        methods,
        task=task,
        model=model,
        reward=reward,
        preference=preference,
        dataset=dataset,
        test_dataset=test_dataset,
        budget=budget,
        options=options,
        keywords=keywords,
        **own,
    )
    names = [*what.methods]
    if trust_code and not any(map(is_recipe_file, names)):
        raise UserError("trust_code is for code that a recipe file names; what the call names runs anyway.")
    for name in names:
        if name not in what.recipes and is_recipe_file(name):
            if what.several:
                raise UserError(f"{name} is a recipe file, which polyrl.train takes; compare methods by their names.")
            return read(*read_recipe_file(name, what, frontend, trust_code=trust_code))
    return read(frontend, what)


def asked_by(
    function: str,
    methods: Sequence[Any],
    *,
    task: Any,
    model: Any,
    reward: Any,
    preference: Any,
    dataset: Any,
    test_dataset: Any,
    budget: Any,
    options: Mapping[str, Any] | None,
    keywords: Mapping[str, Any],
    **own: Any,
) -> tuple[Asked, Frontend]:
    """What a call asks, unread, and its words."""
    several = function == "compare"
    names = [method_name(method) for method in methods]
    if len(set(names)) < len(names):
        raise UserError("A method is named twice; give each arm once, or give a recipe another name.")
    recipes = {n: m for n, m in zip(names, methods, strict=True) if not isinstance(m, str | os.PathLike)}
    chosen, hyperparameters = _split(function, options, keywords)
    specs, given = objects(None, dataset, reward, task, preference, test_dataset)
    asked = {
        "task": task_of(task)[0] or None,
        "dataset": named(dataset),
        "rewards": specs or None,
        "preference": named(preference),
        "model": model_name(model),
        "budget": budget_text(budget) or None,
        "from_python": (given.names() + (("method",) if recipes else ())) or None,
        **own,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    by_itself = {"method", "task", "dataset", "rewards", "preference", "model", "budget", "from_python", *own}
    twice = sorted(by_itself & {*chosen})
    if twice:
        raise UserError(f"polyrl.{function} takes {' and '.join(twice)} by itself; leave it out of options.")
    settings = {k: plain(v) for k, v in {"test_dataset": named(test_dataset), **asked, **chosen}.items()}
    plain_values = {name: plain(value) for name, value in hyperparameters.items()}
    return Asked(names, settings, plain_values, given, recipes, several), Call(function)


def _split(
    function: str, options: Mapping[str, Any] | None, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a run by field, and hyperparameters of the method.

    Raises:
        UserError: an option is given twice.
    """
    given = dict(options or {})
    twice = sorted(given.keys() & keywords.keys())
    if twice:
        raise UserError(f"polyrl.{function} is given {' and '.join(twice)} twice, as a keyword and in options.")
    hyperparameters = {}
    known = by_name()
    for name, value in keywords.items():
        option = known.get(name)
        if option is None or option.many:
            hyperparameters[name] = value
        else:
            given[option.of] = not value if option.opposite else value
    return given, hyperparameters


def budget_text(budget: Any) -> str:
    """A budget as it would be typed.

    Raises:
        UserError: it is neither text nor units with amounts.
    """
    if isinstance(budget, str):
        return budget
    if not isinstance(budget, Mapping) or not all(isinstance(plain(v), int | float | str) for v in budget.values()):
        raise UserError(f"The budget is {_seen(budget)}; write it like 'samples=4000' or {{'samples': 4000}}.")
    return ",".join(f"{unit}={amount}" for unit, amount in ((k, plain(v)) for k, v in budget.items()))


def plain(value: Any) -> Any:
    """The value as a config holds it: paths as text, numbers of NumPy and torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else value
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def method_name(method: Any) -> str:
    """What a method is called: its name, its file, or a recipe's own name.

    Raises:
        UserError: it is none of these.
    """
    from polyrl.recipe import Recipe

    if isinstance(method, Recipe):
        return method.name
    if isinstance(method, str | os.PathLike):
        return os.fspath(method)
    if callable(method):
        raise UserError(
            f"The method is the function {_called(method)}, not what it makes; give a name, a file or a Recipe, as in "
            f"{_called(method)}()."
        )
    raise UserError(f"The method is {_seen(method)}; give a name such as 'grpo', a method file or a Recipe.")


def model_name(model: Any) -> str | None:
    """The folder or hub id of a model; an object of transformers is written to polyrl's cache first.

    Args:
        model: a name, a path, None, a model of transformers that knows where its tokenizer lies, or (model, tokenizer).

    Raises:
        UserError: it is none of these, or has no tokenizer.
    """
    if model is None or isinstance(model, str | os.PathLike):
        return None if model is None else os.fspath(model)
    from polyrl.models.language.given import is_model, kept

    found, tokenizer = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
    if not is_model(found):
        raise UserError(
            f"The model is {_seen(model)}; give a folder, a hub id, a model of transformers or (model, tokenizer)."
        )
    return str(kept(found, tokenizer))


def rows_of(data: Any, what: str = "dataset") -> Sequence[Any] | None:
    """Rows of a data set that was given as an object; None where it is a name, a path or nothing.

    Raises:
        UserError: it is no sequence of rows.
    """
    if data is None or isinstance(data, str | os.PathLike):
        return None
    if type(data).__module__.partition(".")[0] == "pandas":
        return list(data.to_dict("records"))
    if isinstance(data, Mapping):
        kinds = f"the splits or columns {', '.join(map(str, data))}"
        raise UserError(f"The {what} has {kinds}, and rows are needed; give one split, or a list of rows.")
    if not isinstance(data, Iterable):
        raise UserError(f"The {what} is {_seen(data)}; give a file, a hub id, a Dataset or a list of rows.")
    return list(data)


def task_of(task: Any) -> tuple[str, Callable[[], Any] | None]:
    """The name of a task, and the function that makes its environments, or its finite MDP, where it is no name.

    An environment object stands for its id where it is nothing else, and is copied for each use otherwise.

    Raises:
        UserError: it is neither a name nor an environment nor a function.
    """
    import gymnasium

    from polyrl.tasks.user_code import FINITE_MDP, called_name

    if task is None or isinstance(task, str | os.PathLike):
        return "" if task is None else os.fspath(task), None
    if isinstance(task, gymnasium.Env):
        spec = task.spec
        if spec is not None and not spec.kwargs.keys() - {"render_mode"} and not spec.additional_wrappers:
            return spec.id, None
        return type(task.unwrapped).__name__, Copies(task)
    if isinstance(task, gymnasium.vector.VectorEnv):
        raise UserError("The task is a vector environment, which cannot be copied; give a function that makes one.")
    if type(task).__name__ == FINITE_MDP:
        return "finite-mdp", Given(task)
    if callable(task):
        return called_name(task), task
    raise UserError(
        f"The task is {_seen(task)}; give a name, an environment, a finite MDP or a function that makes one."
    )


class Given:
    """Gives a finite MDP that was made."""

    def __init__(self, mdp: FiniteMDP):
        self.mdp = mdp

    def __call__(self) -> FiniteMDP:
        """The MDP."""
        return self.mdp


class Copies:
    """Makes environments like one that was given: by its spec where it has one, else as deep copies of it."""

    def __init__(self, environment: Any):
        self.environment = environment

    def __call__(self) -> Any:
        """A new environment."""
        import gymnasium

        spec = self.environment.spec
        if spec is None:
            return copy.deepcopy(self.environment)
        return gymnasium.make(dataclasses.replace(spec, kwargs={**spec.kwargs, "render_mode": None}))


def objects(
    method: Any, dataset: Any, reward: Any, task: Any = None, preference: Any = None, test_dataset: Any = None
) -> tuple[tuple[str, ...], PythonObjects]:
    """Split what the user gave into reward names, which a config can hold, and objects, which it cannot.

    Raises:
        UserError: one of them is not what it must be.
    """
    from polyrl.recipe import Recipe
    from polyrl.tasks.language import Preference, Reward
    from polyrl.tasks.language.rewards import check_signature
    from polyrl.tasks.user_code import called_name

    alone = isinstance(reward, str | os.PathLike) or callable(reward) or _weighted(reward)
    if not alone and reward is not None and not isinstance(reward, Iterable):
        raise UserError(f"A reward must be a function, its name or (function, weight), not {_seen(reward)}.")
    items = [] if reward is None else [reward] if alone else list(reward)
    specs: list[str] = []
    found: list[Reward] = []
    for item in items:
        function, weight = item if _weighted(item) else (item, None)
        if isinstance(function, str | os.PathLike):
            specs.append(os.fspath(function) if weight is None else f"{os.fspath(function)}={float(weight):g}")
            continue
        if not callable(function):
            raise UserError(f"A reward must be a function, its name or (function, weight), not {_seen(item)}.")
        name = _name(function, [reward.name for reward in found])
        check_signature(name, function)
        found.append(Reward(name, function, 1.0 if weight is None else float(weight)))
    if preference is not None and not isinstance(preference, str | os.PathLike) and not callable(preference):
        raise UserError(f"The preference is {_seen(preference)}; give a function or its name.")
    return tuple(specs), PythonObjects(
        recipe=method if isinstance(method, Recipe) else None,
        dataset=rows_of(dataset),
        test_dataset=rows_of(test_dataset, "test_dataset"),
        rewards=found,
        preference=Preference(called_name(preference), preference) if callable(preference) else None,
        environment=task_of(task)[1],
    )


def named(value: Any) -> str | None:
    """A name or path as text; None where an object was given, or nothing."""
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _weighted(item: Any) -> bool:
    """Whether this is `(function, weight)` or `(name, weight)`."""
    if not isinstance(item, tuple) or len(item) != 2 or callable(item[1]):
        return False
    return callable(item[0]) or (isinstance(item[0], str | os.PathLike) and isinstance(plain(item[1]), int | float))


def _name(function: Any, given: Sequence[str]) -> str:
    """What a function is called; several partials or objects of one kind are numbered."""
    from polyrl.tasks.user_code import called_name

    name = called_name(function)
    if hasattr(function, "__name__"):
        return name
    numbered = [name, *(f"{name}-{n}" for n in range(2, len(given) + 2))]
    return next(candidate for candidate in numbered if candidate not in given)


def _called(function: Any) -> str:
    from polyrl.tasks.user_code import called_name

    return called_name(function)


def _seen(value: Any) -> str:
    """An object that was given in the place of another, as a phrase."""
    from polyrl.tasks.language.phrases import shortened

    return f"{shortened(str(value))} ({type(value).__name__})"


def out_folder(out: Any) -> Path | None:
    """The folder to write.

    Raises:
        UserError: it is no path.
    """
    if out is None or isinstance(out, str | os.PathLike):
        return Path(out) if out else None
    raise UserError(f"out is {_seen(out)}; give a folder.")


def seed_list(seeds: Any) -> list[int]:
    """How many seeds from 0, or which.

    Raises:
        UserError: it is neither.
    """
    seeds = plain(seeds)
    found = [*range(seeds)] if type(seeds) is int else [plain(s) for s in seeds] if _is_numbers(seeds) else []
    if not found or len(set(found)) < len(found):
        raise UserError(f"seeds is {_seen(seeds)}; give how many (5) or which ([3, 7]).")
    return found


def _is_numbers(seeds: Any) -> bool:
    if isinstance(seeds, str | Mapping) or not isinstance(seeds, Iterable):
        return False
    return all(type(plain(seed)) is int for seed in seeds)
