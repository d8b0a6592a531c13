"""Rewards written for TRL run as they are: what they are told of the run, what they log, and coroutines."""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import SEED, Command, read_records
from polyrl.core.context import Context
from polyrl.errors import UserError
from polyrl.report.labels import metric_label, panels
from polyrl.report.payload import build_payload
from polyrl.report.runs import load_folders
from polyrl.run_state.language_rewards import trainer_state
from polyrl.runtime.budget import Budget, Spent
from polyrl.tasks.language.base import Reward
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.reward_runner import RewardError, RewardRunner, Scores
from polyrl.tasks.language.rewards import check_signature, load_reward
from polyrl.tasks.language.run_facts import RunFacts, TrainerState

REWARDS = '''
import asyncio
import re

SEEN = []

def by_tokens(completion_ids, **kwargs):
    """Longer is better, in tokens."""
    return [float(len(ids)) for ids in completion_ids]

def curriculum(completions, trainer_state=None, **kwargs):
    """The same for all, and more the later."""
    return [float(trainer_state.global_step) for _ in completions]

def extracts(prompts, completions, answer, log_extra=None, log_metric=None, **kwargs):
    found = [re.search("[a-z]+", text) for text in completions]
    words = [m.group(0) if m else None for m in found]
    rewards = [1.0 if w == a else 0.0 for w, a in zip(words, answer)]
    if log_extra:
        log_extra("extracted", [w or "[none]" for w in words])
        log_extra("gold", list(answer))
    if log_metric:
        log_metric("accuracy", sum(rewards) / len(rewards))
        log_metric("unread", float("nan"))
    return rewards

async def asked(prompts, completions, **kwargs):
    await asyncio.sleep(0.001)
    return [1.0 if text else 0.0 for text in completions]
'''
PROMPTS, TEXTS = ["a", "b", "c"], ["x", "yy", "zzz"]
IDS = [[5], [6, 7], [8, 9, 2]]


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(REWARDS, encoding="utf-8")
    return tmp_path / "mine.py"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    from test_user_data import words_to_reverse

    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in words_to_reverse()), encoding="utf-8")
    return file


def judged(function: Any, process: Any = "same", timeout: float | None = 20, on_error: Any = "stop") -> Scores:
    runner = RewardRunner([Reward("r", function)], CallPolicy(on_error, timeout, process))
    try:
        return runner(PROMPTS, TEXTS, RunFacts(IDS, TrainerState(global_step=7, max_steps=70)))
    finally:
        runner.close()


# ------------------------------------------------------------------------------------------ what a reward is told


@pytest.mark.parametrize("process", ["own", "same"])
def test_token_ids_and_the_state_of_the_run(process: Any) -> None:
    def reward(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any) -> list[float]:
        share = trainer_state.global_step / trainer_state.max_steps
        return [sum(ids) + share for ids in completion_ids]

    assert judged(reward, process).total == pytest.approx([5.1, 13.1, 19.1])


def test_keywords_of_any_name_are_told_all(rewards: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(completions: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0] * len(completions)

    judged(reward)
    assert seen.keys() == {"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    assert judged(load_reward(f"{rewards}:by_tokens").function, "own").total == [1.0, 2.0, 3.0]


def test_a_reward_may_need_what_it_is_told_and_no_column_has_these_names() -> None:
    def needs(prompts: Any, completions: Any, trainer_state: Any, completion_ids: Any, log_metric: Any) -> list[float]:
        return []

    check_signature("needs", needs, ["answer"])


def test_how_far_a_run_is() -> None:
    context = Context(run_state=None, seed=0, budget=Budget.parse("samples=100"))
    assert trainer_state(context) == TrainerState(global_step=0, max_steps=1)
    context.iteration, context.began = 3, Spent(iterations=2, samples=40, updates=4)
    context.spent = Spent(iterations=2, samples=60, updates=4)  # in the middle of the third of five
    assert trainer_state(context) == TrainerState(global_step=4, max_steps=10, epoch=0.4)
    context.spent = context.began = Spent(iterations=3, samples=60, updates=6)  # evaluated behind it
    assert trainer_state(context) == TrainerState(global_step=6, max_steps=10, epoch=0.6)
    context.budget = Budget.parse("updates=7,samples=100")  # in the middle of an iteration
    assert trainer_state(context).max_steps == 7


# ---------------------------------------------------------------------------------------------- what it logs


@pytest.mark.parametrize("process", ["own", "same"])
def test_logs_of_one_call(process: Any) -> None:
    def reward(prompts: Any, completions: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("upper", [text.upper() for text in completions])
        log_extra("size", [len(text) for text in completions])
        log_metric("half", 0.25)
        log_metric("half", 0.75)
        log_metric("none", float("inf"))
        return [0.0] * len(completions)

    logged = judged(reward, process).logged
    assert logged.columns == {"upper": ["X", "YY", "ZZZ"], "size": [1, 2, 3]}
    assert logged.metrics == {"half": [0.25, 0.75]}


def test_a_failing_row_keeps_what_the_others_logged() -> None:
    def reward(completions: Any, log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        log_extra("text", completions)
        log_metric("calls", 1)
        if "yy" in completions:
            raise ValueError("no")
        return [1.0] * len(completions)

    scores = judged(reward, on_error="zero")
    assert scores.total == [1.0, 0.0, 1.0]
    assert scores.logged.columns == {"text": ["x", None, "zzz"]} and scores.logged.metrics == {"calls": [1.0, 1.0]}


def test_two_rewards_that_show_one_name() -> None:
    def first(completions: Any, log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("word", completions)
        return [0.0] * len(completions)

    def second(completions: Any, log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("word", [len(text) for text in completions])
        return [0.0] * len(completions)

    found = RewardRunner([Reward("first", first), Reward("second", second)])(PROMPTS, TEXTS).logged
    assert found.columns == {"word": TEXTS, "second/word": [1, 2, 3]}


def test_too_few_values_are_told_with_the_line(tmp_path: Path) -> None:
    text = """
        def reward(completions, log_extra, **kwargs):
            log_extra("word", ["one"])
            return [0.0] * len(completions)
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(text), encoding="utf-8")
    runner = RewardRunner([load_reward(f"{tmp_path}/mine.py:reward")])
    # each alone it is right, and so it is told of the batch
    assert runner(PROMPTS[:1], TEXTS[:1]).logged.columns == {"word": ["one"]}
    text = text.replace('["one"]', '["one", "two"]')
    (tmp_path / "other.py").write_text(textwrap.dedent(text), encoding="utf-8")
    runner = RewardRunner([load_reward(f"{tmp_path}/other.py:reward")])
    with pytest.raises(RewardError, match=r"log_extra\('word', \.\.\.\) has 2 values for 1 .*other\.py, line 3\)"):
        runner(PROMPTS[:1], TEXTS[:1])


# ----------------------------------------------------------------------------------------------- coroutines


@pytest.mark.parametrize("process", ["own", "same"])
def test_a_coroutine_is_awaited_in_one_loop(process: Any) -> None:
    loops: list[Any] = []

    class Client:
        async def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
            await asyncio.sleep(0)
            loops.append(asyncio.get_running_loop())
            return [float(len(loops) if loops[0] is loops[-1] else -1)] * len(completions)

    runner = RewardRunner([Reward("client", Client())], CallPolicy(process=process))
    assert [runner(PROMPTS, TEXTS).total[0] for _ in range(3)] == [1.0, 2.0, 3.0]
    runner.close()


def test_several_coroutines_are_awaited_at_once() -> None:
    """The first waits for what the second does: one after the other they would run out of time."""
    state: dict[str, Any] = {}

    async def first(prompts: Any, completions: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        event = state.setdefault("event", asyncio.Event())
        await event.wait()
        log_metric("waited", 1)
        return [1.0] * len(completions)

    async def second(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        state.setdefault("event", asyncio.Event()).set()
        return [2.0] * len(completions)

    def plain(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [4.0] * len(completions)

    rewards = [Reward("first", first), Reward("plain", plain), Reward("second", second)]
    scores = RewardRunner(rewards, CallPolicy(timeout=30))(PROMPTS, TEXTS)
    assert scores.total == [7.0] * 3 and [*scores.parts] == ["first", "plain", "second"]
    assert scores.logged.metrics == {"waited": [1.0]}


@pytest.mark.parametrize("process", ["own", "same"])
def test_a_coroutine_that_fails_shows_its_line(tmp_path: Path, process: Any) -> None:
    text = "async def reward(prompts, completions, **kwargs):\n    return [int(c) for c in completions]\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    runner = RewardRunner([load_reward(f"{tmp_path}/mine.py:reward")], CallPolicy("stop", 20, process))
    with pytest.raises(RewardError, match=r"raised ValueError: .* \(.*mine\.py, line 2\)\.$"):
        runner(PROMPTS, TEXTS)


@pytest.mark.parametrize("process", ["own", "same"])
@pytest.mark.parametrize("blocks", [False, True])
def test_a_coroutine_that_hangs_is_left_behind(process: Any, blocks: bool) -> None:
    async def reward(completions: Any, **kwargs: Any) -> list[float]:
        if "yy" in completions:
            if blocks:
                time.sleep(2)
            else:
                await asyncio.sleep(60)
        return [1.0] * len(completions)

    assert judged(reward, process, timeout=0.5, on_error="zero").total == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("process", ["own", "same"])
def test_a_coroutine_that_ends_the_program_is_a_failure(process: Any) -> None:
    async def reward(completions: Any, **kwargs: Any) -> list[float]:
        raise SystemExit(3)

    with pytest.raises(RewardError, match="raised SystemExit"):
        judged(reward, process)


# ------------------------------------------------------------------------------------------------- whole runs

SIZE = ["--prompts-per-step", 4, "--completions-per-prompt", 4, "--eval-prompts", 8, "--evaluations", 1]


def test_a_run_tells_and_logs(rewards: Path, dataset: Path, small_model: Path, tmp_path: Path, polyrl: Command) -> None:
    given = [w for name in ("by_tokens", "curriculum", "extracts", "asked") for w in ("--reward", f"{rewards}:{name}")]
    line = ["--dataset", dataset, "--model", small_model, "--max-tokens", 9, *SIZE, *given, "--seed", SEED, "--quiet"]
    out = tmp_path / "run"
    assert polyrl("train", "grpo", *line, "--budget", "samples=64", "--minibatches", 2, "--out", out).code == 0
    records = read_records(out)
    assert len(records) == 5
    for i, record in enumerate(records[1:]):
        assert record["rewards/by_tokens"] == pytest.approx(record["completions/mean_length"])
        assert record["rewards/curriculum"] == 2 * i == record["updates"] - 2
        assert record["logged/accuracy"] == pytest.approx(record["rewards/extracts"])
        assert record["rewards/asked"] <= 1 and "logged/unread" not in record
    assert records[0]["eval/rewards/curriculum"] == 0 and records[-1]["eval/rewards/curriculum"] == 8
    assert records[-1]["eval/logged/accuracy"] == pytest.approx(records[-1]["eval/rewards/extracts"])
    samples = read_records(out, "samples.jsonl")
    assert samples and all(set(s["logged"]) == {"extracted", "gold"} for s in samples)
    assert {s["logged"]["gold"] for s in samples} <= {s["expected"] for s in samples}

    shown = build_payload(load_folders([out]))
    answer = shown["samples"]["prompts"][0]["answers"][0]
    assert [name for name, _ in answer["logged"]] == ["extracted", "gold"]
    assert "logged/accuracy" in json.dumps(shown) and polyrl("report", out).code == 0


def test_logged_numbers_are_drawn_and_named() -> None:
    assert "logged/accuracy" in panels("language", ["reward", "kl", "logged/accuracy"], "eval/accuracy")
    label, _, group = metric_label("language", "logged/gold_rate")
    assert (label, group) == ("Logged by a reward: gold rate", "Reward")


@pytest.mark.parametrize("name", ["trainer_state", "log_extra", "log_metric", "completion_ids"])
def test_columns_of_these_names_are_refused(name: str) -> None:
    from polyrl.tasks.language.preferences import dataset_task

    with pytest.raises(UserError, match=f"the column '{name}' must have another name"):
        dataset_task([{"prompt": f"p{i}", "answer": "1", name: 1} for i in range(4)])
