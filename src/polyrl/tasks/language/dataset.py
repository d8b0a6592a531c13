"""The user's own data as a task: prompts from a file or from the Hugging Face hub, answers checked or rewarded.

Columns are TRL's: `prompt` is a string or a list of `{"role", "content"}` messages, and every other column is passed
to the reward functions. Data in GSM8K's form (`question`, and `answer` ending in `#### 18`) is understood as it is.
"""

from __future__ import annotations

import csv
import functools
import importlib
import io
import json
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.tasks.language.base import LanguageTask, Reward, Row, Split, digest, stable_hash
from polyrl.tasks.language.columns import check_data_names
from polyrl.tasks.language.formats import check_messages, check_template_columns, implicit_prompt
from polyrl.tasks.language.reward_runner import RewardRunner
from polyrl.tasks.language.rewards import CHECKERS, built_in, last_number, truth_column, truth_text

_log = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.:%\[\]-]+))?")
_TEST_SHARE = 0.1


def load_rows(source: str) -> list[Row]:
    """Return the rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, or of a data set on the Hugging Face hub.

    A hub data set is `org/name`, with an optional configuration and split: `openai/gsm8k:main@train` (split `train` if
    not given). Parquet and the hub need the extra `data`. Every row has a `prompt`; GSM8K's columns are turned into
    `prompt` (the question and a line break) and `answer` (the final number). Raises `UserError` that names the file,
    the row (from 1; the line in a `.jsonl` file) and the column.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    hub = _HUB_ID.fullmatch(source)
    if suffix in _SUFFIXES:
        if not path.is_file():
            raise UserError(f"There is no data file '{source}'.")
        reader = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}[suffix]
        rows = reader(path)
    elif path.exists():
        raise UserError(f"The data '{source}' is of an unknown kind; give a file that ends in {', '.join(_SUFFIXES)}.")
    elif hub is not None:
        rows = _read_hub(hub["name"], hub["config"], hub["split"] or "train")
    else:
        raise UserError(
            f"There is no data '{source}'; give a file that ends in {', '.join(_SUFFIXES)}, or a data set on the "
            "Hugging Face hub as 'org/name', 'org/name:config' or 'org/name@split'."
        )
    return prepared(source, rows)


def prepared(source: str, rows: Iterable[tuple[int, Any]]) -> list[Row]:
    """Return the rows, checked and with the same columns each; `rows` are numbered as their source numbers them."""
    ready = [_row(f"{source}, row {number}", row) for number, row in rows]
    if not ready:
        raise UserError(f"The data '{source}' has no rows.")
    blank = dict.fromkeys(name for row in ready for name in row)
    return [{**blank, **row} for row in ready]


def _row(where: str, given: Any) -> Row:
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: a row must be an object with named columns, not {_kind(given)}.")
    row: Row = dict(given)
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
        raise UserError(f"{where}: the column 'prompt' must be text or a list of messages, not {_kind(prompt)}.")
    elif not prompt.strip():
        raise UserError(f"{where}: the column 'prompt' is empty.")
    return check_template_columns(where, row)


def _from_gsm8k(where: str, row: Row) -> Row:
    """Add the prompt; the answer's text becomes the `solution`, and what follows its last `####` the `answer`."""
    question, answer = row["question"], row["answer"]
    if not isinstance(question, str):
        raise UserError(f"{where}: the column 'question' must be text, not {_kind(question)}.")
    row = {"prompt": question + "\n", **row}
    if not isinstance(answer, str) or "####" not in answer:
        return row
    if last_number(answer) is None:
        raise UserError(f"{where}: the column 'answer' has no number after its '####'.")
    return {"solution": answer, **row, "answer": answer.rpartition("####")[2].strip()}


def _kind(value: Any) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text", "bool": "true or false"}
    return names.get(type(value).__name__, "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The data file '{path}' is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise UserError(f"The data file '{path}' cannot be read: {error.strerror}.") from error


def _read_jsonl(path: Path) -> Iterable[tuple[int, Any]]:
    # Lines end at line feeds only: other separators of `splitlines` may stand inside JSON strings.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, row {number}: not a JSON object ({_said(error)}).") from error


def _read_json(path: Path) -> Iterable[tuple[int, Any]]:
    text = _text(path)
    try:
        rows = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({_said(error)}).") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of rows, not {_kind(rows)}.")
    return enumerate(rows, start=1)


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "too deep" if isinstance(error, RecursionError) else str(error)


def _read_csv(path: Path) -> Iterable[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    number = 0
    try:
        names = reader.fieldnames or []
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: the header names the column '{twice[0]}' twice; each needs its own name.")
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                raise UserError(f"{path}, row {number}: it does not have the {width} columns of the header.")
            yield number, row
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: not CSV ({error}).") from error


def _read_parquet(path: Path) -> Iterable[tuple[int, Any]]:
    parquet = _extra("pyarrow.parquet", f"The data file '{path}'")
    try:
        return enumerate(parquet.read_table(path).to_pylist(), start=1)
    except Exception as error:
        raise UserError(f"The data file '{path}' cannot be read as Parquet: {_line(error)}.") from error


def _read_hub(name: str, config: str | None, split: str) -> Iterable[tuple[int, Any]]:
    datasets = _extra("datasets", f"The data '{name}' from the Hugging Face hub")
    try:
        return enumerate(list(datasets.load_dataset(name, config, split=split)), start=1)
    except Exception as error:
        raise UserError(f"The data set '{name}' (split {split}) cannot be loaded: {_line(error)}.") from error


def _extra(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the extra 'data': pip install 'polyrl[data]'.") from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


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
    """How a completion is compared with the column `answer` or `solution`: numeric, exact or contains. By default
    numeric if every answer is a number; otherwise the first of `rewards` decides, or exact if there are none."""
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

    def __post_init__(self) -> None:
        """Load and split the data and choose the checker."""
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.checker is not None and self.checker not in CHECKERS:
            raise UserError(
                f"There is no checker '{self.checker}'.{nearest(self.checker, CHECKERS)} "
                f"The checkers are {', '.join(CHECKERS)}."
            )
        rows, label = _loaded(self.data, "the data")
        if self.test_data is None:
            self.train_rows, self.test_rows = _held_out(rows, label)
        else:
            self.test_rows, _ = _loaded(self.test_data, "the test data")
            self.train_rows = _without(rows, self.test_rows, label)
        self._truth = truth_column(rows[0])
        if self._truth is None:
            if self.checker is not None:
                raise UserError(f"The checker '{self.checker}' needs a column 'answer' or 'solution' in {label}.")
        elif self.checker is None:
            answers = [truth_text(row[self._truth]) for row in rows if row[self._truth] is not None]
            if answers and all(_is_number(answer) for answer in answers):
                self.checker = "numeric"
            elif not self.rewards:  # the user's own reward knows better than a comparison of texts
                self.checker = "exact"
        if not self.rewards and self.checker is not None:
            self.rewards = [built_in(self.checker)]

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
            if row.get(name) is not None:
                return truth_text(row[name])
        raise UserError(
            "Supervised training needs a column 'solution', 'completion' or 'answer' in the data; "
            f"it has {', '.join(sorted(row))}."
        )

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the completion agrees with the answer.

        Without an answer or a checker, it is right when the first reward gives it at least 1.
        """
        if self._checkable(row):
            return self.judged(row, completion, {})
        if not self.rewards:
            raise UserError("Accuracy needs a column 'answer' or 'solution' in the data, or a reward.")
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        scores = RewardRunner(self.rewards[:1])([row["prompt"]], [completion], **columns)
        return scores.parts[self.rewards[0].name][0] >= 1

    def _checkable(self, row: Row) -> bool:
        return self.checker is not None and self._truth is not None and row.get(self._truth) is not None

    def judged(self, row: Row, completion: str, earned: Mapping[str, float]) -> bool:
        """Return what `correct` does, without calling the reward again: it may be slow, or fail the second time."""
        if self.checker is not None and self._truth is not None and row.get(self._truth) is not None:
            return CHECKERS[self.checker](completion, truth_text(row[self._truth]))
        return earned[self.rewards[0].name] >= 1

    def expected(self, row: Row) -> str | None:
        """Return the row's answer, or None if it has none."""
        return None if self._truth is None or row.get(self._truth) is None else truth_text(row[self._truth])

    def fingerprint(self) -> str:
        """Return a hash of all rows of both splits and of the settings."""
        return digest([self.name, self.max_tokens, self.stop, self.checker, self.train_rows, self.test_rows])


@functools.lru_cache(maxsize=16)
def _order(split: Split, seed: int, epoch: int, size: int) -> list[int]:
    """Return the order of an epoch, for readers only: it is shared."""
    order = list(range(size))
    random.Random(f"dataset-{split}-{seed}-{epoch}").shuffle(order)
    return order


def _loaded(data: str | Path | Sequence[Row], label: str) -> tuple[list[Row], str]:
    if isinstance(data, (str, Path)):
        return load_rows(str(data)), f"'{data}'"
    return prepared(label, enumerate(data, start=1)), label


def _prompt_hash(row: Row) -> int:
    prompt = row["prompt"]
    return stable_hash(prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True))


def _held_out(rows: list[Row], label: str) -> tuple[list[Row], list[Row]]:
    """Return training and test rows; the lowest hashes are held out, so that a split changes little when data grows."""
    hashes = [_prompt_hash(row) for row in rows]
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
    held = {_prompt_hash(row) for row in test_rows}
    train = [row for row in rows if _prompt_hash(row) not in held]
    if not train:
        raise UserError(f"Every prompt of {label} is in the test data too; give other test data, or none.")
    if len(train) < len(rows):
        _log.warning("%d rows of %s are left out: their prompts are in the test data.", len(rows) - len(train), label)
    return train


def _is_number(answer: str) -> bool:
    """Return whether the text, or what follows its last `####`, is one number and nothing else."""
    final = answer.rpartition("####")[2]
    return re.fullmatch(r"\s*[-+]?\$?-?[\d,]*\.?\d+\s*", final, re.ASCII) is not None
