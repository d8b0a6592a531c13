"""Options that several commands share, and the command line as a way of asking (`polyrl.request`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyrl.errors import UserError
from polyrl.runtime.executor import LOCAL
from polyrl.runtime.options import HOW as HOW_IT_IS_RUN
from polyrl.runtime.options import OPTIONS, Option
from polyrl.runtime.options import SEED as SEED_OF_A_RUN
from polyrl.runtime.options import WHAT as WHAT_IS_ASKED

if TYPE_CHECKING:
    from polyrl.phases import RunPhase
    from polyrl.request import Asked, Frontend, Request


def options(*chosen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


def typed(option: Option) -> Callable[[Any], Any]:
    """An option of a run as the command line has it."""
    if option.kind is bool:
        return click.option(f"--{option.name}", is_flag=True, help=option.help)
    kind = click.Choice(option.values) if option.values else option.kind
    return click.option(f"--{option.name}", type=kind, metavar=option.metavar, multiple=option.many, help=option.help)


WHAT = options(*map(typed, WHAT_IS_ASKED))
HOW = options(*map(typed, HOW_IT_IS_RUN))
SEED = typed(SEED_OF_A_RUN)
TRUST = click.option(
    "--trust-code", is_flag=True, help="run the code that RUN names, though you have not run it before"
)
FOLDER = options(
    click.option("--out", type=click.Path(path_type=Path), help="folder to write  [runs/...]"),
    click.option("--overwrite", is_flag=True, help="replace what the folder holds"),
    click.option("--quiet", is_flag=True, help="show warnings only"),
)

EXECUTOR = options(
    click.option(
        "--executor",
        metavar="NAME",
        default=LOCAL,
        help="who makes the runs: local; ray or ray://HOST:PORT; or plan, which writes a shell line for each  [local]",
    ),
    click.option("--workers", type=int, help="runs at a time  [cores / threads]"),
)


def read_command(
    methods: tuple[str, ...], rest: list[str], ctx: click.Context, given: dict[str, Any], *, several: bool = False
) -> Request:
    """What was typed: methods, options that click has read, and `--hyperparameter value` among the rest.

    The one method may be a recipe file, whose settings hold where the command says nothing else.

    Raises:
        UserError: a word that belongs to no option, an option that the methods do not have, or one without a value.
    """
    from polyrl.request import is_recipe_file, read

    frontend, asked = _asked(methods, rest, ctx, given, several=several)
    for method in filter(is_recipe_file, methods):
        if several:
            raise UserError(f"{method} is a recipe file, which `polyrl train` takes; compare methods by their names.")
        from polyrl.recipe_file import read_recipe_file

        frontend, asked = read_recipe_file(method, asked, frontend, trust_code=bool(given.get("trust_code")))
    if given.get("trust_code") and not any(map(is_recipe_file, methods)):
        raise UserError("--trust-code is for code that a recipe file names; what the command names runs anyway.")
    return read(frontend, asked)


def _asked(
    methods: tuple[str, ...], rest: list[str], ctx: click.Context, given: dict[str, Any], *, several: bool = False
) -> tuple[Frontend, Asked]:
    """What was typed, unread, and the words in which its mistakes are told."""
    from polyrl.request import Asked
    from polyrl.runtime.budget import Budget

    frontend, hyperparameters = command_line(rest, ctx)
    settings: dict[str, Any] = {}
    for option in OPTIONS:
        value = given.get(option.keyword)
        if value is not None and value is not False and value != ():  # 0 was typed
            settings[option.of] = not value if option.opposite else value
    if "budget" in settings:
        Budget.parse(settings["budget"])  # an empty one would be taken for none
    return frontend, Asked(methods, settings, hyperparameters, several=several)


def read_phased(method: str, rest: list[str], ctx: click.Context, given: dict[str, Any]) -> list[RunPhase] | None:
    """The phases that were typed, `sft,dpo`, or that a recipe file lists; None where one run was asked for.

    Raises:
        UserError: what `read_command` refuses, of the phase that it is of.
    """
    from polyrl.catalogue import check_names
    from polyrl.phases import asked_of_phases, read_phases, split_phases
    from polyrl.recipe_file import read_phases as of_file
    from polyrl.request import is_recipe_file

    methods = split_phases(method)
    if len(methods) < 2 and not is_recipe_file(method):
        return None
    frontend, asked = _asked((method,), rest, ctx, given)
    if is_recipe_file(method):
        said = of_file(method, asked, frontend, trust_code=bool(given.get("trust_code")))
        return None if said is None else read_phases(said)
    if given.get("trust_code"):
        raise UserError("--trust-code is for code that a recipe file names; what the command names runs anyway.")
    frontend.check_rest()
    for one in methods:
        check_names(one)
    return read_phases([(frontend, one) for one in asked_of_phases(asked, methods)])


def command_line(rest: list[str], ctx: click.Context) -> tuple[Frontend, dict[str, str]]:
    """`["--clip-range", "0.1"]` -> {"clip-range": "0.1"}, and the words in which the command's mistakes are told."""
    from polyrl.request import Frontend

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
        found[name] = value

    class CommandLine(Frontend):
        def written(self, name: str) -> str:
            return name.replace("_", "-")

        def unknown(self, name: str, methods: str) -> str:
            return f"--{self.written(name)} is no option and no hyperparameter of {methods}."

        def last_hint(self, method: str) -> str:
            return f" `polyrl show {method}` lists them."

        def check_rest(self) -> None:
            if odd:
                raise UserError(
                    f"Do not know what to do with '{odd[0]}'; `polyrl {ctx.info_name} --help` shows the usage."
                )
            if without:
                raise UserError(f"The option --{without[0]} has no value; write --{without[0]} VALUE.")

    own = [o.lstrip("-") for p in ctx.command.params for o in p.opts if o.startswith("--")]
    return CommandLine(f"polyrl {ctx.info_name}", own), found


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
