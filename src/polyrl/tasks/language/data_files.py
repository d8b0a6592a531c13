"""Readers of data files: numbered rows as their source has them, not yet checked.

Where one row cannot be read and the others can, a `UserError` stands in its place.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyrl.errors import UserError


def kind_of(value: Any) -> str:
    """Return what a value is, in words."""
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text", "bool": "true or false"}
    return names.get(type(value).__name__, "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The data file '{path}' is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise UserError(f"The data file '{path}' cannot be read: {error.strerror}.") from error


def read_jsonl(path: Path) -> Iterable[tuple[int, Any]]:
    """Yield the objects of a `.jsonl` file, numbered by their lines."""
    # Lines end at line feeds only: other separators of `splitlines` may stand inside JSON strings.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"{path}, row {number}: not a JSON object ({_said(error)}).")


def read_json(path: Path) -> Iterable[tuple[int, Any]]:
    """Yield the objects of a list in a `.json` file."""
    text = _text(path)
    try:
        rows = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({_said(error)}).") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of rows, not {kind_of(rows)}.")
    return enumerate(rows, start=1)


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "too deep" if isinstance(error, RecursionError) else str(error)


def read_csv(path: Path) -> Iterable[tuple[int, Any]]:
    """Yield the rows of a `.csv` file."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    number = 0
    try:
        names = reader.fieldnames or []
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: the header names the column '{twice[0]}' twice; each needs its own name.")
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                yield number, UserError(f"{path}, row {number}: it does not have the {width} columns of the header.")
            else:
                yield number, row
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: not CSV ({error}).") from error


def read_parquet(path: Path) -> Iterable[tuple[int, Any]]:
    """Yield the rows of a `.parquet` file."""
    parquet = _extra("pyarrow.parquet", f"The data file '{path}'")
    try:
        return enumerate(parquet.read_table(path).to_pylist(), start=1)
    except Exception as error:
        raise UserError(f"The data file '{path}' cannot be read as Parquet: {_line(error)}.") from error


def read_hub(name: str, config: str | None, split: str) -> Iterable[tuple[int, Any]]:
    """Yield the rows of a split of a data set on the Hugging Face hub."""
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
