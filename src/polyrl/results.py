"""What `train` and `compare` return: folders and numbers, which a notebook shows as a table, a curve and the page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.runtime.figures import format_value
from polyrl.runtime.metric import Metric
from polyrl.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from polyrl.report.runs import Comparison

WIDE, HIGH = 480, 220
"""Pixels of a curve."""
PAGE_HEIGHT = 820
"""Pixels of the page within a notebook."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        folder: the run's folder; `folder / "model"` is an ordinary Hugging Face model folder.
        start, final: evaluation metrics before and after training.
        spent: samples, tokens, steps, reward_calls, seconds, updates, iterations.
        phases: of phases those of all of them, in order; this is the last one's.
    """

    folder: Path
    start: dict[str, float]
    final: dict[str, float]
    spent: dict[str, float]
    phases: tuple[RunResult, ...] = ()

    def curve(self) -> list[tuple[int, float]]:
        """What the run is judged by, at each evaluation: (iteration, value)."""
        key = self._metric.key
        return [(r["iteration"], float(r[key])) for r in RunFolder(self.folder).readable_records() if key in r]

    @property
    def _metric(self) -> Metric:
        stated = RunFolder(self.folder).read_config().get("metric")
        return Metric(**stated) if isinstance(stated, dict) else Metric()

    def _repr_html_(self) -> str:
        """A table of the evaluations before and after, and the curve between them."""
        rows = [
            (name.removeprefix("eval/"), _number(self.start.get(name)), _number(value))
            for name, value in self.final.items()
        ]
        spent = ", ".join(f"{_number(amount)} {unit}" for unit, amount in self.spent.items() if amount)
        metric = self._metric
        return (
            f"<p><b>{escape(str(self.folder))}</b><br>{escape(spent)}</p>"
            f"{table(('', 'start', 'end'), rows)}{_curve(self.curve(), metric)}"
        )


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison leaves; it stands for its folder where a path is asked for.

    Attributes:
        folder: the comparison's folder, with a run folder for each method and seed.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """The comparison's page."""
        return self.folder / "report.html"

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.folder / name

    @cached_property
    def comparison(self) -> Comparison:
        """The runs as the page reads them."""
        from polyrl.report.runs import load_comparison

        return load_comparison(self.folder)

    @property
    def finals(self) -> dict[str, dict[int, float]]:
        """Final value of what the runs are judged by, by method and seed; finished runs only."""
        return self.comparison.finals

    @property
    def sentences(self) -> list[str]:
        """What the comparison shows, in sentences."""
        from polyrl.report.findings import verdict

        return list(verdict(self.comparison))

    def __str__(self) -> str:
        return str(self.folder)

    def _repr_html_(self) -> str:
        """A table of the methods, what the comparison shows, and the page."""
        from polyrl.report.scale import mean

        try:
            found = self.comparison
        except UserError as error:  # none of its runs has begun
            return f"<p>{escape(str(error))}</p>"
        metric = found.metric
        rows = []
        for method in found.methods:
            values, before = [*found.finals[method].values()], [*found.starts[method].values()]
            ends = (format_value(metric, mean(metric, v).value) if v else "-" for v in (before, values))
            rows.append((method, str(len(values)), *ends))
        head = ("method", "runs", f"{metric.label} at the start", "at the end")
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences)
        page = ""
        if self.page.is_file():
            text = escape(self.page.read_text(encoding="utf-8"), quote=True)
            page = f'<iframe srcdoc="{text}" width="100%" height="{PAGE_HEIGHT}" frameborder="0"></iframe>'
        return f"{table(head, rows)}{said}{page}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table."""
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{''.join(lines)}</table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _curve(points: Sequence[tuple[int, float]], metric: Metric) -> str:
    """A curve over the iterations, as HTML."""
    from polyrl.report.drawing import frame
    from polyrl.runtime.drawing import Axis, Curves, Series, Sheet

    known = [(x, y) for x, y in points if math.isfinite(y)]
    if len({x for x, _ in known}) < 2:
        return ""
    log = metric.scale == "log" and all(y > 0 for _, y in known)
    drawn = [(float(x), math.log10(y) if log else y) for x, y in known]
    low, high = min(y for _, y in drawn), max(y for _, y in drawn)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    chart = Curves(
        width=WIDE,
        height=HIGH,
        x=Axis(domain=(drawn[0][0], drawn[-1][0]), title="iteration"),
        y=Axis(domain=(low - room, high + room), title=metric.label, log=log),
        series=[Series(name=metric.label, look=0, mean=drawn, end=drawn[-1])],
        unnamed=True,
    )
    label = f"{metric.label} by iteration: from {_number(points[0][1])} to {_number(points[-1][1])}"
    return frame(Sheet(width=WIDE, height=HIGH, label=label, items=[(0, 0, chart)]))
