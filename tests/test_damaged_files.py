"""Files of a run that are damaged, hostile, or of something else: one sentence in every command, and nothing silent."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Command, Told, read_records, timeless
from polyrl.errors import UserError
from polyrl.runtime import checkpoint
from polyrl.runtime.config import RunConfig

RUN = ["--task", "rock-paper-scissors", "--budget", "iterations=6", "--checkpoint-every", "2", "--evaluations", "6"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests work on copies of it."""
    from polyrl.cli.main import polyrl

    run = tmp_path_factory.mktemp("finished") / "run"
    polyrl.main(["train", "nash-mp", *RUN, "--quiet", "--out", str(run)], standalone_mode=False)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def killed(run: Path) -> Path:
    """The same as a kill after iteration 5 leaves it: the newest checkpoint is of iteration 4."""
    shutil.rmtree(run / "checkpoints" / "iteration-000006")
    shutil.rmtree(run / "model")
    return run


def one_sentence(told: Told, *words: str) -> None:
    assert told.code == 2, (told.code, told.out, told.err)
    assert told.err.startswith("polyrl: ") and told.err.count("\n") == 1 and len(told.err) < 900, told.err
    assert "Traceback" not in told.err + told.out
    for word in words:
        assert word in told.err, (word, told.err)


# ------------------------------------------------------------------------------------- records: a line in the middle


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\x00\x00", b"\xff", b"[1]", b"3", b"null", b'{"iteration": "2"}', b'{"a": 1}', b"[" * 100_000],
    ids=["empty", "half", "zeros", "no-text", "list", "number", "null", "text", "none", "nested"],
)
@pytest.mark.parametrize("number", [3, -1])
def test_a_damaged_line_is_refused_by_its_number(
    name: str, damage: bytes, number: int, killed: Path, polyrl: Command
) -> None:
    """In the middle, or at the end with its line feed: what a kill cannot leave. Nothing is thrown away."""
    lines = (killed / name).read_bytes().split(b"\n")[:-1]
    at = number if number > 0 else len(lines)
    lines[at - 1] = damage
    (killed / name).write_bytes(b"\n".join(lines) + b"\n")
    before = {f: f.read_bytes() for f in killed.rglob("*") if f.is_file()}
    one_sentence(polyrl("resume", killed, "--quiet"), f"Line {at} of {killed / name} is damaged")
    assert {f: f.read_bytes() for f in before} == before


def test_a_line_that_was_removed_is_told_and_the_rest_is_kept(killed: Path, finished: Path, polyrl: Command) -> None:
    """The way out that the sentence names."""
    lines = (killed / "metrics.jsonl").read_bytes().split(b"\n")
    (killed / "metrics.jsonl").write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    told = polyrl("resume", killed, "--quiet")
    assert told.code == 0 and "no line of iteration 2" in " ".join(told.out.split())
    assert any("no line of iteration 2" in w for w in json.loads((killed / "summary.json").read_text())["warnings"])
    wanted = [r for r in timeless(read_records(finished)) if r["iteration"] != 2]
    assert timeless(read_records(killed)) == wanted


def test_a_last_line_that_was_cut_short_is_told(killed: Path, finished: Path, polyrl: Command) -> None:
    text = (killed / "metrics.jsonl").read_bytes()
    (killed / "metrics.jsonl").write_bytes(text[:-30])
    told = polyrl("resume", killed, "--quiet")
    assert told.code == 0 and "was cut short" in " ".join(told.out.split())
    assert timeless(read_records(killed)) == timeless(read_records(finished))


def test_an_iteration_that_two_processes_wrote_is_told(killed: Path, finished: Path, polyrl: Command) -> None:
    text = (killed / "metrics.jsonl").read_bytes()
    line = text.split(b"\n")[4]
    (killed / "metrics.jsonl").write_bytes(text.replace(line, line + b"\n" + line))
    told = polyrl("resume", killed, "--quiet")
    assert told.code == 0 and "has iteration 4 twice" in " ".join(told.out.split())
    assert timeless(read_records(killed)) == timeless(read_records(finished))


@pytest.mark.parametrize("kept", [0, 3])
def test_records_that_end_before_every_checkpoint(kept: int, run: Path, polyrl: Command) -> None:
    """Going on would leave a hole: it is refused. Where one checkpoint is old enough, it writes the rest again."""
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:kept]))
    one_sentence(polyrl("resume", run, "--quiet"), "metrics.jsonl ends before the oldest checkpoint, iteration-000004")
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:5]))
    told = polyrl("resume", run, "--quiet")
    assert told.code == 0 and "goes on from iteration-000004" in " ".join(told.out.split())
    assert [r["iteration"] for r in read_records(run)] == [*range(7)]


# -------------------------------------------------------------------------------------------------------- state.json


def set_state(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = max((run / "checkpoints").iterdir()) / "state.json"
    state = json.loads(file.read_text())
    change(state)
    file.write_text(json.dumps(state))
    return file.parent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spent", {"samples": 3}),
        ("memories", {"p": {"x": 1}}),
        ("final", {}),
        ("seed", 1),
        ("iteration", 5),
        ("digest", ""),
    ],
)
def test_the_hash_of_a_checkpoint_covers_its_state(name: str, value: Any, killed: Path, polyrl: Command) -> None:
    folder = set_state(killed, lambda state: state.update({name: value}))
    one_sentence(
        polyrl("resume", killed, "--quiet"), f"The state.json of {folder} is damaged", "go on from an older one"
    )


def test_a_checkpoint_of_before_the_state_was_hashed_is_read(killed: Path, finished: Path, polyrl: Command) -> None:
    def older(state: dict[str, Any]) -> None:
        del state["digest"]
        state["format"] = checkpoint.FIRST_FORMAT

    set_state(killed, older)
    assert polyrl("resume", killed, "--quiet").code == 0
    assert timeless(read_records(killed)) == timeless(read_records(finished))


def test_a_new_checkpoint_without_its_hash_is_refused(killed: Path, polyrl: Command) -> None:
    set_state(killed, lambda state: state.pop("digest"))
    one_sentence(polyrl("resume", killed, "--quiet"), "is damaged")


@pytest.mark.parametrize("name", ["spent", "memories", "seconds", "start", "final", "iteration"])
@pytest.mark.parametrize("value", [None, 3.5, "x", [], {"a": "b"}, {"a": None}])
def test_a_state_of_other_types_is_refused(name: str, value: Any, killed: Path, polyrl: Command) -> None:
    """As the older format could hold: no hash tells."""
    if name in ("start", "final") and isinstance(value, dict):
        return

    def change(state: dict[str, Any]) -> None:
        del state["digest"]
        state.update({"format": checkpoint.FIRST_FORMAT, name: value})

    set_state(killed, change)
    one_sentence(polyrl("resume", killed, "--quiet"), "is damaged")


def test_a_killed_run_without_a_checkpoint_begins_again(run: Path, finished: Path, polyrl: Command) -> None:
    shutil.rmtree(run / "checkpoints")
    one_sentence(polyrl("resume", run, "--quiet"), "has no checkpoint", "--overwrite")  # it is not thrown away
    for name in ("metrics.jsonl", "samples.jsonl", "summary.json"):
        (run / name).unlink()
    told = polyrl("resume", run, "--quiet")
    assert told.code == 0 and "begins again" in " ".join(told.out.split())
    assert timeless(read_records(run)) == timeless(read_records(finished))


def test_a_checkpoint_that_a_kill_left_too_many_goes(run: Path, polyrl: Command) -> None:
    """Between the last checkpoint and the removal of an old one; no later checkpoint comes to remove it."""
    shutil.copytree(run / "checkpoints" / "iteration-000004", run / "checkpoints" / "iteration-000002")
    assert polyrl("resume", run, "--quiet").code == 0
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"iteration-000004", "iteration-000006"}


# ------------------------------------------------------------------------------------- config.yaml and the other files

NESTED = b"[" * 50_000
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "list": b"[1, 2]",
    "number": b"3",
    "binary": bytes(range(256)),
    "zeros": b"\x00" * 4096,
    "unclosed": b'{"a": [',
    "nested": NESTED,
    "nested-yaml": b"- " * 20_000,
    "date": b"run: 2020-99-99",
    "long-number": b"run: " + b"9" * 6000,
    "object": b"run: !!python/object/apply:os.system [id]",
    "itself": b"run: &a\n  method: *a\npolyrl: 1\n",
    "huge": b"# " + b"x" * (5 << 20) + b"\nrun: {}\n",
    "run-list": b"polyrl: 1\nrun: [1]\n",
    "run-empty": b"polyrl: 1\nrun: {}\n",
    "escape": b'polyrl: 1\nwing: "../../x"\nrun: {method: "\\e[2J", task: rock-paper-scissors}\n',
}
COMMANDS: dict[str, list[str]] = {
    "resume": ["resume", "RUN", "--quiet"],
    "eval": ["eval", "RUN"],
    "play": ["play", "RUN"],
    "train": ["train", "nash-mp", *RUN, "--quiet", "--overwrite", "--out", "RUN"],
}


SLOW = ("nested",)
"""What PyYAML takes seconds to give up on: for two commands only."""


@pytest.mark.parametrize(
    ("command", "content"),
    [(a, b) for a in [*COMMANDS, "report"] for b in CONTENTS if b not in SLOW or a in ("resume", "report")],
)
def test_a_config_that_is_none(command: str, content: str, run: Path, polyrl: Command) -> None:
    (run / "config.yaml").write_bytes(CONTENTS[content])
    line = ["report", "RUN"] if command == "report" else COMMANDS[command]
    told = polyrl(*(str(run) if word == "RUN" else word for word in line))
    if told.code == 0:  # a report of what can be read; and what names a method is a run of polyrl's to overwrite
        assert command == "report" or (content, command) == ("escape", "train")
        assert "Traceback" not in told.out
        return
    one_sentence(told)
    assert "\x1b" not in told.err


ODD: list[Any] = [None, True, -1, "\x1b[2J", [None], {"a": {}}]


@pytest.mark.parametrize("command", ["resume", "eval"])
@pytest.mark.parametrize("field", sorted(RunConfig("x").as_dict()))
def test_a_field_of_the_config_that_is_of_another_type(
    command: str, field: str, killed: Path, finished: Path, polyrl: Command
) -> None:
    """Each is refused in one sentence, or is a value that the field may have."""
    if command == "eval":
        shutil.copytree(finished / "model", killed / "model")
    config = yaml.safe_load((killed / "config.yaml").read_text())
    for value in ODD:
        config["run"] = {**yaml.safe_load((finished / "config.yaml").read_text())["run"], field: value}
        (killed / "config.yaml").write_text(yaml.safe_dump(config))
        told = polyrl(command, killed, *(["--quiet"] if command == "resume" else []))
        if told.code != 0:
            one_sentence(told)
            assert "\x1b" not in told.err, told.err
        else:
            RunConfig.from_dict(config["run"])
            assert told.err == "" or "warn" in told.err


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json"])
@pytest.mark.parametrize("made", ["folder", "pipe", "link to itself"])
def test_a_file_that_is_none(name: str, made: str, killed: Path, polyrl: Command) -> None:
    """A named pipe would let a reader wait for ever."""
    (killed / name).unlink()
    if made == "folder":
        (killed / name).mkdir()
    elif made == "pipe":
        os.mkfifo(killed / name)
    else:
        (killed / name).symlink_to(killed / name)
    for command in ("resume", "report", "eval", "train"):
        line = COMMANDS.get(command, [command, "RUN"])
        told = polyrl(*(str(killed) if word == "RUN" else word for word in line))
        if told.code != 0:
            one_sentence(told)


@pytest.mark.parametrize("content", CONTENTS)
def test_a_summary_that_is_none_is_written_again(content: str, killed: Path, finished: Path, polyrl: Command) -> None:
    (killed / "summary.json").write_bytes(CONTENTS[content])
    assert polyrl("report", killed).code == 0
    assert polyrl("resume", killed, "--quiet").code == 0
    assert json.loads((killed / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    "stated",
    [
        *(content for name, content in CONTENTS.items() if name not in SLOW),
        b"question: {}",
        b"question: {methods: 3, seeds: [0], base: {}}",
        b"question: {methods: [nash-mp], seeds: [x], base: {}}",
        b"question: {methods: [nash-mp], seeds: [0], base: {}}",
        b"question: {methods: [nash-mp], seeds: [0], base: {method: nash-mp, threads: many}}",
        b"question: {methods: {a: [b]}, seeds: [0], base: {method: ''}}",
        b"question: {methods: [], seeds: [], base: {method: ''}}",
    ],
)
def test_a_compare_yaml_that_is_none(stated: bytes, tmp_path: Path, polyrl: Command) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "compare.yaml").write_bytes(stated)
    for line in (
        ["resume", folder, "--quiet"],
        ["report", folder],
        ["compare", "nash-mp", *RUN, "--quiet", "--seeds", "1", "--out", folder],
    ):
        one_sentence(polyrl(*line), str(folder))
    assert [p.name for p in folder.iterdir()] == ["compare.yaml"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"format": 1}', b'{"format": 1, "verdict": 3}', NESTED])
def test_a_ledger_entry_that_is_none(content: bytes, tmp_path: Path) -> None:
    from polyrl.reproduction import ledger

    (tmp_path / "grpo.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "grpo.json"))):
        ledger.read("grpo", tmp_path)
