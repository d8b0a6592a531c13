"""Batched environments: rows that know nothing of each other, tours that are tours, plans that cost what was paid."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import SEED
from polyrl.tasks.batched import Actions, BatchedEnvironment, Padded, play
from polyrl.tasks.operations import task
from polyrl.tasks.operations.inventories import InventoryEnvironment
from polyrl.tasks.operations.routing import NEAREST, TravelingSalesman, held_karp

SETTINGS = ["backlog", "lost-sales", "lost-sales(ordering_cost=10)", "serial", "transshipment", "one-warehouse"]


def at_random(stream: torch.Generator) -> Actions:
    """Any action that is allowed."""

    def act(seen: Any, mask: Tensor | None) -> Tensor:
        assert mask is not None
        return torch.multinomial(mask.float() + 1e-9 * ~mask.any(1, keepdim=True), 1, generator=stream)[:, 0]

    return act


def ordering(spec: str, periods: int = 9, rows: int = 4) -> InventoryEnvironment:
    return InventoryEnvironment(task(spec), SEED, rows, periods)


def orders(environment: InventoryEnvironment) -> Tensor:
    """Orders that look at the inventories: what the position lacks of a level, negative ones among them."""
    seen = environment.observe()["inventory"]
    assert isinstance(seen, Tensor)
    return 22 - seen.sum(-1) * torch.linspace(0.6, 1.4, seen.shape[1])


# ------------------------------------------------------------------------------------------------------------- tours


def test_ten_thousand_random_tours_are_tours() -> None:
    """Every rollout under the mask is feasible, and its rewards sum to minus the length of the tour as handed in."""
    environment = TravelingSalesman(SEED, 2_500, 2, 9)
    act = at_random(torch.Generator().manual_seed(SEED))
    sizes = set()
    for _ in range(4):
        paid = play(environment, act)
        for row in range(environment.rows):
            cities, tour = environment.instance(row), environment.solution(row)
            found = environment.verify(cities, tour)
            assert found.cost == pytest.approx(-float(paid[row]), abs=1e-5), found.why
            sizes.add(len(cities))
        environment.reset(torch.arange(environment.rows))
    assert sizes == set(range(2, 10))


def test_the_dynamic_program_is_the_best_of_all_tours() -> None:
    environment = TravelingSalesman(SEED, 12, 7)
    for row in range(12):
        cities = environment.instance(row)
        ways = ((0, *rest) for rest in itertools.permutations(range(1, 7)))
        best = min(sum(math.dist(cities[a], cities[b]) for a, b in itertools.pairwise((*t, 0))) for t in ways)
        length, order = held_karp(cities)
        assert length == pytest.approx(best, rel=1e-9)
        assert environment.verify(cities, order).cost == pytest.approx(best, rel=1e-9)
    assert held_karp(np.zeros((1, 2))) == (0.0, [0]) and held_karp(np.eye(2))[0] == pytest.approx(2 * 2**0.5)


def test_lines_of_tours() -> None:
    """Four cities in a row, by hand: nearest neighbor runs past two and pays for it."""
    environment = TravelingSalesman(SEED, 1, 4)
    environment.state["cities"] = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [-0.15, 0.0], [0.9, 0.0]]])
    assert -float(play(environment, NEAREST)) == pytest.approx(0.1 + 0.25 + 1.05 + 0.9)
    assert environment.solution(0) == [0, 1, 2, 3]
    many = TravelingSalesman(SEED, 40, 6, 10)
    lines = many.lines()
    exact = [held_karp(many.instance(row))[0] for row in range(40)]
    assert lines["optimum"] == pytest.approx(np.mean(exact), rel=1e-6)
    assert [*lines] == ["optimum", "2-opt and Or-opt", "farthest insertion", "nearest neighbor"]
    assert lines["optimum"] < lines["nearest neighbor"] == pytest.approx(-float(play(many, NEAREST).mean()))
    assert next(iter(TravelingSalesman(SEED, 2, 14).lines())) == "2-opt and Or-opt"  # too large for the optimum


@pytest.mark.parametrize(
    ("tour", "said"),
    [
        ([0, 1, 2, 4], "there is no city 4 among 4"),
        ([0, 1, 1, 2], "city 1 is visited twice"),
        ([0, 3, 1], "city 2 is not visited"),
        ([1, 0, 2, 3], "begins in city 1 and not in city 0"),
    ],
)
def test_what_is_no_tour_is_told(tour: list[int], said: str) -> None:
    environment = TravelingSalesman(SEED, 1, 4)
    found = environment.verify(environment.instance(0), tour)
    assert found.cost is None and said in found.why


def test_padding_is_never_allowed_and_ended_rows_stay() -> None:
    environment = TravelingSalesman(SEED, 64, 3, 6)
    cities = environment.observe()["nodes"]
    assert isinstance(cities, Padded) and not bool(cities.present.all())
    for _ in range(6):
        mask = environment.mask()
        assert mask is not None and not bool((mask & ~cities.present).any())
        assert torch.equal(mask.any(1), ~environment.ended)
        before, ended = environment.state["tour"], environment.ended
        moved = environment.step(mask.float().argmax(1))
        assert bool((moved.reward[ended] == 0).all()) and torch.equal(moved.state["tour"][ended], before[ended])
    assert bool(environment.ended.all())
    with pytest.raises(ValueError, match="the action 0 of row 0 is not allowed"):
        TravelingSalesman(SEED, 1, 3).step(torch.tensor([0]))
    with pytest.raises(ValueError, match="2 cities or more"):
        TravelingSalesman(SEED, 1, 1)


# -------------------------------------------------------------------------------------------------------------- rows


def test_what_is_random_is_of_the_row_and_its_episode() -> None:
    """Not of how many rows there are, nor of which of them were reset before."""
    many, few = TravelingSalesman(SEED, 7, 5), TravelingSalesman(SEED, 3, 5)
    assert torch.equal(many.state["cities"][:3], few.state["cities"])
    many.reset(torch.tensor([4, 2]))
    few.reset(torch.tensor([0]))
    few.reset(torch.tensor([2, 1]))
    assert torch.equal(many.state["cities"][2], few.state["cities"][2])
    assert not torch.equal(many.state["cities"][0], few.state["cities"][0])
    assert not torch.equal(many.state["cities"][0], many.state["cities"][1])
    assert not torch.equal(TravelingSalesman(SEED + 1, 3, 5).state["cities"][0], many.state["cities"][0])
    stock, other = ordering("lost-sales"), ordering("lost-sales", rows=2)
    for _ in range(9):
        stock.step(orders(stock))
    assert torch.equal(stock.state["demand"][:2], other.state["demand"])  # whatever was ordered
    assert not torch.equal(stock.state["demand"][0], stock.state["demand"][1])


@pytest.mark.parametrize("kind", ["tours", "inventories"])
def test_rows_go_on_from_where_they_were_saved(kind: str) -> None:
    def made() -> BatchedEnvironment:
        return TravelingSalesman(SEED, 5, 6, 8) if kind == "tours" else ordering("one-warehouse", rows=5)

    def act(environment: BatchedEnvironment) -> Tensor:
        mask = environment.mask()
        if mask is not None:
            return mask.float().argmax(1)
        assert isinstance(environment, InventoryEnvironment)
        return orders(environment)

    environment = made()
    for _ in range(2):
        environment.step(act(environment))
    saved = environment.save_rows(torch.tensor([1, 3]))
    one = environment.save_rows(torch.tensor([3]))
    rewards = [environment.step(act(environment)).reward for _ in range(3)]
    other = made()
    other.reset(torch.tensor([0, 4]), at=saved)  # in other places
    other.restore(torch.tensor([1, 2]), one)  # one state in several
    again = [other.step(act(other)).reward for _ in range(3)]
    for first, second in zip(rewards, again, strict=True):
        assert torch.allclose(second[[0, 4, 1, 2]], first[[1, 3, 3, 3]], atol=1e-6)


def test_what_is_not_granted_is_refused() -> None:
    class Closed(TravelingSalesman):
        access = frozenset()

    environment = Closed(SEED, 2, 4)
    with pytest.raises(NotImplementedError, match="Closed does not grant reset-to-state"):
        environment.save_rows(torch.tensor([0]))
    with pytest.raises(NotImplementedError, match="Closed does not grant reset-to-state"):
        environment.reset(torch.tensor([0]), at=environment.state)


# ------------------------------------------------------------------------------------------------------- inventories


@pytest.mark.parametrize("spec", SETTINGS)
def test_steps_are_the_unrolled_simulator_and_the_plan_costs_what_was_paid(spec: str) -> None:
    """Step by step, unrolled at once, and by a plain loop over the plan as written."""
    environment = ordering(spec)
    start, demand = environment.state["start"], environment.state["demand"]
    rewards, asked = [], []
    while not bool(environment.ended.all()):
        asked.append(orders(environment))
        rewards.append(environment.step(asked[-1]).reward)
    assert len(rewards) == 9
    plan = iter(asked)
    whole = environment.task.simulator.run(lambda _: next(plan), start, demand)
    assert torch.equal(torch.stack(rewards, 1), -whole.cost)
    for row in range(environment.rows):
        found = environment.verify(environment.instance(row), environment.solution(row))
        assert found.cost == pytest.approx(float(whole.cost[row].mean()), rel=1e-4), found.why


@pytest.mark.parametrize("spec", SETTINGS)
def test_after_the_decision_only_demand_is_missing(spec: str) -> None:
    environment = ordering(spec)
    network = environment.task.network
    for period in range(6):
        action = orders(environment)
        post = environment.post_decision(environment.state, action)["post"]
        wanted = torch.zeros(environment.rows, network.locations)
        wanted[:, network.upstream :] = environment.state["demand"][:, period]
        end = post[..., 0] - wanted
        coming = post[..., 1:].clone()
        coming[..., 0] += end.clamp(min=0) if network.lost else end
        after = environment.step(action).state["inventory"]
        torch.testing.assert_close(after, coming, atol=1e-4, rtol=1e-5)


def test_gradients_flow_through_steps() -> None:
    environment = ordering("lost-sales")
    level = torch.tensor(14.0, requires_grad=True)
    start, demand = environment.state["start"], environment.state["demand"]

    def policy(inventory: Tensor) -> Tensor:
        return (level - inventory.sum(-1)).clamp(min=0)

    total = play(environment, lambda seen, _: policy(seen["inventory"]))  # type: ignore[arg-type]
    (stepped,) = torch.autograd.grad(total.sum(), level)
    (whole,) = torch.autograd.grad(-environment.task.simulator.run(policy, start, demand).cost.sum(), level)
    assert float(stepped) == pytest.approx(float(whole), rel=1e-5) and abs(float(whole)) > 1


@pytest.mark.parametrize(
    ("spec", "plan", "said"),
    [
        ("backlog", [[5.0], [-1.0]], "location 0 orders -1 in period 1"),
        ("backlog", [[5.0], [math.nan]], "location 0 orders nan in period 1"),
        ("backlog", [[5.0]], "the plan has 1 periods for 2 of demand"),
        ("backlog", [[5.0], [5.0, 5.0]], "period 1 has 2 orders for 1 locations"),
        ("serial", [[5.0, 5.0, 0.0, 0.0], [0.0] * 4], "location 0 ships 5 of 0 in period 0"),
        ("transshipment", [[9.0, 0, 0, 0, 0, 0], [0.0] * 6], None),
    ],
)
def test_a_plan_that_cannot_be_shipped_is_told(spec: str, plan: list[list[float]], said: str | None) -> None:
    environment = ordering(spec, periods=2, rows=1)
    found = environment.verify(environment.instance(0), plan)
    assert found.why == (said or "") and (found.cost is None) == (said is not None)


def test_a_warehouse_in_transit_passes_everything_on() -> None:
    environment = ordering("transshipment(warehouse_lead_time=1)", periods=2, rows=1)
    plan = [[9.0, 0, 0, 0, 0, 0], [0.0, 4.0, 0, 0, 0, 0]]
    found = environment.verify(environment.instance(0), plan)
    assert found.cost is None and found.why == "location 0 may keep nothing, and ships 4 of 9 in period 1"
    assert environment.verify(environment.instance(0), [plan[0], [0.0, 4.0, 5.0, 0, 0, 0]]).cost is not None
