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


def format_amount(amount: float) -> str:
    """How many: `3,840`, `181k`, `2.4M`, `5.6e25`; no more than four figures, and exact below ten thousand."""
    size = abs(amount)
    if not math.isfinite(amount):
        return "-"
    if size >= 1e12:
        return scientific(amount)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            scaled = amount / (1e3 if letter == "k" else unit)
            return f"{scaled:.{0 if scaled >= 100 else 1}f}".removesuffix(".0") + letter
    return f"{amount:,.0f}" if float(amount).is_integer() or size >= 100 else f"{amount:.3g}"


def format_budget(text: str) -> str:
    """A budget as people read it: `samples=1792,seconds=600` -> `1,792 samples or 600 seconds`."""
    limits = [item.partition("=") for item in text.split(",") if "=" in item]
    try:
        amounts = [(float(amount), unit) for unit, _, amount in limits]
    except ValueError:  # as somebody typed it: samples=20k
        return text
    return " or ".join(f"{format_amount(amount)} {unit.replace('_', ' ')}" for amount, unit in amounts)


def format_kl(value: float) -> str:
    """A divergence in nats: what is rounding alone is 0, and so is what rounding makes negative."""
    if abs(value) < 1e-5:
        return "0"
    return f"{value:.3f}" if abs(value) >= 1e-3 else scientific(value)
