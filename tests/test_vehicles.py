"""Capacitated vehicle routing: masks that allow no infeasible step, routes as handed in, heuristics, and learning."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import polyrl as package
from conftest import SEED, reached
from polyrl.errors import UserError
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.vehicles import Customers, VehicleRouting, nearest_customers, savings
from test_construction import Alike, loop_of, stirred

torch.set_num_threads(1)
LINE = Customers(torch.tensor([[0.0, 0], [1, 0], [2, 0], [-1, 0], [-3, 0]], dtype=torch.float64), (0, 4, 5, 6, 4), 10)


def optimum(instance: Customers) -> float:
    """By all orders of the customers, each cut into routes in the best way."""
    away = distances(instance.points).tolist()
    best = float("inf")
    for order in itertools.permutations(range(1, len(away))):
        reach = [0.0] + [float("inf")] * len(order)
        for i in range(len(order)):
            for j in range(i + 1, len(order) + 1):
                route = order[i:j]
                if sum(instance.demand[k] for k in route) > instance.capacity:
                    break
                length = sum(away[a][b] for a, b in itertools.pairwise((0, *route, 0)))
                reach[j] = min(reach[j], reach[i] + length)
        best = min(best, reach[-1])
    return best


def test_ten_thousand_random_solutions_are_feasible() -> None:
    environment = VehicleRouting(SEED, 1_000, 7, 12)
    built = build(Alike(), environment, copies=10, stream=torch.Generator().manual_seed(SEED))
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-4)
    routes = {len(built.environment.solution(row)) for row in range(0, 10_000, 7)}
    assert len(routes) > 2


def test_what_may_come_next_by_hand() -> None:
    environment = VehicleRouting(SEED, 1, 3, 10)
    environment.state["demand"] = torch.tensor([[0, 4, 5, 6]])
    allowed = [environment.mask().int().tolist()[0]]  # type: ignore[union-attr]
    for node in (1, 2, 0):
        environment.step(torch.tensor([node]))
        allowed.append(environment.mask().int().tolist()[0])  # type: ignore[union-attr]
    assert allowed == [[0, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert float(environment.observe()["context"]) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the action 0 of row 0 is not allowed"):
        environment.step(torch.tensor([0]))
    environment.step(torch.tensor([3]))
    assert bool(environment.ended) and environment.solution(0) == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ([[1, 2], [3, 4]], ""),
        ([[1, 2], [3], []], "customer 4 is not served"),
        ([[1, 2, 4], [3]], "route 0 carries 13 of 10"),
        ([[1, 2], [3, 4], [1]], "customer 1 is served twice"),
        ([[1, 2], [3, 0], [4]], "there is no customer 0 among 4"),
    ],
)
def test_what_is_infeasible_is_told(routes: list[list[int]], said: str) -> None:
    found = VehicleRouting(SEED, 1, 4, 10).verify(LINE, routes)
    assert found.why == said and found.cost == (None if said else pytest.approx(4 + 6))


def test_heuristics_by_hand_and_beside_the_optimum() -> None:
    assert sorted(map(sorted, savings(LINE))) == [[1, 2], [3, 4]] and optimum(LINE) == pytest.approx(10)
    assert nearest_customers(LINE) == [[1, 2], [3, 4]]
    environment = VehicleRouting(SEED, 20, 6, 14)
    lines = environment.references()
    best = torch.tensor([optimum(environment.instance(row)) for row in range(20)], dtype=torch.float64)
    for costs in lines.values():
        assert bool((costs >= best - 1e-9).all())
    assert float(best.mean()) < float(lines["savings"].mean()) < 1.08 * float(best.mean())
    assert float(lines["savings"].mean()) < float(lines["nearest neighbor"].mean())
    assert [*environment.lines()] == ["savings", "nearest neighbor"]


def test_a_wide_beam_finds_the_optimum_and_steps_are_those_that_were_sampled() -> None:
    network = stirred(loop_of("am", "cvrp(n=5)").run_state.policy)
    environment = VehicleRouting(SEED, 5, 4, 12)
    found = judged(beam_search(network, environment, 400))
    assert found == pytest.approx([optimum(environment.instance(row)) for row in range(5)], abs=1e-5)
    loop = loop_of("am+multi-start", "cvrp(n=6)")
    batch = loop.recipe.collect(None, loop.context)
    out = loop.run_state.policy.outputs(batch, {"logprob"}, None)["logprob"].detach()
    there = batch["present"]
    assert not bool(there.all())
    torch.testing.assert_close(out[there], batch["behaviour_logprob"][there], atol=1e-5, rtol=1e-5)


def test_capacities_and_methods_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"cvrp\.capacity is 8 but must be from 9 to 1000"):
        make_loop(RunConfig(method="am", task="cvrp(capacity=8)", budget="iterations=1"))
    with pytest.raises(
        UserError,
        match="'good-tours' cuts good solutions into sub-problems, and cvrp has none; take --task tsp, atsp, ",
    ):
        make_loop(RunConfig(method="bq-nco", task="cvrp", budget="iterations=1"))


def test_training_shortens_routes(tmp_path: Path) -> None:
    done = package.train(
        "am+multi-start",
        task="cvrp(n=8)",
        budget="updates=60",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 200},
        width=32,
        heads=2,
        layers=2,
        feed_forward=64,
        starts=8,
        instances=32,
    )
    assert done.start["eval/gap_savings"] > 30
    reached(-done.final["eval/gap_savings"], -20)
