"""polyrl in Python, with the same words as on the command line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.arguments import (
    budget_text,
    objects,
    out_folder,
    read_call,
    seed_list,
)
from polyrl.errors import UserError
from polyrl.plain_text import printable
from polyrl.results import ComparisonResult, RunResult
from polyrl.runtime.config import RunConfig

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.phases import RunPhase
    from polyrl.recipe import Recipe
    from polyrl.run_state.base import RunState
    from polyrl.runtime.config import PythonObjects

ALL = 2**31
"""Prompts of an evaluation that leaves none out."""
RewardFunction = Callable[..., list[float | None]]
PreferenceFunction = Callable[..., list[float]]


def train(
    method: str | Path | Recipe | Sequence[Any],
    *,
    task: Any = None,
    model: Any = None,
    reward: str | RewardFunction | Sequence[Any] | None = None,
    preference: str | PreferenceFunction | None = None,
    dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    test_dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    budget: str | Mapping[str, float] = "",
    seed: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    trust_code: bool = False,
    options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> RunResult:
    """Train a policy and return what came of it, which a notebook shows as a table and a curve.

    Args:
        method: a method or composition such as "grpo+drop-equal-groups", a method file, a `Recipe`, or a recipe file
            (.yaml), whose settings hold where no argument says something else. Several are phases, each of which starts
            from the model of the one before: "sft,dpo", or a list of methods and of mappings, {"method": "sft",
            "budget": "samples=4000"}, whose further entries are arguments of that phase alone.
        task: built-in task, Gymnasium environment such as "CartPole-v1", an environment object, or a function that
            makes one; the method's own if neither it nor a dataset is given.
        model: model folder or hub id, a model of transformers, or (model, tokenizer); none makes the task's tiny model.
        reward: reward functions with TRL's signature `f(prompts, completions, **columns) -> list[float | None]`, or
            their names "module:function"; a list mixes them, `(function, weight)` weighs one.
        preference: which of two responses is better, for methods that ask: a function `f(prompts, completions_a,
            completions_b, **columns) -> list[float]` that returns the probability that a beats b, or its name.
        dataset: file, hub id, a `datasets.Dataset` or rows with a `prompt`; of control a file or folder of recorded
            transitions.
        test_dataset: the same, to be judged on; none holds out a share of `dataset`.
        budget: what ends the run, such as "samples=20000,seconds=600" or {"steps": 100000}; the task's own if empty.
        keywords: every option of the command line under its name (`max_tokens=64`, `lora=16`, `device="cuda"`,
            `evaluations=4`), and hyperparameters of the recipe's parts (`clip_range=0.1`).
        seed: of everything random; none is 0, or what a recipe file says.
        trust_code: run the code that a recipe file names though you have not run it before.
        options: the options among the keywords as a mapping.

    Raises:
        UserError: something in the arguments or the data is wrong.
    """
    from polyrl.runs import new_folder, start_run
    from polyrl.runtime.progress import Progress

    call: dict[str, Any] = {
        "task": task,
        "model": model,
        "reward": reward,
        "preference": preference,
        "dataset": dataset,
        "test_dataset": test_dataset,
        "budget": budget,
        "options": options,
        "keywords": keywords,
        "seed": seed,
        "trust_code": trust_code,
    }
    from polyrl.phased_call import read_phases_call

    if (phases := read_phases_call(method, **call)) is not None:
        return _train_phases(phases, out_folder(out), overwrite=overwrite, quiet=quiet)
    request = read_call("train", [method], **call)
    ((given, recipe),) = zip(request.given.values(), request.recipes.values(), strict=True)
    config = request.config
    folder = new_folder(config, out_folder(out))
    progress = Progress(config.arm, config.budget, quiet=quiet)
    how: dict[str, Any] = {"progress": progress, "overwrite": overwrite, "say": _say(quiet)}
    return _finish(start_run(config, folder, given=given, recipe=recipe, **how), progress, folder)


def resume(
    run: str | Path,
    *,
    method: Recipe | None = None,
    dataset: Sequence[dict[str, Any]] | None = None,
    test_dataset: Sequence[dict[str, Any]] | None = None,
    reward: RewardFunction | Sequence[Any] | None = None,
    preference: PreferenceFunction | None = None,
    task: Any = None,
    budget: str | Mapping[str, float] = "",
    engine: str = "",
    trust_code: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Go on with a run that was interrupted, to the same numbers; with `budget`, with a finished one too.

    `budget` is of the whole run, what it has spent included. A run whose schedules are constant then ends as one that
    had it from the start; what follows the budget, such as a falling learning rate, goes on where the new one puts it.

    `engine` says where the generation servers of the run are now, or "none" where it is to sample by itself.

    A recipe, rows, reward functions or an environment's maker that were given as Python objects must be given again:
    a folder cannot hold them. `trust_code` runs the files that the folder names though you have not run them before.
    """
    from polyrl.comparison import begin_asked
    from polyrl.core.more_budget import finished
    from polyrl.phases import is_phases, resume_phases
    from polyrl.runs import resume_run
    from polyrl.runtime.progress import Progress

    folder = Path(run)
    if is_phases(folder):
        if budget:
            raise UserError(f"Each phase of {folder} has a budget of its own; give more to one by its folder.")
        if engine:
            raise UserError(
                f"{folder} is no single run; name the new engine with the folder of the phase that has one."
            )
        resume_phases(folder, trust_code=trust_code, quiet=quiet, say=_say(quiet))
        return _result_of_phases(folder)
    progress = Progress(folder.name, "", quiet=quiet)
    given = objects(method, dataset, reward, task, preference, test_dataset)[1]
    how: dict[str, Any] = {"progress": progress, "say": _say(quiet), "trust_code": trust_code}
    loop = None if given.names() or budget or engine else begin_asked(folder, **how)
    loop = loop or resume_run(folder, given=given, budget=budget_text(budget), engine=engine, **how)
    progress.label = loop.recipe.name
    if loop.context.over:
        _say(quiet)(finished(loop))
    return _finish(loop, progress, folder)


def _train_phases(phases: Sequence[RunPhase], out: Path | None, *, overwrite: bool, quiet: bool) -> RunResult:
    """Run phases; what comes back is of the last one, with the others in `phases`."""
    from polyrl.phases import default_phases_folder, run_phases

    folder = out or default_phases_folder(phases)
    run_phases(phases, folder, overwrite=overwrite, quiet=quiet, say=_say(quiet))
    return _result_of_phases(folder)


def _result_of_phases(folder: Path) -> RunResult:
    from polyrl.phases import phase_folders

    found = []
    for run in phase_folders(folder):
        said = summary(run)
        found.append(RunResult(run, said["start"], said["final"], said["spent"]))
    return dataclasses.replace(found[-1], phases=tuple(found))


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda _: None) if quiet else lambda text: print(printable(text), flush=True)


def _finish(loop: Loop, progress: Any, folder: Path) -> RunResult:
    with progress:
        final = loop.run()
    return RunResult(folder, loop.start, final, dataclasses.asdict(loop.context.spent))


def compare(
    methods: str | Path | Recipe | Sequence[Any],
    *,
    task: Any = None,
    model: Any = None,
    reward: str | RewardFunction | Sequence[Any] | None = None,
    preference: str | PreferenceFunction | None = None,
    dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    test_dataset: str | Path | Sequence[dict[str, Any]] | None = None,
    budget: str | Mapping[str, float] = "",
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    overwrite: bool = False,
    executor: str = "local",
    workers: int | None = None,
    quiet: bool = False,
    options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> ComparisonResult:
    """Train every method with every seed at the same budget; what comes back stands for the folder with `report.html`.

    Arguments are those of `train`. Every run is a process of its own, to which objects are sent: a function must not
    hold what cannot be copied. Hyperparameters are set in every method that has them, and a method's own are given in
    its name or its recipe: `compare(["grpo", "grpo(clip_range=0.1)", my_recipe])`. `executor` says who makes
    the runs: "local"; "ray" or "ray://host:port"; or "plan", which makes none and writes a shell line for each.

    Raises:
        UserError: something in the arguments or the data is wrong, or every run failed.
    """
    from polyrl.comparison import run_comparison
    from polyrl.recipe import Recipe

    alone = isinstance(methods, str | os.PathLike | Recipe) or not isinstance(methods, Sequence)
    request = read_call(
        "compare",
        [methods] if alone else list(methods),  # type: ignore[arg-type]
        task=task,
        model=model,
        reward=reward,
        preference=preference,
        dataset=dataset,
        test_dataset=test_dataset,
        budget=budget,
        options=options,
        keywords=keywords,
    )
    folder = run_comparison(
        [*request.recipes],
        request.config,
        seed_list(seeds),
        out_folder(out),
        executor=executor,
        workers=workers,
        quiet=quiet,
        overwrite=overwrite,
        given=request.given,
        recipes=request.recipes,
    )
    return ComparisonResult(folder)


def reproduce(
    method: str,
    *,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    executor: str = "local",
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Put the claim of a method's paper to the test; return what the ledger holds of it, its `verdict` among them.

    Goes on where it stopped. `quick` is a smoke test without a verdict; with `seeds` of your own nothing is entered.
    With `executor="plan"` no run is made: where some are missing, what comes back has `planned`, which says what to do.

    Raises:
        UserError: there is no claim of this method, or its experiment cannot be run.
    """
    from polyrl.claims import claim
    from polyrl.reproduction.planning import check_planned, plan
    from polyrl.reproduction.running import reproduce as run
    from polyrl.runtime.executor import LOCAL, PLAN

    folder = Path(out) if out else None
    check_planned(executor, workers, quick=quick)
    if executor == PLAN:
        if said := plan(claim(method), folder, seeds=seeds):
            return {"slug": method, "verdict": None, "planned": said}
        executor = LOCAL  # nothing is left to be run
    made = run(claim(method), folder, quick=quick, seeds=seeds, executor=executor, workers=workers, quiet=quiet)
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
    prompt_column: str | None = None,
    answer_column: str | None = None,
    system_prompt: str | None = None,
    chat_template: bool | None = None,
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
        checker, max_tokens: with `dataset`, others than the run's; so are the following.
        prompt_column, answer_column, system_prompt, chat_template: how `dataset` is read and asked, as in `train`.
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
        prompt_column=prompt_column,
        answer_column=answer_column,
        system_prompt=system_prompt,
        chat_template=chat_template,
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
    prompt_column: str | None = None,
    answer_column: str | None = None,
    system_prompt: str | None = None,
    chat_template: bool | None = None,
    task: Callable[[], Any] | None = None,
    trust_code: bool = False,
) -> RunState:
    """What `evaluate` judges, with the same arguments."""
    from polyrl.other_data import is_model, open_on
    from polyrl.phases import acting_run
    from polyrl.runtime.run_folder import RunFolder

    folder = acting_run(Path(run))
    specs, given = objects(None, dataset, reward, task)
    asked: dict[str, Any] = {"rewards": specs, "checker": checker, "max_tokens": max_tokens}
    asked |= {"prompt_column": prompt_column, "answer_column": answer_column, "system_prompt": system_prompt}
    model = is_model(folder)
    begun = () if model else RunConfig.from_dict(RunFolder(folder).read_config()["run"]).from_python
    elsewhere = dataset is not None and (isinstance(dataset, str | os.PathLike) or "dataset" not in begun)
    if not elsewhere:
        if model:
            raise UserError(f"{folder} is a model and no run, so say what it is judged on: --dataset FILE.")
        for name, value in {**asked, "no_chat_template": chat_template is not None}.items():
            if value:
                option = "reward" if name == "rewards" else name.replace("_", "-")
                raise UserError(f"--{option} is for data of your own; give --dataset too.")
        options: dict[str, Any] = {"eval_prompts": prompts or 500, "eval_greedy": greedy, "eval_episodes": episodes}
        return open_policy(folder, given=given, trust_code=trust_code, **options)
    if episodes is not None:
        raise UserError("--episodes means nothing beside --dataset, whose rows are answered once each.")
    changed: dict[str, Any] = {name: value for name, value in asked.items() if value}
    if chat_template is not None:
        changed["chat_template"] = chat_template
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
    from polyrl.phases import acting_run
    from polyrl.runs import open_run_state
    from polyrl.runtime.run_folder import RunFolder

    folder = acting_run(Path(run))
    config = RunConfig.from_dict(RunFolder(folder).read_config()["run"])
    config = dataclasses.replace(config, **options)
    return open_run_state(folder, config, given, judged=judged, trust_code=trust_code)


def summary(run: str | Path) -> dict[str, Any]:
    """The run's summary.json."""
    values: dict[str, Any] = json.loads((Path(run) / "summary.json").read_text(encoding="utf-8"))
    return values
