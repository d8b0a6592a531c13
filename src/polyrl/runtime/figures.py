"""How numbers are written where people read them: in the terminal, in sentences and on the page."""

from __future__ import annotations

import math

from polyrl.runtime.metric import Metric


def places(largest: float) -> int:
    """Digits behind the point for numbers up to `largest`: three for shares, four figures for the rest."""
    if largest == 0 or 0.1 <= largest <= 1 or not math.isfinite(largest):
        return 3
    return min(8, max(0, 3 - math.floor(math.log10(largest))))


def scientific(value: float, figures: int = 2) -> str:
    """`1.6e-8`: a short exponent, without its plus sign and leading zeros."""
    mantissa, _, exponent = f"{value:.{figures - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def signed_zero(text: str) -> str:
    """The text of a number without the minus sign of a rounded zero."""
    return text.lstrip("-") if text.startswith("-") and not text.strip("-0.") else text


def whole(text: str) -> str:
    """The text of a number without a fraction of zeros: `475.0` -> `475`, as thresholds are written."""
    return text.rstrip("0").rstrip(".") if "." in text and not text.partition(".")[2].strip("0") else text


def format_value(metric: Metric, value: float, digits: int | None = None) -> str:
    """A value of the metric: figures that suit its size, or `digits` behind the point; of a log metric two or three."""
    if not math.isfinite(value):
        return "-"
    if metric.scale == "log":
        if value == 0:
            return "0"
        size = abs(value)
        return f"{value:,.{max(0, 2 - math.floor(math.log10(size)))}f}" if 1e-3 <= size < 1e5 else scientific(value)
    if digits is None:
        digits = 3 if metric.key.endswith("accuracy") else places(abs(value))
    return signed_zero(f"{value:.{digits}f}")


def format_factor(factor: float) -> str:
    """How many times: `1.25`, `32.5`, `1,930`, `1.9e7`; three figures at most."""
    size = abs(factor)
    if size >= 1e6 or 0 < size < 0.01:
        return scientific(factor)
    return f"{float(f'{factor:.3g}'):,.{2 if size < 10 else 1 if size < 100 else 0}f}"
