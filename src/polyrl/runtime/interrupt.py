"""Ctrl-C, SIGTERM and SIGHUP end a run between two iterations, with a checkpoint; a second one ends it at once.

In the middle of an update there is nothing to save, so the first is only noted, and looked at after each iteration.
That also means that none gets lost: Python drops a KeyboardInterrupt that meets a destructor or a callback of C code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAID = b"\npolyrl: stopping after this iteration; press Ctrl-C again to stop at once.\n"


def stop(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, as Python does for Ctrl-C: the handler of all three signals on the command line."""
    raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does, for a while; what was ignored (nohup) stays so."""
    changed = []
    if threading.current_thread() is threading.main_thread():
        changed = [n for n in SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
        for number in changed:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class _Worker:
    """What a worker process was told: signals reach it more than once, so there they are not counted."""

    here = False
    asked = False
    at_once = False


def be_worker() -> None:
    """Leave it to the parent process, which gets Ctrl-C and a closing terminal as well, when this process stops."""
    _Worker.here = True
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def be_one_of_several() -> None:
    """Count a signal once: a terminal sends Ctrl-C to every process of the run, and torchrun passes it on to them."""
    _Worker.here = True


def ask_worker(at_once: bool) -> None:
    """Stop the run of this worker process after its iteration, or at once; from any thread."""
    _Worker.asked, _Worker.at_once = True, at_once
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt where one of the signals came since.

    A second signal raises it at once, wherever that is. Only in the main thread, and only signals that nobody else
    handles or ignores.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [n for n, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler, stop)]
    pressed = 0

    def note(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed += 1
        if _Worker.at_once or (pressed > 1 and not _Worker.here):
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            with suppress(OSError, ValueError, AttributeError):
                if sys.stderr.isatty():
                    os.write(sys.stderr.fileno(), SAID)

    def check() -> None:
        if pressed or _Worker.asked:
            raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, note)
    try:
        yield check
    finally:
        for number in mine:
            signal.signal(number, before[number])
