"""Disks that do not allow it: full, read-only, without a home, names too long. One sentence each, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, Told, read_records, timeless
from polyrl.errors import UserError
from polyrl.runtime.files import WriteError, short_name, writing

RUN = ["--task", "rock-paper-scissors", "--budget", "iterations=6", "--checkpoint-every", "1", "--quiet"]


def one_sentence(told: Told, *words: str) -> None:
    assert told.code == 2, (told.code, told.out, told.err)
    assert told.err.startswith("polyrl: ") and told.err.count("\n") == 1, told.err
    assert "Traceback" not in told.err + told.out
    for word in words:
        assert word in told.err, (word, told.err)


def safetensors_error(folder: Path) -> None:
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def tokenizers_error(folder: Path) -> None:
    raise Exception("No space left on device (os error 28)")  # what tokenizers raise is of no other class


def system_error(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "file"))


@pytest.mark.parametrize("fail", [safetensors_error, tokenizers_error, system_error])
def test_libraries_tell_of_a_full_disk_in_ways_of_their_own(fail: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"^The disk is full \(.*\); free some space"), writing(tmp_path):
        fail(tmp_path)
    with pytest.raises(ZeroDivisionError), writing(tmp_path):  # everything else is left as it is
        raise ZeroDivisionError
    with pytest.raises(UserError, match="mine"), writing(tmp_path):
        raise UserError("mine")


# --------------------------------------------------------------------- the n-th step that takes room finds none left


class Full:
    """Lets the disk be full from the n-th step on, until `free` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int):
        self.count, self.at, self.patch = 0, at, monkeypatch
        import safetensors.torch  # imported where a model is stored

        from polyrl.runtime import checkpoint

        for owner, name in ((os, "fsync"), (os, "mkdir"), (checkpoint, "save_file"), (safetensors.torch, "save_file")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count >= self.at > 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
            return original(*args, **kwargs)

        return call


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had room enough."""
    from polyrl.cli.main import polyrl

    run = tmp_path_factory.mktemp("straight") / "run"
    polyrl.main(["train", "nash-mp", *RUN, "--out", str(run)], standalone_mode=False)
    return run


@pytest.mark.parametrize("at", range(1, 46, 4))
def test_a_disk_that_is_full_from_any_step_on(
    at: int, straight: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence; and with room again the run goes on to the same numbers."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        Full(patch, at)
        one_sentence(polyrl("train", "nash-mp", *RUN, "--out", run), "disk is full")
    begun = (run / "config.yaml").is_file()
    assert not [p for p in run.rglob(".*") if p.name.startswith((".writing", ".model"))], "the room is not given back"
    told = polyrl("resume", run, "--quiet") if begun else polyrl("train", "nash-mp", *RUN, "--out", run)
    assert (told.code, told.err) == (0, "")
    assert timeless(read_records(run)) == timeless(read_records(straight))
    for name in ("policy.safetensors", "anchor.safetensors"):
        assert (run / "model" / name).read_bytes() == (straight / "model" / name).read_bytes()


def test_the_summary_says_that_the_disk_was_full(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "anchor.safetensors")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)  # room enough for small files
    one_sentence(polyrl("train", "nash-mp", *RUN, "--out", tmp_path / "run"), "disk is full (anchor.safetensors)")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and "disk is full" in summary["error"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting takes rights that this user has not")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_small_disk_and_a_language_model(small_disk: Path, tmp_path: Path, polyrl: Command) -> None:
    from polyrl.pretrain.tiny import build_tiny

    model = build_tiny(tmp_path / "model", 0, hidden=64, layers=2, heads=2, kv_heads=2, mlp=128, context=64)
    few = ["--prompts-per-step", "2", "--completions-per-prompt", "2", "--eval-prompts", "2", "--evaluations", "1"]
    line = ["train", "grpo", "--task", "reverse", "--difficulty", "3", "--model", model, "--max-tokens", "4", *few]
    told = polyrl(*line, "--budget", "iterations=3", "--checkpoint-every", "1", "--quiet", "--out", small_disk / "run")
    one_sentence(told, "disk is full")
    assert "failed" in (small_disk / "run" / "summary.json").read_text()


# ------------------------------------------------------------------------------------- read-only, no home, long names


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("line", ["train", "resume", "report", "compare", "overwrite"])
def test_a_folder_that_cannot_be_written(
    code: int, line: str, straight: Path, tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the system answers to the first file that is opened for writing, or the first folder."""
    import builtins
    import io
    import shutil

    run = tmp_path / "run"
    if line in ("resume", "report", "overwrite"):
        shutil.copytree(straight, run)
    whole = io.open

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), str(run))

    def opened(file: Any, mode: str = "r", *more: Any, **others: Any) -> Any:
        if str(tmp_path) in str(file) and set(mode) & set("wax+"):
            refuse()
        return whole(file, mode, *more, **others)

    lines = {
        "train": ["train", "nash-mp", *RUN, "--out", run],
        "overwrite": ["train", "nash-mp", *RUN, "--out", run, "--overwrite"],
        "resume": ["resume", run, "--quiet"],
        "report": ["report", run],
        "compare": ["compare", "nash-mp", *RUN, "--seeds", "1", "--out", run],
    }
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        one_sentence(polyrl(*lines[line]))
    if line == "overwrite":
        assert timeless(read_records(run)) == timeless(read_records(straight))


def test_a_cache_without_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyrl.runtime.cache import cache_folder, cached

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("POLYRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="POLYRL_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "polyrl"  # no home is needed then
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        cached(tmp_path / "file" / "models" / "x", lambda folder: {})


@pytest.mark.parametrize("letter", ["x", "é", "日"])
def test_a_long_name_is_cut_and_stays_its_own(letter: str) -> None:
    short = [short_name(letter * count) for count in (5, 300, 301)]
    assert short[0] == letter * 5 and len(set(short)) == 3
    assert all(len(name.encode()) <= 160 for name in short)
    assert short_name(letter * 300) == short[1]


def test_a_composition_whose_name_is_longer_than_the_system_allows(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.comparison_folder import arm_folder
    from polyrl.runs import default_folder
    from polyrl.runtime.config import RunConfig

    method = "nash-mp(" + ",".join(f"learning_rate=0.{i:03d}1" for i in range(30)) + ")"
    config = RunConfig(method=method, task="rock-paper-scissors")
    assert len(default_folder(config, tmp_path).name.encode()) < 200
    assert len({arm_folder(method + end, 3) for end in ("", "x")}) == 2 and len(arm_folder(method, 3)) < 200
    monkeypatch.setenv("POLYRL_RUNS", str(tmp_path / "runs"))
    told = polyrl("train", "nash-mp-pg" + "+entropy-bonus" * 30, *RUN)
    (made,) = (tmp_path / "runs").iterdir()
    assert told.code == 0 and str(made) in told.out and (made / "model").is_dir()
    one_sentence(polyrl("train", "nash-mp", *RUN, "--out", tmp_path / ("x" * 300)), "File name too long")
    for command in ("resume", "eval", "play", "report"):
        one_sentence(polyrl(command, tmp_path / ("x" * 300)))


def test_output_that_nobody_reads_any_more() -> None:
    """`polyrl list | head -1`: no traceback."""
    code = "import polyrl.__main__"
    with subprocess.Popen([sys.executable, "-c", code, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout and done.stderr
        done.stdout.close()
        said = done.stderr.read().decode()
        done.wait(timeout=60)
    assert said == ""
