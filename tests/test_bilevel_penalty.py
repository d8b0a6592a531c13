"""Penalty bilevel: the card's quadratics, gradients against finite differences, O(sigma), limits, what it reaches."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED, reached
from polyrl.errors import NotFinite, UserError
from polyrl.methods.theory.bilevel_penalty import SLUG, exact_gradient, penalized, penalty_gradient
from polyrl.runs import make_loop
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
