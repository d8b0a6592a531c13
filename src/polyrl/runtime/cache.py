"""What polyrl can make again and keeps: ordinary model folders, each named after what it was made from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.runtime.files import writing

MAKING_THREADS = 1
"""Threads that make a model. For a tiny one a second gains a fifth at best and loses tenfold on a busy machine; and the
number of threads changes the last bits of the weights."""


def cache_folder() -> Path:
    """Where polyrl keeps what it can make again: `POLYRL_CACHE`, or `polyrl` in the user's cache folder.

    Raises:
        UserError: neither is set, and the user has no home folder.
    """
    if os.environ.get("POLYRL_CACHE"):
        return Path(os.environ["POLYRL_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "polyrl"
    try:
        return Path.home() / ".cache" / "polyrl"
    except RuntimeError:
        raise UserError("There is no home folder for polyrl's cache; set POLYRL_CACHE to a folder.") from None


def cached(folder: Path, make: Callable[[Path], dict[str, Any]]) -> Path:
    """Return the model folder `folder`, made first where it is not there.

    `make` writes the model to the folder that it is given and returns its facts, which are kept in polyrl.json. The
    folder appears at once and whole: of two processes that make it together, one wins and both use the winner's.
    """
    if (folder / "polyrl.json").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} in the cache is not polyrl's; move it away, or set POLYRL_CACHE to another folder.")
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with _making_threads():
                facts = make(temporary)
            (temporary / "polyrl.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            temporary.chmod(0o777 & ~_umask())
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "polyrl.json").is_file():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # made by this call
    return folder


def _umask() -> int:
    """What new folders of this process are not open for; the system tells it only when it is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _making_threads() -> Iterator[None]:
    import torch  # heavy

    threads = torch.get_num_threads()
    torch.set_num_threads(MAKING_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
