"""The starting model of a built-in task: a tiny model that polyrl makes itself, pretrains, and keeps in its cache.

The cache holds ordinary model folders. A folder's name says what it was made from, so the same task, size and seed give
the same model, and a change of any of them makes a new one.
"""

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
from polyrl.tasks.language.base import LanguageTask, digest

RECIPE_VERSION = 3
"""Raised when the way of making starting models changes."""

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


def start_folder(task: LanguageTask, seed: int = 0) -> Path:
    """Folder of the starting model, made or not."""
    task = task.starting()
    key = digest([RECIPE_VERSION, task.fingerprint(), seed, *([dict(task.start_size)] if task.start_size else [])])
    return cache_folder() / "models" / f"{task.name}-{task.difficulty}-{key}"


def start_model(task: LanguageTask, seed: int = 0, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the folder of the task's starting model, making it first where it is not in the cache.

    Args:
        task: the task on whose worked completions the model is pretrained.
        seed: of weights and examples.
        say: told what is going on, for the terminal.
    """

    task = task.starting()

    def make(folder: Path) -> dict[str, Any]:
        from polyrl.policies.pretrain import pretrain  # heavy

        return pretrain(task, folder, seed=seed, say=say, **task.start_size)

    return cached(start_folder(task, seed), make)


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


def fingerprint(folder: str | Path) -> str:
    """Short hash of a model folder's weights, or the name itself where it is no folder (a hub id)."""
    import hashlib

    path = Path(folder)
    if not path.is_dir():
        return str(folder)
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(path.glob("*.safetensors")):
        state.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as data:
            state.update(data.read(1 << 24))  # the first 16 MiB tell models apart; large files need not be read whole
    return state.hexdigest()
