"""A run is a folder: config.yaml, metrics.jsonl, samples.jsonl, tensorboard/, checkpoints/, summary.json.

Everything that reads a run (report, resume, dashboards) reads these files and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import polyrl
from polyrl.errors import UserError
from polyrl.runtime import ownership
from polyrl.runtime.files import (
    finite,
    json_line,
    parse_json,
    read_json,
    read_yaml,
    reading,
    write_atomically,
    writing,
)
from polyrl.runtime.lock import FolderLock
from polyrl.settings import with_present_names

if TYPE_CHECKING:
    from polyrl.runtime.event_file import EventFile

PHASES = "phases.yaml"
"""The file of a folder of phases (`polyrl.phases`), whose runs lie in it."""


def provenance() -> dict[str, Any]:
    """Command, versions and commit of this process, for config.yaml."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "polyrl": polyrl.__version__}
    for package in ("torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    command = " ".join(["polyrl" if Path(sys.argv[0]).stem in ("polyrl", "__main__") else sys.argv[0], *sys.argv[1:]])
    return {"polyrl": polyrl.__version__, "command": command, "versions": versions, "commit": commit_of_source()}


def commit_of_source() -> str | None:
    """The commit of polyrl's own source, if it lies in a git checkout; `+` marks uncommitted changes in it."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(here)]
        head = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run(
            [*ask, "status", "--porcelain", "--", "src", "pyproject.toml"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
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
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, path: Path, *, overwrite: bool = False) -> RunFolder:
        """Make the folder, and hold it; with `overwrite`, in the place of the run that it holds.

        Of what is there, only files that polyrl wrote are removed.

        Raises:
            UserError: see `check_free`; or another process writes it.
        """
        cls.check_free(path, overwrite=overwrite)
        folder = cls(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            folder.hold()
            try:
                cls.check_free(path, overwrite=overwrite)  # by now another process may have begun there
                ownership.run_holding(path).remove()
            except BaseException:
                folder.release()
                raise
        return folder

    @staticmethod
    def check_free(path: Path, *, overwrite: bool = False) -> None:
        """Look whether `create` would make the folder.

        Raises:
            UserError: it holds a run; with `overwrite`, it holds something that polyrl did not write; or it cannot
                be made there.
        """
        with writing(path):
            check_place(path, "run folder")
            if not path.exists() or ownership.is_unbegun(path):
                return
            if not ownership.is_run(path):
                held = [p.name for p in path.iterdir() if p.name != ownership.LOCK]
                raise UserError(
                    f"The folder {path} exists already and holds something else than a run "
                    f"({ownership.Holding(foreign=held).named()}); choose another --out."
                )
            if not overwrite:
                raise UserError(
                    f"The run folder {path} exists already; choose another --out, or go on with `polyrl resume {path}`."
                )
            if (holding := ownership.run_holding(path)).foreign:
                raise UserError(
                    f"The run folder {path} holds what polyrl did not write ({holding.named()}), so it is not "
                    "overwritten; move that away, or choose another --out."
                )

    def hold(self) -> None:
        """Keep other processes from writing here until `release`, or until this process ends.

        Raises:
            FolderInUse: another process does.
        """
        if self._lock is None:
            self._lock = FolderLock(self.path)

    def tidy(self) -> None:
        """Remove the temporary files that a killed process left here; the folder must be held."""
        with writing(self.path):
            for file in ownership.leftovers(self.path):
                file.unlink(missing_ok=True)

    def release(self) -> None:
        """Let other processes write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        with writing(self.path / "config.yaml"):
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomically(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            UserError: the folder is no run folder.
        """
        file = self.path / "config.yaml"
        with reading():
            if not file.is_file():
                if self.path.is_dir() and any(self.path.iterdir()) and ownership.is_unbegun(self.path):
                    raise UserError(
                        f"The run in {self.path} ended before it began: it has no config.yaml; give its command again."
                    )
                raise UserError(f"{self.path} is not a run folder: it has no config.yaml.")
        config = with_present_names(read_yaml(file))
        if not isinstance(config.get("run"), dict):
            raise UserError(f"{file} is not the config of a polyrl run: it has no 'run' section.")
        self._find_moved_phases(config["run"])
        return config

    def _find_moved_phases(self, run: dict[str, Any]) -> None:
        """Set the models that earlier phases handed on to where they are now, if all phases' folder was moved."""
        phases = self.path.absolute().parent
        if not (phases / PHASES).is_file():
            return

        def present(stated: object) -> object:
            path = Path(str(stated))
            here = phases / path.parent.name / path.name
            return str(here) if not path.exists() and path.name == "model" and here.is_dir() else stated

        run["model"] = present(run.get("model"))
        run["rewards"] = [present(reward) for reward in run.get("rewards") or ()]

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
        file = self.path / "metrics.jsonl"
        with writing(file), file.open("a", encoding="utf-8") as out:
            out.writelines(json_line(record) for record, _, _ in waiting)
        with writing(self.path / "tensorboard"):
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
        with writing(self.path / "samples.jsonl"), (self.path / "samples.jsonl").open("a", encoding="utf-8") as out:
            out.writelines(json_line(r) for r in records)

    def summary(self, values: dict[str, Any]) -> None:
        """Write summary.json; whoever reads it finds every record logged before."""
        self._hand_over()
        with writing(self.path / "summary.json"):
            text = json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n"
            write_atomically(self.path / "summary.json", text)

    def read_summary(self) -> dict[str, Any]:
        """Read summary.json; empty if there is none, or one that cannot be read."""
        try:
            return read_json(self.path / "summary.json")
        except (OSError, ValueError):
            return {}

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of metrics.jsonl; a last line cut short by a kill is left out.

        Raises:
            UserError: another line is damaged.
        """
        self._hand_over()
        yield from _lines(self.path / "metrics.jsonl")

    def readable_records(self) -> Iterator[dict[str, Any]]:
        """Yield the records of metrics.jsonl up to the first damaged line, to show how far a run is."""
        with contextlib.suppress(UserError):
            yield from self.records()

    def cut_back(self, iteration: int) -> list[str]:
        """Forget what was written after `iteration`, because the run goes on from there.

        Returns sentences about what else is gone: a last line that a kill cut short, an iteration that was there twice.

        Raises:
            UserError: a line of a file is damaged, so what is to be kept cannot be told; nothing was changed.
        """
        self._end_board()
        self._goes_on_at = iteration + 1
        metrics, samples, summary = (self.path / name for name in ("metrics.jsonl", "samples.jsonl", "summary.json"))
        for file in (metrics, samples, summary):
            if os.path.lexists(file) and not file.is_file():
                raise UserError(f"{file} is no file that a run can go on with; move it away.")
        said: list[str] = []
        kept = {
            f: [r for r in _lines(f, said) if r["iteration"] <= iteration] for f in (metrics, samples) if f.is_file()
        }
        once: list[dict[str, Any]] = []
        for record in kept.get(metrics, []):
            if once and once[-1]["iteration"] >= record["iteration"]:
                said.append(f"{metrics} has iteration {record['iteration']} twice; the later line is kept")
                once = [r for r in once if r["iteration"] < record["iteration"]]
            once.append(record)
        if metrics in kept:
            kept[metrics] = once
        for file, records in kept.items():
            with writing(file):
                write_atomically(file, "".join(map(json_line, records)))
        return said

    def write_folder(self, name: str, write: Callable[[Path], None]) -> list[str]:
        """Let `write` fill a folder that appears in the run at once and whole, in the place of an earlier one.

        Returns sentences about files that are not polyrl's: those that lay in the earlier folder are in the new one.

        Raises:
            WriteError: the disk is full or does not allow it; the earlier folder is as it was.
        """
        final, temporary, old = (self.path / n for n in (name, f".{name}.writing", f".{name}.old"))
        checkpoints, said = self.path / "checkpoints", []
        with writing(final):
            if os.path.lexists(old) and not os.path.lexists(final):  # killed between the two names
                old.rename(final)
            for leftover in (temporary, old):
                said += self._clear(leftover, checkpoints, final)
            try:
                write(temporary)
                text = json.dumps(ownership.listing(temporary), indent=1) + "\n"
                (temporary / ownership.LISTED).write_text(text, encoding="utf-8")
            except BaseException:
                self._clear(temporary, checkpoints, final)  # a full disk needs the room
                raise
            if os.path.lexists(final):
                final.rename(old)
            temporary.rename(final)
            said += self._clear(old, checkpoints, final)
        return said

    def _clear(self, folder: Path, checkpoints: Path, final: Path) -> list[str]:
        """Remove what is polyrl's of a folder that is no longer wanted; move the rest to where it can be seen."""
        if not os.path.lexists(folder):
            return []
        if folder.is_symlink() or not folder.is_dir():  # somebody put another place there
            place = ownership.keep_apart(self.path, [folder.name], self.path, final.name)
            return [f"what was at {final} is not polyrl's and is kept in {place}"]
        holding = ownership.model_holding(folder, checkpoints)
        fits = [n for n in holding.foreign if final.is_dir() and not os.path.lexists(final / n)]
        ownership.move(folder, fits, final)
        said = []
        if other := [n for n in holding.foreign if n not in fits]:
            place = ownership.keep_apart(folder, other, self.path, final.name)
            said = [f"{ownership.Holding(foreign=other).named()} in {final} is not polyrl's and is kept in {place}"]
        holding.remove()
        return said

    def flush(self) -> None:
        """Bring what was logged to the disk, so that no checkpoint is newer than its metrics."""
        self._hand_over()
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).is_file():
                with writing(self.path / name), (self.path / name).open("rb") as written:
                    os.fsync(written.fileno())

    def _end_board(self) -> None:
        self._hand_over()
        if self._board is not None:
            with writing(self.path / "tensorboard"):
                board, self._board = self._board, None
                board.close()

    def close(self) -> None:
        """Write what waits, end the TensorBoard events, and let other processes write here."""
        try:
            self._end_board()
        finally:
            self.release()


def _lines(file: Path, said: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The records of a file, each with the number of its iteration; `said` is told of a last line cut short.

    Raises:
        UserError: a line is no such record; only the last one may be cut short, which is what a kill leaves.
    """
    if not file.is_file():
        return
    with reading():
        lines = file.read_bytes().split(b"\n")  # at line feeds only: JSON strings may hold Unicode's other separators
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:
            return
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or type(record.get("iteration")) is not int:
                raise ValueError("it is no record of an iteration")
        except ValueError:
            if number == len(lines):
                if said is not None:
                    said.append(f"the last line of {file} was cut short, so it is left out")
                return
            raise UserError(
                f"Line {number} of {file} is damaged; mend it from a copy, or remove it to go on without it."
            ) from None
        yield record


def check_place(path: Path, what: str) -> None:
    """Look whether a folder can be made, or written into where it is there.

    Raises:
        UserError: it cannot.
    """
    with writing(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, so it cannot be the {what}; choose another --out.")
        above = path if path.exists() else next((p for p in path.absolute().parents if os.path.lexists(p)), Path("/"))
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"The {what} {path} cannot be made in {above}; choose another --out.")
