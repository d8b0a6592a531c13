"""A run is a folder: what is in it, that it agrees with itself, and that others can read it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import DIFFICULTY, TASK, Command, read_records
from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig
from polyrl.runtime.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PPO run of five iterations."""
    from polyrl.cli.main import polyrl

    folder = tmp_path_factory.mktemp("runs") / "ppo"
    words = ["train", "ppo", "--task", TASK, "--difficulty", str(DIFFICULTY), "--model", str(small_model)]
    words += ["--budget", "samples=40", "--prompts-per-step", "8", "--eval-prompts", "20", "--evaluations", "2"]
    words += ["--checkpoint-every", "2", "--seed", "3", "--clip-range", "0.3", "--out", str(folder), "--quiet"]
    polyrl.main(words, standalone_mode=False)
    return folder


def test_what_is_in_it(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
        "checkpoints",
        "tensorboard",
        "model",
    }
    files = [p for p in run.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pt", ".pth", ".bin", ".pkl", ".pickle", ".tmp")]


def test_config_says_everything_that_the_run_needs(run: Path, small_model: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {k: config[k] for k in ("method", "label", "task", "difficulty", "model", "seed", "budget", "threads")} == {
        "method": "ppo",
        "label": "ppo",
        "task": TASK,
        "difficulty": DIFFICULTY,
        "model": str(small_model),
        "seed": 3,
        "budget": {"samples": 40},
        "threads": 1,
    }
    assert config["hyperparameters"]["clipped-surrogate.clip_range"] == 0.3
    assert config["hyperparameters"]["sample-responses.prompts_per_step"] == 8
    assert config["hyperparameters"]["gae.gae_lambda"] == 0.98  # what was not typed is there too
    assert config["evaluation"]["prompts"] == 20 and config["evaluation"]["split"] == "test"
    assert {"python", "torch", "transformers", "polyrl"} <= set(config["versions"])
    assert config["device"] and config["start"] and "commit" in config and "command" in config
    again = RunConfig.from_dict(config["run"])
    assert again.method == "ppo" and again.budget == "samples=40" and again.as_dict() == config["run"]


def test_metrics_are_one_line_an_iteration(run: Path) -> None:
    records = read_records(run)
    assert [r["iteration"] for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r["samples"] for r in records] == [0, 8, 16, 24, 32, 40]
    for unit in ("samples", "tokens", "steps", "reward_calls", "seconds", "updates"):
        values = [r[unit] for r in records]
        assert values[0] == 0 and all(a < b for a, b in itertools.pairwise(values)), unit
    assert [r["iteration"] for r in records if "eval/accuracy" in r] == [0, 3, 5]  # start, half, end
    for record in records[1:]:
        stages = [record[f"seconds/{s}"] for s in ("collect", "score", "credit", "select", "improve")]
        assert all(s >= 0 for s in stages) and record["updates"] == 4 * record["iteration"]
        for name in ("reward", "reward_std", "kl", "entropy", "clip_ratio", "loss", "loss/value-loss"):
            assert math.isfinite(record[name]), name
        assert 0 <= record["clip_ratio"] <= 1 and record["entropy"] > 0
        assert record["logprob_gap"] < 1e-3
    assert abs(records[1]["kl"]) < 1e-4  # before the first update the policy is the reference


def test_samples_are_those_of_the_evaluations(run: Path) -> None:
    samples = read_records(run, "samples.jsonl")
    assert [s["iteration"] for s in samples] == [0] * 8 + [3] * 8 + [5] * 8
    prompts = [s["prompt"] for s in samples]  # the same each time, so that the answers can be compared
    assert prompts[:8] == prompts[8:16] == prompts[16:] and len(set(prompts)) > 4
    for sample in samples:
        assert sample["split"] == "test" and sample["prompt"].startswith("reverse ")
        assert sample["expected"] == sample["prompt"][8:-1][::-1]
        assert sample["correct"] == (sample["completion"].strip() == sample["expected"]) == (sample["score"] == 1)


def test_the_summary_agrees_with_the_metrics(run: Path) -> None:
    summary, records = json.loads((run / "summary.json").read_text()), read_records(run)
    assert summary["status"] == "finished" and summary["iteration"] == 5
    for unit in ("samples", "tokens", "steps", "reward_calls", "seconds", "updates"):
        assert summary["spent"][unit] == records[-1][unit]
    for when, record in (("start", records[0]), ("final", records[-1])):
        assert summary[when] == {k: v for k, v in record.items() if k.startswith("eval/")}
        assert {"eval/accuracy", "eval/reward", "eval/mean_length"} <= set(summary[when])
    stages = summary["seconds_by_stage"]
    assert {"collect", "score", "credit", "select", "improve", "evaluate"} <= set(stages)
    for stage in ("collect", "improve"):
        assert stages[stage] == pytest.approx(sum(r.get(f"seconds/{stage}", 0) for r in records), abs=1e-3)
    assert 5e7 < summary["peak_memory_bytes"] < 1e11


def test_checkpoints_are_safetensors_and_the_last_two(run: Path) -> None:
    from safetensors.torch import load_file

    assert {p.name for p in (run / "checkpoints").iterdir()} == {"iteration-000004", "iteration-000005"}
    newest = run / "checkpoints" / "iteration-000005"
    names = {p.name for p in newest.iterdir()}
    assert names == {
        "state.json",
        "policy",
        "critic",
        "optimizer-policy.safetensors",
        "optimizer-critic.safetensors",
    }
    state = json.loads((newest / "state.json").read_text())
    assert state["iteration"] == 5 and state["spent"]["samples"] == 40
    written = {str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file()} - {"state.json"}
    assert set(state["files"]) == written
    moments = load_file(newest / "optimizer-policy.safetensors")
    steps = {float(v) for k, v in moments.items() if k.endswith("/step")}
    assert steps == {20.0} and any(k.endswith("/exp_avg_sq") for k in moments)


def test_the_model_is_an_ordinary_folder_with_the_policys_logits(run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from polyrl.api import open_policy

    model = AutoModelForCausalLM.from_pretrained(run / "model", use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer("reverse kdjf=fjdk", return_tensors="pt")["input_ids"]
    policy = open_policy(run).policy
    trained = policy.causal_lm
    assert policy.encode("reverse kdjf=fjdk") == ids[0].tolist()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.equal(logits, trained(input_ids=ids).logits)
        words = tokenizer(["reverse ab=", "reverse abcd="], padding=True, return_tensors="pt")
        generated = model.generate(**words, do_sample=False, max_new_tokens=9)
    assert generated.shape[0] == 2
    state = model.state_dict()
    from safetensors.torch import load_file

    saved = load_file(run / "checkpoints" / "iteration-000005" / "policy" / "model.safetensors")
    assert saved and all(torch.equal(state[k], v) for k, v in saved.items())  # the end of the run, not its start
    start = AutoModelForCausalLM.from_pretrained(
        yaml.safe_load((run / "config.yaml").read_text())["model"]
    ).state_dict()
    assert any(not torch.equal(state[k], start[k]) for k in state)


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    return [(e.step, e.value) for e in board.Scalars(tag)]


def test_tensorboard_has_the_same_numbers(run: Path) -> None:
    for tag in ("reward", "eval/accuracy", "loss/value-loss"):
        logged = [(r["iteration"], r[tag]) for r in read_records(run) if tag in r]
        assert scalars(run, tag) == [(i, pytest.approx(v, rel=1e-6)) for i, v in logged]


def test_tensorboard_forgets_what_a_resume_does_again(run: Path, tmp_path: Path, polyrl: Command) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "iteration-000005")  # killed after iteration 5, before its checkpoint
    shutil.rmtree(copy / "model")
    assert polyrl("resume", copy, "--quiet").code == 0
    assert [step for step, _ in scalars(copy, "reward")] == [1, 2, 3, 4, 5]
    assert scalars(copy, "reward") == scalars(run, "reward")


def test_event_files_of_one_run_are_read_in_the_order_of_their_writing(tmp_path: Path) -> None:
    """TensorBoard sorts them by name, second first: two writers of one second could change places."""
    for i in range(3):
        folder = RunFolder(tmp_path)
        folder.log({"iteration": i, "reward": float(i)})
        folder.close()
    names = [f.name.split(".")[3] for f in (tmp_path / "tensorboard").iterdir()]
    assert len(set(names)) == 3 and [step for step, _ in scalars(tmp_path, "reward")] == [0, 1, 2]


def test_records_wait_a_second_at_most_and_never_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    folder = RunFolder.create(tmp_path / "run")

    def log(i: int) -> list[int]:
        """What another process finds in the file after iteration `i`."""
        folder.log({"iteration": i, "reward": float(i)})
        return [r["iteration"] for r in RunFolder(folder.path).records()]

    assert log(0) == [0]  # the first at once
    assert log(1) == log(2) == [0]
    now[0] += 1.1
    assert log(3) == [0, 1, 2, 3]
    assert log(4) == [0, 1, 2, 3]
    folder.flush()  # before every checkpoint: no checkpoint is newer than its metrics
    assert [r["iteration"] for r in RunFolder(folder.path).records()] == [0, 1, 2, 3, 4]
    log(5)
    folder.summary({"status": "finished"})
    assert [r["iteration"] for r in RunFolder(folder.path).records()] == [0, 1, 2, 3, 4, 5]
    log(6)
    assert [r["iteration"] for r in folder.records()] == [0, 1, 2, 3, 4, 5, 6]
    log(7)
    folder.close()
    assert [r["iteration"] for r in RunFolder(folder.path).records()] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert scalars(folder.path, "reward") == [(i, float(i)) for i in range(8)]


def test_what_waits_is_cut_back_too(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for i in range(4):
        folder.log({"iteration": i}, board=False)
    folder.cut_back(1)
    folder.log({"iteration": 2, "again": 1}, board=False)
    folder.close()
    assert [*folder.records()] == [{"iteration": 0}, {"iteration": 1}, {"iteration": 2, "again": 1}]


def test_event_files_hold_one_record_an_iteration(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    from polyrl.runtime.event_file import EventFile

    values = {"reward": 0.1, "a/" + "very/" * 60 + "long/tag": -2.0, "Größe": 3, "nan": math.nan, "much": 1e300}
    file = EventFile(tmp_path, goes_on_at=7)
    file.scalars(300, values, 12.5)
    file.close()
    reader = PyRecordReader_New(str(next(tmp_path.iterdir())))
    events = []
    while True:
        try:
            reader.GetNext()
        except Exception:
            break
        events.append(Event.FromString(reader.record()))
    version, session, event = events
    assert version.file_version == "brain.Event:2" and version.step == 7
    assert session.session_log.status == 1 and session.step == 7
    assert (event.step, event.wall_time) == (300, 12.5)
    found = {v.tag: v.simple_value for v in event.summary.value}
    assert [*found] == [*values] and math.isnan(found["nan"]) and found["much"] == math.inf
    assert found["reward"] == pytest.approx(0.1) and found["Größe"] == 3


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.summary({"status": "running"})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        folder.summary({"status": "finished", "long": "x" * 10_000})
    assert folder.read_summary() == {"status": "running"}


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    odd: dict[str, Any] = {"iteration": 1, "kl": math.nan, "loss": math.inf, "nested": {"a": [1.0, -math.inf]}}
    folder.log(odd, board=False)
    folder.samples([{"iteration": 1, "score": math.nan}])
    folder.summary({"final": {"eval/reward": math.nan}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for name in ("metrics.jsonl", "samples.jsonl", "summary.json"):
        values = json.loads((tmp_path / "run" / name).read_text(), parse_constant=refuse)
        assert values
    assert next(folder.records())["kl"] is None


def test_what_a_killed_writer_left_of_a_model_is_gone_and_what_lies_beside_a_model_stays(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")

    def write(place: Path) -> None:
        place.mkdir(exist_ok=True)
        (place / "policy.safetensors").write_bytes(b"1")

    folder.write_folder("model", write)
    (folder.path / "model" / ".tmpAbCdE1").write_text("mine")
    unfinished = folder.path / ".model.writing"
    unfinished.mkdir()
    (unfinished / ".tmpR8MnPs").write_bytes(b"half of a tensor")
    assert folder.write_folder("model", write) == []
    assert sorted(p.name for p in folder.path.iterdir() if "model" in p.name or "kept" in p.name) == ["model"]
    assert (folder.path / "model" / ".tmpAbCdE1").read_text() == "mine"
    assert not (folder.path / "model" / ".tmpR8MnPs").exists()
