"""Responses to be imitated: an expert's answers to a few prompts of a task, and completions of the user's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyrl.errors import UserError
from polyrl.models.language.pairs import PairIds, check_fits
from polyrl.models.language.policy import Backbone
from polyrl.models.language.responses import GivenResponses, ResponseIds
from polyrl.pretrain.solutions import demonstration
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.base import LanguageTask, Row
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.formats import messages_of, template_columns
from polyrl.tasks.language.left_out import UNUSABLE, DataRow, place_of

STREAM = 3_000_003
"""Added to a run's seed: demonstrations are of other prompts than training, pretraining and learned rewards."""
COMPLETIONS = 4_000
"""Worked completions of a built-in task that are imitated where nobody says how many."""
HELD_OUT = 500
"""Worked completions of a built-in task that the likelihood of held-out ones is measured on, at most."""
NLL_METRIC = Metric(
    key="eval/nll", label="held-out negative log-likelihood a token", unit="nats", higher_is_better=False
)


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


# ---------------------------------------------------------------------------------- all that a method may imitate


def give_completions(
    task: LanguageTask, *, seed: int, held_out_seed: int, count: int | None = None, checker: bool = False
) -> None:
    """Set the task's `completions`.

    Of the user's data they are the column `completion`, the chosen responses of pairs, the responses labelled true, or
    else `solution` or `answer`; nothing but the likelihood of held-out ones judges a run then, unless the data has
    answers beside them or there are rewards. Of a built-in task they are worked out, those of a seed its own.

    Args:
        task: is given them, once.
        seed: of the run.
        held_out_seed: of the prompts that runs are judged on.
        count: how many are trained on; None: all of the data, `COMPLETIONS` of a task.
        checker: whether somebody asked that responses be compared with the completions.

    Raises:
        UserError: a row has none.
    """
    if task.completions:
        return
    if not isinstance(task, DatasetTask):
        size = task.size("test")
        held = task.rows("test", held_out_seed, 0, HELD_OUT if size is None else min(HELD_OUT, size))
        task.completions = {"train": task.rows("train", STREAM + seed, 0, count or COMPLETIONS), "test": held}
        return
    if task.labelled:
        task.labelled = {}  # from here on both kinds need not be there
        task.keep_rows(lambda row: None if row["label"] else ("for being labelled false", place_of(row)))
    if task.skip_bad_rows:
        task.keep_rows(lambda row: None if _completed(task, row) else (UNUSABLE, _without_completion(row)))
    for rows in (task.train_rows, task.test_rows):
        found = [_completed(task, row) for row in rows]
        if None in found:
            raise UserError(_without_completion(rows[found.index(None)]))
        rows[:] = [row for row in found if row is not None]
    del task.train_rows[count or len(task.train_rows) :]
    task.completions = {"train": task.train_rows, "test": task.test_rows}
    if task.compares_completions and not checker:  # whoever imitates a text need not hit it letter by letter
        task.rewards, task.checker = [], None
    if not task.rewards:
        task.metric = NLL_METRIC


def _completed(task: DatasetTask, row: Row) -> Row | None:
    """The row with its `completion`; None where it has none."""
    row = DataRow(messages_of(row, ("completion",)), place_of(row))
    if row.get("chosen") is not None:
        row |= {"completion": row["chosen"], "completion_ended": row.get("chosen_ended")}
    elif row.get("completion") is None:
        try:
            row["completion"] = task.worked(row)
        except UserError:
            return None
    return row


def _without_completion(row: Row) -> str:
    columns = ", ".join(name for name in row if row[name] is not None)
    return (
        f"{place_of(row)}: there is nothing to imitate; give the columns prompt and completion, or messages that end "
        f"with the assistant's (it has {columns})."
    )


class WorkedResponses(GivenResponses):
    """Worked completions of a built-in task; what a tool would write is read and not learned."""

    def __init__(self, reader: Backbone, rows: Sequence[Mapping[str, Any]], label: str, *, task: LanguageTask):
        """`task` works out the rows; `label` names them in errors."""
        super().__init__(reader, rows, label, max_tokens=task.max_tokens)
        self.task = task

    def encode(self, row: Mapping[str, Any], where: str) -> ResponseIds:
        """The row's prompt and worked completion as token ids."""
        found = demonstration(self.reader, self.task, dict(row), self.task.worked(dict(row)))
        prompt, ids, learned = [*found[0]], [*found[1]], [*found[2]] if len(found) == 3 else [True]
        check_fits(where, self.reader, prompt, ids, "response", "row")
        return ResponseIds(prompt, ids, own=None if all(learned) else learned)
