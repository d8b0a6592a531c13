"""Preference functions: which of two completions is better, as a probability.

A preference function is called as `f(prompts=[...], completions_a=[...], completions_b=[...], **columns)` and returns,
for each prompt, the probability from 0 to 1 that the first completion beats the second. For a conversational prompt (a
list of messages) a completion is `[{"role": "assistant", "content": text}]`, as for rewards. It is called as rewards
are: in a process of its own, within a time limit, with the same policy for what fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.base import Preference, content
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.calling import Answer, Caller, read_number, row_by_row
from polyrl.tasks.language.phrases import shortened
from polyrl.tasks.user_code import load_function

EVEN = 0.5
"""Probability of a comparison that says nothing."""


class PreferenceRunner:
    """Calls a preference function and finds the comparisons that it fails on.

    Under the policy "stop" the first one raises `UserError`; under "drop" its probability is NaN, which leaves it out;
    under "zero" it is even.
    """

    def __init__(self, preference: Preference, policy: CallPolicy | None = None):
        self.preference, self.policy = preference, policy or CallPolicy()
        function = preference.function
        self._caller = Caller("preference", preference.name, function, _probability, self.policy, "comparison")

    def start(self) -> PreferenceRunner:
        """Start the function's process, where it has one."""
        self._caller.start()
        return self

    def close(self) -> None:
        """End it."""
        self._caller.close()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions_a: Sequence[str],
        completions_b: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float]:
        """Return the probability that each a beats its b; the function sees those of `columns` that it has names for.

        Raises:
            UserError: the function fails on a comparison, and the policy is to stop.
        """
        a, b = (
            [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            for texts in (completions_a, completions_b)
        )

        def call(rows: slice) -> list[Answer]:
            sides = {"prompts": list(prompts[rows]), "completions_a": a[rows], "completions_b": b[rows]}
            some = {name: list(values[rows]) for name, values in columns.items()}
            return self._caller(len(sides["prompts"]), {**sides, **some})

        def stop(row: int, reason: str) -> None:
            if self.policy.on_error == "stop":
                prompt = prompts[row]
                text = shortened(prompt if isinstance(prompt, str) else content(prompt[-1:]))
                raise UserError(
                    f"The preference '{self.preference.name}' failed on comparison {row + 1} of {len(prompts)} in the "
                    f"batch (prompt {text}): {reason}."
                )

        answers = row_by_row(self._caller, call, len(prompts), stop)
        failed = math.nan if self.policy.on_error == "drop" else EVEN
        return [answer if isinstance(answer, float) else failed for answer in answers]


def compared(
    preference: Preference,
    prompts: Sequence[Any],
    completions_a: Sequence[str],
    completions_b: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    policy: CallPolicy | None = None,
) -> list[float]:
    """Compare once: see `PreferenceRunner`, which keeps the function's process for more."""
    runner = PreferenceRunner(preference, policy)
    try:
        return runner(prompts, completions_a, completions_b, columns)
    finally:
        runner.close()


def _probability(value: Any) -> Answer:
    """The answer as a probability; a text says what is wrong with it."""
    number = read_number(value)
    if isinstance(number, float) and 0 <= number <= 1:
        return number
    if isinstance(number, str) and not number.startswith(("returned nan", "returned inf", "returned -inf")):
        return number.replace("a number or None", "a probability")
    said = (
        "None" if number is None else f"{number:g}" if isinstance(number, float) else number.removeprefix("returned ")
    )
    return (
        f"returned {said} where a probability belongs, a number from 0 to 1, that the first completion beats the second"
    )


def load_preference(spec: str) -> Preference:
    """Return the preference that `spec` names: `package.module:function` or `path/to/file.py:function`.

    Raises:
        UserError: it cannot be imported or is no function.
    """
    return Preference(spec.rpartition(":")[2], load_function(spec, "preference"))
