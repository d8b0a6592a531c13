"""Rewards: the built-in checkers, loading the user's functions, and the runner that survives them."""

from __future__ import annotations

import functools
import math
import re
import signal
import sys
import textwrap
import threading
import time
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyrl.errors import UserError
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.checkers import last_number, same_number
from polyrl.tasks.language.reward_runner import RewardError, RewardFailure, RewardRunner
from polyrl.tasks.language.rewards import built_in, check_signature, load_reward
from polyrl.tasks.language.run_facts import ARGUMENTS

# --- checkers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("She has 3 eggs and pays $18.", 18),
        ("18.0", 18),
        ("$1,234.50", "1234.5"),
        ("1,234,567", 1234567),
        ("12,34", 34),
        ("-5", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("10-5", 5),
        ("(10)-5", 5),
        ("10-5=-2", -2),
        ("minus \u22122", -2),
        (".5 of it", "0.5"),
        ("It is 7, or 8\n#### 9 apples", 9),
        ("5 #### 6 #### 7", 7),
        ("it is 7 ####", None),
        ("no number", None),
        ("", None),
        ("9" * 6000, "9" * 6000),
        ("٣", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_every_way_to_write_a_number_is_the_same(n):
    for text in (f"{n}", f"{n:,}", f"{n}.00", f"so the answer is {n}.", f"it is 3\n#### {n}", f"= {n} "):
        assert same_number(text, str(n))
        assert not same_number(text, str(n + 1))


def test_built_in_rewards_by_hand():
    prompts, completions = ["p"] * 4, ["so 18", "18", "18 or 19", ""]
    assert built_in("numeric").function(prompts=prompts, completions=completions, answer=["18"] * 4) == [1, 1, 0, 0]
    assert built_in("exact").function(prompts=prompts, completions=completions, answer=[" 18\n"] * 4) == [0, 1, 0, 0]
    assert built_in("contains").function(prompts=prompts, completions=completions, answer=["18"] * 4) == [1, 1, 1, 0]
    assert built_in("numeric").function(prompts=["p"], completions=["18"], answer=[18]) == [1]
    assert built_in("exact").function(prompts=["p"], completions=["x"], solution=[None]) == [None]
    messages = [[{"role": "assistant", "content": "18"}]]
    assert built_in("exact").function(prompts=["p"], completions=messages, solution=["18"]) == [1]
    with pytest.raises(UserError, match=r"'numeric' needs a column 'answer'.*it has level"):
        built_in("numeric").function(prompts=["p"], completions=["18"], level=[1])


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reward_file(tmp_path):
    (tmp_path / "beside.py").write_text("SCALE = 2.0\n")
    file = tmp_path / "my_rewards.py"
    file.write_text(
        textwrap.dedent(
            """
            import beside
            def length(prompts, completions, **kwargs): return [beside.SCALE * len(c) for c in completions]
            def trl(completions, answer, **kwargs): return [float(c == a) for c, a in zip(completions, answer)]
            def closed(prompts, completions, answer): return [float(c == a) for c, a in zip(completions, answer)]
            def alone(completion): return 1.0
            def by_position(prompts, completions, /, **kwargs): return []
            constant = 3
            """
        )
    )
    return file


def test_load_from_a_file_with_a_weight(reward_file):
    before = list(sys.path)
    reward = load_reward(f"{reward_file}:length=0.5")
    assert (reward.name, reward.weight) == ("length", 0.5)
    assert reward.function(prompts=["p"], completions=["abc"]) == [6.0]
    assert sys.path == before
    assert load_reward(f"{reward_file}:length=-1e-1").weight == -0.1


def test_load_from_a_module_and_by_name(reward_file, monkeypatch):
    monkeypatch.chdir(reward_file.parent)
    assert load_reward("my_rewards:trl").name == "trl"
    assert load_reward("my_rewards.py:trl").weight == 1.0
    assert load_reward("numeric=2").weight == 2.0


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(f"def f(prompts, completions, **columns): return [{value}]\n")
    first, second = (load_reward(f"{tmp_path / folder / 'r.py'}:f") for folder in ("a", "b"))
    assert (first.function([], []), second.function([], [])) == ([1.0], [2.0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("numerc", "no reward 'numerc'. Did you mean 'numeric'"),
        ("numeric=much", "weight of the reward 'numeric' must be a number, not 'much'"),
        ("numeric=nan", "must be a number"),
        ("no_such_package.rewards:f", "module 'no_such_package.rewards' cannot be imported: ModuleNotFoundError"),
        ("nowhere/r.py:f", "no file 'nowhere/r.py'"),
        ("{file}:lenght", "no function 'lenght'. Did you mean 'length'"),
        ("{file}:constant", "not a function but an int"),
        ("{file}:alone", "does not accept 'prompts' and 'completions'"),
        ("{file}:by_position", "takes 'prompts' and 'completions' by position only"),
    ],
)
def test_loading_errors_are_one_sentence(reward_file, spec, message):
    with pytest.raises(UserError) as caught:
        load_reward(spec.format(file=reward_file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["def f(:", "1/0", "import no_such_thing", "raise SystemExit(3)"])
def test_a_file_that_does_not_load_is_told_and_forgotten(tmp_path, code):
    file = tmp_path / "broken.py"
    file.write_text(code)
    modules = set(sys.modules)
    with pytest.raises(UserError, match=r"broken\.py' cannot be imported: (Syntax|ZeroDiv|ModuleNot|SystemExit)"):
        load_reward(f"{file}:f")
    assert set(sys.modules) == modules


def test_signature_against_columns():
    def needs(completions, answer, level, hint=None, **columns):
        return [0.0]

    check_signature("needs", needs, ["answer", "level"])
    with pytest.raises(UserError, match="'needs' needs 'level', which the data does not have; its columns are answer"):
        check_signature("needs", needs, ["answer"])
    check_signature("partial", functools.partial(needs, level=1), ["answer"])
    with pytest.raises(UserError, match="'level'"):
        RewardRunner([Reward("needs", needs)])(["p"], ["c"], answer=["a"])


# --- running ---------------------------------------------------------------------------------------------------------


def per_sample(function):
    """Make a reward of a function of one completion."""

    def reward(prompts, completions, **columns):
        return [function(c) for c in completions]

    return reward


PROMPTS = [f"prompt {i}" for i in range(5)]
COMPLETIONS = ["a", "bb", "ccc", "dddd", "eeeee"]
LENGTH = Reward("length", per_sample(len))


def run(*rewards, on_error="drop", timeout=10.0, process="own", **columns):
    return RewardRunner(rewards, CallPolicy(on_error, timeout, process))(PROMPTS, COMPLETIONS, **columns)


def same(a, b):
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


def test_weighted_sum_leaves_out_what_does_not_apply():
    even = Reward("even", per_sample(lambda c: 1.0 if len(c) % 2 == 0 else None), weight=-2.0)
    scores = run(LENGTH, even)
    assert scores.total == [1, 2 - 2, 3, 4 - 2, 5]
    assert scores.parts["length"] == [1, 2, 3, 4, 5]
    assert same(scores.parts["even"], [math.nan, 1, math.nan, 1, math.nan])
    assert (scores.calls, scores.failures) == (5, [])
    assert RewardRunner([LENGTH])([], []).total == []


def test_columns_reach_the_functions_that_take_them():
    def closed(prompts, completions, answer):
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    def trl(completions, level, **kwargs):
        assert kwargs["prompts"] == PROMPTS and set(kwargs) == {"prompts", "answer", *ARGUMENTS}
        return level

    scores = run(Reward("closed", closed), Reward("trl", trl), answer=["a", "", "ccc", "", ""], level=[1, 2, 3, 4, 5])
    assert scores.parts == {"closed": [1, 0, 1, 0, 0], "trl": [1, 2, 3, 4, 5]}
    with pytest.raises(ValueError, match="'answer' has 2 values for 5 completions"):
        run(LENGTH, answer=["a", "b"])


def test_conversational_prompts_get_messages():
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(completions)
        return [1.0] * len(prompts)

    RewardRunner([Reward("r", reward)], CallPolicy(process="same"))(
        [[{"role": "user", "content": "hi"}], "plain"], ["yes", "no"]
    )
    assert seen == [[{"role": "assistant", "content": "yes"}], "no"]


def test_a_function_cannot_change_what_the_next_one_sees():
    def vandal(prompts, completions, **columns):
        size = len(completions)
        completions.clear()
        columns["answer"].clear()
        return [0.0] * size

    def judge(prompts, completions, answer, **columns):
        return [float(a == c) for a, c in zip(answer, completions, strict=True)]

    scores = run(Reward("vandal", vandal), Reward("judge", judge), answer=list(COMPLETIONS))
    assert scores.total == [1.0] * 5


def raising(c):
    if c == "ccc":
        raise RuntimeError("no\nthree")
    return 1.0


def test_the_culprit_is_found():
    scores = run(Reward("raising", per_sample(raising)), LENGTH)
    line = raising.__code__.co_firstlineno + 2
    assert [(f.row, f.reward) for f in scores.failures] == [(2, "raising")]
    assert re.fullmatch(rf"raised RuntimeError: no three \(.*test_rewards.py, line {line}\)", scores.failures[0].reason)
    assert same(scores.total, [2, 3, math.nan, 5, 6])
    assert math.isnan(scores.parts["raising"][2]) and scores.parts["length"][2] == 3
    scores = run(Reward("raising", per_sample(raising)), LENGTH, on_error="zero")
    assert scores.total == [2, 3, 0, 5, 6]


def test_stop_names_reward_row_prompt_and_reason():
    with pytest.raises(RewardError) as caught:
        run(Reward("raising", per_sample(raising)), on_error="stop")
    expected = (
        r"The reward 'raising' failed on row 3 of 5 in the batch \(prompt 'prompt 2'\): raised RuntimeError: no three"
    )
    assert re.fullmatch(rf"{expected} \(.*test_rewards.py, line \d+\)\.", str(caught.value))
    assert isinstance(caught.value, UserError)


def test_stop_shortens_the_prompt_and_reads_messages():
    chat = [{"role": "system", "content": "be short"}, {"role": "user", "content": "why " * 50}]
    with pytest.raises(RewardError) as caught:
        RewardRunner([Reward("nan", per_sample(lambda c: math.nan))])([chat], ["x"])
    assert "'why why" in str(caught.value) and "be short" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (-math.inf, "returned -inf"),
        (10**400, "returned inf"),
        ("1.0", "returned a str where a number or None belongs"),
        ([1.0], "returned a list where"),
        (np.array([1.0, 2.0]), "returned a ndarray where"),
        (1j, "returned a complex where"),
    ],
)
def test_what_is_no_finite_number_fails_on_its_sample(value, reason):
    scores = run(Reward("odd", per_sample(lambda c: value if c == "bb" else 1.0)))
    assert [f.row for f in scores.failures] == [1] and scores.failures[0].reason.startswith(reason)
    assert same(scores.total, [1, math.nan, 1, 1, 1])


@pytest.mark.parametrize("result", [[1.0] * 5, (1,) * 5, np.ones(5, np.float32), [np.float32(1)] * 5, [True] * 5])
def test_lists_and_numbers_of_other_libraries_are_fine(result):
    scores = run(Reward("fine", lambda prompts, completions: result))
    assert scores.total == [1.0] * 5 and all(type(v) is float for v in scores.total)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ([1.0] * 3, "returned 3 values for 5 completions where one for each belongs"),
        ([1.0], "returned 1 value for 5 completions where one for each belongs"),  # right on each sample alone
        (1.0, "returned a float where a list of numbers belongs, one for each completion"),
        (None, "returned None where a list"),
        ("11111", "returned a str where a list"),
        (np.float64(1), "returned a float64 where a list"),
    ],
)
def test_a_result_of_the_wrong_shape_is_told(result, reason):
    scores = run(Reward("shape", lambda prompts, completions, **columns: result))
    assert len(scores.failures) == 5
    assert "where" in scores.failures[0].reason
    if not isinstance(result, list) or len(result) == 1:
        assert scores.failures[0].reason.startswith(reason)
    with pytest.raises(RewardError, match="where"):
        run(Reward("shape", lambda prompts, completions, **columns: result), on_error="stop")


def test_a_function_that_skips_a_sample_is_caught_at_it():
    def skipping(prompts, completions, **columns):
        return [1.0 for c in completions if c != "dddd"]

    failures = run(Reward("skipping", skipping)).failures
    assert failures == [RewardFailure(3, "skipping", "returned 0 values for 1 completion where one for each belongs")]


def test_no_reward_applies():
    nothing = Reward("nothing", per_sample(lambda c: None if c == "a" else 1.0))
    scores = run(nothing)
    assert scores.failures == [RewardFailure(0, "", "no reward applied")]
    assert same(scores.total, [math.nan, 1, 1, 1, 1])
    assert run(nothing, LENGTH).failures == []
    with pytest.raises(RewardError, match=r"Scoring failed on row 1 of 5 .*: no reward applied\."):
        run(nothing, on_error="stop")


def test_a_failure_that_does_not_come_back_is_forgiven(caplog):
    calls = []

    def flaky(prompts, completions, **columns):
        calls.append(len(prompts))
        if len(calls) == 1:
            raise ConnectionError("busy")
        return [1.0] * len(prompts)

    scores = run(Reward("flaky", flaky), on_error="stop", process="same")
    assert scores.total == [1.0] * 5 and calls == [5, 1, 1, 1, 1, 1]
    assert re.search(r"'flaky' raised ConnectionError: busy \(.*line \d+\) on a batch", caplog.text)


def test_mistakes_of_the_user_pass_through():
    with pytest.raises(UserError, match="'numeric' needs a column 'answer'"):
        run(built_in("numeric"), on_error="drop")
    with pytest.raises(KeyboardInterrupt):
        run(Reward("key", per_sample(lambda c: (_ for _ in ()).throw(KeyboardInterrupt))), on_error="drop")
    failures = run(Reward("exit", per_sample(lambda c: sys.exit(1) if c == "a" else 1.0))).failures
    assert [f.row for f in failures] == [0] and failures[0].reason.startswith("raised SystemExit: 1 (")
    failures = run(built_in("numeric"), answer=["1", "2", "three", "4", "5"]).failures
    assert failures == [RewardFailure(2, "numeric", "raised ValueError: the answer 'three' holds no number")]
    for settings_ in ({"on_error": "skip"}, {"timeout": 0}):
        with pytest.raises(UserError):
            CallPolicy(**settings_)
    with pytest.raises(UserError, match="no reward"):
        RewardRunner([])
    with pytest.raises(UserError, match="two rewards named 'length'"):
        RewardRunner([LENGTH, LENGTH])


# --- time limits -----------------------------------------------------------------------------------------------------


def hanging(c):
    if c == "bb":
        try:
            while True:
                time.sleep(0.001)
        except Exception:  # must not swallow the time limit
            return 1.0
    return 1.0


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("where", [lambda f: f(), in_a_thread], ids=["main thread", "other thread"])
def test_a_sample_that_hangs_is_found(where):
    scores = where(lambda: run(Reward("hanging", per_sample(hanging)), LENGTH, timeout=0.1))
    assert scores.failures == [RewardFailure(1, "hanging", "took longer than 0.1 seconds")]
    assert same(scores.total, [2, math.nan, 4, 5, 6])


def test_a_dead_service_costs_a_few_time_limits():
    calls = []

    def dead(prompts, completions, **columns):
        calls.append(len(prompts))
        time.sleep(30)

    scores = run(Reward("dead", dead), timeout=0.05, process="same")
    assert calls == [5, 1, 1, 1]
    assert [f.row for f in scores.failures] == [0, 1, 2, 3, 4]
    assert scores.failures[4].reason == "not tried, since 3 samples before it ran out of time"
    with pytest.raises(RewardError, match="row 1 of 5"):
        run(Reward("dead", dead), timeout=0.05, on_error="stop", process="same")
    assert len(calls) == 6


def test_signal_handler_and_timer_are_put_back():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        mine = signal.getsignal(signal.SIGALRM)
        run(Reward("hanging", per_sample(hanging)), timeout=0.05, process="same")
        assert signal.getsignal(signal.SIGALRM) is mine
        deadline = time.monotonic() + 5
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rung  # an alarm that was set before still rings
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
