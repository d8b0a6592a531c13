"""The user's own data: reading files, GSM8K's form, holding out a test split, the epoch stream, answers."""

from __future__ import annotations

import json
import logging
import sys
import types
from collections import Counter

import pytest

from polyrl.errors import UserError
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.dataset import DatasetTask, load_rows

GSM8K = [
    {
        "question": "Mia bakes 12 rolls and eats 5. How many are left?",
        "answer": "Mia has 12-5 = <<12-5=7>>7 rolls left.\n#### 7",
    },
    {
        "question": "A shed costs $1,150 and its door $50 more than a tenth of it. What do both cost?",
        "answer": "The door costs 1150/10+50 = $<<1150/10+50=165>>165.\nBoth cost $<<1150+165=1315>>1,315.\n#### 1,315",
    },
    {"question": "Ben has 3 boxes of 4 pens. How many pens?", "answer": "3*4 = <<3*4=12>>12 pens.\n#### 12"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def many(count, **columns):
    return [{"prompt": f"question {i}", "answer": str(i), **columns} for i in range(count)]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_gsm8k_form(tmp_path):
    rows = load_rows(write(tmp_path / "g.jsonl", GSM8K))
    assert [row["answer"] for row in rows] == ["7", "1,315", "12"]
    assert rows[0]["prompt"] == "Mia bakes 12 rolls and eats 5. How many are left?\n"
    assert rows[0]["solution"] == GSM8K[0]["answer"] and rows[0]["question"] == GSM8K[0]["question"]
    made = DatasetTask(str(tmp_path / "g.jsonl"))
    assert made.checker == "numeric" and [r.name for r in made.rewards] == ["numeric"]
    row = rows[1]
    assert made.worked(row) == GSM8K[1]["answer"] and made.correct(row, made.worked(row))
    assert made.correct(row, "so they cost $1315.00 together.") and not made.correct(row, "1315 or 1316")
    assert made.expected(row) == "1,315"
    scores = made.rewards[0].function(prompts=["q"] * 2, completions=["#### 7", "7 of 8"], answer=["7", "7"])
    assert scores == [1.0, 0.0]


def test_prompt_wins_over_question(tmp_path):
    rows = load_rows(write(tmp_path / "p.jsonl", [{"prompt": "p", "question": "q", "answer": "so #### 3"}]))
    assert rows == [{"prompt": "p", "question": "q", "answer": "so #### 3"}]


def test_json_csv_and_jsonl_say_the_same(tmp_path):
    rows = [
        {"prompt": 'one, "two"', "answer": "x\ny", "level": "1"},
        {"prompt": "drei \u2028 vier äöü", "answer": "", "level": "2"},
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "d.csv").write_bytes(
        'prompt,answer,level\r\n"one, ""two""","x\ny",1\r\ndrei \u2028 vier äöü,,2\r\n'.encode("utf-8-sig")
    )
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "d.jsonl").write_text(text, encoding="utf-8")
    for name in ("d.json", "d.csv", "d.jsonl"):
        assert load_rows(str(tmp_path / name)) == rows, name


def test_rows_get_the_same_columns(tmp_path):
    rows = load_rows(write(tmp_path / "d.jsonl", [{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}]))
    assert rows == [{"prompt": "a", "x": 1, "y": None}, {"prompt": "b", "x": None, "y": 2}]


def test_conversational_prompts(tmp_path):
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    rows = load_rows(write(tmp_path / "c.jsonl", [{"prompt": chat, "chosen": "yes", "rejected": "no"}]))
    assert rows == [{"prompt": chat, "chosen": "yes", "rejected": "no"}]


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]), path)
    assert load_rows(str(path)) == [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        load_rows(str(path))


def test_hub_names_are_taken_apart(monkeypatch):
    asked = []
    hub = types.ModuleType("datasets")
    hub.load_dataset = lambda name, config, split: asked.append((name, config, split)) or [{"prompt": "p"}]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    for source in ("org/name", "org/name:main", "org/na.me-2@test", "org/name:main@train[:10]"):
        assert load_rows(source) == [{"prompt": "p"}]
    assert asked == [
        ("org/name", None, "train"),
        ("org/name", "main", "train"),
        ("org/na.me-2", None, "test"),
        ("org/name", "main", "train[:10]"),
    ]

    def fail(name, config, split):
        raise ConnectionError("no network.\nmore")

    hub.load_dataset = fail
    with pytest.raises(UserError, match=r"'org/name' \(split train\) cannot be loaded: no network\.$"):
        load_rows("org/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the extra 'data': pip install 'polyrl\[data\]'"):
        load_rows("org/name")


BAD_LINES = [
    ('{"question": "q", "reply": "a"}', "row 2: no column 'prompt'; it has question, reply."),
    ("{}", "row 2: no column 'prompt'; it has no columns."),
    ('{"prompt": 7}', "row 2: the column 'prompt' must be text or a list of messages, not a number."),
    ('{"prompt": null}', "row 2: the column 'prompt' must be text or a list of messages, not null."),
    ('{"prompt": {"role": "user"}}', "row 2: the column 'prompt' must be text or a list of messages, not an object."),
    ('{"prompt": "  "}', "row 2: the column 'prompt' is empty."),
    ('{"prompt": []}', "row 2: the column 'prompt' has no messages."),
    ('{"prompt": ["hi"]}', "row 2: message 1 of the column 'prompt' must be an object with 'role' and 'content'"),
    ('{"prompt": [{"role": "user"}]}', "row 2: message 1 of the column 'prompt'"),
    ('{"prompt": [{"role": "user", "content": 3}]}', "row 2: the content of message 1 of the column 'prompt'"),
    ('{"question": 3, "answer": "#### 3"}', "row 2: the column 'question' must be text, not a number."),
    ('{"question": "q", "answer": "7 ####"}', "row 2: the column 'answer' has no number after its '####'."),
    ('{"prompt": "p", "completions": "c"}', "row 2: the column 'completions' must have another name"),
    ('["p"]', "row 2: a row must be an object with named columns, not a list."),
    ('{"prompt": "p"', "row 2: not a JSON object (Expecting ',' delimiter at line 1, column 15)."),
    ("prompt", "row 2: not a JSON object"),
    ("[" * 100000, "row 2: not a JSON object (too deep)."),
    ('{"n": ' + "9" * 5000 + "}", "row 2: not a JSON object"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message[:50] for _, message in BAD_LINES])
def test_bad_lines_name_file_row_and_column(tmp_path, line, message):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + '\n{"prompt": "fine"}\n')
    with pytest.raises(UserError) as caught:
        load_rows(str(path))
    assert f"{path}, {message}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", "", "has no rows"),
        ("d.jsonl", "\n \n", "has no rows"),
        ("d.json", "", "has no rows"),
        ("d.json", "[]", "has no rows"),
        ("d.json", "[1, ", "is not JSON (Expecting value at line 1, column 5)"),
        ("d.json", '{"prompt": "p"}', "must hold a list of rows, not an object"),
        ("d.json", '[{"prompt": "p"}, 3]', "row 2: a row must be an object with named columns, not a number"),
        ("d.csv", "", "has no rows"),
        ("d.csv", "prompt,answer\n", "has no rows"),
        ("d.csv", "prompt,answer\na,b\nc\n", "row 2: it does not have the 2 columns of the header"),
        ("d.csv", "prompt,answer\na,b,c\n", "row 1: it does not have the 2 columns of the header"),
        ("d.csv", 'prompt\n"a"b\n', "row 1: not CSV"),
        ("d.csv", "question,reply\na,b\n", "row 1: no column 'prompt'; it has question, reply"),
        ("d.txt", "hello", "of an unknown kind"),
        ("d.jsonl", b"\xff\xfe{", "is not UTF-8 text (byte 0)"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_rows(str(path))
    assert message in str(caught.value) and name in str(caught.value)


def test_missing_sources():
    with pytest.raises(UserError, match=r"no data file 'nowhere/d\.jsonl'"):
        load_rows("nowhere/d.jsonl")
    with pytest.raises(UserError, match="no data 'nonsense'"):
        load_rows("nonsense")


# --- the test split --------------------------------------------------------------------------------------------------


def prompts(rows):
    return {json.dumps(row["prompt"]) for row in rows}


def test_a_tenth_is_held_out_and_prompts_stay_together():
    rows = many(1000) + many(500, again=True)
    made = DatasetTask(rows)
    assert not prompts(made.train_rows) & prompts(made.test_rows)
    assert len(made.train_rows) + len(made.test_rows) == 1500
    assert 70 <= len(prompts(made.test_rows)) <= 130
    counts = Counter(row["prompt"] for row in made.train_rows + made.test_rows)
    assert counts == Counter(row["prompt"] for row in rows)


def test_the_split_ignores_order_and_other_rows():
    small, large = DatasetTask(many(500)), DatasetTask(list(reversed(many(1000))))
    assert prompts(small.test_rows) <= prompts(large.test_rows)
    assert prompts(small.train_rows) <= prompts(large.train_rows)


@pytest.mark.parametrize("count", range(2, 12))
def test_small_data_has_both_splits(count):
    for first in range(5):
        made = DatasetTask([{"prompt": f"{first}-{i}"} for i in range(count)])
        assert made.train_rows and made.test_rows and not prompts(made.train_rows) & prompts(made.test_rows)


def test_one_prompt_cannot_be_split():
    with pytest.raises(UserError, match="the same prompt"):
        DatasetTask([{"prompt": "p", "n": 1}, {"prompt": "p", "n": 2}])


def test_test_data_of_its_own(tmp_path, caplog):
    train, test = write(tmp_path / "train.jsonl", many(10)), write(tmp_path / "test.jsonl", many(3))
    with caplog.at_level(logging.WARNING):
        made = DatasetTask(train, test)
    assert [r["prompt"] for r in made.test_rows] == ["question 0", "question 1", "question 2"]
    assert len(made.train_rows) == 7 and not prompts(made.train_rows) & prompts(made.test_rows)
    assert "3 rows of" in caplog.text
    with pytest.raises(UserError, match=r"Every prompt of .* is in the test data too"):
        DatasetTask(train, train)


# --- the stream ------------------------------------------------------------------------------------------------------


def test_the_stream_is_a_new_order_each_epoch_and_needs_no_state():
    made = DatasetTask(many(50))
    size = len(made.train_rows)
    whole = made.rows("train", 3, 0, 3 * size)
    epochs = [[row["prompt"] for row in whole[i * size : (i + 1) * size]] for i in range(3)]
    assert all(sorted(epoch) == sorted(row["prompt"] for row in made.train_rows) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert DatasetTask(many(50)).rows("train", 3, size - 5, 12) == whole[size - 5 : size + 7]  # over an epoch's end
    assert made.rows("train", 4, 0, size) != whole[:size]
    assert prompts(made.rows("test", 3, 0, 200)) == prompts(made.test_rows)


# --- answers and rewards ---------------------------------------------------------------------------------------------


def test_the_checker_follows_the_answers():
    assert DatasetTask(many(5)).checker == "numeric"
    words = [{"prompt": f"p{i}", "answer": f"word {i}"} for i in range(5)]
    made = DatasetTask(words)
    assert made.checker == "exact" and [r.name for r in made.rewards] == ["exact"]
    assert made.correct(words[1], " word 1 ") and not made.correct(words[1], "the word 1")
    assert DatasetTask(words, checker="contains").correct(words[1], "the word 1")
    assert DatasetTask([{"prompt": f"p{i}", "answer": i} for i in range(5)]).checker == "numeric"
    nothing = DatasetTask([{"prompt": f"p{i}"} for i in range(5)])
    assert nothing.checker is None and nothing.rewards == [] and nothing.expected({"prompt": "p0"}) is None
    with pytest.raises(UserError, match="needs a column 'answer' or 'solution'"):
        nothing.correct({"prompt": "p0"}, "x")
    with pytest.raises(UserError, match=r"no checker 'numerc'\. Did you mean 'numeric'"):
        DatasetTask(words, checker="numerc")
    with pytest.raises(UserError, match="checker 'exact' needs a column"):
        DatasetTask([{"prompt": f"p{i}"} for i in range(5)], checker="exact")
    with pytest.raises(UserError, match="max_tokens"):
        DatasetTask(words, max_tokens=0)


def test_the_users_reward_decides_where_no_checker_can():
    def polite(prompts, completions, tone, **columns):
        return [float(c.startswith(t)) for c, t in zip(completions, tone, strict=True)]

    rows = [{"prompt": f"p{i}", "tone": "please"} for i in range(5)]
    made = DatasetTask(rows, rewards=[Reward("polite", polite, 0.5)])
    assert [r.name for r in made.rewards] == ["polite"]
    assert made.correct(rows[0], "please do") and not made.correct(rows[0], "do")
    worded = [{**row, "answer": "a long text"} for row in rows]
    assert DatasetTask(worded, rewards=[Reward("polite", polite)]).correct(worded[0], "please do")


def test_worked_completions():
    made = DatasetTask(many(5))
    assert made.worked({"prompt": "p", "solution": "because, 3", "answer": 3}) == "because, 3"
    assert made.worked({"prompt": "p", "answer": 3}) == "3"
    assert made.worked({"prompt": "p", "completion": [{"role": "assistant", "content": "ok"}]}) == "ok"
    with pytest.raises(
        UserError, match="needs a column 'solution', 'completion' or 'answer' in the data; it has prompt"
    ):
        made.worked({"prompt": "p", "solution": None})


def test_fingerprint_follows_the_rows():
    made = DatasetTask(many(20))
    assert made.fingerprint() == DatasetTask(many(20)).fingerprint()
    assert made.fingerprint() != DatasetTask(many(21)).fingerprint()
    assert made.fingerprint() != DatasetTask(many(20), max_tokens=8).fingerprint()
