"""TGDPO's controls: a guide that knows the gold of each token, and one whose rewards are dealt out anew."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import polyrl
from conftest import reached, read_records
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.preference.tgdpo import TokenGuidance, dealt_anew
from polyrl.models.language.tables import TablePolicy
from polyrl.tasks.language import task as make_task
from polyrl.tasks.language.answer_tree import AnswerTree
from polyrl.tasks.language.garbage_tail import GarbageTail
from polyrl.tasks.language.preferences import SortPairs
from polyrl.tasks.language.tables import ENDS
from polyrl.tasks.language.token_sums import TokenSums
from run_states import make_context

# ---------------------------------------------------------------------------------------------- what a token is worth


def test_tokens_of_sorted_digits_add_up_to_the_gold() -> None:
    """Less half of what a right token adds, for each within the answer's length."""
    task, dice = SortPairs(), random.Random(0)
    for row in task.rows("train", 0, 0, 40):
        answer = str(row["answer"])
        text = "".join(dice.choice("0123456789ab" + answer) for _ in range(dice.randint(0, len(answer) + 2)))
        assert task.token_gold is not None
        worth = task.token_gold(row, [*text, ""])
        half = 2 * min(len(text), len(answer)) / len(answer)
        assert len(worth) == len(text) + 1 and sum(worth) == pytest.approx(task.gold(row, text) - half)
    assert task.token_gold({"prompt": "52814>"}, ["1", "a", "b", ""]) == pytest.approx([0.4, -2.4, -0.4, -0.5])
    assert task.token_gold({"prompt": "21>"}, ["1", "2", "2", "7"]) == pytest.approx([1, 1, -0.25, -0.25])


def test_what_a_token_adds_where_the_start_goes_on_is_counted_over_all_answers() -> None:
    tables = AnswerTree(instance=1).tables
    start = tables.log_reference
    answers = torch.tensor([*itertools.product(range(3), repeat=3)])
    chance, gold = tables.logprob_of(start, answers).exp(), tables.worths(answers)

    def expected(*begun: int) -> float:
        fits = (answers[:, : len(begun)] == torch.tensor(begun)).all(1)
        return float((chance * gold)[fits].sum() / chance[fits].sum())

    task = AnswerTree(instance=1)
    for walk in ([0, 2, 1], task.walks()[0].tolist()):
        assert task.token_gold is not None
        found = task.token_gold({}, [f"a{action}" for action in walk])
        wanted = [expected(*walk[: i + 1]) - expected(*walk[:i]) for i in range(3)]
        assert found == pytest.approx(wanted) and max(map(abs, wanted)) > 1e-3
    advantage = tables.advantages(start)
    assert torch.allclose((start.exp() * advantage).sum(1), torch.zeros(len(start), dtype=torch.float64), atol=1e-12)


def test_where_places_are_free_a_token_adds_its_own_gold() -> None:
    tables = TokenSums(instance=2).tables
    assert torch.allclose(tables.advantages(tables.log_reference), tables.gold, atol=1e-12)
    assert int((tables.following == ENDS).sum()) == 10


# -------------------------------------------------------------------------------------------------- guides and controls


def batch_of(task: Any) -> tuple[Experience, Any, TablePolicy]:
    """The first pairs of a task over tables, the context of a run, and the policy at the start."""
    policy = TablePolicy(task.tables)
    rows = task.fixed_pairs["train"][:3]
    ids = torch.tensor([task.tables.ids(row[side]) for row in rows for side in ("chosen", "rejected")])
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = Experience(
        {"action": ids, "mask": mask, "greedy": torch.zeros(len(ids), dtype=torch.bool)},
        task_rows=[row for row in rows for _ in range(2)],
    )

    class State:
        pass

    state: Any = State()
    state.task, state.policy, state.reference_name = task, policy, ""
    return batch, make_context(state), policy


def test_an_oracle_is_the_gold_of_each_token_over_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyrl.pretrain.dpo_training.dpo_policy", lambda *_, **__: pytest.fail("nobody is asked"))
    task = TokenSums(instance=1)
    batch, context, _ = batch_of(task)
    part = TokenGuidance(alpha=0.4, dpo_beta=0.2, token_reward="oracle")
    assert part.prepare(task, "") == ""
    found = part(batch, context)["guidance"]
    places = torch.arange(task.length).expand(len(batch), -1)
    wanted = 0.4 / 0.2 * task.tables.gold[places, batch["action"]]
    assert torch.allclose(found.double(), wanted, atol=1e-6) and found.dtype == torch.float32
    # what is not counted is worth nothing, and the walk goes by what is
    masked = batch.with_fields(mask=torch.arange(task.length).expand(len(batch), -1) < 5)
    assert torch.equal(part(masked, context)["guidance"], found * masked["mask"])


def test_each_response_of_a_given_pair_is_worth_what_its_own_prompt_says() -> None:
    """Row 2n and 2n + 1 are of pair n; a demonstration behind the pairs is of none, and worth nothing."""
    _, context, _ = batch_of(TokenSums(instance=1))
    context.run_state.task = SimpleNamespace(
        fixed_pairs={"train": [{"n": 1.0}, {"n": 2.0}]}, token_gold=lambda row, tokens: [row["n"]] * len(tokens)
    )
    ones = torch.ones(5, 2, dtype=torch.bool)
    batch = Experience({"action": ones.long(), "mask": ones, "greedy": ~ones[:, 0], "example": torch.arange(5).flip(0)})
    found = TokenGuidance(alpha=0.1, dpo_beta=0.1, token_reward="oracle")(batch, context)["guidance"]
    assert torch.allclose(found, torch.tensor([0.0, 2, 2, 1, 1])[:, None].expand(-1, 2))


def test_dealt_anew_a_response_keeps_its_rewards_and_loses_their_places() -> None:
    values = torch.arange(24.0).view(4, 6)
    counted = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    action = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 2, 8], [3, 1, 4, 1, 5, 9], [3, 1, 4, 1, 5, 9]])
    found = dealt_anew(values, counted, action, 0)
    assert torch.equal(found.sort(1).values, values) and torch.equal(found[~counted], values[~counted])
    assert bool((found != values)[:3].any(1).all())
    assert not torch.equal(found[0], found[1] - 6)  # rows are dealt apart from each other
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(dealt_anew(values[order], counted[order], action[order], 0), found[order])
    assert not torch.equal(dealt_anew(values, counted, action, 1), found)


def test_a_run_with_shuffled_rewards_has_the_same_weights_in_other_places(tmp_path: Path) -> None:
    """Means over a response's tokens are equal at every step, and what is learned is not."""
    how: dict[str, Any] = {"budget": "iterations=3", "evaluations": 1, "tensorboard": False, "overwrite": True}
    thetas, means = [], []
    for shuffled in (False, True):
        made = polyrl.train(
            "tgdpo(token_reward=oracle)", task="token-sums(instance=1)", out=tmp_path / "run", shuffled=shuffled, **how
        )
        thetas.append(made.final["eval/gold"])
        means.append([row["token_weight/mean"] for row in read_records(tmp_path / "run") if "token_weight/mean" in row])
    assert means[0] == pytest.approx(means[1], abs=1e-6) and len(means[0]) == 3
    assert abs(thetas[0] - thetas[1]) > 1e-4


def test_on_few_pairs_true_credit_leads_further_than_shuffled_or_none(tmp_path: Path) -> None:
    how: dict[str, Any] = {"budget": "iterations=150", "evaluations": 1, "tensorboard": False, "overwrite": True}
    plain = {"learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0}

    def gold(method: str, **options: Any) -> float:
        task, out = "token-sums(instance=1,pairs=30)", tmp_path / "run"
        return polyrl.train(method, task=task, out=out, quiet=True, **how, **plain, **options).final["eval/gold"]

    oracle: dict[str, Any] = {"token_reward": "oracle", "alpha": 1.0}
    others = max(gold("dpo"), gold("tgdpo", **oracle, shuffled=True))
    reached(gold("tgdpo", **oracle) - others, 1.0)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("garbage-tail", {"shuffled": True}, "one token, so --shuffled has nothing to deal out"),
        ("reverse", {"token_reward": "oracle"}, "The task reverse does not know what a token is worth"),
    ],
)
def test_a_control_that_a_task_has_not_is_refused(task: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TokenGuidance(**options).prepare(make_task(task), "")
    assert TokenGuidance(alpha=0.0, **options).prepare(make_task(task), "") == ""


def test_an_oracle_asks_no_model() -> None:
    with pytest.raises(UserError, match="--token-reward oracle asks no guide; leave --dpo-model away"):
        build("tgdpo(token_reward=oracle,dpo_model=somewhere)")


def test_every_world_over_tables_knows_its_tokens() -> None:
    for task in (GarbageTail(), AnswerTree(), TokenSums()):
        assert task.token_gold is not None
