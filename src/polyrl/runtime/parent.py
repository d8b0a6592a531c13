"""A worker process that ends with the process that started it, however that one ends.

On Linux the kernel tells the worker (`PR_SET_PDEATHSIG`). Everywhere a thread waits on a pipe that breaks when the
parent dies; it can also be told to stop while the parent lives. A worker in a run then stops as after Ctrl-C, with a
checkpoint; one that takes too long is ended.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from polyrl.runtime.interrupt import ask_worker, be_worker

PR_SET_PDEATHSIG = 1
PATIENCE = (20.0, 10.0)
"""Seconds that a worker has to finish its iteration and write its checkpoint, and then to stop in the middle of one."""
ORPHAN_EXIT = 70
"""Exit code of a worker that had to be ended."""


def end_with_parent(stop: Connection | None = None) -> None:
    """Let this worker process end with its parent, or when `stop` has something to read, which nobody reads.

    Call it once, first of all, in a process that `multiprocessing` started, by whatever start method.
    """
    be_worker()
    parent = multiprocessing.parent_process()
    if sys.platform.startswith("linux"):
        # sent when the parent's thread ends that started this process, so also when the whole parent does
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent, stop), daemon=True, name="polyrl-parent").start()


def _watch(parent: Any, stop: Connection | None) -> None:
    ends = [] if parent is None else [parent.sentinel]
    wait([*ends, *([] if stop is None else [stop])])
    for patience, at_once in zip(PATIENCE, (False, True), strict=True):
        ask_worker(at_once)
        time.sleep(patience)
    os._exit(ORPHAN_EXIT)
