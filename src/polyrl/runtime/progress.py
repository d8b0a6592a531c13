"""Progress in the terminal: a live panel where there is one, a plain line now and then where there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyrl.runtime.drawing import Axis, Curves, Series, blocks
from polyrl.runtime.figures import format_budget, format_kl, format_value, scientific, whole
from polyrl.runtime.metric import Metric
from polyrl.runtime.terminal import Terminal

SHOWN = {
    "reward": "reward",
    "episode/return": "return in training",
    "episode/length": "length",
    "cost": "cost in training",
    "rewards/margins": "margin",
    "rewards/accuracies": "pairs right",
    "kl": "KL",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut off",
    "clip_ratio": "clipped",
    "frac_reward_zero_std": "equal groups",
    "value/explained_variance": "explained variance",
    "suboptimality": "suboptimality",
    "loss": "loss",
}
"""What a running iteration is shown by, where it is logged: key -> label."""
SHARES = {"completions/clipped_ratio"}
"""Of these, shares that are shown in percent."""
MOST_SHOWN = 6
SPEEDS = {"tokens_per_second": "tokens/s", "steps_per_second": "steps/s", "updates_per_second": "updates/s"}
STAGE_COLOURS = {
    "policy": "white",
    "collect": "cyan",
    "score": "yellow",
    "credit": "magenta",
    "select": "green",
    "improve": "blue",
}


def duration(seconds: float) -> str:
    """`75.2` -> `1m15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Shows one run, by the metric that it is judged by. `quiet=True` shows warnings only."""

    def __init__(
        self,
        label: str,
        budget: str,
        metric: Metric | None = None,
        *,
        quiet: bool = False,
        console: Console | None = None,
    ):
        self.label, self.budget, self.quiet = label, budget, quiet
        self.metric = metric or Metric()
        self.console = console or Terminal()
        self.live: Live | None = None
        self.began, self.began_at = time.perf_counter(), 0.0
        self.last_line = 0.0
        self.seconds: dict[str, float] = {}
        self.evaluations: list[tuple[int, float]] = []

    def __enter__(self) -> Progress:
        if not self.quiet and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=4, transient=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, record: dict[str, Any], share: float) -> None:
        """Show an iteration's record; `share` of the budget is spent."""
        for key, value in record.items():
            if key.startswith("seconds/"):
                stage = key.partition("/")[2]
                self.seconds[stage] = self.seconds.get(stage, 0.0) + float(value)
        if record.get(self.metric.key) is not None:
            self.evaluations.append((int(record["iteration"]), float(record[self.metric.key])))
        if record["iteration"] == 0:
            self.began, self.began_at = time.perf_counter(), share
        if self.quiet:
            return
        if self.live:
            self.live.update(self._panel(record, share))
        elif time.perf_counter() - self.last_line > 10 or record.get(self.metric.key) is not None or share >= 1:
            self.last_line = time.perf_counter()
            self.console.print(self._line(record, share), soft_wrap=True)

    def ended(self, reason: str) -> None:
        """Say why the method itself has ended the run."""
        if not self.quiet:
            self.console.print(
                Text.assemble(("finished ", "bold green"), (f"[{self.label}] ", "dim"), reason), soft_wrap=True
            )

    def warn(self, text: str) -> None:
        """Show a warning."""
        self.console.print(
            Text.assemble(("warning ", "bold yellow"), (f"[{self.label}] ", "dim"), text), soft_wrap=True
        )

    def _left(self, share: float) -> str:
        done = share - self.began_at
        if done <= 0:
            return "-"
        return duration((time.perf_counter() - self.began) * (1 - share) / done)

    def _numbers(self, record: dict[str, Any]) -> list[tuple[str, str]]:
        there = [key for key in SHOWN if record.get(key) is not None][:MOST_SHOWN]
        rows = [(SHOWN[key], _shown(key, record[key])) for key in there]
        if self.evaluations:
            rows.insert(0, (self.metric.label, format_value(self.metric, self.evaluations[-1][1])))
        return rows + [(label, f"{record[key]:,.0f}") for key, label in SPEEDS.items() if record.get(key)]

    def _line(self, record: dict[str, Any], share: float) -> str:
        numbers = "  ".join(f"{k} {v}" for k, v in self._numbers(record))
        head = f"{self.label}  iteration {record['iteration']}  {100 * share:.0f}% of {format_budget(self.budget)}"
        return f"{head}  {numbers}  left {self._left(share)}"

    def _panel(self, record: dict[str, Any], share: float) -> Panel:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        bar.add_row(
            ProgressBar(total=1.0, completed=share),
            f"{100 * share:.0f}% of {format_budget(self.budget)}, {self._left(share)} left",
        )
        numbers = Table.grid(padding=(0, 3))
        shown = self._numbers(record)
        for _ in shown:
            numbers.add_column()
        numbers.add_row(*[Text(k, style="dim") for k, _ in shown])
        numbers.add_row(*[Text(v, style="bold") for _, v in shown])
        total = sum(self.seconds.values()) or 1.0
        stages = Text()
        for stage, colour in STAGE_COLOURS.items():
            part = self.seconds.get(stage, 0.0) / total
            if part >= 0.005:
                stages.append(f"{stage} {100 * part:.0f}%  ", style=colour)
        values = [value for _, value in self.evaluations]
        curve = Text(f"{self.metric.label} ", style="dim")
        curve.append(sparkline(values, self.metric), style="bold green")
        if values:
            first, last = (format_value(self.metric, value) for value in (values[0], values[-1]))
            curve.append(f"  {first} -> {last}{f' {self.metric.unit}' if self.metric.unit else ''}")
            if self.metric.target:
                target = whole(format_value(self.metric, self.metric.lines[self.metric.target]))
                curve.append(f"  ({self.metric.target} {target})", style="dim")
        title = Text.assemble((self.label, "bold"), f"  iteration {record['iteration']}")
        return Panel(Group(bar, numbers, stages, curve), title=title, title_align="left", border_style="blue")


def _shown(key: str, value: float) -> str:
    if key in SHARES:
        return f"{value:.0%}"
    return format_kl(value) if key == "kl" else short(value)


def short(value: float) -> str:
    """Three decimals below 10, one above; a small number keeps its figures."""
    if 0 < abs(value) < 1e-3:
        return scientific(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1e6 else scientific(value)


def sparkline(values: Sequence[float], metric: Metric | None = None) -> str:
    """Bars, higher for higher values: of [0, 1] where all lie in it, else of their own range; of logarithms if log."""
    known = [float(value) for value in values if math.isfinite(value)]
    log = metric is not None and metric.scale == "log"
    if log:
        known = [math.log10(max(value, 1e-16)) for value in known]
    if not known:
        return ""
    low, high = (0.0, 1.0) if not log and min(known) >= 0 and max(known) <= 1 else (min(known), max(known))
    points = [(float(i), value) for i, value in enumerate(known)]
    series = [Series(name="", look=0, mean=points)]
    x, y = Axis(domain=(0, len(points))), Axis(domain=(low, high), log=log)
    return blocks(Curves(width=len(points), height=1, x=x, y=y, series=series))
