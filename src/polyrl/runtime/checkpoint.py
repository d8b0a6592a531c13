"""Checkpoints: written to a temporary folder, flushed to disk, renamed; safetensors and JSON, never pickle.

A checkpoint holds the models, the optimizers, what was spent and what parts remember. Random streams need no state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime import ownership
from polyrl.runtime.files import read_json, writing

FORMAT = "polyrl-checkpoint-2"
FIRST_FORMAT = "polyrl-checkpoint-1"
"""Had no hash of state.json itself; still read."""
Say = Callable[[str], None]
STORES = "parts.safetensors"
"""Tensors that parts keep from one iteration to the next; there is no such file where there are none."""


def _digest(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    root: Path,
    iteration: int,
    state: dict[str, Any],
    optimizers: dict[str, torch.optim.Optimizer],
    names: dict[str, list[str]],
    save_models: Callable[[Path], None],
    stores: Mapping[str, Mapping[str, Tensor]],
    *,
    keep: int = 2,
    say: Say = lambda _: None,
) -> Path:
    """Write `root/iteration-000012` whole or not at all, and remove all but the newest `keep`.

    `say` is told of files that are not polyrl's and that lay in a checkpoint that was removed: they are kept.

    Raises:
        WriteError: the disk is full or does not allow it; nothing has changed then.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        tidy(root, say)
        final, temporary = root / f"iteration-{iteration:06d}", root / f".writing-{iteration:06d}-{os.getpid()}"
        temporary.mkdir()
        try:
            save_models(temporary)
            for name, tensors in _tables(optimizers, names, stores):
                save_file(tensors, temporary / name)
            _seal(temporary, {"iteration": iteration, **state})
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # made by this very call; a full disk needs the room
            raise
        if os.path.lexists(final):
            _remove(final, say)
        temporary.rename(final)
        _flush(root)
        prune(root, keep, final, say)
    return final


def prune(root: Path, keep: int, newest: Path, say: Say = lambda _: None) -> None:
    """Remove all but the newest `keep` checkpoints, and never `newest` nor a link."""
    for old in [c for c in checkpoints(root) if not c.is_symlink()][:-keep]:
        if old != newest:
            _remove(old, say)


def _tables(
    optimizers: Mapping[str, torch.optim.Optimizer],
    names: Mapping[str, list[str]],
    stores: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files of tensors beside the models, one after the other: what each optimizer and the parts keep."""

    def kept(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().contiguous()

    for model, optimizer in optimizers.items():
        parameters = zip(names[model], _parameters(optimizer), strict=True)
        found = {f"{n}/{key}": kept(x) for n, p in parameters for key, x in optimizer.state.get(p, {}).items()}
        yield _of_optimizer(model), found
    if of_parts := {f"{part}/{name}": kept(x) for part, of in stores.items() for name, x in of.items()}:
        yield STORES, of_parts


def _of_optimizer(model: str) -> str:
    return f"optimizer-{model}.safetensors"


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _seal(folder: Path, state: Mapping[str, Any]) -> None:
    """Write state.json with a hash of every file, and flush all to disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    record = {"format": FORMAT, **state, "files": {str(p.relative_to(folder)): _digest(p) for p in files}}
    record["digest"] = _state_digest(record)
    (folder / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    for path in [*files, folder / "state.json", folder]:
        _flush(path)


def _state_digest(record: dict[str, Any]) -> str:
    """Hash of what state.json says, apart from the hash itself; of its values as they are read back."""
    read = json.loads(json.dumps({k: v for k, v in record.items() if k != "digest"}))
    return hashlib.blake2b(json.dumps(read, sort_keys=True).encode(), digest_size=16).hexdigest()


def _remove(folder: Path, say: Say) -> None:
    """Remove a checkpoint so that a kill leaves it whole or gone: rename it first."""
    if folder.is_symlink() or not folder.is_dir():  # somebody put another place there
        place = ownership.keep_apart(folder.parent, [folder.name], folder.parent, folder.name)
        say(f"what was at {folder} is not polyrl's and is kept in {place}")
        return
    doomed = folder.with_name(f".removing-{folder.name}-{os.getpid()}")
    folder.rename(doomed)
    _finish_removal(doomed, say)


def _finish_removal(doomed: Path, say: Say) -> None:
    """Remove the files of a checkpoint; what is not polyrl's stays, under a name that can be seen."""
    holding = ownership.checkpoint_holding(doomed)
    if holding.foreign:
        number = re.search(r"\d+", doomed.name)
        called = f"iteration-{number[0] if number else ''}"
        place = ownership.keep_apart(doomed, holding.foreign, doomed.parent, called)
        say(f"{holding.named()} in an old checkpoint is not polyrl's and is kept in {place}")
    holding.remove()


def tidy(root: Path, say: Say = lambda _: None) -> None:
    """Remove what a process left behind that was killed while it wrote or removed a checkpoint, and nothing else."""
    if not root.is_dir():
        return
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if not entry.is_dir(follow_symlinks=False) or not ownership.UNFINISHED.fullmatch(entry.name):
            continue
        _finish_removal(root / entry.name, say)


def iteration_of(folder: Path) -> int:
    """The iteration that a checkpoint folder is named after."""
    return int(folder.name.rpartition("-")[2])


def checkpoints(root: Path) -> list[Path]:
    """Whole checkpoints in `root`, oldest first."""
    return sorted(
        p for p in root.glob("iteration-*") if re.fullmatch(r"iteration-\d+", p.name) and (p / "state.json").is_file()
    )


def read_state(folder: Path) -> dict[str, Any]:
    """Read and verify a checkpoint's state.

    Raises:
        UserError: the checkpoint is foreign, incomplete or damaged.
    """
    older = f"remove {folder} to go on from an older one"
    try:
        state = read_json(folder / "state.json")
    except (OSError, ValueError):
        raise UserError(f"The checkpoint {folder} has no readable state.json; {older}.") from None
    if state.get("format") not in (FORMAT, FIRST_FORMAT):
        raise UserError(
            f"{folder} is not a checkpoint of this version of polyrl (format {FORMAT}); it cannot be resumed."
        )
    hashed = "digest" in state or state["format"] == FORMAT
    if not isinstance(state.get("files"), dict) or (hashed and state.get("digest") != _state_digest(state)):
        raise UserError(f"The state.json of {folder} is damaged; {older}.")
    for name, wanted in state["files"].items():
        path = folder / name
        if not path.is_file() or _digest(path) != wanted:
            raise UserError(
                f"The checkpoint file {path} is missing or damaged; remove {folder} to go on from an older one."
            )
    if not _is_state(state):
        raise UserError(f"The state.json of {folder} is damaged; {older}.")
    return state


def _is_state(state: dict[str, Any]) -> bool:
    """Whether the values that a run goes on from have their types."""
    number = {"spent", "seconds"}
    tables = [state.get(name) for name in ("spent", "seconds", "start", "final", "memories")]
    return (
        type(state.get("iteration")) is int
        and all(isinstance(table, dict) for table in tables)
        and all(isinstance(v, dict) for v in state["memories"].values())
        and all(isinstance(v, int | float) and not isinstance(v, bool) for n in number for v in state[n].values())
    )


def load_optimizers(folder: Path, optimizers: dict[str, torch.optim.Optimizer], names: dict[str, list[str]]) -> None:
    """Put saved optimizer tensors back."""
    for model, optimizer in optimizers.items():
        told = f"The checkpoint {folder} has no readable optimizer for the {model}; it cannot be resumed."
        file = folder / _of_optimizer(model)
        if not file.exists():
            file = folder / f"optimiser-{model}.safetensors"  # as versions before 0.2 wrote it
        tensors = _read(file, told)
        for name, parameter in zip(names[model], _parameters(optimizer), strict=True):
            state = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == name}
            if state:
                optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}


def load_stores(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read the tensors that parts kept, by part and name."""
    if not (folder / STORES).is_file():
        return {}
    tensors = _read(folder / STORES, f"{folder / STORES} is damaged; remove {folder} to go on from an older one.")
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        found.setdefault(part, {})[key] = tensor
    return found


def _read(path: Path, told: str) -> dict[str, Tensor]:
    """Tensors of a file; raises `UserError` with `told` where it cannot be read."""
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError):
        raise UserError(told) from None
