"""Theory's problems: duals against the primal optimum, backups against loops, games against direct maximization."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.theory import TASKS, task
from polyrl.tasks.theory.american_put import AmericanPut
from polyrl.tasks.theory.games import MatrixGame, best_response, exploitability, kl, nash_policy
from polyrl.tasks.theory.linear_mdp import SimulatedLinearMDP
from polyrl.tasks.theory.mdp import soft_policy
from polyrl.tasks.theory.uncertainty import CONSTRAINTS, DIVERGENCES, Uncertainty

torch.set_num_threads(1)
EVERY = list(product(DIVERGENCES, CONSTRAINTS))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --------------------------------------------------------------------------------------------- the adversary


def divergence(kind: str, p: np.ndarray, q: np.ndarray) -> float:
    if kind == "tv":
        return float(np.abs(p - q).sum() / 2)
    if kind == "kl":
        return float(np.sum(p * np.log(np.maximum(p, 1e-300) / q)))
    return float(np.sum((p - q) ** 2 / q))


def primal(kind: str, constraint: str, level: float, q: np.ndarray, v: np.ndarray) -> float:
    """The adversary's optimum by a solver that knows nothing of the dual."""
    n = len(q)
    if kind == "tv":  # a linear programme in (p, |p - q|)
        eye = np.eye(n)
        away = np.concatenate([np.zeros(n), np.full(n, 0.5)])
        bounds_a, bounds_b = np.block([[eye, -eye], [-eye, -eye]]), np.concatenate([q, -q])
        cost = np.concatenate([v, np.zeros(n)])
        if constraint == "radius":
            bounds_a, bounds_b = np.vstack([bounds_a, away]), np.append(bounds_b, level)
        else:
            cost = cost + level * away
        total = np.concatenate([np.ones(n), np.zeros(n)])[None]
        found = linprog(cost, bounds_a, bounds_b, total, [1.0], bounds=[(0, None)] * (2 * n))
        return float(found.fun)

    def cost_of(p: np.ndarray) -> float:
        return float(p @ v) + (level * divergence(kind, p, q) if constraint == "penalty" else 0.0)

    limits: list[dict[str, Any]] = [{"type": "eq", "fun": lambda p: p.sum() - 1}]
    if constraint == "radius":
        limits.append({"type": "ineq", "fun": lambda p: level - divergence(kind, p, q)})
    # start inside the feasible set, which is convex, as the objective is
    found = minimize(
        cost_of, q, bounds=[(1e-12, 1)] * n, constraints=limits, method="SLSQP", options={"ftol": 1e-13, "maxiter": 500}
    )
    return float(found.fun)


@pytest.mark.parametrize(
    ("kind", "constraint", "level", "wanted"),
    [
        ("tv", "radius", 0.2, 0.3),
        ("tv", "penalty", 0.5, 0.25),
        ("kl", "penalty", 1, 0.4503094),
        ("kl", "radius", 0.1, 0.3706534),
        ("chi2", "radius", 0.2, 0.3507150),
        ("chi2", "penalty", 1, 0.5475),
        ("chi2", "penalty", 0.25, 0.25),
    ],
)
def test_worst_cases_known_by_hand(kind: Any, constraint: Any, level: float, wanted: float) -> None:
    q, v = vector(0.5, 0.3, 0.2), vector(0, 1, 2)
    found = Uncertainty(kind, constraint, level).worst_case(q[None], v, highest=3)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    assert primal(kind, constraint, level, q.numpy(), v.numpy()) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("kind", "constraint"), EVERY)
def test_the_dual_is_the_primal_optimum(kind: Any, constraint: Any) -> None:
    random = np.random.default_rng(7)
    for level in (0.05, 0.3, 1.5):
        q = random.dirichlet(np.ones(4), size=4)
        v = random.uniform(0, 3, size=4)
        found = Uncertainty(kind, constraint, level).worst_case(torch.tensor(q), torch.tensor(v), highest=3)
        wanted = [primal(kind, constraint, level, row, v) for row in q]
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize(("kind", "constraint"), EVERY)
def test_no_adversary_and_no_limit(kind: Any, constraint: Any) -> None:
    q, v = vector(0.5, 0.3, 0.2)[None], vector(1, 0, 2)
    nothing = Uncertainty(kind, constraint, 0.0 if constraint == "radius" else math.inf)
    weak, strong = (0.0 + 1e-9, 1e4) if constraint == "radius" else (1e7, 1e-7)
    assert float(nothing.worst_case(q, v, highest=3)) == pytest.approx(float(q[0] @ v))
    assert float(Uncertainty(kind, constraint, weak).worst_case(q, v, highest=3)) == pytest.approx(0.9, abs=1e-3)
    assert float(Uncertainty(kind, constraint, strong).worst_case(q, v, highest=3)) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("kind", "constraint"), [e for e in EVERY if e not in (("kl", "penalty"), ("tv", "penalty"))])
def test_signed_estimates_are_maximized_over_the_whole_dual(kind: Any, constraint: Any) -> None:
    """Rows of a ridge regression may be negative and sum to less than 1: the maximum is held against a fine grid."""
    random = np.random.default_rng(3)
    v = np.concatenate([[0.0], random.uniform(0, 3, 5)])
    weights = random.normal(0.15, 0.25, (6, 6))
    level = 0.3
    what = Uncertainty(kind, constraint, level)
    found = what.worst_case(torch.tensor(weights), torch.tensor(v), highest=3.0, floor=0.05).numpy()
    grid = np.unique(np.concatenate([np.linspace(0, 3, 30_001), v]))
    for row, value in zip(weights, found, strict=True):
        if kind == "kl":
            a = np.geomspace(0.05, 40, 20_001)
            moment = np.maximum(np.exp(-v[None] / a[:, None]) @ row, np.exp(-3.0 / a))
            best = (-a * np.log(moment) - a * level).max()
        else:
            clipped = np.minimum(v[None], grid[:, None])
            first, second = clipped @ row, clipped**2 @ row
            variance = second - first**2
            cost = {
                ("tv", "radius"): level * grid,
                ("chi2", "radius"): np.sqrt(level * np.maximum(variance, 0)),
                ("chi2", "penalty"): variance / (4 * level),
            }[kind, constraint]
            best = (first - cost).max()
        assert best - 1e-9 <= value <= best + 1e-3


def test_what_ridge_shrinkage_gives_a_factor_without_data() -> None:
    what, nothing, v = Uncertainty("kl", "penalty", 1.0), torch.zeros(1, 3, dtype=torch.float64), vector(0, 1, 2)
    assert float(what.worst_case(nothing, v, highest=3)) == pytest.approx(3)
    assert float(what.worst_case(nothing, v, highest=3, centred=True)) == pytest.approx(0)
    full = vector(0.5, 0.3, 0.2)[None]
    assert float(what.worst_case(full, v, highest=3, centred=True)) == pytest.approx(0.4503094, abs=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        ("x2", "radius", 0.1),
        ("tv", "ball", 0.1),
        ("tv", "radius", -1.0),
        ("kl", "penalty", 0.0),
        ("kl", "radius", math.nan),
    ],
)
def test_an_impossible_adversary_is_refused(bad: Any) -> None:
    with pytest.raises(UserError):
        Uncertainty(*bad)


# ------------------------------------------------------------------------------------------------ robust MDPs


def test_the_soft_backup_known_by_hand() -> None:
    policy, value = soft_policy(vector(1, 0), vector(0.5, 0.5).log(), 1.0)
    assert policy.tolist() == pytest.approx([0.7310586, 0.2689414], abs=1e-7)
    assert float(value) == pytest.approx(0.6201145, abs=1e-7)
    divergence = float((policy * (policy / 0.5).log()).sum())
    assert divergence == pytest.approx(0.1109441, abs=1e-7)
    assert float(policy[0]) - divergence == pytest.approx(float(value), abs=1e-12)
    assert float(soft_policy(vector(1, 0), vector(0.5, 0.5).log(), 0.0)[1]) == 1.0


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"rho": 0.5}, [1.461, 1.442, 1.423, 1.404, 1.386]),
        ({"rho": 0.0}, [1.773, 1.476, 1.178, 0.880, 0.583]),
        ({"rho": 0.5, "eta": 0.0}, [1.44] * 5),
    ],
)
def test_exact_returns_of_the_simulated_linear_mdp(settings: dict[str, float], wanted: list[float]) -> None:
    mdp = SimulatedLinearMDP(**settings)  # type: ignore[arg-type]
    assert list(mdp.returns(mdp.plan().policy).values()) == pytest.approx(wanted, abs=6e-4)


@pytest.mark.parametrize(
    ("xi", "radius", "value"), [(0.1, 0.480640, 1.03976), (0.2, 0.375750, 1.24975), (0.3, 0.280840, 1.43976)]
)
def test_the_radius_at_which_caution_pays(xi: float, radius: float, value: float) -> None:
    for change, action in ((-1e-5, "++++"), (1e-5, "----")):
        mdp = SimulatedLinearMDP(xi=xi, rho=radius + change, eta=0.0)
        plan = mdp.plan()
        assert mdp.actions[int(plan.policy[0, 0].argmax())] == action
        assert float(plan.value[1, 1]) == pytest.approx(value, abs=1e-6)


def test_temperature_raises_the_radius_at_which_caution_pays() -> None:
    mdp = SimulatedLinearMDP(rho=0.3, eta=0.0)
    assert mdp.optimum == pytest.approx(1.4383, abs=1e-4)
    assert float(mdp.plan(Uncertainty()).value[0, 0]) == pytest.approx(1.7753, abs=1e-4)
    assert mdp.returns(mdp.plan().policy)["q1"] == pytest.approx(1.44, abs=1e-3)
    assert mdp.returns(mdp.plan(eta=0.05).policy)["q1"] == pytest.approx(0.90, abs=1e-3)


@pytest.mark.parametrize(("rho", "wanted"), [(0.0, [11.30, 2.46, 0.335, 0.015]), (0.2, [2.00, 1.53, 0.83, 0.354])])
def test_exact_returns_of_the_american_put(rho: float, wanted: list[float]) -> None:
    put = AmericanPut(rho=rho)
    assert list(put.returns(put.plan().policy).values()) == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("name", ["linear-mdp", "american-put"])
def test_problems_are_problems(name: str) -> None:
    mdp = task(name)
    assert torch.allclose(mdp.kernel.sum(-1), torch.ones(()).double())
    assert all(torch.allclose(k.sum(-1), torch.ones(()).double()) for k in mdp.shifts.values())
    held = mdp.features.sum(-1)
    assert bool(((held - 1).abs().lt(1e-12) | held.eq(0)).all()) and float(mdp.features.min()) >= 0
    best = mdp.plan(Uncertainty(), 0.0).value
    assert bool((best[:-1].amax(1) <= mdp.highest + 1e-12).all())


@pytest.mark.parametrize(("kind", "constraint"), EVERY)
def test_robust_evaluation_against_naive_loops(kind: Any, constraint: Any) -> None:
    """Policy evaluation with the primal adversary, state by state and factor by factor."""
    mdp = SimulatedLinearMDP(divergence=kind, constraint=constraint, rho=0.3, lam=0.4, eta=0.1, xi=0.2)
    random = torch.Generator().manual_seed(1)
    policy = torch.rand(3, 5, 16, generator=random, dtype=torch.float64).softmax(-1)
    level = 0.3 if constraint == "radius" else 0.4
    value = np.zeros(5)
    for h in (2, 1, 0):
        worst = []
        for i in range(4):
            q = mdp.factors[h, i].numpy()
            if bool(mdp.exposed[h, i]):
                # KL and chi2 stay within the support; TV may leave it
                on = np.ones(5, bool) if kind == "tv" else q > 0
                worst.append(primal(kind, constraint, level, q[on], value[on]) if on.sum() > 1 else float(value[on][0]))
            else:
                worst.append(float(q @ value))
        new = np.zeros(5)
        for s in range(5):
            for a in range(16):
                p = float(policy[h, s, a])
                q_value = float(mdp.reward[h, s, a]) + sum(float(mdp.features[s, a, i]) * worst[i] for i in range(4))
                new[s] += p * q_value - 0.1 * p * math.log(p * 16)
        value = new
    assert float(mdp.judge(policy).value[0, 0]) == pytest.approx(value[0], abs=1e-5)
    assert mdp.suboptimality(policy) == pytest.approx(mdp.optimum - value[0], abs=1e-5)


@pytest.mark.parametrize(("kind", "constraint"), EVERY)
def test_no_policy_beats_the_plan(kind: Any, constraint: Any) -> None:
    mdp = SimulatedLinearMDP(divergence=kind, constraint=constraint, rho=0.4, lam=0.5, eta=0.05)
    plan = mdp.plan()
    assert float(mdp.judge(plan.policy).value[0, 0]) == pytest.approx(mdp.optimum, abs=1e-12)
    random = torch.Generator().manual_seed(2)
    for _ in range(20):
        other = (plan.policy.clamp(min=1e-12).log() + 0.3 * torch.randn(3, 5, 16, generator=random)).softmax(-1)
        assert mdp.suboptimality(other) > 0


# ------------------------------------------------------------------------------------------- preference games


@pytest.mark.parametrize(
    ("beta", "wanted"),
    [
        (1.0, (0.510868, 0.261556, 0.227576)),
        (0.1, (0.375327, 0.277433, 0.347240)),
        (0.05, (0.351185, 0.303336, 0.345478)),
    ],
)
def test_nash_policies_known_by_hand(beta: float, wanted: tuple[float, ...]) -> None:
    game = task("rock-paper-scissors", beta=beta)
    assert game.nash.exp().tolist() == pytest.approx(wanted, abs=1e-6)
    fixed = best_response(game.preference, game.nash, game.log_reference, beta)
    assert torch.allclose(fixed, game.nash, atol=1e-12)
    assert game.measures(game.nash)["eval/exploitability"] < 1e-14


def test_exploitability_is_what_the_best_opponent_wins() -> None:
    game = task("rock-paper-scissors")
    start = float(exploitability(game.preference, game.log_reference, game.log_reference, 0.1))
    assert start == pytest.approx(0.036113, abs=1e-6)
    game = task("matrix-game", actions=4, beta=0.1, instance=3)
    policy = torch.log_softmax(vector(0.3, -0.2, 0.9, 0.0), -1)
    p, reference = game.preference.numpy(), game.log_reference

    def lost(x: np.ndarray) -> float:  # the opponent's P_beta, by its logits
        mu = torch.log_softmax(torch.tensor(x), -1)
        won = float(mu.exp().numpy() @ p @ policy.exp().numpy())
        return -(won - 0.1 * float(kl(mu, reference)) + 0.1 * float(kl(policy, reference)))

    best = -minimize(lost, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).fun
    assert float(exploitability(game.preference, policy, reference, 0.1)) == pytest.approx(best - 0.5, abs=1e-7)


@pytest.mark.parametrize("actions", [10, 100])
@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_random_games_are_solved_to_rounding(actions: int, beta: float) -> None:
    game = MatrixGame(actions=actions, beta=beta, instance=5)
    assert torch.allclose(game.preference + game.preference.T, torch.ones(()).double(), atol=1e-15)
    fixed = best_response(game.preference, game.nash, game.log_reference, beta)
    assert float((fixed - game.nash).abs().max()) < 1e-12
    assert game.measures(game.log_reference)["eval/exploitability"] > 0.001


def test_a_nash_policy_that_was_not_found_is_no_answer() -> None:
    game = task("rock-paper-scissors", beta=0.02)
    with pytest.raises(ArithmeticError, match="only"):
        nash_policy(game.preference, game.log_reference, 1e-5, newton_steps=1)


def test_games_are_drawn_by_their_number() -> None:
    one, same, other = (MatrixGame(instance=i) for i in (1, 1, 2))
    assert torch.equal(one.preference, same.preference) and torch.equal(one.log_reference, same.log_reference)
    assert not torch.equal(one.preference, other.preference)


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("rock-paper-scissors", {"beta": 0}, "beta"),
        ("rock-paper-scissors", {"beta": -1}, "beta"),
        ("matrix-game", {"actions": 1}, "actions"),
        ("matrix-game", {"action": 3}, "actions"),
        ("matrix-games", {}, "matrix-game"),
        ("linear-mdp", {"rho": -0.1}, "rho"),
        ("linear-mdp", {"eta": -1}, "eta"),
        ("linear-mdp", {"xi": 0.5}, "probabilities"),
        ("linear-mdp", {"divergence": "hellinger"}, "tv, kl, chi2"),
        ("linear-mdp", {"constraint": "penalty", "lam": 0}, "lambda"),
        ("american-put", {"rise": 1.0}, "rise"),
        ("american-put", {"start_price": 50.0}, "start_price"),
    ],
)
def test_bad_settings_are_told_in_one_sentence(name: str, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        task(name, **{k: str(v) for k, v in settings.items()})


def test_every_task_is_listed_and_made() -> None:
    assert {task(name).name for name in TASKS} == set(TASKS)
    assert task("matrix-game(actions=7, beta=0.5)").actions == 7  # type: ignore[union-attr]
