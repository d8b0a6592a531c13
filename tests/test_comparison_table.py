"""What is shown of a comparison while it runs: of each run only what was added is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from polyrl import comparison_table
from polyrl.catalogue import build
from polyrl.comparison import Arm, _alike
from polyrl.comparison_table import RunSoFar, Watch
from polyrl.report.records import Records
from polyrl.runtime.config import RunConfig
from polyrl.runtime.metric import Metric

METRIC = Metric()


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every text that is parsed as JSON."""
    seen: list[Any] = []
    parse = comparison_table.parse_json
    monkeypatch.setattr(comparison_table, "parse_json", lambda text: seen.append(text) or parse(text))
    return seen


def test_only_what_is_new_is_read(tmp_path: Path, parsed: list[Any]) -> None:
    file = tmp_path / "metrics.jsonl"
    run = RunSoFar(tmp_path, METRIC)
    run.read()
    assert run.record == {} and run.curve == [] and run.share("samples=10") == 0.0
    file.write_text(lines({"iteration": 0, "samples": 0, "eval/accuracy": 0.25}, {"iteration": 1, "samples": 4}))
    run.read()
    assert len(parsed) == 2 and run.curve == [0.25] and run.share("samples=10") == 0.4
    run.read()
    assert len(parsed) == 2
    with file.open("a") as out:
        out.write(lines({"iteration": 2, "samples": 8, "eval/accuracy": 0.5}) + '{"iteration": 3, "sam')
    run.read()
    assert len(parsed) == 3 and run.curve == [0.25, 0.5] and run.record["iteration"] == 2
    with file.open("a") as out:  # the half line becomes a whole one
        out.write('ples": 9}\n')
    run.read()
    assert len(parsed) == 4 and run.record == {"iteration": 3, "samples": 9}
    (tmp_path / "summary.json").write_text('{"status": "finished"}')
    run.read()
    assert run.status == "finished" and run.share("samples=10") == 1.0


def test_a_file_that_was_cut_back_is_read_again(tmp_path: Path) -> None:
    """A resume writes the records of before its checkpoint into a new file, which may be longer by now."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(lines(*({"iteration": i, "eval/accuracy": 0.1} for i in range(5))))
    run = RunSoFar(tmp_path, METRIC)
    run.read()
    other = tmp_path / "new"
    other.write_text(lines(*({"iteration": i, "eval/accuracy": 0.2} for i in range(9))))
    other.replace(file)
    run.read()
    assert run.curve == [0.2] * 9 and run.record["iteration"] == 8
    file.write_text(lines({"iteration": 0, "eval/accuracy": 0.3}))
    run.read()
    assert run.curve == [0.3]
    file.unlink()
    run.read()
    assert run.record == {} and run.curve == []


def test_a_damaged_line_ends_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines({"iteration": 0}) + "{broken\n" + lines({"iteration": 2}))
    run = RunSoFar(tmp_path, METRIC)
    run.read()
    run.read()
    assert run.record == {"iteration": 0}


def test_the_table_and_the_line(tmp_path: Path) -> None:
    arms = []
    for seed, accuracy in enumerate((0.5, 0.7)):
        folder = tmp_path / f"grpo-seed{seed}"
        folder.mkdir()
        first, last = {"iteration": 0, "eval/accuracy": 0.1}, {"iteration": 1, "samples": 5, "seconds": 2.0}
        (folder / "metrics.jsonl").write_text(lines(first, {**last, "eval/accuracy": accuracy}))
        arms.append(Arm(RunConfig(method="grpo", seed=seed, budget="samples=10"), folder))
    (arms[0].folder / "summary.json").write_text('{"status": "finished"}')
    watch = Watch(arms, METRIC)
    assert watch.line(0.0).startswith("1 of 2 runs done, 75%")
    console = Console(width=120, record=True, quiet=True)
    with console.capture() as shown:
        console.quiet = False
        console.print(watch.table(0.0))
    text = shown.get()
    assert "75% done" in text and "0.100 -> 0.600" in text and "1/2" in text


def test_records_by_column_are_the_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": 0, "a": 1, "b": 0.5},
        {"iteration": 1, "a": None, "b": float("nan"), "c": True},
        {"iteration": 2, "b": 10**400, "d": "text", "e": 3},
    ]
    records = Records(rows)
    assert records == [{"iteration": 0, "a": 1, "b": 0.5}, {"iteration": 1}, {"iteration": 2, "e": 3}]
    assert records.keys == ["iteration", "a", "b", "e"] and records[-1] == {"iteration": 2, "e": 3}
    assert records.series("a") == [1.0] and records.series("none") == [] and records.where("e").tolist() == [2]
    assert len(records) == 3 and records[1:] == [{"iteration": 1}, {"iteration": 2, "e": 3}] and Records([]) == []


def test_an_arm_that_is_another_one_over_again_is_told(tmp_path: Path) -> None:
    """A setting that is the default; two files whose classes have one name are two methods."""
    code = "from polyrl.catalogue import build\nfrom polyrl.recipe import Part\n"
    code += "class Twice(type(build('grpo').terms[0])):\n    pass\n"
    code += "def recipe():\n    return build('grpo') + Twice()\n"
    files = [tmp_path / "one.py", tmp_path / "two.py"]
    for file in files:
        file.write_text(code)
    arms = ["grpo", "grpo(clip_range=0.2)", "grpo(clip_range=0.1)", "grpo+entropy-bonus", *map(str, files)]
    said = _alike({arm: build(arm) for arm in arms})
    assert said == ["grpo(clip_range=0.2) is grpo with the same settings: seed by seed their runs will be equal."]
    lists = {arm: build(arm) for arm in ("sac", "sac(tau=0.005)", "sac(tau=0.01)", "sac(capacity=9999)")}
    assert [text.partition(" is ")[0] for text in _alike(lists)] == ["sac(tau=0.005)"]
