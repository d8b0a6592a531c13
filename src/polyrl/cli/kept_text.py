"""What `polyrl list` and `polyrl show` print, kept until a source changes: reading or importing them all takes longer.

A text belongs to the modification times of everything that it is made of: polyrl's sources, the ledger, and the folders
that packages are installed in. Only the user's own texts are read: a cache may be shared, and a terminal obeys text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from polyrl.errors import UserError
from polyrl.reproduction.ledger import committed_ledger
from polyrl.runtime.cache import cache_folder
from polyrl.runtime.files import write_atomically

PACKAGE = Path(__file__).parents[1]


def kept_text(name: tuple[object, ...], make: Callable[[], tuple[str, bool]]) -> str:
    """The text of that name, made where it is not kept or something has changed since.

    Args:
        name: what is printed and how: the command's words, and what the terminal can do.
        make: returns the text, and whether it is made of nothing but what the stamp covers.
    """
    found = stamp()
    file = None
    with contextlib.suppress(UserError):  # no home folder
        digest = hashlib.blake2b(repr(name).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        file = cache_folder() / "texts" / f"{digest}.json"
        if (text := _read(file, found)) is not None:
            return text
    text, covered = make()
    if file is not None and covered:
        with contextlib.suppress(OSError):  # a full or read-only disk only costs time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"stamp": found, "text": text}) + "\n")
    return text


def _read(file: Path, wanted: str) -> str | None:
    try:
        if sys.platform != "win32" and file.stat().st_uid != os.getuid():
            return None
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or kept.get("stamp") != wanted or not isinstance(kept.get("text"), str):
        return None
    return str(kept["text"])


def stamp() -> str:
    """32 hexadecimal digits that change with every source, ledger entry and installed package."""
    found = hashlib.blake2b(digest_size=16)
    for line in sorted(_times(PACKAGE, ".py")):
        found.update(line)
    for line in sorted(_times(committed_ledger(), ".json")):
        found.update(line)
    for place in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            found.update(f"{place} {os.stat(place or '.').st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _times(folder: Path, ending: str) -> Iterator[bytes]:
    """Path, modification time and size of every file below a folder that ends so."""
    waiting = [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        waiting.append(entry.path)
                elif entry.name.endswith(ending):
                    stat = entry.stat()
                    yield f"{entry.path} {stat.st_mtime_ns} {stat.st_size}\n".encode("utf-8", "surrogatepass")
