"""Phases of one run: each from the model of the one before, exactly resumed, and asked for in three ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import polyrl
from conftest import Command, read_records, timeless
from polyrl.core.loop import Loop
from polyrl.errors import UserError
from polyrl.phases import acting_run, is_phases, plain_name, split_phases, stated_phases
from polyrl.runtime.run_folder import RunFolder

TASK = "sort-pairs(pairs=100)"
QUICK: dict[str, Any] = {"evaluations": 1, "eval_prompts": 20, "tensorboard": False, "checkpoint_every": 1}
SMALL: dict[str, Any] = {"sft.demonstrations_per_step": 8, "dpo.pairs_per_step": 8}


def trained(method: Any, model: Path, out: Path, **more: Any) -> polyrl.RunResult:
    call: dict[str, Any] = {"task": TASK, "budget": "iterations=3", "options": QUICK, **more}
    return polyrl.train(method, model=model, out=out, quiet=True, **call)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two phases."""
    folder = tmp_path_factory.mktemp("phases") / "whole"
    result = trained("sft,dpo", taught, folder, **SMALL)
    assert [phase.folder.name for phase in result.phases] == ["1-sft", "2-dpo"] and result.folder.name == "2-dpo"
    return folder


def test_a_phase_is_a_run_from_the_model_and_with_the_reference_of_the_one_before(
    whole: Path, taught: Path, tmp_path: Path
) -> None:
    trained("sft", taught, tmp_path / "sft", demonstrations_per_step=8)
    trained("dpo", tmp_path / "sft" / "model", tmp_path / "dpo", pairs_per_step=8)
    assert weights(whole / "1-sft") == weights(tmp_path / "sft") and weights(whole / "2-dpo") == weights(
        tmp_path / "dpo"
    )
    for name, alone in (("1-sft", "sft"), ("2-dpo", "dpo")):
        assert timeless(read_records(whole / name)) == timeless(read_records(tmp_path / alone))
    start = read_records(whole / "2-dpo")[0]
    assert start["eval/margin"] == pytest.approx(0, abs=1e-6)  # the reference is where the phase began
    assert RunFolder(whole / "2-dpo").read_config()["run"]["model"] == str((whole / "1-sft" / "model").absolute())


@pytest.mark.parametrize("stops_after", [0, 2, 3, 4])
def test_a_run_that_was_stopped_in_any_phase_goes_on_to_the_same_bits(
    stops_after: int, whole: Path, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0
    iterate = Loop.iterate

    def stops(loop: Loop, *given: Any) -> Any:
        nonlocal done
        if done == stops_after:
            raise KeyboardInterrupt
        done += 1
        return iterate(loop, *given)

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "iterate", stops)
        with pytest.raises(KeyboardInterrupt):
            trained("sft,dpo", taught, folder, **SMALL)
    assert is_phases(folder) and (folder / "2-dpo").exists() == (stops_after >= 3)
    result = polyrl.resume(folder, quiet=True)
    for name in ("1-sft", "2-dpo"):
        assert weights(folder / name) == weights(whole / name)
        assert timeless(read_records(folder / name)) == timeless(read_records(whole / name))
    again = polyrl.resume(folder, quiet=True)
    assert again.final == result.final and again.spent == result.spent


def test_a_file_says_the_same(whole: Path, taught: Path, tmp_path: Path, polyrl: Command) -> None:
    file = tmp_path / "both.yaml"
    lines = [f"task: {json.dumps(TASK)}", f"model: {taught}", "budget: iterations=3", "evaluations: 1"]
    lines += ["eval-prompts: 20", "checkpoint-every: 1", "phases:"]
    lines += ["  - method: sft", "    demonstrations-per-step: 8", "  - method: dpo", "    pairs-per-step: 8"]
    file.write_text("\n".join(lines) + "\n")
    told = polyrl("train", file, "--no-tensorboard", "--quiet", "--out", tmp_path / "run")
    assert (told.code, told.err) == (0, ""), told
    assert weights(tmp_path / "run" / "2-dpo") == weights(whole / "2-dpo")
    file.write_text("phases:\n  - method: sft\n    bata: 3\n")
    told = polyrl("train", file)
    assert told.code == 2 and f"{file}, line 3: 'bata' is no option and no hyperparameter of sft" in told.err
    file.write_text("phases: sft\n")
    assert "'phases' is a list of settings" in polyrl("train", file).err
    file.write_text("method: sft\nphases:\n  - method: sft\n")
    assert "line 1: each phase names its own method" in polyrl("train", file).err


def test_the_command_line_and_what_reads_a_run_know_phases(taught: Path, tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    line = ["--task", TASK, "--model", taught, "--evaluations", 1, "--eval-prompts", 20, "--no-tensorboard"]
    line += ["--sft.budget", "iterations=2", "--2.budget", "iterations=1", "--dpo.beta", 0.3, "--learning-rate", 1e-3]
    told = polyrl("train", "sft,dpo", *line, "--out", run)
    assert told.code == 0 and "phase 2 of 2: dpo" in told.out, told
    budgets = [RunFolder(run / n).read_config()["budget"] for n in ("1-sft", "2-dpo")]
    assert budgets == [{"iterations": 2}, {"iterations": 1}]
    settings = [RunFolder(run / n).read_config()["hyperparameters"] for n in ("1-sft", "2-dpo")]
    assert [s["optimize.learning_rate"] for s in settings] == [1e-3, 1e-3] and settings[1]["dpo-loss.beta"] == 0.3
    told = polyrl("eval", run, "--prompts", 5)
    assert told.code == 0 and "2-dpo" in told.out
    assert polyrl("play", run, "--prompts", 1).code == 0
    told = polyrl("report", run)
    assert told.code == 0 and (run / "report.html").is_file(), told
    told = polyrl("resume", run)
    assert told.code == 0 and "All phases are finished." in told.out
    assert "has a budget of its own" in polyrl("resume", run, "--budget", "iterations=9").err
    told = polyrl("train", "sft,dpo", *line, "--out", run)
    assert told.code == 2 and f"go on with `polyrl resume {run}`" in told.err
    assert polyrl("train", "sft,dpo", *line, "--out", run, "--overwrite", "--quiet").code == 0
    (run / "mine.txt").write_text("x")
    told = polyrl("train", "sft,dpo", *line, "--out", run, "--overwrite")
    assert told.code == 2 and "mine.txt" in told.err and (run / "1-sft").is_dir()


def test_a_reward_model_is_the_reward_of_the_phases_behind_it(taught: Path, tmp_path: Path) -> None:
    small = {"pairs_per_step": 8, "demonstrations_per_step": 8, "grpo.prompts_per_step": 2}
    trained(["sft", "reward-model", {"method": "grpo", "completions_per_prompt": 2}], taught, tmp_path / "r", **small)
    third = RunFolder(tmp_path / "r" / "3-grpo").read_config()["run"]
    assert third["model"].endswith("1-sft/model") and third["rewards"] == [str(tmp_path / "r" / "2-reward-model/model")]
    assert acting_run(tmp_path / "r").name == "3-grpo"
    assert [phase.judges for phase in stated_phases(tmp_path / "r")] == [False, True, False]


def test_a_folder_that_was_moved_is_judged_and_goes_on_in_its_last_phase(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase states where its model and its reward model came from; both are looked for beside it."""
    small = {"pairs_per_step": 8, "demonstrations_per_step": 8, "grpo.prompts_per_step": 2}
    phases = ["sft", "reward-model", {"method": "grpo", "completions_per_prompt": 2}]
    trained(phases, taught, tmp_path / "whole", **small)
    iterate = Loop.iterate

    def stops(loop: Loop, *given: Any) -> Any:
        if loop.context.run_state.task.rewards[0].name != "gold" and loop.context.iteration == 2:
            raise KeyboardInterrupt
        return iterate(loop, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "iterate", stops)
        with pytest.raises(KeyboardInterrupt):
            trained(phases, taught, tmp_path / "there", **small)
    assert acting_run(tmp_path / "there").name == "3-grpo"
    here = (tmp_path / "there").rename(tmp_path / "here")
    assert polyrl.evaluate(here, prompts=5)
    polyrl.resume(here, quiet=True)
    assert weights(here / "3-grpo") == weights(tmp_path / "whole" / "3-grpo")
    assert timeless(read_records(here / "3-grpo")) == timeless(read_records(tmp_path / "whole" / "3-grpo"))


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("sft,dqo", {}, "There is no method or part 'dqo'"),
        ("sft,dpo", {"clip_range": 0.1}, "--clip-range is no option and no hyperparameter of sft and dpo"),
        ("dpo,dpo", {"dpo.beta": 0.1}, "'dpo.beta' could mean phase 1 or 2; write the number"),
        (["sft", {"budget": "samples=1"}], {}, "one of them has none"),
        (["sft", {"method": "dpo", "model": "there"}], {}, "starts from the model that the phase before has trained"),
        ("ppo,ppo", {"task": "CartPole-v1"}, "is not of language, where a model is handed on"),
        ("sft,grpo", {"task": None}, "These methods have different tasks of their own"),
        ("sft,dpo", {"checker": "exact"}, "--checker is for data of your own"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(
    method: Any, more: dict[str, Any], said: str, taught: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        trained(method, taught, tmp_path / "run", **more)
    assert said in str(refused.value), refused.value
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_not_touched(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds no phases"):
        trained("sft,dpo", taught, tmp_path / "run", overwrite=True)


def test_what_takes_one_method_says_so(polyrl: Command) -> None:
    for line in (["show", "sft,dpo"], ["compare", "sft,dpo", "dpo"], ["trace", "sft,dpo"]):
        told = polyrl(*line)
        assert told.code == 2 and "'sft,dpo' are phases, which `polyrl train` runs" in told.err, told


def test_commas_within_parentheses_part_nothing() -> None:
    assert split_phases("sft(demonstrations=8,sft_rows=2), dpo+ipo(tau=0.1)") == [
        "sft(demonstrations=8,sft_rows=2)",
        "dpo+ipo(tau=0.1)",
    ]
    assert plain_name("dpo+ipo(tau=0.1)+x(y=2)") == "dpo+ipo+x" and plain_name("/a/mine.py") == "mine"
