"""Reward ensembles: the card's numbers, the limits in which they are a single model, best-of-n, and that they learn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import DIFFICULTY, SEED, reached, read_records
from polyrl.api import train
from polyrl.catalogue import build
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.language.rm_ensembles import (
    UWO,
    WCO,
    BestOfN,
    EnsembleMean,
    OneMember,
    uncertainty_weighted,
    worst_case,
)
from polyrl.parts.proxies import best_of_n, best_of_n_kl, best_of_n_weights
from polyrl.parts.score import TaskReward, kl_estimate
from polyrl.pretrain import reward_models
from polyrl.pretrain.reward_training import bradley_terry_loss
from polyrl.pretrain.wanted import prepare, prepare_ensemble
from polyrl.tasks.language import Reward, learned, task
from run_states import TableRunState, credited, make_context, token_batch


class EnsembleRunState(TableRunState):
    """The table run state with an ensemble: member `i` gives `truth` times `scale[i]` plus `shift[i]`."""

    def __init__(self, scale: list[float], shift: list[float], **more: Any):
        super().__init__(**more)
        self.scale, self.shift = torch.tensor(scale), torch.tensor(shift)

    def member_scores(self, experience: Experience, members: int) -> tuple[Tensor, int]:
        truth = torch.tensor(experience.columns["truth"], dtype=torch.float64)
        return truth[:, None] * self.scale + self.shift, len(experience)

    def measures(self, experience: Experience) -> dict[str, Tensor]:
        return {"gold": torch.tensor(experience.columns["truth"]).float()}


def test_objectives_of_a_row():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert scores.mean(-1).item() == 3.0 and worst_case(scores).item() == 1.0
    assert uncertainty_weighted(scores, 0.5).item() == pytest.approx(2.0)
    assert uncertainty_weighted(scores, 0.1).item() == pytest.approx(2.8)
    assert uncertainty_weighted(scores, 0.0).item() == 3.0


def test_identical_members_and_shifts():
    one = torch.randn(6, 1, generator=torch.Generator().manual_seed(0))
    many = one.expand(6, 5)
    for combined in (many.mean(-1), worst_case(many), uncertainty_weighted(many, 0.7)):
        assert torch.allclose(combined, one[:, 0], atol=1e-6)
    spread = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert bool((worst_case(spread) <= spread.mean(-1)).all())
    for f in (worst_case, lambda s: uncertainty_weighted(s, 0.5)):
        assert torch.allclose(f(spread + 2), f(spread) + 2, atol=1e-5)  # the same constant for all members
        assert not torch.allclose(f(spread + torch.arange(5.0)), f(spread) + 2, atol=1e-2)


def test_best_of_n_estimator():
    proxy, gold = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.1, 0.9, 0.4, 0.2])
    found = [best_of_n(proxy, gold, n).item() for n in (1, 2, 3, 4)]
    assert found == pytest.approx([0.4, 0.383333, 0.25, 0.2], abs=1e-6)
    shuffle = torch.tensor([2, 0, 3, 1])
    assert best_of_n(proxy[shuffle], gold[shuffle], 2).item() == pytest.approx(0.383333, abs=1e-6)
    for n in (1, 7, 100, 2048):
        weights = best_of_n_weights(n, 2048)
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-8) and bool(torch.isfinite(weights).all())


def test_best_of_n_is_the_mean_over_all_subsets():
    g = torch.Generator().manual_seed(3)
    proxy, gold = torch.randn(7, generator=g), torch.randn(7, generator=g)
    for n in (1, 2, 3, 6, 7):
        chosen = [max(s, key=lambda i: float(proxy[i])) for s in itertools.combinations(range(7), n)]
        assert best_of_n(proxy, gold, n).item() == pytest.approx(float(gold[chosen].double().mean()), abs=1e-9)


def test_kl_of_best_of_n_and_k2():
    expected = {1: 0.0, 2: 0.193147, 4: 0.636294, 16: 1.835089, 12500: 8.433564}
    assert {n: best_of_n_kl(n) for n in expected} == pytest.approx(expected, abs=1e-6)
    # the exact KL of best-of-2 from two equally likely answers without a tie: (1/4, 3/4) against (1/2, 1/2) is less
    assert 0.25 * math.log(0.5) + 0.75 * math.log(1.5) < best_of_n_kl(2)
    ratios = torch.tensor([0.3, -0.1])
    assert kl_estimate(ratios, torch.zeros(2), "k2").mean().item() == pytest.approx(0.025)


def test_flipped_labels_shrink_the_margin():
    """A true preference of 0.9 under 25% flips is 0.7; the best Bradley-Terry margin falls from 2.1972 to 0.8473."""
    seen = 0.75 * 0.9 + 0.25 * 0.1
    assert seen == pytest.approx(0.7)
    for p, best in ((0.9, 2.1972), (seen, 0.8473)):
        margin = torch.tensor([math.log(p / (1 - p))], requires_grad=True)
        zero = torch.zeros(1)
        loss = p * bradley_terry_loss(margin, zero) + (1 - p) * bradley_terry_loss(zero, margin)
        loss.backward()
        assert margin.item() == pytest.approx(best, abs=1e-4) and abs(float(margin.grad[0])) < 1e-6


@pytest.mark.parametrize("part", [EnsembleMean(centre=False), WCO(centre=False), UWO(centre=False, uwo_coef=0.4)])
def test_one_member_is_the_task_reward(part: Any):
    run_state = EnsembleRunState([1.0], [0.0])
    batch = token_batch(run_state, greedy_baseline=True)
    a, b = make_context(run_state), make_context(run_state)
    mine, plain = part(batch, a), TaskReward()(batch, b)
    for name in ("score", "reward", "terminated", "truncated"):
        assert torch.equal(mine[name].double(), plain[name].double()), name
    assert {k: v for k, v in a.metrics.items() if not k.startswith("ensemble/")} == b.metrics
    assert a.metrics["ensemble/variance"] == 0 and a.spent.reward_calls == b.spent.reward_calls == len(batch)


def test_the_whole_recipe_with_one_member_is_ppo():
    run_state = EnsembleRunState([1.0], [0.0])
    batch = token_batch(run_state)
    recipes = build("ppo"), build("ppo+wco(centre=false)"), build("rm-ensembles(centre=false)")
    found = [credited(r, batch, make_context(run_state))["advantage"] for r in recipes]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_centring_undoes_scales_and_remembers_the_first_batch():
    """Members that differ by a scale and a constant agree once they are centred, in later batches as well."""
    run_state = EnsembleRunState([1.0, 5.0, 0.2], [0.0, 3.0, -7.0])
    context, first, later = make_context(run_state), token_batch(run_state), token_batch(run_state, seed=5)
    out = [WCO()(b, context) for b in (first, later)]
    for batch in out:
        assert float(batch["member_score"].var(1, correction=0).max()) < 1e-10
    counted = out[0]["score"]
    assert counted.mean().item() == pytest.approx(0, abs=1e-9)
    assert counted.std(correction=0).item() == pytest.approx(1)
    assert abs(out[1]["score"].mean().item()) > 1e-3  # the later batch is not centred by itself
    rough = WCO(centre=False)(first, make_context(run_state))
    assert float(rough["member_score"].var(1, correction=0).min()) > 1


def test_rows_that_lost_a_member_are_dropped_and_order_means_nothing():
    run_state = EnsembleRunState([1.0, 2.0], [0.0, 0.0])
    batch = token_batch(run_state)
    truth = batch.columns["truth"]
    truth[3] = math.nan
    context = make_context(run_state)
    out = UWO()(batch.with_columns(truth=truth), context)
    assert len(out) == len(batch) - 1 and context.metrics["rewards/dropped"] == 1
    flipped = torch.arange(len(batch)).flip(0)
    again = UWO()(batch.with_columns(truth=truth).rows(flipped), make_context(run_state))
    assert torch.allclose(again["reward"].flip(0), out["reward"], atol=1e-6)


def test_the_seed_picks_the_single_member():
    run_state = EnsembleRunState([1.0, -1.0], [0.0, 0.5])
    batch, truth = token_batch(run_state), torch.tensor(token_batch(run_state).columns["truth"])
    for seed, expected in ((4, truth), (7, 0.5 - truth)):
        context = make_context(run_state)
        context.seed = seed
        assert torch.allclose(OneMember(centre=False)(batch, context)["score"].double(), expected.double())


def test_best_of_n_measures_and_takes_no_step():
    run_state = EnsembleRunState([1.0, -1.0], [0.0, 0.0])
    batch, before = token_batch(run_state), run_state.weights()
    context = make_context(run_state)
    scored = EnsembleMean(centre=False)(batch.with_fields(group=torch.arange(12) // 4), context)
    BestOfN().run((), scored, context)
    assert torch.equal(run_state.weights(), before)
    truth, found = torch.tensor(batch.columns["truth"]).view(3, 4), context.metrics
    assert found["bon/gold/gold@4"] == pytest.approx(truth.amax(1).mean().item(), rel=1e-6)
    # one member is right, the other the opposite: alone they average out
    both = (truth.amax(1) + truth.amin(1)).mean().item() / 2
    assert found["bon/single/gold@4"] == pytest.approx(both, rel=1e-5)
    assert found["bon/wco/gold@1"] == pytest.approx(truth.mean().item(), rel=1e-5)
    assert found["bon/kl@2"] == pytest.approx(0.193147, abs=1e-6)


def test_composition_and_bad_settings():
    assert "uwo" in [p.name for p in build("grpo+rm-ensembles").score]
    assert [p.name for p in build("ppo+wco").score if p.slot == "reward"] == ["wco"]
    for bad in ("rm-ensembles(uwo_coef=-1)", "ppo+wco(members=0)"):
        with pytest.raises(UserError, match="must be"):
            build(bad)
    with pytest.raises(UserError, match="needs the field 'member_score'"):
        build("grpo+best-of-n")
    with pytest.raises(UserError, match=r"the task 'addition' has 1: give --reward more than once"):
        prepare_ensemble(task("addition"), "nowhere", 5)


def test_members_share_their_labels(taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One sampling of answers serves all; the first member is the reward model that single runs are trained on."""
    monkeypatch.setenv("POLYRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(learned, "HELD_OUT_PAIRS", 30)
    made = task("learned-reverse", difficulty=3, pairs=60)
    sampled = []
    real = reward_models.two_answers

    def counted(task: Any, policy: Any, rows: Any, seed: int) -> Any:
        sampled.append(len(rows))
        return real(task, policy, rows, seed)

    monkeypatch.setattr(reward_models, "two_answers", counted)
    prepare_ensemble(made, str(taught), 3)
    assert sampled == [90]
    single = task("learned-reverse", difficulty=3, pairs=60)
    prepare(single, str(taught))
    asked: dict[str, Any] = {"prompts": ["reverse abc="] * 2, "completions": ["cba", "zz"]}
    scores = [r.function(**asked) for r in made.ensemble(3)]
    assert scores[0] == single.rewards[0].function(**asked) and scores[0] != scores[1] != scores[2]
    made.rewards = [Reward("a", lambda completions, **_: [1.0]), Reward("b", lambda completions, **_: [2.0])]
    assert [r.name for r in made.ensemble(5)] == ["a", "b"]


def opinion(twist: float) -> Callable[..., list[float | None]]:
    """Share of letters that are right, and a taste of its own for the letter that the answer ends with."""

    def score(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
        pairs = list(zip(completions, answer, strict=True))
        right = [sum(x == y for x, y in zip(c, a, strict=False)) / len(a) for c, a in pairs]
        return [r + twist * (ord(c[-1:] or "a") % 3 - 1) for r, c in zip(right, completions, strict=True)]

    score.__name__ = f"opinion_{'up' if twist > 0 else 'down'}"
    return score


def test_a_users_own_rewards_are_members_and_it_learns(small_model: Path, tmp_path: Path):
    done = train(
        "rm-ensembles",
        task="reverse",
        model=small_model,
        reward=[opinion(0.2), opinion(-0.2)],
        budget="samples=1024",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        uwo_coef=0.5,
        learning_rate=1e-3,
        options={"difficulty": DIFFICULTY, "evaluations": 1, "tensorboard": False},
    )
    reached(done.final["eval/accuracy"] - done.start["eval/accuracy"], 0.2)  # 0.36 to 0.51 with three seeds
    assert read_records(tmp_path / "run")[1]["ensemble/variance"] > 0


def test_gold_reward_and_kl_stand_in_every_row(taught: Path, tmp_path: Path):
    """What over-optimization is drawn from: the task asks for the KL in each iteration."""
    train(
        "rm-ensembles(prompts_per_step=16,members=2)",
        task="learned-sort(pairs=60)",
        model=taught,
        budget="iterations=2",
        out=tmp_path / "run",
        quiet=True,
        kl_coef=0,
        options={"evaluations": 1, "tensorboard": False, "eval_prompts": 10},
    )
    for row in read_records(tmp_path / "run")[1:]:
        assert {"gold", "reward", "kl", "ensemble/variance"} <= set(row)
