"""Penalty bilevel: the card's quadratics, gradients against finite differences, O(sigma), limits, what it reaches."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl.errors import NotFinite, UserError
from polyrl.methods.theory.bilevel_penalty import (
    SLUG,
    exact_gradient,
    nearest,
    penalized,
    penalty_gradient,
    relaxed,
)
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.theory.reward_bandit import RewardBandit

torch.set_num_threads(1)


def loop_of(task: str = "reward-bandit", budget: str = "iterations=400", seed: int = SEED, **settings: str) -> Any:
    config = RunConfig(
        method=SLUG, task=task, budget=budget, seed=seed, hyperparameters=settings, evaluations=1, tensorboard=False
    )
    return make_loop(config)[0]


def run_of(**given: Any) -> Any:
    loop = loop_of(**given)
    while not loop.context.over:
        loop.iterate()
    return loop


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# ------------------------------------------------------------- g = .5 (y - x)^2, f = .5 (y - 1)^2 + .5 x^2, by hand


def quadratic_upper(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (y - 1) ** 2 + 0.5 * x**2


def quadratic_lower(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (y - x) ** 2


@pytest.mark.parametrize("x", [0.5, -1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.1, 0.01])
def test_the_error_on_a_quadratic_is_that_which_was_worked_out(x: float, sigma: float) -> None:
    """(1 - x) sigma / (1 + sigma); at x = .5 and sigma = .1 the gradient is .045455 where the true one is 0."""
    y = (x + sigma) / (1 + sigma)
    found = penalty_gradient(quadratic_upper, quadratic_lower, number(x), number(y), number(x), sigma)
    exact = exact_gradient(quadratic_upper, lambda at: at, number(x))
    assert float(exact) == pytest.approx(x - (1 - x))
    assert float(found - exact) == pytest.approx((1 - x) * sigma / (1 + sigma))


def test_a_single_loop_comes_to_the_point_that_was_worked_out() -> None:
    """From x = 2, y = z = 0 at sigma = .1: (.476190, .523810, .476190), the minimum of the surrogate."""
    x, y, z, sigma = 2.0, 0.0, 0.0, 0.1
    for _ in range(400):
        y -= 0.5 * (sigma * (y - 1) + (y - x))
        z -= 0.5 * (z - x)
        gradient = penalty_gradient(quadratic_upper, quadratic_lower, number(x), number(y), number(z), sigma)
        x -= 0.05 * float(gradient)
    assert (x, y, z) == pytest.approx((0.476190, 0.523810, 0.476190), abs=1e-5)


def test_an_upper_level_that_the_lower_does_not_touch_has_its_own_gradient() -> None:
    def alone(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * x**2

    for sigma in (1.0, 1e-3):
        found = penalty_gradient(alone, quadratic_lower, number(3.0), number(3.0), number(3.0), sigma)
        assert float(found) == 3.0


# ---------------------------------------------------------------------------------------------------- the bandit


WEIGHTS = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


def test_the_response_is_the_minimum_and_its_value_a_log_partition() -> None:
    bandit = RewardBandit(instance=2)
    z = bandit.response(WEIGHTS)
    value = float(bandit.lower(WEIGHTS, z))
    partition = torch.logsumexp(bandit.log_reference + bandit.seen @ WEIGHTS / bandit.tau, -1)
    assert value == pytest.approx(-bandit.tau * float(partition))
    stream = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.log_softmax(z + 0.3 * torch.randn(20, generator=stream, dtype=torch.float64), -1)
        assert float(bandit.lower(WEIGHTS, other)) > value


def test_the_upper_level_is_a_plain_sum_over_pairs() -> None:
    bandit = RewardBandit(choices=4, features=2, instance=1)
    weights = torch.tensor([0.7, -0.4], dtype=torch.float64)
    policy, reward, total = bandit.response(weights).exp().tolist(), (bandit.seen @ weights).tolist(), 0.0
    for a, b in itertools.product(range(4), repeat=2):
        win = 1 / (1 + math.exp(float(bandit.gold[b] - bandit.gold[a])))
        say = 1 / (1 + math.exp(reward[b] - reward[a]))
        total -= policy[a] * policy[b] * (win * math.log(say) + (1 - win) * math.log(1 - say))
    total += bandit.ridge * float(weights.square().sum())
    assert float(bandit.upper(weights, bandit.response(weights))) == pytest.approx(total)


@pytest.mark.parametrize("instance", [0, 1, 2])
def test_the_exact_gradient_is_that_of_finite_differences(instance: int) -> None:
    bandit = RewardBandit(instance=instance)
    found, step = exact_gradient(bandit.upper, bandit.response, WEIGHTS), 1e-5
    for i in range(3):
        ends = [WEIGHTS.clone(), WEIGHTS.clone()]
        ends[0][i] += step
        ends[1][i] -= step
        up, down = (float(bandit.upper(w, bandit.response(w))) for w in ends)
        assert float(found[i]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("instance", [0, 1, 2])
def test_the_error_of_the_penalty_gradient_is_of_the_order_of_sigma(instance: int) -> None:
    bandit = RewardBandit(instance=instance)
    exact, z = exact_gradient(bandit.upper, bandit.response, WEIGHTS), bandit.response(WEIGHTS)
    errors = {}
    for sigma in (0.03, 0.003, 0.0003):
        y = penalized(bandit, WEIGHTS, z, sigma, 1e-14)
        errors[sigma] = float((penalty_gradient(bandit.upper, bandit.lower, WEIGHTS, y, z, sigma) - exact).norm())
    slope = math.log10(errors[0.03] / errors[0.0003]) / 2
    assert 0.9 < slope < 1.1
    naive = penalty_gradient(bandit.upper, bandit.lower, WEIGHTS, z, z, 1.0)
    assert float((naive - exact).norm()) > 5 * errors[0.03]


def test_the_penalized_policy_is_the_minimum_and_the_response_as_sigma_vanishes() -> None:
    bandit, stream = RewardBandit(instance=3), torch.Generator().manual_seed(1)
    y = penalized(bandit, WEIGHTS, bandit.log_reference, 0.2, 1e-13)

    def surrogate(log_policy: Tensor) -> float:
        return float(0.2 * bandit.upper(WEIGHTS, log_policy) + bandit.lower(WEIGHTS, log_policy))

    for _ in range(20):
        other = torch.log_softmax(y + 0.05 * torch.randn(20, generator=stream, dtype=torch.float64), -1)
        assert surrogate(other) > surrogate(y)
    near = penalized(bandit, WEIGHTS, bandit.log_reference, 1e-12, 1e-13)
    assert torch.allclose(near, bandit.response(WEIGHTS), atol=1e-9)


# ------------------------------------------------------------------------------------------------- proximal steps


def anchors(seed: int = 4) -> tuple[Tensor, Tensor]:
    """Two policies to be near to."""
    stream = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, 20, generator=stream, dtype=torch.float64)
    one, other = torch.log_softmax(0.7 * drawn, -1)
    return one, other


def apart(one: Tensor, other: Tensor) -> Tensor:
    """KL(one || other) of log-probabilities."""
    return one.exp() @ (one - other)


@pytest.mark.parametrize("rho", [0.3, 3.0, None], ids=str)
@pytest.mark.parametrize("sigma", [0.3, 0.03])
def test_the_gradient_is_that_of_the_difference_of_two_moreau_envelopes(rho: float | None, sigma: float) -> None:
    """By central differences of [min sigma f + g + KL / rho - min g + KL / rho] / sigma in each weight."""
    bandit, (before_y, before_z) = RewardBandit(instance=5), anchors()

    def envelopes(weights: Tensor) -> float:
        y = penalized(bandit, weights, before_y, sigma, 1e-15, rho)
        z = nearest(bandit, weights, before_z, rho)
        near = [0.0, 0.0] if rho is None else [float(apart(y, before_y)) / rho, float(apart(z, before_z)) / rho]
        upper = sigma * float(bandit.upper(weights, y)) + float(bandit.lower(weights, y)) + near[0]
        return (upper - float(bandit.lower(weights, z)) - near[1]) / sigma

    y, z = penalized(bandit, WEIGHTS, before_y, sigma, 1e-15, rho), nearest(bandit, WEIGHTS, before_z, rho)
    found = penalty_gradient(bandit.upper, bandit.lower, WEIGHTS, y, z, sigma)
    for k in range(3):
        by = 1e-4 * torch.eye(3, dtype=torch.float64)[k]
        slope = (envelopes(WEIGHTS + by) - envelopes(WEIGHTS - by)) / 2e-4
        assert float(found[k]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rho", [1.0, 4.0])
def test_a_proximal_step_is_the_minimum_and_many_come_to_what_is_solved_out(rho: float) -> None:
    bandit, (before, _) = RewardBandit(instance=6), anchors()
    stream = torch.Generator().manual_seed(2)
    y, z = penalized(bandit, WEIGHTS, before, 0.2, 1e-14, rho), nearest(bandit, WEIGHTS, before, rho)

    def objective(policy: Tensor, sigma: float) -> float:
        both = sigma * bandit.upper(WEIGHTS, policy) + bandit.lower(WEIGHTS, policy)
        return float(both + apart(policy, before) / rho)

    for _ in range(20):
        step = 0.05 * torch.randn(20, generator=stream, dtype=torch.float64)
        assert objective(torch.log_softmax(y + step, -1), 0.2) > objective(y, 0.2)
        assert objective(torch.log_softmax(z + step, -1), 0.0) > objective(z, 0.0)
    for _ in range(120):
        y = relaxed(y, penalized(bandit, WEIGHTS, y, 0.2, 1e-12, rho), 0.7)
        z = relaxed(z, nearest(bandit, WEIGHTS, z, rho), 0.7)
    assert torch.allclose(y, penalized(bandit, WEIGHTS, before, 0.2, 1e-12), atol=1e-7)
    assert torch.allclose(z, bandit.response(WEIGHTS), atol=1e-7)


def test_a_large_rho_is_none_and_a_small_one_stays_where_it_was() -> None:
    bandit, (before, _) = RewardBandit(instance=7), anchors()
    assert torch.equal(nearest(bandit, WEIGHTS, before, None), bandit.response(WEIGHTS))
    for rho, error in ((1e2, 0.5), (1e4, 5e-3), (1e12, 1e-10)):
        assert torch.allclose(nearest(bandit, WEIGHTS, before, rho), bandit.response(WEIGHTS), atol=error)
        solved = penalized(bandit, WEIGHTS, before, 0.1, 1e-14)
        assert torch.allclose(penalized(bandit, WEIGHTS, before, 0.1, 1e-14, rho), solved, atol=error)
    assert torch.allclose(nearest(bandit, WEIGHTS, before, 1e-12), before, atol=1e-9)
    assert torch.allclose(penalized(bandit, WEIGHTS, before, 0.1, 1e-14, 1e-12), before, atol=1e-9)
    half = relaxed(before, bandit.response(WEIGHTS), 0.5).exp()
    assert torch.allclose(half, (before.exp() + bandit.response(WEIGHTS).exp()) / 2, atol=1e-15)


def test_a_run_with_a_large_rho_is_that_without_and_one_with_a_small_one_lags_behind() -> None:
    plain = run_of(budget="iterations=8")
    far, near = run_of(budget="iterations=8", rho="1e13"), run_of(budget="iterations=8", rho="0.1", relaxation="0.5")
    weights = [run.run_state.models["reward"].weights for run in (plain, far, near)]
    assert torch.allclose(weights[0], weights[1], atol=1e-9) and not torch.allclose(weights[0], weights[2], atol=1e-3)
    errors = [run.context.metrics["gradient_error"] for run in (plain, far, near)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-6) and errors[2] > 2 * errors[0]


def test_proximal_steps_come_to_the_same_reward() -> None:
    settings = ({"gradient": "exact"}, {"rho": "3", "relaxation": "0.8", "tolerance": "1e-9"})
    loss = [run_of(seed=0, **s).context.metrics["hyper_objective"] for s in settings]
    reached(-abs(loss[0] - loss[1]), -0.005)


def test_proximal_steps_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    stated: dict[str, Any] = {"seed": SEED, "evaluations": 1, "checkpoint_every": 1, "tensorboard": False}
    config = RunConfig(
        method=SLUG, task="reward-bandit", budget="iterations=4", hyperparameters={"rho": "0.5"}, **stated
    )
    start_run(config, tmp_path / "whole").run()
    stopped_after(start_run(config, tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    one, other = (
        [{k: v for k, v in r.items() if "second" not in k} for r in read_records(tmp_path / name)]
        for name in ("whole", "half")
    )
    assert one == other and len(one) == 5


def test_it_comes_to_where_the_exact_gradient_comes_and_the_naive_one_does_not() -> None:
    """At seed 0; a lower upper loss is no higher gold score: the policy goes where pairs are easy to tell."""
    runs = {g: run_of(seed=0, gradient=g) for g in ("penalty", "naive", "exact")}
    loss = {g: run.context.metrics["hyper_objective"] for g, run in runs.items()}
    reached(loss["naive"] - loss["penalty"], 0.05)
    reached(-abs(loss["penalty"] - loss["exact"]), -0.005)
    gold = {g: run.run_state.evaluate()[0]["eval/return"] for g, run in runs.items()}
    assert gold["penalty"] < gold["naive"]
    assert runs["penalty"].context.metrics["gradient_error"] < runs["naive"].context.metrics["gradient_error"]


def test_the_first_step_is_along_the_gradient_at_0() -> None:
    loop = loop_of(gradient="exact", step_size="0.1")
    bandit = loop.run_state.task
    expected = -0.1 * exact_gradient(bandit.upper, bandit.response, torch.zeros(3, dtype=torch.float64))
    loop.iterate()
    assert torch.allclose(loop.run_state.models["reward"].weights, expected, atol=1e-15)
    assert loop.context.metrics["hyper_objective"] == pytest.approx(math.log(2))  # a reward of 0 tells nothing


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("combination-lock", {}, "learns a reward of features, and combination-lock has none"),
        ("reward-bandit(access=episodes)", {}, "asks for model access, and this task grants episodes"),
        ("reward-bandit(tau=0)", {}, "tau=0.0, which is out of its range"),
        ("reward-bandit", {"gradient": "naive", "rho": "1"}, "penalty gradient, and --gradient naive has none"),
        ("reward-bandit", {"gradient": "exact", "relaxation": "0.5"}, "--gradient exact has none; leave them out"),
        ("reward-bandit", {"rho": "0"}, "rho"),
    ],
)
def test_bad_input_gets_one_sentence(task: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        loop_of(task, **settings)


def test_a_penalty_that_does_not_settle_stops_the_run() -> None:
    with pytest.raises(NotFinite, match="did not settle in 10000 steps; lower --sigma"):
        loop = loop_of(sigma="1000000", tolerance="1e-30")
        loop.iterate()
        loop.iterate()
