"""The pure `[B, T]` functions and the parts around them: the papers' numbers and brute force, both domains."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.schedules import schedule_factor
from polyrl.errors import UserError
from polyrl.methods.language.grpo import group_advantage
from polyrl.parts.credit import (
    GAE,
    WhitenAdvantage,
    gae,
    group_statistics,
    log_group_metrics,
    masked_mean,
    return_to_go,
    whiten,
)
from polyrl.parts.improve import (
    NLL,
    Averaged,
    ClippedSurrogate,
    EntropyBonus,
    PolicyGradient,
    ReferenceKL,
    ValueLoss,
    aggregation_weights,
    clipped_surrogate,
    value_loss,
)
from polyrl.parts.score import (
    OverlongPenalty,
    TaskReward,
    TokenKLPenalty,
    adapted_coefficient,
    at_last_step,
    kl_estimate,
    last_step,
    overlong_penalty,
)
from polyrl.parts.select import AllSteps, DropEqualGroups, DropUnended
from run_states import TableRunState, make_context, token_batch

HOWS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")


def rows(*values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([list(v) for v in values], dtype=dtype)


def numbers(x: Tensor) -> list[float]:
    return [pytest.approx(v, abs=5e-5) for v in x.flatten().tolist()]


def yes(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def at_end(shape: tuple[int, int]) -> Tensor:
    end = torch.zeros(shape, dtype=torch.bool)
    end[:, -1] = True
    return end


def environment_steps() -> dict[str, Tensor]:
    """4 environments, 128 steps: episodes end, time limits cut, a reset may cost a dead step, the last step is cut."""
    generator = torch.Generator().manual_seed(3)
    shape = (4, 128)
    chance = torch.rand(shape, generator=generator)
    terminated, truncated = chance < 0.04, (chance > 0.96)
    truncated[:, -1] = ~terminated[:, -1]  # the rollout's own end is a cut
    mask = yes(*shape)
    for b, t in (terminated | truncated).nonzero().tolist():
        if t % 2 and t + 1 < 128:  # some environments spend a step on the reset
            mask[b, t + 1] = False
    terminated, truncated = terminated & mask, truncated & mask
    truncated[:, -1] = mask[:, -1] & ~terminated[:, -1]
    draws = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    steps = {"reward": draws[0], "value": draws[1], "final_value": draws[2], "terminated": terminated}
    return {**steps, "truncated": truncated, "mask": mask, "other": draws[3]}


def token_steps() -> dict[str, Tensor]:
    """A token batch: ragged, tool tokens in the middle, the score at the last counted token."""
    run_state = TableRunState()
    batch = token_batch(run_state)
    generator = torch.Generator().manual_seed(4)
    draws = torch.randn(2, *batch["mask"].shape, generator=generator, dtype=torch.float64)
    end = last_step(batch["mask"])
    return {
        "reward": draws[0] * batch["mask"],
        "value": draws[1],
        "final_value": torch.zeros_like(draws[0]),
        "terminated": end,
        "truncated": torch.zeros_like(end),
        "mask": batch["mask"],
        "other": draws[0].flip(1),
    }


STEPS = {"tokens": token_steps, "environments": environment_steps}


def segments(steps: dict[str, Tensor], row: int) -> list[list[int]]:
    """Counted steps of one row, cut after every termination and truncation."""
    found: list[list[int]] = [[]]
    for t in range(steps["mask"].shape[1]):
        if steps["mask"][row, t]:
            found[-1].append(t)
            if steps["terminated"][row, t] or steps["truncated"][row, t]:
                found.append([])
    return [s for s in found if s]


# ------------------------------------------------------------------------------------------------- fact ppo, 1 and 2


@pytest.mark.parametrize(
    ("gae_lambda", "advantage", "target"),
    [
        (1.0, (0.5, 0.4, 0.2), (1, 1, 1)),
        (0.0, (0.1, 0.2, 0.2), (0.6, 0.8, 1)),
        (0.95, (0.4705, 0.39, 0.2), (0.9705, 0.99, 1)),
    ],
)
def test_ppo_fact_1_gae_of_a_finished_episode(gae_lambda: float, advantage: tuple, target: tuple) -> None:
    reward, value = rows((0, 0, 1)), rows((0.5, 0.6, 0.8))
    end = at_end((1, 3))
    found = gae(reward, value, end, ~yes(1, 3), yes(1, 3), gamma=1.0, gae_lambda=gae_lambda)
    assert numbers(found) == list(advantage)
    fields = {"reward": reward, "value": value, "terminated": end, "truncated": ~yes(1, 3), "mask": yes(1, 3)}
    made = GAE(gamma=1.0, gae_lambda=gae_lambda)(Experience(fields), make_context(None))
    assert numbers(made["advantage"]) == list(advantage) and numbers(made["value_target"]) == list(target)


def test_ppo_fact_2_truncation_bootstraps_and_termination_does_not() -> None:
    reward, value, final = rows((1, 1)), rows((2, 3)), rows((99, 4))
    for cut, wanted in ((True, [2.42, 1.6]), (False, [0.8, -2.0])):
        end = at_end((1, 2))
        terminated, truncated = (end & (not cut)), (end & cut)
        found = gae(reward, value, terminated, truncated, yes(1, 2), gamma=0.9, gae_lambda=0.5, final_value=final)
        assert numbers(found) == wanted


# ------------------------------------------------------------------------------------- one set of [B, T] functions


@pytest.mark.parametrize("domain", STEPS)
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.97, 0.0)])
def test_gae_is_the_double_sum(domain: str, gamma: float, gae_lambda: float) -> None:
    s = STEPS[domain]()
    names = ("reward", "value", "terminated", "truncated", "mask")
    found = gae(*(s[n] for n in names), gamma=gamma, gae_lambda=gae_lambda, final_value=s["final_value"])
    wanted = torch.zeros_like(found)
    for row in range(len(found)):
        for segment in segments(s, row):
            deltas = []
            for here, after in zip(segment, [*segment[1:], None], strict=True):
                follows = s["value"][row, after] if after is not None else s["final_value"][row, here]
                alive = 0.0 if s["terminated"][row, here] else 1.0
                deltas.append(s["reward"][row, here] + gamma * alive * follows - s["value"][row, here])
            for i, t in enumerate(segment):
                wanted[row, t] = sum((gamma * gae_lambda) ** k * d for k, d in enumerate(deltas[i:]))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("domain", STEPS)
def test_targets_with_lambda_1_are_returns_of_the_rollout(domain: str) -> None:
    s, gamma = STEPS[domain](), 0.9
    names = ("reward", "value", "terminated", "truncated", "mask")
    advantage = gae(*(s[n] for n in names), gamma=gamma, gae_lambda=1.0, final_value=s["final_value"])
    for row in range(len(advantage)):
        for segment in segments(s, row):
            for i, t in enumerate(segment):
                total = sum(gamma**k * float(s["reward"][row, u]) for k, u in enumerate(segment[i:]))
                if s["truncated"][row, segment[-1]]:
                    total += gamma ** len(segment[i:]) * float(s["final_value"][row, segment[-1]])
                assert float(advantage[row, t] + s["value"][row, t]) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("domain", STEPS)
def test_gae_does_not_look_at_what_is_not_counted(domain: str) -> None:
    s = STEPS[domain]()
    names = ("reward", "value", "terminated", "truncated", "mask")
    plain = gae(*(s[n] for n in names), gamma=0.9, gae_lambda=0.8, final_value=s["final_value"])
    dirty = {n: torch.where(s["mask"], s[n], torch.full_like(s[n], math.nan)) for n in ("reward", "value")}
    final = torch.where(s["truncated"], s["final_value"], torch.full_like(plain, math.nan))
    odd = [~s["mask"] | s["terminated"], ~s["mask"] | s["truncated"]]
    found = gae(dirty["reward"], dirty["value"], *odd, s["mask"], gamma=0.9, gae_lambda=0.8, final_value=final)
    assert torch.equal(found, plain)
    assert bool((found[~s["mask"]] == 0).all())


@pytest.mark.parametrize("domain", STEPS)
def test_return_to_go_group_baseline_whitening_kl_and_surrogate_are_loops(domain: str) -> None:
    s = STEPS[domain]()
    mask, x, y = s["mask"], s["reward"], s["other"]
    size, width = mask.shape
    places = [(b, t) for b in range(size) for t in range(width) if mask[b, t]]

    to_go = return_to_go(x, mask, 0.9)
    for b in range(size):
        mine = [t for t in range(width) if mask[b, t]]
        for i, t in enumerate(mine):
            assert float(to_go[b, t]) == pytest.approx(
                sum(0.9**k * float(x[b, u]) for k, u in enumerate(mine[i:])), abs=1e-10
            )
    assert bool((to_go[~mask] == 0).all())

    flat = [float(x[p]) for p in places]
    mean, std = statistics.fmean(flat), statistics.pstdev(flat)
    white, unshifted = whiten(x, mask), whiten(x, mask, shift=False)
    assert float(masked_mean(x, mask)) == pytest.approx(mean)
    for p in places:
        assert float(white[p]) == pytest.approx((float(x[p]) - mean) / (std + 1e-8))
        assert float(unshifted[p]) == pytest.approx(float(white[p]) + mean)
    assert bool((white[~mask] == 0).all()) and bool((unshifted[~mask] == 0).all())

    score = (x * mask).sum(1)
    group = torch.arange(size) % 2
    found = group_advantage(score, group)
    for b in range(size):
        family = [float(score[j]) for j in range(size) if group[j] == group[b]]
        wanted = (float(score[b]) - statistics.fmean(family)) / (statistics.stdev(family) + 1e-6)
        assert float(found[b]) == pytest.approx(wanted)

    surrogate, k3 = clipped_surrogate((0.3 * y).exp(), x, 0.2, 0.28, 3.0), kl_estimate(y, x, "k3")
    for p in places:
        rho, a, d = math.exp(0.3 * float(y[p])), float(x[p]), float(x[p] - y[p])
        loss = -min(rho * a, min(max(rho, 0.8), 1.28) * a)
        assert float(surrogate[p]) == pytest.approx(min(loss, -3 * a) if a < 0 else loss)
        assert float(k3[p]) == pytest.approx(math.exp(d) - d - 1)


def test_one_state_that_pays_1_for_ten_steps() -> None:
    """Fixed point of the targets: V = 10 if the limit is a cut, 6.51 at the first step if it is the end."""
    shape, gamma = (1, 10), 0.9
    reward, end = torch.ones(shape, dtype=torch.float64), at_end((1, 10))
    for gae_lambda in (0.0, 0.95):
        for cut, wanted in ((True, 10.0), (False, sum(gamma**k for k in range(10)))):
            value = torch.zeros(shape, dtype=torch.float64)
            for _ in range(160):
                final = value[:, :1].expand(shape)  # what follows the cut is the one state again
                ends = (end & (not cut), end & cut)
                value = value + gae(
                    reward, value, *ends, yes(*shape), gamma=gamma, gae_lambda=gae_lambda, final_value=final
                )
            assert float(value[0, 0]) == pytest.approx(wanted, abs=1e-6)
            assert (not cut) or numbers(value) == [10.0] * 10
    assert sum(gamma**k for k in range(10)) == pytest.approx(6.51, abs=0.005)


# --------------------------------------------------------------------------------------------- fact ppo, 3 to 8


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "live"),
    [(2, 1.5, -2.4, False), (2, 0.5, -1.0, True), (-2, 1.5, 3.0, True), (-2, 0.5, 1.6, False)],
)
def test_ppo_fact_3_clipped_surrogate(advantage: float, ratio: float, loss: float, live: bool) -> None:
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(rho, torch.tensor([float(advantage)]), 0.2, 0.2)
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert float(rho.grad) == (-advantage if live else 0.0)
    # the same through the term, whose statistics must say that the clip stopped the gradient
    experience = Experience({"advantage": rows((advantage,)), "behaviour_logprob": rows((0,))})
    outputs = {"logprob": rows((math.log(ratio),))}
    term = ClippedSurrogate(clip_range=0.2)
    assert float(term.loss(outputs, experience)) == pytest.approx(loss)
    assert float(term.statistics(outputs, experience)["clip_ratio"]) == (0.0 if live else 1.0)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("value", "loss", "gradient"), [(1.0, 0.32, 0.0), (0.1, 0.405, -0.9), (-1.0, 2.0, -2.0)])
def test_ppo_fact_4_value_loss(value: float, loss: float, gradient: float, side: int) -> None:
    v = torch.tensor([[side * value]], dtype=torch.float64, requires_grad=True)
    experience = Experience({"value_target": rows((side,)), "value": rows((0,))})
    found = ValueLoss(value_coef=1.0, value_clip_range=0.2).loss({"value": v}, experience)
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(loss) and float(v.grad) == pytest.approx(side * gradient)
    assert float(value_loss(v.detach(), rows((side,)))) == pytest.approx((value - 1) ** 2 / 2)
    half = ValueLoss(value_coef=0.5).loss({"value": v}, experience)  # 0.5 inside and 0.5 outside: a quarter
    assert float(half.detach()) == pytest.approx((value - 1) ** 2 / 4)


def test_ppo_fact_5_kl_estimates_and_the_first_step() -> None:
    # log rho = .2 between the present (.2) and the old policy (0)
    ours = {k: float(kl_estimate(torch.tensor(0.0), torch.tensor(0.2), k)) for k in ("k1", "k2", "k3")}
    assert ours == {"k1": pytest.approx(-0.2), "k2": pytest.approx(0.02), "k3": pytest.approx(0.0214028, abs=1e-7)}
    assert all(float(kl_estimate(torch.tensor(-0.7), torch.tensor(-0.7), k)) == 0 for k in ("k1", "k2", "k3"))
    logprob = rows((-0.5, -1.5, -0.1), (-2.0, -0.3, -0.9))
    raw = rows((1, 2, -1), (0.5, 3, -2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantage = whiten(raw, mask)
    experience = Experience({"advantage": advantage, "behaviour_logprob": logprob, "weight": mask.double()})
    term = ClippedSurrogate()
    loss = term.loss({"logprob": logprob}, experience)
    assert torch.equal(loss, -advantage)
    assert float((loss * term.step_weights(experience)).sum()) == pytest.approx(0, abs=1e-12)
    said = term.statistics({"logprob": logprob}, experience)
    assert float(said["clip_ratio"].sum()) == 0
    assert bool((said["ratio"] == 1).all())


def kl_penalized(part: TokenKLPenalty, context: Any, log_ratios: Tensor, score: float = 1.0) -> Experience:
    mask = yes(*log_ratios.shape)
    fields = {
        "behaviour_logprob": log_ratios - 1.0,
        "ref_logprob": torch.full_like(log_ratios, -1.0),
        "mask": mask,
        "greedy": torch.zeros(len(mask), dtype=torch.bool),
        "reward": at_last_step(torch.full((len(mask),), score, dtype=log_ratios.dtype), mask),
    }
    return part(Experience(fields), context)


def test_ppo_fact_6_token_kl_in_the_reward_and_its_controller() -> None:
    context = make_context(None)
    found = kl_penalized(TokenKLPenalty(kl_coef=0.1), context, rows((0.2, -0.1, 0.3)))
    assert numbers(found["reward"]) == [-0.02, 0.01, 0.97]
    assert adapted_coefficient(0.15, 12, 6, 64, 10_000) == pytest.approx(0.150192)
    assert adapted_coefficient(0.15, 0, 6, 64, 10_000) == pytest.approx(0.15 * (1 - 0.2 * 0.0064))
    assert adapted_coefficient(0.15, 6.6, 6, 64, 10_000) == pytest.approx(0.15 * (1 + 0.1 * 0.0064))
    # through the part: 64 episodes of KL 12; this batch still pays the old coefficient, the next one the new
    part = TokenKLPenalty(kl_coef=0.15, kl_target=6.0, kl_horizon=10_000)
    first = kl_penalized(part, context, torch.full((64, 4), 3.0, dtype=torch.float64), score=0.0)
    assert numbers(first["reward"][0]) == [-0.45] * 4
    assert context.memory("token-kl-penalty")["kl_coef"] == pytest.approx(0.150192)
    second = kl_penalized(part, context, torch.full((64, 4), 3.0, dtype=torch.float64), score=0.0)
    assert float(second["reward"][0, 0]) == pytest.approx(-3 * 0.150192)


def test_the_kl_controller_does_not_listen_to_greedy_twins() -> None:
    context, mask = make_context(None), yes(4, 2)
    fields = {
        "behaviour_logprob": rows((1, 1), (50, 50), (1, 1), (50, 50)),
        "ref_logprob": torch.zeros(4, 2, dtype=torch.float64),
        "mask": mask,
        "greedy": torch.tensor([False, True, False, True]),
        "reward": torch.zeros(4, 2, dtype=torch.float64),
    }
    TokenKLPenalty(kl_coef=0.1, kl_target=2.0, kl_horizon=100)(Experience(fields), context)
    assert context.memory("token-kl-penalty")["kl_coef"] == pytest.approx(0.1)  # the samples' KL is on target


def test_kl_coef_0_reads_no_reference() -> None:
    experience = Experience({"reward": rows((0, 1))})
    assert TokenKLPenalty(kl_coef=0.0)(experience, make_context(None)) is experience
    loss = ReferenceKL(kl_loss_coef=0.0).loss({"logprob": rows((-1, -2))}, experience)
    assert numbers(loss) == [0, 0]


def test_ppo_fact_8_whitening() -> None:
    x, mask = rows((1, 2), (3, 6)), yes(2, 2)
    assert numbers(whiten(x, mask)) == [-1.0690, -0.5345, 0, 1.6036]
    assert numbers(whiten(x, mask, shift=False)) == [1.9310, 2.4655, 3, 4.6036]
    experience = Experience({"advantage": x, "mask": mask, "value_target": x})
    made = WhitenAdvantage()(experience, make_context(None))
    assert numbers(made["advantage"]) == [-1.0690, -0.5345, 0, 1.6036]
    assert made["value_target"].tolist() == x.tolist()  # targets are never touched


def test_masked_mean_of_nothing_is_0_and_passes_over_nan() -> None:
    assert float(masked_mean(rows((1, 2)), ~yes(1, 2))) == 0
    x, mask = rows((1, math.nan, 3)), torch.tensor([[True, False, True]])
    assert float(masked_mean(x, mask)) == 2
    assert numbers(whiten(x, mask)) == [-1, 0, 1]


# -------------------------------------------------------------------------------------------- fact grpo, 2, 3 and 6


def two_responses(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(2, 10, dtype=dtype)
    weight[0, :2] = 1
    weight[1, :8] = 1
    return weight, torch.full((2,), 10, dtype=dtype)


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ("seq-mean-token-mean", 0.25, 0.0625),
        ("token-mean", 0.1, 0.1),
        ("constant", 0.05, 0.05),
        ("seq-mean-token-sum", 0.5, 0.5),
    ],
)
def test_grpo_fact_2_token_weights(how: Any, first: float, second: float) -> None:
    weight, limit = two_responses()
    found = aggregation_weights(weight, how, limit)
    assert numbers(found[0]) == [first] * 2 + [0.0] * 8
    assert numbers(found[1]) == [second] * 8 + [0.0] * 2


@pytest.mark.parametrize(("how", "loss"), [("seq-mean-token-mean", 0.0), ("token-mean", 0.6), ("constant", 0.3)])
def test_grpo_fact_3_a_loss_at_ratio_1_measures_length(how: Any, loss: float) -> None:
    weight, limit = two_responses()
    logprob = torch.full((2, 10), -0.7, dtype=torch.float64)
    fields = {"weight": weight, "length_limit": limit, "behaviour_logprob": logprob}
    experience = Experience({**fields, "advantage": rows([1] * 10, [-1] * 10)})
    term = ClippedSurrogate(aggregation=how)
    found = (term.loss({"logprob": logprob}, experience) * term.step_weights(experience)).sum()
    assert float(found) == pytest.approx(loss, abs=1e-12)


def test_sequences_without_a_counted_step_are_no_sequences() -> None:
    weight, limit = two_responses()
    longer = torch.cat([weight, torch.zeros(3, 10, dtype=torch.float64)])
    for how in HOWS:
        alone = aggregation_weights(weight, how, limit)
        found = aggregation_weights(longer, how, torch.full((5,), 10.0))
        torch.testing.assert_close(found[:2], alone)
        assert bool((found[2:] == 0).all())
    assert bool(torch.isfinite(aggregation_weights(torch.zeros(2, 3), "seq-mean-token-mean")).all())


def test_the_constant_average_needs_a_limit() -> None:
    with pytest.raises(ValueError, match="length_limit"):
        aggregation_weights(torch.ones(1, 2), "constant")


def test_grpo_fact_6_overlong_penalty() -> None:
    length = torch.tensor([100.0, 16384, 18432, 20480, 30000])
    assert numbers(overlong_penalty(length, torch.full((5,), 20480.0), 4096)) == [0, 0, -0.5, -1, -1]
    present = torch.arange(12) < torch.tensor([4, 8, 10, 12])[:, None]
    mask = present.clone()
    mask[:, 1] = False  # a tool's token is part of the length
    fields = {"present": present, "mask": mask, "length_limit": torch.full((4,), 12), "score": torch.ones(4)}
    experience = Experience({**fields, "reward": at_last_step(torch.ones(4), mask)})
    made = OverlongPenalty(overlong_cache=4)(experience, make_context(None))
    assert numbers(made["score"]) == [1, 1, 0.5, 0]
    assert numbers(made["reward"].sum(1)) == [1, 1, 0.5, 0]
    assert [int(r.nonzero()[-1]) for r in made["reward"][:3]] == [3, 7, 9]  # at the last token, nowhere else


# ---------------------------------------------------------------------------------------- fact grpo, 7: KL gradients

PI, REF = (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [("k1", 0.183787, (0, 0, 0)), ("k2", 0.181677, (0.26308, -0.17539, -0.08769)), ("k3", 0.183787, (0.3, -0.2, -0.1))],
)
def test_grpo_fact_7_values_and_gradients_of_kl_estimates(estimator: Any, value: float, gradient: tuple) -> None:
    """Exact expectation over three actions, by the function and by the term with the probabilities as weights."""
    pi, ref = torch.tensor(PI, dtype=torch.float64), torch.tensor(REF, dtype=torch.float64)
    for way in ("function", "term"):
        logits = pi.log().requires_grad_()
        logprob = logits.log_softmax(-1)
        if way == "function":
            total = (pi * kl_estimate(logprob, ref.log(), estimator)).sum()
        else:
            term = ReferenceKL(kl_loss_coef=2.0, kl_estimator=estimator, aggregation="token-mean")
            experience = Experience({"weight": pi[None], "ref_logprob": ref.log()[None]})
            total = (term.loss({"logprob": logprob[None]}, experience) * term.step_weights(experience)).sum() / 2
        (found,) = torch.autograd.grad(total, logits)
        assert float(total.detach()) == pytest.approx(value, abs=1e-6)
        assert found.tolist() == pytest.approx(list(gradient), abs=1e-5)
    exact = pi.log().requires_grad_()
    p = exact.softmax(-1)
    kl = (p * (p.log() - ref.log())).sum() if estimator == "k2" else (ref * (ref.log() - p.log())).sum()
    (wanted,) = torch.autograd.grad(kl, exact)
    if estimator != "k1":
        assert list(gradient) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


# --------------------------------------------------------------------------------------------------- fact grpo, 8


def test_grpo_fact_8_dual_clip_and_clip_higher() -> None:
    def loss(term: ClippedSurrogate, old: float, new: float, advantage: float) -> tuple[float, float]:
        logprob = rows((math.log(new),)).requires_grad_()
        fields = {"behaviour_logprob": rows((math.log(old),)), "advantage": rows((advantage,))}
        found = term.loss({"logprob": logprob}, Experience(fields)).sum()
        (gradient,) = torch.autograd.grad(found, logprob)
        return float(found.detach()), float(gradient)

    assert loss(ClippedSurrogate(), 0.1, 0.5, -1) == (pytest.approx(5.0), pytest.approx(5.0))
    assert loss(ClippedSurrogate(dual_clip=3.0), 0.1, 0.5, -1) == (pytest.approx(3.0), 0.0)
    assert loss(ClippedSurrogate(dual_clip=3.0), 0.1, 0.5, 1) == (pytest.approx(-1.2), 0.0)  # only where A < 0
    higher = ClippedSurrogate(clip_range=0.2, clip_range_high=0.28)
    assert loss(ClippedSurrogate(), 0.01, 0.0119, 1)[1] < 0 and loss(ClippedSurrogate(), 0.01, 0.0121, 1)[1] == 0
    assert loss(higher, 0.01, 0.0127, 1)[1] < 0 and loss(higher, 0.01, 0.0129, 1)[1] == 0
    assert loss(higher, 0.01, 0.0079, -1)[1] == 0 and loss(higher, 0.01, 0.0081, -1)[1] > 0  # below it is as before


# ------------------------------------------------------------------------------------------------- groups, selection


def test_groups_may_lie_anywhere_and_bear_any_number() -> None:
    x, group = torch.tensor([1.0, 5.0, 3.0, 7.0, 2.0]), torch.tensor([10**9, -4, 10**9, -4, 0])
    mean, std, size = group_statistics(x, group)
    assert numbers(mean) == [2, 6, 2, 6, 2] and size.tolist() == [2, 2, 2, 2, 1]
    assert numbers(std) == [math.sqrt(2), math.sqrt(2), math.sqrt(2), math.sqrt(2), 0]
    assert numbers(group_statistics(x, group, correction=0)[1]) == [1, 1, 1, 1, 0]


def test_greedy_twins_do_not_enter_the_share_of_equal_groups() -> None:
    """Two of four samples are in a group without spread, wherever the twins are."""
    context = make_context(TableRunState())
    score, group = torch.tensor([1.0, 1, 0, 1, 5, 5]), torch.tensor([0, 0, 1, 1, 0, 0])
    log_group_metrics(context, score, group, torch.tensor([True] * 4 + [False] * 2))
    assert context.metrics["frac_reward_zero_std"] == 0.5


def test_uncounted_rows_get_the_numbers_of_their_group_but_do_not_enter_them() -> None:
    x, group = torch.tensor([1.0, 3.0, 100.0, 4.0]), torch.tensor([0, 0, 0, 1])
    mean, std, size = group_statistics(x, group, counted=torch.tensor([True, True, False, False]))
    assert numbers(mean) == [2, 2, 2, 0] and numbers(std[:3]) == [math.sqrt(2)] * 3 and size.tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize("value", [0.1, 0.7, -3.3, 1e-6, 12345.678])
@pytest.mark.parametrize("size", [3, 5, 7, 11])
def test_equal_scores_have_no_spread_whatever_their_rounding(value: float, size: int) -> None:
    score, group = torch.full((size,), value), torch.zeros(size, dtype=torch.long)
    assert group_statistics(score, group)[1].tolist() == [0.0] * size
    for scale in ("std", "population-std", "none"):
        assert group_advantage(score, group, scale).tolist() == [0.0] * size


def scored(
    score: list[float], group: list[int], *, greedy: list[bool] | None = None, ended: list[bool] | None = None
) -> Experience:
    size = len(score)
    fields = {"score": torch.tensor(score, dtype=torch.float32), "group": torch.tensor(group), "mask": yes(size, 2)}
    fields |= {"greedy": torch.tensor(greedy or [False] * size), "ended": torch.tensor(ended or [True] * size)}
    return AllSteps()(Experience(fields), make_context(None))


def kept(experience: Experience) -> list[bool]:
    return (experience["weight"] != 0).any(1).tolist()


def test_all_steps_count_what_the_policy_chose_but_no_greedy_twin() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
    experience = Experience({"mask": mask, "greedy": torch.tensor([False, True, False])})
    assert AllSteps()(experience, make_context(None))["weight"].tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
    environment = Experience({"mask": mask})  # a domain without twins
    assert AllSteps()(environment, make_context(None))["weight"].tolist() == mask.float().tolist()


def test_drop_equal_groups() -> None:
    context = make_context(None)
    batch = scored([1, 0, 0.1, 1, 0.1, 0.1, 1], [0, 0, 1, 0, 1, 1, 2])
    assert kept(DropEqualGroups()(batch, context)) == [True, True, False, True, False, False, False]
    assert context.metrics["groups/kept"] == pytest.approx(3 / 7)
    nothing = scored([1, 1, 0, 0], [0, 0, 1, 1])
    assert kept(DropEqualGroups()(nothing, context)) == [True] * 4 and context.metrics["groups/kept"] == 0
    # a twin's score is no spread
    twins = scored([1, 1, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1], greedy=[False, False, True, False, False, True])
    assert kept(DropEqualGroups()(twins, context)) == [False, False, False, True, True, False]


def test_drop_unended_and_that_selections_chain() -> None:
    context = make_context(None)
    batch = scored([1, 0, 1, 1], [0, 0, 1, 1], ended=[True, False, False, True])
    assert kept(DropUnended()(batch, context)) == [True, False, False, True]
    assert kept(DropUnended()(scored([1, 0], [0, 0], ended=[False, False]), context)) == [True, True]
    assert kept(DropEqualGroups()(DropUnended()(batch, context), context)) == [True, False, False, False]


def test_a_selection_that_would_leave_nothing_is_not_made() -> None:
    context = make_context(None)
    only_twin = scored([1, 0], [0, 0], greedy=[False, True], ended=[False, True])
    assert kept(DropUnended()(only_twin, context)) == [True, False]
    crossed = scored([1, 0, 1, 1], [0, 0, 1, 1], ended=[False, False, True, True])
    assert kept(DropEqualGroups()(DropUnended()(crossed, context), context)) == [False, False, True, True]


@pytest.mark.parametrize(("p", "size", "share"), [(0.9, 8, 0.56953), (0.05, 8, 0.33658), (0.5, 16, 0.99997)])
def test_grpo_fact_4_share_of_groups_kept(p: float, size: int, share: float) -> None:
    """Every number of right answers as one group, weighed by its probability."""
    scores = [[1.0] * right + [0.0] * (size - right) for right in range(size + 1)]
    batch = scored([s for group in scores for s in group], [g for g in range(size + 1) for _ in range(size)])
    survivors = DropEqualGroups()(batch, make_context(None))["weight"].view(size + 1, size, 2)[:, 0, 0]
    chance = [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
    assert sum(c * float(w) for c, w in zip(chance, survivors, strict=True)) == pytest.approx(share, abs=1e-5)
    assert 1 - p**size - (1 - p) ** size == pytest.approx(share, abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- rewards


def test_the_last_step_is_the_last_that_the_policy_chose() -> None:
    mask = torch.tensor([[True, False, True, False], [True, True, True, True], [False] * 4])
    assert last_step(mask).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert at_last_step(torch.tensor([5.0, math.nan, 7.0]), mask)[[0, 2]].tolist() == [[0, 0, 5, 0], [0, 0, 0, 0]]


def test_task_reward_pays_at_the_end_and_never_calls_a_limit_a_cut() -> None:
    run_state = TableRunState()
    batch, context = token_batch(run_state), make_context(run_state)
    made = TaskReward()(batch, context)
    truth = torch.tensor(batch.columns["truth"], dtype=torch.float64)
    assert torch.equal(made["score"], truth) and context.spent.reward_calls == len(batch)
    torch.testing.assert_close(made["reward"].sum(1), truth)
    assert torch.equal(made["terminated"], last_step(batch["mask"])) and not bool(made["truncated"].any())
    assert context.metrics["reward"] == pytest.approx(float(truth.mean()), abs=1e-6)
    assert context.metrics["reward_std"] == pytest.approx(statistics.pstdev(batch.columns["truth"]), abs=1e-6)


def test_rows_without_a_reward_are_dropped_and_a_lost_baseline_takes_its_group() -> None:
    run_state = TableRunState()
    batch = token_batch(run_state, greedy_baseline=True)
    twins, group = batch["greedy"].nonzero()[:, 0].tolist(), batch["group"].tolist()
    lost_sample = next(i for i in range(len(batch)) if i not in twins and group[i] == 9)
    truth = [math.nan if i in (twins[0], lost_sample) else t for i, t in enumerate(batch.columns["truth"])]
    context = make_context(run_state)
    made = TaskReward()(batch.with_columns(truth=truth), context)
    assert sorted(set(made["group"].tolist())) == [2, 5, 9]  # group 7 lost its twin
    assert made["group"].tolist().count(9) == 1
    assert len(made.columns["truth"]) == len(made) == len(batch) - 4
    assert context.metrics["rewards/dropped"] == 4
    only_twins = [t if g else math.nan for t, g in zip(truth, batch["greedy"].tolist(), strict=True)]
    for lost in ([math.nan] * len(batch), only_twins):
        with pytest.raises(UserError, match="Every response of iteration 1 lost its reward"):
            TaskReward()(batch.with_columns(truth=lost), make_context(run_state))


def test_named_rewards_are_logged_over_the_samples_that_have_them() -> None:
    run_state, context = TableRunState(), None
    batch = token_batch(run_state, greedy_baseline=True)
    style = torch.arange(len(batch)).float()
    style[1] = math.nan
    run_state.score = lambda e: (torch.zeros(len(e)), {"style": style, "none": style * math.nan}, len(e))  # type: ignore[method-assign]
    context = make_context(run_state)
    TaskReward()(batch, context)
    counted = [i for i in range(len(batch)) if not batch["greedy"][i] and i != 1]
    assert context.metrics["rewards/style"] == pytest.approx(statistics.fmean(counted))
    assert "rewards/none" not in context.metrics


# ------------------------------------------------------------------------------------------------- terms, schedules


def test_small_terms() -> None:
    logprob, entropy = rows((-1, -2)), rows((0.5, 0.25))
    experience = Experience({"advantage": rows((2, -3)), "weight": rows((1, 1))})
    outputs = {"logprob": logprob, "entropy": entropy}
    assert numbers(PolicyGradient().loss(outputs, experience)) == [2, -6]
    assert numbers(EntropyBonus(entropy_coef=0.1).loss(outputs, experience)) == [-0.05, -0.025]
    assert numbers(NLL(nll_coef=3.0).loss(outputs, experience)) == [3, 6]
    assert issubclass(NLL, Averaged) and PolicyGradient().aggregation == "seq-mean-token-sum"


def test_learning_rate_schedules() -> None:
    assert [schedule_factor("constant", p, 0.0) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [schedule_factor("linear", p, 0.0) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [schedule_factor("cosine", p, 0.0) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [schedule_factor("linear", p, 0.2) for p in (0.1, 0.2, 0.6, 1)] == pytest.approx([0.5, 1, 0.5, 0])
    assert 0 < schedule_factor("cosine", 0.0, 0.5) < 0.1  # the first step of a warm-up is small, not zero
    assert schedule_factor("linear", 1.0, 1.0) == pytest.approx(1.0)


def test_grpo_fact_5_std_weighs_easy_and_hard_prompts() -> None:
    """Right minus wrong advantage within a group whose share p is right: 1 / sqrt(p (1 - p))."""
    for right, wanted in ((4, 2.0), (1, 3.0237)):
        score = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
        found = group_advantage(score, torch.zeros(8, dtype=torch.long), "population-std", epsilon=0.0)
        assert float(found[0] - found[-1]) == pytest.approx(wanted, abs=5e-5)


def test_every_outcome_of_a_group_sums_to_zero() -> None:
    for outcome in itertools.product((0.0, 1.0), repeat=4):
        found = group_advantage(torch.tensor(outcome), torch.zeros(4, dtype=torch.long))
        assert float(found.sum()) == pytest.approx(0, abs=1e-6)
