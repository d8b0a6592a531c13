"""Processes that work in turns: each side of a comparison is a process that sleeps until it is given some steps to do.

So a busy neighbour, a warm processor or a slow hour meets all sides alike, and none pays for another's imports. Time is
processor time of the process (one thread), which does not grow while another process has the core; wall time stands
beside it. Only the standard library is used here, because peers run this file in environments of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REST = "everything else"
"""Part that gets the time which no other part claims."""


class Clock:
    """Processor seconds of named parts; every second counts once, for the innermost part that runs."""

    def __init__(self) -> None:
        self._inside = [REST]
        self._whole = 0
        self._since = time.process_time()
        self._parts: dict[str, float] = {}

    def _charge(self) -> None:
        now = time.process_time()
        self._parts[self._inside[-1]] = self._parts.get(self._inside[-1], 0.0) + now - self._since
        self._since = now

    def wrap(self, owner: Any, method: str, part: str, *, whole: bool = False) -> None:
        """Replace a method of an object or class by a timed copy.

        With `whole`, the parts that it calls count as this one.
        """
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._whole:
                return inner(*args, **kwargs)
            self._charge()
            self._inside.append(part)
            self._whole += whole
            try:
                return inner(*args, **kwargs)
            finally:
                self._charge()
                self._inside.pop()
                self._whole -= whole

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """The seconds of every part since the last call."""
        self._charge()
        parts, self._parts = self._parts, {}
        return parts


class Side:
    """The working end, inside the measured process.

    Standard output carries the results, so whatever the libraries print goes to standard error.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._rows: list[dict[str, Any]] = []
        self._wall = 0.0

    def begin(self, **facts: Any) -> None:
        """Everything is loaded: say so, and wait for the first turn. Peak memory counts from here on."""
        with contextlib.suppress(OSError):  # only Linux can forget an old peak
            Path("/proc/self/clear_refs").write_text("5")
        self._say({"facts": facts})
        self._wait()

    def step(self, **counts: Any) -> None:
        """A step has ended: note its time and `counts`, and wait where it was the last one of the turn."""
        parts, wall = self.clock.take(), time.perf_counter() - self._wall
        self._rows.append({"seconds": sum(parts.values()), "wall": wall, "parts": parts, **counts})
        self._left -= 1
        if not self._left:
            self._say({"rows": self._rows, "peak_mib": peak_mib()})
            self._wait()
        self._wall = time.perf_counter()

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(json.dumps(what, default=float) + "\n")
        self._out.flush()

    def _wait(self) -> None:
        self._rows = []
        line = sys.stdin.readline()
        if not line:  # there are no more turns
            raise SystemExit(0)
        self._left = int(line)
        self.clock.take()
        self._wall = time.perf_counter()


def peak_mib() -> float:
    """Largest resident memory of this process, MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


class Process:
    """The other end: starts a side with one thread, and gives it turns. What it prints goes to `log`."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env={**one_thread(), **(environment or {})},
            )
        self.facts: dict[str, Any] = self._read()["facts"]

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it do `steps` steps; returns their `rows`, and `peak_mib` so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark process failed; {self.log} says why:\n{self.log.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """No more turns."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def one_thread() -> dict[str, str]:
    """Environment of a measured process: one thread, no network, no warnings, no bars.

    Whatever pins OpenBLAS to the kernels of an older processor is left out: every library takes what it finds.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }


@contextlib.contextmanager
def started(
    commands: dict[str, list[str]],
    log: Callable[[str], Path],
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[dict[str, Process]]:
    """Start the sides one after the other, some with an environment of their own, and end them in any case."""
    processes: dict[str, Process] = {}
    try:
        for name, command in commands.items():
            processes[name] = Process(command, log(name), (environments or {}).get(name))
        yield processes
    finally:
        for process in processes.values():
            process.close()


def alternate(sides: dict[str, Process], repeats: int, steps: int, warm_up: int) -> dict[str, list[dict[str, Any]]]:
    """`repeats` rounds in which every side does `steps` steps, after `warm_up` unmeasured ones; turns by side."""
    for side in sides.values():
        side.turn(warm_up)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            turns[name].append(side.turn(steps))
    return turns
