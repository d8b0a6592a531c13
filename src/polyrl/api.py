"""polyrl in Python, with the same words as on the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.plain_text import printable
from polyrl.runtime.config import RunConfig

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.recipe import Recipe
    from polyrl.run_state.base import RunState
    from polyrl.runtime.config import PythonObjects

ALL = 2**31
"""Prompts of an evaluation that leaves none out."""
RewardFunction = Callable[..., list[float | None]]
PreferenceFunction = Callable[..., list[float]]


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        folder: the run's folder; `folder / "model"` is an ordinary Hugging Face model folder.
        start, final: evaluation metrics before and after training.
        spent: samples, tokens, steps, reward_calls, seconds, updates, iterations.
    """

    folder: Path
    start: dict[str, float]
    final: dict[str, float]
    spent: dict[str, float]


def _budget_text(budget: str | Mapping[str, float]) -> str:
    return budget if isinstance(budget, str) else ",".join(f"{k}={_plain(v)!r}" for k, v in budget.items())


def _plain(value: Any) -> Any:
    """The value as a config holds it: paths as text, numbers of NumPy and torch as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value) if type(value) in (list, tuple) else value
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return value.item()
    return value


def _config(function: str, options: Mapping[str, Any] | None, **asked: Any) -> RunConfig:
    """The config of what was asked for.

    Raises:
        UserError: an option that there is not, or a value of another type.
    """
    twice = sorted(asked.keys() & (options or {}).keys())
    if twice:
        raise UserError(f"polyrl.{function} takes {' and '.join(twice)} by itself; leave it out of options.")
    values = {**asked, **(options or {})}
    return RunConfig.from_dict({k: _plain(v) for k, v in values.items()}, f"polyrl.{function}")


def _texts(hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters as they would be typed."""
    return {k: str(_plain(v)) for k, v in hyperparameters.items()}


def _name(function: Any, given: Sequence[str]) -> str:
    """What a function is called; several partials or objects of one kind are numbered."""
    from polyrl.tasks.user_code import called_name

    name = called_name(function)
    if hasattr(function, "__name__"):
        return name
    numbered = [name, *(f"{name}-{n}" for n in range(2, len(given) + 2))]
    return next(candidate for candidate in numbered if candidate not in given)


def _given(
    method: Any, dataset: Any, reward: Any, task: Any = None, preference: Any = None
) -> tuple[tuple[str, ...], PythonObjects]:
    """Split what the user gave into reward names, which a config can hold, and objects, which it cannot."""
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import PythonObjects
    from polyrl.tasks.language import Preference, Reward
    from polyrl.tasks.language.phrases import shortened
    from polyrl.tasks.language.rewards import check_signature
    from polyrl.tasks.user_code import called_name

    alone = isinstance(reward, str | os.PathLike) or callable(reward) or _weighted(reward)
    items = [] if reward is None else [reward] if alone else list(reward)
    specs: list[str] = []
    objects: list[Reward] = []
    for item in items:
        if isinstance(item, str | os.PathLike):
            specs.append(os.fspath(item))
            continue
        function, weight = item if _weighted(item) else (item, 1.0)
        if not callable(function):
            raise UserError(f"A reward must be a function, its name or (function, weight), not {shortened(str(item))}.")
        name = _name(function, [reward.name for reward in objects])
        check_signature(name, function)
        objects.append(Reward(name, function, float(weight)))
    rows = None if dataset is None or isinstance(dataset, str | os.PathLike) else list(dataset)
    recipe = method if isinstance(method, Recipe) else None
    environment = task if callable(task) else None
    judge = Preference(called_name(preference), preference) if callable(preference) else None
    return tuple(specs), PythonObjects(
        recipe=recipe, dataset=rows, rewards=objects, preference=judge, environment=environment
    )


def _weighted(item: Any) -> bool:
    """Whether this is `(function, weight)`."""
    return isinstance(item, tuple) and len(item) == 2 and callable(item[0]) and not callable(item[1])


def train(
    method: str | Path | Recipe,
    *,
    task: str | Callable[[], Any] | None = None,
    model: str | Path | None = None,
    reward: str | RewardFunction | Sequence[Any] | None = None,
    preference: str | PreferenceFunction | None = None,
    dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    budget: str | Mapping[str, float] = "",
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    options: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> RunResult:
    """Train a policy and return what came of it.

    Args:
        method: a method or composition such as "grpo+drop-equal-groups", a method file, or a `Recipe`.
        task: built-in task, Gymnasium environment such as "CartPole-v1", or a function that makes an environment; the
            method's own if neither it nor a dataset is given.
        model: model folder or hub id; none makes the task's tiny model.
        reward: reward functions with TRL's signature `f(prompts, completions, **columns) -> list[float | None]`, or
            their names "module:function"; a list mixes them, `(function, weight)` weighs one.
        preference: which of two responses is better, for methods that ask: a function `f(prompts, completions_a,
            completions_b, **columns) -> list[float]` that returns the probability that a beats b, or its name.
        dataset: file, hub id, or rows with a `prompt`; of control a file or folder of recorded transitions.
        budget: what ends the run, such as "samples=20000,seconds=600" or {"steps": 100000}; the task's own if empty.
        options: any other field of `polyrl.runtime.config.RunConfig`, such as {"precision": "bfloat16"}.
        hyperparameters: of the recipe's parts, `clip_range=0.1`.

    Raises:
        UserError: something in the arguments or the data is wrong.
    """
    from polyrl.catalogue import task_with_data
    from polyrl.runs import default_folder, start_run
    from polyrl.runtime.progress import Progress
    from polyrl.tasks.user_code import called_name

    specs, given = _given(method, dataset, reward, task, preference)
    called = os.fspath(method) if isinstance(method, str | os.PathLike) else method.name
    named = called_name(task) if callable(task) else task or ""
    if dataset is not None and not callable(task):
        named = task_with_data(named, [called]) or ""
    config = _config(
        "train",
        options,
        method=called,
        task=named,
        dataset=dataset if isinstance(dataset, str | os.PathLike) else None,
        rewards=specs,
        preference=preference if isinstance(preference, str) else None,
        model=str(model) if model is not None else None,
        budget=_budget_text(budget),
        seed=seed,
        hyperparameters=_texts(hyperparameters),
        from_python=given.names(),
    )
    folder = Path(out) if out else default_folder(config)
    progress = Progress(config.arm, config.budget, quiet=quiet)
    loop = start_run(config, folder, given=given, progress=progress, overwrite=overwrite, say=_say(quiet))
    return _finish(loop, progress, folder)


def resume(
    run: str | Path,
    *,
    method: Recipe | None = None,
    dataset: Sequence[dict[str, Any]] | None = None,
    reward: RewardFunction | Sequence[Any] | None = None,
    preference: PreferenceFunction | None = None,
    task: Callable[[], Any] | None = None,
    budget: str | Mapping[str, float] = "",
    trust_code: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Go on with a run that was interrupted, to the same numbers; with `budget`, with a finished one too.

    `budget` is of the whole run, what it has spent included. A run whose schedules are constant then ends as one that
    had it from the start; what follows the budget, such as a falling learning rate, goes on where the new one puts it.

    A recipe, rows, reward functions or an environment's maker that were given as Python objects must be given again:
    a folder cannot hold them. `trust_code` runs the files that the folder names though you have not run them before.
    """
    from polyrl.core.more_budget import finished
    from polyrl.runs import resume_run
    from polyrl.runtime.progress import Progress

    folder = Path(run)
    progress = Progress(folder.name, "", quiet=quiet)
    given = _given(method, dataset, reward, task, preference)[1]
    loop = resume_run(
        folder, given=given, progress=progress, say=_say(quiet), trust_code=trust_code, budget=_budget_text(budget)
    )
    progress.label = loop.recipe.name
    if loop.context.progress >= 1:
        _say(quiet)(finished(loop))
    return _finish(loop, progress, folder)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else lambda text: print(printable(text), flush=True)


def _finish(loop: Loop, progress: Any, folder: Path) -> RunResult:
    with progress:
        final = loop.run()
    return RunResult(folder, loop.start, final, dataclasses.asdict(loop.context.spent))


def compare(
    methods: Sequence[str],
    *,
    task: str | None = None,
    model: str | Path | None = None,
    reward: str | Sequence[str] = (),
    dataset: str | None = None,
    budget: str | Mapping[str, float] = "",
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = False,
    options: Mapping[str, Any] | None = None,
    **hyperparameters: Any,
) -> Path:
    """Train every method with every seed at the same budget and return the comparison's folder, with `report.html`.

    Arguments are those of `train`, but data and rewards are named, because every run is a process of its own.
    Hyperparameters are set in every method that has them, and a method's own are given
    in its name: `compare(["grpo", "grpo(clip_range=0.1)"])`.
    """
    from polyrl.catalogue import task_with_data
    from polyrl.comparison import run_comparison

    seeds = _plain(seeds)
    names = [*range(seeds)] if isinstance(seeds, int) else [_plain(seed) for seed in seeds]
    if dataset is not None:
        task = task_with_data(task, [os.fspath(method) for method in methods])
    base = _config(
        "compare",
        options,
        method="",
        task=task or "",
        dataset=dataset,
        rewards=(reward,) if isinstance(reward, str | os.PathLike) else tuple(reward),
        model=str(model) if model is not None else None,
        budget=_budget_text(budget),
        hyperparameters=_texts(hyperparameters),
    )
    return run_comparison(
        [os.fspath(method) for method in methods], base, names, Path(out) if out else None, workers=workers, quiet=quiet
    )


def reproduce(
    method: str,
    *,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Put the claim of a method's paper to the test; return what the ledger holds of it, its `verdict` among them.

    Goes on where it stopped. `quick` is a smoke test without a verdict; with `seeds` of your own nothing is entered.

    Raises:
        UserError: there is no claim of this method, or its experiment cannot be run.
    """
    from polyrl.claims import claim
    from polyrl.reproduction.running import reproduce as run

    folder = Path(out) if out else None
    made = run(claim(method), folder, quick=quick, seeds=seeds, workers=workers, quiet=quiet)
    return {**made.entry, **({"verdict": None} if quick else {})}


def evaluate(
    run: str | Path,
    *,
    prompts: int | None = None,
    greedy: bool = True,
    episodes: int | None = None,
    dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    reward: str | RewardFunction | Sequence[Any] | None = None,
    checker: str | None = None,
    max_tokens: int | None = None,
    task: Callable[[], Any] | None = None,
    trust_code: bool = False,
) -> dict[str, float]:
    """Judge a run's policy, or a model folder, apart from training; returns `eval/...` metrics.

    Language runs answer `prompts` test prompts, greedily or not; others go through `episodes` of their task's
    evaluation. Rows, reward functions and environments that were given as Python objects must be given again.

    Args:
        run: a run's folder; with `dataset` also a model's.
        prompts: how many; none is 500, and with `dataset` all of its rows.
        dataset: a file, hub id or rows to judge on in the place of the run's own test prompts, all of them. Rows for a
            run that was itself begun with rows are its own, given again.
        reward: what judges answers; none is the run's.
        checker, max_tokens: with `dataset`, others than the run's.
        trust_code: run the files that the folder names though you have not run them before.

    Raises:
        UserError: the folder is no run, or something in the arguments or the data is wrong.
    """
    metrics: dict[str, float] = open_to_judge(
        run,
        prompts=prompts,
        greedy=greedy,
        episodes=episodes,
        dataset=dataset,
        reward=reward,
        checker=checker,
        max_tokens=max_tokens,
        task=task,
        trust_code=trust_code,
    ).evaluate()[0]
    return metrics


def open_to_judge(
    run: str | Path,
    *,
    prompts: int | None = None,
    greedy: bool = True,
    episodes: int | None = None,
    dataset: Any = None,
    reward: Any = None,
    checker: str | None = None,
    max_tokens: int | None = None,
    task: Callable[[], Any] | None = None,
    trust_code: bool = False,
) -> RunState:
    """What `evaluate` judges, with the same arguments."""
    from polyrl.other_data import is_model, open_on
    from polyrl.runtime.run_folder import RunFolder

    folder = Path(run)
    specs, given = _given(None, dataset, reward, task)
    model = is_model(folder)
    begun = () if model else RunConfig.from_dict(RunFolder(folder).read_config()["run"]).from_python
    elsewhere = dataset is not None and (isinstance(dataset, str | os.PathLike) or "dataset" not in begun)
    if not elsewhere:
        if model:
            raise UserError(f"{folder} is a model and no run, so say what it is judged on: --dataset FILE.")
        for name, value in (("checker", checker), ("max-tokens", max_tokens), ("reward", specs)):
            if value:
                raise UserError(f"--{name} is for data of your own; give --dataset too.")
        options: dict[str, Any] = {"eval_prompts": prompts or 500, "eval_greedy": greedy, "eval_episodes": episodes}
        return open_policy(folder, given=given, trust_code=trust_code, **options)
    if episodes is not None:
        raise UserError("--episodes means nothing beside --dataset, whose rows are answered once each.")
    asked = {"rewards": specs, "checker": checker, "max_tokens": max_tokens}
    changed = {name: value for name, value in asked.items() if value}
    data = given.dataset if given.dataset is not None else os.fspath(dataset)
    return open_on(
        folder, data, given, trust_code=trust_code, eval_prompts=prompts or ALL, eval_greedy=greedy, **changed
    )


def open_policy(
    run: str | Path,
    *,
    given: PythonObjects | None = None,
    judged: bool = True,
    trust_code: bool = False,
    **options: Any,
) -> RunState:
    """The state of a run with its trained policy loaded (the newest checkpoint's if the run is unfinished).

    Args:
        judged: whether rewards are going to be called; otherwise the run's own code for them is left alone.
        trust_code: run the files that the folder names though you have not run them before.
        options: fields of `RunConfig` that are other than in the run, such as `eval_prompts=500`.

    Raises:
        UserError: the folder is no run, or holds no model yet.
    """
    from polyrl.runs import open_run_state
    from polyrl.runtime.run_folder import RunFolder

    folder = Path(run)
    config = RunConfig.from_dict(RunFolder(folder).read_config()["run"])
    config = dataclasses.replace(config, **options)
    return open_run_state(folder, config, given, judged=judged, trust_code=trust_code)


def summary(run: str | Path) -> dict[str, Any]:
    """The run's summary.json."""
    values: dict[str, Any] = json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))
    return values
