"""Waits for coroutines, in one event loop that is kept between calls: clients that they keep stay connected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable
from concurrent.futures import TimeoutError as OutOfTime
from typing import Any


class WaitedTooLong(Exception):
    """A coroutine did not come to its end in time."""


_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""Process -> its loop: a fork inherits the loop and not the thread that runs it."""


def awaited(awaitable: Awaitable[Any], seconds: float | None) -> Any:
    """Return what a coroutine returns.

    Several threads may wait at once: their coroutines run side by side.

    Raises:
        WaitedTooLong: it took longer than `seconds`; it is cancelled, and the loop that it may hold up is left behind.
    """
    loop = _loop()
    future = asyncio.run_coroutine_threadsafe(_told(awaitable), loop)
    try:
        result, error = future.result(seconds)
    except OutOfTime:
        future.cancel()
        with _lock:
            if _loops.get(os.getpid()) is loop:
                del _loops[os.getpid()]
        raise WaitedTooLong from None
    if error is not None:
        raise error
    return result


async def _told(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What came of it, its error too: some errors would end the loop."""
    try:
        return await awaitable, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return None, error


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        found = _loops.get(os.getpid())
        if found is None:
            found = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(found,), daemon=True, name="polyrl-coroutines").start()
        return found


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    with contextlib.suppress(RuntimeError):
        loop.run_forever()
