"""`polyrl show` and `polyrl trace` in every wing: the policy, the five stages in order, and a few real rows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console, RenderableType

from conftest import Command
from polyrl.cli import excerpts
from polyrl.experience import Experience

STAGES = ["COLLECT", "SCORE", "CREDIT", "SELECT", "IMPROVE"]


def text(block: RenderableType | None) -> str:
    assert block is not None
    console = Console(width=140)
    with console.capture() as said:
        console.print(block)
    return said.get()


def row(said: str, name: str) -> list[str]:
    """Cells of the first line that begins with `name`."""
    return next(line.split()[1:] for line in said.splitlines() if line.split()[:1] == [name])


# ------------------------------------------------------------------------------------------------------- excerpts


def test_two_episodes_are_shown_step_by_step() -> None:
    reward = torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0], [-2.0, 0.5, 0.0]])
    experience = Experience(
        {
            "observation": torch.arange(36.0).reshape(3, 3, 4),
            "action": torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 0]]),
            "reward": reward,
            "mask": torch.ones(3, 3, dtype=torch.bool),
            "terminated": torch.tensor([[False] * 3, [False, False, True], [False] * 3]),
            "score": reward.sum(1),
        }
    )
    said = text(excerpts.steps(experience))
    assert "2 of 3 rows" in said and "row 1" in said and "row 2" in said and "row 0" not in said  # best and worst
    assert row(said, "reward") == ["5", "5", "5"] and row(said, "action") == ["1", "1", "1"]
    assert row(said, "terminated") == ["-", "-", "yes"] and said.count("terminated") == 1  # not where nothing ended
    assert row(said, "observation")[:3] == ["12", "13", ".."]
    assert "mask" not in said and "score" not in said
    first = [line.split()[0] for line in said.splitlines()[2:6]]
    assert first == ["observation", "action", "reward", "terminated"]  # what was seen, done, and came of it


def test_episodes_of_one_step_are_rows() -> None:
    said = text(
        excerpts.steps(
            Experience(
                {
                    "action": torch.arange(20)[:, None],
                    "mask": torch.ones(20, 1, dtype=torch.bool),
                    "score": torch.linspace(0, 1, 20),
                }
            )
        )
    )
    assert "the first rows of 20, one step each" in said
    assert row(said, "action") == ["score"] and len(said.strip().splitlines()) == 2 + excerpts.MOST_STEPS


def test_long_episodes_and_fields_asked_for() -> None:
    experience = Experience(
        {"action": torch.zeros(1, 50, 1), "advantage": torch.full((1, 50), -0.5), "reward": torch.zeros(1, 50)}
    )
    said = text(excerpts.steps(experience, ("advantage", "value"), "what pushes"))
    assert row(said, "advantage") == ["-0.50"] * excerpts.MOST_STEPS and "reward" not in said and "what pushes:" in said
    assert "of the one row" not in said and "(of 50) of the one row" in text(excerpts.steps(experience))
    assert excerpts.steps(Experience({"initial_inventory": torch.zeros(2, 1, 3)})) is None


class _Shifted:
    """A policy that has moved by a known amount from the reference."""

    def __init__(self, shift: torch.Tensor):
        self.shift = shift

    def outputs(self, experience: Experience, wants: frozenset[str]) -> dict[str, torch.Tensor]:
        assert wants == {"logprob"}
        return {"logprob": experience["ref_logprob"] + self.shift[experience["row"]][:, None]}


def test_pairs_are_shown_with_their_log_ratios() -> None:
    mask = torch.tensor([[True, True, False]] * 4)
    experience = Experience(
        {
            "action": torch.zeros(4, 3, dtype=torch.int64),
            "row": torch.arange(4),
            "mask": mask,
            "pair": torch.tensor([7, 3, 7, -1]),
            "preferred": torch.tensor([False, True, True, False]),
            "ref_logprob": torch.full((4, 3), -1.0),
        },
        {"prompt": ["a"] * 4, "completion": ["bad\nend", "lonely", "[b]good[/b]", "none"]},
    )
    assert excerpts.some_pairs(experience) == [(2, 0)]  # a pair that lacks a half is left out, and so is no pair
    before = excerpts.log_ratios(experience, _Shifted(torch.zeros(4)))
    after = excerpts.log_ratios(experience, _Shifted(torch.tensor([-0.5, 0.0, 0.25, 9.0])))
    assert before == {2: 0.0, 0: 0.0} and after == {2: 0.5, 0: -1.0}  # two tokens each: padding does not count
    said = text(excerpts.preference_pairs(experience, before, after))
    assert row(said, "chosen") == ["+0.0000", "+0.5000", "[b]good[/b]"]
    assert row(said, "rejected") == ["+0.0000", "-1.0000", r"bad\nend"]
    assert row(said, "h")[:2] == ["+0.0000", "+1.5000"]
    plain = text(excerpts.preference_pairs(experience))
    assert "rho" not in plain and "[b]good[/b]" in plain


# ----------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    ("method", "task", "words"),
    [
        ("ppo", "CartPole-v1", ["POLICY", "--hidden", "64x64"]),
        ("hdpo", "lost-sales", ["POLICY", "order-network", "32x32x32"]),
        ("dr-rpo", "linear-mdp", ["regularised-softmax"]),
    ],
)
def test_show_has_the_policy_before_the_first_stage(
    method: str, task: str, words: list[str], polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("show", method, "--task", task)
    assert told.code == 0 and told.err == ""
    for word in words:
        assert word in told.out, word
    order = [told.out.index(f"{i} {stage}") for i, stage in enumerate(STAGES, 1)]
    assert order == sorted(order)
    if "POLICY" in words:
        assert told.out.index("POLICY") < order[0]
    else:
        assert "POLICY" not in told.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            ["ppo", "--task", "CartPole-v1", "--steps-per-environment", 16],
            ["POLICY", "an untrained policy", "observation", "advantage", "of steps had left the clip range"],
        ),
        (
            ["hdpo", "--scenarios", 16, "--periods", 6],
            ["POLICY", "demand", "AdamW at learning rate 0.003", "= 1 step "],
        ),
        (["reinforce", "--scenarios", 16, "--periods", 6], ["what each step will be pushed by", "behaviour_logprob"]),
        (["dr-rpo"], ["next_state", "bonus", "regularised-softmax", "logged: "]),
        (["nash-mp"], ["one step each", "score", "mirror-prox", "prox_steps"]),
    ],
)
def test_trace_explains_an_iteration_of_every_wing(
    line: list[object],
    words: list[str],
    polyrl: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    told = polyrl("trace", *line)
    assert told.code == 0 and told.err == ""
    for word in words:
        assert word in told.out, word
    order = [told.out.index(f"{i} {stage}") for i, stage in enumerate(STAGES, 1)]
    assert order == sorted(order)  # stages without parts stand in their place, too
    assert "; ;" not in told.out and "nan" not in told.out
    norm = re.search(r"([\d.]+) was the gradient's norm", told.out)
    assert norm is None or float(norm[1]) > 0
    assert list(tmp_path.iterdir()) == []  # a trace writes nothing
