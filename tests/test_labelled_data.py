"""Labelled responses as data: every form of TRL's unpaired columns, what is wrong with them, how they are split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversations import answer, letters, talk
from polyrl.errors import UserError
from polyrl.models.language.labelled import LabelledResponses
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.responses import encode_completion
from polyrl.runs import make_loop
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.dataset import DatasetTask, held_out, prompt_hash
from polyrl.tasks.language.labelled import LabelledDataset, labelled_of_pairs
from polyrl.tasks.language.left_out import UNUSABLE
from polyrl.tasks.language.preferences import PairDataset, dataset_task

__all__ = ["letters"]

Rows = list[dict[str, Any]]


def some(count: int = 40, **more: Any) -> Rows:
    return [
        {"prompt": f"question {i}: ", "completion": f"it is {i}", "label": i % 3 == 0, **more} for i in range(count)
    ]


def all_rows(task: DatasetTask) -> list[Any]:
    return sorted([*task.train_rows, *task.test_rows], key=lambda row: json.dumps(row, sort_keys=True))


# ------------------------------------------------------------------------------------------------------ the formats


def test_a_true_or_false_label_makes_labelled_data_and_classes_do_not() -> None:
    assert type(dataset_task(some())) is LabelledDataset
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(20)]
    assert type(dataset_task(pairs)) is PairDataset
    for last, kind in ((1, LabelledDataset), (2, DatasetTask), ("good", DatasetTask), (None, LabelledDataset)):
        rows = [{**row, "label": int(row["label"])} for row in some()]
        rows[39]["label"] = last
        assert type(dataset_task(rows, skip_bad_rows=True)) is kind, last
    mixed: Rows = [*some(), {**some(1)[0], "label": "so"}]  # labels that are true or false beside one that is neither
    assert type(dataset_task(mixed, skip_bad_rows=True)) is LabelledDataset
    assert type(dataset_task([{k: v for k, v in row.items() if k != "label"} for row in some()])) is DatasetTask
    task = dataset_task(some(400))
    assert task.labelled["train"] is task.train_rows and task.labelled["test"] is task.test_rows
    assert 20 <= len(task.test_rows) <= 70 and not task.fixed_pairs and task.metric.key == "eval/auc"
    own = dataset_task(some(), rewards=[Reward("own", lambda prompts, completions, **columns: [1.0])])
    assert own.metric.key != "eval/auc" and own.labelled


@pytest.mark.parametrize(
    "write",
    [lambda x: x, int, float, str, lambda x: str(x).lower(), lambda x: f" {int(x)} "],
    ids=["bool", "int", "float", "text", "lower", "padded"],
)
def test_labels_are_booleans_numbers_or_their_text(write: Callable[[bool], Any]) -> None:
    rows = [{**row, "label": write(row["label"])} for row in some()]
    assert all_rows(dataset_task(rows)) == all_rows(dataset_task(some()))
    assert all(type(row["label"]) is bool for row in all_rows(dataset_task(rows)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_labelled_responses_come_from_files(suffix: str, tmp_path: Path) -> None:
    file, rows = tmp_path / f"rows{suffix}", some()
    if suffix == ".csv":
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows))
    task = dataset_task(str(file))
    assert type(task) is LabelledDataset and all_rows(task) == all_rows(dataset_task(rows))


def test_a_data_set_of_hugging_face_is_read_as_its_rows() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "prompt": talk(row["prompt"]), "completion": answer(row["completion"])} for row in some()]
    config = RunConfig(method="kto", task="dataset", model="no such folder", from_python=("dataset",))
    with pytest.raises(UserError, match="no such folder"):  # nothing was wrong with the data
        make_loop(config, given=PythonObjects(dataset=list(datasets.Dataset.from_list(rows))))
    assert all_rows(dataset_task(list(datasets.Dataset.from_list(rows)))) == all_rows(dataset_task(rows))


FORMS: dict[str, tuple[Any, Any, Any, Any]] = {
    # prompt, completion -> prompt, completion
    "texts": ("q", "yes", "q", "yes"),
    "messages and text": (talk("q"), "yes", talk("q"), "yes"),
    "messages": (talk("q"), answer("yes"), talk("q"), answer("yes")),
    "a conversation that begins with the prompt": (talk("q"), talk("q", "yes"), talk("q"), answer("yes")),
    "text and the assistant's message": ("q", answer("yes"), talk("q"), answer("yes")),
    "text and a conversation": ("q", talk("first", "a", "q ", "yes"), talk("first", "a", "q "), answer("yes")),
    "an answer begun": (
        [*talk("q"), *answer("ye")],
        [*talk("q"), *answer("yes")],
        [*talk("q"), *answer("ye")],
        answer("s"),
    ),
    "messages as the text of a table": (json.dumps(talk("q")), json.dumps(answer("yes")), talk("q"), answer("yes")),
}


@pytest.mark.parametrize("form", FORMS)
def test_prompt_and_response_in_every_form(form: str) -> None:
    prompt, completion, asked, said = FORMS[form]
    row = {"prompt": prompt, "completion": completion, "label": True}
    task = dataset_task([row, *some()])
    found = next(r for r in all_rows(task) if r["prompt"] == asked)
    assert (found["prompt"], found["completion"], found["label"]) == (asked, said, True)


def test_both_responses_of_a_pair_are_labelled() -> None:
    pairs = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "rejected_ended": False, "source": "x"},
        {"prompt": "q", "chosen": "c", "rejected": "d", "score": 2},
    ]
    assert labelled_of_pairs(pairs) == [
        {"prompt": "p", "completion": "a", "label": True, "source": "x"},
        {"prompt": "p", "completion": "b", "label": False, "completion_ended": False, "source": "x"},
        {"prompt": "q", "completion": "c", "label": True, "score": 2},
        {"prompt": "q", "completion": "d", "label": False, "score": 2},
    ]


# -------------------------------------------------------------------------------------------------------- token ids


def test_a_batch_of_responses(letters: LanguagePolicy) -> None:
    rows: Rows = [
        {"prompt": "a", "completion": "bca", "label": True},
        {"prompt": talk("c"), "completion": answer("ca"), "label": False},
        {"prompt": "abc", "completion": "c", "label": True, "completion_ended": "false"},
        {"prompt": talk("c"), "completion": [*answer("a"), *talk("b", "c")], "label": False},
    ]
    given = LabelledResponses(letters, rows, "rows", max_tokens=2)
    batch = given.batch([2, 0, 1, 0])
    end = letters.tokenizer.eos_token_id
    assert batch["desirable"].tolist() == [True, True, False, True] and batch["example"].tolist() == [2, 0, 1, 0]
    assert batch["ended"].tolist() == [False, True, True, True] and not bool(batch["greedy"].any())
    last = [ids[n - 1] for ids, n in zip(batch["action"].tolist(), batch["present"].sum(1).tolist(), strict=True)]
    assert [token == end for token in last] == batch["ended"].tolist()
    assert batch["group"].tolist() == [0, 1, 2, 3] and bool((batch["mask"] == batch["present"]).all())
    assert batch["length_limit"].tolist() == [batch["action"].shape[1]] * 4
    turns = given.batch([3])
    own = encode_completion(letters, rows[3], "here").own
    assert own is not None and not all(own)
    assert turns["mask"][0].tolist() == own and bool(turns["present"].all())  # what the user says is read, not learned


# -------------------------------------------------------------------------------------------------- what is wrong

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"label": "perhaps"}, "the column 'label' must be true or false, not 'perhaps'"),
    ({"label": 2}, "the column 'label' must be true or false, not 2"),
    ({"label": None}, "no column 'label'; it has prompt, completion"),
    ({"label": ""}, "no column 'label'; it has prompt, completion"),
    ({"label": float("nan")}, "no column 'label'; it has prompt, completion"),
    ({"completion": None}, "no column 'completion'; it has prompt, label"),
    ({"completion": "  "}, "the column 'completion' is empty; leave the row out"),
    ({"completion": 7}, "the column 'completion' must be text or a list of messages"),
    ({"completion": [{"role": "assistant"}]}, "message 1 of the column 'completion'"),
    ({"completion": []}, "the column 'completion' has no messages"),
    ({"prompt": ""}, "the column 'prompt' is empty"),
    ({"prompt": None}, "the column 'prompt' must be text or a list of messages, not null"),
    ({"prompt": "other", "completion": talk("q", "yes")}, "'other' is no message that 'completion' begins with"),
    ({"prompt": talk("q"), "completion": talk("q")}, "the column 'completion' is empty behind the prompt"),
    ({"prompt": talk("q"), "completion": talk("r", "yes")}, "does not begin with the prompt"),
    ({"prompt": talk("q"), "completion": [*answer("a"), *answer("b")]}, "must end with the assistant's message"),
    ({"prompt": talk("q"), "completion": answer("a"), "tools": 3}, "'tools'"),
]


@pytest.mark.parametrize(("broken", "words"), BROKEN, ids=[str(i) for i in range(len(BROKEN))])
def test_broken_rows_are_named_or_left_out(broken: dict[str, Any], words: str, tmp_path: Path) -> None:
    rows = some()
    rows[6] = {**rows[6], **broken}
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data, place in ((rows, "the data, row 7: "), (str(file), f"{file}, row 7: ")):
        with pytest.raises(UserError) as told:
            dataset_task(data)
        said = str(told.value)
        assert said.startswith(place) and words in said.replace("“", "'").replace("”", "'") and "\n" not in said, said
    task = dataset_task(str(file), skip_bad_rows=True)
    assert type(task) is LabelledDataset and len(all_rows(task)) == 39
    count, first = task.left_out.reasons[UNUSABLE]
    assert count == 1 and first.startswith(f"{file}, row 7: ")


def test_test_data_of_its_own_are_checked_too() -> None:
    with pytest.raises(UserError, match="the test data, row 2: the column 'label' must be true or false"):
        dataset_task(some(), [*some(1), {**some(1)[0], "label": "so"}])
    with pytest.raises(UserError, match=r"No test row is labelled false, .* give test data with both labels"):
        dataset_task(some(), [{**row, "label": True} for row in some(4, prompt="other")])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b" * 200}, "prompt and response have 202 tokens, more than .* context of 128"),
        ({"prompt": "a", "completion": "", "completion_ended": False}, "the response has no tokens; leave the row out"),
        ({"prompt": "a", "completion": "b", "completion_ended": "x"}, "'completion_ended' must be true or false"),
    ],
)
def test_responses_that_cannot_be_token_ids(row: dict[str, Any], words: str, letters: LanguagePolicy) -> None:
    with pytest.raises(UserError, match=words) as told:
        LabelledResponses(letters, [{**row, "label": True}], "the train responses").batch([0])
    assert str(told.value).startswith("the train responses, row 1: ")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, letters: LanguagePolicy) -> Path:
    folder = tmp_path_factory.mktemp("model")
    letters.save(folder)
    return folder


def test_a_response_that_does_not_fit_is_known_before_the_run_begins(model: Path) -> None:
    rows: Rows = [
        {"prompt": "abc"[i % 3] * (1 + i // 3 % 9), "completion": "ab" * (1 + i // 27), "label": i % 2 == 0}
        for i in range(200)
    ]
    rows[150]["completion"] = "b" * 200
    options: dict[str, Any] = {"method": "kto", "task": "dataset", "model": str(model), "budget": "samples=8"}
    config = RunConfig(**options, from_python=("dataset",), max_tokens=8)
    with pytest.raises(UserError, match=r"the data, row 151: prompt and response have .* context of 128"):
        make_loop(config, given=PythonObjects(dataset=rows))
    skipping = RunConfig(**options, from_python=("dataset",), max_tokens=8, skip_bad_rows=True)
    run_state = make_loop(skipping, given=PythonObjects(dataset=rows))[0].run_state
    assert run_state.rows_left_out == 1 and "row 151" in run_state.notices()[0]
    assert len(run_state.labelled("train")) == len(run_state.task.train_rows)


# ------------------------------------------------------------------------------------------------------- the split


def test_prompts_stay_together_and_both_splits_have_both_kinds() -> None:
    for size in (4, 7, 12, 30):
        for seed in range(12):
            rows = [
                {"prompt": f"{seed}-{i // 2}", "completion": f"{i}", "label": (i * 7 + seed) % 5 < 2}
                for i in range(2 * size)
            ]
            if len({r["label"] for r in rows[:size]}) < 2:
                continue
            task = LabelledDataset(rows)
            assert {r["label"] for r in task.train_rows} == {r["label"] for r in task.test_rows} == {True, False}
            assert len(task.train_rows) + len(task.test_rows) == 2 * size
            assert not {r["prompt"] for r in task.train_rows} & {r["prompt"] for r in task.test_rows}
            usual = held_out(rows, "rows")[1]
            assert {r["completion"] for r in usual} <= {r["completion"] for r in task.test_rows}
            assert len({r["prompt"] for r in task.test_rows}) - len({r["prompt"] for r in usual}) in (0, 1)


def test_a_prompt_that_training_cannot_spare_stays_there() -> None:
    """The next one by its hash has the only undesirable response of training; the one after it does as well."""
    found = 0
    for i in range(40):
        low, middle, high = sorted((f"{i} {letter}" for letter in "abc"), key=lambda p: prompt_hash({"prompt": p}))
        kinds = [(low, False), (middle, True), (middle, False), (high, True)]
        rows = [{"prompt": p, "completion": "yes", "label": kind} for p, kind in kinds]
        if {row["prompt"] for row in held_out(rows, "rows")[1]} == {low}:
            task = LabelledDataset(rows)
            assert [row["prompt"] for row in task.test_rows] == [low, high]
            found += 1
    assert found > 10


def test_responses_of_one_kind_are_refused() -> None:
    for label, other in ((True, "false"), (False, "true")):
        rows = [{**row, "label": label} for row in some()]
        with pytest.raises(UserError, match=f"No training row is labelled {other}, .* with both labels"):
            dataset_task(rows)
    single = [{**row, "label": i == 3} for i, row in enumerate(some())]  # the only good one cannot be in both
    with pytest.raises(UserError, match=r"No (training|test) row is labelled true"):
        dataset_task(single)


# -------------------------------------------------------------------------------------- data of another kind of method

ANSWERED = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(20)]
CLASSES = [{"prompt": f"q {i}", "completion": f"a {i}", "label": i % 4} for i in range(20)]
BARE = [{"prompt": f"q {i}"} for i in range(20)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ANSWERED, "one response in each row and nothing that says how good it is"),
        (CLASSES, r"labels that are neither true nor false \(the data, row \d+ has [23]\)"),
        (BARE, "neither labels nor pairs nor answers"),
    ],
)
def test_kto_on_data_without_labels_is_refused_before_a_model_is_read(rows: Rows, words: str) -> None:
    config = RunConfig(method="kto", task="dataset", model="no such folder", from_python=("dataset",))
    wanted = "give the columns prompt, completion and label, or prompt, chosen and rejected"
    with pytest.raises(UserError, match=f"'kto' learns from responses labelled true or false, .*{words}: {wanted}"):
        make_loop(config, given=PythonObjects(dataset=rows))
    # a reward of the user's own can label pairs, and a pair is two labelled responses
    own = PythonObjects(dataset=rows, rewards=[Reward("own", lambda prompts, completions, **columns: [1.0])])
    with pytest.raises(UserError, match="no such folder"):
        make_loop(config, given=own)


def test_a_preference_function_beside_labels_is_refused() -> None:
    config = RunConfig(method="kto", task="dataset", model="m", from_python=("dataset", "preference"))
    given = PythonObjects(dataset=some(), preference=lambda prompts, completions_a, completions_b: [0.5])
    with pytest.raises(UserError, match="--preference means nothing for kto: the data has its labels"):
        make_loop(config, given=given)
