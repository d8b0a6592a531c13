"""Small files, read and written: whole or not at all, and one sentence where the disk or the file does not allow it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polyrl.errors import UserError

LONGEST_NAME = 160
"""Bytes of the longest folder name that polyrl makes: systems allow 255, and temporary names are longer."""
LARGEST_YAML = 4 << 20
"""Bytes of the largest config that is read: polyrl's own have a few thousand."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class WriteError(UserError):
    """The disk is full, or does not allow writing there."""


# --------------------------------------------------------------------------------------------------------- writing


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Tell in one sentence that `place`, or what belongs to it, cannot be written.

    Libraries in Rust (safetensors, tokenizers) raise errors of their own, whose text ends in "(os error 28)".

    Raises:
        WriteError: the system refused to write.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise write_error(place, error) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise write_error(place, OSError(code, os.strerror(code), str(place))) from error


def write_error(place: Path | str, error: OSError) -> WriteError:
    """The sentence for a place that cannot be written."""
    where = error.filename if isinstance(error.filename, str) else place
    if error.errno in FULL:
        return WriteError(f"The disk is full ({shown(where)}); free some space, then go on with `polyrl resume`.")
    return WriteError(f"{shown(where)} cannot be written ({reason(error)}); choose another place, or allow it.")


def read_error(error: OSError) -> UserError:
    """The sentence for a file that the system does not let be read."""
    where = shown(error.filename) if error.filename else "A file"
    return UserError(f"{where} cannot be used ({reason(error)}); look at its permissions and its disk.")


def reason(error: OSError) -> str:
    """What the system said, without numbers."""
    return error.strerror or str(error) or type(error).__name__


def shown(place: object, most: int = 200) -> str:
    """A path or a text for a sentence: on one line, printable, and not endless."""
    text = "".join(c if c.isprintable() else "?" for c in str(place))
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def short_name(name: str) -> str:
    """The name itself; the end of a long one becomes a hash of it, so that two of them stay two."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) <= LONGEST_NAME:
        return name
    start = raw[: LONGEST_NAME - 11].decode("utf-8", "ignore").rstrip("-.")
    return f"{start}-{hashlib.blake2b(raw, digest_size=5).hexdigest()}"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def json_line(record: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity, which JSON has not, become null."""
    try:
        return _JSON.encode(record) + "\n"
    except ValueError:
        return _JSON.encode(finite(record)) + "\n"


def finite(value: Any) -> Any:
    """The same values with None for NaN and infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------------------------------------- reading


@contextmanager
def reading() -> Iterator[None]:
    """Tell in one sentence that a file cannot be read.

    Raises:
        UserError: the system refused to read.
    """
    try:
        yield
    except OSError as error:
        raise read_error(error) from error


def parse_json(text: bytes | str) -> Any:
    """Read JSON text.

    Raises:
        ValueError: it is no JSON, or nested deeper than can be read.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    values = parse_json(file.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"it holds {_kind(values)} where an object belongs")
    return values


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a file that holds one YAML mapping.

    Raises:
        UserError: it is no such file, or cannot be read.
    """
    import yaml  # takes 20 ms, which a typing mistake on the command line need not

    try:
        if not file.is_file():
            raise UserError(f"There is no file {file}.")
        if file.stat().st_size > LARGEST_YAML:
            raise UserError(f"{file} cannot be read as YAML: it is larger than {LARGEST_YAML >> 20} MiB.")
        with file.open(encoding="utf-8") as text:
            values = yaml.safe_load(text)
    except OSError as error:
        raise read_error(error) from None
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{file} cannot be read as YAML: it is nested too deeply.") from None
    except Exception as error:  # PyYAML raises errors of many kinds on text that nobody wrote by hand
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} cannot be read as YAML: {shown(said).rstrip('.')}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds {_kind(values)} where settings belong, names with values.")
    return {str(key): value for key, value in values.items()}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def fingerprint(folder: str | Path) -> str:
    """Short hash of a model folder's weights, or the name itself where it is no folder (a hub id)."""
    path = Path(folder)
    if not path.is_dir():
        return str(folder)
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(path.glob("*.safetensors")):
        state.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as data:
            state.update(data.read(1 << 24))  # the first 16 MiB tell models apart; large files need not be read whole
    return state.hexdigest()
