"""The user's own data as a task: prompts from a file or from the Hugging Face hub, answers checked or rewarded.

Columns are TRL's: `prompt` is a string or a list of `{"role", "content"}` messages, and every other column is passed
to the reward functions. Data in GSM8K's form (`question`, and `answer` ending in `#### 18`) is understood as it is.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.base import LanguageTask, Reward, Row, Split, digest, stable_hash
from polyrl.tasks.language.chat import Columns
from polyrl.tasks.language.checkers import (
    CHECKERS,
    accepted,
    agrees,
    is_number,
    last_number,
    truth_column,
    truth_text,
    unfit,
)
from polyrl.tasks.language.columns import check_data_names
from polyrl.tasks.language.data_files import kind_of, read_csv, read_hub, read_json, read_jsonl, read_parquet
from polyrl.tasks.language.formats import (
    check_messages,
    check_template_columns,
    conversation_of,
    implicit_prompt,
    messages_of,
)
from polyrl.tasks.language.left_out import NO_ANSWER, UNUSABLE, DataRow, LeftOut, place_of
from polyrl.tasks.language.math_process import check_installed
from polyrl.tasks.language.reward_runner import RewardRunner
from polyrl.tasks.language.rewards import built_in

_log = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.:%\[\]-]+))?")
_TEST_SHARE = 0.1
AS_NAMED = Columns()
"""Columns under the names that polyrl reads."""


def load_rows(source: str, left_out: LeftOut | None = None, columns: Columns = AS_NAMED) -> list[Row]:
    """Return the rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, or of a data set on the Hugging Face hub.

    A hub data set is `org/name`, with an optional configuration and split: `openai/gsm8k:main@train` (split `train` if
    not given). Parquet and the hub need the extra `data`. Every row has a `prompt`; GSM8K's columns are turned into
    `prompt` (the question and a line break) and `answer` (the final number). Rows that cannot be used are counted in
    `left_out` where it is given. Raises `UserError` that names the file, the row (from 1; the line in a `.jsonl` file)
    and the column.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    hub = _HUB_ID.fullmatch(source)
    if suffix in _SUFFIXES:
        if not path.is_file():
            raise UserError(f"There is no data file '{source}'.")
        reader = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}[suffix]
        rows = reader(path)
    elif path.exists():
        raise UserError(f"The data '{source}' is of an unknown kind; give a file that ends in {', '.join(_SUFFIXES)}.")
    elif hub is not None:
        rows = read_hub(hub["name"], hub["config"], hub["split"] or "train")
    else:
        raise UserError(
            f"There is no data '{source}'; give a file that ends in {', '.join(_SUFFIXES)}, or a data set on the "
            "Hugging Face hub as 'org/name', 'org/name:config' or 'org/name@split'."
        )
    return prepared(source, rows, left_out, columns)


def prepared(
    source: str, rows: Iterable[tuple[int, Any]], left_out: LeftOut | None = None, columns: Columns = AS_NAMED
) -> list[Row]:
    """Return the rows, checked and with the same columns each; `rows` are numbered as their source numbers them.

    Rows that cannot be used are counted in `left_out`; where it is None, the first one is an error.
    """
    ready = []
    for number, row in rows:
        where = (place_of(row) if isinstance(row, DataRow) else "") or f"{source}, row {number}"
        try:
            ready.append(DataRow(_row(where, row, columns), where))
        except UserError as error:
            if left_out is None:
                raise
            left_out.add(UNUSABLE, str(error))
    if not ready:
        more = f" that can be used: {' '.join(left_out.sentences())}" if left_out else "."
        raise UserError(f"The data '{source}' has no rows{more}")
    blank = dict.fromkeys(name for row in ready for name in row)
    return [DataRow({**blank, **row}, row.place) for row in ready]


def _row(where: str, given: Any, columns: Columns) -> Row:
    if isinstance(given, UserError):
        raise given
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: a row must be an object with named columns, not {kind_of(given)}.")
    row = conversation_of(where, messages_of(columns.named(where, dict(given))))
    if "prompt" not in row and "question" in row and "answer" in row:
        row = _from_gsm8k(where, row)
    if row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None:
        row = implicit_prompt(where, row)
    if "prompt" not in row:
        raise UserError(f"{where}: no column 'prompt'; it has {', '.join(map(str, row)) or 'no columns'}.")
    check_data_names(where, row)
    prompt = row["prompt"]
    if isinstance(prompt, list):
        row["prompt"] = check_messages(where, "prompt", prompt)
    elif not isinstance(prompt, str):
        raise UserError(f"{where}: the column 'prompt' must be text or a list of messages, not {kind_of(prompt)}.")
    elif not prompt.strip():
        raise UserError(f"{where}: the column 'prompt' is empty.")
    return check_template_columns(where, row)


def _from_gsm8k(where: str, row: Row) -> Row:
    """Add the prompt; the answer's text becomes the `solution`, and what follows its last `####` the `answer`."""
    question, answer = row["question"], row["answer"]
    if not isinstance(question, str):
        raise UserError(f"{where}: the column 'question' must be text, not {kind_of(question)}.")
    row = {"prompt": question + "\n", **row}
    if not isinstance(answer, str) or "####" not in answer:
        return row
    if last_number(answer) is None:
        raise UserError(f"{where}: the column 'answer' has no number after its '####'.")
    return {"solution": answer, **row, "answer": answer.rpartition("####")[2].strip()}


@dataclass
class DatasetTask(LanguageTask):
    """The user's own prompts.

    Without `test_data`, about a tenth of the prompts, chosen by their hash, is held out for testing: a prompt stays on
    its side when rows are added, and rows with the same prompt stay together. With it, training rows whose prompt is
    also a test prompt are left out, with a warning. The stream goes through all rows in a new order each epoch.
    """

    data: str | Path | Sequence[Row]
    """A file, a hub data set (see `load_rows`), or rows."""
    test_data: str | Path | Sequence[Row] | None = None
    """The same for testing; by default a tenth of `data` is held out."""
    rewards: list[Reward] = field(default_factory=list)
    """Rewards to train on; by default the checker, if the data has answers."""
    checker: str | None = None
    """How a completion is compared with the column `answer`, `solution` or `completion`: see `CHECKERS`. By default
    each answer that is a number is compared as a number; the others are left to the first of `rewards`, or compared as
    texts if there are none."""
    columns: Columns = AS_NAMED
    """Columns of prompt and answer, where they are called otherwise."""
    skip_bad_rows: bool = False
    """Leave out and count rows that cannot be used; otherwise the first one is an error."""
    judged_whole: bool = False
    """Nothing is trained: all rows are test rows, in both splits."""
    max_tokens: int = 256
    """Limit of a completion in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion besides the end token."""
    start_accuracy: float | None = None
    """Accuracy at which supervised pretraining stops; None trains to the end."""

    budget: str = field(default="samples=10000", init=False)
    step_end: str = field(default="\n", init=False)
    name: str = field(default="dataset", init=False)
    difficulty: int = field(default=0, init=False)
    train_rows: list[Row] = field(init=False, repr=False)
    """Rows of the training split, in the order of the data."""
    test_rows: list[Row] = field(init=False, repr=False)
    """Rows of the test split, in the order of the data."""
    left_out: LeftOut = field(init=False, repr=False, default_factory=LeftOut)
    """Rows of the data that are in neither split."""
    notices: list[str] = field(init=False, repr=False, default_factory=list)
    """What else is to be said of the data before a run begins, a sentence each."""
    _truth: str | None = field(init=False, repr=False, default=None)
    _by_reward: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        """Load and split the data and choose the checker."""
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.checker is not None and self.checker not in CHECKERS:
            raise UserError(
                f"There is no checker '{self.checker}'.{nearest(self.checker, CHECKERS)} "
                f"The checkers are {', '.join(CHECKERS)}."
            )
        rows, label = _loaded(self.data, "the data", self.skipped, self.columns)
        if self.judged_whole:
            self.train_rows = self.test_rows = rows
        elif self.test_data is None:
            self.train_rows, self.test_rows = self.hold_out(rows, label)
        else:
            self.test_rows, _ = _loaded(self.test_data, "the test data", self.skipped, self.columns)
            self.train_rows = _without(rows, self.test_rows, label)
        self._set_checker(label)

    def hold_out(self, rows: list[Row], label: str) -> tuple[list[Row], list[Row]]:
        """Return training and test rows; `label` names the data in errors."""
        return held_out(rows, label)

    @property
    def all_rows(self) -> list[Row]:
        """Rows of both splits, each once."""
        return [*self.test_rows] if self.judged_whole else [*self.train_rows, *self.test_rows]

    @property
    def skipped(self) -> LeftOut | None:
        """Where rows that cannot be used are counted; None where they are an error."""
        return self.left_out if self.skip_bad_rows else None

    @property
    def compares_completions(self) -> bool:
        """Whether answers are compared with the column `completion`, and nothing else judges them."""
        return self._truth == "completion" and all(reward.checker for reward in self.rewards)

    def _set_checker(self, label: str) -> None:
        """Choose how answers are compared, and leave out rows that have none where nothing else could judge them."""
        given, rows = bool(self.rewards), self.all_rows
        self._truth = truth_column(rows[0])
        if self._truth == "completion" and unpaired(rows):
            self._truth = None  # a response that somebody has judged, good or bad, is no truth
        if self._truth is None:
            if self.checker is not None:
                raise UserError(f"The checker '{self.checker}' needs a column 'answer' or 'solution' in {label}.")
            return
        if self.checker == "math":
            check_installed()
        own = {reward.checker for reward in self.rewards}
        if own != {""} or not given or self.checker is not None:
            self._check_answers({*own, self.checker or ""} - {""})
        rows = self.all_rows
        known = [answers for row in rows if (answers := self._answers(row))]
        numbers = [all(map(is_number, answers)) for answers in known]
        if self.checker is None and known:
            self.checker = "numeric" if all(numbers) else "auto" if any(numbers) else None if given else "exact"
        self._by_reward = given and self.checker == "auto"
        if self.checker == "auto":
            how = "judged by the first reward" if given else "compared as texts (or as mathematics with --checker math)"
            first = place_of(next(row for row in rows if (a := self._answers(row)) and not all(map(is_number, a))))
            count = len(numbers) - sum(numbers)
            verb = "is no number and is" if count == 1 else "are no numbers and are"
            self.notices.append(
                f"{count} of {len(known)} answers {verb} {how}, the others as numbers (first: {first})."
            )
        if not given and self.checker is not None:
            self.rewards = [built_in(self.checker)]
        if known and all(reward.checker for reward in self.rewards):
            self.keep_rows(lambda row: None if self._answers(row) else (NO_ANSWER, place_of(row)))

    def _check_answers(self, checkers: Collection[str]) -> None:
        """Raise `UserError` with the row of the first answer that is none, or that a checker cannot compare with."""

        def judge(row: Row) -> tuple[str, str] | None:
            try:
                answers = accepted(row.get(str(self._truth)))
            except ValueError as error:
                wrong = f"is {error}, which is no answer; give text, a number or a list of right answers."
            else:
                found = ((checker, unfit(checker, answers)) for checker in checkers)
                checker, why = next(((checker, why) for checker, why in found if why), ("", None))
                if why is None:
                    return None
                wrong = f"is of no use to the checker '{checker}': {why}; mend it, or take auto, exact or math."
            said = f"{place_of(row)}: the column '{self._truth}' {wrong}"
            if not self.skip_bad_rows:
                raise UserError(said)
            return UNUSABLE, said

        self.keep_rows(judge)

    def keep_rows(self, judge: Callable[[Row], tuple[str, str] | None]) -> None:
        """Leave out the rows for which `judge` gives a reason and what to say of the row; count them in `left_out`.

        Raises `UserError` where no row of a split is left.
        """
        for split, rows in (("training", self.train_rows), ("test", self.test_rows)):
            kept = []
            for row in rows:
                if (why := judge(row)) is None:
                    kept.append(row)
                else:
                    self.left_out.add(*why)
            if not kept:
                raise UserError(f"No {split} row is left: {' '.join(self.left_out.sentences())}")
            rows[:] = kept

    def _answers(self, row: Row) -> list[str]:
        """Return the row's right answers; none where it has none, or has what can be no answer."""
        if self._truth is None:
            return []
        try:
            return accepted(row.get(self._truth))
        except ValueError:
            return []

    def rows(self, split: Split, seed: int, start: int, count: int) -> list[Row]:
        """Return rows `start` to `start + count - 1` of the endless stream of (split, seed): epoch after epoch."""
        rows = self.train_rows if split == "train" else self.test_rows
        size = len(rows)
        return [rows[_order(split, seed, i // size, size)[i % size]] for i in range(start, start + count)]

    def size(self, split: Split) -> int:
        """Number of rows of a split."""
        return len(self.train_rows if split == "train" else self.test_rows)

    def worked(self, row: Row) -> str:
        """Return the row's `solution`, `completion` or `answer`; raise `UserError` if it has none."""
        for name in ("solution", "completion", "answer"):
            if row.get(name) is not None and (text := truth_text(row[name])):
                return text
        raise UserError(
            "Supervised training needs a column 'solution', 'completion' or 'answer' in the data; "
            f"it has {', '.join(sorted(row))}."
        )

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the completion agrees with the answer.

        Without an answer or a checker, it is right when the first reward gives it at least 1.
        """
        if self._comparison(row):
            return self.judged(row, completion, {})
        if not self.rewards:
            raise UserError("Accuracy needs a column 'answer' or 'solution' in the data, or a reward.")
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        scores = RewardRunner(self.rewards[:1], self.calls)([row["prompt"]], [completion], **columns)
        return scores.parts[self.rewards[0].name][0] >= 1

    def _comparison(self, row: Row) -> tuple[str, list[str]] | None:
        """Return the checker of a row and its right answers; None where the first reward decides."""
        answers = self._answers(row)
        if self.checker is None or not answers or (self._by_reward and not all(map(is_number, answers))):
            return None
        return self.checker, answers

    def judged(self, row: Row, completion: str, earned: Mapping[str, float]) -> bool:
        """Return what `correct` does, without calling the reward again: it may be slow, or fail the second time."""
        if comparison := self._comparison(row):
            checker, answers = comparison
            return agrees(checker, completion, answers)
        return earned[self.rewards[0].name] >= 1

    def expected(self, row: Row) -> str | None:
        """Return the row's answer, several joined by "or", or None if it has none."""
        return " or ".join(dict.fromkeys(self._answers(row))) or None

    def fingerprint(self) -> str:
        """Return a hash of all rows of both splits and of the settings."""
        chat = [] if self.chat is None else [asdict(self.chat)]
        return digest([self.name, self.max_tokens, self.stop, self.checker, self.train_rows, self.test_rows, *chat])


@functools.lru_cache(maxsize=16)
def _order(split: Split, seed: int, epoch: int, size: int) -> list[int]:
    """Return the order of an epoch, for readers only: it is shared."""
    order = list(range(size))
    random.Random(f"dataset-{split}-{seed}-{epoch}").shuffle(order)
    return order


def _loaded(
    data: str | Path | Sequence[Row], label: str, left_out: LeftOut | None, columns: Columns
) -> tuple[list[Row], str]:
    if isinstance(data, (str, Path)):
        return load_rows(str(data), left_out, columns), f"'{data}'"
    return prepared(label, enumerate(data, start=1), left_out, columns), label


def checked(
    data: str | Path | Sequence[Row],
    label: str,
    left_out: LeftOut | None,
    check: Callable[[str, Row], Row],
    kind: str,
    columns: Columns = AS_NAMED,
) -> list[Row]:
    """Load rows and return what `check` makes of each, given its place; `kind` names a row in errors.

    Rows that `check` refuses with `UserError` are counted in `left_out`; where it is None, the first one is an error.
    """
    found: list[Row] = []
    for row in _loaded(data, label, left_out, columns)[0]:
        try:
            found.append(DataRow(check(place_of(row), row), place_of(row)))
        except UserError as error:
            if left_out is None:
                raise
            left_out.add(UNUSABLE, str(error))
    if not found:
        raise UserError(f"There is no {kind} in {label}: {' '.join(left_out.sentences()) if left_out else 'no row'}")
    return found


LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""How a label is written: true or false, as a number, or as the text of either."""


def unpaired(rows: Sequence[Any]) -> bool:
    """Return whether each row is one response that was judged good or bad: `completion` and a `label`, as for KTO.

    Some label is true or false, or all are 0 and 1: other numbers are classes.
    """
    judged = [row for row in rows if isinstance(row, Mapping) and row.get("completion") is not None]
    known = [str(row["label"]).strip().lower() for row in judged if row.get("label") is not None]
    return bool(known) and (bool({"true", "false"} & set(known)) or set(known) <= set(LABELS))


def prompt_hash(row: Row) -> int:
    """Return a hash of the row's prompt, from 0 to 2^64 - 1: the same everywhere and always."""
    prompt = row["prompt"]
    return stable_hash(prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True))


def held_out(rows: list[Row], label: str) -> tuple[list[Row], list[Row]]:
    """Return training and test rows; the lowest hashes are held out, so that a split changes little when data grows."""
    hashes = [prompt_hash(row) for row in rows]
    ranked = sorted(set(hashes))
    if len(ranked) < 2:
        raise UserError(
            f"All rows of {label} have the same prompt; give another one to hold out for testing, or test data."
        )
    held = {h for h in ranked if h < _TEST_SHARE * 2**64} or {ranked[0]}
    held.discard(ranked[-1])  # one prompt at least stays for training
    train = [row for row, h in zip(rows, hashes, strict=True) if h not in held]
    return train, [row for row, h in zip(rows, hashes, strict=True) if h in held]


def _without(rows: list[Row], test_rows: list[Row], label: str) -> list[Row]:
    """Return the rows whose prompt is no test prompt."""
    held = {prompt_hash(row) for row in test_rows}
    train = [row for row in rows if prompt_hash(row) not in held]
    if not train:
        raise UserError(f"Every prompt of {label} is in the test data too; give other test data, or none.")
    if len(train) < len(rows):
        _log.warning("%d rows of %s are left out: their prompts are in the test data.", len(rows) - len(train), label)
    return train
