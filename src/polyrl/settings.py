"""Settings as a person types them: text to typed values, and `name(setting=value, ...)`."""

from __future__ import annotations

import re
import types
import typing
from typing import Any, Literal

from polyrl.errors import UserError

_BRITISH = re.compile(r"(optim|normal|regular|initial|quant)is(?=e|ation|ing)")


def american(name: str) -> str:
    """A name in American spelling: `normalise_score`, as versions before 0.2 wrote it, is `normalize_score`."""
    return _BRITISH.sub(r"\1iz", name)


def with_present_names(config: dict[str, Any]) -> dict[str, Any]:
    """The contents of a config.yaml, with what versions before 0.2 called otherwise under the names of today."""
    return {"domain" if key == "wing" and "domain" not in config else key: value for key, value in config.items()}


def parse_value(owner: str, name: str, kind: Any, text: Any) -> Any:
    """Turn a hyperparameter, its text or a value, into its type.

    Types are int, float, bool, str, Literal, tuple of strings, set of strings (written `a+b`), and each of them or
    None. A value of any other type is read as its text is, so that Python and the command line refuse and round alike.

    Raises:
        UserError: it is of another type; named as `owner.name`, or as `name` where nobody owns it.
    """
    if not isinstance(text, str):
        if _is_of(kind, text):
            return text
        text = as_text(text)
    called = f"{owner}.{name}" if owner else name
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text.lower() in ("none", "null", ""):
            return None
        return parse_value(owner, name, next(a for a in arguments if a is not type(None)), text)
    if origin is Literal:
        if text not in arguments and american(text) in arguments:
            return american(text)
        if text not in arguments:
            raise UserError(f"{called} is '{text}' but must be one of {', '.join(arguments)}.")
        return text
    if origin is tuple:
        return tuple(text.split(",")) if text else ()
    if origin is frozenset:
        return frozenset(filter(None, (word.strip() for word in text.split("+"))))
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind is int:
            number = float(text)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is float:
            return float(text)
    except (KeyError, ValueError, OverflowError):
        raise UserError(
            f"{called} is '{text}' but must be {'a' if kind is not int else 'an'} {kind.__name__}."
        ) from None
    return text


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of this very type already; of a type that no text is read as, whatever it is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(one, value) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple)
    if origin is Literal:
        return value in arguments
    if kind in (int, float, bool, str):
        return type(value) is kind
    return not isinstance(kind, type) or isinstance(value, kind)


def as_text(value: Any) -> str:
    """A value as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def parse_call(text: str) -> tuple[str, dict[str, str]]:
    """`countdown(difficulty=4, format_reward=true)` -> ("countdown", {"difficulty": "4", "format_reward": "true"}).

    Raises:
        UserError: what stands in the parentheses cannot be read.
    """
    name, opened, rest = text.partition("(")
    if opened and not rest.endswith(")"):
        raise UserError(f"Cannot read '{text}'; close the parenthesis, as in {name}(setting=value).")
    return name.strip(), parse_settings(rest[:-1] if opened else "", name)


def parse_settings(text: str, owner: str) -> dict[str, str]:
    """`a=1, b=x` -> {"a": "1", "b": "x"}; `owner` is named in the error."""
    found: dict[str, str] = {}
    for item in filter(None, (t.strip() for t in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"Cannot read '{item}'; write settings like {owner}(setting=value).")
        found[american(key.strip().replace("-", "_"))] = value.strip()
    return found
