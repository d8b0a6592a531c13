"""The demo's size: one of a few, the largest that comes within five minutes by what was measured; told on the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Command
from polyrl.cli import demo
from polyrl.cli.demo import LIMIT, SIZES, choose, explained, plan
from polyrl.report.page import write_report
from run_folders import write_comparison
from test_docs import text

FULL, HALF, QUARTER = SIZES.values()


class Clock:
    """Time that passes only where somebody says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


def planned(folder: Path, *, model: float = 0, iteration: float = 1.2, workers: int = 2, **how: Any) -> tuple[str, str]:
    """Name of the size and the note, where the model takes `model` seconds and the measurement 8."""
    clock = Clock()
    asked: list[int] = []

    def measured(count: int) -> float:
        asked.append(count)
        clock.takes(8)
        return iteration

    prepared: Callable[[], object] = lambda: clock.takes(model)  # noqa: E731
    known = {"size": None, "overwrite": False, **how}
    size, note = plan(folder, workers=workers, prepared=prepared, measured=measured, clock=clock, **known)
    assert asked in ([], [workers])
    return size.name, note if asked else f"not measured: {note}"


def test_a_fast_machine_runs_all_of_it_as_before(tmp_path: Path) -> None:
    assert planned(tmp_path, model=50)[0] == "full"
    config = FULL.config()
    assert (config.task, config.budget, config.evaluations, config.eval_prompts) == ("addition", "samples=1792", 5, 200)
    assert demo.METHODS == ("ppo", "grpo", "rloo", "remax") and FULL.seeds == 5


@pytest.mark.parametrize(
    ("model", "iteration", "workers", "size"),
    [
        (0, 1.2, 2, "full"),
        (0, 1.8, 2, "full"),  # 8 + 266 + 23 = 296 s
        (0, 1.9, 2, "half"),
        (50, 1.8, 2, "half"),  # the starting model's time counts
        (0, 1.2, 1, "half"),  # one process does all of it: 369 s, and the half 201
        (100, 2.4, 2, "quarter"),
        (0, 9.0, 2, "quarter"),  # none fits: the smallest
        (
            0,
            7.0,
            64,
            "half",
        ),  # however many processes: the longest run of the full size alone takes 217 s, and the rest 88
    ],
)
def test_the_largest_size_that_fits_is_taken(
    tmp_path: Path, model: float, iteration: float, workers: int, size: str
) -> None:
    assert planned(tmp_path, model=model, iteration=iteration, workers=workers)[0] == size


def test_what_was_measured_and_chosen_is_said(tmp_path: Path) -> None:
    assert planned(tmp_path, model=52, iteration=1.9)[1] == (
        "Measured: 2 processes at once take 1.9 s for an iteration of ppo. Chosen: the half size (5 seeds, 768 samples "
        "a run), about 4 minutes in all, the full one about 6 minutes."
    )
    slow = explained(QUARTER, 12.0, 2, 60.0)  # 60 + 450 + 150 s
    assert (
        "about 11 minutes in all (more than the 5 minutes it is meant to take), the full one about 33 minutes" in slow
    )
    assert "the full one" not in explained(FULL, 1.2, 2, 60.0)


def test_sizes_are_few_fixed_and_fall() -> None:
    """By the bit: a seed's numbers of one size are the same everywhere."""
    assert [(s.name, s.seeds, s.config().budget, s.evaluations) for s in SIZES.values()] == [
        ("full", 5, "samples=1792", 5),
        ("half", 5, "samples=768", 5),
        ("quarter", 3, "samples=640", 3),
    ]
    for larger, smaller in ((FULL, HALF), (HALF, QUARTER)):
        for workers in (1, 2, 4, 8, 32):
            assert larger.seconds(1.0, workers) > smaller.seconds(1.0, workers)
    times = [choose(i / 10, 2, 0).seconds(i / 10, 2) for i in range(1, 60)]
    assert all(t <= LIMIT for t in times)  # down to a fifth of the speed that the full size needs


def test_a_size_that_is_asked_for_or_begun_is_not_measured_again(tmp_path: Path) -> None:
    assert planned(tmp_path, iteration=0.1, size="quarter") == (
        "quarter",
        "not measured: The quarter size (3 seeds, 640 samples a run), as asked for with --size.",
    )
    stated = {"question": {"methods": [*demo.METHODS], "seeds": [0, 1, 2, 3, 4], "base": HALF.config().as_dict()}}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(stated))
    name, note = planned(tmp_path, iteration=0.1)
    assert name == "half" and note.startswith("not measured:") and "goes on" in note
    assert planned(tmp_path, iteration=0.1, overwrite=True)[0] == "full"
    stated["question"]["base"]["budget"] = "samples=1000"  # another comparison, which `run_comparison` refuses
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(stated))
    assert planned(tmp_path, iteration=0.1)[0] == "full"


def test_the_option_reaches_the_comparison(tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("polyrl.comparison.run_comparison", lambda *given, **more: calls.append((given, more)))
    told = polyrl("demo", "--size", "quarter", "--out", str(tmp_path / "demo"))
    assert told.code == 0, told.err
    (methods, config, seeds, folder), more = calls[0]
    assert (methods, config, list(seeds), folder) == ([*demo.METHODS], QUARTER.config(), [0, 1, 2], tmp_path / "demo")
    assert (
        more["note"]
        == told.out.strip().replace("\n", " ")
        == "The quarter size (3 seeds, 640 samples a run), as asked for with --size."
    )
    assert polyrl("demo", "--size", "third").code == 2


def test_the_page_says_it_once_and_as_text(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "demo")
    stated = yaml.safe_load((folder / "compare.yaml").read_text())
    note = "Measured: 2 processes at once take 1.9 s <i>"
    (folder / "compare.yaml").write_text(yaml.safe_dump({**stated, "note": note}))
    page = write_report([folder], folder / "report.html").read_text()
    assert page.count("Measured: 2 processes at once take 1.9 s &lt;i&gt;") == 1
    (folder / "compare.yaml").write_text(yaml.safe_dump(stated))
    assert "Measured:" not in write_report([folder], folder / "report.html").read_text()


def test_the_guide_has_the_sizes() -> None:
    for size in SIZES.values():
        row = f"| `{size.name}` | {size.seeds} | {size.samples:,} | {size.work:g} |"
        assert row in text("getting-started.md")
