"""PPO-max: running moments, the reward of each token, critic pre-training, demonstrations, schedule and monitors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import DIFFICULTY, SEED, TASK, reached, read_records
from polyrl.api import train
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.core.means import Means
from polyrl.core.schedules import schedule_factor
from polyrl.errors import UserError
from polyrl.methods.language import ppo_max
from polyrl.methods.language.ppo_max import Moments, NormalizeScore, OptimizeWithDemonstrations
from polyrl.models.language.policy import LanguagePolicy
from polyrl.models.language.rows import as_experience
from polyrl.parts.improve import ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, TokenKLPenalty, last_step
from polyrl.pretrain.solutions import demonstration
from polyrl.run_state.language import LanguageRunState
from polyrl.runtime.budget import Spent
from polyrl.tasks.language import task
from run_states import TableRunState, credited, make_context, token_batch


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every demonstration says that token 3 follows token 1; gives the rows that were asked for."""
    asked: list[tuple[int, int]] = []

    def worked(policy: Any, task: Any, start: int, count: int) -> Experience:
        asked.append((start, count))
        return as_experience([[1]] * count, [[3]] * count, pad_id=0)

    monkeypatch.setattr(ppo_max, "worked_batch", worked)
    monkeypatch.setattr(TableRunState, "policy", None, raising=False)
    monkeypatch.setattr(TableRunState, "task", None, raising=False)
    return asked


def scored(score: list[float], length: int = 3) -> Experience:
    size = len(score)
    mask = torch.ones(size, length, dtype=torch.bool)
    reward = torch.zeros(size, length)
    reward[:, -1] = torch.tensor(score)
    plain = {
        "score": torch.tensor(score),
        "reward": reward,
        "mask": mask,
        "greedy": torch.zeros(size, dtype=torch.bool),
    }
    return Experience(plain)


def test_running_moments():
    first = Moments().with_batch(torch.tensor([1.0, 2.0, 3.0]))
    assert (first.mean, first.variance, first.deviation) == pytest.approx((2.0, 2 / 3, 1.0))
    second = first.with_batch(torch.tensor([5.0]))
    assert (second.mean, second.variance, second.deviation) == pytest.approx((2.75, 2.1875, 1.707825), abs=1e-6)
    assert (5 - second.mean) / second.deviation == pytest.approx(1.317465, abs=1e-6)
    whole = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert second.deviation == pytest.approx(whole.std().item())  # in parts or at once
    assert Moments().with_batch(torch.full((4,), 2.0)).deviation == 1e-8


def test_scores_are_clipped_scaled_or_left():
    for settings, expected in (
        ({}, 0.8),
        ({"score_clip": 0}, 1.317465),
        ({"score_form": "scale", "score_clip": 0}, 2.927700),
    ):
        part, context = NormalizeScore(**settings), make_context(None)
        part(scored([1.0, 2.0, 3.0]), context)
        out = part(scored([5.0]), context)
        assert out["score"].item() == pytest.approx(expected, abs=1e-5)
        assert out["reward"][0].tolist() == pytest.approx([0.0, 0.0, expected], abs=1e-5)


def test_a_constant_or_a_factor_changes_nothing():
    batches = [torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = []
    for factor, constant in ((1.0, 0.0), (1.0, 7.0), (4.0, -2.0)):
        context = make_context(None)
        found.append([NormalizeScore()(scored((factor * b + constant).tolist()), context)["score"] for b in batches])
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found[0], other, strict=True))


def test_equal_scores_are_worth_nothing():
    out = NormalizeScore()(scored([2.0] * 4), make_context(None))
    assert bool((out["reward"].abs() <= 0.8).all()) and torch.equal(out["score"], torch.zeros(4))


def test_reward_of_each_token():
    """eta 0.05, log-ratios (.1, -.05, .2), normalized score 1: (-.005, .0025, .99); no ratio, no KL."""
    batch = scored([1.0]).with_fields(
        behaviour_logprob=torch.tensor([[0.1, -0.05, 0.2]]) - 1, ref_logprob=torch.full((1, 3), -1.0)
    )
    out = TokenKLPenalty(kl_coef=0.05)(batch, make_context(None))
    assert out["reward"][0].tolist() == pytest.approx([-0.005, 0.0025, 0.99])
    same = batch.with_fields(behaviour_logprob=batch["ref_logprob"])
    assert TokenKLPenalty(kl_coef=0.05)(same, make_context(None))["reward"][0].tolist() == [0.0, 0.0, 1.0]


def test_penalties_stay_and_twins_count_nothing():
    """The score moves at the last token alone, whatever else was paid; greedy baselines do not enter the moments."""
    run_state = TableRunState()
    batch = TaskReward()(token_batch(run_state, greedy_baseline=True), make_context(run_state))
    bent = batch.with_fields(reward=batch["reward"] + 0.25 * batch["mask"])
    context = make_context(run_state)
    out = NormalizeScore(score_clip=0)(bent, context)
    end = last_step(batch["mask"])
    assert torch.equal((out["reward"] - bent["reward"])[~end], torch.zeros_like(out["reward"])[~end])
    assert torch.allclose((out["reward"] - bent["reward"])[end], out["score"] - bent["score"])
    sampled = batch["score"][~batch["greedy"]]
    assert context.memory("normalize-score")["mean"] == pytest.approx(float(sampled.mean()))
    shuffle = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    again = NormalizeScore(score_clip=0)(bent.rows(shuffle), make_context(run_state))
    assert torch.allclose(again["reward"], out["reward"][shuffle])


def test_learning_rate():
    factors = [schedule_factor("inverse-sqrt", step / 1000, 0.1) for step in (0, 5, 50, 100, 400, 1000)]
    assert factors == pytest.approx([0.1, 0.1, 0.5, 1.0, 0.5, 0.31623], abs=1e-5)
    assert schedule_factor("inverse-sqrt", 0.5, 0.0) == 1.0


def test_the_critic_has_a_schedule_of_its_own():
    rates = []
    for hyperparameters in ({}, {"critic_schedule": "constant", "critic_warmup": 0.0}, {"critic_warmup": 0.5}):
        recipe = build(
            "ppo", {"schedule": "linear", "warmup": "0.2", **{k: str(v) for k, v in hyperparameters.items()}}
        )
        run_state = TableRunState()
        context = make_context(run_state, recipe)
        context.began = Spent(samples=600, iterations=6)  # of 1000
        recipe.optimize.run(recipe.terms, credited(recipe, token_batch(TableRunState(seed=0)), context), context)
        rates.append([context.optimizer[name].param_groups[0]["lr"] for name in ("policy", "critic")])
    assert [policy for policy, _ in rates] == pytest.approx([1e-4 * 0.5] * 3)
    assert [critic for _, critic in rates] == pytest.approx([1e-3 * 0.5, 1e-3, 1e-3 * 0.8])


def test_perplexity_is_of_the_mean_per_token():
    assert math.exp(2.0) == pytest.approx(7.389, abs=1e-3) and math.exp(2 / 150) == pytest.approx(1.01342, abs=1e-5)


@pytest.mark.parametrize("micro", [None, 5])
def test_critic_pretraining_holds_the_policy_still(micro: int | None):
    recipe = build("ppo+critic-pretraining(critic_pretraining=2)")
    moved = []
    run_state = TableRunState(micro=micro, garbage=math.nan)
    context = make_context(run_state, recipe)
    for iteration in (1, 2, 3):
        context.iteration = iteration
        before = run_state.table.detach().clone(), run_state.values.detach().clone()
        batch = credited(recipe, token_batch(TableRunState(seed=0)), context)
        recipe.optimize.run(recipe.terms, batch, context)
        moved.append((not torch.equal(before[0], run_state.table), not torch.equal(before[1], run_state.values)))
    assert moved == [(False, True), (False, True), (True, True)]


def test_no_pretraining_is_ppo_exactly(shown: list[tuple[int, int]]):
    found = []
    for spec in ("ppo", "ppo+critic-pretraining(critic_pretraining=0)+optimize-with-demonstrations(ptx_coef=0)"):
        run_state, recipe = TableRunState(), build(spec)
        context = make_context(run_state, recipe)
        recipe.optimize.run(recipe.terms, credited(recipe, token_batch(run_state), context), context)
        found.append(run_state.weights())
    assert torch.equal(*found) and shown == []


def test_demonstrations_are_imitated_but_not_while_the_critic_learns_alone(shown: list[tuple[int, int]]):
    def chance(spec: str) -> tuple[float, dict[str, float]]:
        run_state, recipe = TableRunState(), build(spec, {"learning_rate": "0.01"})
        context = make_context(run_state, recipe)
        recipe.optimize.run(recipe.terms, credited(recipe, token_batch(run_state), context), context)
        return float(run_state.table.detach().log_softmax(-1)[1, 3]), context.metrics

    start = float(TableRunState().table.detach().log_softmax(-1)[1, 3])
    plain, _ = chance("ppo")
    imitating, metrics = chance("ppo+optimize-with-demonstrations(ptx_coef=1)")
    assert imitating > plain and metrics["loss/demonstrations"] > 0
    held, metrics = chance("ppo+critic-pretraining+optimize-with-demonstrations(ptx_coef=1)")
    assert held == start and "loss/demonstrations" not in metrics


def test_gradient_of_demonstrations(small_model: Path):
    """It is the mean over tokens of all rows, in micro-batches of any size, and is added to what is there."""
    words = task(TASK, difficulty=DIFFICULTY)
    (on,) = OptimizeWithDemonstrations(ptx_coef=0.5, ptx_rows=6).also
    gradients, losses = [], []
    for tokens in (16, 4096):
        run_state = LanguageRunState(words, small_model, micro_batch_tokens=tokens)
        context, means = make_context(run_state), Means()
        for _ in range(2):
            Optimize()._join(on, means, context)
        gradients.append(torch.cat([p.grad.flatten() for p in run_state.policy.parameters() if p.grad is not None]))
        losses.append(means.found()["loss/demonstrations"])
    assert torch.allclose(*gradients, atol=1e-5) and losses[0] == pytest.approx(losses[1], rel=1e-5)
    policy = LanguagePolicy.load(small_model)
    rows = words.rows("train", 1_000_003, 0, 6)
    total, count = torch.zeros(()), 0
    for row in rows:
        prompt, ids, learned = demonstration(policy, words, row)  # type: ignore[misc]
        tokens = torch.tensor([[*prompt, *ids]])
        logits = policy.model(tokens).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        total = total - logits.gather(1, torch.tensor(ids)[:, None]).sum()
        count += sum(learned)
    (0.5 * total / count).backward()
    wanted = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(0.5 * float(total.detach()) / count, rel=1e-4)
    assert torch.allclose(gradients[1], 2 * wanted, atol=1e-4)


def test_each_step_reads_the_next_demonstrations(small_model: Path):
    words = task(TASK, difficulty=DIFFICULTY)
    run_state = LanguageRunState(words, small_model)
    (on,) = OptimizeWithDemonstrations(ptx_rows=3).also
    context = make_context(run_state)
    context.spent.updates = 5
    batch, rows = on.batch.rows(context), words.rows("train", 1_000_003, 15, 3)
    length = batch["prompt_mask"].sum(1) + batch["present"].sum(1)
    assert length.tolist() == sorted(length.tolist(), reverse=True)
    asked = [
        run_state.policy.decode(ids[real].tolist())
        for ids, real in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]
    assert sorted(asked) == sorted(row["prompt"] for row in rows)
    assert set(batch.fields()) >= on.batch.fields and torch.equal(batch["weight"] != 0, batch["mask"])


def test_share_of_clipped_values():
    batch = Experience({"value": torch.zeros(1, 4), "value_target": torch.ones(1, 4), "weight": torch.ones(1, 4)})
    outputs = {"value": torch.tensor([[0.1, 0.3, -0.5, 0.0]])}
    assert ValueLoss(value_clip_range=0.2).statistics(outputs, batch)["value/clip_ratio"].mean() == 0.5
    assert ValueLoss().statistics(outputs, batch) == {}


def test_composition_and_bad_settings():
    with pytest.raises(UserError, match="nothing here trains a critic; set --critic-pretraining 0 or start from ppo"):
        build("grpo+ppo-max")
    with pytest.raises(UserError, match="nothing here trains a critic"):
        build("grpo+ppo-max", {"critic_pretraining": 0, "critic_start": "reward-model"})
    mixed = build("grpo+ppo-max", {"critic_pretraining": 0})
    assert isinstance(mixed.optimize, Optimize) and mixed.optimize.minibatches == 2  # grpo's own settings stay
    assert [p.name for p in mixed.score] == ["task-reward", "normalize-score", "token-kl-penalty"]
    for bad in ("ppo-max(score_clip=-1)", "ppo-max(critic_pretraining=-1)", "ppo-max(ptx_coef=-0.1)"):
        with pytest.raises(UserError, match="must be at least 0"):
            build(bad)
    with pytest.raises(UserError, match="only language tasks have"):
        build("ppo+optimize-with-demonstrations", domain="control")


def test_it_learns_after_the_critic(small_model: Path, tmp_path: Path):
    hyperparameters: dict[str, Any] = {"learning_rate": 1e-3, "critic_pretraining": 2, "prompts_per_step": 64}
    done = train(
        "ppo-max",
        task=TASK,
        model=small_model,
        budget="samples=1024",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False},
        **hyperparameters,
    )
    reached(done.final["eval/accuracy"] - done.start["eval/accuracy"], 0.3)  # 0.61 to 0.68 with three seeds
    rows = read_records(tmp_path / "run")[1:]
    assert all(abs(r["kl"]) < 1e-4 and "approx_kl" not in r for r in rows[:2]) and rows[-1]["kl"] > 0.05
    assert rows[0]["perplexity"] == pytest.approx(rows[0]["ref_perplexity"], rel=1e-3)
    assert {"score/clipped", "score/skewness", "value/clip_ratio", "loss/demonstrations"} <= set(rows[-1])
