"""Code that a run folder names runs only where the user chose it: a folder from somebody else runs none by itself.

Whoever names a method file, a reward, a preference or an environment in a command or in Python chooses it, and that is
recorded outside of the run folder: the code's place and a hash of its text, in the user's state folder. `resume`,
`eval` and `play` read what to run from the run folder. They run code that is recorded, and ask for `--trust-code` where
it is not. A file that lies elsewhere than in the run folder may have been mended since; one inside, which may have come
with the folder, must have the text that was recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from polyrl import catalogue
from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig
from polyrl.runtime.files import write_atomically
from polyrl.settings import parse_call
from polyrl.tasks import ENVIRONMENT
from polyrl.tasks.language.checkers import CHECKERS
from polyrl.tasks.language.phrases import shortened
from polyrl.tasks.language.rewards import split_weight
from polyrl.tasks.user_code import module_file

ALL = ("method", "reward", "preference", "task")
"""Kinds of code that a run can name."""
MOST_KEPT = 20
"""Texts of one file that are remembered, the newest last."""
_here: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class NamedCode:
    """Code that a config names.

    Attributes:
        kind: one of `ALL`.
        spec: as the config has it.
        place: its file, or the name of a module that has none.
        digest: of the file's text; empty where there is none.
    """

    kind: str
    spec: str
    place: str
    digest: str


def named_code(config: RunConfig, kinds: Collection[str] = ALL) -> list[NamedCode]:
    """The code that this config names and polyrl has not; nothing is imported."""
    named: list[tuple[str, str]] = []
    if "method" in kinds and ".py" in config.method:
        named += [("method", str(path)) for path in catalogue.method_files(config.method)]
    if "reward" in kinds:
        specs = [split_weight(spec)[0] for spec in config.rewards]
        named += [("reward", s) for s in specs if s not in CHECKERS and not Path(s).expanduser().is_dir()]
    if "preference" in kinds and config.preference:
        named.append(("preference", config.preference))
    if "task" in kinds and ":" in (task := parse_call(config.task)[0] if "(" in config.task else config.task):
        named.append(("task", task))
    found = []
    for kind, spec in named:
        place, colon, _ = spec.rpartition(":") if kind != "method" else (spec, ":", "")
        if not colon or not place:
            continue  # no code: what is wrong with it is said where it is loaded
        if kind == "task" and ENVIRONMENT.match(spec):
            place = spec.partition(":")[0]  # a package that registers the environment
        found.append(NamedCode(kind, spec, *_located(place)))
    return found


def _located(place: str) -> tuple[str, str]:
    """The file that `place` means, a path or a module's name, and the hash of its text."""
    path: Path | None = Path(place).expanduser() if place.endswith(".py") else module_file(place)
    if path is None:
        return f"module {place}", ""
    try:
        return str(path.resolve()), hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return str(path.absolute()), ""


# ------------------------------------------------------------------------------------------------------ the record


def record_folder() -> Path:
    """Where it is kept which code the user has chosen: `polyrl` in the user's state folder.

    Not in the cache, which several users may share.
    """
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "polyrl" / "chosen-code"


def choose(config: RunConfig) -> None:
    """Record that the user chose the code that this config names. Where nothing can be written, nothing is recorded."""
    for code in named_code(config):
        record(code)


def record(code: NamedCode) -> None:
    """Record one piece of code with its present text."""
    _here.add((code.place, code.digest))
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that is read-only
        file = _record_file(code.place)
        known = [digest for digest in _recorded(code.place) if digest != code.digest]
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, json.dumps({"place": code.place, "digests": [*known, code.digest][-MOST_KEPT:]}) + "\n")


def _record_file(place: str) -> Path:
    return (
        record_folder()
        / f"{hashlib.blake2b(place.encode('utf-8', 'surrogateescape'), digest_size=12).hexdigest()}.json"
    )


def _recorded(place: str) -> list[str]:
    try:
        kept = json.loads(_record_file(place).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return []
    digests = kept.get("digests") if isinstance(kept, dict) and kept.get("place") == place else None
    return [digest for digest in digests if isinstance(digest, str)] if isinstance(digests, list) else []


def check_code(
    config: RunConfig,
    folder: Path,
    kinds: Collection[str] = ALL,
    *,
    trust_code: bool = False,
    chosen: RunConfig | None = None,
) -> None:
    """Refuse to run code that is named in a run folder and that the user has not chosen.

    Args:
        config: as the folder has it.
        folder: the run or comparison.
        kinds: what is going to run.
        trust_code: whether the user said to run it; what is named is chosen with that.
        chosen: what the user asked for in this very command, whose code needs no record.

    Raises:
        UserError: code that is not recorded as the user's choice, or that lies in the folder and has changed since.
    """
    named = named_code(config, kinds)
    if trust_code:
        for code in named:
            record(code)
        return
    asked = {(code.place, code.digest) for code in named_code(chosen)} if chosen is not None else set()
    for code in named:
        key = (code.place, code.digest)
        if key in _here or key in asked:
            continue
        known = _recorded(code.place)
        inside = Path(code.place).is_relative_to(folder.resolve())
        if code.digest in known or (known and not inside):
            continue
        since = " as it is now: it has changed since you did" if known else ""
        raise UserError(
            f"{folder} names the {code.kind} {shortened(code.spec, 200)}, which is code that you have not run{since}; "
            "look at it, then say --trust-code (in Python trust_code=True) to run it."
        )
