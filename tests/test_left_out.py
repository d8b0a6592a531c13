"""Rows of the user's data that cannot be used: known before a run begins, named, or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, read_records
from polyrl.errors import UserError
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.left_out import UNUSABLE
from polyrl.tasks.language.preferences import PairDataset, dataset_task
from tiny_models import save_model

LONG = "x" * 140
"""More characters, and so tokens, than the model's context of 128 holds."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), "qwen3"))


def prompts(count: int = 300) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "answer": str(i)} for i in range(count)]


def pairs(count: int = 300) -> list[dict[str, Any]]:
    return [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def write(path: Path, rows: list[Any]) -> str:
    """Each row on its own line with a blank one behind it, so that row n stands in line 2 n - 1; text as it is."""
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def loop_of(model: str, data: str, method: str = "grpo", **options: Any) -> Any:
    limit = None if method == "reward-model" else 8
    config = RunConfig(method=method, task="dataset", dataset=data, model=model, max_tokens=limit, budget="samples=64",
                       tensorboard=False, **options)  # fmt: skip
    return make_loop(config)[0]


TOO_LONG = {
    "a prompt": ("grpo", prompts, {"prompt": LONG}, "the prompt has 140 tokens.*context of 128"),
    "a conversation": ("dpo", pairs, {"prompt": LONG}, "140 tokens|more than the model's context"),
    "a response": ("dpo", pairs, {"chosen": LONG}, "chosen response have .* tokens, more than the model's context"),
    "a pair of a reward model": ("reward-model", pairs, {"rejected": LONG}, "rejected response have"),
    "no template": ("grpo", prompts, {"prompt": [{"role": "user", "content": "hi"}]}, "no chat template"),
}


@pytest.mark.parametrize("kind", TOO_LONG)
@pytest.mark.parametrize("at", [150, 299])
def test_one_row_that_does_not_fit_is_known_before_the_run_begins(
    model: str, tmp_path: Path, kind: str, at: int
) -> None:
    method, make, change, words = TOO_LONG[kind]
    rows = make()
    rows[at] |= change
    data = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError, match=rf"d\.jsonl, row {2 * at + 1}: .*({words})"):
        loop_of(model, data, method)
    if at == 150:  # left out where that is asked for, and nothing else is
        loop = loop_of(model, data, method, skip_bad_rows=True)
        task = loop.run_state.task
        assert loop.run_state.rows_left_out == 1 and len(task.train_rows) + len(task.test_rows) == 299
        why = "" if kind == "no template" else ", for not fitting into the model's context of 128 tokens"
        told = f"1 row of the data is left out as --skip-bad-rows asks{why} ({data}, row 301: "
        assert told in loop.run_state.notices()[0]
        assert len(loop.run_state.pairs("train")) == len(task.train_rows) if method != "grpo" else True


def test_rows_without_room_are_told_apart_from_broken_ones(model: str, tmp_path: Path, polyrl: Command) -> None:
    rows: list[Any] = pairs(40)
    rows[3] |= {"chosen": LONG}
    rows[8] |= {"rejected": LONG}
    rows[20] |= {"prompt": LONG}
    rows[5], rows[30] = "{not json", {"prompt": "p", "chosen": "a", "rejected": "a"}
    data, out = write(tmp_path / "d.jsonl", rows), tmp_path / "run"
    line = ["train", "dpo", "--dataset", data, "--model", model, "--quiet", "--out", out]
    line += ["--pairs-per-step", 4, "--budget", "iterations=2", "--evaluations", 1]
    refused = polyrl(*line)
    assert refused.code == 2 and "row 11: not a JSON object" in refused.err and not out.exists()
    told = polyrl(*line, "--skip-bad-rows")
    assert told.code == 0, told.err
    warnings = json.loads((out / "summary.json").read_text())["warnings"]
    for text in (
        f"2 rows of the data are left out as --skip-bad-rows asks (first: {data}, row 11: not a JSON object",
        "3 rows of the data are left out as --skip-bad-rows asks, for not fitting into the model's context of 128 "
        f"tokens (first: {data}, row 7: prompt and chosen response have ",
    ):
        assert text in " ".join(told.out.split()) and any(warning.startswith(text) for warning in warnings), text
    assert {record["data/rows_left_out"] for record in read_records(out)} == {5}


def test_long_prompts_are_left_out_and_counted(model: str, tmp_path: Path) -> None:
    for method, make in (("grpo", prompts), ("dpo", pairs)):
        rows = make()
        for i, size in ((10, 20), (20, 21), (30, 140), (40, 21)):
            rows[i]["prompt"] = f"{i}" + "y" * (size - 2)
        data = write(tmp_path / f"{method}.jsonl", rows)
        loop = loop_of(model, data, method, max_prompt_tokens=20)
        task = loop.run_state.task
        left = {row["prompt"] for row in rows} - {row["prompt"] for row in [*task.train_rows, *task.test_rows]}
        assert sorted(text[:2] for text in left) == ["20", "30", "40"]
        told = f"3 rows of the data are left out for a prompt of more than 20 tokens (first: {data}, row "
        assert told in loop.run_state.notices()[0]
        assert task.fixed_pairs.get("train", task.train_rows) is task.train_rows
    with pytest.raises(UserError, match=r"No training row is left: .* for a prompt of more than 3 tokens"):
        loop_of(model, data, "dpo", max_prompt_tokens=3)


BAD_PROMPTS: list[Any] = [
    "{not json",
    ["a list"],
    {"answer": "1"},
    {"prompt": "", "answer": "1"},
    {"prompt": 7, "answer": "1"},
    {"prompt": [], "answer": "1"},
    {"prompt": "p", "answer": "1", "completions": 3},
    {"prompt": "p", "answer": {"unknown": 1}},
]
BAD_PAIRS: list[Any] = [
    "{not json",
    {"prompt": "p", "chosen": "a", "rejected": "a"},
    {"prompt": "p", "chosen": "a", "rejected": " "},
    {"prompt": "p", "chosen": "a"},
    {"prompt": "p", "chosen": "a", "rejected": 3},
    {"chosen": "abc", "rejected": "xyz"},
]


@pytest.mark.parametrize(("make", "bad"), [(prompts, BAD_PROMPTS), (pairs, BAD_PAIRS)], ids=["prompts", "pairs"])
def test_bad_rows_are_skipped_where_that_is_asked_for(make: Any, bad: list[Any], tmp_path: Path) -> None:
    for row in bad:
        alone = write(tmp_path / "alone.jsonl", [*make(20), row])
        with pytest.raises(UserError, match=r"alone\.jsonl, row 41: "):
            dataset_task(alone)
        assert dataset_task(alone, skip_bad_rows=True).left_out.reasons.keys() == {UNUSABLE}
    data = write(tmp_path / "d.jsonl", [*make(10), *bad, *make(30)[10:]])
    task = dataset_task(data, skip_bad_rows=True)
    assert isinstance(task, PairDataset) == (make is pairs)
    assert {row["prompt"] for row in [*task.train_rows, *task.test_rows]} == {row["prompt"] for row in make(30)}
    assert task.left_out.reasons[UNUSABLE][0] == len(bad) and "row 21: " in task.left_out.reasons[UNUSABLE][1]
    with pytest.raises(UserError, match=r"no (rows|pair).*--skip-bad-rows asks|There is no pair"):
        dataset_task(write(tmp_path / "none.jsonl", bad[:3]), skip_bad_rows=True)


def test_columns_that_a_file_names_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,answer,answer\na,1,2\n")
    with pytest.raises(UserError, match=r"d\.csv: the header names the column 'answer' twice"):
        dataset_task(str(tmp_path / "d.csv"))


def test_wide_and_narrow_lines_of_a_table_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,answer\na,1\nb\nc,3,4\nd,4\n")
    task = dataset_task(str(tmp_path / "d.csv"), skip_bad_rows=True)
    assert sorted(row["prompt"] for row in [*task.train_rows, *task.test_rows]) == ["a", "d"]
    assert len(task.left_out) == 2


# -------------------------------------------------------------------------------------- data of another kind of method

JUDGED = [{"prompt": f"q {i}", "completion": "a", "label": bool(i % 2)} for i in range(20)]
ANSWERED = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(20)]
BARE = [{"prompt": f"q {i}"} for i in range(20)]


@pytest.mark.parametrize("method", ["dpo", "ipo", "slic", "reward-model", "aihf"])
@pytest.mark.parametrize(
    ("rows", "words"),
    [(JUDGED, "unpaired data, which the method kto learns from"), (ANSWERED, "one response"), (BARE, "neither pairs")],
)
def test_data_without_pairs_are_refused_before_a_model_is_read(method: str, rows: Any, words: str) -> None:
    config = RunConfig(method=method, task="dataset", model="no such folder", from_python=("dataset",))
    with pytest.raises(UserError, match=rf"'{method}' learns from preference pairs, .*{words}.*chosen and rejected"):
        make_loop(config, given=PythonObjects(dataset=rows))
    # a reward of the user's own can label pairs: then it is the model that is missing
    own = PythonObjects(dataset=rows, rewards=[Reward("own", lambda prompts, completions, **columns: [1.0])])
    with pytest.raises(UserError, match="no such folder"):
        make_loop(config, given=own)


@pytest.mark.parametrize("option", [{"checker": "exact"}, {"max_prompt_tokens": 5}, {"skip_bad_rows": True}])
def test_options_of_the_users_data_are_refused_where_there_is_none(option: dict[str, Any]) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(UserError, match=f"--{name} is for data of your own; give --dataset too"):
        RunConfig(method="grpo", task="addition", **option)


# ---------------------------------------------------------------------------------------------------- a whole run


def test_a_run_says_what_it_leaves_out_and_is_judged_on_the_same_rows_again(
    model: str, tmp_path: Path, polyrl: Command
) -> None:
    rows: list[Any] = prompts(40)
    rows[4], rows[7]["prompt"] = "{not json", "q" * 90
    data, out = write(tmp_path / "d.jsonl", rows), tmp_path / "run"
    line = ["train", "grpo", "--dataset", data, "--model", model, "--max-tokens", 8, "--quiet", "--out", out]
    line += ["--prompts-per-step", 4, "--completions-per-prompt", 2, "--budget", "samples=80", "--evaluations", 1]
    refused = polyrl(*line)
    assert refused.code == 2 and "row 9: not a JSON object" in refused.err and not out.exists()
    told = polyrl(*line, "--skip-bad-rows", "--max-prompt-tokens", 50)
    assert told.code == 0, told.err
    warnings = " ".join(json.loads((out / "summary.json").read_text())["warnings"])
    for text in (
        "left out as --skip-bad-rows asks",
        "row 9: not a JSON object",
        "more than 50 tokens",
        "row 15 has 90",
    ):
        assert text in told.out and text in warnings
    assert {record["data/rows_left_out"] for record in read_records(out)} == {2}
    accuracy = read_records(out)[-1]["eval/accuracy"]
    judged = polyrl("eval", out, "--prompts", 200)
    assert judged.code == 0 and f"{accuracy:.3f}" in judged.out
