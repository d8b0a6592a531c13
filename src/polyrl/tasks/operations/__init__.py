"""Inventories and combinatorial problems by name.

Importing this costs next to nothing: torch is loaded when a task is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyrl.tasks.by_name import make_task

if TYPE_CHECKING:
    from polyrl.tasks.operations.combinatorial import CombinatorialTask
    from polyrl.tasks.operations.settings import InventoryTask

__all__ = ["TASKS", "task"]

TASKS: dict[str, str] = {
    "air-taxis": "the most profit of a day with a fleet of air taxis; beside greed and a genetic algorithm",
    "atsp": "the cheapest tour through n nodes whose costs differ by direction; the optimum is computed up to 13",
    "backlog": "one store, normal demand, unmet demand waits; the optimum is the newsvendor's base stock",
    "coverage": "the path of few moves that covers most of a weighted map; beside a greedy planner who knows the map",
    "cvrp": "the shortest routes of vehicles of a capacity from a depot to n customers; beside savings",
    "experiment-design": "measurements along a path that tell most of a Gaussian process; beside a greedy planner",
    "item-collection": "a path that collects items of six kinds, of each at most so many; beside a greedy planner",
    "job-shop": "the shortest makespan of n jobs on machines without buffers that shut down; beside dispatching rules",
    "knapsack": "the most value of n items in a knapsack; the optimum comes from dynamic programming",
    "lost-sales": "one store, Poisson demand, unmet demand is lost; the optimum comes from dynamic programming",
    "one-warehouse": "one warehouse and several stores, unmet demand is lost; no optimum is known",
    "orienteering": "the most prizes of n places on a way of a length; the optimum is computed up to 12",
    "serial": "a chain of stocking points before one store, backlog; the optimum is Clark and Scarf's",
    "transshipment": "a warehouse that may not keep stock and several stores, backlog; a tight lower bound is known",
    "tsp": "the shortest tour through n cities in the unit square; the optimum is computed up to 13",
    "two-rooms": "a path that covers two rooms joined by a corridor; beside a greedy planner",
}
"""Name of every task of operations research and one line about it."""

_PLACES = {
    "backlog": "settings:Backlog",
    "lost-sales": "settings:LostSales",
    "one-warehouse": "settings:OneWarehouse",
    "serial": "settings:Serial",
    "transshipment": "settings:Transshipment",
    "atsp": "asymmetric:AsymmetricTask",
    "coverage": "path_tasks:CoverageTask",
    "air-taxis": "air_taxis:AirTaxiTask",
    "cvrp": "vehicles:VehicleRoutingTask",
    "experiment-design": "path_tasks:DesignTask",
    "item-collection": "path_tasks:ItemsTask",
    "job-shop": "job_shop:JobShopTask",
    "knapsack": "knapsack:KnapsackTask",
    "orienteering": "orienteering:OrienteeringTask",
    "tsp": "routing:TravelingSalesmanTask",
    "two-rooms": "path_tasks:TwoRoomsTask",
}


def task(name: str, **settings: Any) -> Any:
    """Return the task `name`; `settings` are its fields (`lead_time`, `n`, ...) or their texts.

    The name may bring settings of its own: `lost-sales(lead_time=2, penalty=9)`.

    Raises `UserError` for an unknown name, an unknown setting or a setting out of its range.
    """
    made: InventoryTask | CombinatorialTask = make_task(__name__, _PLACES, name, settings)
    return made
