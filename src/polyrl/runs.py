"""Makes runs from what a person asked for: config -> task, recipe, run state, loop. Used by the API and the CLI.

Each domain makes its own tasks and run states (`polyrl.run_state.<domain>`); this module finds it by the task.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits

from polyrl import catalogue
from polyrl.core.access import check_access
from polyrl.core.checking import check_domain
from polyrl.core.context import Context
from polyrl.core.loop import Loop
from polyrl.core.more_budget import go_on_with
from polyrl.errors import UserError
from polyrl.problem import CODE, CONTENT, changed, gone_on, refusal, state_problem
from polyrl.request import completed, default_task, domain, domain_module, make_recipe, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.checkpoint import checkpoints
from polyrl.runtime.config import PythonObjects, RunConfig, check_given
from polyrl.runtime.device import check_precision, make_device, settings_of, settled
from polyrl.runtime.files import short_name
from polyrl.runtime.health import Health
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import Progress
from polyrl.runtime.ranks import Ranks, join
from polyrl.runtime.run_folder import RunFolder, provenance
from polyrl.trust import check_code, choose
from polyrl.unused import refuse_unused

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.run_state.base import RunState

Say = Callable[[str], None]


WITHOUT_COLLECTING = ("updates", "iterations", "seconds")
"""Units of a budget that a method spends which collects nothing."""


def make_budget(config: RunConfig, recipe: Recipe) -> Budget:
    """What ends the run.

    Raises:
        UserError: the text is no budget, or nothing that the method does spends it.
    """
    budget = Budget.parse(config.budget)
    if recipe.collect is None and not set(budget.limits()) & set(WITHOUT_COLLECTING):
        raise UserError(
            f"{recipe.name} collects nothing, so a budget of {' and '.join(budget.limits())} never ends; give one of "
            f"{', '.join(WITHOUT_COLLECTING)}."
        )
    return budget


def prepare(
    config: RunConfig,
    recipes: Sequence[Recipe],
    say: Say = lambda _: None,
    *,
    given: PythonObjects | None = None,
    begins: bool = True,
    make: bool = True,
) -> tuple[Metric, dict[str, Any]]:
    """Find every mistake that shows before a run, make once what several runs share.

    Args:
        config: of the first run.
        recipes: of all methods, the first run's first.
        say: is told what is going on.
        given: what Python gave of the first run.
        begins: whether what none of the recipes uses is to be refused.
        make: whether what the runs share is made; otherwise each makes it, and what only a model shows is found then.

    Returns:
        What judges the runs, and the problem that they are given (`state_problem`, without its evaluation).
    """
    make_budget(config, recipes[0])
    make_device(config.device)
    task = make_task(config, given)
    for asking in recipes:
        check_access(asking, task)
    if begins:
        refuse_unused(config, recipes, task, domain(config, given))
    if domain(config, given) == "language":
        check_precision(config)
        domain_module(config, given).give_imitated(config, task, recipes[0])
        if make:
            domain_module(config, given).prepare(config, task, say)
    metric = recipes[0].metric or task.metric
    return metric, state_problem(task, metric, {}, config.task)


def _complete(config: RunConfig, given: PythonObjects | None, recipe: Recipe | None) -> tuple[RunConfig, Recipe]:
    """The config with the task and the budget that are taken where none is named, and its recipe, made once."""
    config = dataclasses.replace(config, task=config.task or default_task([config.method]))
    recipe = recipe or make_recipe(config, given)
    return completed(config, given, recipes={config.method: recipe}), recipe


def make_loop(
    config: RunConfig,
    *,
    given: PythonObjects | None = None,
    recipe: Recipe | None = None,
    say: Say = lambda _: None,
    asked: bool = True,
) -> tuple[Loop, dict[str, Any]]:
    """Everything of a run but its folder; returns the loop and the facts for config.yaml.

    Cheap mistakes are found first: no model is loaded or made before recipe, budget, task and rewards are good.
    `asked` says whether the config is what somebody asks of this very run: what it would not use is then refused.
    `recipe` is the config's, where it has been made (`polyrl.request`).
    """
    config, recipe = _complete(config, given, recipe)
    budget = make_budget(config, recipe)
    task = make_task(config, given)
    check_domain(recipe, task.name, domain(config, given))
    check_access(recipe, task)
    if asked:
        refuse_unused(config, [recipe], task, domain(config, given))
    language = domain(config, given) == "language"
    if language and asked:
        check_precision(config)
    torch.set_num_threads(config.threads)
    threadpool_limits(config.threads, user_api="blas")  # NumPy's
    run_state: RunState = domain_module(config, given).make_run_state(config, task, recipe, say)
    context = Context(run_state=run_state, seed=config.seed, budget=budget)
    run_state.begin(context)
    context.sources = {name: source.make(name, task, config) for name, source in recipe.sources.items()}
    for rows in context.sources.values():
        rows.begin(run_state)
    for said in filter(None, (rows.sentence() for rows in context.sources.values())):
        say(said)
    loop = Loop(
        recipe,
        run_state,
        context,
        metric=recipe.metric or task.metric,
        evaluations=config.evaluations,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        tensorboard=config.tensorboard,
        health=Health(
            domain=domain(config, given),
            options=frozenset(key.rpartition(".")[2] for key in recipe.hyperparameters()),
        ),
    )
    if language:
        config = settled(config, settings_of(config))
    facts = {
        **provenance(),
        "domain": domain(config, given),
        "method": config.method,
        "label": config.arm,
        "task": task.name,
        **({"difficulty": task.difficulty} if language else {}),
        **({"model": config.model or "tiny"} if language else {}),
        "seed": config.seed,
        "budget": dict(budget.limits()),
        "metric": dataclasses.asdict(loop.metric),
        **({"charts": [chart.stated() for chart in run_state.charts]} if run_state.charts else {}),
        "problem": state_problem(task, loop.metric, run_state.evaluation_facts(), config.task),
        "hyperparameters": recipe.hyperparameters(),
        **({"data": stated} if (stated := _stated_sources(context)) else {}),
        **({"given_models": given_models} if (given_models := run_state.given_models()) else {}),
        "evaluation": run_state.evaluation_facts(),
        "device": run_state.device,
        "threads": config.threads,
        "start": run_state.start(),
        "run": config.as_dict(),
    }
    return loop, facts


def _stated_sources(context: Context) -> dict[str, Any]:
    """What there is to be said of rows that are given, by source."""
    found = {name: rows.stated() for name, rows in context.sources.items()}
    return {name: stated for name, stated in found.items() if stated}


def open_run_state(
    folder: Path,
    config: RunConfig,
    given: PythonObjects | None = None,
    *,
    judged: bool = True,
    trust_code: bool = False,
) -> RunState:
    """The state of a run with its trained policy: of the finished run, or of its newest checkpoint.

    Args:
        judged: whether rewards and preference are going to be called; otherwise the run's code for them is left alone.
        trust_code: whether the user said to run what code the folder names (`polyrl.trust`).

    Raises:
        UserError: the run has neither, or names code that the user has not chosen.
    """
    found = checkpoints(folder / "checkpoints")
    trained = folder / "model" if (folder / "model").is_dir() else found[-1] if found else None
    if trained is None:
        raise UserError(f"The run {folder} has no model yet: neither model/ nor a checkpoint.")
    scoring = ("reward",) if judged else ()
    check_given(config, given, folder, needs=("dataset", "test_dataset", *scoring, "task"))
    module = domain_module(config, given)
    if domain(config, given) == "language":  # the folder says by itself what acts
        check_code(config, folder, ("task", "reward", "preference") if judged else ("task",), trust_code=trust_code)
        task = module.make_task(config, given or PythonObjects(), load_code=judged)
        if judged and (recipe := _known_recipe(config.method)) is not None:
            module.give_imitated(config, task, recipe)
        run_state: RunState = module.open_trained(trained, config, task, judged=judged)
        return run_state
    check_given(config, given, folder)
    check_code(config, folder, ("task", "method"), trust_code=trust_code)
    run_state = module.make_run_state(config, make_task(config, given), make_recipe(config, given))
    run_state.load(trained)
    return run_state


def _known_recipe(method: str) -> Recipe | None:
    """The recipe of a method of language that polyrl has; None of one that runs the user's code, or is not here."""
    try:
        return catalogue.compose(method, "language") if method and ".py" not in method else None
    except UserError:
        return None


def located(config: RunConfig) -> RunConfig:
    """The same run with absolute paths, so that it can go on from any folder."""

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.exists() else text

    def of_function(spec: str) -> str:
        place, colon, function = spec.rpartition(":")
        return f"{absolute(place)}:{function}" if colon and place.endswith(".py") else spec

    def of_reward(spec: str) -> str:
        folder, equals, weight = spec.partition("=")  # a reward model
        return f"{absolute(folder)}{equals}{weight}" if Path(folder).expanduser().is_dir() else of_function(spec)

    method = catalogue.located(config.method)
    return dataclasses.replace(
        config,
        method=method,
        label=config.label or ("" if method == config.method else config.method),
        task=of_function(config.task),  # a folder of the same name is not meant
        dataset=config.dataset and absolute(config.dataset),
        test_dataset=config.test_dataset and absolute(config.test_dataset),
        model=config.model and absolute(config.model),
        rewards=tuple(map(of_reward, config.rewards)),
        preference=config.preference and of_reward(config.preference),
        hyperparameters={
            key: absolute(text) if key.rpartition(".")[2] == "run" else text
            for key, text in config.hyperparameters.items()
        },
    )


def start_run(
    config: RunConfig,
    folder: Path,
    *,
    given: PythonObjects | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    say: Say = lambda _: None,
    asked: bool = True,
) -> Loop:
    """Prepare a new run in a new folder. Nothing is written before everything is known to be good.

    `recipe` is the config's, where it has been made (`polyrl.request`).
    """
    named = config.method
    config = located(config)
    choose(config)
    ranks = join()
    say = say if ranks.first else _silent
    if recipe is not None and recipe.name == named:  # as it is called where the run goes on
        recipe = dataclasses.replace(recipe, name=config.method)
    config, recipe = _complete(config, given, recipe)
    _check_ranks(ranks, config, given)
    if ranks.first:
        RunFolder.check_free(folder, overwrite=overwrite)  # before minutes are spent on a starting model
    loop, facts = ranks.in_turn(lambda: make_loop(config, given=given, recipe=recipe, say=say, asked=asked))
    if not ranks.first:
        return loop
    loop.folder = RunFolder.create(folder, overwrite=overwrite)
    try:
        loop.folder.write_config(facts)
    except BaseException:
        loop.folder.release()
        raise
    _show(loop, progress)
    return loop


def _silent(_: str) -> None:
    """What processes say that are not the first of a run."""


def _check_ranks(ranks: Ranks, config: RunConfig, given: PythonObjects | None) -> None:
    """Refuse a run that several processes would only compute several times."""
    if not ranks.alone and domain(config, given) != "language":
        raise UserError(
            f"torchrun started {ranks.count} processes, but only language models are trained by several; start this "
            "run without torchrun, or many runs at once with `polyrl compare`."
        )


def resume_run(
    folder: Path,
    *,
    given: PythonObjects | None = None,
    progress: Progress | None = None,
    say: Say = lambda _: None,
    trust_code: bool = False,
    chosen: RunConfig | None = None,
    budget: str = "",
    engine: str = "",
) -> Loop:
    """Prepare a run to go on from its newest checkpoint.

    Args:
        budget: what the whole run may now spend, where that is more than it was given.
        engine: where the run's generation servers are now; "none" lets the run sample by itself from here on.
        trust_code: whether the user said to run what code the folder names (`polyrl.trust`).
        chosen: what the user asked for in this very command, whose code needs no record.

    Raises:
        UserError: no run folder, no usable checkpoint, a starting model or data that have changed, code that the
            user has not chosen, or a budget that is spent already.
    """
    ranks = join()
    say = say if ranks.first else _silent
    run = RunFolder(folder)
    facts = run.read_config()
    config = RunConfig.from_dict(facts["run"], folder / "config.yaml")
    if budget:
        config = dataclasses.replace(config, budget=str(Budget.parse(budget)))
    if engine:
        if not config.engine:
            raise UserError(f"{folder} has no generation servers, so there are none to move; leave --engine away.")
        config = dataclasses.replace(config, engine=None if engine == "none" else engine)
    check_given(config, given, folder)
    check_code(config, folder, trust_code=trust_code, chosen=chosen)
    _check_ranks(ranks, config, given)
    if ranks.first:
        run.hold()
    try:
        loop, now = ranks.in_turn(lambda: make_loop(config, given=given, say=say, asked=False))
        if facts.get("start") != now["start"]:
            raise UserError(
                f"The starting model of {folder} has changed (it was {facts.get('start')}, now {now['start']}), so the "
                "run cannot go on to the same numbers; start it again with --overwrite."
            )
        before = facts.get("problem")
        if differing := changed(before, now["problem"], CONTENT):
            raise UserError(refusal(differing, folder, "run", "start again with --overwrite"))
        loop.resume(run)
        if not ranks.first:
            return loop
        if budget:
            facts, said = go_on_with(loop, facts)
            loop.warnings += said
            loop.notices += said
        if engine:
            facts = {**facts, "run": {**facts["run"], "engine": config.engine}}
        if budget or engine:
            run.write_config(facts)
    except BaseException:
        run.release()
        raise
    _show(loop, progress)
    for text in loop.notices:
        if progress:
            progress.warn(text)
    if differing := changed(before, now["problem"], CODE):
        _go_on_with_other_code(loop, facts, now["problem"], differing)
    return loop


def _go_on_with_other_code(loop: Loop, facts: dict[str, Any], now: dict[str, Any], differing: Sequence[str]) -> None:
    """Say that the user's code has changed, and state it: what such a run ends with belongs to neither problem."""
    following = loop.context.iteration + 1
    loop.warnings.append(
        f"The code of the {' and the '.join(differing)} has changed since the run began: from iteration {following} on "
        "its numbers are of another problem."
    )
    if loop.progress:
        loop.progress.warn(loop.warnings[-1])
    assert loop.folder is not None
    loop.folder.write_config({**facts, "problem": gone_on(facts["problem"], now, following)})


def _show(loop: Loop, progress: Progress | None) -> None:
    """Let the progress know what it shows."""
    if progress:
        progress.metric, progress.budget = loop.metric, str(loop.context.budget)
        progress.began_at = loop.context.progress
    loop.progress = progress


def plain(task: str) -> str:
    """A task's name as part of a folder's: without settings and paths."""
    name = task.partition("(")[0]
    return "".join(c if c.isalnum() or c in "+-._" else "-" for c in name.rpartition("/")[2]).strip("-.")


def new_folder(config: RunConfig, out: Path | None) -> Path:
    """Where a run that begins is going to be: `out`, or a folder of its own; every process of it says the same."""
    ranks = join()
    return out or Path(ranks.from_first(lambda: str(default_folder(config))))


def default_folder(config: RunConfig, root: Path | None = None) -> Path:
    """`runs/<method>-<task>-seed<n>`, a number behind it where that exists, a hash for the end of a long one."""
    root = root or Path(os.environ.get("POLYRL_RUNS", "runs"))
    name = "".join(c if c.isalnum() or c in "+-." else "-" for c in config.arm).strip("-.")
    task = config.task or default_task([config.method])
    base = root / short_name(f"{name}-{plain(task)}-seed{config.seed}")
    folder, n = base, 2
    while folder.exists():
        folder, n = Path(f"{base}-{n}"), n + 1
    return folder
