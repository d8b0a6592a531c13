"""Options that several commands share, and what was typed turned into methods, seeds and a run's config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from polyrl.errors import UserError, nearest
from polyrl.settings import american


def options(*chosen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


WHAT = options(
    click.option("--task", help="built-in task, or Gymnasium environment; `polyrl list tasks`  [the method's own]"),
    click.option("--difficulty", type=int, help="how hard the built-in task is"),
    click.option("--dataset", help="your prompts: jsonl, json, csv, parquet, or a hub id; control: your transitions"),
    click.option("--test-dataset", help="prompts to judge on; else a share of --dataset is held out"),
    click.option(
        "--checker",
        type=click.Choice(["auto", "numeric", "exact", "contains", "math"]),
        help="how the data's answers are compared  [each number as a number, else the reward, else as text]",
    ),
    click.option(
        "--max-prompt-tokens", type=int, help="leave out rows of --dataset with longer prompts, and say how many"
    ),
    click.option("--skip-bad-rows", is_flag=True, help="leave out rows that cannot be used, and say how many"),
    click.option(
        "--reward", multiple=True, help="module:function, file.py:function or a reward model's folder; =WEIGHT behind"
    ),
    click.option("--preference", help="file.py:function that says which of two responses is better"),
    click.option("--model", help="model folder or Hugging Face hub id; else the task's tiny model"),
)
HOW = options(
    click.option("--budget", help="what ends a run: samples=, tokens=, steps=, reward_calls=, seconds=, updates="),
    click.option("--lora", type=int, metavar="RANK", help="train LoRA adapters of this rank"),
    click.option("--device", help="auto, cpu, cuda, ...  [auto]"),
    click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="of forward passes  [float32]"),
    click.option("--threads", type=int, help="CPU threads of one run  [1]"),
    click.option("--micro-batch-tokens", type=int, help="padded tokens at a time: memory, never meaning  [1024]"),
    click.option("--max-tokens", type=int, help="longest response"),
    click.option("--eval-prompts", type=int, help="test prompts of an evaluation  [200]"),
    click.option("--eval-episodes", type=int, help="episodes or scenarios of an evaluation, outside language"),
    click.option("--eval-sampled", is_flag=True, help="evaluate with sampled instead of greedy responses"),
    click.option("--evaluations", type=int, help="evaluations spread over the budget  [10]"),
    click.option("--checkpoint-every", type=int, help="iterations between checkpoints  [25]"),
    click.option("--on-reward-error", type=click.Choice(["stop", "drop", "zero"]), help="what to do  [stop]"),
    click.option("--reward-timeout", type=float, metavar="SECONDS", help="limit of one reward call  [60]"),
    click.option(
        "--reward-process", type=click.Choice(["auto", "own", "same"]), help="where your functions run  [auto]"
    ),
    click.option("--no-tensorboard", is_flag=True, help="write no TensorBoard events"),
)
TRUST = click.option(
    "--trust-code", is_flag=True, help="run the code that RUN names, though you have not run it before"
)
FOLDER = options(
    click.option("--out", type=click.Path(path_type=Path), help="folder to write  [runs/...]"),
    click.option("--overwrite", is_flag=True, help="replace what the folder holds"),
    click.option("--quiet", is_flag=True, help="show warnings only"),
)


def read_hyperparameters(rest: list[str], ctx: click.Context) -> dict[str, str]:
    """`["--clip-range", "0.1"]` -> {"clip_range": "0.1"}.

    Raises:
        UserError: a word that belongs to no option, or an option without a value.
    """
    found: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise UserError(f"Do not know what to do with '{item}'; `polyrl {ctx.info_name} --help` shows the usage.")
        name, eq, value = item[2:].partition("=")
        if not eq:
            try:
                value = next(items)
            except StopIteration:
                raise UserError(f"The option --{name} has no value; write --{name} VALUE.") from None
        found[american(name.replace("-", "_"))] = value
    return found


def check_options(methods: tuple[str, ...], given: dict[str, str], ctx: click.Context) -> None:
    """Name the nearest option of the command or hyperparameter where a word is neither."""
    from polyrl.catalogue import build, check_names, default_task
    from polyrl.tasks import domain_of

    for method in methods:
        check_names(method)
    if not given:
        return

    task = ctx.params.get("task")
    recipes = [build(m, domain=domain_of(task or default_task(m))) for m in methods]
    known = {k for r in recipes for key in r.hyperparameters() for k in (key, key.rpartition(".")[2])}
    known = known | {k.replace("-", "_") for k in known}
    own = [o.lstrip("-") for p in ctx.command.params for o in p.opts if o.startswith("--")]
    for name in given:
        if name not in known:
            near = nearest(name.replace("_", "-"), [*own, *(k.replace("_", "-") for k in known)])
            raise UserError(
                f"--{name.replace('_', '-')} is no option and no hyperparameter of {' or '.join(methods)}.{near}"
            )


def config_of(methods: tuple[str, ...], given: dict[str, Any], hyperparameters: dict[str, str]) -> Any:
    """The config of the run, or of all runs of several methods, from what was typed; the rest keeps its default."""
    from polyrl.catalogue import task_with_data
    from polyrl.runtime.budget import Budget
    from polyrl.runtime.config import RunConfig

    typed = {k: v for k, v in given.items() if v is not None}
    if typed.pop("eval_sampled", False):
        typed["eval_greedy"] = False
    if typed.pop("no_tensorboard", False):
        typed["tensorboard"] = False
    typed["rewards"] = tuple(typed.pop("reward", ()))
    if "budget" in typed:
        Budget.parse(typed["budget"])  # an empty one would be taken for none
    if typed.get("dataset"):
        typed["task"] = task_with_data(typed.get("task"), methods) or ""
    method = methods[0] if len(methods) == 1 else ""
    return RunConfig(method=method, hyperparameters=hyperparameters, **typed)


def read_seeds(text: str) -> list[int]:
    """`5` -> [0, 1, 2, 3, 4]; `100-102` -> [100, 101, 102]; `3,7` -> [3, 7].

    Raises:
        UserError: it is none of these.
    """
    try:
        if "," in text:
            found = [int(t) for t in text.split(",") if t.strip()]
        elif "-" in text.strip():
            first, last = (int(t) for t in text.split("-"))
            found = list(range(first, last + 1))
        else:
            found = list(range(int(text)))
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found):
        raise UserError(f"--seeds is '{text}'; write how many (5), a range (100-104) or a list (3,7).")
    return found


def split_methods(methods: tuple[str, ...], extra: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Click puts the values of options that it does not know among the arguments: sort them out again."""
    words = [*methods, *[e for e in extra if e not in methods]]
    first = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    return tuple(words[:first]), words[first:]
