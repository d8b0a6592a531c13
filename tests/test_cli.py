"""The command line: every command on a real run, the comparison, and what must answer at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import DIFFICULTY, TASK, Command, child_environment, read_records, timeless
from polyrl.cli import kept_text

SIZE = ["--prompts-per-step", "2", "--completions-per-prompt", "4", "--eval-prompts", "16", "--evaluations", "2"]


@pytest.fixture(scope="module")
def words(small_model: Path) -> list[str]:
    """The task and model of every command here."""
    return ["--task", TASK, "--difficulty", str(DIFFICULTY), "--model", str(small_model)]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from polyrl.cli.main import polyrl

    folder = tmp_path_factory.mktemp("runs") / "grpo"
    polyrl.main(
        ["train", "grpo", *words, *SIZE, "--budget", "samples=40", "--out", str(folder), "--quiet"], None, "", False
    )
    return folder


# -------------------------------------------------------------------------------------------- what answers at once


@pytest.mark.parametrize(
    "line", ["--help", "list", "list methods", "list parts", "list tasks", "train --help", "--version"]
)
def test_what_asks_for_no_model_imports_no_heavy_library(line: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['polyrl', *{line.split()!r}]\n"
        "from polyrl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'scipy'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "[]"), done.stderr
    assert done.stdout


def test_what_was_shown_once_is_shown_again_without_importing_anything_heavy(tmp_path: Path) -> None:
    """To the last byte, and for a name that is none nothing heavy is imported the first time either."""
    code = (
        "import sys\n"
        "from polyrl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, file=sys.stderr)\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
    )

    def run(*words: str) -> tuple[str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60,
            env=child_environment(POLYRL_CACHE=str(tmp_path)),
        )  # fmt: skip
        return done.stdout, done.stderr.splitlines()

    first, second = run("show", "grpo"), run("show", "grpo")
    assert first[1] == ["True"] and second[1] == ["False"] and first[0] == second[0] and "CREDIT" in first[0]
    wrong = run("show", "grop")[1]
    assert "no method or part 'grop'" in wrong[0] and wrong[1:] == ["2", "False"]


def test_a_kept_text_goes_with_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "package" / "inner"
    source.mkdir(parents=True)
    (source / "a.py").write_text("1")
    monkeypatch.setattr(kept_text, "PACKAGE", tmp_path / "package")
    made: list[str] = []

    def make(text: str, covered: bool = True) -> Callable[[], tuple[str, bool]]:
        return lambda: (made.append(text) or text, covered)  # type: ignore[func-returns-value]

    show = kept_text.kept_text
    assert show(("a", 80), make("one")) == show(("a", 80), make("other")) == "one"
    assert show(("a", 90), make("wide")) == "wide"
    (source / "a.py").write_text("22")
    assert show(("a", 80), make("two")) == show(("a", 80), make("other")) == "two"
    (source / "b.py").write_text("3")
    assert show(("a", 80), make("three", covered=False)) == "three"
    assert show(("a", 80), make("four")) == "four" and made == ["one", "wide", "two", "three", "four"]
    for file in (tmp_path / "cache" / "texts").iterdir():
        file.write_text("{damaged")
    assert show(("a", 80), make("five")) == "five"
    monkeypatch.setattr(os, "getuid", lambda: -5)  # somebody else's text
    assert show(("a", 80), make("six")) == "six"


def test_help_names_every_command(polyrl: Command) -> None:
    from polyrl.cli import main

    told = polyrl("--help")
    assert told.code == 0 and "Traceback" not in told.out
    for name in ("train", "compare", "demo", "list", "show", "trace", "eval", "play", "resume", "report"):
        assert f"  {name} " in told.out
        one = polyrl(name, "--help")
        assert one.code == 0 and one.out.startswith("Usage: ") and one.err == ""
    assert set(main.polyrl.commands) <= set(told.out.split())


def test_list_has_methods_parts_and_tasks(polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = polyrl("list").out
    for name in ("grpo", "ppo", "rloo", "remax", "reinforce++", "drop-equal-groups", "gae", "addition", TASK):
        assert name in out
    assert "gae" not in polyrl("list", "tasks").out and "addition" not in polyrl("list", "methods").out


def test_as_a_module() -> None:
    """`python -m polyrl`, for real: the sentence and the exit code reach the shell."""
    done = subprocess.run([sys.executable, "-m", "polyrl", "train", "grop"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("polyrl: There is no method or part 'grop'. Did you mean 'grpo'")
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------------- train and after


def test_train_says_where_everything_is(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "run"
    told = polyrl("train", "grpo", *words, *SIZE, "--budget", "samples=16", "--out", out)
    assert told.code == 0 and told.err == ""
    for text in ("accuracy", "start", "end", f"{out / 'model'}", f"polyrl play {out}", "16 samples"):
        assert text in told.out, text


def test_train_without_out_finds_a_free_folder(
    words: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert polyrl("train", "grpo+drop-equal-groups", *words, *SIZE, "--budget", "samples=8", "--quiet").code == 0
    names = {p.name for p in (tmp_path / "runs").iterdir()}
    assert names == {f"grpo+drop-equal-groups-{TASK}-seed0", f"grpo+drop-equal-groups-{TASK}-seed0-2"}


def test_options_and_hyperparameters_in_any_order(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    lines = [
        ["train", "grpo", "--clip-range", "0.1", "--epochs", "2", "--minibatches=2", *words],
        ["train", *words, "grpo", "--minibatches", "2", "--clip_range=0.1", "--optimize.epochs", "2"],
        ["train", "grpo(clip_range=0.1,epochs=2,minibatches=2)", *words],
    ]
    found = []
    for i, line in enumerate(lines):
        out = tmp_path / str(i)
        told = polyrl(*line, *SIZE, "--budget", "samples=8", "--out", out, "--quiet", "--no-tensorboard")
        assert told.code == 0, told.err
        config = yaml.safe_load((out / "config.yaml").read_text())
        found.append((config["hyperparameters"], timeless(read_records(out))))
    assert found[0] == found[1] == found[2]
    assert found[0][0]["clipped-surrogate.clip_range"] == 0.1 and found[0][0]["optimize.epochs"] == 2


def test_quiet_says_nothing_and_options_are_obeyed(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "run"
    more = ["--no-tensorboard", "--eval-sampled", "--checkpoint-every", "1", "--seed", "4", "--max-tokens", "3"]
    told = polyrl("train", "rloo", *words, *SIZE, "--budget", "samples=16", "--out", out, "--quiet", *more)
    assert (told.code, told.out, told.err) == (0, "", "")
    assert not (out / "tensorboard").exists()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["evaluation"]["greedy"] is False and config["seed"] == 4
    records = read_records(out)
    assert all(r.get("completions/max_length", 0) <= 3 and r.get("eval/mean_length", 0) <= 3 for r in records)


def test_eval(run: Path, polyrl: Command) -> None:
    told = polyrl("eval", run, "--prompts", 16)
    assert told.code == 0 and "16 test prompts" in told.out and "greedy" in told.out
    final = json.loads((run / "summary.json").read_text())["final"]["eval/accuracy"]
    assert f"{final:.3f}" in told.out  # the same prompts, the same model
    assert "sampled" in polyrl("eval", run, "--prompts", 4, "--sampled").out
    assert polyrl("eval", run, "--prompts", 0).err.startswith("polyrl: --prompts is 0")


def test_play(run: Path, polyrl: Command) -> None:
    told = polyrl("play", run, "--prompts", 3)
    assert told.code == 0 and told.out.count("reverse ") == 3
    assert polyrl("play", run, "--prompt", "reverse ab=").out.startswith("reverse ab=")
    assert "reverse [red]=" in polyrl("play", run, "--prompt", "reverse [red]=", "--temperature", 1).out
    assert polyrl("play", run, "--temperature", -1).code == 2


def test_eval_and_play_of_an_unfinished_run(run: Path, tmp_path: Path, polyrl: Command) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    final = json.loads((run / "summary.json").read_text())["final"]["eval/accuracy"]
    assert f"{final:.3f}" in polyrl("eval", copy, "--prompts", 16).out
    assert polyrl("play", copy, "--prompts", 1).code == 0


def test_report_of_one_run(run: Path, tmp_path: Path, polyrl: Command) -> None:
    told = polyrl("report", run, "--out", tmp_path / "page.html")
    assert told.code == 0 and "page.html" in told.out
    assert "grpo" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_show_and_trace(words: list[str], tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for method, part in (("grpo", "group-advantage"), ("ppo+drop-unended", "drop-unended")):
        shown = polyrl("show", method)
        assert shown.code == 0 and shown.err == ""
        traced = polyrl("trace", method, *words, *SIZE[:4])
        assert traced.code == 0 and traced.err == ""
        for text in ("COLLECT", "SCORE", "CREDIT", "SELECT", "IMPROVE", part):
            assert text in shown.out.upper() or text in shown.out, text
            assert text in traced.out.upper() or text in traced.out, text
        assert "learning" in shown.out and "reverse " in traced.out
    assert list(tmp_path.iterdir()) == []  # a trace writes nothing


# ------------------------------------------------------------------------------------------------------- compare

METHODS = '''"""Frail: a method whose seed decides how it ends."""

from __future__ import annotations

import dataclasses
import os
import signal
from dataclasses import dataclass
from collections.abc import Callable
from pathlib import Path

from polyrl.errors import UserError
from polyrl.methods.language.grpo import recipe as grpo
from polyrl.recipe import Part

MENDED = Path(__file__).with_name("mended")


@dataclass(frozen=True, kw_only=True)
class Frail(Part):
    """Fails in iteration 2: seed 0 is killed, seed 1 raises, seed 2 says why."""

    stage = "select"
    needs = frozenset({"weight"})
    gives = frozenset({"weight"})

    def __call__(self, experience, context):
        if context.iteration == 2 and not MENDED.exists():
            if context.seed == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if context.seed == 1:
                raise ZeroDivisionError("a mistake in the method")
            raise UserError("This seed is not to my taste.")
        return experience


def recipe():
    return dataclasses.replace(grpo(), name="frail", select=(Frail(),))
'''


def test_compare_goes_on_counts_failures_and_repeats_nothing(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    """One comparison in three acts: arms that fail, the same command again, and again when nothing is left to do."""
    (tmp_path / "frail.py").write_text(METHODS)
    out = tmp_path / "comparison"
    line: list[Any] = ["compare", "rloo", tmp_path / "frail.py", "--seeds", 3, *words, *SIZE, "--budget", "samples=24"]
    line += ["--out", out, "--workers", 2, "--no-tensorboard", "--checkpoint-every", 1]
    told = polyrl(*line)
    assert told.code == 0, told.err
    runs = {p.name: json.loads((p / "summary.json").read_text()) for p in out.iterdir() if p.is_dir()}
    assert len(runs) == 6
    frail = {int(name[-1]): summary for name, summary in runs.items() if "frail" in name}
    assert [runs[f"rloo-seed{s}"]["status"] for s in range(3)] == ["finished"] * 3  # nothing stopped the others
    assert [frail[s]["status"] for s in range(3)] == ["failed"] * 3
    for seed, reason in enumerate(("killed", "ZeroDivisionError: a mistake in the method", "not to my taste")):
        assert reason in frail[seed]["error"]
        assert reason in " ".join(told.out.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "not to my taste" in page and "rloo" in page
    stated = yaml.safe_load((out / "compare.yaml").read_text())
    assert stated["seeds"] == [0, 1, 2] and stated["budget"] == {"samples": 24} and stated["finished"]
    before = {s: (out / f"rloo-seed{s}" / "metrics.jsonl").stat().st_mtime_ns for s in range(3)}

    (tmp_path / "mended").touch()
    assert polyrl(*line, "--quiet").code == 0
    summaries = [json.loads((p / "summary.json").read_text()) for p in out.iterdir() if p.is_dir()]
    assert [s["status"] for s in summaries] == ["finished"] * 6 and not any("error" in s for s in summaries)
    assert {s: (out / f"rloo-seed{s}" / "metrics.jsonl").stat().st_mtime_ns for s in range(3)} == before
    for name in runs:
        assert [r["iteration"] for r in read_records(out / name)] == [0, 1, 2, 3]

    both = {p: p.stat().st_mtime_ns for p in out.glob("*/metrics.jsonl")}
    assert polyrl("resume", out, "--quiet").code == 0  # by the other name
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/metrics.jsonl")} == both

    # arms differ in nothing but method and seed, and a run of a comparison is the run of `train`
    starts = {json.dumps(read_records(out / name)[0]["eval/accuracy"]) for name in runs}
    assert len(starts) == 1
    alone = tmp_path / "alone"
    more = [*words, *SIZE, "--budget", "samples=24", "--seed", 2, "--out", alone, "--quiet", "--no-tensorboard"]
    assert polyrl("train", "rloo", *more, "--checkpoint-every", 1).code == 0
    assert timeless(read_records(alone)) == timeless(read_records(out / "rloo-seed2"))

    other = [*line]
    other[other.index("samples=24")] = "samples=32"
    refused = polyrl(*other)
    assert refused.code == 2 and "holds another comparison" in refused.err
    wrong = polyrl(*other, "--overwrite", "--device", "warp")
    assert wrong.code == 2 and (out / "rloo-seed0" / "model").is_dir()  # a mistake destroys nothing


def test_compare_where_every_arm_fails(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    (tmp_path / "frail.py").write_text(METHODS)
    line = ["compare", tmp_path / "frail.py", "--seeds", "2,3", *words, *SIZE, "--budget", "samples=24"]
    told = polyrl(*line, "--out", tmp_path / "c", "--workers", 1, "--no-tensorboard", "--quiet")
    assert told.code == 2 and told.err.count("\n") == 1
    assert "Every run of the comparison failed" in told.err and "not to my taste" in told.err


def test_arms_with_their_own_hyperparameters(words: list[str], tmp_path: Path, polyrl: Command) -> None:
    out = tmp_path / "c"
    line = ["compare", "grpo", "grpo(clip_range=0.1)", "--seeds", 1, *words, *SIZE, "--budget", "samples=8"]
    told = polyrl(*line, "--learning-rate", "1e-4", "--out", out, "--workers", 1, "--no-tensorboard", "--quiet")
    assert told.code == 0, told.err
    hyperparameters = {}
    for folder in out.iterdir():
        if folder.is_dir():
            config = yaml.safe_load((folder / "config.yaml").read_text())
            hyperparameters[config["label"]] = config["hyperparameters"]
    assert {k: v["clipped-surrogate.clip_range"] for k, v in hyperparameters.items()} == {
        "grpo": 0.2,
        "grpo(clip_range=0.1)": 0.1,
    }
    assert all(v["optimize.learning_rate"] == 1e-4 for v in hyperparameters.values())


def test_interrupt_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    """Ctrl-C: one sentence, exit code 130, and the run goes on with `resume`."""
    out = tmp_path / "run"
    # a shell starts jobs in the background with SIGINT ignored, and a test may be run by one
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import polyrl.__main__"
    line = [sys.executable, "-c", code, "train", "grpo", *words, *SIZE, "--budget", "samples=1000000"]
    process = subprocess.Popen(
        [*line, "--out", str(out), "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None:
            if (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").read_text().count("\n") > 2:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "polyrl: interrupted; `polyrl resume` goes on from the last checkpoint."
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
