"""Two processes never write one run folder: the second is told so in one sentence, and a dead one holds nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Command
from polyrl.runtime import lock
from polyrl.runtime.lock import FolderInUse, FolderLock
from polyrl.runtime.ownership import LOCK
from polyrl.runtime.run_folder import RunFolder

RUN = ["--task", "rock-paper-scissors", "--budget", "iterations=4", "--checkpoint-every", "2", "--quiet"]
HOLD = """
import sys, time
from pathlib import Path
from polyrl.runtime.lock import FolderLock
held = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    "line",
    [
        ["resume", "run", "--quiet"],
        ["train", "nash-mp", *RUN, "--out", "run", "--overwrite"],
        ["compare", "nash-mp", *RUN, "--seeds", "1", "--out", "compared"],
        ["compare", "nash-mp", *RUN, "--seeds", "1", "--out", "compared", "--overwrite"],
    ],
    ids=["resume", "train", "compare", "compare-overwrite"],
)
def test_a_folder_in_use_is_left_alone(
    line: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "run" in line:
        assert polyrl("train", "nash-mp", *RUN, "--out", "run").code == 0
    folder = Path(line[line.index("--out") + 1] if "--out" in line else line[1])
    folder.mkdir(exist_ok=True)
    with holder(folder) as process:
        try:
            before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            told = polyrl(*line)
            assert told.code == 2 and told.err.count("\n") == 1, told.err
            assert f"is being written by process {process.pid};" in told.err and str(folder) in told.err
            assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        finally:
            process.kill()


def test_a_killed_process_holds_nothing(tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    assert polyrl("train", "nash-mp", *RUN, "--out", run).code == 0
    with holder(run) as process:
        process.send_signal(signal.SIGKILL)
    assert (run / LOCK).exists()  # its file lies there still
    assert polyrl("resume", run, "--quiet").code == 0
    assert not (run / LOCK).exists()


def test_a_run_lets_go_when_it_ends_and_when_it_fails_to_begin(tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    for more in ([], ["--overwrite"], ["--overwrite"]):
        assert polyrl("train", "nash-mp", *RUN, "--out", run, *more).code == 0
        assert not (run / LOCK).exists()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("damaged\n" + text)
    for _ in range(2):
        assert "Line 1" in polyrl("resume", run, "--quiet").err  # the same sentence, not that it is in use
    assert not (run / LOCK).exists()


def test_an_arm_in_use_is_told_and_its_files_are_left_alone(tmp_path: Path) -> None:
    from polyrl.comparison import work
    from polyrl.runtime.config import RunConfig

    config = RunConfig(method="nash-mp", task="rock-paper-scissors", budget="iterations=2")
    assert work(config.as_dict(), str(tmp_path / "arm")) == ""
    held = FolderLock(tmp_path / "arm")
    before = (tmp_path / "arm" / "summary.json").read_bytes()
    assert "is being written by process" in work(config.as_dict(), str(tmp_path / "arm"))
    assert (tmp_path / "arm" / "summary.json").read_bytes() == before
    held.release()


def test_a_holder_that_removes_its_file_does_not_let_two_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the last holder may have removed it: then it is no lock any more."""
    first = FolderLock(tmp_path)
    whole = lock._lock
    opened: list[int] = []

    def late(held: Any) -> bool:
        if not opened:
            first.release()
        opened.append(os.fstat(held.fileno()).st_ino)
        return whole(held)

    monkeypatch.setattr(lock, "_lock", late)
    second = FolderLock(tmp_path)
    assert len(opened) == 2 and (tmp_path / LOCK).stat().st_ino == opened[1]
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path)
    second.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_the_file_system_knows_no_locks_a_living_process_of_this_machine_is_believed(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    FolderLock(tmp_path).release()
    living = {"pid": os.getppid(), "host": socket.gethostname()}
    (tmp_path / LOCK).write_text(json.dumps(living))
    with pytest.raises(FolderInUse, match=f"process {os.getppid()};"):
        FolderLock(tmp_path)
    for gone in (
        {**living, "pid": 2**22 - 3},
        {**living, "host": "elsewhere"},
        {"pid": "x"},
        [],
        {"pid": -1, "host": ""},
    ):
        (tmp_path / LOCK).write_text(json.dumps(gone))
        FolderLock(tmp_path).release()


def test_a_folder_that_nobody_holds_any_more_is_free(tmp_path: Path) -> None:
    """A run that was prepared and never run."""
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(FolderInUse):
        RunFolder(tmp_path / "run").hold()
    del folder
    RunFolder(tmp_path / "run").hold()


def test_a_fork_neither_lets_go_nor_holds_on(tmp_path: Path) -> None:
    """Reward functions run in a fork of the run's process: it has a copy of the lock, which is not its own."""
    held = FolderLock(tmp_path)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        held.release()
        os.write(theirs, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(ours, 1) == b"x"
        with pytest.raises(FolderInUse):
            FolderLock(tmp_path)
        other = os.fork()
        if other == 0:
            signal.pause()
            os._exit(0)
        held.release()
        FolderLock(tmp_path).release()  # though two forks live on
    finally:
        for process in (child, other):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
