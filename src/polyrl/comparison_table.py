"""How far a comparison is, read from its run folders while it runs: of each file only what has been added since."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from polyrl.report.scale import mean
from polyrl.runtime.budget import Budget, Spent
from polyrl.runtime.config import RunConfig
from polyrl.runtime.figures import format_value
from polyrl.runtime.files import parse_json
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import duration, sparkline
from polyrl.runtime.run_folder import RunFolder


class Watched(Protocol):
    """A run of a comparison."""

    @property
    def config(self) -> RunConfig:
        """What was asked for."""

    @property
    def folder(self) -> Path:
        """Where it is written."""


class RunSoFar:
    """One run as its folder tells it: its newest record, the metric at its evaluations, and its status."""

    def __init__(self, folder: Path, metric: Metric):
        self.folder, self.key = folder, metric.key
        self.status = "running"
        self._stamp: tuple[int, int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.record: dict[str, Any] = {}
        self.curve: list[float] = []
        self._offset, self._file, self._whole = 0, -1, True

    def read(self) -> None:
        """Read what was written since the last time; all of it where the file is another one, as after a resume."""
        self._read_status()
        try:
            with (self.folder / "metrics.jsonl").open("rb") as lines:
                stat = (self.folder / "metrics.jsonl").stat()
                if stat.st_ino != self._file or stat.st_size < self._offset:
                    self._forget()
                    self._file = stat.st_ino
                if stat.st_size == self._offset or not self._whole:
                    return
                lines.seek(self._offset)
                added = lines.read()
        except OSError:  # it has not begun, or begins again
            self._forget()
            return
        whole, newline, _ = added.rpartition(b"\n")  # a last line may be half written
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n") if newline else ():
            if not self._take(line):
                self._whole = False  # up to the first damaged line it is known how far the run is
                return

    def _take(self, line: bytes) -> bool:
        try:
            record = parse_json(line)
        except ValueError:
            return False
        if not isinstance(record, dict) or type(record.get("iteration")) is not int:
            return False
        self.record = record
        value = record.get(self.key)
        if isinstance(value, int | float):
            self.curve.append(float(value))
        return True

    def _read_status(self) -> None:
        """The summary's status, where the summary is another one than before."""
        try:
            stat = (self.folder / "summary.json").stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except OSError:
            self.status, self._stamp = "running", None
            return
        if stamp != self._stamp:
            self.status = str(RunFolder(self.folder).read_summary().get("status", "running"))
            self._stamp = stamp

    def share(self, budget: str) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.status in ("finished", "failed"):
            return 1.0
        if not self.record:
            return 0.0
        known = {f.name for f in dataclasses.fields(Spent)}
        counts: dict[str, Any] = {k: v for k, v in self.record.items() if k in known and isinstance(v, int | float)}
        return Budget.parse(budget).progress(Spent(**counts, iterations=self.record["iteration"]))


class Watch:
    """The runs of a comparison, and what a person is shown of them."""

    def __init__(self, arms: Sequence[Watched], metric: Metric):
        self.metric = metric
        self.runs = [(arm.config, RunSoFar(arm.folder, metric)) for arm in arms]

    def _shares(self) -> list[float]:
        for _, run in self.runs:
            run.read()
        return [run.share(config.budget) for config, run in self.runs]

    def line(self, began: float) -> str:
        """How far all runs are; `began` is when, by `time.perf_counter`."""
        shares = self._shares()
        ended = sum(share >= 1 for share in shares)
        done = 100 * sum(shares) / len(shares)
        return f"{ended} of {len(shares)} runs done, {done:.0f}%, {_left(shares, began)} left"

    def table(self, began: float) -> Table:
        """A line for each method; `began` is when, by `time.perf_counter`."""
        shares, metric = self._shares(), self.metric
        table = Table(box=None, padding=(0, 2), title_justify="left", title_style="bold")
        for column in ("method", "runs", f"{metric.label} at the start, now", "last curve", "seconds a run"):
            table.add_column(column, header_style="dim")
        for method in dict.fromkeys(config.arm for config, _ in self.runs):
            mine = [run for config, run in self.runs if config.arm == method]
            curves = [run.curve for run in mine if run.curve]
            first, last = (_shown(metric, [curve[i] for curve in curves]) for i in (0, -1))
            seconds = [s for run in mine if isinstance(s := run.record.get("seconds"), int | float)]
            table.add_row(
                method,
                f"{sum(run.status == 'finished' for run in mine)}/{len(mine)}",
                f"{first} -> {last}" if curves else "-",
                sparkline(curves[-1], metric) if curves else "",
                f"{sum(seconds) / len(seconds):.0f}" if seconds else "-",
            )
        table.title = f"{100 * sum(shares) / len(shares):.0f}% done, {_left(shares, began)} left"
        return table


def _left(shares: Sequence[float], began: float) -> str:
    done = sum(shares)
    return duration((time.perf_counter() - began) * (len(shares) - done) / done) if done > 0.02 * len(shares) else "-"


def _shown(metric: Metric, values: Sequence[float]) -> str:
    """The mean of a few runs, geometric for a log metric."""
    return format_value(metric, mean(metric, values).value) if values else "-"
