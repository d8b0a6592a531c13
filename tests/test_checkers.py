"""Answers and checkers: what a column holds, which number a text says, and that each answer is judged by itself."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyrl.errors import UserError
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import math_process
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.checkers import CHECKERS, accepted, is_number, last_number, same_number
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.rewards import built_in, load_reward


def numbered(odd: Any, count: int = 40, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose answers are their numbers, but for row 8."""
    return [{"prompt": f"question {i}", "answer": odd if i == 7 else i, **columns} for i in range(count)]


def odd_row(task: DatasetTask) -> dict[str, Any]:
    return next(row for row in [*task.train_rows, *task.test_rows] if row["prompt"] == "question 7")


# ------------------------------------------------------------------------------------------------------ each by itself


ODD = [
    ("1/2", "It is 1/2.", "It is 2."),
    ("1/2", "It is 0.5", "1"),
    ("18.", "The answer is 18.", "The answer is 17."),
    ("50%", "it is 50%", "5%"),
    ("3e8", "3e8 m/s", "It is 8"),
    ("3e8", "300,000,000", "3"),
    (1e16, "10000000000000000", "16"),
    (1e-7, "It is 0.0000001", "7"),
    (float("inf"), "inf", "7"),
    ("N/A", "N/A", "7"),
    ("\\boxed{5}", "so \\boxed{5} of 9", "so 9"),
    ("$\\frac{3}{4}$", "It is $\\dfrac34$", "4"),
    ("2 1/2", "2.5", "1/2"),
    ("12,34", "12,34", "34"),
    (["7", "seven"], "seven", "eight"),
    (True, "true", "1"),
]


@pytest.mark.parametrize(("odd", "right", "wrong"), ODD)
def test_one_odd_answer_leaves_the_others_as_they_are(odd: Any, right: str, wrong: str) -> None:
    task = DatasetTask(numbered(odd))
    row = odd_row(task)
    assert task.correct(row, right) and not task.correct(row, wrong)
    other = {"prompt": "question 5", "answer": 5}
    assert task.correct(other, "The answer is 5.") and not task.correct(other, "5 or 6")
    told = " ".join(task.notices)
    if all(map(is_number, accepted(odd))):
        assert task.checker == "numeric" and told == ""
    else:
        assert "1 of 40 answers is no number and is compared as text" in told and "row 8)" in told
    columns = {"answer": [odd, 5]}
    (reward,) = task.rewards
    assert reward.function(prompts=["p"] * 2, completions=[right, "so 5"], **columns) == [1, 1]
    assert reward.function(prompts=["p"] * 2, completions=[wrong, "so 6"], **columns) == [0, 0]


NOTHING = [None, "", "  ", math.nan, np.float64("nan"), [], [None, math.nan, ""]]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_rows_without_an_answer_are_left_out_and_counted(nothing: Any) -> None:
    task = DatasetTask(numbered(nothing))
    assert task.checker == "numeric" and len(task.train_rows) + len(task.test_rows) == 39 and len(task.left_out) == 1
    assert "1 row of the data is left out for having no answer (the data, row 8)" in task.left_out.sentences()[0]
    assert built_in("auto").function(prompts=["p"], completions=["nan"], answer=[nothing]) == [None]
    # a reward of the user's own judges them
    judged = DatasetTask(numbered(nothing), rewards=[Reward("own", lambda prompts, completions, **c: [1.0])])
    assert len(judged.left_out) == 0 and judged.expected(odd_row(judged)) is None
    assert judged.judged(odd_row(judged), "x", {"own": 1.0}) and not judged.judged(odd_row(judged), "x", {"own": 0.0})


def test_where_no_row_has_an_answer_there_is_no_checker() -> None:
    task = DatasetTask([{"prompt": f"p{i}", "answer": None} for i in range(9)])
    assert task.checker is None and task.rewards == [] and len(task.left_out) == 0


def test_the_users_reward_judges_what_is_no_number() -> None:
    task = DatasetTask(numbered("a word"), rewards=[Reward("own", lambda prompts, completions, **c: [0.0])])
    assert task.judged(odd_row(task), "nothing like it", {"own": 1.0})
    other = {"prompt": "question 5", "answer": 5}
    assert task.judged(other, "It is 5", {"own": 0.0}) and not task.judged(other, "It is 6", {"own": 1.0})
    assert "is judged by the first reward, the others as numbers" in task.notices[0]


def test_a_number_of_any_length() -> None:
    assert accepted(10**5000) == ["1" + "0" * 5000] and is_number("9" * 6000)


# --------------------------------------------------------------------------------------------------- several answers


@pytest.mark.parametrize(
    ("truth", "texts"),
    [
        (["a 1", "b 1"], ["a 1", "b 1"]),
        (("a", "a"), ["a"]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([1, 2.5], ["1", "2.5"]),
        ({"value": "Rome", "aliases": ["Roma", "Rome"]}, ["Rome", "Roma"]),
        ({"aliases": ["Roma"], "value": "Rome", "normalized_value": "rome", "type": "WikipediaEntity"},
         ["Rome", "Roma", "rome"]),
        ({"text": ["in 1066", "1066"], "answer_start": [3, 6]}, ["in 1066", "1066"]),
        ({"role": "assistant", "content": "yes"}, ["yes"]),
        ([{"role": "assistant", "content": "yes"}], ["yes"]),
        (np.int64(7), ["7"]),
        (False, ["False", "false"]),
        (np.float64(2.5), ["2.5"]),
    ],
)  # fmt: skip
def test_what_several_answers_mean(truth: Any, texts: list[str]) -> None:
    assert sorted(accepted(truth)) == sorted(texts)
    task = DatasetTask([{"prompt": f"p{i}", "answer": truth} for i in range(9)])
    for text in texts:
        assert task.correct(task.train_rows[0], text)
        assert task.rewards[0].function(prompts=["p"], completions=[text], answer=[truth]) == [1]
    assert not task.correct(task.train_rows[0], "neither")
    assert str(task.expected(task.train_rows[0])).startswith(texts[0])


@pytest.mark.parametrize(
    ("truth", "what"),
    [
        ({"id": 3, "name": "x"}, "an object with id, name"),
        ({}, "an object with nothing in it"),
        ({"value": "x", "unit": "m"}, "an object with value, unit"),
        ([["a"]], "a list that holds a list"),
        ([{"value": "a"}], "a list that holds an object"),
        (b"bytes", "of the type bytes"),
    ],
)
def test_what_can_be_no_answer_is_refused_with_its_row(truth: Any, what: str) -> None:
    with pytest.raises(UserError, match=rf"the data, row 8: the column 'answer' is {what}, which is no answer"):
        DatasetTask(numbered(truth))
    own = [Reward("own", lambda prompts, completions, **columns: [1.0])]
    assert odd_row(DatasetTask(numbered(truth), rewards=own))["answer"] is truth  # the user's own affair


def test_a_judged_response_is_no_truth() -> None:
    rows = [{"prompt": f"p{i}", "completion": "good", "label": i % 2 == 0} for i in range(9)]
    assert DatasetTask(rows).checker is None
    assert DatasetTask([{**row, "label": f"class {i}"} for i, row in enumerate(rows)]).checker == "exact"
    assert DatasetTask([{**row, "answer": 3} for row in rows]).checker == "numeric"


# ---------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3e8", "3e8"),
        ("about -1.5E-3 m", "-0.0015"),
        ("1e-07", "1e-7"),
        ("3e8x", "8"),
        ("1e9999", "9999"),
        ("on 1/2/2020", "2020"),
        ("see a/2", "2"),
        ("1/0", "0"),
        ("1.5/2", "2"),
        ("6/2=3", "3"),
        ("in 2020 1/2 of it", "1/2"),
        ("-3/4", "-3/4"),
        ("2 3/4", "11/4"),
        ("\\frac{10}{4}", "5/2"),
        ("1\\frac{1}{2}", "3/2"),
        ("\\boxed{7} is it, not 9", "7"),
        ("\\boxed{\\text{no}}", None),
        ("\\boxed{\\frac{1}{4}}.", "1/4"),
        ("1{,}000", "1000"),
        ("50\\%", "50"),
    ],
)
def test_numbers_in_texts(text: str, number: str | None) -> None:
    wanted = None if number is None else Fraction(number) if "/" in number else Decimal(number)
    assert last_number(text) == wanted


def test_percentages_with_and_without_their_sign() -> None:
    for completion, answer in (("50", "50%"), ("50%", "50"), ("0.5", "50%"), ("50 %", "0.5"), ("1/2", "50%")):
        assert same_number(completion, answer), (completion, answer)
    for completion, answer in (("5000", "50%"), ("5%", "50%"), ("0.005", "50%"), ("50%", "5000")):
        assert not same_number(completion, answer), (completion, answer)


@pytest.mark.parametrize(
    "text", ["18.", "$18", "+18", "-18", "$-18", "$18$", "\\(18\\)", "#### 18", " 18 ", "1,800", ".5"]
)
def test_what_is_one_number(text: str) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", ["18 apples", "18-19", "nan", "inf", "1,2", "٣", "one", "", "18..", "0x12"])
def test_what_is_not(text: str) -> None:
    assert not is_number(text)


# ------------------------------------------------------------------------------------------------- asking for one


def test_a_checker_that_cannot_use_an_answer_names_its_row(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(json.dumps(row) + "\n" for row in numbered("a word")))  # a blank line behind each row
    for asked in ({"checker": "numeric"}, {"rewards": [built_in("numeric")]}):
        with pytest.raises(UserError, match=r"d\.jsonl, row 15: the column.*no use to the checker 'numeric': 'a word'"):
            DatasetTask(str(file), **asked)
    task = DatasetTask(str(file), checker="contains")
    assert task.correct({"prompt": "p", "answer": "a word"}, "what a word!") and task.rewards[0].name == "contains"


def test_a_checker_is_for_data_of_ones_own() -> None:
    with pytest.raises(UserError, match="--checker is for data of your own; give --dataset"):
        RunConfig(method="grpo", task="addition", checker="exact")
    assert RunConfig(method="grpo", dataset="d.jsonl", checker="exact").checker == "exact"


def test_every_checker_is_a_reward() -> None:
    for name in set(CHECKERS) - {"math"}:
        assert load_reward(f"{name}=2").checker == name


# ------------------------------------------------------------------------------------------------------ mathematics


there = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra math")


@there
@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("so \\boxed{\\frac{1}{2}}", "0.5", True),
        ("It is 1/2", "\\frac{1}{2}", True),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", True),
        ("$x^2+2x+1$", "(x+1)^2", True),
        ("\\boxed{\\{1, 2\\}}", "\\{2, 1\\}", True),
        ("\\boxed{[0, 1)}", "[0,1)", True),
        ("\\boxed{(1,5)}", "5", False),
        ("3e8", "300000000", True),
        ("it is 3", "4", False),
        ("London", "Paris", False),
        ("Paris", "Paris", True),
        ("", "5", False),
    ],
)
def test_mathematics(completion: str, answer: str, right: bool) -> None:
    assert CHECKERS["math"](completion, answer) is right


@there
def test_mathematics_that_never_ends_is_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(math_process, "SECONDS", 0.5)
    with caplog.at_level(logging.WARNING):
        assert not CHECKERS["math"]("\\boxed{9^{9^{9^9}}}", "\\frac{1}{3}")
    assert "took too long: wrong" in caplog.text
    monkeypatch.undo()
    assert CHECKERS["math"]("\\boxed{\\frac12}", "0.5")  # the next one is answered again


def test_mathematics_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for ask in (lambda: load_reward("math"), lambda: DatasetTask(numbered(7), checker="math")):
        with pytest.raises(UserError, match=r"needs the extra 'math': pip install 'polyrl\[math\]'"):
            ask()
