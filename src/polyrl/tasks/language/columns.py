"""Names of columns: those of the data, those that stages make, and what rewards are told of both.

A reward is called as `f(prompts=..., completions=..., **columns)`: the data's columns and what sessions of tools report
share one list of keywords there, and there alone. So a name that both have is refused, and names that the call itself
uses belong to no column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polyrl.errors import UserError

MADE = ("prompt", "completion")
"""Columns that every sampled batch has: what was asked, and the text that was sampled."""

CALLED_WITH = {
    "prompts": "rewards are called with the prompts under it",
    "completions": "rewards are called with the sampled responses under it",
    "completion_ids": "rewards know the sampled tokens under it",
    "trainer_state": "rewards know how far the run is under it",
    "log_extra": "rewards show values beside responses by it",
    "log_metric": "rewards log numbers by it",
    "completions_a": "preference functions are called with the first responses under it",
    "completions_b": "preference functions are called with the second responses under it",
}
"""Keywords that a reward or preference function knows what was sampled by: no column of the data has these names."""


def check_data_names(where: str, names: Collection[Any]) -> None:
    """Raise `UserError` where a column of the data has a name that cannot be passed on as what it is."""
    for name in names:
        if not isinstance(name, str):
            raise UserError(
                f"{where}: the column {name!r} must be named by text, since rewards are told it by its name."
            )
        if name in CALLED_WITH:
            raise UserError(f"{where}: the column '{name}' must have another name, since {CALLED_WITH[name]}.")


def check_reported_names(names: Collection[str]) -> None:
    """Raise `UserError` where a tool's session reports something under a name that is taken."""
    for name in names:
        if name in MADE or name in CALLED_WITH:
            raise UserError(
                f"A tool's session reports '{name}', which is the name of what was sampled; report it as another."
            )


def told_columns(task_rows: Sequence[Mapping[str, Any]], made: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the columns that rewards and checkers are told beside prompts and completions.

    Args:
        task_rows: the task's row of each response; a column that a row does not have is None there.
        made: columns that stages made, such as `calls`; `prompt` and `completion` are passed over.

    Raises:
        UserError: the data and a stage have a column of the same name.
    """
    named = dict.fromkeys(name for row in task_rows for name in row if name != "prompt")
    found = {name: [row.get(name) for row in task_rows] for name in named}
    for name, values in made.items():
        if name in MADE:
            continue
        if name in found:
            raise UserError(
                f"The data has a column '{name}', and what happens in a response is told under the same name; rename "
                "the column of the data."
            )
        found[name] = list(values)
    return found
