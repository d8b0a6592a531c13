"""Columns of the data and what stages make never take each other's place, whatever they are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.core.fields import documented
from polyrl.errors import UserError
from polyrl.methods.language.dapo_direct import OfflineSteps
from polyrl.parts.collect import SampleResponses
from polyrl.parts.imitation import DemonstratedPrompts
from polyrl.parts.tools import CallPrice
from polyrl.parts.windows import WindowedRollouts
from polyrl.rollout.language import Sampling
from polyrl.run_state.language import Evaluation, LanguageRunState
from polyrl.tasks.language.base import Reward, Row, Tool, reports
from polyrl.tasks.language.columns import CALLED_WITH, told_columns
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.language.rewards import check_signature
from polyrl.tasks.language.strings import Reverse
from run_states import make_context
from tiny_models import save_model

UNLUCKY = ("completion", "calls", "response", "self", "function", "class", "", "a b", "group", "need", "demonstration")
"""What columns are called in files that people have, and what stages call what they make."""
COLLECTORS = {
    "whole responses": SampleResponses(prompts_per_step=2, completions_per_prompt=2),
    "windows": WindowedRollouts(prompts_per_step=2, completions_per_prompt=2, window=4),
    "offline steps": OfflineSteps(problems=2, solutions=2, kept=1, continuations=2, states_per_step=9, step_tokens=4),
    "demonstrated prompts": DemonstratedPrompts(prompts_per_step=2, completions_per_prompt=2, demonstrations=4),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3", initializer_range=0.15)


class Spy:
    """A reward that remembers what it was told."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []
        self.completions: list[Any] = []
        self.columns: dict[str, list[Any]] = {}

    def reward(this, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        this.prompts, this.completions, this.columns = prompts, completions, columns
        return [float(len(c)) for c in completions]


def run_state_of(model: Path, rows: list[Row], spy: Spy | None = None) -> LanguageRunState:
    rewards = [Reward("spy", spy.reward)] if spy else []
    task = DatasetTask(rows, rewards=rewards, max_tokens=12)
    return LanguageRunState(task, model, evaluation=Evaluation(prompts=10), monitor_kl_every=0)


def rows_with(*names: str, count: int = 20) -> list[Row]:
    return [{"prompt": f"question {i} is", "answer": str(i), **{n: f"{n} {i}" for n in names}} for i in range(count)]


def said(run_state: LanguageRunState, batch: Experience) -> list[str]:
    pairs = zip(batch["action"].tolist(), batch["present"].sum(1).tolist(), strict=True)
    return [run_state.policy.decode(ids[:n]) for ids, n in pairs]


# ------------------------------------------------------------------------------------------- every way to collect


@pytest.mark.parametrize("collector", COLLECTORS)
def test_what_was_sampled_is_what_is_judged(model: Path, collector: str) -> None:
    names = [n for n in UNLUCKY if n != "demonstration" or collector != "demonstrated prompts"]
    spy, run_state = Spy(), None
    run_state = run_state_of(model, rows_with(*names), spy)
    context = make_context(run_state)
    run_state.check_rows(run_state.task.rows("train", 0, 0, 4), 12)
    batch = COLLECTORS[collector](None, context)
    run_state.score(batch)
    assert spy.completions == batch.columns["completion"] == said(run_state, batch)
    assert spy.prompts == batch.columns["prompt"] == [row["prompt"] for row in batch.task_rows]
    number = [row["answer"] for row in batch.task_rows]
    for name in names:  # each row's own, under its own name
        assert spy.columns[name] == [f"{name} {n}" for n in number], name
    with pytest.raises(UserError, match="has no tool that counts them"):  # `calls` of the data counts no calls
        CallPrice()(batch.with_fields(score=torch.zeros(len(batch))), context)


def test_no_column_becomes_a_field(model: Path) -> None:
    run_state = run_state_of(model, rows_with(*sorted(documented(catalogue.part_classes()))), Spy())
    batch = COLLECTORS["whole responses"](None, make_context(run_state))
    plain = COLLECTORS["whole responses"](None, make_context(run_state_of(model, rows_with(), Spy())))
    assert batch.fields() == plain.fields()
    assert all(torch.equal(batch[name], plain[name]) for name in plain.fields())


def test_continuations_and_evaluation_judge_what_was_said(model: Path) -> None:
    spy = Spy()
    run_state = run_state_of(model, rows_with("completion", "self"), spy)
    batch = COLLECTORS["whole responses"](None, make_context(run_state))
    on = run_state.continuations(
        batch,
        torch.tensor([1, 3]),
        torch.tensor([1, 1]),
        Sampling(max_tokens=12),
        count=2,
        generator=torch.Generator().manual_seed(0),
    )
    run_state.score(on)
    first = [text[:1] for text in said(run_state, batch.rows([1, 1, 3, 3]))]
    assert spy.completions == [a + b for a, b in zip(first, said(run_state, on), strict=True)]
    assert spy.columns["self"] == [f"self {batch.task_rows[i]['answer']}" for i in (1, 1, 3, 3)]
    _, samples = run_state.evaluate()
    assert [s["completion"] for s in samples] == spy.completions[: len(samples)]
    assert all(s["completion"] not in spy.columns["completion"] for s in samples)


@pytest.mark.parametrize("truth", ["answer", "solution", "completion"])
def test_a_random_model_is_never_right_whatever_the_truth_is_called(model: Path, truth: str) -> None:
    rows = [{"prompt": f"question {i} is", truth: f"the answer {i}", "text": f"the answer {i}"} for i in range(20)]
    run_state = run_state_of(model, rows)
    run_state.check_rows(run_state.task.rows("train", 0, 0, 4), 12)
    metrics, samples = run_state.evaluate()
    assert metrics["eval/accuracy"] == metrics["eval/reward"] == 0
    assert all(s["expected"].startswith("the answer") for s in samples)
    row = run_state.task.rows("train", 0, 0, 1)[0]
    assert run_state.task.correct(row, row[truth]) and not run_state.task.correct(row, "another")


# --------------------------------------------------------------------------------------------- names that are taken


@pytest.mark.parametrize("name", CALLED_WITH)
def test_names_that_rewards_are_called_with_belong_to_no_column(name: str) -> None:
    with pytest.raises(UserError, match=f"row 2: the column '{name}' must have another name, since"):
        DatasetTask([{"prompt": "a"}, {"prompt": "b", name: 1}])


@pytest.mark.parametrize("name", [5, None, ("a",)])
def test_a_column_is_named_by_text(name: Any) -> None:
    with pytest.raises(UserError, match=r"row 1: the column .* must be named by text"):
        DatasetTask([{"prompt": "a", name: 1}, {"prompt": "b", name: 2}])


class Reporting:
    """A tool's session that reports under a given name."""

    stop, ended = "=", False

    def __init__(self, name: str):
        self.name = name

    def reply(self, response: str) -> str | None:
        return None

    def report(self) -> dict[str, Any]:
        return {self.name: 1}


@dataclass
class Named(Reverse):
    """Words, with a tool whose session reports `reported`."""

    reported: str = "calls"

    def session(self, row: Row) -> Tool | None:
        return Reporting(self.reported)


@pytest.mark.parametrize("name", ["prompt", "completion", *CALLED_WITH])
def test_a_session_cannot_report_what_was_sampled(model: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"reports '{name}', which is the name of what was sampled"):
        reports([Reporting(name)])


def test_one_name_for_a_column_and_a_report_is_refused_before_anything_is_sampled(model: Path) -> None:
    task = Named(difficulty=4, reported="answer")  # the task's rows have that column
    run_state = LanguageRunState(task, model)
    with pytest.raises(UserError, match=r"has a column 'answer', and what happens in a response.*rename"):
        run_state.check_rows(task.rows("train", 0, 0, 2), 12)


def test_told_columns_leaves_nothing_out() -> None:
    rows = [{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}]
    made: dict[str, Sequence[Any]] = {"prompt": ["a", "b"], "completion": ["c", "d"], "calls": [3, 4]}
    assert told_columns(rows, made) == {"x": [1, None], "y": [None, 2], "calls": [3, 4]}


def test_a_method_whose_self_is_a_column_is_told_at_once() -> None:
    class Judge:
        def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return []

        def closed(self, prompts: Any, completions: Any) -> list[float]:
            return []

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            return []

    for function in (Judge().score, Judge()):
        check_signature("judge", function, ["answer"])
        with pytest.raises(UserError, match="own first parameter is 'self', and the data has a column of that name"):
            check_signature("judge", function, ["answer", "self"])
    check_signature("judge", Judge().closed, ["self"])  # it is not told that column
