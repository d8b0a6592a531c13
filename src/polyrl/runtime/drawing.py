"""Charts as descriptions: series, axes, intervals, lines, names, and nothing of how they are drawn.

`report/draw.js` draws them in pages, notebooks and files (`polyrl.report.drawing`); `blocks` draws one as a line of a
terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: the least and the largest value on it, decimal logarithms where `log`."""

    domain: Point
    title: str = ""
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A value that stands beside the results, in the axis's units; `target` is what is to be reached."""

    name: str
    value: float
    text: str = ""
    target: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve of a series: a seed's, one that was lost, or one that is drawn as thickly as a mean."""

    points: Sequence[Point]
    kind: Literal["mean", "seed", "lost"] = "seed"
    lost: bool = False
    dots: bool = False
    end: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """What is drawn of one arm.

    Attributes:
        name: of the arm.
        look: which colour and mark it has, from 0.
        curves: thin ones.
        band: x, low and high of an interval.
        mean: the thick curve.
        end: where its mark and its name stand.
    """

    name: str
    look: int
    curves: Sequence[Curve] = ()
    band: Sequence[tuple[float, float, float]] | None = None
    mean: Sequence[Point] | None = None
    end: Point | None = None


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Series over an axis.

    Attributes:
        width, height: in pixels.
        lines: horizontal ones.
        beside: the least width at which names stand at the right of their curves.
        alone: whether nothing else says which series is which.
        small: without titles and names.
        unnamed: without names.
        clip: whether what lies beyond the axes is cut off.
    """

    width: int
    height: int
    x: Axis
    y: Axis
    series: Sequence[Series]
    lines: Sequence[Line] = ()
    beside: int = 720
    alone: bool = False
    small: bool = False
    unnamed: bool = False
    clip: bool = False
    kind: Literal["curves"] = "curves"


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One seed's value, and what is said of it where somebody points at it."""

    value: float
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Dots, their mean and its interval.

    Attributes:
        name, text: at its left and right.
        look: which colour it has; none takes that of `tone`.
        tone: met, failed or open.
        value: the large mark.
        bar: the interval.
        dots: the small marks.
    """

    name: str = ""
    text: str = ""
    look: int | None = None
    tone: str = ""
    value: float | None = None
    bar: Point | None = None
    dots: Sequence[Dot] = ()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows on one axis.

    Attributes:
        domain: the least and the largest value on it.
        lines: vertical ones.
        shade: from where to where it is shaded.
        bare: rows without names and texts.
    """

    width: int
    domain: Point
    items: Sequence[Row]
    title: str = ""
    lines: Sequence[Line] = ()
    shade: Point | None = None
    bare: bool = False
    log: bool = False
    kind: Literal["rows"] = "rows"


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time from one value to another.

    Attributes:
        low, high: on the axis.
        look: which colour it has; none is grey.
        faint: lighter, as what only waits.
        text: within it, where it has room; `title` where somebody points at it.
    """

    low: float
    high: float
    look: int | None = None
    faint: bool = False
    text: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Rows of spans on one axis, as a Gantt chart has them; of spans that overlap the later one is on top.

    Attributes:
        names: of the rows.
        items: the spans of each row.
    """

    width: int
    domain: Point
    names: Sequence[str]
    items: Sequence[Sequence[Span]]
    title: str = ""
    step: int = 34
    kind: Literal["spans"] = "spans"

    @property
    def height(self) -> int:
        """Pixels from the top of the first row to below the axis."""
        return len(self.names) * self.step + 56


@dataclass(frozen=True, kw_only=True)
class Words:
    """Lines of text; `tone` is soft, a verdict or an outcome, whose colour they have."""

    lines: Sequence[str]
    size: float = 13
    weight: int = 400
    tone: str = ""
    kind: Literal["words"] = "words"

    @property
    def height(self) -> float:
        """Pixels from the top of the first line to below the last."""
        return len(self.lines) * self.size * 1.25


Placed = tuple[float, float, Curves | Rows | Spans | Words]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Charts and words, each with the place of its upper left corner (x, y)."""

    width: int
    height: int
    label: str
    items: Sequence[Placed]

    def stated(self) -> dict[str, Any]:
        """As `draw.js` reads it."""
        return {"items": [{"at": [x, y], **asdict(item)} for x, y, item in self.items]}


BARS = "▁▂▃▄▅▆▇█"


def blocks(chart: Curves) -> str:
    """The thick curve of the first series as bars, a letter a point; all alike where the axis has one value."""
    (low, high), points = chart.y.domain, chart.series[0].mean or ()
    if high == low:
        return BARS[3] * len(points)
    last = len(BARS) - 1
    return "".join(BARS[min(last, max(0, int((y - low) / (high - low) * len(BARS))))] for _, y in points)
