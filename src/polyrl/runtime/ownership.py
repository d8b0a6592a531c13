"""What polyrl writes into folders, told apart from everybody else's files, and removed without touching those.

A name alone proves nothing: `config.yaml` lies in many folders. So a folder is first shown to be polyrl's by what its
files say, and in it only names that polyrl writes are removed. A symbolic link is never polyrl's and never followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyrl.errors import UserError
from polyrl.runtime.files import read_json, read_yaml, shown

LOCK = ".polyrl.lock"
"""Held by the process that writes the folder."""
LISTED = ".polyrl-files.json"
"""Lies in an exported model folder and lists the files that were written with it."""

_RUN = re.compile(r"(config\.yaml|(metrics|samples)\.jsonl|summary\.json|report\.(html|csv)|play\.mp4|claim\.svg)")
_COMPARISON = re.compile(r"(compare\.yaml|report\.(html|csv)|claim\.svg)")
_LEFTOVER = re.compile(
    r"\.polyrl\.lock|\.(config\.yaml|compare\.yaml|(metrics|samples)\.jsonl|summary\.json)\.\d+\.tmp"
    r"|\.(runs|slurm)\.sh\.\d+\.tmp|\.README\.md\.\d+\.tmp"
    r"|\.report\.(html|csv)\.part|\.play\.writing\.mp4"
)
PLANS = ("runs.sh", "slurm.sh", "README.md")
"""Files of a plan: the lines of runs, an array of Slurm, and how to run them."""
PLANNED_BY = "Written by polyrl for a plan of runs"
"""Stands at the beginning of each of them: names that anybody may give to a file prove nothing."""
_EVENTS = re.compile(r"events\.out\.tfevents\.[0-9]+\..+\.[0-9]+")
_CHECKPOINT = re.compile(r"iteration-\d+")
UNFINISHED = re.compile(r"\.(writing-\d+|removing-iteration-\d+)-\d+")
"""Names of checkpoints that are being written or removed."""
_MODEL_FOLDERS = ("model", ".model.writing", ".model.old")
_INNER = ("policy", "critic", "reward", "reward-model")
"""Model folders within a checkpoint."""
_MODEL = re.compile(
    r"(config|generation_config|policy|kept|environments|adapter_config|state)\.json"
    r"|(model|adapter_model|head|policy|critic|kept|tables|environments|parts|reference-logprobs)\.safetensors"
    r"|(anchor|q|regressions|regret|step|target)\.safetensors"
    r"|optimi[sz]er-[\w-]+\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|preprocessor_config)\.json"
    r"|(vocab|merges)\.txt|tokenizer\.model|spiece\.model|sentencepiece\.bpe\.model|chat_template\.jinja"
    r"|additional_chat_templates/[^/]+\.jinja"
)
"""Files of model folders that carry no list of theirs."""

_PARTIAL = re.compile(r"(.+/)?\.tmp\w{6}")
"""What safetensors writes first and then renames: left behind by a process that was killed meanwhile."""

Own = Callable[[str], bool]


@dataclass
class Holding:
    """What a folder holds.

    Attributes:
        files: polyrl's files, in the order in which they may be removed: what proves the rest comes last.
        folders: polyrl's folders within it, deepest first.
        foreign: names of what is not polyrl's, within the folder.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def add(self, other: Holding) -> None:
        """Take in what a folder within this one holds."""
        self.files += other.files
        self.folders += other.folders
        self.foreign += other.foreign

    def remove(self) -> None:
        """Remove polyrl's files, and its folders where nothing else is left in them."""
        for file in self.files:
            file.unlink(missing_ok=True)
        for folder in self.folders:
            with suppress(OSError):  # something else is in it, or came into it just now
                folder.rmdir()

    def named(self, most: int = 3) -> str:
        """The foreign names for a sentence."""
        names = [shown(name, 80) for name in sorted(self.foreign)]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return ", ".join(names[:most]) + more


def _below(folder: Path, own: Own, prefix: str, *, ours: bool = True, last: Collection[str] = ()) -> Holding:
    """Sort everything below a folder, links not followed; `ours`: whether the folder may go when it is empty."""
    found, end = Holding(), list[Path]()
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name, path = f"{prefix}{entry.name}", folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            inner = _below(path, lambda n, e=entry.name: own(f"{e}/{n}"), f"{name}/", ours=False)  # type: ignore[misc]
            if not inner.files and not inner.foreign and entry.name not in _INNER:
                inner.foreign.append(f"{name}/")
            else:
                inner.folders.append(path)
            found.add(inner)
        elif entry.is_file(follow_symlinks=False) and own(entry.name):
            (end if entry.name in last else found.files).append(path)
        else:
            found.foreign.append(name)
    found.files += end
    if ours:
        found.folders.append(folder)
    return found


def checkpoint_names(folder: Path) -> set[str]:
    """Files of a checkpoint, as its state.json lists them; empty where that cannot be read."""
    try:
        listed = read_json(folder / "state.json").get("files")
    except (OSError, ValueError):
        return set()
    return set(listed) if isinstance(listed, dict) else set()


def known_names(checkpoints: Path) -> set[str]:
    """Files that the whole checkpoints in this folder list, also as they are called in a model folder."""
    found: set[str] = set()
    with suppress(OSError):
        for folder in checkpoints.iterdir():
            if _CHECKPOINT.fullmatch(folder.name):
                names = checkpoint_names(folder)
                found |= names | {name.partition("/")[2] for name in names if "/" in name}
    return found


def _within_model(name: str) -> bool:
    inner, _, rest = name.partition("/")
    return bool(_MODEL.fullmatch(rest if inner in _INNER else name))


def checkpoint_holding(folder: Path, prefix: str = "") -> Holding:
    """What a checkpoint, or what is left of one, holds."""
    names = checkpoint_names(folder)
    if names:
        own: Own = lambda name: name in names or name == "state.json"  # noqa: E731
    else:
        known = known_names(folder.parent)
        own = lambda name: name in known or _within_model(name) or bool(_PARTIAL.fullmatch(name))  # noqa: E731
    return _below(folder, own, prefix, last=("state.json",))


def model_holding(folder: Path, checkpoints: Path, prefix: str = "") -> Holding:
    """What an exported model folder holds, whole or not."""
    with suppress(OSError, ValueError):
        listed = read_json(folder / LISTED).get("files")
        if isinstance(listed, list):
            names = {str(name) for name in listed} | {LISTED}
            return _below(folder, names.__contains__, prefix, last=(LISTED,))
    known = known_names(checkpoints)
    adapters = (folder / "adapter_config.json").is_file()  # peft writes a README beside them
    writing = folder.name.startswith(".")  # nobody else puts files there

    def own(name: str) -> bool:
        ours = name in known or name == LISTED or _within_model(name) or (adapters and name == "README.md")
        return ours or (writing and bool(_PARTIAL.fullmatch(name)))

    return _below(folder, own, prefix)


def run_holding(folder: Path, prefix: str = "") -> Holding:
    """What a run folder holds; the config, which proves that it is one, is the last of its files."""
    found, end = Holding(), list[Path]()
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        name, path = f"{prefix}{entry.name}", folder / entry.name
        if entry.is_file(follow_symlinks=False) and (_RUN.fullmatch(entry.name) or _LEFTOVER.fullmatch(entry.name)):
            if entry.name != LOCK:
                (end if entry.name == "config.yaml" else found.files).append(path)
        elif not entry.is_dir(follow_symlinks=False):
            found.foreign.append(name)
        elif entry.name == "checkpoints":
            found.add(_checkpoints(path, f"{name}/"))
        elif entry.name == "tensorboard":
            found.add(_below(path, lambda n: bool(_EVENTS.fullmatch(n)), f"{name}/"))
        elif entry.name in _MODEL_FOLDERS:
            found.add(model_holding(path, folder / "checkpoints", f"{name}/"))
        else:
            found.foreign.append(f"{name}/")
    found.files += end
    return found


def _checkpoints(folder: Path, prefix: str) -> Holding:
    found = Holding()
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        ours = _CHECKPOINT.fullmatch(entry.name) or UNFINISHED.fullmatch(entry.name)
        if ours and entry.is_dir(follow_symlinks=False):
            found.add(checkpoint_holding(folder / entry.name, f"{prefix}{entry.name}/"))
        else:
            found.foreign.append(f"{prefix}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}")
    found.folders.append(folder)
    return found


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that a killed process left in a run folder or a comparison."""
    entries = [e for e in os.scandir(folder) if e.is_file(follow_symlinks=False) and e.name != LOCK]
    return [folder / e.name for e in entries if _LEFTOVER.fullmatch(e.name)]


def is_run(folder: Path) -> bool:
    """Whether the folder's config.yaml is one that polyrl wrote."""
    try:
        config = read_yaml(folder / "config.yaml")
    except UserError:
        return False
    run = config.get("run")
    return "polyrl" in config and isinstance(run, dict) and isinstance(run.get("method"), str)


def is_unbegun(folder: Path) -> bool:
    """Whether nothing is in the folder but what a run leaves that ended before it began.

    That is nothing at all; temporary files of a process that was killed; or a summary that says why it failed.
    """
    for entry in os.scandir(folder):
        if not entry.is_file(follow_symlinks=False):
            return False
        if entry.name == "summary.json":
            try:
                if not isinstance(read_json(folder / entry.name).get("status"), str):
                    return False
            except (OSError, ValueError):
                return False
        elif not _LEFTOVER.fullmatch(entry.name):
            return False
    return True


def is_comparison(folder: Path) -> bool:
    """Whether the folder's compare.yaml is one that polyrl wrote."""
    try:
        question = read_yaml(folder / "compare.yaml").get("question")
    except UserError:
        return False
    return isinstance(question, dict) and {"methods", "seeds", "base"} <= question.keys()


def is_of_plan(file: Path) -> bool:
    """Whether this is a file that polyrl wrote for a plan, perhaps changed since."""
    if file.name not in PLANS:
        return False
    with suppress(OSError), file.open("rb") as text:
        return PLANNED_BY.encode() in text.read(200)
    return False


def comparison_holding(folder: Path, arms: Iterable[str]) -> Holding:
    """What a comparison holds; `arms` are the names of its run folders."""
    found, end, names = Holding(), list[Path](), set(arms)
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = folder / entry.name
        if entry.is_file(follow_symlinks=False) and (
            _COMPARISON.fullmatch(entry.name) or _LEFTOVER.fullmatch(entry.name) or is_of_plan(path)
        ):
            if entry.name != LOCK:
                (end if entry.name == "compare.yaml" else found.files).append(path)
        elif entry.is_dir(follow_symlinks=False) and entry.name in names and (is_run(path) or is_unbegun(path)):
            found.add(run_holding(path, f"{entry.name}/"))
            if (path / LOCK).is_file():
                found.files.append(path / LOCK)
            found.folders.append(path)
        else:
            found.foreign.append(f"{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}")
    found.files += end
    return found


def keep_apart(folder: Path, names: Iterable[str], place: Path, called: str) -> Path:
    """Move what is not polyrl's out of a folder that is to go, into a new folder `kept-...` in `place`; return that."""
    kept, n = place / f"kept-{called}", 2
    while os.path.lexists(kept):
        kept, n = place / f"kept-{called}-{n}", n + 1
    kept.mkdir()
    move(folder, names, kept)
    return kept


def move(folder: Path, names: Iterable[str], to: Path) -> None:
    """Move files, links and empty folders, named within `folder`, to the same names within `to`."""
    for name in (name.rstrip("/") for name in names):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(to / name)


def listing(folder: Path) -> dict[str, Any]:
    """What `LISTED` holds of a model folder: the files in it now."""
    files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return {"polyrl": "the files that polyrl wrote here", "files": files}
