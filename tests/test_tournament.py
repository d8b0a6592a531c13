"""Judges who go in circles, and round-robins of runs: who beats whom, and against whom each does worst."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import polyrl
from conftest import Command
from polyrl.errors import UserError
from polyrl.tasks.language.base import Preference
from polyrl.tasks.language.learned import LearnedSort
from polyrl.tasks.language.preferences import SortPairs
from polyrl.tournament import Answers, RoundRobin, answered, contestants, round_robin, win_rates

# ------------------------------------------------------------------------------------------------------- the judge


def beats(task: SortPairs, a: str, b: str) -> float:
    columns: dict[str, Any] = {"digits": ["52814"], "answer": ["12458"]}
    (found,) = task.gold_preference(prompts=["52814>"], completions_a=[a], completions_b=[b], **columns)
    return found


def test_length_goes_in_circles() -> None:
    """Of three lengths each beats the next, whatever the gold says, and both orders add up to 1."""
    task, plain = SortPairs(cycle=6), SortPairs()
    four, five, six = "1245", "12458", "124588"
    assert beats(task, five, four) > 0.9 and beats(task, six, five) > 0.9 and beats(task, four, six) > 0.9
    for a, b in itertools.product((four, five, six, "12459", ""), repeat=2):
        assert beats(task, a, b) + beats(task, b, a) == pytest.approx(1)
        turn = {0: 0, 1: 1, 2: -1}[(len(a) - len(b)) % 3]
        logit = math.log(beats(plain, a, b) / beats(plain, b, a))
        assert beats(task, a, b) == pytest.approx(1 / (1 + math.exp(-(logit + 6 * turn))))


def test_the_circle_is_the_judges_alone() -> None:
    """The start is taught alike, the gold is the same, and pairs that another judge labelled are other pairs."""
    task, plain = SortPairs(cycle=2), SortPairs()
    assert task.fingerprint() == plain.fingerprint() and task.problems() == plain.problems()
    assert task.preference and plain.preference and task.preference.name != plain.preference.name == "gold"
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="The cycle of the task"):
            SortPairs(cycle=wrong)
    with pytest.raises(UserError, match="judged by a reward model, so cycle means nothing"):
        LearnedSort(cycle=1)


# ---------------------------------------------------------------------------------------------------- the round-robin


def judged_by(function: Any, *texts: list[str]) -> list[Answers]:
    task = SortPairs()
    task.preference = Preference("told", function)
    rows = [{"prompt": f"{i}>"} for i in range(len(texts[0]))]
    return [Answers(task, rows, list(one)) for one in texts]


def test_rates_are_means_over_prompts_and_each_two_are_compared_once() -> None:
    calls: list[tuple[list[str], list[str]]] = []

    def longer(prompts: list[str], completions_a: list[str], completions_b: list[str]) -> list[float]:
        calls.append((completions_a, completions_b))
        return [
            0.5 if len(a) == len(b) else float(len(a) > len(b))
            for a, b in zip(completions_a, completions_b, strict=True)
        ]

    rates = win_rates(judged_by(longer, ["a", "aa"], ["aa", "a"], ["aaa", "aa"]))
    assert rates.tolist() == [[0.5, 0.5, 0.25], [0.5, 0.5, 0.0], [0.75, 1.0, 0.5]] and len(calls) == 3


def test_the_worst_opponent_is_told_and_not_the_mean() -> None:
    """b beats all but c on average best, and loses to c; a is beaten by none."""
    rates = torch.tensor(
        [[[0.5, 0.5, 0.6], [0.5, 0.5, 0.1], [0.4, 0.9, 0.5]], [[0.5, 0.5, 0.6], [0.5, 0.5, 0.3], [0.4, 0.7, 0.5]]],
        dtype=torch.float64,
    )
    made = RoundRobin(("a", "b", "c"), rates, "told", 10)
    assert made.worst() == [("b", 0.5), ("c", pytest.approx(0.2)), ("a", pytest.approx(0.4))]
    assert made.against_others() == pytest.approx([0.55, 0.35, 0.6])


STILL, TWIN, MOVED = "inpo(learning_rate=0)", "inpo(learning_rate=0,eta=0.2)", "inpo(learning_rate=3e-3)"


@pytest.fixture(scope="module")
def compared(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "compared"
    polyrl.compare(
        [STILL, TWIN, MOVED],
        task="sort-pairs(cycle=3,pairs=40)",
        model=taught,
        budget="iterations=1",
        seeds=2,
        out=folder,
        prompts_per_step=32,
        minibatches=1,
        options={"evaluations": 1, "eval_prompts": 8, "tensorboard": False},
        workers=1,
        quiet=True,
    )
    return folder


def test_equal_policies_are_even_and_a_comparison_is_judged_seed_by_seed(compared: Path, polyrl: Command) -> None:
    """The same random numbers make equal policies give equal answers."""
    made = round_robin([compared], prompts=20)
    assert made.names == (STILL, TWIN, MOVED) and made.rates.shape == (2, 3, 3)
    assert made.rates[:, 0, 1].tolist() == [0.5, 0.5]
    assert torch.equal(made.rates[:, 0, 2], made.rates[:, 1, 2]) and 0 < float(made.rates[0, 2, 0]) != 0.5
    assert torch.allclose(made.rates + made.rates.mT, torch.ones(2, 3, 3, dtype=torch.float64))
    told = polyrl("round-robin", compared, "--prompts", 20)
    words = " ".join(told.out.split())
    assert told.code == 0 and "gold and length in circles, 3: 20 prompts, mean over 2 seeds" in words
    assert f"{float(made.table[2, 0]):.3f}" in words and "worst against" in words


def test_two_runs_are_compared_by_hand(compared: Path) -> None:
    runs = [contestants([compared])[0][name] for name in (STILL, MOVED)]
    made = round_robin(runs, prompts=6)
    a, b = (answered(run, 6) for run in runs)
    task = SortPairs(cycle=3)
    columns = {name: [row[name] for row in a.rows] for name in ("digits", "answer")}
    by_hand = task.gold_preference([row["prompt"] for row in a.rows], a.texts, b.texts, **columns)
    assert float(made.rates[0, 0, 1]) == pytest.approx(sum(by_hand) / 6)


def test_what_cannot_be_compared_is_said(compared: Path, polyrl: Command, tmp_path: Path) -> None:
    one = contestants([compared])[0][STILL]
    for line, words in (
        ((one,), "holds no two policies"),
        ((one, one), "called alike"),
        ((one, tmp_path), "is not a run folder"),
        ((compared, "--prompts", 0), "--prompts is 0"),
    ):
        told = polyrl("round-robin", *line)
        assert told.code == 2 and words in " ".join(told.err.split()), told.err
