"""PyVRP beside a policy: routes and tours of the least length, by distances of either kind and direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SEED, Command
from polyrl.errors import UserError
from polyrl.runs import start_run
from polyrl.tasks.operations import pyvrp_routes
from polyrl.tasks.operations.asymmetric import AsymmetricTravelingSalesman
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.vehicles import VehicleRouting
from test_construction import config_of
from test_solve import HEAD, NODES
from test_solve_instances import ATSP
from test_vehicles import optimum

torch.set_num_threads(1)
installed = pytest.mark.skipif(not pyvrp_routes.is_installed(), reason="PyVRP is not installed")


@installed
def test_routes_are_the_shortest() -> None:
    environment = VehicleRouting(SEED, 5, 6, 14)
    for row in range(5):
        instance = environment.instance(row)
        routes = pyvrp_routes.routed(distances(instance.points).numpy(), instance.demand, instance.capacity, 0.2)
        assert environment.verify(instance, routes).cost == pytest.approx(optimum(instance), abs=2e-3)


@installed
def test_tours_are_the_cheapest_by_direction_and_whole_numbers_are_not_rounded() -> None:
    environment = AsymmetricTravelingSalesman(SEED, 4, 9)
    best = environment.references()["optimum"].tolist()
    for row in range(4):
        found = pyvrp_routes.tour(environment.instance(row), 0.2)
        assert environment.verify(environment.instance(row), found).cost == pytest.approx(best[row], abs=2e-3)
    large = np.full((4, 4), 3_000_001.0)
    for here, there in ((0, 2), (2, 1), (1, 3), (3, 0)):
        large[here, there] = 3_000_000
    assert pyvrp_routes.tour(large, 0.1) == [0, 2, 1, 3]


@installed
def test_it_stands_beside_a_policy(tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyrl.cli import solve, solve_instance

    monkeypatch.setattr(solve, "SECONDS", 0.1)
    monkeypatch.setattr(solve_instance, "SECONDS", 0.1)
    for method, spec, text, line in (
        ("am", "tsp(n=7)", HEAD + NODES, "PyVRP, 0.1 s 2012 +0.00%"),
        ("bq-nco", "atsp(n=5)", ATSP, "PyVRP, 0.1 s 7 0.00%"),
    ):
        (tmp_path / f"x.{method}").write_text(text)
        start_run(config_of(method, spec, "iterations=1"), tmp_path / method).run()
        told = polyrl("solve", tmp_path / method, "--instance", tmp_path / f"x.{method}")
        assert told.code == 0 and line in " ".join(told.out.split()), told.err


@pytest.mark.skipif(pyvrp_routes.is_installed(), reason="PyVRP is installed")
def test_without_it_one_is_told_what_to_install() -> None:
    with pytest.raises(UserError, match=r"PyVRP is not installed: pip install 'polyrl\[solvers\]'"):
        pyvrp_routes.tour(np.ones((3, 3)), 0.1)
