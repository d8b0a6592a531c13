"""The trainer of docs/one-page.md gives the numbers of polyrl's loop: to the bit without fast paths, else nearly."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import DIFFICULTY, SEED, TASK, child_environment
from polyrl.kernels import linear
from polyrl.models.language import policy as language
from polyrl.rollout.language import TransformersEngine
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import task
from test_docs import DOCS, blocks

torch.set_num_threads(1)
ITERATIONS = 3
LEAST = 1e-3
"""With fast paths the weights end nearer to the page's than this share of the way that they have gone."""


def page(**changes: str) -> ModuleType:
    """The page's code as a module, with some of its text changed."""
    text = "\n".join(blocks("one-page.md", "python"))
    for old, new in changes.values():
        assert old in text, old
        text = text.replace(old, new)
    module = ModuleType("one_page")
    exec(compile(text, "one_page.py", "exec"), module.__dict__)
    return module


def on_one_page(folder: Path, said: pytest.CaptureFixture[str], **changes: Any) -> tuple[list[dict[str, float]], Any]:
    """What the page logs, and the model that it ends with."""
    said.readouterr()
    words = task(TASK, difficulty=DIFFICULTY)
    model = page(**changes).train(str(folder), words, seed=SEED, iterations=ITERATIONS)
    return [json.loads(line) for line in said.readouterr().out.splitlines()], model


def in_the_loop(folder: Path, *, plain: bool = False) -> tuple[list[dict[str, float]], Any]:
    """The same of polyrl's loop, at GRPO's defaults."""
    fields: dict[str, Any] = {"micro_batch_tokens": 100_000} if plain else {}
    config = RunConfig(
        method="grpo",
        task=TASK,
        difficulty=DIFFICULTY,
        model=str(folder),
        seed=SEED,
        budget=f"iterations={ITERATIONS}",
        **fields,
    )
    loop: Any = make_loop(config)[0]
    if plain:
        loop.run_state.policy.share_prompts = False
        loop.run_state.engine = TransformersEngine(loop.run_state.policy, fast=False)
    records = []
    for _ in range(ITERATIONS):
        loop.iterate()
        records.append(dict(loop.context.metrics))
    return records, loop.run_state.policy.model


def distance(one: Any, other: Any) -> float:
    """Euclidean distance of two models' weights."""
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return math.hypot(*(float((a - b).detach().norm()) for a, b in pairs))


def gone(folder: Path, model: Any) -> float:
    """How far training has led away from the starting weights."""
    return distance(language.LanguagePolicy.load(folder).model, model)


def plain_scores(logits: Tensor, target: Tensor, temperature: Tensor, want_entropy: bool) -> tuple[Tensor, Any]:
    logs = (logits / temperature[:, None]).log_softmax(-1)
    return logs.gather(-1, target[:, None])[:, 0], -(logs.exp() * logs).sum(-1) if want_entropy else None


def test_without_fast_paths_the_weights_are_the_same_to_the_bit(
    small_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "score_logits", plain_scores)
    monkeypatch.setattr(linear, "onednn_pays", lambda: False)
    records, model = in_the_loop(small_model, plain=True)
    logged, mine = on_one_page(small_model, capsys)
    assert distance(model, mine) == 0
    assert [line["grad_norm/policy"] for line in logged] == [record["grad_norm/policy"] for record in records]
    compare(logged, records, rel=1e-7, abs=1e-7)  # sums over tokens, in another order


def test_with_fast_paths_only_rounding_differs(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, model = in_the_loop(small_model)
    logged, mine = on_one_page(small_model, capsys)
    assert distance(model, mine) < LEAST * gone(small_model, mine)
    compare(logged, records, rel=1e-5, abs=1e-6)


def compare(logged: list[dict[str, float]], records: list[dict[str, float]], **tolerance: Any) -> None:
    assert [line.pop("iteration") for line in logged] == [1, 2, 3]
    exact = {"reward", "reward_std", "clip_ratio", "completions/mean_length"}
    for line, record in zip(logged, records, strict=True):
        assert exact < line.keys() < record.keys() and len(line) == 8
        for name, value in line.items():
            wanted = record[name]
            assert value == (pytest.approx(wanted, rel=1e-7) if name in exact else pytest.approx(wanted, **tolerance))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("centred / (deviation + 1e-6)", "centred"),
        ("weight.sum(1, keepdim=True) / len(rows)", "weight.sum()"),
        ("1 + CLIP_RANGE)\n        loss", "2)\n        loss"),
    ],
    ids=["deviation", "average", "clip"],
)
def test_a_page_that_says_something_else_gives_other_weights(
    small_model: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    ours, other = on_one_page(small_model, capsys)[1], on_one_page(small_model, capsys, change=(old, new))[1]
    assert distance(ours, other) > 10 * LEAST * gone(small_model, ours)


def test_the_command_of_the_page_makes_a_file_that_runs(small_model: Path, tmp_path: Path) -> None:
    (command,) = [line for block in blocks("one-page.md", "console") for line in block.splitlines() if "sed" in line]
    made = command.removeprefix("$ ").replace("docs/one-page.md", str(DOCS / "one-page.md"))
    subprocess.run(made, shell=True, cwd=tmp_path, check=True)
    run = [sys.executable, "one_page.py", str(small_model)]
    said = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, env=child_environment())
    assert said.returncode == 0, said.stderr
    assert [json.loads(line)["iteration"] for line in said.stdout.splitlines()] == [1, 2, 3]


def test_the_page_is_short() -> None:
    lines = "\n".join(blocks("one-page.md", "python")).splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
