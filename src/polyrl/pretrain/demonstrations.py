"""A fixed set of demonstrations: an expert's answers to a few prompts of a task."""

from __future__ import annotations

from dataclasses import dataclass

from polyrl.models.language.pairs import PairIds
from polyrl.models.language.policy import Backbone
from polyrl.tasks.language.base import LanguageTask, Row
from polyrl.tasks.language.formats import template_columns

STREAM = 3_000_003
"""Added to a run's seed: demonstrations are of other prompts than training, pretraining and learned rewards."""


@dataclass(frozen=True)
class Demonstration:
    """A row of the task and an expert's answer to it, kept beside the row: its columns belong to the data."""

    row: Row
    answer: str


def demonstrations(task: LanguageTask, seed: int, count: int) -> list[Demonstration]:
    """Rows of the train split with the task's worked answers.

    Raises:
        UserError: the data has no answers.
    """
    rows = task.rows("train", STREAM + seed, 0, count)
    return [Demonstration(row, task.worked(row)) for row in rows]


def demonstration_ids(reader: Backbone, shown: Demonstration) -> PairIds:
    """A demonstration as token ids: the chosen response of a pair without a rejected one."""
    row = shown.row
    answer = reader.encode_response(row["prompt"], shown.answer, **template_columns(row))
    return PairIds(reader.encode_row(row), answer, [])
