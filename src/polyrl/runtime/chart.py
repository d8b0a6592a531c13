"""A drawing that a task asks for: one logged quantity against another, where a curve over time would hide the point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

XScale = Literal["linear", "sqrt", "log"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Logged quantities `y` over another logged quantity `x`, a curve through the course of training.

    Attributes:
        title: its heading.
        x: name of the logged quantity along the horizontal axis.
        y: names of those that are drawn, each in a panel of its own.
        x_scale: "sqrt" spreads what lies near 0 without losing 0: over-optimization is drawn over the square root of
            the KL (arXiv:2210.10760).
        fitted: which of `y` a hump and a quadratic are fitted to, over the root of `x` (`polyrl.report.hump`), drawn
            beside it and told with their errors; empty: none.
    """

    title: str
    x: str
    y: tuple[str, ...]
    x_scale: XScale = "linear"
    fitted: str = ""

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
        scale: XScale = values.get("x_scale", "linear")
        if scale not in get_args(XScale) or isinstance(y, str):
            raise ValueError(f"not a chart: {values}")
        return cls(
            title=str(values["title"]),
            x=str(values["x"]),
            y=tuple(map(str, y)),
            x_scale=scale,
            fitted=str(values.get("fitted", "")),
        )
