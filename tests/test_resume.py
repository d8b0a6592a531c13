"""A run that is killed at a random moment and resumed ends with the numbers of a run that was never interrupted.

The kills are real: a subprocess that the system ends with SIGKILL, at a moment drawn from a seed. Most moments are
events of the process (the n-th sampling, the n-th file flushed to disk), not seconds, so that they fall into every
part of a run however fast the machine is: into the sampling and the update, and into the writing, renaming and
removing of checkpoints.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import DIFFICULTY, TASK, Command, read_records, run_code, timeless

ITERATIONS = 6
KEPT = {"iteration-000004", "iteration-000006"}
METHODS = ("ppo", "grpo", "remax")
SIZES: dict[str, list[str]] = {
    "ppo": ["--prompts-per-step", "8", "--epochs", "2", "--minibatches", "2"],
    "grpo": ["--prompts-per-step", "3", "--completions-per-prompt", "4"],
    "remax": ["--prompts-per-step", "6"],
    "rloo": ["--prompts-per-step", "3", "--kl-target", "0.1", "--kl-horizon", "100"],
}

KILLED = """
import os, random, signal, sys
import torch
torch.set_num_threads(1)
calls, left = sys.argv.pop(1), int(sys.argv.pop(1))

def die_at(owner, name):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, counted)

if calls == "disk":  # every step of a checkpoint and of each small file: flushed, renamed, removed
    import shutil
    from pathlib import Path
    die_at(os, "fsync"); die_at(Path, "rename"); die_at(Path, "replace"); die_at(shutil, "rmtree"); die_at(os, "unlink")
elif calls == "work":  # sampling, scoring and every optimizer step
    from polyrl.run_state.language import LanguageRunState
    die_at(torch.optim.AdamW, "step"); die_at(LanguageRunState, "sample"); die_at(LanguageRunState, "score")
    die_at(LanguageRunState, "outputs")
from polyrl.cli.main import main
main()
"""


def words(method: str, model: Path, out: Path, *more: str) -> list[str]:
    run = ["train", method, "--task", TASK, "--difficulty", str(DIFFICULTY), "--model", str(model), "--out", str(out)]
    limits = ["--budget", f"iterations={ITERATIONS}", "--checkpoint-every", "2", "--evaluations", "3"]
    return [*run, *limits, "--eval-prompts", "16", "--no-tensorboard", "--quiet", *SIZES[method], *more]


def kill(arguments: list[str], calls: str, count: int) -> None:
    """Run a command in a subprocess that is killed at the `count`-th of `calls`."""
    done = run_code(KILLED, [calls, str(count), *arguments])
    assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)


@pytest.fixture(scope="module")
def whole(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run of each method that nobody interrupted."""
    from polyrl.cli.main import polyrl

    runs = {}
    for method in SIZES:
        runs[method] = tmp_path_factory.mktemp("whole") / method
        polyrl.main(words(method, small_model, runs[method]), standalone_mode=False)
    return runs


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


def same(run: Path, other: Path) -> None:
    """Every metric, every sample and every weight is equal to the last bit."""
    import torch

    assert timeless(read_records(run)) == timeless(read_records(other))
    assert read_records(run, "samples.jsonl") == read_records(other, "samples.jsonl")
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    for summary in summaries:
        assert summary["status"] == "finished" and "error" not in summary
        del summary["spent"]["seconds"]
    assert all(summaries[0][k] == summaries[1][k] for k in ("iteration", "spent", "start", "final", "warnings"))


# -------------------------------------------------------------------------------------------------- killed for real


@pytest.mark.parametrize(("method", "calls"), [("ppo", "work"), ("ppo", "disk"), ("grpo", "disk"), ("remax", "work")])
def test_killed_at_a_random_moment(
    method: str, calls: str, small_model: Path, whole: dict[str, Path], tmp_path: Path, polyrl: Command
) -> None:
    dice = random.Random(f"{method}-{calls}")
    run = tmp_path / "run"
    # past the first checkpoint, which a run needs to go on: about 25 calls to the disk, two samplings and a scoring
    kill(words(method, small_model, run), calls, dice.randint(30, 80) if calls == "disk" else dice.randint(6, 24))
    assert not (run / "model").exists()
    told = polyrl("resume", run, "--quiet")
    assert (told.code, told.err) == (0, "")
    same(run, whole[method])


def test_killed_by_the_clock(small_model: Path, whole: dict[str, Path], tmp_path: Path, polyrl: Command) -> None:
    """Killed from outside, in the middle of whatever it is doing; if the run was faster, it is whole."""
    dice = random.Random("clock")
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "polyrl", *words("grpo", small_model, run)], stdout=subprocess.DEVNULL
    )
    try:
        checkpoint = run / "checkpoints" / "iteration-000000"
        while process.poll() is None and not checkpoint.is_dir():
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.3))
    finally:
        process.kill()
        process.wait()
    assert polyrl("resume", run, "--quiet").code == 0
    same(run, whole["grpo"])


def test_killed_twice_and_resumed_twice(
    small_model: Path, whole: dict[str, Path], tmp_path: Path, polyrl: Command
) -> None:
    run = tmp_path / "run"
    kill(words("ppo", small_model, run), "work", 11)
    kill(["resume", str(run), "--quiet"], "disk", 5)
    assert polyrl("resume", run, "--quiet").code == 0
    same(run, whole["ppo"])


# ------------------------------------------------------------------------------- stopped anywhere, in this process


class Killed(BaseException):
    """Stands for SIGKILL where a subprocess would be too slow: nothing may catch it and write something."""


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Raise `Killed` at the `count`-th step that touches the disk."""
    left = [count]

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, names in ((os, ("fsync", "unlink")), (Path, ("rename", "replace")), (shutil, ("rmtree",))):
        for name in names:
            counted(owner, name)


@pytest.mark.parametrize("count", random.Random(0).sample(range(20, 130), 10))
def test_stopped_at_any_step_of_writing(
    count: int, small_model: Path, whole: dict[str, Path], tmp_path: Path, polyrl: Command
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, count)
        try:
            polyrl(*words("rloo", small_model, run))
        except Killed:
            pass
        else:
            assert (run / "model").is_dir()  # the run had fewer steps than that: it is whole
    told = polyrl("resume", run, "--quiet")
    assert (told.code, told.err) == (0, "")
    same(run, whole["rloo"])
    assert {p.name for p in (run / "checkpoints").iterdir()} == KEPT
    assert {p.name for p in run.iterdir()} == {p.name for p in whole["rloo"].iterdir()}, "something was left behind"


def test_a_finished_run_resumes_to_itself(whole: dict[str, Path], tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole["grpo"], run)
    before = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        assert polyrl("resume", run, "--quiet").code == 0
        assert (run / "metrics.jsonl").read_bytes() == before
        same(run, whole["grpo"])


def back_to(run: Path, iteration: int) -> None:
    """Leave the run as a kill right after `iteration` would have."""
    for folder in (run / "checkpoints").glob("iteration-*"):
        if int(folder.name.rpartition("-")[2]) > iteration:
            shutil.rmtree(folder)
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_last_line_cut_in_half(method: str, whole: dict[str, Path], tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[method], run)
    back_to(run, 4)
    for name in ("metrics.jsonl", "samples.jsonl"):
        text = (run / name).read_bytes()
        (run / name).write_bytes(text[: -len(text.splitlines()[-1]) // 2])
    assert polyrl("resume", run, "--quiet").code == 0
    same(run, whole[method])


def test_a_checkpoint_newer_than_the_metrics(whole: dict[str, Path], tmp_path: Path, polyrl: Command) -> None:
    """The machine lost power: the checkpoint of iteration 6 is whole, but the line of iteration 6 was cut."""
    run = tmp_path / "run"
    shutil.copytree(whole["grpo"], run)
    (run / "summary.json").unlink()
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text[:-40])
    assert polyrl("resume", run, "--quiet").code == 0
    same(run, whole["grpo"])


def test_samples_may_hold_any_character(whole: dict[str, Path], tmp_path: Path, polyrl: Command) -> None:
    """Line separators of Unicode are no ends of JSON lines, and a cut may fall inside a character."""
    run = tmp_path / "run"
    shutil.copytree(whole["rloo"], run)
    back_to(run, 4)
    odd = {"iteration": 0, "split": "test", "prompt": "a\u2028b\x85c", "completion": "é\u2029", "score": 0.0}
    before = (run / "samples.jsonl").read_bytes()
    line = json.dumps(odd, ensure_ascii=False).encode() + b"\n"
    (run / "samples.jsonl").write_bytes(line + before + line[: line.index("é".encode()) + 1])
    assert polyrl("resume", run, "--quiet").code == 0
    kept = read_records(run, "samples.jsonl")
    assert kept[0] == odd and kept[1:] == read_records(whole["rloo"], "samples.jsonl")


def test_lora_resumes_to_the_same_numbers(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    more = ("--lora", "4", "--learning-rate", "1e-2")
    assert polyrl(*words("grpo", small_model, straight, *more)).code == 0
    shutil.copytree(straight, run)
    back_to(run, 4)
    assert polyrl("resume", run, "--quiet").code == 0
    same(run, straight)


def test_bookkeeping_survives(small_model: Path, whole: dict[str, Path]) -> None:
    """A test of these tests: the runs do train, adapt their KL coefficient and move a critic."""
    for run in whole.values():
        records = read_records(run)
        assert [r["iteration"] for r in records] == list(range(ITERATIONS + 1))
        assert sum("eval/accuracy" in r for r in records) == 4
        assert {p.name for p in (run / "checkpoints").iterdir()} == KEPT
    assert len({r["kl_coef"] for r in read_records(whole["rloo"])[1:]}) == ITERATIONS
    assert "loss/value-loss" in read_records(whole["ppo"])[1]
