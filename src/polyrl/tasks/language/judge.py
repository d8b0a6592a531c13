"""Preference functions: which of two completions is better, as a probability.

A preference function is called as `f(prompts=[...], completions_a=[...], completions_b=[...], **columns)` and returns,
for each prompt, the probability from 0 to 1 that the first completion beats the second. For a conversational prompt (a
list of messages) a completion is `[{"role": "assistant", "content": text}]`, as for rewards.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Preference
from polyrl.tasks.language.phrases import a_kind, counted, reason_of
from polyrl.tasks.language.rewards import parameters_of
from polyrl.tasks.user_code import load_function


def compared(
    preference: Preference,
    prompts: Sequence[Any],
    completions_a: Sequence[str],
    completions_b: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float]:
    """Return the probability that each a beats its b; the function sees those of `columns` that it has names for.

    Raises:
        UserError: the function raises, or returns something else than one number from 0 to 1 for each prompt.
    """
    parameters = parameters_of(preference.function)
    if parameters is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        takes = {p.name for p in parameters}
        columns = {name: values for name, values in columns.items() if name in takes}
    a, b = (
        [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        for texts in (completions_a, completions_b)
    )
    try:
        result: Any = preference.function(
            prompts=list(prompts),
            completions_a=a,
            completions_b=b,
            **{name: list(values) for name, values in columns.items()},
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The preference '{preference.name}' raised {reason_of(error)}.") from error
    return _checked(preference.name, result, len(prompts))


def _checked(name: str, result: Any, size: int) -> list[float]:
    if hasattr(result, "tolist"):  # arrays of NumPy and torch
        result = result.tolist()
    if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Collection):
        raise UserError(f"The preference '{name}' returned {a_kind(result)} where a list of probabilities belongs.")
    found = list(result)
    if len(found) != size:
        raise UserError(
            f"The preference '{name}' returned {counted(len(found), 'value')} for {counted(size, 'comparison')}."
        )
    for i, value in enumerate(found):
        if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
            said = f"{float(value):g}" if isinstance(value, numbers.Real) else a_kind(value)
            raise UserError(
                f"The preference '{name}' returned {said} for comparison {i + 1}; it must be the probability, from 0 "
                "to 1, that the first completion beats the second."
            )
    return [float(value) for value in found]


def load_preference(spec: str) -> Preference:
    """Return the preference that `spec` names: `package.module:function` or `path/to/file.py:function`.

    Raises:
        UserError: it cannot be imported or is no function.
    """
    return Preference(spec.rpartition(":")[2], load_function(spec, "preference"))
