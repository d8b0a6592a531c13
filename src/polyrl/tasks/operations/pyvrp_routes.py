"""Routes by PyVRP's hybrid genetic search (Wouda, Lan and Kool 2024, doi:10.1287/ijoc.2023.0055), an extra.

PyVRP knows whole numbers alone, so distances that are none are rounded to a ten thousandth of the longest one. Of
larger numbers it takes long to see that too large a load is worse than a detour.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from polyrl.errors import UserError

FINE = 10_000
"""Units of the longest distance, where distances are no whole numbers."""


def is_installed() -> bool:
    """Whether PyVRP can be imported."""
    return find_spec("pyvrp") is not None


def routed(
    away: NDArray[np.float64],
    demand: Sequence[int],
    capacity: int,
    seconds: float,
    seed: int = 0,
    vehicles: int | None = None,
) -> list[list[int]] | None:
    """The shortest routes from node 0 that are found in so many seconds; None where no feasible ones are.

    Each is its nodes in their order.

    Args:
        away: distances `[n, n]`, from each node (rows) to each other.
        demand: of each node, 0 of node 0.
        capacity: of a vehicle.
        seconds: of search.
        seed: of its chance.
        vehicles: how many there are; None: as many as nodes.

    Raises:
        UserError: PyVRP is not installed.
    """
    try:
        from pyvrp import Model
        from pyvrp.stop import MaxRuntime
    except ImportError:
        raise UserError("PyVRP is not installed: pip install 'polyrl[solvers]'.") from None
    whole = bool((away == away.round()).all())
    units = (away if whole else away * (FINE / max(float(away.max()), 1e-12))).round().astype(int)
    model, count = Model(), len(away)
    places = [model.add_location(0, 0) for _ in range(count)]
    model.add_depot(places[0])
    for node in range(1, count):
        model.add_client(places[node], delivery=int(demand[node]))
    model.add_vehicle_type(num_available=count - 1 if vehicles is None else vehicles, capacity=capacity)
    for here in range(count):
        for there in range(count):
            if here != there:
                model.add_edge(places[here], places[there], distance=int(units[here, there]))
    result = model.solve(MaxRuntime(seconds), seed=seed, collect_stats=False, display=False)
    found = result.best
    if not result.is_feasible():
        return None
    return [[stop.idx + 1 for stop in route if stop.is_client()] for route in found.routes()]


def tour(away: NDArray[np.float64], seconds: float, seed: int = 0) -> list[int]:
    """The shortest tour from node 0 that is found in so many seconds: one vehicle, and nothing to carry."""
    routes = routed(away, [0] * len(away), 1, seconds, seed, vehicles=1)
    assert routes is not None  # every order of the nodes is feasible
    return [0, *(node for route in routes for node in route)]
