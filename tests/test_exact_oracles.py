"""Exact answers against solvers that are not ours: linear programs (SciPy's HiGHS), NumPy's algebra, MDP packages.

The linear programs are those of Puterman's book: values from above for a discount, and frequencies of states and
actions for the average reward. `pip install pymdptoolbox mdpsolver` adds two packages that solve MDPs; without them
their tests are skipped, since neither is kept up well enough to ask everybody for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

from polyrl.tasks.theory import solving
from polyrl.tasks.theory.families import CombinationLock, HoleGrid, RiverClass, RiverSwim
from polyrl.tasks.theory.finite import FiniteMDP
from test_finite_mdps import random_mdp

torch.set_num_threads(1)
Array = NDArray[np.float64]
PRECISE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
DISCOUNTED = [
    *(random_mdp(seed, 1, 6, 3, discount=0.9) for seed in range(3)),
    RiverSwim(discount=0.95).mdp,
    HoleGrid().mdp,
]
AVERAGE = [*(random_mdp(seed, 1, 6, 3) for seed in range(3)), RiverSwim().mdp, RiverClass().mdp]
EPISODIC = [*(random_mdp(seed, 4, 4, 3, horizon=4) for seed in range(3)), CombinationLock().mdp]


def arrays(mdp: FiniteMDP) -> tuple[Array, Array]:
    """Transitions `[S, A, S]` and rewards `[S, A]`."""
    return mdp.transition[0].numpy(), mdp.reward[0].numpy()


def solved(**program: Any) -> Any:
    found = linprog(**program, method="highs", options=PRECISE)
    assert found.status == 0
    return found


def mixed(mdp: FiniteMDP, seed: int) -> Array:
    """A policy `[L, S, A]` that mixes all actions."""
    drawn = np.random.default_rng(seed).random(mdp.shape)
    return np.asarray(drawn / drawn.sum(-1, keepdims=True))


# ------------------------------------------------------------------------------------------------ linear programs


@pytest.mark.parametrize("mdp", DISCOUNTED, ids=range(len(DISCOUNTED)))
def test_discounted_values_are_the_least_that_no_action_can_raise(mdp: FiniteMDP) -> None:
    """min sum V subject to V(s) >= r(s, a) + gamma P(s, a) V."""
    moves, reward = arrays(mdp)
    states, actions = reward.shape
    above = mdp.discount * moves - np.eye(states)[:, None]
    found = solved(
        c=np.ones(states),
        A_ub=above.reshape(states * actions, states),
        b_ub=-reward.ravel(),
        bounds=(None, None),
    )
    assert mdp.solution.value.tolist() == pytest.approx(found.x.tolist(), abs=1e-8)
    q = reward + mdp.discount * moves @ found.x
    assert np.allclose(mdp.solution.q[0].numpy(), q, atol=1e-8)


@pytest.mark.parametrize("mdp", AVERAGE, ids=range(len(AVERAGE)))
def test_the_best_gain_is_the_most_that_frequencies_earn(mdp: FiniteMDP) -> None:
    """max sum x r over frequencies x of states and actions that flow in as they flow out."""
    moves, reward = arrays(mdp)
    states, actions = reward.shape
    flow = np.repeat(np.eye(states), actions, 1) - moves.reshape(states * actions, states).T
    found = solved(
        c=-reward.ravel(),
        A_eq=np.vstack([flow, np.ones(states * actions)]),
        b_eq=[*np.zeros(states), 1.0],
        bounds=(0, None),
    )
    assert mdp.optimum == pytest.approx(-found.fun, abs=1e-9)
    assert mdp.solution.gain.tolist() == pytest.approx([-found.fun] * states, abs=1e-9)
    bias = -found.eqlin.marginals[:states]  # the prices of the flows are the bias, up to a constant
    visited = found.x.reshape(states, actions).sum(1) > 1e-9
    value = mdp.solution.value.numpy()
    assert np.allclose((value - value[visited][0])[visited], (bias - bias[visited][0])[visited], atol=1e-6)


@pytest.mark.parametrize("mdp", EPISODIC, ids=range(len(EPISODIC)))
def test_values_of_each_step_are_the_least_that_no_action_can_raise(mdp: FiniteMDP) -> None:
    """One linear program over the values of all steps at once, and no dynamic programming."""
    steps, states, actions = mdp.shape
    rows, limits = [], []
    for h, s, a in np.ndindex(steps, states, actions):
        row = np.zeros((steps, states))
        row[h, s] -= 1
        if h + 1 < steps:
            row[h + 1] += mdp.transition[h, s, a].numpy()
        rows.append(row.ravel())
        limits.append(-float(mdp.reward[h, s, a]))
    found = solved(c=np.ones(steps * states), A_ub=np.array(rows), b_ub=limits, bounds=(None, None))
    values = found.x.reshape(steps, states)
    assert np.allclose(mdp.solution.value[:-1].numpy(), values, atol=1e-8)
    assert mdp.optimum == pytest.approx(float(values[0] @ mdp.initial.numpy()), abs=1e-8)


@pytest.mark.parametrize("mdp", AVERAGE[:4], ids=range(4))
def test_the_diameter_is_the_worst_of_the_shortest_ways_by_linear_programs(mdp: FiniteMDP) -> None:
    """To each state: the most that steps T can be with T(s) <= 1 + P(s, a) T and T = 0 there."""
    moves, _ = arrays(mdp)
    states, actions = moves.shape[:2]
    longest = 0.0
    for goal in range(states):
        others = [s for s in range(states) if s != goal]
        less = np.eye(states)[others][:, None] - moves[others]
        found = solved(
            c=-np.ones(states - 1),
            A_ub=less[:, :, others].reshape(-1, states - 1),
            b_ub=np.ones((states - 1) * actions),
            bounds=(0, None),
        )
        longest = max(longest, float(found.x.max()))
    assert solving.diameter(mdp.transition[0]) == pytest.approx(longest, rel=1e-8)


# ------------------------------------------------------------------------------------------------ NumPy's algebra


@pytest.mark.parametrize("mdp", DISCOUNTED, ids=range(len(DISCOUNTED)))
def test_a_discounted_policy_is_worth_what_its_linear_system_says(mdp: FiniteMDP) -> None:
    moves, reward = arrays(mdp)
    policy = mixed(mdp, 1)
    chain, earns = np.einsum("sa,sat->st", policy[0], moves), (policy[0] * reward).sum(1)
    value = np.linalg.solve(np.eye(len(chain)) - mdp.discount * chain, earns)
    assert float(mdp.worth(torch.from_numpy(policy))) == pytest.approx(float(value @ mdp.initial.numpy()), abs=1e-10)


@pytest.mark.parametrize("mdp", AVERAGE, ids=range(len(AVERAGE)))
def test_gain_and_bias_are_those_of_the_stationary_distribution(mdp: FiniteMDP) -> None:
    """The eigenvector of eigenvalue 1, for the best policy and for one that mixes; and Poisson's equation."""
    moves, reward = arrays(mdp)
    for policy in (mixed(mdp, 2), mdp.solution.policy.numpy()):
        chain, earns = np.einsum("sa,sat->st", policy[0], moves), (policy[0] * reward).sum(1)
        values, vectors = np.linalg.eig(chain.T)
        stays = np.real(vectors[:, np.abs(values - 1).argmin()])
        gain = float(stays @ earns / stays.sum())
        assert float(mdp.worth(torch.from_numpy(policy))) == pytest.approx(gain, abs=1e-9)
        assert np.allclose(solving.long_run(torch.from_numpy(chain))[0].numpy(), stays / stays.sum(), atol=1e-9)
    states = len(chain)
    poisson = np.vstack([np.eye(states) - chain, np.ones(states)])
    bias = np.linalg.lstsq(poisson, np.append(earns - gain, 0.0), rcond=None)[0]
    assert np.allclose(mdp.solution.value.numpy(), bias - bias.min(), atol=1e-6)


@pytest.mark.parametrize("mdp", EPISODIC, ids=range(len(EPISODIC)))
def test_an_episode_is_worth_its_products_of_matrices(mdp: FiniteMDP) -> None:
    """Forward, from the first state's distribution, where ours goes backward."""
    policy, mass, total = mixed(mdp, 3), mdp.initial.numpy(), 0.0
    for h in range(mdp.layers):
        total += float(mass @ (policy[h] * mdp.reward[h].numpy()).sum(1))
        mass = mass @ np.einsum("sa,sat->st", policy[h], mdp.transition[h].numpy())
    assert float(mdp.worth(torch.from_numpy(policy))) == pytest.approx(total, abs=1e-12)


# ---------------------------------------------------------------------------------- packages, where they are there


@pytest.mark.parametrize("mdp", DISCOUNTED[:4], ids=range(4))
def test_pymdptoolbox_finds_the_same_discounted_values_and_policy(mdp: FiniteMDP) -> None:
    toolbox = pytest.importorskip("mdptoolbox.mdp", exc_type=ImportError)
    moves, reward = arrays(mdp)
    found = toolbox.PolicyIteration(moves.transpose(1, 0, 2), reward, mdp.discount)
    found.run()
    assert mdp.solution.value.tolist() == pytest.approx([*found.V], abs=1e-8)
    assert mdp.solution.policy[0].argmax(-1).tolist() == [*found.policy]


@pytest.mark.parametrize("mdp", AVERAGE, ids=range(len(AVERAGE)))
def test_pymdptoolbox_finds_the_same_gain(mdp: FiniteMDP) -> None:
    toolbox = pytest.importorskip("mdptoolbox.mdp", exc_type=ImportError)
    moves, reward = arrays(mdp)
    found = toolbox.RelativeValueIteration(moves.transpose(1, 0, 2), reward, epsilon=1e-9, max_iter=100_000)
    found.run()
    assert mdp.optimum == pytest.approx(float(found.average_reward), abs=1e-7)


@pytest.mark.parametrize("mdp", DISCOUNTED[:4], ids=range(4))
def test_mdpsolver_finds_the_same_discounted_values(mdp: FiniteMDP) -> None:
    package = pytest.importorskip("mdpsolver", exc_type=ImportError)
    moves, reward = arrays(mdp)
    found = package.model()
    found.mdp(discount=mdp.discount, rewards=reward.tolist(), tranMatWithZeros=moves.tolist())
    found.solve(algorithm="pi", tolerance=1e-10)
    assert mdp.solution.value.tolist() == pytest.approx(found.getValueVector(), abs=1e-6)
