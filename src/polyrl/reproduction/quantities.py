"""From run folders to one number a seed.

A *measure* reads one run: its last evaluation, the area under its curve, a slope. A *quantity* joins the measures of
one or more arms that share a seed: a difference, a ratio. Both are small frozen dataclasses, so that an experiment can
be printed, compared and hashed; a claim with a need of its own defines one in its file.

A measure that finds nothing in a run returns None: the run then counts as the worst one seen (docs/claims.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from polyrl.report.runs import Run
    from polyrl.runtime.metric import Metric

Better = Literal["higher", "lower", ""]


def curve_of(run: Run, key: str, x: str = "iteration") -> list[tuple[float, float]]:
    """Logged points (x, value) of a series, oldest first."""
    return [(row[x], row[key]) for row in run.metrics if key in row and x in row]


def line_slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of points (x, y); None for fewer than two different x."""
    n = len(points)
    if n < 2:
        return None
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else None


def named(key: str, metric: Metric) -> str:
    """What people call a logged series: the metric's own by its label."""
    return metric.label if key in ("", metric.key) else key.removeprefix("eval/").replace("_", " ").replace("/", " ")


# ----------------------------------------------------------------------------------------------------- one run


@dataclass(frozen=True, kw_only=True)
class Measure(ABC):
    """A number of one run. `better` says which direction is good; empty is the metric's own."""

    better: Better = ""

    @abstractmethod
    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the number, or None where the run has none."""

    @abstractmethod
    def says(self, metric: Metric) -> str:
        """Return the measure in words; `metric` is the task's."""

    def higher_is_better(self, metric: Metric) -> bool:
        """Return the direction of the measure."""
        return metric.higher_is_better if not self.better else self.better == "higher"


@dataclass(frozen=True, kw_only=True)
class Final(Measure):
    """The last evaluation of a finished run; `key` is a logged name, empty for the task's metric."""

    key: str = ""

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the last value."""
        return run.final(self.key or metric.key)

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{named(self.key, metric)} at the end"


@dataclass(frozen=True, kw_only=True)
class Gain(Measure):
    """The last evaluation minus the one before training."""

    key: str = ""

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the difference."""
        key = self.key or metric.key
        start, final = run.start(key), run.final(key)
        return None if start is None or final is None else final - start

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"gain in {named(self.key, metric)} over the start"


@dataclass(frozen=True, kw_only=True)
class Orders(Measure):
    """The base-10 logarithm of the last evaluation: for gaps that shrink by factors. Below `floor` all are equal."""

    key: str = ""
    floor: float = 1e-15

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the logarithm."""
        final = run.final(self.key or metric.key)
        return None if final is None else math.log10(max(final, self.floor))

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"order of magnitude of {named(self.key, metric)} at the end"


@dataclass(frozen=True, kw_only=True)
class Gap(Measure):
    """How far the last evaluation is on the bad side of one of the metric's lines, in percent of the line."""

    line: str
    key: str = ""
    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the gap; below 0 the run is better than the line."""
        final, line = run.final(self.key or metric.key), metric.lines.get(self.line)
        if final is None or not line:
            return None
        return 100 * (line - final if metric.higher_is_better else final - line) / abs(line)

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{named(self.key, metric)} at the end, percent beside the {self.line}"


@dataclass(frozen=True, kw_only=True)
class BeyondLine(Measure):
    """By how much the last evaluation is better than one of the metric's lines, in the metric's unit."""

    line: str
    key: str = ""
    better: Better = "higher"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the advantage; below 0 the run is worse than the line."""
        final, line = run.final(self.key or metric.key), metric.lines.get(self.line)
        if final is None or line is None:
            return None
        return final - line if metric.higher_is_better else line - final

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"advantage in {named(self.key, metric)} over the {self.line}"


@dataclass(frozen=True, kw_only=True)
class Area(Measure):
    """The mean of a curve over what was spent (the area under it over its width): who learns earlier has more."""

    x: str
    key: str = ""

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the mean height of the curve, by the trapezoidal rule."""
        points = curve_of(run, self.key or metric.key, self.x)
        if run.status != "finished" or len(points) < 2 or points[-1][0] == points[0][0]:
            return None
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
        return area / (points[-1][0] - points[0][0])

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"mean of {named(self.key, metric)} over all {self.x.replace('_', ' ')}"


@dataclass(frozen=True, kw_only=True)
class Tail(Measure):
    """The mean of the last values of a series that is logged in training."""

    key: str
    last: int

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the mean of the last values, of all where there are fewer."""
        values = run.series(self.key)[-self.last :]
        return sum(values) / len(values) if run.status == "finished" and values else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"mean of the last {self.last} {named(self.key, metric)}"


@dataclass(frozen=True, kw_only=True)
class LastEpisodes(Measure):
    """The mean over the last training episodes, of a series that is logged as the mean over an iteration's episodes."""

    key: str
    count: str
    last: int
    """Episodes; the iteration in which they begin enters as a whole."""

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the mean over at least `last` episodes, of all where there were fewer."""
        total, episodes = 0.0, 0.0
        for row in reversed(run.metrics):
            if self.key in row and episodes < self.last:
                total, episodes = total + row[self.key] * row[self.count], episodes + row[self.count]
        return total / episodes if run.status == "finished" and episodes else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{named(self.key, metric)} of the last {self.last} training episodes"


@dataclass(frozen=True, kw_only=True)
class MeanSquare(Measure):
    """The mean of the squares of a series that is logged in training."""

    key: str
    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the mean square."""
        values = run.series(self.key)
        return sum(v * v for v in values) / len(values) if run.status == "finished" and values else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"mean square of {named(self.key, metric)}"


@dataclass(frozen=True, kw_only=True)
class Seconds(Measure):
    """Seconds of training, evaluation and checkpoints not counted."""

    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the seconds of the five stages."""
        return run.spent("seconds") if run.status == "finished" else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return "seconds of training"


@dataclass(frozen=True, kw_only=True)
class Spread(Measure):
    """The standard deviation of the evaluations after a share of the run: how calm its end is."""

    after: float
    key: str = ""
    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the sample standard deviation of the evaluations from `after` of the iterations on."""
        points = curve_of(run, self.key or metric.key)
        if run.status != "finished" or not points:
            return None
        late = [y for x, y in points if x >= self.after * points[-1][0]]
        if len(late) < 2:
            return None
        mean = sum(late) / len(late)
        return math.sqrt(sum((y - mean) ** 2 for y in late) / (len(late) - 1))

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"spread of {named(self.key, metric)} over the last {100 - 100 * self.after:.0f}% of the run"


@dataclass(frozen=True, kw_only=True)
class Slope(Measure):
    """The least-squares slope of a curve between two x, on linear or logarithmic axes (natural logarithms)."""

    x: str = "iteration"
    key: str = ""
    log_x: bool = False
    log_y: bool = False
    low: float = -math.inf
    high: float = math.inf
    floor: float = 0.0
    """Values of y at or below this are left out: below the rounding of the computation there is no slope."""
    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the slope."""
        if run.status != "finished":
            return None
        points = [p for p in curve_of(run, self.key or metric.key, self.x) if self.low <= p[0] <= self.high]
        points = [p for p in points if (p[1] > self.floor or not self.log_y) and (p[0] > 0 or not self.log_x)]
        return line_slope([(math.log(x) if self.log_x else x, math.log(y) if self.log_y else y) for x, y in points])

    def says(self, metric: Metric) -> str:
        """Return its words."""
        y, x = (
            f"log {n}" if log else n
            for n, log in ((named(self.key, metric), self.log_y), (self.x.replace("_", " "), self.log_x))
        )
        return f"slope of {y} over {x}"


@dataclass(frozen=True, kw_only=True)
class FarthestFrom(Measure):
    """The largest distance of several last values from the values they should have: ((key, value), ...)."""

    wanted: tuple[tuple[str, float], ...]
    better: Better = "lower"

    def of(self, run: Run, metric: Metric) -> float | None:
        """Return the largest absolute difference."""
        found = [(run.final(key), value) for key, value in self.wanted]
        distances = [abs(final - value) for final, value in found if final is not None]
        return max(distances) if len(distances) == len(found) else None

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"largest distance from the exact value over {len(self.wanted)} cases"


# ------------------------------------------------------------------------------------------------ one seed's runs


@dataclass(frozen=True)
class Quantity(ABC):
    """One number of all runs that share a seed."""

    measure: Measure

    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """Return the names of the arms that it reads, in the order in which `combine` gets their measures."""

    def measures(self) -> tuple[Measure, ...]:
        """Return what is measured of each of `arms`; an arm may stand there twice, with two measures."""
        return (self.measure,) * len(self.arms())

    @abstractmethod
    def combine(self, values: Sequence[float]) -> float:
        """Return the number, from the measure of each arm."""

    @abstractmethod
    def says(self, metric: Metric) -> str:
        """Return the quantity in words."""


@dataclass(frozen=True)
class Of(Quantity):
    """The measure of one arm."""

    arm: str

    def arms(self) -> tuple[str, ...]:
        """Return its arm."""
        return (self.arm,)

    def combine(self, values: Sequence[float]) -> float:
        """Return the measure itself."""
        return values[0]

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: {self.arm}"


@dataclass(frozen=True)
class Difference(Quantity):
    """The measure of the first arm minus that of the second."""

    first: str
    second: str

    def arms(self) -> tuple[str, ...]:
        """Return both arms."""
        return self.first, self.second

    def combine(self, values: Sequence[float]) -> float:
        """Return the difference."""
        return values[0] - values[1]

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: {self.first} minus {self.second}"


@dataclass(frozen=True)
class BestDifference(Quantity):
    """The best measure of several arms minus the best of several others: each side has settings to choose from.

    So neither side is judged by a setting that suits the other. The measure is one of which more is better.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]

    def arms(self) -> tuple[str, ...]:
        """Return the arms of both sides."""
        return self.first + self.second

    def combine(self, values: Sequence[float]) -> float:
        """Return the difference of the two maxima."""
        return max(values[: len(self.first)]) - max(values[len(self.first) :])

    def says(self, metric: Metric) -> str:
        """Return its words."""
        sides = (" or ".join(side) for side in (self.first, self.second))
        return f"{self.measure.says(metric)}, the better one: {' minus '.join(sides)}"


@dataclass(frozen=True)
class Ratio(Quantity):
    """The measure of the first arm over that of the second."""

    first: str
    second: str

    def arms(self) -> tuple[str, ...]:
        """Return both arms."""
        return self.first, self.second

    def combine(self, values: Sequence[float]) -> float:
        """Return the ratio; infinite where the second is 0."""
        return values[0] / values[1] if values[1] else float("inf")

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: {self.first} over {self.second}"


@dataclass(frozen=True)
class Largest(Quantity):
    """The largest measure of several arms: what has to hold for all of them."""

    names: tuple[str, ...]

    def arms(self) -> tuple[str, ...]:
        """Return the arms."""
        return self.names

    def combine(self, values: Sequence[float]) -> float:
        """Return the maximum."""
        return max(values)

    def says(self, metric: Metric) -> str:
        """Return its words."""
        return f"{self.measure.says(metric)}: largest of {' and '.join(self.names)}"
