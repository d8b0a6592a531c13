"""Numbers and thresholds of a ledger entry in words, for the terminal, the pages and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyrl.runtime.figures import places, scientific, signed_zero

OUTCOMES = {"met": "met", "failed": "failed", "open": "open"}


def digits_for(*values: float | None) -> int | None:
    """Digits behind the point that suit the largest of the values; None where only an exponent does."""
    largest = max((abs(v) for v in values if v), default=1.0)
    return None if largest < 1e-2 or largest >= 1e6 else min(3, places(largest))


def number(value: float | None, digits: int | None = 3, sign: bool = False) -> str:
    """A number with a true minus sign, and a plus sign where `sign` asks for it; `-` for none."""
    if value is None:
        return "-"
    text = scientific(value) if digits is None else signed_zero(f"{value:.{digits}f}")
    return f"+{text}" if sign and value > 0 else text.replace("-", "−", 1) if text.startswith("-") else text


def estimate_text(estimate: Mapping[str, Any] | None, digits: int | None, sign: bool = False) -> str:
    """`+0.123 [0.100, 0.146]`; without the bracket where there is no interval."""
    if estimate is None:
        return "no number"
    value = number(estimate["value"], digits, sign)
    if estimate["low"] is None or estimate["n"] == 1:
        return value
    return f"{value} [{number(estimate['low'], digits)}, {number(estimate['high'], digits)}]"


def threshold_text(criterion: Mapping[str, Any]) -> str:
    """`at least 0.05`."""
    least = criterion["at_least"] is not None
    value = criterion["at_least"] if least else criterion["at_most"]
    return f"at {'least' if least else 'most'} {f'{value:.4g}'.replace('-', '−')}"


def signed(criterion: Mapping[str, Any]) -> bool:
    """Whether the criterion's numbers are differences, which carry their sign."""
    return " minus " in criterion["quantity"] or criterion["quantity"].startswith(("gain", "advantage"))


def criterion_digits(criterion: Mapping[str, Any]) -> int | None:
    """Digits behind the point that suit the criterion's numbers and its threshold."""
    estimate = criterion["estimate"] or {}
    threshold = criterion["at_least"] if criterion["at_least"] is not None else criterion["at_most"]
    return digits_for(estimate.get("value"), estimate.get("low"), estimate.get("high"), threshold)


def standing(criterion: Mapping[str, Any]) -> str:
    """What stands behind a criterion's name: what it is there for; empty for an effect."""
    kind = criterion.get("kind") or ("effect" if criterion["primary"] else "control")
    return {"premise": "premise", "effect": "", "control": "decides nothing"}[kind]


COSTS = {"tokens": "tokens", "samples": "samples", "steps": "steps", "queries": "queries", "seconds": "computing time"}
"""What an arm spends, and how it is called. Entries of the earlier rule know the last alone."""
ALIKE = 1.1
"""Costs within a tenth of each other are told as equal."""


def cost_text(entry: Mapping[str, Any], first: str, second: str) -> str:
    """What one arm cost beside another, as "VinePPO took 46 times the tokens of PPO"; empty where nobody knows."""
    arms = {arm["name"]: [_spent(run) for run in arm["runs"]] for arm in entry["arms"]}
    said = []
    for unit, name in COSTS.items():
        totals = [sum(run.get(unit, 0.0) for run in arms[arm]) for arm in (first, second)]
        if not all(totals):
            continue
        ratio = totals[0] / totals[1]
        if not 1 / ALIKE <= ratio <= ALIKE:
            said.append(f"{ratio:.2g} times the {name}" if ratio < 100 else f"{ratio:.0f} times the {name}")
        elif unit == "seconds":
            said.append(f"as much {name}")
    if not said:
        return ""
    return f"{first} took {' and '.join(said)} {'as' if said[-1].startswith('as ') else 'of'} {second}"


def _spent(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run spent; its seconds are of the five stages."""
    return {**run.get("spent", {}), "seconds": run["seconds"]}


def chance_text(estimate: Mapping[str, Any] | None) -> str:
    """`0.92 [0.61, 0.99]`."""
    return estimate_text(estimate, 2) if estimate else ""
