"""TensorBoard's event files with one record an iteration, whatever number of values it holds.

TensorBoard's own `SummaryWriter` makes a record of every value, in a thread that competes with training.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """Appends scalars to a new event file in a folder."""

    def __init__(self, folder: Path, goes_on_at: int | None = None):
        """Start the file; values of steps from `goes_on_at` on that older files hold are forgotten by TensorBoard."""
        folder.mkdir(parents=True, exist_ok=True)
        # event files are read in the order of their names, which begin with the second: let no two share one
        while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._out = RecordWriter((folder / name).open("wb"))
        self._write(Event(wall_time=time.time(), step=goes_on_at or 0, file_version="brain.Event:2"))
        if goes_on_at is not None:
            started = SessionLog(status=SessionLog.SessionStatus.START)
            self._write(Event(wall_time=time.time(), step=goes_on_at, session_log=started))
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float], when: float) -> None:
        """Write the values of a step that were measured at the time `when`, seconds since 1970."""
        event = Event(wall_time=when, step=step)
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._write(event)

    def _write(self, event: Event) -> None:
        self._out.write(event.SerializeToString())

    def flush(self) -> None:
        """Let readers see what was written."""
        self._out.flush()

    def close(self) -> None:
        """End the file."""
        self._out.close()
