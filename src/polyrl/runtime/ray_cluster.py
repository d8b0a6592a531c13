"""Runs on a Ray cluster: each by the command of a plan's line, in an actor on whatever node has room for it.

Where a node sees the comparison's folder, the run is made there and nothing is brought. Elsewhere the node makes it in
a folder of its own, and what changes in that is brought home every few seconds: progress shows as it does of runs that
are made here, and a run whose node is lost goes on, on another one, from the last checkpoint that came home.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import polyrl
from polyrl.errors import UserError
from polyrl.runtime.executor import INHERITED, Executor, Job
from polyrl.runtime.files import shown, writing
from polyrl.runtime.lock import FolderInUse, FolderLock
from polyrl.runtime.ownership import LISTED, LOCK
from polyrl.runtime.parent import PR_SET_PDEATHSIG

LOST = 3
"""How often a run may lose its worker before it counts as failed."""
EVERY = 2.0
"""Seconds between two looks at a run."""
PATIENCE = 60.0
"""Seconds that a run waits for the process of a lost node to leave its folder."""


def import_ray() -> Any:
    """The package ray.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError("The executor 'ray' needs the extra 'ray': pip install 'polyrl[ray]'.") from error


# ------------------------------------------------------------------------------------------------------- on the node


class Worker:
    """A run on a node: the command that makes it, and the files that it changes."""

    def __init__(self, folder: str, words: list[str], settings: dict[str, str | None], holder: str, work_in: str):
        """Remember what is to be run; nothing is started yet.

        Args:
            folder: of the run, as it is called where the comparison is.
            words: options of `polyrl resume`.
            settings: variables of the environment; None removes one.
            holder: what the lock of the comparison's folder says there, by which this node knows whether it sees it.
            work_in: folder in which the comparison was asked for, taken where it is here too.
        """
        self._folder, self._words, self._settings = Path(folder), words, settings
        self._work_in = work_in if os.path.isdir(work_in) else None
        self._apart: Path | None = None
        self._known: dict[str, tuple[int, int, int]] = {}
        self._shared = bool(holder) and _read(self._folder.parent / LOCK) == holder.encode()

    def sees(self) -> tuple[bool, str]:
        """Whether this node sees the comparison's folder, and which polyrl it has."""
        return self._shared, polyrl.__version__

    def start(self, files: dict[str, bytes]) -> None:
        """Start the command; `files` are those of the run so far, and compare.yaml, where the folder is not shared."""
        if not self._shared:
            self._apart = Path(tempfile.mkdtemp(prefix="polyrl-"))
            (self._apart / "compare.yaml").write_bytes(files.pop("compare.yaml"))
            self._folder = self._apart / self._folder.name
            write_files(self._folder, files)
            self._known = {name: stamp for name, (stamp, _) in changed_files(self._folder, {}).items()}
        _wait_until_free(self._folder)
        environment = {**os.environ, **{k: v for k, v in self._settings.items() if v is not None}}
        for name in (name for name, value in self._settings.items() if value is None):
            environment.pop(name, None)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        command = [sys.executable, "-m", "polyrl", "resume", *self._words, "--quiet", str(self._folder)]
        self._process = subprocess.Popen(
            command,
            cwd=self._work_in,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )

    def look(self) -> tuple[int | None, str, dict[str, bytes], list[str]]:
        """The exit code if it has ended, the end of what it said, and the files that have changed or gone since."""
        code = self._process.poll()  # first: what it wrote before its end is seen below
        changed: dict[str, bytes] = {}
        gone: list[str] = []
        if not self._shared:
            found = changed_files(self._folder, self._known)
            there = {name for name, _ in _listed(self._folder)}
            gone = [name for name in self._known if name not in there]
            self._known = {k: v for k, v in self._known.items() if k in there}
            self._known |= {name: stamp for name, (stamp, _) in found.items()}
            changed = {name: data for name, (_, data) in found.items()}
        self._said.seek(0)
        said = self._said.read()[-4000:].decode("utf-8", "replace")
        if code is not None and self._apart is not None:
            shutil.rmtree(self._apart, ignore_errors=True)  # made by this worker
        return code, said, changed, gone

    def stop(self) -> None:
        """Let the run stop after its iteration, with a checkpoint."""
        self._process.send_signal(signal.SIGTERM)


def _die_with_parent() -> None:
    """Of a process that is about to start: the kernel kills it when the worker goes, so that it leaves its folder."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait_until_free(folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while folder.is_dir() and time.monotonic() < until:
        try:
            FolderLock(folder).release()
            return
        except FolderInUse:
            time.sleep(0.5)


# --------------------------------------------------------------------------------------------------------- the files


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _listed(folder: Path, prefix: str = "") -> list[tuple[str, Path]]:
    """Files below a folder by their names in it, in order; what else is hidden is being written, or is a lock."""
    try:
        entries = sorted((e for e in os.scandir(folder) if e.name[0] != "." or e.name == LISTED), key=lambda e: e.name)
    except OSError:  # it goes just now
        return []
    found: list[tuple[str, Path]] = []
    for entry in entries:
        name, path = f"{prefix}{entry.name}", folder / entry.name
        found += _listed(path, f"{name}/") if entry.is_dir(follow_symlinks=False) else [(name, path)]
    return found


def changed_files(
    folder: Path, known: dict[str, tuple[int, int, int]]
) -> dict[str, tuple[tuple[int, int, int], bytes]]:
    """Files that are other ones than `known`: what tells them apart, and their bytes.

    Checkpoints come before the records, which are at least as new; a checkpoint that goes meanwhile is left out.
    """
    found: dict[str, tuple[tuple[int, int, int], bytes]] = {}
    torn: set[str] = set()
    for name, path in _listed(folder):
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if known.get(name) != stamp:
                found[name] = (stamp, path.read_bytes())
        except OSError:
            torn.add(name.rpartition("/")[0])
    return {name: seen for name, seen in found.items() if not any(name.startswith(f"{one}/") for one in torn if one)}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder, each at once and whole."""
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(file)


def remove_files(folder: Path, names: list[str]) -> None:
    """Remove files that are gone, and the folders that they leave empty."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        for above in (folder / name).parents:
            if above == folder:
                break
            with suppress(OSError):
                above.rmdir()


# ---------------------------------------------------------------------------------------------------------- the home


class RayCluster(Executor):
    """Gives each run to an actor of a Ray cluster, and gives it again, up to `LOST` times, where that is lost."""

    def __init__(self, address: str, threads: int, workers: int | None, *, share: bool = True):
        """Prepare it; the cluster is reached when it is entered.

        Args:
            address: of the cluster, `ray://host:port`; empty for the one that is running, or one of this machine.
            threads: processors that a run asks for.
            workers: how many runs at a time; none is as many as the cluster has room for.
            share: whether nodes that see the comparison's folder make runs in it.
        """
        self._ray = import_ray()
        self._address, self._threads, self._workers, self._share = address, threads, workers, share
        self._running: dict[str, Any] = {}
        self._guard = threading.Lock()
        self._stopping = self._ours = False

    def at_once(self, jobs: int) -> int:
        """All that are asked for: those for which there is no room wait in the cluster."""
        return max(1, min(jobs, self._workers or jobs))

    def __enter__(self) -> RayCluster:
        if not self._ray.is_initialized():
            self._connect()
            self._ours = True
        return self

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address or os.environ.get("RAY_ADDRESS"):
                self._ray.init(address=self._address or None, **quiet)
                return
            try:
                self._ray.init(address="auto", **quiet)
            except ConnectionError:
                self._ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # whatever Ray raises where a cluster is not there, or does not start
            where = f"at {self._address}" if self._address else "on this machine"
            raise UserError(f"No Ray cluster {where} could be reached or started: {_first_line(error)}") from error

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def stop(self) -> None:
        """Let every run stop after its iteration, with a checkpoint."""
        self._stopping = True
        with self._guard:
            for worker in self._running.values():
                worker.stop.remote()

    def work(self, job: Job) -> str:
        """Make the run on some node, on another where that is lost."""
        said = ""
        for _ in range(LOST):
            try:
                return self._on_some_node(job)
            except _Lost as lost:
                said = str(lost)
            except UserError as error:
                return str(error)
            if self._stopping:
                return said
        return f"its worker was lost {LOST} times; the last time: {said}"

    def _on_some_node(self, job: Job) -> str:
        ray, folder = self._ray, Path(job.folder).absolute()
        holder = (_read(folder.parent / LOCK) or b"").decode() if self._share else ""
        gpus = 1 if str(job.values.get("device")).startswith("cuda") else 0
        settings = {"OMP_NUM_THREADS": str(self._threads), **{name: os.environ.get(name) for name in INHERITED}}
        actor = ray.remote(num_cpus=self._threads, num_gpus=gpus, max_restarts=0)(Worker)
        words = ["--trust-code"] if job.trust_code else []
        worker = actor.remote(str(folder), words, settings, holder, os.getcwd())
        lock: FolderLock | None = None
        try:
            shared, version = self._wait(worker.sees.remote(), for_room=True)
            if version != polyrl.__version__:
                raise UserError(f"A node of the cluster has polyrl {version}, and here it is {polyrl.__version__}.")
            files: dict[str, bytes] = {}
            if not shared:
                with writing(folder):
                    folder.mkdir(exist_ok=True)
                lock = FolderLock(folder)
                files = {name: data for name, (_, data) in changed_files(folder, {}).items()}
                files["compare.yaml"] = (folder.parent / "compare.yaml").read_bytes()
            self._wait(worker.start.remote(files))
            with self._guard:
                self._running[job.folder] = worker
            if self._stopping:  # asked for meanwhile
                worker.stop.remote()
            while True:
                code, said, changed, gone = self._wait(worker.look.remote())
                with writing(folder):
                    write_files(folder, changed)
                    remove_files(folder, gone)
                if code is not None:
                    return _ended(code, said)
                time.sleep(EVERY)
        except ray.exceptions.RayTaskError as error:  # a mistake on the node, which another node would make too
            return _first_line(error.cause if isinstance(error.cause, Exception) else error)
        except ray.exceptions.RayError as error:
            raise _Lost(_first_line(error)) from error
        finally:
            with self._guard:
                self._running.pop(job.folder, None)
            if lock is not None:
                lock.release()
            with suppress(Exception):  # it may be lost
                ray.kill(worker)

    def _wait(self, asked: Any, *, for_room: bool = False) -> Any:
        """The answer of a worker; a run that waits for room gives up when all are to stop, or no node is large enough.

        Raises:
            UserError: for `PATIENCE` seconds the cluster has had no node that could ever take it.
        """
        large_enough = time.monotonic()
        while True:
            try:
                return self._ray.get(asked, timeout=EVERY)
            except self._ray.exceptions.GetTimeoutError:
                if not for_room:
                    continue
                if self._stopping:
                    raise _Lost("it was stopped before it began") from None
                nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
                if any(node.get("CPU", 0) >= self._threads for node in nodes):
                    large_enough = time.monotonic()
                elif time.monotonic() - large_enough > PATIENCE:
                    raise UserError(
                        f"No node of the cluster has the {self._threads} processors that --threads asks for."
                    ) from None


def _first_line(error: BaseException) -> str:
    said = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return shown(said.strip().rstrip("."), 300) + "."


class _Lost(Exception):
    """A worker is gone, and its run goes on elsewhere."""


def _ended(code: int, said: str) -> str:
    """What a command that has ended says; an empty string where all is well.

    Raises:
        _Lost: it was killed.
    """
    if code < 0:
        raise _Lost(f"its process was ended by {signal.Signals(-code).name}, perhaps because memory ran out")
    if code == 0:
        return ""
    lines = [text for text in said.strip().splitlines() if text.strip()]
    told = next((text for text in reversed(lines) if text.startswith("polyrl: ")), lines[-1] if lines else "")
    return told.removeprefix("polyrl: ") or f"it ended with exit code {code}"
