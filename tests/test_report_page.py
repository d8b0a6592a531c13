"""The report in a browser: no error, no request, charts that are there, controls that do what they say."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polyrl.report.page import write_report
from polyrl.report.runs import load_comparison
from polyrl.report.statistics import mean_interval
from run_folders import write_comparison, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
HOSTILE = '</script><img src=x onerror="document.title=1;alert(1)"><b id=broken>'


@dataclass
class Opened:
    """A page in the browser with everything that it complained about or asked for."""

    page: Page
    trouble: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, "--disable-sync", "--no-first-run"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    stated = {"metric": "eval/return", "metric_label": "return", "unit": "points"}
    folders = {
        "full": write_comparison(root / "full", failed=[("reinforce++", 3)], killed=[("ppo", 4)]),
        "three": write_comparison(root / "three", ["grpo", "remax"], seeds=3, iterations=20),
        "control": write_comparison(root / "control", ["grpo", "ppo"], stated=stated, scale=9000, iterations=20),
        "single": write_run(root / "single", iterations=20),
        "killed": write_run(root / "killed", iterations=20, status="running", stop=0),
        "hostile": write_run(root / "hostile", iterations=20, completion=HOSTILE, config={"label": HOSTILE * 2}),
    }
    return {name: write_report([folder], root / f"{name}.html") for name, folder in folders.items()}


def _open(browser: Browser, path: Path, width: int = 1400) -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900})
    opened = Opened(page)
    page.on("console", lambda message: opened.trouble.append(message.text))
    page.on("pageerror", lambda error: opened.trouble.append(str(error)))

    def refuse(dialog: Dialog) -> None:
        opened.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", refuse)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
    return opened


def _paths(page: Page, chart: str, kind: str = "path.mean") -> list[str]:
    return [
        str(d) for d in page.eval_on_selector_all(f"#{chart} > svg {kind}", "all => all.map(e => e.getAttribute('d'))")
    ]


def _numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path)]


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", ["full", "three", "control", "single", "killed", "hostile"])
def test_every_report_opens_cleanly_and_fits(browser: Browser, reports: dict[str, Path], name: str, width: int) -> None:
    opened = _open(browser, reports[name], width)
    assert opened.trouble == []
    assert all(url.startswith(("file://", "data:")) for url in opened.requests)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drawn = opened.page.evaluate("[...document.querySelectorAll('.chart')].map(e => e.outerHTML).join('')")
    assert "NaN" not in drawn and "Infinity" not in drawn and "undefined" not in drawn
    opened.page.close()


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_drawn_outside_its_chart(browser: Browser, reports: dict[str, Path], width: int) -> None:
    opened = _open(browser, reports["full"], width)
    outside = opened.page.evaluate("""() => [...document.querySelectorAll('.chart > svg')].flatMap(svg => {
        const f = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('path, text, circle, rect')].filter(e => {
            const b = e.getBoundingClientRect();
            return b.left < f.left - 2 || b.right > f.right + 2 || b.top < f.top - 2 || b.bottom > f.bottom + 2;
        }).map(e => svg.parentNode.id + ' ' + e.outerHTML.slice(0, 120));
    })""")
    assert outside == []
    opened.page.close()


def test_curves_rise_where_the_numbers_rise(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"])
    curves = _paths(opened.page, "curves-chart")
    assert len(curves) == 4
    for curve in curves:
        numbers = _numbers(curve)
        assert numbers[0::2] == sorted(numbers[0::2])
        assert numbers[-1] < numbers[1]  # up on the screen is a smaller y
    assert len(_paths(opened.page, "curves-chart", "path.band")) == 2  # grpo and remax have five finished seeds
    assert len(_paths(opened.page, "curves-chart", "path.seed")) == 20
    assert len(_paths(opened.page, "curves-chart", "path.seed.lost")) == 2
    opened.page.close()


def test_band_is_the_t_interval_of_the_seeds(browser: Browser, tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", ["grpo", "ppo"], iterations=20)
    opened = _open(browser, write_report([folder], tmp_path / "r.html"))
    known = mean_interval([run.series("eval/accuracy")[-1] for run in load_comparison(folder).of("grpo")])
    opened.page.focus("#curves-chart")
    opened.page.keyboard.press("End")
    read = opened.page.inner_text("#curves-chart .readout")
    assert f"{known.value:.3f}" in read and f"[{known.low:.3f}, {known.high:.3f}]" in read
    opened.page.keyboard.press("Home")
    assert "Samples 0" in opened.page.inner_text("#curves-chart .readout")
    opened.page.keyboard.press("Escape")
    assert opened.page.is_hidden("#curves-chart .readout")
    opened.page.close()


def test_three_seeds_show_points_and_no_band(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["three"])
    assert _paths(opened.page, "curves-chart", "path.band") == []
    assert opened.page.locator("#curves-chart circle.dot").count() == 2 * 3 * 5
    assert opened.page.locator("#final-chart line.bar").count() == 0
    assert opened.page.locator("#pairs-chart path.bar").count() == 1
    opened.page.close()


def test_axis_and_metric_can_be_switched(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"])
    page = opened.page
    seen = set()
    for axis, title in {
        "samples": "Samples (completions)",
        "tokens": "Tokens",
        "steps": "Steps",
        "reward_calls": "Reward calls",
        "seconds": "Training time (s)",
        "iteration": "Iterations",
    }.items():
        page.click(f"#axes button[data-axis={axis}]")
        assert page.text_content("#curves-chart .x-title") == title
        assert page.get_attribute(f"#axes button[data-axis={axis}]", "aria-pressed") == "true"
        assert page.locator("#axes button[aria-pressed=true]").count() == 1
        seen.add(tuple(_paths(page, "curves-chart")))
    assert len(seen) >= 4  # tokens equal steps here, and samples are a multiple of iterations
    before = _paths(page, "curves-chart")
    page.select_option("#metric", "kl")
    assert page.text_content("#curves-chart .y-title") == "KL to the start (nats per sequence)"
    assert _paths(page, "curves-chart") != before
    page.select_option("#metric", "clip_ratio")
    assert page.locator("#curves-chart g.series").count() == 3  # remax logs none
    labels = page.eval_on_selector_all("#metric option", "all => all.map(e => e.textContent)")
    assert labels[0] == "Evaluation accuracy" and {"Training reward", "Entropy", "Response length"} <= set(labels)
    assert opened.trouble == []
    page.close()


def test_mean_curve_stays_within_what_all_seeds_cover(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"])
    opened.page.click("#axes button[data-axis=seconds]")
    for method in ("grpo", "remax"):
        group = f"#curves-chart g[data-method={method}]"
        seeds = [
            _numbers(d)[-2]
            for d in opened.page.eval_on_selector_all(f"{group} path.seed", "a => a.map(e => e.getAttribute('d'))")
        ]
        mean = _numbers(opened.page.get_attribute(f"{group} path.mean", "d") or "")
        assert len(set(seeds)) > 1 and mean[-2] == pytest.approx(min(seeds), abs=0.11)
    opened.page.close()


def test_legend_hides_a_method_and_single_seeds(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"])
    page = opened.page
    page.focus("#legend button[data-method=remax]")
    page.keyboard.press("Enter")
    for chart in ("curves-chart", "kl-chart"):
        shown = page.eval_on_selector_all(f"#{chart} g.series", "all => all.map(e => e.dataset.method)")
        assert shown == ["grpo", "reinforce++", "ppo"]
    assert page.get_attribute("#legend button[data-method=remax]", "aria-pressed") == "false"
    page.uncheck("#show-seeds")
    assert _paths(page, "curves-chart", "path.seed") == []
    page.click("#legend button[data-method=remax]")
    assert page.locator("#curves-chart g.series").count() == 4
    for method in ("grpo", "remax", "reinforce++", "ppo"):
        page.click(f"#legend button[data-method='{method}']")
    assert "No method" in page.inner_text("#curves-chart")
    assert opened.trouble == []
    page.close()


def test_hostile_completion_is_shown_as_text(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["hostile"])
    page = opened.page
    page.select_option("#prompt", "5")
    assert page.inner_text("#answers pre") == HOSTILE
    assert page.locator("img, #broken").count() == 0
    assert page.title() != "1" and HOSTILE in page.title()
    assert opened.trouble == []
    page.close()


def test_content_security_policy_stops_a_script_that_got_in(
    browser: Browser, reports: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(reports["single"].read_text().replace("<main>", "<main><script>document.title='owned'</script>"))
    opened = _open(browser, broken)
    assert opened.page.title() == "grpo on arithmetic · polyrl"
    assert opened.page.locator("#curves-chart path.mean").count() == 1
    opened.page.close()


def test_completions_can_be_leafed_through(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"])
    page = opened.page
    assert page.locator("#answers article").count() == 4
    assert "What is 12 + 31?\nThink" in page.inner_text("#asked") and page.is_disabled("#previous")
    page.click("#following")
    assert "What is 19 + 36?" in page.inner_text("#asked") and "Expected: 55" in page.inner_text("#asked")
    assert {b.strip()[0] for b in page.locator("#answers .badge").all_inner_texts()} <= {"✓", "✗"}
    assert page.eval_on_selector("#answers pre", "e => getComputedStyle(e).whiteSpace") == "pre-wrap"
    page.close()


def test_csv_has_one_row_a_run_and_one_a_point(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    opened = _open(browser, reports["full"])
    tables = {}
    for button in ("results-csv", "curves-csv"):
        with opened.page.expect_download() as download:
            opened.page.click(f"#{button}")
        download.value.save_as(tmp_path / button)
        tables[button] = list(csv.DictReader(io.StringIO((tmp_path / button).read_text())))
    assert len(tables["results-csv"]) == 20
    assert sum(row["final eval/accuracy"] != "" for row in tables["results-csv"]) == 18
    points = [row for row in tables["curves-csv"] if row["metric"] == "eval/accuracy"]
    assert len(points) == 18 * 13 + 5 + 7  # every 5 of 60 iterations; up to 23 and up to 31 for the two lost runs
    assert opened.trouble == []
    opened.page.close()


def test_tables_scroll_inside_their_own_box(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["full"], 390)
    wide = opened.page.eval_on_selector_all(".sheet", "all => all.filter(e => e.scrollWidth > e.clientWidth).length")
    assert wide >= 2
    opened.page.set_viewport_size({"width": 1400, "height": 900})
    opened.page.wait_for_selector("#curves-chart > svg[width='1056']")  # drawn anew for the wide window
    opened.page.close()
