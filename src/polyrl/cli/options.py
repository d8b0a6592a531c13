"""Options that several commands share, and what was typed turned into methods, seeds and a run's config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from polyrl.errors import UserError, nearest
from polyrl.names_elsewhere import option_elsewhere
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
    click.option("--prompt-column", metavar="NAME", help="column of --dataset with the prompt  [prompt]"),
    click.option("--answer-column", metavar="NAME", help="column of --dataset with the right answer  [answer]"),
    click.option("--system-prompt", metavar="TEXT", help="first message of prompts that have no system message"),
    click.option("--no-chat-template", is_flag=True, help="leave plain prompts as they are"),
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
    click.option(
        "--budget", help="what ends a run: samples=, tokens=, steps=, reward_calls=, queries=, seconds=, updates="
    ),
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


def read_hyperparameters(methods: tuple[str, ...], rest: list[str], ctx: click.Context) -> dict[str, str]:
    """`["--clip-range", "0.1"]` -> {"clip_range": "0.1"}.

    Raises:
        UserError: a word that belongs to no option, an option that the methods do not have, or one without a value.
    """
    from polyrl.catalogue import build, check_names
    from polyrl.stated_names import stated_names

    for method in methods:
        check_names(method)
    found: dict[str, str] = {}
    without: list[str] = []
    odd: list[str] = []
    items = [*rest]
    while items:
        item = items.pop(0)
        if not item.startswith("--"):
            odd.append(item)
            continue
        name, eq, value = item[2:].partition("=")
        if not eq and (not items or items[0].startswith("--")):
            without.append(name)
        elif not eq:
            value = items.pop(0)
        found[american(name.replace("-", "_"))] = value
    domains = _domains(methods, ctx) if found else {}
    stated = [stated_names(m, domain) for m, domain in domains.items()]
    if None not in stated:  # what there is not has neither value nor words behind it, and nothing is imported to say so
        _check_known(domains, found, {n for names in stated for n in names or ()}, ctx, whole=False)
    if odd:
        raise UserError(f"Do not know what to do with '{odd[0]}'; `polyrl {ctx.info_name} --help` shows the usage.")
    if without:
        raise UserError(f"The option --{without[0]} has no value; write --{without[0]} VALUE.")
    if found:
        recipes = [build(m, domain=domain) for m, domain in domains.items()]
        known = {k for r in recipes for key in r.hyperparameters() for k in (key, key.rpartition(".")[2])}
        _check_known(domains, found, known, ctx, whole=True)
    return found


def _domains(methods: tuple[str, ...], ctx: click.Context) -> dict[str, str]:
    """The kind of task that each method is to run on."""
    from polyrl.catalogue import default_task
    from polyrl.tasks import domain_of

    task = ctx.params.get("task")
    return {method: domain_of(task or default_task(method)) for method in methods}


def _check_known(
    domains: dict[str, str], given: dict[str, str], names: set[str], ctx: click.Context, *, whole: bool
) -> None:
    """Refuse what is not among the names of hyperparameters; only its last word is looked up, unless `whole`.

    Raises:
        UserError: there is none of that name; with what another library means by it, or the nearest one.
    """
    known = names | {k.replace("-", "_") for k in names}
    own = [o.lstrip("-") for p in ctx.command.params for o in p.opts if o.startswith("--")]
    for name, value in given.items():
        if name in known or (not whole and name.rpartition(".")[2] in known):
            continue
        typed, methods = name.replace("_", "-"), [*domains]
        kinds = {*domains.values()}
        shown = {*known, *(o.replace("-", "_") for o in own)}
        said = option_elsewhere(name, kinds.pop() if len(kinds) == 1 else None, shown, value)
        said = said or nearest(typed, [*own, *(k.replace("_", "-") for k in known)])
        said = said or f" `polyrl show {methods[0]}` lists them."
        raise UserError(f"--{typed} is no option and no hyperparameter of {' or '.join(methods)}.{said}")


def config_of(methods: tuple[str, ...], given: dict[str, Any], hyperparameters: dict[str, str]) -> Any:
    """The config of the run, or of all runs of several methods, from what was typed; the rest keeps its default."""
    from polyrl.catalogue import task_with_data
    from polyrl.runtime.budget import Budget
    from polyrl.runtime.config import RunConfig

    typed = {k: v for k, v in given.items() if v is not None}
    if typed.pop("eval_sampled", False):
        typed["eval_greedy"] = False
    for flag, field in (("no_tensorboard", "tensorboard"), ("no_chat_template", "chat_template")):
        if typed.pop(flag, False):
            typed[field] = False
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
