"""Responses that were judged one by one, good or bad: TRL's unpaired preference data, `prompt`, `completion`, `label`.

No response has a partner, so a thumb up or down is enough. A preference pair is two such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.base import Row
from polyrl.tasks.language.dataset import LABELS, DatasetTask, checked, held_out, prompt_hash
from polyrl.tasks.language.formats import (
    SIDES,
    check_response,
    check_template_columns,
    is_empty,
    messages_of,
    response_of,
)
from polyrl.tasks.language.left_out import DataRow, place_of

LABEL_METRIC = Metric(key="eval/auc", label="held-out labels told apart (AUC)", unit="share")
BOTH = {True, False}


@dataclass
class LabelledDataset(DatasetTask):
    """The user's responses that are labelled true (desirable) or false, in TRL's columns.

    Both splits have responses of both kinds. Without rewards, a run is judged by how well the policy's log-ratios to
    its start tell held-out labels apart.
    """

    def __post_init__(self) -> None:
        """Load, check and split the responses."""
        self.data = checked(self.data, "the data", self.skipped, checked_row, "labelled response", self.columns)
        if self.test_data is not None:
            self.test_data = checked(
                self.test_data, "the test data", self.skipped, checked_row, "labelled response", self.columns
            )
        super().__post_init__()
        self.labelled = {"train": self.train_rows, "test": self.test_rows}
        self._check_kinds()
        if not self.rewards:
            self.metric = LABEL_METRIC

    def hold_out(self, rows: list[Row], label: str) -> tuple[list[Row], list[Row]]:
        """Hold out a tenth of the prompts, and one more where these have responses of one kind alone.

        That is the next one by its hash that has a response of the other kind and leaves both kinds for training.
        """
        train, test = held_out(rows, label)
        held, missing = {prompt_hash(row) for row in test}, BOTH - _kinds(test)
        for candidate in sorted({prompt_hash(row) for row in train if row["label"] in missing}):
            left = [row for row in train if prompt_hash(row) != candidate]
            if _kinds(left) == BOTH:
                return left, [row for row in rows if prompt_hash(row) in {*held, candidate}]
        return train, test

    def keep_rows(self, judge: Callable[[Row], tuple[str, str] | None]) -> None:
        """Leave out rows, as `DatasetTask.keep_rows`; both kinds must be left, where labels are learned from."""
        super().keep_rows(judge)
        if self.labelled:
            self._check_kinds()

    def _check_kinds(self) -> None:
        """Raise `UserError` where a split has responses of one kind alone."""
        for split, rows in (("training", self.train_rows), ("test", self.test_rows)):
            found = _kinds(rows)
            if len(found) < 2:
                more = f" {' '.join(self.left_out.sentences())}" if self.left_out else ""
                other = str(not found.pop()).lower()
                raise UserError(
                    f"No {split} row is labelled {other}, and without both kinds nothing can be told apart; give "
                    f"{'more rows' if self.test_data is None else f'{split} data'} with both labels.{more}"
                )


def _kinds(rows: Sequence[Row]) -> set[bool]:
    return {row["label"] for row in rows}


def checked_row(where: str, row: Row) -> Row:
    """Return a row with prompt and response in one form, and a `label` that is true or false.

    Raises:
        UserError: it has no response or no label, or they are in no form that is known.
    """
    nothing = {"completion": ("none",), "label": ("none", "", "nan")}  # as tables write it
    for name, blank in nothing.items():
        if str(row.get(name)).strip().lower() in blank:
            known = ", ".join(k for k in row if row[k] is not None and k != name)
            raise UserError(f"{where}: no column '{name}'; it has {known}.")
    row = messages_of(row, ("completion",))
    check_response(where, "completion", row["completion"])
    label = LABELS.get(str(row["label"]).strip().lower())
    if label is None:
        raise UserError(f"{where}: the column 'label' must be true or false, not {row['label']!r}.")
    row = response_of(where, row)
    if is_empty(row["completion"]):
        raise UserError(f"{where}: the column 'completion' is empty; leave the row out, as --skip-bad-rows does.")
    return check_template_columns(where, {**row, "label": label})


def labelled_of_pairs(pairs: Sequence[Row]) -> list[Row]:
    """Return two rows for each preference pair: its chosen response, labelled true, and its rejected one, false.

    As TRL's `unpair_preference_dataset`, but that the two follow one another. Other columns are both rows'.
    """
    found: list[Row] = []
    for row in pairs:
        shared = {k: v for k, v in row.items() if k not in (*SIDES, *(f"{side}_ended" for side in SIDES))}
        for side in SIDES:
            one = {**shared, "completion": row[side], "label": side == "chosen"}
            if row.get(f"{side}_ended") is not None:
                one["completion_ended"] = row[f"{side}_ended"]
            found.append(DataRow(one, place_of(row)))
    return found
