"""A run's policy, or a model's folder, judged on data that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import polyrl as library
from conftest import DIFFICULTY, TASK, Command, read_records
from polyrl.errors import UserError
from polyrl.tasks.language import task as built_in_task
from test_damaged_files import one_sentence

ROWS = built_in_task(TASK, difficulty=DIFFICULTY).rows("test", 1234, 0, 40)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a built-in task, which is judged on the first 40 test prompts, those of `ROWS`."""
    folder = tmp_path_factory.mktemp("run") / "run"
    library.train(
        "grpo", task=TASK, model=small_model, budget="iterations=2", out=folder, quiet=True,
        prompts_per_step=3, completions_per_prompt=4, learning_rate=1e-3,
        options={"difficulty": DIFFICULTY, "eval_prompts": 40, "evaluations": 1, "tensorboard": False},
    )  # fmt: skip
    return folder


def test_all_rows_of_a_file_are_judged_as_the_task_judges_them(run: Path, tmp_path: Path, polyrl: Command) -> None:
    """The same prompts in a file: the numbers of the run's last evaluation, for the run, its model and from Python."""
    prompts = [{"prompt": row["prompt"], "answer": row["answer"]} for row in ROWS]
    file = write(tmp_path / "rows.jsonl", prompts)
    final = read_records(run)[-1]
    told = polyrl("eval", run, "--dataset", file)
    assert told.code == 0 and f"40 prompts of {file}, greedy" in told.out, told
    assert f"{final['eval/accuracy']:.3f}" in told.out and f"{final['eval/mean_length']:.3f}" in told.out
    size = ("--max-tokens", built_in_task(TASK).max_tokens)
    told = polyrl("eval", run / "model", "--dataset", file, *size)
    assert told.code == 0 and f"{final['eval/accuracy']:.3f}" in told.out
    metrics = library.evaluate(run, dataset=prompts)
    assert metrics["eval/accuracy"] == final["eval/accuracy"] > 0
    half = library.evaluate(run, dataset=file, prompts=20)
    right = library.evaluate(run, dataset=prompts, reward=lambda prompts, completions, **_: [2.0] * len(prompts))
    assert right["eval/reward"] == 2.0 and half.keys() == metrics.keys()


def test_pairs_and_other_rewards(run: Path, tmp_path: Path, polyrl: Command) -> None:
    """Given pairs are told apart against the model that the run began as; a model's folder is its own start."""
    pairs = [{"prompt": r["prompt"], "chosen": r["answer"], "rejected": "zz" + r["answer"][:1]} for r in ROWS]
    file = write(tmp_path / "pairs.jsonl", pairs)
    told = polyrl("eval", run, "--dataset", file)
    assert told.code == 0 and f"40 held-out pairs of {file}, told apart and not answered" in told.out, told
    assert library.evaluate(run, dataset=file)["eval/margin"] != 0
    assert library.evaluate(run / "model", dataset=file)["eval/margin"] == 0
    code = tmp_path / "mine.py"
    code.write_text("def ones(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    bare = write(tmp_path / "bare.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    told = polyrl("eval", run, "--dataset", bare, "--reward", f"{code}:ones")
    assert told.code == 0 and "reward               1.000" in told.out, told
    one_sentence(polyrl("eval", run, "--dataset", bare), "Nothing judges answers", "--reward")


def test_what_cannot_be_judged_is_one_sentence(run: Path, tmp_path: Path, polyrl: Command) -> None:
    one_sentence(polyrl("eval", run / "model"), "is a model and no run", "--dataset")
    one_sentence(polyrl("eval", run, "--checker", "exact"), "--checker is for data", "--dataset")
    one_sentence(polyrl("eval", run, "--dataset", tmp_path / "no.jsonl"), "no data file")
    one_sentence(polyrl("eval", tmp_path, "--dataset", tmp_path / "no.jsonl"), "is not a run folder")
    one_sentence(polyrl("eval", run, "--dataset", "x.jsonl", "--episodes", 2), "--episodes means nothing")
    control = tmp_path / "control"
    library.train(
        "ppo", task="CartPole-v1", budget="iterations=1", out=control, quiet=True, options={"eval_episodes": 1}
    )
    with pytest.raises(UserError, match=r"--dataset means nothing .* a run of control"):
        library.evaluate(control, dataset=[{"prompt": "a", "answer": "b"}])
