"""Laws of over-optimization fitted by least squares: numbers worked out by hand, and brute force."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyrl.report.hump import LAWS, Hump, Law, fitted
from polyrl.report.task_charts import fits
from polyrl.runtime.chart import Chart


def test_the_two_forms_by_hand() -> None:
    log, quadratic = Hump("log", 1.2, 0.9, 0.0), Hump("quadratic", 1.2, 0.9, 0.0)
    assert log.peak == pytest.approx(1.395612, abs=1e-6)
    assert log.at(log.peak) == pytest.approx(1.256051, abs=1e-6) == pytest.approx(0.9 * log.peak, abs=1e-6)
    assert log.at(math.exp(4 / 3)) == pytest.approx(0, abs=1e-12)
    assert [log.at(1), log.at(2)] == pytest.approx([1.2, 1.152335], abs=1e-6)
    assert quadratic.peak == pytest.approx(2 / 3) and quadratic.at(2 / 3) == pytest.approx(0.4)
    assert log.at(0) == quadratic.at(0) == 0
    assert Hump("log", 1.0, -0.1, 0.0).peak == math.inf


@pytest.mark.parametrize("law", LAWS)
def test_points_of_a_law_give_its_numbers_back_whatever_else_is_at_0(law: Law) -> None:
    points = [(d, Hump(law, 1.2, 0.9, 0.0).at(d)) for d in (0.25, 0.5, 1, 2, 3)]
    found = fitted([(0.0, 5.0), *points], law)
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((1.2, 0.9), abs=1e-12) and found.rmse < 1e-12


@pytest.mark.parametrize("law", LAWS)
def test_the_fit_is_that_of_least_squares(law: Law) -> None:
    random = np.random.default_rng(0)
    d, r = random.uniform(0.1, 3, 20), random.normal(size=20)
    falls = np.log(d) if law == "log" else d
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -d * falls], 1), r, rcond=None)
    found = fitted([*zip(d.tolist(), r.tolist(), strict=True)], law)
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-9)
    wrong = r - d * (alpha - beta * falls)
    assert found.rmse == pytest.approx(float(np.sqrt((wrong**2).mean())), abs=1e-12)


def test_a_gaussian_gains_by_the_quadratic_and_by_it_alone() -> None:
    """N(w / beta, 1) against N(0, 1): gold v.y - c |y|^2 / 2 gains sqrt(2) |v| cos d - c d^2, exactly."""
    w, v, c = np.array([3.0, 4.0]), np.array([1.0, 1.0]), 0.3
    points = []
    for beta in (8.0, 4.0, 2.0, 1.0):
        mean = w / beta
        d = math.sqrt(float(mean @ mean) / 2)
        points.append((d, float(v @ mean) - c * float(mean @ mean) / 2))
    assert points[2][0] == pytest.approx(1.767767, abs=1e-6)
    quadratic, log = fitted(points, "quadratic"), fitted(points, "log")
    assert quadratic is not None and log is not None
    assert quadratic.rmse < 1e-12 < 1e-2 < log.rmse
    assert quadratic.alpha == pytest.approx(math.sqrt(2) * 7 / 5) and quadratic.beta == pytest.approx(c)


def test_one_distance_is_no_curve() -> None:
    assert fitted([(1.0, 1.0), (1.0, 2.0), (0.0, 0.0)], "log") is None
    assert fitted([(1.0, 1.0), (2.0, 0.5)], "log") is not None


def test_a_chart_without_a_fit_is_stated_as_before() -> None:
    plain = Chart(title="t", x="kl", y=("gold",))
    assert "fitted" not in plain.stated() and Chart.read(plain.stated()) == plain
    asked = Chart(title="t", x="kl", y=("gold",), fitted="gold")
    assert Chart.read(asked.stated()) == asked


def test_a_page_fits_what_finished_runs_gained_over_their_own_starts() -> None:
    law = Hump("log", 1.2, 0.9, 0.0)

    def run(start: float, status: str = "finished", worse: float = 0.0) -> Any:
        rows: list[dict[str, float]] = [{"kl": d * d, "gold": start + law.at(d) - worse * d} for d in (0, 0.5, 1, 2, 3)]
        return SimpleNamespace(status=status, metrics=[*rows, {"loss": 1.0}])

    runs = [run(1.0), run(-0.5), run(0.0, "failed", worse=9)]
    comparison: Any = SimpleNamespace(of=lambda method: runs if method == "dpo" else [])
    log, quadratic = fits(comparison, "dpo", "kl", "gold")
    assert (log["alpha"], log["beta"]) == pytest.approx((1.2, 0.9)) and log["rmse"] < 1e-9 < 0.01 < quadratic["rmse"]
    assert log["points"][0] == [0, 0.25] and log["points"][-1] == pytest.approx([9, 0.25 + law.at(3)])
    assert fits(comparison, "rpo", "kl", "gold") == []
