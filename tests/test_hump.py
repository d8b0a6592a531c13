"""Laws of over-optimization fitted by least squares: numbers worked out by hand, and brute force."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyrl.report.hump import LAWS, Hump, Law, fitted
from polyrl.report.records import Records
from polyrl.report.task_charts import chart_table, fits, last_decade_slope, slopes
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


# ----------------------------------------------------------------------------------------------- slopes and drawings


def grown(power: float, upto: int = 100, status: str = "finished") -> Any:
    """A run whose regret grows by a power over the last decade of episodes, and otherwise before."""
    rows = [{"samples": float(x), "regret": 3 * x**power if x >= upto / 10 else 50.0 + x} for x in range(upto + 1)]
    return SimpleNamespace(status=status, records=Records(rows), metrics=rows)


def test_the_slope_is_of_the_last_decade_and_of_numbers_above_0() -> None:
    assert last_decade_slope(grown(0.5), "samples", "regret") == pytest.approx(0.5)
    x, y = np.array([10.0, 30.0, 100.0]), np.array([1.0, 5.0, 6.0])
    run: Any = SimpleNamespace(records=Records([{"a": float(i), "b": float(j)} for i, j in zip(x, y, strict=True)]))
    assert last_decade_slope(run, "a", "b") == pytest.approx(float(np.polyfit(np.log10(x), np.log10(y), 1)[0]))
    dips = [{"a": 10.0, "b": 1.0}, {"a": 20.0, "b": -1.0}, {"a": 0.0, "b": 1.0}, {"a": 40.0, "b": 2.0}]
    few: Any = SimpleNamespace(records=Records(dips))
    assert last_decade_slope(few, "a", "b") is None  # two points above 0 are no power
    still: Any = SimpleNamespace(records=Records([{"a": 5.0, "b": float(i)} for i in range(1, 5)]))
    assert last_decade_slope(still, "a", "b") is None and last_decade_slope(few, "a", "none") is None


def test_slopes_are_means_over_finished_seeds() -> None:
    runs = [grown(0.5), grown(0.7), grown(3.0, status="failed")]
    comparison: Any = SimpleNamespace(methods=["a", "b"], of=lambda method: runs if method == "a" else [])
    found = slopes(comparison, "samples", "regret")
    assert set(found) == {"a"} and found["a"]["value"] == pytest.approx(0.6) and found["a"]["n"] == 2


def test_a_drawing_has_what_was_logged_and_its_fits_where_they_are_asked_for() -> None:
    law = Hump("log", 1.2, 0.9, 0.0)
    rows = [{"kl": d * d, "gold": law.at(d), "x": d} for d in (0, 0.5, 1, 2, 3)]
    run = SimpleNamespace(status="finished", metrics=rows, records=Records(rows))
    charts = [
        Chart(title="hump", x="kl", y=("gold", "never"), fitted="gold"),
        Chart(title="powers", x="x", y=("gold",), x_scale="log", y_scale="log"),
        Chart(title="nothing", x="kl", y=("never",)),
        Chart(title="no axis", x="other", y=("gold",)),
    ]
    comparison: Any = SimpleNamespace(charts=charts, methods=["dpo"], of=lambda _: [run])
    hump, powers = chart_table(comparison, {"kl", "gold", "x"})
    assert hump["y"] == ["gold"] and hump["slopes"] == {} and hump["fits"]["dpo"][0]["alpha"] == pytest.approx(1.2)
    assert "fits" not in powers and set(powers["slopes"]) == {"gold"}
    assert [c["title"] for c in chart_table(comparison, {"gold"}, {"other"})] == ["no axis"]
