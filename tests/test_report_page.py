"""The report in a browser: no error, no request, charts that are there, controls that do what they say."""

from __future__ import annotations

import csv
import io
import itertools
import math
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
from run_folders import DOMAINS, write_comparison, write_domain, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
HOSTILE = '</script><img src=x onerror="document.title=1;alert(1)"><b id=broken>'


LONG = (
    "grpo",
    "grpo(clip_range=0.1,learning_rate=3e-4)",
    "grpo(clip_range=0.1,learning_rate=1e-4)+reference-kl(kl_loss_coef=0.04)",
    "a" * 90,
)
"""Methods as people write them who change hyperparameters, and a name that has no place to be broken at."""


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


CHARTS = {
    "charts": [
        {"title": "Over-optimization", "x": "kl", "y": ["eval/accuracy", "reward", "nothing"], "x_scale": "sqrt"},
        {"title": "Of what nobody logged", "x": "nothing", "y": ["reward"]},
        {"title": "Malformed", "x": 3},
        "malformed",
    ]
}
FITTED = {"charts": [{"title": "Humps", "x": "kl", "y": ["reward"], "x_scale": "sqrt", "fitted": "reward"}]}
POWERS = {
    "charts": [{"title": "Powers", "x": "samples", "y": ["reward"], "x_scale": "log", "y_scale": "log"}],
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    stated = {"metric": "eval/return", "metric_label": "return", "unit": "points"}
    folders = {
        "full": write_comparison(root / "full", failed=[("reinforce++", 3)], killed=[("ppo", 4)], config=CHARTS),
        "three": write_comparison(root / "three", ["grpo", "remax"], seeds=3, iterations=20, config=POWERS),
        "fitted": write_comparison(root / "fitted", ["grpo", "remax"], seeds=3, iterations=20, config=FITTED),
        "control": write_comparison(root / "control", ["grpo", "ppo"], stated=stated, scale=9000, iterations=20),
        "cartpole": write_domain(root / "cartpole", "control", seeds=5),
        "operations": write_domain(root / "operations", "operations", seeds=5),
        "theory": write_domain(root / "theory", "theory", seeds=3),
        "long": write_comparison(root / "long", LONG, iterations=20),
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
@pytest.mark.parametrize(
    "name", ["full", "three", "control", "cartpole", "operations", "theory", "long", "single", "killed", "hostile"]
)
def test_every_report_opens_cleanly_and_fits(browser: Browser, reports: dict[str, Path], name: str, width: int) -> None:
    opened = _open(browser, reports[name], width)
    assert opened.trouble == []
    assert all(url.startswith(("file://", "data:")) for url in opened.requests)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drawn = opened.page.evaluate("[...document.querySelectorAll('.chart')].map(e => e.outerHTML).join('')")
    assert "NaN" not in drawn and "Infinity" not in drawn and "undefined" not in drawn
    opened.page.close()


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("name", ["full", "fitted", "cartpole", "operations", "theory", "long"])
def test_nothing_is_drawn_outside_its_chart(browser: Browser, reports: dict[str, Path], name: str, width: int) -> None:
    opened = _open(browser, reports[name], width)
    outside = opened.page.evaluate("""() => [...document.querySelectorAll('.chart > svg')].flatMap(svg => {
        const f = svg.getBoundingClientRect();
        const drawn = [...svg.querySelectorAll('path, text, circle, rect')];
        return drawn.filter(e => !e.closest('[clip-path], clipPath')).filter(e => {
            const b = e.getBoundingClientRect();
            return b.left < f.left - 2 || b.right > f.right + 2 || b.top < f.top - 2 || b.bottom > f.bottom + 2;
        }).map(e => svg.parentNode.id + ' ' + e.outerHTML.slice(0, 120));
    })""")
    assert outside == []
    opened.page.close()


OVERLAPS = """() => [...document.querySelectorAll('.chart > svg')].flatMap(svg => {
    const boxes = what => [...svg.querySelectorAll(what)]
        .map(e => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width + b.height);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
    const on = (one, a, others) => others.filter(([, b]) => meet(a, b)).map(([other]) => [one, other]);
    const texts = boxes('text');
    // what is drawn stands beside the names, or below them
    const drawn = boxes('.bar, .mark, .dot, .block-bar');
    const found = [
        ...texts.flatMap(([one, a], i) => on(one, a, texts.slice(i + 1))),
        ...boxes('text.label').flatMap(([one, a]) => on(one, a, drawn)),
    ];
    return found.map(pair => svg.parentNode.id + ': ' + pair.map(e => e.textContent || e.outerHTML).join(' | '));
})"""


@pytest.mark.parametrize("width", [390, 700, 1400])
@pytest.mark.parametrize("name", ["full", "cartpole", "operations", "theory", "long"])
def test_no_two_texts_lie_on_each_other(browser: Browser, reports: dict[str, Path], name: str, width: int) -> None:
    opened = _open(browser, reports[name], width)
    assert opened.page.evaluate(OVERLAPS) == []
    opened.page.close()


def test_long_names_are_broken_where_they_may_be_and_are_all_there(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["long"], 390)
    shown = opened.page.eval_on_selector_all("#final-chart text.label", "all => all.map(e => e.textContent)")
    assert shown[:4] == [
        LONG[0],
        LONG[1],
        "grpo(clip_range=0.1,learning_rate=1e-4)+",
        "reference-kl(kl_loss_coef=0.04)",
    ]
    assert "".join(shown) == "".join(LONG)  # letters of the last name too, on lines of their own
    pairs = opened.page.eval_on_selector_all("#pairs-chart text.label", "all => all.map(e => e.textContent)")
    assert pairs[pairs.index("grpo −") + 1] in (LONG[1], "grpo(clip_range=0.1,learning_rate=1e-4)+")
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
    assert labels[0] == "Accuracy" and {"Training reward", "Entropy", "Response length"} <= set(labels)
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


def test_a_power_is_drawn_on_two_logarithmic_axes_with_its_slope(browser: Browser, reports: dict[str, Path]) -> None:
    """Over what was spent, with ticks that are values and not logarithms, and a sentence about the last decade."""
    opened = _open(browser, reports["three"])
    figure = opened.page.locator("#chart-0 figure")
    assert figure.count() == 1 and opened.trouble == []
    assert opened.page.text_content("#chart-0 .x-title") == "Samples (completions)"
    ticks = figure.locator("svg > text:not(.title)").evaluate_all("all => all.map(e => e.textContent)")
    assert {"100", "1,000"} <= set(ticks)
    said = figure.locator("p.slopes").inner_text()
    assert re.search(r"grpo −?\d\.\d\d \[−?\d\.\d\d, −?\d\.\d\d\]; remax", said)
    opened.page.close()


def test_a_law_is_drawn_within_the_axes_where_one_seed_went_further_than_the_mean(
    browser: Browser, reports: dict[str, Path]
) -> None:
    opened = _open(browser, reports["fitted"])
    found = opened.page.evaluate("""() => [...document.querySelectorAll('#chart-0 svg')].flatMap(svg => {
        const axis = svg.querySelector('.grid').getBoundingClientRect();
        return [...svg.querySelectorAll('path.fit')].map(e => {
            const law = e.getBoundingClientRect();
            const mean = e.parentNode.querySelector('path.mean').getBoundingClientRect();
            return [law.right - axis.right, law.right - mean.right];
        });
    })""")
    assert len(found) == 4 and all(beyond <= 1 for beyond, _ in found), found
    assert any(further > 1 for _, further in found), found  # else nothing was tried
    opened.page.close()


def test_what_a_task_asks_to_be_drawn(browser: Browser, reports: dict[str, Path]) -> None:
    """One quantity over another: a path for each method, the panels in order, a scale that keeps 0."""
    opened = _open(browser, reports["full"])
    page = opened.page
    assert page.inner_text("#charts-0 h2") == "Over-optimization" and page.locator("#charts-1").count() == 0
    heads = page.eval_on_selector_all("#chart-0 figcaption strong", "all => all.map(e => e.textContent)")
    assert heads == ["Accuracy", "Training reward"]  # what nobody logged has no panel
    assert page.text_content("#chart-0 .x-title") == "√ of KL to the start (nats per sequence)"
    first = page.locator("#chart-0 svg").nth(1)
    shown = first.locator("g.series").evaluate_all("all => all.map(e => e.dataset.method)")
    assert shown == ["grpo", "remax", "reinforce++", "ppo"]
    ends = {
        method: _numbers(first.locator(f"g[data-method='{method}'] path.mean").get_attribute("d") or "")[-2]
        for method in shown
    }
    assert ends["remax"] > ends["grpo"] > ends["reinforce++"] > ends["ppo"]  # as far as each went
    page.click("#legend button[data-method=remax]")
    assert page.locator("#chart-0 svg").first.locator("g.series").count() == 3
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


# ---- every domain ----------------------------------------------------------------------------------------------------


def _ticks(page: Page, chart: str, side: str) -> list[tuple[str, float]]:
    """Labels of an axis with their place in pixels."""
    anchor, coordinate = ("end", "y") if side == "left" else ("middle", "x")
    found = page.eval_on_selector_all(
        f"#{chart} > svg > text[text-anchor={anchor}]:not([class])",
        f"all => all.map(e => [e.textContent, Number(e.getAttribute('{coordinate}'))])",
    )
    return [(str(text), float(place)) for text, place in found]


def _place(page: Page, selector: str, name: str) -> float:
    return float(page.get_attribute(selector, name) or "nan")


def test_lines_stand_at_their_value_and_are_named(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["operations"])
    page = opened.page
    (low, y0), *_, (high, y1) = _ticks(page, "curves-chart", "left")
    for name, value in DOMAINS["operations"].metric.lines.items():
        expected = (y0 - 4) + (value - float(low)) * (y1 - y0) / (float(high) - float(low))
        assert _place(page, f"#curves-chart line[data-line='{name}']", "y1") == pytest.approx(expected, abs=0.3)
    assert page.locator("#curves-chart line.line.target").get_attribute("data-line") == "optimum"
    for chart in ("curves-chart", "final-chart"):
        said = page.eval_on_selector_all(f"#{chart} .line-label", "all => all.map(e => e.textContent)")
        assert sorted(map(str, said)) == ["best base stock 6.315", "best capped base stock 6.120", "optimum 6.094"]
    assert page.text_content("#curves-chart .y-title") == "Cost (per period)"
    page.select_option("#metric", "cost")
    assert page.locator("#curves-chart .line").count() == 0  # lines belong to the deciding metric alone
    page.close()


def test_costs_that_fall_far_are_drawn_where_they_end(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["operations"])
    page = opened.page
    assert page.get_attribute("#range button[data-range=end]", "aria-pressed") == "true"
    assert float(_ticks(page, "curves-chart", "left")[-1][0]) < 8
    assert "second half" in page.inner_text("#curves-caption")
    assert "Before training: hdpo 31.5" in page.inner_text("#final-caption")
    page.click("#range button[data-range=whole]")
    assert float(_ticks(page, "curves-chart", "left")[-1][0]) >= 25
    page.close()
    control = _open(browser, reports["cartpole"])
    assert control.page.get_attribute("#range button[data-range=whole]", "aria-pressed") == "true"
    control.page.close()


def test_lower_is_better_puts_the_lowest_first(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["operations"])
    opened.page.focus("#curves-chart")
    opened.page.keyboard.press("End")
    read = opened.page.inner_text("#curves-chart .readout")
    assert read.index("hdpo") < read.index("reinforce")
    assert "below zero the first is better" in opened.page.inner_text("#differences")
    opened.page.close()


def test_a_log_axis_is_even_in_powers_of_ten(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["theory"])
    page = opened.page
    superscripts = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    ticks = [
        (
            int(text[2:].translate(superscripts))
            if text.startswith("10") and text != "10"
            else math.log10(float(text)),
            y,
        )
        for text, y in _ticks(page, "curves-chart", "left")
    ]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(ticks)]
    assert len(slopes) >= 2 and slopes == pytest.approx([slopes[0]] * len(slopes), abs=0.2)
    folder = reports["theory"].parent / "theory"
    finals = load_comparison(folder).finals["nash-mp"].values()
    mean = sum(math.log10(v) for v in finals) / len(finals)
    last = _numbers(page.get_attribute("#curves-chart g[data-method=nash-mp] path.mean", "d") or "")[-1]
    assert last == pytest.approx(ticks[0][1] - 4 + (mean - ticks[0][0]) * slopes[0], abs=0.6)
    zero = _place(page, "#pairs-chart line.zero", "x1")
    one = next(x for text, x in _ticks(page, "pairs-chart", "bottom") if text == "1")
    assert zero == pytest.approx(one, abs=0.2)
    assert "nash-mp / nash-md" in page.inner_text("#differences table") and "Factor" in page.inner_text("#differences")
    page.focus("#curves-chart")
    page.keyboard.press("End")
    assert "e−8" in page.inner_text("#curves-chart .readout") or "e−9" in page.inner_text("#curves-chart .readout")
    assert opened.trouble == []
    page.close()


def test_axes_are_named_by_the_domain(browser: Browser, reports: dict[str, Path]) -> None:
    for name, title in (
        ("cartpole", "Environment steps"),
        ("theory", "Preference queries"),
        ("operations", "Episodes"),
    ):
        opened = _open(browser, reports[name])
        assert opened.page.text_content("#curves-chart .x-title") == title
        opened.page.close()


def test_diagnostics_are_drawn_small_and_open_large(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["cartpole"])
    page = opened.page
    titles = page.locator("#panels figcaption button").all_inner_texts()
    assert titles[0] == "Return of training episodes" and "Explained variance of the critic" in titles
    assert page.locator("#panels figure").count() == 9
    assert page.locator("#panels figure").first.locator("path.mean").count() == 2
    page.click("#panels button:has-text('Explained variance')")
    assert (
        page.text_content("#curves-chart .y-title") == "Explained variance of the critic (share of variance, 1 is best)"
    )
    assert page.input_value("#metric") == "value/explained_variance"
    page.click("#legend button[data-method=ppo]")
    assert page.locator("#panels figure").first.locator("path.mean").count() == 1
    assert opened.trouble == []
    page.close()


def test_episodes_are_shown_as_rows(browser: Browser, reports: dict[str, Path]) -> None:
    opened = _open(browser, reports["cartpole"])
    assert opened.page.is_hidden("#samples")
    assert opened.page.locator("#episodes tbody tr").count() == 6
    assert "ended" in opened.page.inner_text("#episodes") and "truncated" in opened.page.inner_text("#episodes")
    opened.page.close()
