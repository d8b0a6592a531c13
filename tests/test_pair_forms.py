"""Preference pairs in the forms of data sets: prompts that stand in both responses, and what is in no form."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from chat_tokenizers import (
    Text,
    byte_tokenizer,
    first_row,
    said,
    user,
)
from conftest import Command
from polyrl.errors import UserError
from polyrl.models.language.pairs import encode_pair
from polyrl.tasks.language.preferences import dataset_task

# ---------------------------------------------------------------------------------------- pairs that hold their prompt


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("A: Yes, it is", "A: You are right", "A:"),
        ("A: it costs 420 euros", "A: it costs 450 euros", "A: it costs"),
        ("A: 4.25", "A: 4.75", "A:"),
        ("A: $3", "A: $4", "A:"),
        ("A: 3e8", "A: 3e9", "A:"),
        ("A: -1", "A: -2", "A:"),
        ("A: 1,200", "A: 1,300", "A:"),
        ("A: 12:30", "A: 12:45", "A:"),
        ("A: <|a|>yes", "A: <|b|>no", "A:"),
        ("A:<|a|>yes", "A:<|a b", "A:"),
        ("A: </think> x", "A: </tool> x", "A:"),
        ("A: [INST] x", "A: [INSTRUCT] x", "A:"),
        ("A: <｜User｜>x", "A: <｜Tool｜>x", "A:"),
        ("A: don't", "A: don", "A:"),
        ("A: well-known", "A: well-made", "A:"),
        ("A: snake_case", "A: snake_eyes", "A:"),
        ("A: e\u0301t\u00e9", "A: et", "A:"),
        ("A: \U0001f44d\U0001f3fd", "A: \U0001f44d\U0001f3ff", "A:"),
        ("A: \U0001f1e9\U0001f1ea", "A: \U0001f1e9\U0001f1f0", "A:"),
        ("\n\nAssistant:\nYes", "\n\nAssistant:\nYou", "\n\nAssistant:\n"),
        ("答：是的", "答：是吗", "答：是"),
        ("A: yes", "A: yes, and no", "A:"),
        ("A: yes ", "A: yes and no", "A:"),
        ("A: yes.", "A: yes. No.", "A: yes"),
        ("A: one two", "A: one six", "A: one"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_common_prompt_ends_between_words(chosen: str, rejected: str, prompt: str, turned: bool) -> None:
    """TRL cuts at the first character that differs: inside a word, a number or the text of a special token."""
    begin = "Human: is it?\n\n" if not chosen.startswith("\n") else "Human: is it?"
    chosen, rejected = (rejected, chosen) if turned else (chosen, rejected)
    row = first_row({"chosen": "q " + begin + chosen, "rejected": "q " + begin + rejected})
    assert row["prompt"] == "q " + begin + prompt
    assert (row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]) == (
        "q " + begin + chosen,
        "q " + begin + rejected,
    )
    assert row["chosen"].strip() and row["rejected"].strip()


BROKEN = {
    "nothing in common": ({"chosen": "yes", "rejected": "no"}, "nothing in common"),
    "equal": ({"chosen": "q yes", "rejected": "q yes"}, "equal"),
    "one is empty": ({"prompt": "q", "chosen": "", "rejected": "no"}, "'chosen' is empty"),
    "one is white": ({"prompt": "q", "chosen": "yes", "rejected": " \n"}, "'rejected' is empty"),
    "no answer": ({"chosen": [user("q"), said("a")], "rejected": [user("q")]}, "'rejected' is empty"),
    "other questions": (
        {"chosen": [user("q"), user("a"), said("x")], "rejected": [user("q"), user("b"), said("y")]},
        "does not begin with the prompt",
    ),
    "another question than the prompt": (
        {"prompt": "other", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        "no message that both",
    ),
    "another conversation than the prompt": (
        {"prompt": [user("p")], "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        "does not begin with the prompt",
    ),
    "ends with the user": (
        {"prompt": [user("q")], "chosen": [said("a"), user("b")], "rejected": [said("c")]},
        "roles behind the prompt are assistant, user",
    ),
    "two answers in a row": (
        {"prompt": [user("q")], "chosen": [said("a"), said("b")], "rejected": [said("c")]},
        "roles behind the prompt are assistant, assistant",
    ),
    "text and messages": ({"prompt": "q", "chosen": "a", "rejected": [said("b")]}, "both be text or both"),
    "behind an answer": (
        {
            "chosen": [user("q"), said("a"), user("b"), said("x")],
            "rejected": [user("q"), said("a"), user("c"), said("y")],
        },
        "only behind an answer",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_pairs_that_are_in_no_form_are_refused_alike_from_a_list_and_from_a_file(name: str, tmp_path: Path) -> None:
    row, words = BROKEN[name]
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    rows = [good, {**good, "prompt": "y"}, row]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for data in (rows, str(file)):
        with pytest.raises(UserError, match=words) as told:
            dataset_task(data)
        assert "3: " in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(("value", "ended"), [(False, False), ("false", False), (0, False), (None, True), ("", True)])
def test_what_a_table_says_of_responses_that_were_cut_off(value: Any, ended: bool) -> None:
    reader = Text(byte_tokenizer())
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_ended": value}
    assert encode_pair(reader, row, "here").ended == (ended, True)
    with pytest.raises(UserError, match="'rejected_ended' must be true or false, not 'maybe'"):
        encode_pair(reader, {**row, "rejected_ended": "maybe"}, "here")


def test_responses_that_all_repeat_their_prompt_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"q{i}:", "chosen": f"q{i}: yes", "rejected": f"q{i}: no"} for i in range(4)]
    with caplog.at_level(logging.WARNING):
        task = dataset_task(rows)
        dataset_task([{**rows[0], "prompt": "other"}, *rows[1:]])
    assert ["begin with the text of their prompt" in r.getMessage() for r in caplog.records] == [True]
    assert {row["chosen"][:1] for row in task.train_rows} == {"q"}  # nothing is taken off


def test_conversations_in_a_table_are_the_json_text_of_their_messages(tmp_path: Path) -> None:
    """A table of texts cannot say it otherwise, and a model is never served JSON."""
    rows = [
        {
            "prompt": json.dumps([user(f"q{i}")]),
            "chosen": json.dumps([said("yes")]),
            "rejected": json.dumps([said("no")]),
        }
        for i in range(4)
    ]
    file = tmp_path / "pairs.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for data in (rows, str(file)):
        row = dataset_task(data).train_rows[0]
        assert row["prompt"] == [user(row["prompt"][0]["content"])]
        assert (row["chosen"], row["rejected"]) == ([said("yes")], [said("no")])
    texts = [{"prompt": f'[{{"a": {i}}}]', "chosen": "[{", "rejected": '[{"role": 1}]'} for i in range(3)]
    assert all(row in texts for row in dataset_task(texts).train_rows)


def test_pairs_that_nobody_answers_need_no_room_for_an_answer(
    tmp_path: Path, polyrl: Command, small_model: Path
) -> None:
    """The limit is 256 tokens where none is named, and the model's context has 64: only what samples is refused."""
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "reverse abc=", "chosen": "cba", "rejected": "abc"}
    file.write_text("".join(json.dumps({**pair, "prompt": f"reverse {c}bc="}) + "\n" for c in "abcdefghijklmnopqrstu"))
    words = ["--model", str(small_model), "--dataset", str(file), "--budget", "updates=1", "--evaluations", "1"]
    told = polyrl("train", "dpo", *words, "--pairs-per-step", "4", "--out", str(tmp_path / "dpo"))
    assert told.code == 0, told.err
    sampled = polyrl("train", "dpo", *words, "--eval-sampled", "--out", str(tmp_path / "sampled"))
    assert sampled.code == 2 and "exceeds the model's context of 64" in sampled.err
    long = {**pair, "chosen": "c" * 60}
    file.write_text(file.read_text() + json.dumps(long) + "\n")
    told = polyrl("train", "dpo", *words, "--out", str(tmp_path / "long"))
    assert told.code == 2 and "row 22" in told.err
