"""Charts: one script draws every description, in a browser and in an engine of its own; texts are escaped."""

from __future__ import annotations

import dataclasses
import html
import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from polyrl.report.drawing import frame, save, svg
from polyrl.runtime.drawing import Axis, Curve, Curves, Dot, Line, Row, Rows, Series, Sheet, Words

pytest.importorskip("quickjs", reason="the extra `figures` is not installed")
HOSTILE = '</script><img src=x onerror="alert(1)"><b>&\x00\x1b\ud800'
WIDTH, HEIGHT = 300, 200
TOP, BOTTOM, LEFT, RIGHT = 30, 46, 52, 16
"""Margins of curves without names: see `frame` in draw.js."""
PLAIN = Curves(
    width=WIDTH,
    height=HEIGHT,
    unnamed=True,
    x=Axis(domain=(0, 10), title="samples"),
    y=Axis(domain=(0, 1), title="accuracy"),
    series=[
        Series(
            name="grpo",
            look=1,
            mean=[(0, 0), (5, 0.5), (10, 1)],
            band=[(0, 0, 0.2), (10, 0.8, 1)],
            curves=[Curve(points=[(0, 0.25), (10, 0.75)])],
        )
    ],
)


def drawn(*items: Any, width: int = WIDTH, height: int = HEIGHT) -> ElementTree.Element:
    text = svg(Sheet(width=width, height=height, label="a chart", items=[(0, 0, item) for item in items]))
    assert "var(" not in text
    return ElementTree.fromstring(text)


def found(root: ElementTree.Element, tag: str, look: str = "") -> list[ElementTree.Element]:
    of = [e for e in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]
    return [e for e in of if not look or look in e.get("class", "").split()]


def places(path: str) -> list[tuple[float, float]]:
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def pixel(x: float, y: float) -> tuple[float, float]:
    """Where a point of PLAIN stands, in tenths of a pixel."""
    right, down = LEFT + x / 10 * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)
    return round(right, 1), round(down, 1)


def test_points_stand_where_their_numbers_say() -> None:
    root = drawn(PLAIN)
    assert places(found(root, "path", "mean")[0].get("d", "")) == [pixel(0, 0), pixel(5, 0.5), pixel(10, 1)]
    assert places(found(root, "path", "seed")[0].get("d", "")) == [pixel(0, 0.25), pixel(10, 0.75)]
    edge = [pixel(0, 0.2), pixel(10, 1), pixel(10, 0.8), pixel(0, 0)]
    assert places(found(root, "path", "band")[0].get("d", "")) == edge


def test_a_log_axis_has_its_grid_at_powers_of_ten() -> None:
    axis = Axis(domain=(-3, 0), log=True)
    root = drawn(dataclasses.replace(PLAIN, y=axis))
    texts = [e.text for e in found(root, "text")]
    assert [t for t in texts if t in ("1", "0.1", "0.01", "0.001")] == ["0.001", "0.01", "0.1", "1"]


def test_looks_are_those_of_the_style_sheet() -> None:
    root = drawn(PLAIN)
    mean, band, seed = (found(root, "path", name)[0] for name in ("mean", "band", "seed"))
    assert mean.get("stroke") == band.get("fill") == seed.get("stroke") == "#d55e00"  # the second colour
    assert (mean.get("stroke-width"), band.get("opacity"), seed.get("opacity")) == ("2.4", "0.15", "0.32")
    row = Row(tone="failed", value=0.5, bar=(0.25, 0.75), dots=[Dot(value=0.5), Dot(value=0.6)])
    root = drawn(Rows(width=WIDTH, domain=(0, 1), items=[row], bare=True, shade=(0.5, 1)))
    bar, wanted = found(root, "line", "bar")[0], found(root, "rect", "wanted")[0]
    assert (bar.get("x1"), bar.get("x2"), bar.get("stroke")) == ("75", "225", "#a63a00")
    assert (wanted.get("x"), wanted.get("width")) == ("150", "150")
    assert {e.get("fill") for e in found(root, "path", "dot")} == {"#a63a00"}


@pytest.mark.parametrize("ends", [[0.5, 0.505, 0.51, 0.1], [0.01, 0.012, 0.015, 0.0]], ids=["apart", "at the axis"])
def test_names_are_moved_apart_and_stay_in_order(ends: list[float]) -> None:
    series = [Series(name=f"arm {i}", look=i, mean=[(0, 0), (10, y)], end=(10, y)) for i, y in enumerate(ends)]
    root = drawn(dataclasses.replace(PLAIN, series=series, unnamed=False, beside=0, alone=True))
    at = {e.text: float(e.get("y", "")) for e in found(root, "text", "own")}
    assert at["arm 2"] < at["arm 1"] < at["arm 0"] < at["arm 3"]
    between = sorted(at.values())
    assert min(b - a for a, b in itertools.pairwise(between)) >= 16
    assert between[-1] <= HEIGHT - BOTTOM + 4  # as high as the axis, on whose line the last one may stand
    if ends[0] == 0.5:
        assert at["arm 2"] == pixel(10, 0.51)[1] + 4  # the first has its own place


def test_arms_are_named_also_where_a_lines_name_is_too_long() -> None:
    long = Line(name="the best of all the heuristics that there are", value=0.5)
    named = dataclasses.replace(PLAIN, unnamed=False, beside=0, alone=True, lines=[long])
    ended = [dataclasses.replace(PLAIN.series[0], end=(10, 1))]
    root = drawn(dataclasses.replace(named, series=ended))
    assert [e.text for e in found(root, "text", "own")] == ["grpo"]
    (label,) = found(root, "text", "line-label")
    assert float(label.get("x", "")) < LEFT + 20  # within the chart


def test_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    series = [dataclasses.replace(PLAIN.series[0], name=HOSTILE, end=(10, 1))]
    lines = [Line(name=HOSTILE, value=0.5)]
    axes = {"x": Axis(domain=(0, 10), title=HOSTILE), "y": Axis(domain=(0, 1), title=HOSTILE)}
    chart = Curves(width=900, height=HEIGHT, series=series, lines=lines, alone=True, beside=0, **axes)
    row = Row(name=HOSTILE, text=HOSTILE, tone="met", value=1, dots=[Dot(value=1, title=HOSTILE)])
    rows = Rows(width=900, domain=(0, 2), items=[row], title=HOSTILE)
    sheet = Sheet(
        width=900, height=HEIGHT, label=HOSTILE, items=[(0, 0, chart), (0, 0, rows), (0, 0, Words(lines=[HOSTILE]))]
    )
    text = save(sheet, tmp_path / "a.svg").read_text(encoding="utf-8")
    assert not re.search(r"<(img|b|script)\b", text) and "\x00" not in text and "\x1b" not in text
    root = ElementTree.fromstring(text)
    shown = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert sum(e.text == shown for e in root.iter()) >= 7
    framed = frame(sheet)
    assert framed.count("<") == 2  # the frame and its end: all else is in its attribute
    assert html.unescape(framed).count("</script>") == 2


def test_a_browser_and_the_engine_draw_the_same() -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    from test_report_page import CHROMIUM, QUIET

    if not CHROMIUM:
        pytest.skip("there is no browser")
    row = Row(look=2, value=0.5, bar=(0.25, 0.75), dots=[Dot(value=0.5), Dot(value=0.6)])
    sheet = Sheet(
        width=WIDTH,
        height=HEIGHT,
        label="both",
        items=[(0, 0, PLAIN), (10, 20, Rows(width=WIDTH, domain=(0, 1), items=[row], bare=True))],
    )
    page = html.unescape(frame(sheet).partition('srcdoc="')[2].partition('" width')[0])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        opened = browser.new_page()
        opened.set_content(page)
        theirs = opened.eval_on_selector_all(
            "path, line, rect", "all => all.map(e => [e.tagName, e.getAttribute('d')])"
        )
        colour = opened.eval_on_selector("path.mean", "e => getComputedStyle(e).stroke")
        browser.close()
    root = ElementTree.fromstring(svg(sheet))
    tags = ("path", "line", "rect")
    ours = [[e.tag.rpartition("}")[2], e.get("d")] for e in root.iter() if e.tag.rpartition("}")[2] in tags]
    assert ours[1:] == theirs  # behind the white ground
    assert colour == "rgb(213, 94, 0)"
