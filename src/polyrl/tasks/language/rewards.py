"""Reward functions: the built-in ones and the user's own.

A reward function has TRL's signature: it is called as `f(prompts=[...], completions=[...], **columns)` and returns one
number per completion, or None where it does not apply. It may be a coroutine. For a conversational prompt (a list of
messages) the completion is `[{"role": "assistant", "content": text}]`. One of the user's own is also told
`completion_ids` and `trainer_state`, and may log by `log_extra` and `log_metric` (`run_facts`).
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.base import Reward, content
from polyrl.tasks.language.checkers import CHECKERS, accepted, agrees, truth_column
from polyrl.tasks.language.math_process import check_installed
from polyrl.tasks.language.phrases import quoted
from polyrl.tasks.language.run_facts import ARGUMENTS
from polyrl.tasks.user_code import load_function

_log = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# Built-in rewards
# ---------------------------------------------------------------------------------------------------------------------


def built_in(name: str, weight: float = 1.0) -> Reward:
    """Return the reward of that checker: 1 where the completion agrees with the answer, or any of several, else 0.

    Where a row has no answer it does not apply. Raises `UserError` where the checker needs an extra that is missing.
    """
    if name == "math":
        check_installed()

    def function(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        where = truth_column(columns)
        if where is None:
            raise UserError(
                f"The reward '{name}' needs a column 'answer' (or 'solution') in the data; "
                f"it has {', '.join(sorted(columns)) or 'only the prompt'}."
            )
        found: list[float | None] = []
        for completion, truth in zip(completions, columns[where], strict=True):
            answers = accepted(truth)
            found.append(float(agrees(name, content(completion), answers)) if answers else None)
        return found

    function.__name__ = name
    return Reward(name, function, weight, checker=name)


# ---------------------------------------------------------------------------------------------------------------------
# The user's own rewards
# ---------------------------------------------------------------------------------------------------------------------


def load_reward(spec: str) -> Reward:
    """Return the reward that `spec` names.

    `spec` is the name of a checker (`CHECKERS`), or `package.module:function`, or `path/to/file.py:function`; a weight
    can follow: `rewards.py:short=0.5`. A file is run as Python code. Folders of reward models are read by
    `polyrl.pretrain.reward_models.load_reward`. Raises `UserError` if the function cannot be imported, is not there,
    cannot be called or has another signature than TRL's.
    """
    name, weight = split_weight(spec)
    if name in CHECKERS:
        return built_in(name, weight)
    place, colon, function_name = name.rpartition(":")
    if not colon or not place or not function_name:
        raise UserError(
            f"There is no reward '{name}'.{nearest(name, CHECKERS)} Give one of {', '.join(CHECKERS)}, "
            "'package.module:function', 'path/to/file.py:function' or the folder of a reward model."
        )
    function = load_function(name, "reward")
    check_signature(function_name, function)
    return Reward(function_name, function, weight)


class NotLoaded(UserError):
    """A reward of the user's own was called where its code was not to be run."""


def unloaded_reward(spec: str) -> Reward:
    """The reward that `spec` names, without its code: it has name and weight, and raises `NotLoaded` when called."""
    name, weight = split_weight(spec)
    if name in CHECKERS:
        return built_in(name, weight)

    def refuse(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        raise NotLoaded(f"The reward '{name}' was not loaded.")

    return Reward(name.rpartition(":")[2], refuse, weight)


def check_signature(name: str, function: Callable[..., Any], columns: Sequence[str] | None = None) -> None:
    """Raise `UserError` unless `function` can be called as `f(prompts=..., completions=..., **columns)`.

    With `columns`, the columns of the data, every parameter without a default must be one of them.
    """
    parameters = parameters_of(function)
    if parameters is None:
        return
    kinds = inspect.Parameter
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_position = [p.name for p in required if p.kind is kinds.POSITIONAL_ONLY]
    if by_position:
        raise UserError(
            f"The reward '{name}' takes {quoted(by_position)} by position only; rewards are called by keyword: "
            "f(prompts=..., completions=..., **columns)."
        )
    takes = {p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        missing = [n for n in ("prompts", "completions") if n not in takes]
        if missing:
            raise UserError(
                f"The reward '{name}' does not accept {quoted(missing)}; its signature must be "
                "f(prompts, completions, **columns)."
            )
    if columns is None:
        return
    unknown = [p.name for p in required if p.name not in ("prompts", "completions", *ARGUMENTS, *columns)]
    if unknown:
        raise UserError(
            f"The reward '{name}' needs {quoted(unknown)}, which the data does not have; its columns are "
            f"{', '.join(sorted(columns)) or 'only the prompt'}."
        )
    taken = _name_of_itself(function)
    if taken in columns and any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        raise UserError(
            f"The reward '{name}' is a method whose own first parameter is '{taken}', and the data has a column of "
            "that name; rename the column, or give a plain function."
        )


def _name_of_itself(function: Callable[..., Any]) -> str | None:
    """Name by which a bound method, or an object that can be called, knows itself; None for a plain function."""
    called = function.func if isinstance(function, functools.partial) else function
    if inspect.ismethod(called):
        own = parameters_of(called.__func__)
    elif inspect.isroutine(called) or inspect.isclass(called):
        return None
    else:
        own = parameters_of(type(called).__call__)
    return own[0].name if own and own[0].kind is own[0].POSITIONAL_OR_KEYWORD else None


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The function's parameters, or None where Python cannot tell (built in C)."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C do not tell; let the call decide
        return None


def split_weight(spec: str) -> tuple[str, float]:
    """The name and the weight of a reward as it is asked for: `rewards.py:short=0.5`, 1 where there is none.

    Raises:
        UserError: the weight is no number.
    """
    name, equals, text = spec.rpartition("=")
    if not equals:
        return spec, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"The weight of the reward '{name}' must be a number, not '{text}'.")
    return name, weight
