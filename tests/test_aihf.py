"""AIHF: optima and gradients by hand, the joint step's gradient, AIHF-DPO's loss, masks, learning, resuming."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import NotFinite, UserError
from polyrl.methods.language.aihf import joint_reward_loss
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.parts.imitation import DemonstrationNLL
from polyrl.pretrain.demonstrations import demonstrations
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.language import task
from run_states import TableRunState, token_batch

torch.set_num_threads(1)
DEMOS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PAIRS = ((1, 0, 0.5), (0, 2, 0.3), (2, 1, 0.2))


def gradient(r: Tensor, demos: Tensor, pairs: tuple[tuple[int, int, float], ...], weight: float, beta: float) -> Tensor:
    """What `joint_reward_loss` gives where samples come from the policy that is optimal for r, pi ~ exp(r / beta)."""
    leaf = r.clone().requires_grad_()
    policy = (r / beta).softmax(0)
    nothing = leaf[:0]
    expert, sampled = (demos * leaf).sum()[None], (policy * leaf).sum()[None]
    zero = torch.zeros(1, dtype=torch.float64)
    loss = joint_reward_loss(expert, sampled, zero, zero, weight, beta)
    for better, worse, mass in pairs:
        part = joint_reward_loss(nothing, nothing, leaf[better][None], leaf[worse][None], 0.0, beta)
        loss = loss + mass * part
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def optimum(demos: Tensor, pairs: tuple[tuple[int, int, float], ...], weight: float) -> Tensor:
    r = torch.zeros(len(demos), dtype=torch.float64)
    for _ in range(400):
        r = r - 2.0 * gradient(r, demos, pairs, weight, 1.0)
    return r - r.mean()


# ------------------------------------------------------------------------------------------------ the paper's numbers


@pytest.mark.parametrize(("demos", "pairs", "best"), [(20, 80, 0.66), (20, 0, 0.9), (0, 80, 0.6)])
def test_demonstrations_and_pairs_are_averaged(demos: int, pairs: int, best: float) -> None:
    """Two actions: pi(1) = (w1 n_D p + n_P s) / (w1 n_D + n_P); the loss takes means, so sums are given as weights."""
    total = max(pairs, 1)
    labels = ((1, 0, 0.6), (0, 1, 0.4)) if pairs else ()
    r = optimum(torch.tensor([0.1, 0.9], dtype=torch.float64), labels, demos / total if pairs else 1.0)
    assert float(r.softmax(0)[1]) == pytest.approx(best, abs=1e-6)
    if best == 0.66:
        assert float(r[1] - r[0]) == pytest.approx(0.663294, abs=1e-5)


def test_demonstrations_alone_give_their_log_frequencies() -> None:
    r = optimum(DEMOS, (), 1.0)
    assert r.tolist() == pytest.approx([0.475705, -0.035120, -0.440585], abs=1e-5)
    assert r.softmax(0).tolist() == pytest.approx(DEMOS.tolist(), abs=1e-6)


def test_the_joint_optimum_and_the_gradients_at_zero() -> None:
    assert optimum(DEMOS, PAIRS, 1.0).softmax(0).tolist() == pytest.approx([0.372554, 0.408367, 0.219079], abs=1e-5)
    zero = torch.zeros(3, dtype=torch.float64)
    assert (-gradient(zero, DEMOS, PAIRS, 1.0, 1.0)).tolist() == pytest.approx(
        [0.066667, 0.116667, -0.183333], abs=1e-6
    )
    assert (-gradient(zero, DEMOS, (), 1.0, 2.0)).tolist() == pytest.approx([0.083333, -0.016667, -0.066667], abs=1e-6)


def test_the_demonstrations_part_vanishes_where_it_should() -> None:
    score = torch.tensor([0.3, -0.2], requires_grad=True)
    chosen, rejected = torch.tensor([0.5, 1.0], requires_grad=True), torch.tensor([0.1, 2.0], requires_grad=True)
    same = joint_reward_loss(score, score, chosen, rejected, 3.0, 0.1)
    pairs = joint_reward_loss(score, 2 * score, chosen, rejected, 0.0, 0.1)
    assert torch.equal(same, pairs)
    assert torch.autograd.grad(same, score)[0].abs().max() == 0
    slope = torch.autograd.grad(pairs, chosen)[0]
    assert torch.allclose(slope, -(1 - (chosen - rejected).sigmoid()) / 2)


def given(n_pairs: int = 1) -> Experience:
    """One pair and one demonstration of one token each."""
    ones = torch.ones(3, 1)
    return Experience(
        {
            "pair": torch.tensor([0, 0, -1]),
            "preferred": torch.tensor([True, False, False]),
            "demonstrated": torch.tensor([False, False, True]),
            "mask": ones.bool(),
            "weight": ones,
            "ref_logprob": torch.log(torch.tensor([[0.5], [0.5], [0.25]])),
        }
    )


def test_aihf_dpo_at_the_start() -> None:
    batch = given()
    outputs = {"logprob": batch["ref_logprob"]}
    dpo, nll = DPOLoss(beta=0.1), DemonstrationNLL(demonstration_weight=0.5)
    preference = (dpo.loss(outputs, batch) * dpo.step_weights(batch)).sum()
    imitation = (nll.loss(outputs, batch) * nll.step_weights(batch)).sum()
    assert float(preference) == pytest.approx(math.log(2), abs=1e-6)
    assert float(preference + imitation) == pytest.approx(1.386294, abs=1e-6)
    assert dpo.weights(batch)[:, 0].tolist() == [1, 1, 0]  # a demonstration does not dilute the pairs' metrics
    chosen = DemonstrationNLL(demonstration_weight=0.5, imitate="chosen")
    assert (chosen.loss(outputs, batch) * chosen.step_weights(batch)).sum() == pytest.approx(0.5 * math.log(2))


def test_padding_and_order_of_rows_do_not_count() -> None:
    run_state = TableRunState(garbage=1e6)
    batch = token_batch(run_state)
    batch = batch.with_fields(weight=batch["mask"].double(), demonstrated=torch.arange(len(batch)) % 3 == 0)
    term, order = DemonstrationNLL(), torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    found = []
    for rows in (torch.arange(len(batch)), order):
        table = batch.rows(rows)
        outputs = run_state.outputs(table, {"logprob"})
        weights = term.step_weights(table)
        assert not bool(weights[~table["mask"]].any()) and not bool(weights[~table["demonstrated"]].any())
        found.append(float(torch.where(weights != 0, term.loss(outputs, table) * weights, 0.0).sum().detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


# ------------------------------------------------------------------------------------------------------------- training


def loop_of(model: Path, method: str = "aihf", *, micro: Any = 1024, seed: int = 0, **settings: Any) -> Any:
    config = RunConfig(
        method=method,
        task="sort-pairs(pairs=64)",
        model=str(model),
        budget="iterations=40",
        seed=seed,
        tensorboard=False,
        eval_prompts=200,
        micro_batch_tokens=micro,
        hyperparameters={k: str(v) for k, v in settings.items()},
    )
    return make_loop(config)[0]


SMALL: dict[str, Any] = {"prompts_per_step": 4, "reward_pairs": 4, "demonstrations": 16, "reward_steps": 1}


def test_the_size_of_micro_batches_does_not_count(taught: Path) -> None:
    """The reward's step is one gradient of the whole loss, however its forward passes are cut."""
    found = []
    for micro in (4096, 40):
        loop = loop_of(taught, micro=micro, learning_rate="0", **SMALL)
        loop.iterate()
        found.append(torch.cat([p.detach().flatten() for p in loop.run_state.own["reward"].model.parameters()]))
    moved = (found[0] - found[1]).abs().max()
    assert float(moved) < 2e-4  # Adam's first step turns rounding of tiny gradients into steps of up to 5e-4


@pytest.mark.parametrize(("told", "factor"), [("loss", math.nan), ("gradient", 0.0)])
def test_a_reward_that_is_no_number_takes_no_step(told: str, factor: float, taught: Path) -> None:
    """The root of 0 has a value, and no slope."""
    run_state = loop_of(taught).run_state
    reward = run_state.own["reward"]
    before = [p.clone() for p in reward.model.parameters()]
    batch = reward.encoded(["ba=", "cb="], ["ab", "bc"])
    optimizer = torch.optim.SGD(reward.model.parameters(), lr=1.0)
    with pytest.raises(NotFinite, match=f"The {told} of the reward that is learned became nan"):
        reward.step(lambda scores: (factor * scores[0]).abs().sqrt().sum(), [batch], optimizer, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, reward.model.parameters(), strict=True))


def test_the_reward_separates_and_the_policy_follows_its_step(taught: Path) -> None:
    """With the policy still, demonstrations come out ahead of its samples; nothing of the policy is touched."""
    settings = {"learning_rate": "0", "demonstration_weight": "0.1", "reward_learning_rate": "2e-3"}
    loop = loop_of(taught, seed=SEED, **{**SMALL, **settings})
    before = [p.clone() for p in loop.run_state.policy.parameters()]
    gaps = []
    for _ in range(12):
        loop.iterate()
        gaps.append(loop.context.metrics["joint/demonstration_gap"])
    reached(sum(gaps[-3:]) - sum(gaps[:3]), 0.1)  # 0.3 to 2.2 with three seeds
    assert all(torch.equal(a, b) for a, b in zip(before, loop.run_state.policy.parameters(), strict=True))
    assert loop.context.spent.reward_calls == 0


def test_aihf_dpo_learns_from_both(taught: Path) -> None:
    loop = loop_of(
        taught,
        "dpo+demonstrated-pairs+demonstration-nll",
        seed=SEED,
        pairs_per_step=8,
        demonstrations_per_step=16,
        demonstrations=64,
        demonstration_weight="0.3",
        learning_rate="2e-3",
        schedule="constant",
    )
    start = loop.run_state.evaluate()[0]["eval/gold"]
    for _ in range(20):
        loop.iterate()
    reached(loop.run_state.evaluate()[0]["eval/gold"] - start, 0.4)


def test_first_demonstrations_then_pairs(taught: Path) -> None:
    method = "dpo+demonstrated-pairs(sft_share=0.5)+demonstration-nll"
    loop = loop_of(taught, method, pairs_per_step=4, demonstrations_per_step=4)
    rows = []
    for _ in range(21):
        rows.append(loop.iterate()["demonstrated"].tolist())
    assert rows[0] == [True] * 4 and rows[-1] == [False] * 8
    assert "loss/dpo-loss" in loop.context.metrics and "loss/demonstration-nll" not in loop.context.metrics


def test_a_resumed_run_has_the_same_reward(taught: Path, tmp_path: Path) -> None:
    one, other = loop_of(taught, **SMALL), loop_of(taught, **SMALL)
    one.iterate()
    assert one.context.optimizer["reward"].param_groups[0]["lr"] == 2e-4
    one.run_state.save(tmp_path / "saved")
    other.run_state.load(tmp_path / "saved")
    for a, b in zip(
        one.run_state.own["reward"].model.parameters(), other.run_state.own["reward"].model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    assert sorted(one.run_state.parameters()) == ["policy", "reward"]


def test_demonstrations_are_fixed_and_right() -> None:
    sort: Any = task("sort-pairs")
    shown = demonstrations(sort, 3, 5)
    assert shown == demonstrations(sort, 3, 5) != demonstrations(sort, 4, 5)
    assert all(sort.correct(one.row, one.answer) and "demonstration" not in one.row for one in shown)


def test_compositions() -> None:
    for base in ("ppo", "grpo"):
        made = catalogue.build(f"{base}+aihf", domain="language")
        assert {p.name for p in (made.collect, *made.score, made.optimize)} >= {
            "demonstrated-prompts",
            "learned-reward",
            "joint-improvement",
        }
    with pytest.raises(UserError, match="collect with demonstrated-prompts"):
        catalogue.build("rloo+learned-reward+joint-improvement", {"kl_coef": "0.1"}, domain="language")
    with pytest.raises(UserError, match="differ; set --kl-coef"):
        catalogue.build("aihf(joint_improvement.kl_coef=0.3)", {}, domain="language")
