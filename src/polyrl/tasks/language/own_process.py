"""A process that calls a function of the user's and is kept warm: a call that does not end is ended with it.

The process is a fork, so a closure, an object or a model that the function holds is there as it was; what the function
keeps between calls stays in the process. Arguments and answers go through a pipe. What is printed there is printed
here. The process ends with this one, and a call that runs out of time is first interrupted and then killed, with all
processes that it has started. Where the system cannot fork safely there is none (`can_fork`).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

GRACE = 2.0
"""Seconds that an interrupted call has to end by itself before its process is killed."""
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class OutOfTime(Exception):
    """The call did not end in time, and its process was killed."""


class Ended(Exception):
    """The function ended its own process, or something killed it; says how, in a phrase."""


class NotSent(Exception):
    """The arguments cannot be brought into another process."""


def can_fork() -> bool:
    """Whether a process can be forked safely: on Linux; macOS's own libraries break in forks, and Windows has none."""
    return sys.platform.startswith("linux") and hasattr(os, "fork")


class OwnProcess:
    """A warm process in which `function(*arguments)` is called.

    Args:
        function: returns what can be pickled, and raises nothing: failures are answers too.
        seed: of Python's, NumPy's and torch's own random numbers in the process.
    """

    def __init__(self, function: Callable[..., Any], seed: int = 0):
        self.function, self.seed = function, seed
        self._pid = 0
        self._ready = False
        self._pipe: Connection[Any, Any] | None = None
        self._end: weakref.finalize[..., OwnProcess] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._pipe is not None

    def start(self) -> None:
        """Start the process, where it does not run."""
        if self._pipe is not None:
            return
        mine, theirs = Pipe()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        tokenizers = os.environ.get("TOKENIZERS_PARALLELISM")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read in the fork: its threads do not survive one
        main = threading.current_thread() is threading.main_thread()
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: see `_quieten`
                pid = os.fork()
            if pid == 0:
                mine.close()
                _serve(self.function, theirs, self.seed, parent, main)
        finally:
            if os.getpid() == parent:
                os.environ.pop("TOKENIZERS_PARALLELISM")
                if tokenizers is not None:
                    os.environ["TOKENIZERS_PARALLELISM"] = tokenizers
        theirs.close()
        self._pid, self._pipe, self._ready = pid, mine, False
        self._end = weakref.finalize(self, _kill, pid, parent)

    def call(self, arguments: tuple[Any, ...], seconds: float | None) -> Any:
        """Return `function(*arguments)`.

        Args:
            arguments: plain values.
            seconds: after which the process is killed; None waits for ever.

        Raises:
            OutOfTime: it took longer.
            Ended: the process ended.
            NotSent: the arguments cannot be pickled.
        """
        try:
            sent = ForkingPickler.dumps((seconds, arguments))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise NotSent(str(error)) from error
        self.start()
        assert self._pipe is not None
        try:
            if not self._ready:  # its start is not counted: on a busy machine that takes a while
                self._pipe.recv()
                self._ready = True
            until = None if seconds is None else time.monotonic() + seconds
            self._pipe.send_bytes(sent)
            while True:
                if not self._pipe.poll(None if until is None else max(0.0, until - time.monotonic())):
                    self.close()
                    raise OutOfTime
                kind, value = self._pipe.recv()
                if kind == "answer":
                    return value
                stream = sys.stdout if kind == "stdout" else sys.stderr
                stream.write(value)
                stream.flush()
        except (EOFError, ConnectionError) as error:
            raise Ended(self._how_it_ended()) from error
        except BaseException:  # such as Ctrl-C: whatever it was doing is over
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        if self._pipe is not None:
            self._pipe.close()
        self._pipe = None

    def _how_it_ended(self) -> str:
        """How the process ended by itself."""
        status: int | None = None
        with contextlib.suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if self._end is not None:
            self._end.detach()
        self.close()
        self._end = None
        if status is None or status >= 0:
            return "ended its process" + (f" with exit code {status}" if status else "")
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            memory = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
            return f"had its process killed by {name}{memory}"
        return f"had its process killed by signal {-status}"


def _kill(pid: int, owner: int) -> None:
    """Kill a process and those that it has started; only the process that made it may."""
    if os.getpid() != owner:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError, InterruptedError):
        os.waitpid(pid, 0)


# ----------------------------------------------------------------------------------------------- in the own process


class _Relay(io.TextIOBase):
    """A stream whose lines are written by the process that waits for the answer."""

    def __init__(self, name: str, pipe: Connection[Any, Any], lock: threading.Lock, number: int):
        self.name, self._pipe, self._lock, self._number = name, pipe, lock, number
        self._waiting = ""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The number of the real stream, for processes that are started with it."""
        return self._number

    def write(self, text: str) -> int:
        """Keep the text until its line ends."""
        self._waiting += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting = self._waiting, ""
        if waiting:
            with self._lock:
                self._pipe.send((self.name, waiting))


def _serve(function: Callable[..., Any], pipe: Connection[Any, Any], seed: int, parent: int, main: bool) -> NoReturn:
    """Answer calls until the pipe closes."""
    with contextlib.suppress(BaseException):
        _quieten(seed)
        # the system tells when the thread that forked ends, and only the main thread ends with its process
        told = main and _end_with_parent(parent)
        nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        lock = threading.Lock()
        out, err = _Relay("stdout", pipe, lock, 1), _Relay("stderr", pipe, lock, 2)
        sys.stdout, sys.stderr = out, err
        pipe.send("ready")
        while True:
            # bytes of the parent alone: the pipe is one that it made for this process
            seconds, arguments = pickle.loads(pipe.recv_bytes())
            if not told and seconds is not None:  # a thread of its own that no call can hold up
                faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=nowhere)
            answer = function(*arguments)
            faulthandler.cancel_dump_traceback_later()
            out.flush()
            err.flush()
            with lock:
                pipe.send(("answer", answer))
    os._exit(0)


def _quieten(seed: int) -> None:
    """Make the fork a process of its own: its signals, its group, its random numbers, and no threads but this one."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # what it starts is killed with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    random.seed(f"user-function-{seed}")
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # thread pools do not survive a fork: whoever waits for one waits for ever
        torch.manual_seed(seed)
    with contextlib.suppress(Exception):
        from threadpoolctl import threadpool_limits

        threadpool_limits(1)


def _end_with_parent(parent: int) -> bool:
    """Let the system kill this process when the one that started it ends, however that ends; say whether it will."""
    told = False
    with contextlib.suppress(OSError, AttributeError):
        told = ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:  # it ended before this was said
        os._exit(0)
    return told
