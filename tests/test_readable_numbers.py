"""Budgets, amounts and small numbers as people read them."""

from __future__ import annotations

import pytest

from polyrl.report.findings import _number
from polyrl.runtime.figures import format_amount, format_budget, format_kl


@pytest.mark.parametrize(
    "amount, text",
    [
        (0, "0"),
        (950, "950"),
        (3840, "3,840"),
        (10_000, "10k"),
        (181_400, "181k"),
        (2_400_000, "2.4M"),
        (3e9, "3G"),
        (56306418907122842778730496, "5.6e25"),
        (0.25, "0.25"),
        (12.0, "12"),
        (float("inf"), "-"),
    ],
)
def test_amounts(amount: float, text: str) -> None:
    assert format_amount(amount) == text


@pytest.mark.parametrize(
    "budget, text",
    [
        ("samples=1792", "1,792 samples"),
        ("samples=56306418907122842778730496,seconds=600.0", "5.6e25 samples or 600 seconds"),
        ("reward_calls=20000", "20k reward calls"),
        ("samples=20k", "samples=20k"),
        ("", ""),
    ],
)
def test_budgets(budget: str, text: str) -> None:
    assert format_budget(budget) == text


def test_nothing_has_no_sign() -> None:
    assert _number(0.0004, 3, signed=True) == _number(-0.0004, 3, signed=True) == _number(-0.0004, 3) == "0.000"
    assert _number(0.0006, 3, signed=True) == "+0.001" and _number(-0.0006, 3) == "-0.001"
    assert format_kl(-1e-7) == format_kl(9e-6) == "0"
    assert (format_kl(0.5), format_kl(-0.01), format_kl(2e-4)) == ("0.500", "-0.010", "2.0e-4")
