"""A run that goes on with more budget: the run that had it from the start, unless something follows the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import polyrl as library
from conftest import DIFFICULTY, TASK, Command, read_records, timeless
from polyrl.catalogue import build
from polyrl.core.more_budget import following_budget
from polyrl.runtime.run_folder import RunFolder
from test_damaged_files import one_sentence

SIZES = ["--prompts-per-step", 3, "--completions-per-prompt", 4]


def words(model: Path, out: Path, budget: str, *more: object) -> list[object]:
    run = ["train", "grpo", "--task", TASK, "--difficulty", DIFFICULTY, "--model", model, "--out", out]
    limits = ["--checkpoint-every", 2, "--evaluations", 1, "--eval-prompts", 8, "--no-tensorboard", "--quiet"]
    return [*run, "--budget", budget, *limits, *SIZES, *more]


def trained_records(run: Path) -> list[dict[str, Any]]:
    """Records without evaluations, which are spread over the budget."""
    return [{k: v for k, v in r.items() if not k.startswith("eval/")} for r in timeless(read_records(run))]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_a_finished_run_goes_on_as_one_that_had_the_budget_from_the_start(
    small_model: Path, tmp_path: Path, polyrl: Command
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert polyrl(*words(small_model, whole, "iterations=5")).code == 0
    assert polyrl(*words(small_model, run, "iterations=3")).code == 0
    before = weights(run)
    told = polyrl("resume", run)
    assert told.code == 0 and "The run is finished" in told.out and "its budget of 3 iterations in 3" in told.out
    one_sentence(polyrl("resume", run, "--budget", "iterations=3"), "has spent 3 iterations already", "--budget")
    one_sentence(polyrl("resume", run, "--budget", "samples=30"), "has spent 36 samples already")
    assert RunFolder(run).read_config()["budget"] == {"iterations": 3} and equal(weights(run), before)
    told = polyrl("resume", run, "--budget", "iterations=5")
    assert told.code == 0 and "follow" not in told.out + told.err, told
    assert trained_records(run) == trained_records(whole)
    assert equal(weights(run), weights(whole)) and not equal(weights(run), before)
    config = RunFolder(run).read_config()
    assert config["budget"] == {"iterations": 5} and config["run"]["budget"] == "iterations=5"
    assert config["earlier_budgets"] == [{"until_iteration": 3, "budget": {"iterations": 3}}]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["iteration"] == 5 and summary["warnings"] == []
    went = library.resume(run, budget={"samples": 72}, quiet=True)  # of another unit, from Python
    assert went.spent["iterations"] == 6 and RunFolder(run).read_config()["budget"] == {"samples": 72}


def test_what_follows_the_budget_is_said(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    """A rate that fell to the end stands where the new budget puts it: after 3 of 6 iterations at a half."""
    run = tmp_path / "run"
    more = ("--schedule", "linear", "--learning-rate", 1e-3)
    assert polyrl(*words(small_model, run, "iterations=3", *more)).code == 0
    told = polyrl("resume", run, "--budget", "iterations=6", "--quiet")
    assert told.code == 0
    said = (
        "optimize.schedule follows the budget: from iteration 4 on it stands where the whole new budget puts it, at 50%"
    )
    assert said in " ".join(told.out.split())
    assert any(said in text for text in json.loads((run / "summary.json").read_text())["warnings"])
    rates = [r["learning_rate"] for r in read_records(run)[1:]]
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3, 1e-3 / 2, 1e-3 / 3, 1e-3 / 6])


def test_a_run_of_a_comparison_keeps_its_budget(small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    run = tmp_path / "c" / "grpo-seed0"
    assert polyrl(*words(small_model, run, "iterations=1")).code == 0
    (tmp_path / "c" / "compare.yaml").write_text("question: {}\n")
    for folder in (run, tmp_path / "c"):
        one_sentence(polyrl("resume", folder, "--budget", "iterations=9"), "comparison", "one budget", "--out")


@pytest.mark.parametrize(
    "method, found",
    [
        ("grpo", []),
        ("sac", []),
        ("dqn", ["epsilon-greedy-steps.exploration_fraction"]),
        ("dpo", ["optimize.schedule", "optimize.warmup"]),
        ("d3s", ["varied-rollouts.rollouts_end", "telling-tokens.tokens_end"]),
        ("iql", ["policy.schedule"]),
    ],
)
def test_what_follows_the_budget(method: str, found: list[str]) -> None:
    domain = "control" if method in ("sac", "dqn", "iql") else "language"
    assert [n.rpartition(".")[2] for n in following_budget(build(method, domain=domain))] == [
        n.rpartition(".")[2] for n in found
    ]
