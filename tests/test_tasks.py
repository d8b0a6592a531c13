"""Built-in language tasks: rows, splits, worked completions, checkers, the calculator tool, the gold reward."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrl.errors import UserError
from polyrl.tasks.language import TASKS, task, tool_spans
from polyrl.tasks.language.addition import Addition
from polyrl.tasks.language.base import GeneratedTask
from polyrl.tasks.language.calculator import Calculator, CalculatorTool
from polyrl.tasks.language.countdown import Countdown
from polyrl.tasks.language.expression import evaluate
from polyrl.tasks.language.strings import Reverse, ReverseDense, Sort, preference_pairs

GENERATED = sorted(name for name in TASKS if isinstance(task(name), GeneratedTask))
"""Tasks that make their own problems, in a range of difficulty."""


def every_task() -> list[GeneratedTask]:
    """Every built-in task at its default and at both ends of its range."""
    made = []
    for name in GENERATED:
        default = task(name)
        assert isinstance(default, GeneratedTask)
        ends = (default.difficulties.start, default.difficulties.stop - 1)
        made += [default, *(task(name, difficulty=d) for d in ends)]
    return made  # type: ignore[return-value]


def columns_of(row):
    """Return the columns of a batch of one row."""
    return {name: [value] for name, value in row.items() if name != "prompt"}


each_task = pytest.mark.parametrize("made", every_task(), ids=lambda t: f"{t.name}-{t.difficulty}")


@each_task
@pytest.mark.parametrize("split", ["train", "test"])
def test_worked_completions_are_right_and_fit(made, split):
    for row in made.rows(split, 3, 0, 200):
        worked = made.worked(row)
        assert made.correct(row, worked), (row, worked)
        assert made.correct(row, f"  {worked}\n")
        assert len(worked) <= made.longest() < made.max_tokens
        assert made.expected(row) in worked
        assert re.fullmatch(r"[ -~]+", row["prompt"] + worked)  # printable ASCII: small character models cover it


@each_task
def test_wrong_answers_get_no_credit(made):
    for row in made.rows("train", 0, 0, 50):
        worked, answer = made.worked(row), made.expected(row)
        for wrong in ("", worked[:-1], worked + "0", worked + "x", answer + " " + answer, "the answer is " + answer):
            assert not made.correct(row, wrong), (row, wrong)
            if not made.needs_model:
                assert made.rewards[0].function(prompts=[row["prompt"]], completions=[wrong], **columns_of(row))[0] < 1


@each_task
def test_stream_is_a_function_of_split_seed_and_number(made):
    whole = made.rows("train", 7, 0, 30)
    assert made.rows("train", 7, 10, 20) == whole[10:]
    assert [made.rows("train", 7, i, 1)[0] for i in range(30)] == whole
    if made.difficulty > made.difficulties.start:
        assert made.rows("train", 8, 0, 30) != whole
    assert made.rows("test", 7, 0, 30) != whole
    assert made.rows("train", 7, 5, 0) == []


@each_task
def test_no_problem_is_in_both_splits(made):
    train = {made.canonical(r) for seed in range(3) for r in made.rows("train", seed, 0, 300)}
    test = {made.canonical(r) for seed in range(3) for r in made.rows("test", seed, 0, 300)}
    assert train and test and not train & test


@pytest.mark.parametrize("name", GENERATED)
def test_about_one_problem_in_five_is_a_test_problem(name):
    made = task(name)
    rows = [made.problem(random.Random(f"{i}")) for i in range(3000)]
    share = sum(made.split_of(row) == "test" for row in rows) / len(rows)
    assert 0.16 < share < 0.24


@pytest.mark.parametrize("name", GENERATED)
def test_splits_agree_between_difficulties(name):
    """A problem that two difficulties can make is on one side in both."""
    default = task(name)
    other = task(name, difficulty=default.difficulty + 1)
    train = {default.canonical(r) for r in default.rows("train", 0, 0, 500)}
    assert not train & {other.canonical(r) for r in other.rows("test", 0, 0, 500)}


def test_addition_split_cannot_be_crossed_by_swapping():
    made = Addition(difficulty=1)
    sides = {
        split: {(r["a"], r["b"]) for s in range(5) for r in made.rows(split, s, 0, 200)} for split in ("train", "test")
    }
    swapped = {(b, a) for a, b in sides["test"]}
    assert not (sides["test"] | swapped) & sides["train"]
    assert len(sides["train"] | sides["test"]) == 100  # all problems of one digit are on one side or the other


def test_mirrored_words_orders_and_commuted_chains_are_one_problem():
    word, digits = Reverse(), Sort()
    assert word.canonical({"answer": "abc"}) == word.canonical({"answer": "cba"}) != word.canonical({"answer": "acb"})
    assert digits.canonical({"digits": "312"}) == digits.canonical({"digits": "123"})
    assert Reverse().split_of({"answer": "qwerty"}) == ReverseDense().split_of({"answer": "qwerty"})
    chain = Calculator()

    def canonical(first, *steps):
        return chain.canonical({"first": first, "steps": [list(step) for step in steps]})

    assert canonical(3, ("+", 4)) == canonical(4, ("+", 3)) != canonical(3, ("*", 4))
    assert canonical(9, ("+", 2), ("-", 3)) == canonical(9, ("-", 3), ("+", 2)) == canonical(2, ("+", 9), ("-", 3))
    assert canonical(9, ("-", 3), ("*", 2)) != canonical(9, ("*", 2), ("-", 3))
    assert canonical(2, ("*", 3), ("+", 1)) == canonical(3, ("*", 2), ("+", 1)) != canonical(1, ("*", 2), ("+", 3))


def test_addition_trace_in_full():
    made = Addition(difficulty=3)
    row = {"prompt": "47+85=", "a": 47, "b": 85, "answer": "132"}
    assert made.worked(row) == "75=12;48=13;132"
    assert made.worked({"a": 470, "b": 85, "answer": "555"}) == "05=05;78=15;40=05;555"
    for right in ("132", "75=12;48=13;132", " 132 ", "nonsense;132\n"):
        assert made.correct(row, right)
    for wrong in ("0132", "1 32", "132;", "75=12;48=13;132 132", "x132", "+132", "٣;١٣٢"):
        assert not made.correct(row, wrong)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1))
def test_addition_trace_is_arithmetic(a, b):
    *steps, answer = Addition(difficulty=12).worked({"a": a, "b": b}).split(";")
    assert int(answer) == a + b
    carry = 0
    for step in steps:
        assert int(step[0]) + int(step[1]) + carry == int(step[3:])
        carry = int(step[3])
    assert answer.lstrip("0") == (str(carry) + "".join(step[4] for step in reversed(steps))).lstrip("0")


def test_addition_operands_vary_in_length():
    rows = Addition(difficulty=4).rows("train", 0, 0, 400)
    lengths = {(len(str(r["a"])), len(str(r["b"]))) for r in rows}
    assert lengths == set(itertools.product(range(1, 5), repeat=2))


def test_sort_trace_in_full():
    made = Sort()
    row = {"digits": "52814", "answer": "12458"}
    assert made.worked(row) == "5;25;258;1258;12458"
    assert not made.correct(row, "5;25;258;1258")


def test_countdown_accepts_every_solution_and_nothing_else():
    made = Countdown(difficulty=3, format_reward=True)
    row = {"prompt": "3 7 12 to 33=", "numbers": [3, 7, 12], "target": 33, "solution": "7*3=21;21+12=33;(7*3)+12"}
    for right in ("7*3+12", "12+3*7", "(12)+(3*7)", "whatever;12 + 7*3"):
        assert made.correct(row, right), right
    for wrong in ("33", "21+12", "7*3+12+0", "7*3", "7*3+12;", "7*3+12=33", "7*3- -12", "(7*3+12", "3*11", "12+3*7*1"):
        assert not made.correct(row, wrong), wrong
    format_score = made.rewards[1]
    assert (format_score.name, format_score.weight) == ("format", 0.1)
    scores = format_score.function(prompts=[""] * 3, completions=["3+7+12", "3+7", "7*3+12"], numbers=[[3, 7, 12]] * 3)
    assert scores == [1.0, 0.0, 1.0]
    assert len(Countdown().rewards) == 1


@pytest.mark.parametrize("difficulty", [2, 3, 6])
def test_countdown_trace_is_arithmetic(difficulty):
    for row in Countdown(difficulty=difficulty).rows("train", 0, 0, 100):
        *steps, expression = row["solution"].split(";")
        assert len(steps) == difficulty - 1
        for step in steps:
            left, right = step.split("=")
            assert evaluate(left)[0] == int(right) > 0
        value, used = evaluate(expression)
        assert value == row["target"] == int(steps[-1].split("=")[1])
        assert sorted(used) == sorted(row["numbers"])


def test_evaluate_reads_arithmetic():
    assert evaluate("(37+58)*4-19") == (361, [37, 58, 4, 19])
    assert evaluate(" 2*(3-5) ") == (-4, [2, 3, 5])


NOT_ARITHMETIC = (
    *("", " ", "2**9", "1//2", "1/2", "-3", "3+-4", "1_0", "1e3", "0x1", "x", "1,2", "1.5", "f(2)", "2(3)", "()", "07"),
    *("9" * 201, "(" * 150, "1+" * 90, "1\n+2", "__import__('os')", "٣+٤", "1+2;"),
)


@pytest.mark.parametrize("text", NOT_ARITHMETIC)
def test_evaluate_refuses_everything_else(text):
    with pytest.raises(ValueError):
        evaluate(text)


def test_calculator_task_and_tool():
    made, tool = Calculator(), CalculatorTool()
    assert made.tool is not None and made.tool.stop == "]"
    row = {"first": 37, "steps": [["+", 58], ["*", 4], ["-", 19]], "answer": "361"}
    assert made.worked(row) == "[37+58]=95;[95*4]=380;[380-19]=361;361"
    assert made.correct(row, "[(37+58)*4-19]=361;361")
    assert tool.reply("[37+58]=95;[95*4]") == "=380;"
    assert tool.reply("[2-5]") == "=-3;"
    assert tool.reply("12]") is None  # no call here
    assert tool.reply("[1+2]=3;]") is None
    assert tool.reply("[1+2") is None
    assert tool.reply("") is None
    errors = ("[]", "[1/0]", "[2**9]", "[9" + "9" * 70 + "]", "[99999999*99999999]", "[x]", "[(1]", "[import os]")
    for text in errors:
        assert tool.reply(text) == "=error;", text


def test_tool_spans_are_what_the_tool_wrote():
    text = "[37+58]=95;[95*4]=380;] [1+1]=3;380"
    spans = tool_spans(CalculatorTool(), text)
    assert [text[start:end] for start, end in spans] == ["=95;", "=380;"]  # "=3;" is not what the tool would say
    assert tool_spans(CalculatorTool(), "361") == tool_spans(CalculatorTool(), "") == []
    for row in Calculator(difficulty=8).rows("train", 0, 0, 20):
        assert len(tool_spans(CalculatorTool(), Calculator().worked(row))) == 8


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_calculator_tool_never_raises(text):
    reply = CalculatorTool().reply(f"[{text}]")
    assert reply is None or re.fullmatch(r"=(-?[0-9]{1,15}|error);", reply)


@pytest.mark.parametrize("difficulty", [1, 3, 8])
def test_calculator_prompt_has_the_answer(difficulty):
    for row in Calculator(difficulty=difficulty).rows("test", 0, 0, 100):
        value, used = evaluate(row["prompt"].removesuffix("="))
        assert str(value) == row["answer"] and len(used) == difficulty + 1


def test_dense_gold_by_hand():
    made = ReverseDense(difficulty=4)
    row = {"prompt": "reverse abcd=", "answer": "dcba"}
    expected = {"dcba": 1.0, "dcbx": 0.75, "dcb": 0.75 - 0.05, "dcbaa": 0.95, "": 0.0, "xxxx": 0.0, "d" * 30: 0.0}
    for completion, gold in expected.items():
        assert made.gold(row, completion) == pytest.approx(gold), completion
    assert made.rewards[0].function(prompts=["p"], completions=["dcbx"], answer=["dcba"]) == [0.75]
    assert made.gold(row, "dcba") == 1 and made.correct(row, "dcba") and not made.correct(row, "dcbaa")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abc", max_size=12))
def test_dense_gold_is_within_its_range_and_1_only_when_right(text):
    made = ReverseDense(difficulty=4)
    row = {"answer": "abca"}
    assert 0 <= made.gold(row, text) <= 1
    assert (made.gold(row, text) == 1) == made.correct(row, text)


def test_preference_pairs_follow_bradley_terry():
    made = ReverseDense(difficulty=4)
    size = 4000
    rows = [{"prompt": "reverse abcd=", "answer": "dcba"}] * size
    good, bad = ["dcba"] * size, ["dcxx"] * size  # gold 1 and 0.5

    def share(temperature, noise=0.0, a=good, b=bad):
        pairs = preference_pairs(made, rows, a, b, random.Random(0), temperature, noise)
        return sum(p["chosen"] == a[0] for p in pairs) / size

    assert share(0.5) == pytest.approx(0.7311, abs=0.025)  # sigmoid(0.5 / 0.5)
    assert share(0.5, a=bad, b=good) == pytest.approx(0.2689, abs=0.025)
    assert share(0.0) == 1.0
    assert share(0.0, noise=0.25) == pytest.approx(0.75, abs=0.025)
    assert share(1e-6) == 1.0  # does not overflow
    assert share(0.0, a=["dcba"] * size, b=["dcba "] * size) == pytest.approx(0.5, abs=0.025)  # ties are tossed
    pair = preference_pairs(made, rows[:1], good[:1], bad[:1], random.Random(0), 0.0)[0]
    assert pair == {
        "prompt": "reverse abcd=",
        "chosen": "dcba",
        "rejected": "dcxx",
        "score_chosen": 1.0,
        "score_rejected": 0.5,
    }


def test_fingerprint_tells_tasks_and_settings_apart():
    prints = [made.fingerprint() for name in GENERATED for made in (task(name), task(name, start_accuracy=0.7))]
    prints += [task("addition", difficulty=5).fingerprint()]
    prints += [task(f"garbage-tail({how})").fingerprint() for how in ("pairs=100", "pairs=99", "instance=1")]
    assert len(set(prints)) == len(prints)
    assert task("addition").fingerprint() == task("addition").fingerprint()


def test_unknown_names_and_settings_are_told():
    with pytest.raises(UserError, match=r"no task 'aditon'\. Did you mean 'addition'"):
        task("aditon")
    with pytest.raises(UserError, match=r"no setting 'dificulty'\. Did you mean 'difficulty'"):
        task("addition", dificulty=3)
    for wrong in (0, 13):
        with pytest.raises(UserError, match="whole number from 1 to 12"):
            task("addition", difficulty=wrong)
    for wrong in (4.5, True, None):
        with pytest.raises(UserError, match=f"difficulty is '{wrong}' but must be an int"):
            task("addition", difficulty=wrong)
    assert task("addition", difficulty=4.0).difficulty == 4  # as its text would be
    with pytest.raises(UserError, match="start_accuracy"):
        task("addition", start_accuracy=1.5)
    with pytest.raises(ValueError, match="split"):
        task("addition").rows("validation", 0, 0, 1)


def test_rows_do_not_depend_on_the_process():
    """Hash randomization and other streams leave no trace."""
    code = "from polyrl.tasks.language import task, TASKS\nfor n in TASKS: print(task(n).fingerprint())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert outputs == {"".join(task(n).fingerprint() + "\n" for n in TASKS)}


def test_language_tasks_do_not_import_torch():
    code = (
        "import sys, polyrl.tasks.language.rewards, polyrl.tasks.language.dataset\n"
        "from polyrl.tasks.language import task, TASKS\n"
        "for n in TASKS: task(n)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("made", every_task(), ids=lambda t: t.name)
def test_settings_stand_in_parentheses_behind_the_name(made: GeneratedTask) -> None:
    """Every kind that a task's settings may have can be read, whatever else its class states."""
    assert task(f"{made.name}(difficulty={made.difficulty})").name == made.name
