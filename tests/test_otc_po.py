"""OTC-PO: the card's numbers, the minimum and what must not lower it, limits, masking, fewer calls after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.grpo import group_advantage
from polyrl.methods.language.otc_po import (
    ToolCoefficient,
    cosine_coefficient,
    fewest_calls,
    tool_coefficient,
)
from polyrl.parts.score import at_last_step
from polyrl.parts.tools import CallPrice
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language.base import Reward, Row
from polyrl.tasks.language.strings import Reverse
from run_states import TableRunState, credited, make_context, token_batch


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("smoothing", "wanted"),
    [
        (1, (1, 0.5, 0.3090, 0.2225, 0.1736, 0.1423)),
        (2, (1, 0.7071, 0.5, 0.3827)),
        (4, (1, 0.8660, 0.7071, 0.5878, 0.5)),
    ],
)
def test_where_no_call_is_needed(smoothing: float, wanted: tuple[float, ...]) -> None:
    calls = torch.arange(len(wanted)).double()
    found = cosine_coefficient(calls, smoothing)
    assert found.tolist() == pytest.approx(wanted, abs=5e-5)
    assert tool_coefficient(calls, torch.zeros_like(calls), smoothing).tolist() == pytest.approx(found.tolist())
    assert torch.allclose(found, torch.sin(smoothing * math.pi / (2 * (2 * calls + smoothing))))


@pytest.mark.parametrize(
    ("fewest", "wanted"),
    [
        (1, (0, 1, 0.8660, 0.7071, 0.5878)),
        (2, (0, 0.8660, 1, 0.9511, 0.8660, 0.7818)),
        (3, (0, 0.7071, 0.9511, 1, 0.9749)),
    ],
)
def test_where_some_are_needed(fewest: int, wanted: tuple[float, ...]) -> None:
    calls = torch.arange(len(wanted)).double()
    found = tool_coefficient(calls, torch.full_like(calls, fewest), 1.0)
    assert found.tolist() == pytest.approx(wanted, abs=5e-5)
    f = 2 * fewest * calls / (calls + fewest)
    assert torch.allclose(found, torch.sin(f * math.pi / (2 * fewest)))  # as the paper writes it
    assert float(found.max()) == float(found[fewest]) == 1.0


def answers(
    right: Sequence[float], calls: Sequence[int], group: Sequence[int] | None = None, **columns: Any
) -> Experience:
    """Scored responses of three tokens, the last of which is a tool's or padding in odd rows."""
    size = len(right)
    mask = torch.ones(size, 3, dtype=torch.bool)
    mask[1::2, 2] = False
    score = numbers(*right)
    return Experience(
        {
            "score": score,
            "reward": at_last_step(score, mask) - 0.25 * mask,  # a penalty at every token, as of a KL
            "mask": mask,
            "group": torch.tensor(group or [0] * size),
            "greedy": torch.zeros(size, dtype=torch.bool),
        },
        {"calls": list(calls), "prompt": columns.pop("prompt", [f"p{g}" for g in group or [0] * size])},
    )


def test_a_group_of_four() -> None:
    batch = answers((1, 1, 0, 1), (1, 2, 0, 4))
    context = make_context(None)
    done = ToolCoefficient()(batch, context)
    assert done["score"].tolist() == pytest.approx([1, 0.8660, 0, 0.5878], abs=5e-5)
    advantage = group_advantage(done["score"], batch["group"], "population-std", 0.0)
    assert advantage.tolist() == pytest.approx([1.0063, 0.6575, -1.5970, -0.0668], abs=5e-5)
    # the last step, where the policy speaks last, carries the whole change; penalties stay
    moved = done["reward"] - batch["reward"]
    assert torch.allclose(moved.sum(1), done["score"] - batch["score"])
    assert torch.equal(moved != 0, at_last_step(done["score"] - batch["score"], batch["mask"]) != 0)
    assert context.metrics["tools/minimum"] == 1.0 and context.metrics["tool_calls"] == pytest.approx(7 / 4)


def test_wrong_answers_earn_nothing_unless_it_is_added() -> None:
    batch = answers((0, 0, 1), (0, 1, 1))
    assert ToolCoefficient()(batch, make_context(None))["score"].tolist() == [0, 0, 1]
    added = ToolCoefficient(form="additive")(batch, make_context(None))["score"]
    assert added.tolist() == pytest.approx([0, 0.5, 1.5])
    none_right = answers((0, 0), (0, 3))
    for form in ("multiplicative", "additive"):
        part = ToolCoefficient(form=form)  # type: ignore[arg-type]
        assert ToolCoefficient()(none_right, make_context(None))["score"].tolist() == [0, 0]
        assert part(none_right, make_context(None))["score"].tolist() == [0, 0]  # n is unknown
    assert CallPrice()(batch, make_context(None))["score"].tolist() == pytest.approx([0, -0.1, 0.9])


# ------------------------------------------------------------------------------------------------------- the minimum


def test_only_right_answers_of_the_group_lower_the_minimum() -> None:
    calls, right = numbers(3, 0, 2, 5, 1), torch.tensor([True, False, True, True, False])
    found = fewest_calls(calls, right, torch.tensor([7, 7, 7, 2, 4]))
    assert found.tolist() == [2, 2, 2, 5, math.inf]


def test_the_running_minimum_remembers_prompts_and_never_rises() -> None:
    context = make_context(None)
    first = answers((1, 1, 1), (1, 3, 2), (0, 0, 5))
    ToolCoefficient()(first, context)
    assert context.memory("tool-coefficient") == {'"p0"': 1.0, '"p5"': 2.0}
    again = answers((1, 1, 0), (2, 3, 0), (3, 3, 3), prompt=["p0", "p0", "p0"])
    scores = ToolCoefficient()(again, context)["score"]
    assert scores.tolist() == pytest.approx([0.8660, 0.7071, 0], abs=5e-5)  # n = 1, from before
    assert ToolCoefficient(minimum="group")(again, context)["score"].tolist() == pytest.approx([1, 0.9511, 0], abs=5e-5)
    assert ToolCoefficient(minimum="zero")(again, context)["score"].tolist() == pytest.approx(
        [0.3090, 0.2225, 0], abs=5e-5
    )
    assert context.memory("tool-coefficient") == {'"p0"': 1.0, '"p5"': 2.0}


def test_greedy_twins_are_scaled_and_lower_nothing() -> None:
    batch = answers((1, 1, 1), (2, 3, 1)).with_fields(greedy=torch.tensor([False, False, True]))
    done = ToolCoefficient()(batch, make_context(None))["score"]
    assert done.tolist() == pytest.approx([1, 0.9511, 0.8660], abs=5e-5)


def test_order_padding_and_garbage_change_nothing() -> None:
    batch = answers((1, 1, 0, 1, 1), (1, 2, 0, 4, 2), (0, 0, 0, 1, 1))
    wanted = ToolCoefficient()(batch, make_context(None))
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(ToolCoefficient()(batch.rows(order), make_context(None))["reward"], wanted["reward"][order])
    wide = {n: torch.nn.functional.pad(batch[n], (0, 2)) for n in ("reward", "mask")}
    wider = ToolCoefficient()(batch.with_fields(**wide), make_context(None))
    assert torch.equal(wider["reward"][:, :3], wanted["reward"]) and not wider["reward"][:, 3:].any()


def test_where_every_answer_takes_the_fewest_calls_it_is_grpo_exactly() -> None:
    run_state = TableRunState()
    batch = token_batch(run_state)
    batch = batch.with_columns(calls=[3] * len(batch), prompt=[str(g) for g in batch["group"].tolist()])
    plain = credited(catalogue.build("grpo"), batch, make_context(run_state))
    otc = credited(catalogue.build("otc-po(minimum=group,right_from=-9)"), batch, make_context(run_state))
    assert torch.equal(plain["advantage"], otc["advantage"]) and bool(plain["advantage"].any())


# ----------------------------------------------------------------------------------------------- recipes and learning


def test_on_ppo_and_on_grpo() -> None:
    for spec in ("grpo+otc", "otc-po", "ppo+otc(minimum=zero)", "rloo+otc", "ppo(completions_per_prompt=4)+otc"):
        names = [p.name for p in catalogue.build(spec).check().parts()]
        assert names.index("task-reward") < names.index("tool-coefficient")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ppo+otc", "--minimum zero"),
        ("otc-po(smoothing=0)", "above 0"),
        ("otc-po(minimum=some)", "minimum"),
        ("otc-po(form=product)", "form"),
    ],
)
def test_recipes_that_cannot_be(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        catalogue.build(spec).check()
    assert "\n" not in str(told.value)


def test_a_task_that_counts_no_calls_is_told(small_model: Path) -> None:
    loop, _ = make_loop(RunConfig(method="otc-po", task="reverse", model=str(small_model), budget="iterations=1"))
    with pytest.raises(UserError, match="'reverse' has no tool that counts them") as told:
        loop.iterate()
    assert "\n" not in str(told.value)


class Vowels:
    """Counts the letters `e` of a response as calls and answers none of them."""

    stop = "e"

    def __init__(self) -> None:
        self.calls, self.ended = 0, False

    def reply(self, response: str) -> str | None:
        self.calls += 1
        return None

    def report(self) -> dict[str, Any]:
        return {"calls": self.calls}


@dataclass
class StopStringTracker(Reverse):
    """Any answer is right; the letter e is a tool call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rewards = [Reward("any", lambda prompts, completions, **columns: [1.0] * len(completions))]

    def session(self, row: Row) -> Vowels:
        return Vowels()


@pytest.mark.parametrize("method", ["otc-po(minimum=zero)", "ppo+otc(minimum=zero)"])
def test_calls_fall(method: str, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polyrl.run_state.language as module

    monkeypatch.setattr(module, "built_in_task", lambda name, **settings: StopStringTracker(difficulty=4))
    hyperparameters = {"learning_rate": "1e-3", "prompts_per_step": "8", "completions_per_prompt": "8"}
    config = RunConfig(
        method=method,
        task="reverse",
        model=str(small_model),
        budget="iterations=8",
        hyperparameters=hyperparameters,
        seed=SEED,
    )
    loop, _ = make_loop(config)
    calls = []
    for _ in range(8):
        loop.context.metrics.clear()
        loop.iterate()
        calls.append(loop.context.metrics["tool_calls"])
    reached(-sum(calls[-2:]) / sum(calls[:2]), -0.6)  # 0 to 0.18 of the calls are left
