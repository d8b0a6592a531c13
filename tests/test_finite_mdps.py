"""Finite MDPs: every exact answer against enumeration, simulation or what was worked out by hand; what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.theory import solving, task
from polyrl.tasks.theory.agnostic import Ladder
from polyrl.tasks.theory.families import CombinationLock, HoleGrid, RiverSwim
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask, thresholds

torch.set_num_threads(1)


def random_mdp(seed: int, layers: int, states: int, actions: int, **more: Any) -> FiniteMDP:
    stream = torch.Generator().manual_seed(seed)
    shape = (layers, states, actions) if "horizon" in more else (states, actions)
    transition = torch.rand(*shape, states, generator=stream, dtype=torch.float64) ** 4
    initial = torch.rand(states, generator=stream, dtype=torch.float64)
    reward = torch.rand(*shape, generator=stream, dtype=torch.float64)
    return FiniteMDP(transition / transition.sum(-1, keepdim=True), reward, initial / initial.sum(), **more)


def deterministic(layers: int, states: int, actions: int) -> Tensor:
    """Every deterministic policy, `[A^(L S), L, S, A]`."""
    chosen = torch.tensor([*itertools.product(range(actions), repeat=layers * states)])
    return torch.nn.functional.one_hot(chosen, actions).double().view(-1, layers, states, actions)


def walked(mdp: FiniteMDP, policy: Tensor) -> float:
    """The expected return of one policy with a horizon, over every way that an episode can go."""
    total = 0.0
    ways = [(float(p), s, 0.0) for s, p in enumerate(mdp.initial.tolist())]
    for h in range(mdp.layers):
        following = []
        for p, s, earned in ways:
            for a in range(len(mdp.actions)):
                for t in range(len(mdp.states)):
                    chance = p * float(policy[h, s, a]) * float(mdp.transition[h, s, a, t])
                    if chance:
                        following.append((chance, t, earned + float(mdp.reward[h, s, a])))
        ways = following
    for p, _, earned in ways:
        total += p * earned
    return total


# ------------------------------------------------------------------------------------------------- exact answers


def test_values_of_policies_are_those_of_all_ways_that_an_episode_can_go() -> None:
    mdp = random_mdp(1, 3, 2, 2, horizon=3)
    policies = deterministic(3, 2, 2)
    mixed = torch.softmax(torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(2)), -1).double()
    mixed = mixed / mixed.sum(-1, keepdim=True)
    for policy in [*policies[::7], *mixed]:
        assert float(mdp.worth(policy)) == pytest.approx(walked(mdp, policy), abs=1e-12)


@pytest.mark.parametrize("kind", [{"horizon": 2}, {"discount": 0.8}, {}], ids=["horizon", "discount", "average"])
@pytest.mark.parametrize("seed", range(6))
def test_no_deterministic_policy_is_better_than_the_best(kind: dict[str, Any], seed: int) -> None:
    states, actions = 3, 2
    mdp = random_mdp(seed, 2, states, actions, **kind)
    worths = mdp.worth(deterministic(mdp.layers, states, actions))
    assert mdp.optimum == pytest.approx(float(worths.max()), abs=1e-9)
    assert float(mdp.worth(mdp.solution.policy)) == pytest.approx(float(worths.max()), abs=1e-9)
    assert float((worths - mdp.optimum).max()) < 1e-9 and float(worths.min()) < mdp.optimum - 1e-3
    assert bool((mdp.gaps >= 0).all()) and bool((mdp.gaps.min(-1).values == 0).all())


def test_a_batch_of_policies_is_worth_what_each_is_alone() -> None:
    for kind in ({"horizon": 2}, {"discount": 0.9}, {}):
        mdp = random_mdp(3, 2, 3, 2, **kind)
        policies = (
            deterministic(mdp.layers, 3, 2).view(-1, 4, *mdp.shape) if mdp.layers == 2 else deterministic(1, 3, 2)
        )
        together = mdp.worth(policies)
        alone = torch.stack([mdp.worth(p) for p in policies.view(-1, *mdp.shape)]).view(together.shape)
        assert torch.allclose(together, alone, atol=1e-12, rtol=0)


def test_gains_are_those_of_long_simulations_and_of_chains_that_never_mix() -> None:
    two = FiniteMDP([[[0.8, 0.2]], [[0.3, 0.7]]], [[0.0], [1.0]])
    assert two.optimum == pytest.approx(0.4, abs=1e-12)  # by hand
    assert float(two.solution.value[1] - two.solution.value[0]) == pytest.approx(2, abs=1e-8)
    circle = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])  # period 2
    assert FiniteMDP(circle, [[0.0], [1.0]]).optimum == pytest.approx(0.5, abs=1e-12)
    apart = torch.eye(2)[:, None]  # who begins in a state stays there
    assert solving.gains(
        apart.double(), torch.tensor([[0.25], [0.75]]).double(), torch.ones(2, 1).double()
    ).tolist() == [
        0.25,
        0.75,
    ]


def test_occupancies_are_probabilities_and_give_the_value() -> None:
    mdp = random_mdp(4, 3, 3, 2, horizon=3)
    policy = mdp.uniform
    mass = solving.occupancies(mdp.transition, policy, mdp.initial)
    assert torch.allclose(mass.sum(-1), torch.ones(3).double())
    earned = (mass[..., None] * policy * mdp.reward).sum()
    assert float(earned) == pytest.approx(float(mdp.worth(policy)), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_how_far_policies_reach_is_found_by_going_through_all_of_them(seed: int) -> None:
    mdp = random_mdp(seed, 3, 3, 2, horizon=3)
    masses = solving.occupancies(mdp.transition, deterministic(3, 3, 2), mdp.initial)  # [N, H, S]
    most = masses.max(0).values
    assert torch.allclose(solving.most_occupied(mdp.transition, mdp.initial), most, atol=1e-12)
    assert solving.coverability(mdp.transition, mdp.initial) == pytest.approx(float(most.sum(-1).max()), abs=1e-12)
    restart = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    restart /= restart.sum(-1, keepdim=True)
    worst = solving.concentrability(mdp.transition, mdp.initial, restart)
    assert worst == pytest.approx(float((masses / restart).max()), rel=1e-12)
    best = most / most.sum(-1, keepdim=True)  # resets by which every state is covered alike
    covered = solving.concentrability(mdp.transition, mdp.initial, best)
    assert covered == pytest.approx(solving.coverability(mdp.transition, mdp.initial)) and covered <= worst


def test_resets_of_the_ladder_cover_it_as_the_paper_says() -> None:
    mdp = Ladder(horizon=4).mdp
    middle = solving.most_occupied(mdp.transition, mdp.initial)[:, :2]
    assert middle[:, 1].tolist() == [1, 0, 0, 0] and middle[:, 0].tolist() == [0] * 4  # it begins in b, and ends there
    assert solving.concentrability(mdp.transition[:1], mdp.initial, mdp.restart[:1]) == pytest.approx(7)
    assert solving.concentrability(mdp.transition, mdp.initial, mdp.restart) == math.inf  # no reset begins at the end


@pytest.mark.parametrize("seed", range(4))
def test_the_diameter_is_the_longest_of_the_shortest_ways(seed: int) -> None:
    mdp = random_mdp(seed, 1, 3, 2)
    policies = deterministic(1, 3, 2)[:, 0]
    longest = 0.0
    for first, last in itertools.permutations(range(3), 2):
        others = [s for s in range(3) if s != last]
        best = math.inf
        for policy in policies:
            moves = torch.einsum("sa,sat->st", policy, mdp.transition[0])[others][:, others].numpy()
            steps = np.linalg.solve(np.eye(2) - moves, np.ones(2))
            best = min(best, float(steps[others.index(first)]))
        longest = max(longest, best)
    assert solving.diameter(mdp.transition[0]) == pytest.approx(longest, abs=1e-9)
    assert solving.diameter(torch.eye(2)[:, None].double()) == math.inf


# ------------------------------------------------------------------------------------------------------- families


def test_river_swim_has_the_numbers_that_were_worked_out() -> None:
    mdp = RiverSwim().mdp
    assert mdp.optimum == pytest.approx(0.4286224, abs=1e-6)
    assert mdp.solution.value.tolist() == pytest.approx([0, 0.71437, 2.04106, 3.45522, 4.88188, 6.31032], abs=1e-5)
    assert mdp.solution.policy[0, :, 1].tolist() == [1] * 6  # always right
    assert torch.allclose(mdp.solution.q[0].max(-1).values, mdp.solution.value, atol=1e-9)
    assert float(mdp.gaps[0, 0, 0]) == pytest.approx(0.4236, abs=1e-4)
    assert float(mdp.gaps[0, 5, 0]) == pytest.approx(1.8571, abs=1e-4)
    assert mdp.constants["span"] == pytest.approx(6.31032, abs=1e-5)
    assert 10 < mdp.constants["diameter"] < 20


def test_the_lock_has_the_value_that_was_worked_out() -> None:
    lock = CombinationLock()
    assert lock.mdp.optimum == pytest.approx(0.9**4 + (1 - 0.9**4) * 0.1)  # bad luck in the last step comes too late
    assert CombinationLock(horizon=12, choices=2).mdp.optimum == pytest.approx(0.9**11 + (1 - 0.9**11) * 0.1)
    assert lock.mdp.solution.policy[:, 0].argmax(-1).tolist() == list(lock.code)
    codes = {CombinationLock(instance=k).code for k in range(20)}
    assert len(codes) > 15 and CombinationLock(instance=3).code == CombinationLock(instance=3).code


def test_a_grid_leaves_a_way_and_falls_stay() -> None:
    for instance in range(6):
        grid = HoleGrid(instance=instance, holes=5)
        assert len(grid.layout) == 5 and not {0, 15} & grid.layout
        assert grid.mdp.optimum > 0 and all(abs(grid.mdp.solution.value[hole]) < 1e-12 for hole in grid.layout)
    straight = HoleGrid(width=2, holes=0, slip=0.0)
    assert straight.mdp.optimum == pytest.approx(0.95**2)  # two steps to the goal, whose step pays 1
    assert HoleGrid(width=2, holes=0, slip=0.0, horizon=2).mdp.optimum == 0
    assert HoleGrid(width=2, holes=0, slip=0.0, horizon=3).mdp.optimum == 1


def test_a_task_stands_beside_its_optimum() -> None:
    made = task("combination-lock(horizon=3,choices=2)")
    assert isinstance(made, FiniteTask)
    assert made.metric.key == "eval/return" and made.metric.target == "optimum"
    assert made.metric.lines["optimum"] == pytest.approx(0.9**2 + (1 - 0.9**2) * 0.1)
    assert made.metric.lines["uniform policy"] < made.metric.lines["optimum"]
    assert task("river-swim").metric.key == "eval/gain"
    assert task("river-swim(discount=0.9)").metric.key == "eval/return"


# --------------------------------------------------------------------------------------------------- what is refused


STAY = [[[1.0, 0.0]], [[0.0, 1.0]]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"transition": [[[0.5, 0.4]], [[0.0, 1.0]]]}, "transition at state 0, action 0 is no distribution"),
        ({"transition": [[[1.5, -0.5]], [[0.0, 1.0]]]}, "transition at state 0, action 0 is no distribution"),
        ({"transition": [[1.0, 0.0], [0.0, 1.0]]}, "must be \\[S, A, S\\]"),
        ({"transition": [STAY, STAY]}, "there is no horizon"),
        ({"transition": "x"}, "cannot be read as an array"),
        ({"reward": [[1.0, 2.0]]}, "reward has the shape \\[1, 2\\] but must be \\[2, 1\\]"),
        ({"reward": [[math.nan], [0.0]]}, "reward at state 0, action 0 is no number"),
        ({"reward": [[2.0], [0.0]], "reward_noise": "bernoulli"}, "mean reward is a probability"),
        ({"reward_noise": "gauss"}, "no reward noise 'gauss'"),
        ({"initial": [0.5, 0.4]}, "initial is no distribution"),
        ({"restart": [0.5, 0.6], "horizon": 2}, "restart is no distribution"),
        ({"horizon": 0}, "at least 1 step"),
        ({"discount": 1.0}, "above 0 and below 1"),
        ({"discount": 0.5, "horizon": 2}, "not both"),
        ({"states": ("a",)}, "2 states and 1 names"),
        ({"access": frozenset({"episodes"})}, "grants no episodes access"),
        ({"access": frozenset({"generatve"})}, "Did you mean 'generative'"),
    ],
)
def test_what_is_no_mdp_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        FiniteMDP(**{"transition": STAY, "reward": [[0.0], [1.0]], **given})


def test_what_is_given_may_be_of_any_kind() -> None:
    listed = FiniteMDP(STAY, [[0.0], [1.0]], horizon=2)
    array = FiniteMDP(np.array(STAY, dtype=np.float32), np.array([[0], [1]]), horizon=2)
    layered = FiniteMDP(torch.tensor([STAY, STAY]), torch.tensor([[[0], [1]]] * 2), horizon=2)
    assert listed.digest == array.digest == layered.digest
    assert listed.digest != FiniteMDP(STAY, [[0.0], [1.0]], horizon=3).digest


def test_a_river_in_two_parts_has_no_gain_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "MOST_SWEEPS", 2_000)
    with pytest.raises(UserError, match="did not settle"):
        _ = FiniteMDP(STAY, [[0.0], [1.0]]).optimum


def test_a_draw_is_never_an_outcome_of_probability_0() -> None:
    chances = torch.tensor([0.0, 0.3, 0.0, 0.7 - 1e-17, 0.0], dtype=torch.float64)
    limits = thresholds(chances)
    for u, outcome in ((0.0, 1), (0.2999, 1), (0.3, 3), (1 - 2**-53, 3)):
        assert int((limits <= u).sum()) == outcome
    assert int((thresholds(torch.tensor([1.0, 0.0]).double()) <= 1 - 2**-53).sum()) == 0
