"""Makes runs from what a person asked for: config -> task, model, recipe, world, loop. Used by the API and the CLI."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.loop import Loop
from polyrl.policies.start import fingerprint, start_model
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.runtime.context import Context
from polyrl.runtime.progress import Progress
from polyrl.runtime.run_folder import RunFolder, provenance
from polyrl.tasks.language import LanguageTask, Reward, Row
from polyrl.tasks.language import task as built_in_task
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.rewards import load_reward

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.worlds.language import LanguageWorld

Say = Callable[[str], None]
CHECKED_ROWS = 64
"""Prompts of each split that are looked at before a run begins: later ones are checked when they are drawn."""


@dataclass
class Given:
    """What only Python can give: objects that no config file can hold."""

    recipe: Recipe | None = None
    dataset: Sequence[Row] | None = None
    rewards: Sequence[Reward] = ()

    def names(self) -> tuple[str, ...]:
        """Which of them are there, by the argument that gives them."""
        found = {"method": self.recipe is not None, "dataset": self.dataset is not None, "reward": bool(self.rewards)}
        return tuple(name for name, there in found.items() if there)


def check_given(
    config: RunConfig, given: Given | None, run: Path, needs: Sequence[str] = ("method", "dataset", "reward")
) -> None:
    """Refuse to go on with a run that needs Python objects which are not here.

    Raises:
        UserError: the run was started from Python with objects that its folder cannot hold.
    """
    missing = [n for n in config.from_python if n in needs and n not in (given or Given()).names()]
    if missing:
        raise UserError(
            f"The run {run} was started from Python with its own {' and '.join(missing)}, which a folder cannot hold; "
            f"go on in Python and give {'it' if len(missing) == 1 else 'them'} again, as "
            f"polyrl.resume(run, {', '.join(f'{name}=...' for name in missing)})."
        )


def make_task(config: RunConfig, given: Given | None = None) -> LanguageTask:
    """The built-in task, or the user's dataset with the user's rewards."""
    given = given or Given()
    rewards = [*(load_reward(spec) for spec in config.rewards), *given.rewards]
    data = given.dataset if given.dataset is not None else config.dataset
    if data is not None:
        task: LanguageTask = DatasetTask(data, test_data=config.test_dataset, rewards=rewards)
    else:
        settings = {} if config.difficulty is None else {"difficulty": config.difficulty}
        task = built_in_task(config.task, **settings)
        if rewards:
            task.rewards = rewards
    if config.max_tokens:
        task.max_tokens = config.max_tokens
    return task


def make_model(config: RunConfig, task: LanguageTask, say: Say = lambda _: None) -> str:
    """Name or folder of the starting model; makes the tiny model where none was given."""
    if config.model:
        return config.model
    if isinstance(task, DatasetTask):
        raise UserError("A dataset needs a model: give --model with a folder or a Hugging Face hub id.")
    return str(start_model(task, say=say))


def make_device(name: str) -> str:
    """`auto` takes a GPU if there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device '{name}' cannot be used: {str(error).splitlines()[0]}.") from None
    return name


def make_world(config: RunConfig, task: LanguageTask, model: str, *, critic: bool = False) -> LanguageWorld:
    """Load the models."""
    from polyrl.policies.folders import LoraSettings
    from polyrl.worlds.language import Evaluation, LanguageWorld

    return LanguageWorld(
        task,
        model,
        seed=config.seed,
        device=make_device(config.device),
        precision=config.precision,
        lora=LoraSettings(rank=config.lora) if config.lora else None,
        evaluation=Evaluation(prompts=config.eval_prompts, greedy=config.eval_greedy),
        on_reward_error=config.on_reward_error,
        reward_timeout=config.reward_timeout,
        micro_batch_tokens=config.micro_batch_tokens,
        critic=critic,
    )


def make_recipe(config: RunConfig, given: Given | None = None) -> Recipe:
    """Build and check the recipe."""
    if given and given.recipe is not None:
        recipe = given.recipe
        for name, value in config.hyperparameters.items():
            recipe = recipe.set(name, value)
        return recipe.check()
    return catalogue.build(config.method, dict(config.hyperparameters))


def make_loop(
    config: RunConfig, *, given: Given | None = None, say: Say = lambda _: None
) -> tuple[Loop, dict[str, Any]]:
    """Everything of a run but its folder; returns the loop and the facts for config.yaml.

    Cheap mistakes are found first: no model is loaded or made before recipe, budget, task and rewards are good.
    """
    recipe = make_recipe(config, given)
    budget = Budget.parse(config.budget)
    task = make_task(config, given)
    if config.lora:
        from polyrl.policies.folders import import_peft

        import_peft()
    torch.set_num_threads(config.threads)
    model = make_model(config, task, say)
    task.prepare(model, say)
    torch.manual_seed(config.seed)  # for what transformers and peft initialise (adapters); sampling has its own streams
    world = make_world(config, task, model, critic="critic" in recipe.models())
    some = [row for split in ("train", "test") for row in task.rows(split, config.seed, 0, CHECKED_ROWS)]
    world.check_rows(some, getattr(recipe.collect, "max_tokens", None) or task.max_tokens)
    context = Context(world=world, seed=config.seed, budget=budget)
    loop = Loop(
        recipe,
        world,
        context,
        evaluations=config.evaluations,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        monitor_kl_every=config.monitor_kl_every,
        tensorboard=config.tensorboard,
    )
    facts = {
        **provenance(),
        "method": config.method,
        "label": config.arm,
        "task": task.name,
        "difficulty": getattr(task, "difficulty", None),
        "model": config.model or "tiny",
        "seed": config.seed,
        "budget": dict(budget.limits()),
        "hyperparameters": recipe.hyperparameters(),
        "evaluation": {**dataclasses.asdict(world.evaluation), "split": "test"},
        "device": world.device,
        "threads": config.threads,
        "start": fingerprint(model),
        "run": config.as_dict(),
    }
    return loop, facts


def located(config: RunConfig) -> RunConfig:
    """The same run with absolute paths, so that it can go on from any folder."""

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.exists() else text

    def of_reward(spec: str) -> str:
        place, colon, function = spec.rpartition(":")
        return f"{absolute(place)}:{function}" if colon and place.endswith(".py") else spec

    method = catalogue.located(config.method)
    return dataclasses.replace(
        config,
        method=method,
        label=config.label or ("" if method == config.method else config.method),
        dataset=config.dataset and absolute(config.dataset),
        test_dataset=config.test_dataset and absolute(config.test_dataset),
        model=config.model and absolute(config.model),
        rewards=tuple(map(of_reward, config.rewards)),
    )


def start_run(
    config: RunConfig,
    folder: Path,
    *,
    given: Given | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Loop:
    """Prepare a new run in a new folder. Nothing is written before everything is known to be good."""
    config = located(config)
    RunFolder.check_free(folder, overwrite=overwrite)  # before minutes are spent on a starting model
    loop, facts = make_loop(config, given=given, say=say)
    loop.folder = RunFolder.create(folder, overwrite=overwrite)
    loop.folder.write_config(facts)
    loop.progress = progress
    return loop


def resume_run(
    folder: Path, *, given: Given | None = None, progress: Progress | None = None, say: Say = lambda _: None
) -> Loop:
    """Prepare a run to go on from its newest checkpoint.

    Raises:
        UserError: no run folder, no usable checkpoint, or a starting model that has changed.
    """
    run = RunFolder(folder)
    facts = run.read_config()
    config = RunConfig.from_dict(facts["run"])
    check_given(config, given, folder)
    loop, now = make_loop(config, given=given, say=say)
    if facts.get("start") != now["start"]:
        raise UserError(
            f"The starting model of {folder} has changed (it was {facts.get('start')}, now {now['start']}), so the run "
            "cannot go on to the same numbers; start it again with --overwrite."
        )
    loop.folder, loop.progress = run, progress
    loop.resume()
    return loop


def default_folder(config: RunConfig, root: Path | None = None) -> Path:
    """`runs/<method>-<task>-seed<n>`, with a number behind it where that exists."""
    root = root or Path(os.environ.get("POLYRL_RUNS", "runs"))
    name = "".join(c if c.isalnum() or c in "+-." else "-" for c in config.arm).strip("-.")
    base = root / f"{name}-{config.task.partition('(')[0]}-seed{config.seed}"
    folder, n = base, 2
    while folder.exists():
        folder, n = Path(f"{base}-{n}"), n + 1
    return folder
