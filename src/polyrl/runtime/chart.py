"""A drawing that a task asks for: one logged quantity against another, where a curve over time would hide the point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Scale = Literal["linear", "sqrt", "log"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Logged quantities `y` over another logged quantity `x`, a curve through the course of training.

    Attributes:
        title: its heading.
        x: name of the logged quantity, or of the axis of what was spent, along the horizontal axis.
        y: names of those that are drawn, each in a panel of its own.
        x_scale: "sqrt" spreads what lies near 0 without losing 0: over-optimization is drawn over the square root of
            the KL (arXiv:2210.10760). "log" begins with the first point above 0.
        y_scale: of the vertical axis. Where both are "log", a power is a straight line, and the slope of each curve's
            last decade is told.
        fitted: which of `y` a hump and a quadratic are fitted to, over the root of `x` (`polyrl.report.hump`), drawn
            beside it and told with their errors; empty: none.
    """

    title: str
    x: str
    y: tuple[str, ...]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    fitted: str = ""

    @property
    def powers(self) -> bool:
        """Whether both axes are logarithmic, so that a power is a straight line."""
        return self.x_scale == self.y_scale == "log"

    def stated(self) -> dict[str, Any]:
        """Plain values, for YAML."""
        stated = {**asdict(self), "y": list(self.y)}
        return stated if self.fitted else {k: v for k, v in stated.items() if k != "fitted"}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Chart:
        """Read back what `stated` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no such thing.
        """
        y: Sequence[str] = values["y"]
        across, up = (values.get(name, "linear") for name in ("x_scale", "y_scale"))
        if not {across, up} <= {*get_args(Scale)} or isinstance(y, str):
            raise ValueError(f"not a chart: {values}")
        title, x, fitted = str(values["title"]), str(values["x"]), str(values.get("fitted", ""))
        return cls(title=title, x=x, y=tuple(map(str, y)), x_scale=across, y_scale=up, fitted=fitted)
