"""What language tasks on the user's own data share: what is said of the data before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.models.language.labelled import LabelledResponses
from polyrl.models.language.pairs import DoesNotFit, FixedPairs, ReferenceLogprobCache, encode_pair
from polyrl.models.language.policy import Backbone
from polyrl.models.language.responses import GivenResponses, encode_completion
from polyrl.pretrain.demonstrations import WorkedResponses
from polyrl.run_state.base import RunState
from polyrl.tasks.language import LanguageTask, Row, Split
from polyrl.tasks.language.checkers import truth_column
from polyrl.tasks.language.dataset import LABELS, DatasetTask
from polyrl.tasks.language.labelled import labelled_of_pairs
from polyrl.tasks.language.left_out import UNUSABLE, place_of

if TYPE_CHECKING:
    from polyrl.recipe import Term
    from polyrl.runtime.chart import Chart


KEPT = "reference-logprobs.safetensors"
"""File of a checkpoint with the reference's log-probabilities of fixed pairs, as far as they are known."""
KEPT_LABELLED = "reference-logprobs-labelled.safetensors"
"""The same of labelled responses."""


class UserDataRunState(RunState):
    """A run state whose task may be the user's own data, and may have preference pairs or labelled responses."""

    task: LanguageTask
    pair_terms: Sequence[Term] = ()
    """The objective's terms that learn from pairs or labels."""

    @property
    def charts(self) -> Sequence[Chart]:
        """The task's."""
        return self.task.charts

    @property
    def reader(self) -> Backbone:
        """The model that reads prompts and responses."""
        raise NotImplementedError

    @cached_property
    def _pairs(self) -> dict[Split, FixedPairs]:
        return {
            split: FixedPairs(
                self.reader, rows, f"the {split} pairs of {self.task.name}", max_tokens=self.task.max_tokens
            )
            for split, rows in self.task.fixed_pairs.items()
        }

    def pairs(self, split: Split) -> FixedPairs:
        """The task's fixed preference pairs.

        Raises:
            UserError: it has none.
        """
        if not self._pairs:
            raise UserError(f"The task '{self.task.name}' has no fixed preference pairs.")
        return self._pairs[split]

    @cached_property
    def _labelled(self) -> dict[Split, LabelledResponses]:
        given = self.task.labelled or {s: labelled_of_pairs(rows) for s, rows in self.task.fixed_pairs.items()}
        return {
            split: LabelledResponses(
                self.reader, rows, f"the {split} responses of {self.task.name}", max_tokens=self.task.max_tokens
            )
            for split, rows in given.items()
        }

    def labelled(self, split: Split) -> LabelledResponses:
        """The task's labelled responses, or those of its preference pairs: chosen ones good, rejected ones bad.

        Raises:
            UserError: it has neither.
        """
        if not self._labelled:
            raise UserError(f"The task '{self.task.name}' has neither labelled responses nor fixed preference pairs.")
        return self._labelled[split]

    @cached_property
    def _completions(self) -> dict[Split, GivenResponses]:
        task, found = self.task, dict[Split, GivenResponses]()
        for split, rows in task.completions.items():
            if isinstance(task, DatasetTask):
                label = f"the {split} responses of {task.name}"
                found[split] = GivenResponses(self.reader, rows, label, max_tokens=task.max_tokens)
            else:
                found[split] = WorkedResponses(self.reader, rows, f"the {split} rows of {task.name}", task=task)
        return found

    def completions(self, split: Split) -> GivenResponses:
        """Responses to be imitated, which `give_completions` gave to the task.

        Raises:
            UserError: it has none.
        """
        if not self._completions:
            raise UserError(f"The task '{self.task.name}' has no responses to be imitated.")
        return self._completions[split]

    @property
    def rows_left_out(self) -> int:
        """How many rows of the user's data are not used."""
        return len(self.task.left_out)

    def reference_caches(self) -> dict[str, ReferenceLogprobCache]:
        """What is known of the training rows of data sets, by the checkpoint's file."""
        pairs = {KEPT: self.pairs("train").reference_cache} if self._pairs else {}
        labelled = {KEPT_LABELLED: self.labelled("train").reference_cache} if self._labelled else {}
        return pairs | labelled

    def notices(self) -> list[str]:
        """What is to be said of the data before a run begins: rows that are left out, odd answers, few labels."""
        said = [*self.task.left_out.sentences(), *self.task.notices]
        return [*said, *(more for term in self.pair_terms for more in term.notices(self))]


def fit_rows(
    task: LanguageTask, reader: Backbone, *, room: int = 0, max_prompt_tokens: int | None = None, skip: bool = False
) -> None:
    """Look at every row of the user's data as the model reads it, so that none of them can stop a run later.

    Args:
        task: rows are left out of it, and counted in its `left_out`, those without room apart from others; a task that
            makes its own rows stays as it is.
        reader: the model, which reads prompts and pairs.
        room: tokens that a sampled response may take behind the prompt.
        max_prompt_tokens: rows with longer prompts are left out.
        skip: leave out rows that the model cannot read, or that do not fit into its context.

    Raises:
        UserError: a row that cannot be read or is too long, with its place in the data; or no row is left.
    """
    if not isinstance(task, DatasetTask):
        return
    context = reader.context

    def judge(row: Row) -> tuple[str, str] | None:
        place, why = place_of(row), UNUSABLE
        no_room = f"{UNUSABLE}, for not fitting into the model's context of {context} tokens"
        try:
            size = len(reader.encode_row(row))
        except UserError as error:
            wrong: str | None = f"{place}: {error}"
            size = 0
        else:
            wrong = None
        if max_prompt_tokens is not None and size > max_prompt_tokens:
            return f"for a prompt of more than {max_prompt_tokens} tokens", f"{place} has {size}"
        try:
            if wrong is None and task.fixed_pairs and "chosen" in row:  # pairs may also be sampled for rows without
                encode_pair(reader, row, place)
            if wrong is None and (task.labelled or task.completions):
                encode_completion(reader, row, place)
        except DoesNotFit as error:
            why, wrong = no_room, str(error)
        except UserError as error:
            wrong = str(error)
        if wrong is None and context is not None and size + room > context:
            why, wrong = (
                no_room,
                f"{place}: the prompt has {size} tokens, and with a response of up to {room} it exceeds the model's "
                f"context of {context}; leave such rows out with --max-prompt-tokens or --skip-bad-rows, or lower "
                "--max-tokens.",
            )
        if wrong is None:
            return None
        if not skip:
            raise UserError(wrong)
        return why, wrong

    task.keep_rows(judge)


def check_pairs_can_be_made(task: LanguageTask, method: str, *, judged: bool, labels: bool = False) -> None:
    """Raise `UserError` where a method learns from pairs or labels and the user's data has none and can get none.

    Args:
        task: what there is to learn from.
        method: what to call the method.
        judged: a reward or a preference of the user's own can label pairs of sampled responses.
        labels: it learns from labelled responses, of which a pair has two.
    """
    if not isinstance(task, DatasetTask) or task.fixed_pairs or judged or (labels and task.labelled):
        return
    rows: Sequence[Row] = task.train_rows
    columns = ", ".join(map(str, rows[0]))
    if task.labelled:
        what = "one judged response in each row (unpaired data, which the method kto learns from)"
    elif labels and (odd := _without_label(rows)) is not None:
        what = f"labels that are neither true nor false ({place_of(odd)} has {odd['label']!r})"
    elif truth_column(rows[0]) == "completion":
        what = f"one response in each row and nothing that {'says how good it is' if labels else 'it was preferred to'}"
    elif not task.rewards and task.preference is None:
        what = f"neither {'labels nor ' if labels else ''}pairs nor answers"
    else:
        return  # pairs are sampled, and labelled by the checker
    learns, wanted = "preference pairs", "prompt, chosen and rejected"
    if labels:
        learns, wanted = "responses labelled true or false", f"prompt, completion and label, or {wanted}"
    raise UserError(
        f"'{method}' learns from {learns}, and the data has {what}: give the columns {wanted} (it has {columns}), or "
        "--reward or --preference to label pairs that are sampled."
    )


def _without_label(rows: Sequence[Row]) -> Row | None:
    """The first row with a response whose label is none of true and false."""
    judged = (row for row in rows if row.get("completion") is not None and row.get("label") is not None)
    return next((row for row in judged if str(row["label"]).strip().lower() not in LABELS), None)
