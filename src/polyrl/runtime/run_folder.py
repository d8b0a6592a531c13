"""A run is a folder: config.yaml, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, summary.json.

Everything that reads a run (report, resume, dashboards) reads these files and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import polyrl
from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.runtime.event_file import EventFile


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def json_line(record: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity, which JSON has not, become null."""
    try:
        return _JSON.encode(record) + "\n"
    except ValueError:
        return _JSON.encode(_finite(record)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def provenance() -> dict[str, Any]:
    """Command, versions and commit of this process, for config.yaml."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "polyrl": polyrl.__version__}
    for package in ("torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    command = " ".join(["polyrl" if Path(sys.argv[0]).stem in ("polyrl", "__main__") else sys.argv[0], *sys.argv[1:]])
    return {"polyrl": polyrl.__version__, "command": command, "versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit of polyrl's own source, if it lies in a git checkout; `+` marks uncommitted changes."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(here)]
        head = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run(
            [*ask, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip()[:12] + ("+" if dirty.stdout.strip() else "")


SECONDS_KEPT = 1.0
"""How long records may wait before others can read them."""


class RunFolder:
    """Writes one run's files.

    Records of iterations are written together, once a second: what a killed process loses of them lies after its last
    checkpoint, because `flush` comes before every checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[tuple[dict[str, Any], bool, float]] = []
        self._board: EventFile | None = None
        self._goes_on_at: int | None = None
        self._hand_over_at = 0.0

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunFolder:
        """Make the folder; with `overwrite`, in the place of the run that it holds.

        Raises:
            UserError: see `check_free`.
        """
        cls.check_free(path, overwrite=overwrite)
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
        return cls(path)

    @staticmethod
    def check_free(path: Path, *, overwrite: bool = False) -> None:
        """Look whether `create` would make the folder.

        Raises:
            UserError: it exists and is not empty; with `overwrite`, it holds something else than a run; or it cannot
                be made there.
        """
        above = next(p for p in path.absolute().parents if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"The run folder {path} cannot be made in {above}; choose another --out.")
        if not path.exists():
            return
        if not path.is_dir():
            raise UserError(f"{path} is a file, so it cannot be the run folder; choose another --out.")
        held = {p.name for p in path.iterdir()}
        if held and not overwrite:
            raise UserError(
                f"The run folder {path} exists already; choose another --out, or go on with `polyrl resume {path}`."
            )
        # a run that failed before it began has left a summary only
        if "config.yaml" not in held and held - {"summary.json"}:
            raise UserError(f"The folder {path} holds something else than a run; choose another --out.")

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            UserError: the folder is no run folder.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} is not a run folder: it has no config.yaml.")
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}.") from None
        if not isinstance(config, dict) or "run" not in config:
            raise UserError(f"{file} is not the config of a polyrl run: it has no 'run' section.")
        return config

    def log(self, record: dict[str, Any], *, board: bool = True) -> None:
        """Append one iteration's record to metrics.jsonl and to the TensorBoard events."""
        self._waiting.append((record, board, time.time()))
        if time.monotonic() >= self._hand_over_at:
            self._hand_over()

    def _hand_over(self) -> None:
        """Write what waits, so that readers see it."""
        waiting, self._waiting = self._waiting, []
        self._hand_over_at = time.monotonic() + SECONDS_KEPT
        if not waiting:
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as out:
            out.writelines(json_line(record) for record, _, _ in waiting)
        for record, board, when in waiting:
            if board:
                numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "iteration"}
                self._writer().scalars(int(record["iteration"]), numbers, when)
        if self._board is not None:
            self._board.flush()

    def _writer(self) -> EventFile:
        if self._board is None:
            from polyrl.runtime.event_file import EventFile

            self._board = EventFile(self.path / "tensorboard", self._goes_on_at)
        return self._board

    def samples(self, records: list[dict[str, Any]]) -> None:
        """Append samples to be read by a person."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as out:
            out.writelines(json_line(r) for r in records)

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json; whoever reads it finds every record logged before."""
        self._hand_over()
        write_atomically(self.path / "summary.json", json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read summary.json; empty if there is none."""
        file = self.path / "summary.json"
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return values

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of metrics.jsonl; a last line cut short by a kill is left out."""
        self._hand_over()
        yield from _lines(self.path / "metrics.jsonl")

    def cut_back(self, iteration: int) -> None:
        """Forget what was written after `iteration`, because the run goes on from there."""
        self.close()
        self._goes_on_at = iteration + 1
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if file.is_file():
                kept = [r for r in _lines(file) if int(r["iteration"]) <= iteration]
                write_atomically(file, "".join(map(json_line, kept)))

    def write_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder that appears in the run at once and whole."""
        final, temporary, old = (self.path / n for n in (name, f".{name}.writing", f".{name}.old"))
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
        write(temporary)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def flush(self) -> None:
        """Bring what was logged to the disk, so that no checkpoint is newer than its metrics."""
        self._hand_over()
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).is_file():
                with (self.path / name).open("rb") as written:
                    os.fsync(written.fileno())

    def close(self) -> None:
        """Write what waits and end the TensorBoard events."""
        self._hand_over()
        if self._board is not None:
            self._board.close()
            self._board = None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        return
    # lines end at line feeds only: Unicode has other separators, which JSON strings may hold
    for line in file.read_bytes().split(b"\n"):
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError:  # cut short by a kill, perhaps inside a character
            return
        yield record
