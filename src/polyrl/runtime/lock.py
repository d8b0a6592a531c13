"""A lock on a folder that dies with the process that holds it: two processes in one run folder would ruin it.

It is the system's `flock`, so a kill or a power cut releases it. Network file systems pass it on to their server where
they know it (NFS from version 4, SMB, Lustre with the option `flock`); where they refuse it, the file still says which
process of which machine is there, and a living one of this machine is believed.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from polyrl.errors import UserError
from polyrl.runtime.files import parse_json, shown, writing
from polyrl.runtime.ownership import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNKNOWN = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What file systems answer that have no locks."""


class FolderInUse(UserError):
    """Another process writes the folder."""


class FolderLock:
    """Holds a folder until `release`, or until the process ends."""

    _held: TextIO | None = None

    def __init__(self, folder: Path, what: str = "run folder"):
        """Take the lock.

        Args:
            folder: exists, and is polyrl's.
            what: what the folder is called in a sentence.

        Raises:
            FolderInUse: another process holds it.
            WriteError: nothing can be written there.
        """
        self.file = folder / LOCK
        with writing(folder):
            while True:
                held = self.file.open("a+", encoding="utf-8")
                try:
                    known = _lock(held)
                except BlockingIOError:
                    raise _in_use(folder, what, held) from None
                # whoever held it last may have removed the file between our opening and our locking
                if not known or _same(self.file, held):
                    break
                held.close()
            if not known and _alive(held):
                raise _in_use(folder, what, held)
            held.truncate(0)
            held.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            held.flush()
        self._held = held
        self._process = os.getpid()

    def release(self) -> None:
        """Let others in; the file goes, too."""
        held, self._held = self._held, None
        if held is not None:
            with suppress(OSError):
                if self._process == os.getpid():  # a fork has a copy of it, which is not its own
                    if _same(self.file, held):
                        self.file.unlink()
                    if fcntl is not None:
                        fcntl.flock(held, fcntl.LOCK_UN)  # closing would leave it to forks that live on
            with suppress(OSError):
                held.close()

    def __del__(self) -> None:
        """A folder that is no longer in use may be taken by others, also without `release`."""
        if self._held is not None:
            self.release()


def _lock(held: TextIO) -> bool:
    """Take the system's lock; whether the file system knows such a thing.

    Raises:
        BlockingIOError: it is taken.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in UNKNOWN:
            return False
        raise
    return True


def _same(file: Path, held: TextIO) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(held.fileno()))
    except OSError:
        return False


def _holder(held: TextIO) -> tuple[int, str]:
    """Process and machine that the file names; (0, "") where it names none."""
    with suppress(OSError, ValueError):
        held.seek(0)
        said = parse_json(held.read(1000))
        if isinstance(said, dict) and isinstance(said.get("pid"), int) and isinstance(said.get("host"), str):
            return said["pid"], said["host"]
    return 0, ""


def _alive(held: TextIO) -> bool:
    """Whether the file names a living process of this machine, other than this one."""
    process, host = _holder(held)
    if process <= 0 or host != socket.gethostname() or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True


def _in_use(folder: Path, what: str, held: TextIO) -> FolderInUse:
    process, host = _holder(held)
    held.close()
    by = f"process {process}{'' if host == socket.gethostname() else f' on {shown(host)}'}" if process else "a process"
    return FolderInUse(f"The {what} {folder} is being written by {by}; wait until it has ended, or end it first.")
