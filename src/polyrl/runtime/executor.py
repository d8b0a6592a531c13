"""Who runs the runs of a comparison: processes of this machine, a Ray cluster, or whoever is given a plan's lines.

A run is a folder that one command makes, and going on with it is exact. So an executor needs to know nothing of a run
but what is asked and its folder, and where a run is made changes no number of it.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

from polyrl.errors import UserError, nearest
from polyrl.runtime.files import shown
from polyrl.runtime.parent import end_with_parent

LOCAL, RAY, PLAN = "local", "ray", "plan"
EXECUTORS = (LOCAL, RAY, f"{RAY}://HOST:PORT", PLAN)
KILLED = "its process was killed, perhaps because memory ran out"
"""What a run says whose process died."""
INHERITED = ("POLYRL_KERNELS",)
"""Variables that change the last digits of numbers: a run has what they are where it was asked for."""


def kind_of(executor: str) -> str:
    """`local`, `ray` or `plan`: of `ray://host:port` what stands before its address."""
    return RAY if executor.startswith(f"{RAY}://") else executor


def check_executor(name: str, workers: int | None = None) -> None:
    """Refuse an executor that there is not, or an option that it does not use.

    Raises:
        UserError: there is none of that name, what it needs is not installed, or nothing is run here and so nobody can
            be told how many at a time.
    """
    kind = kind_of(name)
    if kind not in (LOCAL, RAY, PLAN) or name == f"{RAY}://":
        raise UserError(
            f"There is no executor '{shown(name, 80)}'; it is {', '.join(EXECUTORS[:-1])} or {EXECUTORS[-1]}."
            f"{nearest(name, EXECUTORS)}"
        )
    if kind == RAY and find_spec("ray") is None:
        raise UserError("--executor ray needs the extra 'ray': pip install 'polyrl[ray]'.")
    if kind == PLAN and workers is not None:
        raise UserError("--workers means nothing with --executor plan: whoever runs its lines says how many at a time.")


@dataclass(frozen=True)
class Job:
    """A run that is to be made, or to go on.

    Attributes:
        values: of its config.
        folder: its own.
        objects: what only Python can give, pickled by this process for its own workers.
        trust_code: whether it names code of the user's, which was chosen by asking for it.
    """

    values: dict[str, Any]
    folder: str
    objects: bytes = b""
    trust_code: bool = False


class Executor(ABC):
    """Makes runs, several at a time; entered once, before the first of them."""

    @abstractmethod
    def at_once(self, jobs: int) -> int:
        """How many of these runs are made at a time."""

    @abstractmethod
    def work(self, job: Job) -> str:
        """Make a run, or go on with it, until it ends; return what it failed with, or an empty string.

        Called in a thread for each run that is made at the time.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let every run stop after its iteration, with a checkpoint."""

    @abstractmethod
    def __enter__(self) -> Executor:
        """Prepare what runs are made with."""

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Give it back."""


class _OfThread(threading.local):
    """What each thread has for itself."""

    process: ProcessPoolExecutor | None = None


class LocalProcesses(Executor):
    """Worker processes, one for each thread: a process that dies takes its own run with it and no other.

    They end with this process, however it ends, and stop when `stop` says so.
    """

    def __init__(self, make: Callable[[dict[str, Any], str, bytes], str], threads: int, workers: int | None):
        """Prepare them; none is started before it has work.

        Args:
            make: does one run in a worker process, by the job's three attributes; a function of a module.
            threads: of a run.
            workers: how many runs at a time; none is as many as there are cores for.
        """
        self._make, self._threads, self._workers = make, threads, workers
        self._own = _OfThread()
        self._all: list[ProcessPoolExecutor] = []
        self._context = get_context("spawn")
        self._told, self._end = self._context.Pipe(duplex=False)

    def at_once(self, jobs: int) -> int:
        """As many as asked for, or as there are cores for."""
        return max(1, min(jobs, self._workers or (os.cpu_count() or 1) // self._threads))

    def __enter__(self) -> LocalProcesses:
        # the workers inherit this: numerical libraries read it when they are first imported
        os.environ.setdefault("OMP_NUM_THREADS", str(self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.shutdown(wait=False, cancel_futures=True)
        self._told.close()  # the other end stays open: the workers are idle, and to end in peace

    def stop(self) -> None:
        """Let every run stop after its iteration, with a checkpoint."""
        self._end.send(None)  # nobody reads it: every worker sees that it is there

    def work(self, job: Job) -> str:
        """Do the run in this thread's process."""
        process = self._own.process
        if process is None:
            process = self._own.process = ProcessPoolExecutor(
                1, mp_context=self._context, initializer=end_with_parent, initargs=(self._told,)
            )
            self._all.append(process)
        try:
            return process.submit(self._make, job.values, job.folder, job.objects).result()
        except BrokenProcessPool:
            self._own.process = None
            return KILLED
        except Exception as error:
            return f"{type(error).__name__}: {error}"
