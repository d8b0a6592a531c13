"""`polyrl solve`: the policy of a run on an instance from a file, beside heuristics and the best that is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from polyrl.api import open_policy
from polyrl.cli.solve_fleet import solve_fleet
from polyrl.cli.solve_instance import SECONDS, posed_costs, posed_items, posed_places, solve_posed
from polyrl.cli.solve_path import solve_path
from polyrl.cli.solve_shop import solve_shop
from polyrl.errors import UserError
from polyrl.report.drawing import save
from polyrl.rollout.construction import beam_search, build
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.runtime.drawing import Axis, Curve, Curves, Series, Sheet, Words
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.operations import pyvrp_routes
from polyrl.tasks.operations.air_taxis import AirTaxis
from polyrl.tasks.operations.asymmetric import AsymmetricTravelingSalesman
from polyrl.tasks.operations.job_shop import JobShop
from polyrl.tasks.operations.knapsack import Knapsack
from polyrl.tasks.operations.orienteering import Orienteering
from polyrl.tasks.operations.paths import Paths
from polyrl.tasks.operations.routing import TravelingSalesman
from polyrl.tasks.operations.tours import from_first, improved, nearest_neighbor
from polyrl.tasks.operations.tsplib import Instance, read_instance, read_tour, write_tour

MOST_SEARCHED = 200
"""Nodes up to which local search stands beside: it looks at all pairs, again and again."""
SIDE = 560
"""Pixels of the picture."""
WITHOUT_PLACES: dict[type, str] = {
    AirTaxis: "a fleet's day",
    AsymmetricTravelingSalesman: "a matrix of costs",
    JobShop: "a job shop",
    Knapsack: "a knapsack",
}
"""Problems that are not in the plane, and what they are called."""


def solve(
    folder: Path,
    instance: Path | None = None,
    *,
    best: str = "",
    beam: int = 1,
    symmetries: bool = False,
    out: Path | None = None,
    trust_code: bool = False,
) -> None:
    """Print what the run's policy and heuristics come to, and write the policy's tour and a picture of it.

    Args:
        folder: of the run.
        instance: a file of TSPLIB, or of what the run is of (`polyrl.tasks.operations.instance_files`, job shops, a
            fleet's day). None where it is of
            paths, whose map is its task's (`polyrl.cli.solve_path`).
        best: the best known length, or a file with the best known tour; empty: what the instance's comment says.
        beam: prefixes that are kept; 1 is greedy.
        symmetries: whether the eight ways in which the square can be turned and mirrored are all solved.
        out: folder of what is written; `solutions` in the run's where None.
        trust_code: run the files that the folder names.

    Raises:
        UserError: the file cannot be read, or the run builds no tours.
    """
    run_state = open_policy(folder, trust_code=trust_code)
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is Paths:
        if instance is not None or symmetries:
            option = "--symmetries" if instance is None else f"--instance {instance}"
            raise UserError(f"The run {folder} has learned one map, that of its task; leave out {option}.")
        solve_path(run_state, out or folder / "solutions", best=best, beam=beam)
        return
    if instance is None:
        raise UserError(f"Say which instance the run {folder} is to solve: --instance FILE.")
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind in WITHOUT_PLACES and symmetries:
        what = WITHOUT_PLACES[run_state.task.kind]
        raise UserError(f"--symmetries are those of the square, and {what} has none; leave it out.")
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is JobShop:
        solve_shop(run_state, instance, out or folder / "solutions", best=best, beam=beam)
        return
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is AirTaxis:
        solve_fleet(run_state, instance, out or folder / "solutions", best=best, beam=beam)
        return
    into = out or folder / "solutions"
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is AsymmetricTravelingSalesman:
        solve_posed(run_state, instance, posed_costs(instance, best), into, beam, "")
        return
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is Knapsack:
        solve_posed(run_state, instance, posed_items(instance, best), into, beam, "")
        return
    if isinstance(run_state, CombinatorialRunState) and run_state.task.kind is Orienteering:
        posed = posed_places(instance, best, mirrored if symmetries else None)
        solve_posed(run_state, instance, posed, into, beam, ", 8 symmetries" if symmetries else "")
        return
    given = read_instance(instance)
    known = _best_known(best, given)
    if not isinstance(run_state, CombinatorialRunState) or run_state.task.kind is not TravelingSalesman:
        raise UserError(f"The run {folder} builds no tours, so it cannot solve {instance}; train one with --task tsp.")
    network = run_state.network(run_state.judges)

    def by_policy() -> list[list[int]]:
        points = mirrored(given.scaled) if symmetries else given.scaled[None]
        rows = TravelingSalesman(0, len(points), points.shape[1], instances=lambda row, _: points[row])
        done = build(network, rows).environment if beam == 1 else beam_search(network, rows, beam)
        return [done.solution(row) for row in range(done.rows)]

    how = "greedy" if beam == 1 else f"beam {beam}"
    tours: dict[str, tuple[list[int], float, float]] = {}
    called = f"this policy, {how}" + (", 8 symmetries" if symmetries else "")
    tours[called] = _timed(by_policy, given)
    away = given.distances[None].float()
    nearest = nearest_neighbor(away, torch.zeros(1, dtype=torch.int64))
    tours["nearest neighbor"] = _timed(lambda: nearest.tolist(), given)
    if len(given.points) <= MOST_SEARCHED:
        tours["2-opt and Or-opt of it"] = _timed(lambda: from_first(improved(away, nearest)).tolist(), given)

    if pyvrp_routes.is_installed():
        matrix = given.distances.numpy()
        found = f"PyVRP, {SECONDS:g} s"
        tours[found] = _timed(lambda: [pyvrp_routes.tour(matrix, SECONDS)], given)

    console = Terminal()
    console.print(Text(f"{given.name}: {len(given.points)} nodes, {given.weights}", style="bold"))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "length", "above the best known", "seconds"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, (_, length, seconds) in tours.items():
        gap = "" if not known else f"{100 * (length / known - 1):+.2f}%"
        table.add_row(name, f"{length:.0f}", gap, f"{seconds:.2f}")
    if known is not None:
        table.add_row(Text("best known", "dim"), Text(f"{known:.12g}", "dim"), "", "")
    console.print(table)
    if known is None:
        console.print(
            "No best length is known: the file states none. Give --best a length or the file of a tour.", style="dim"
        )
    tour, length, _ = tours[called]
    write_tour(into / f"{instance.stem}.tour", given, tour, length, called)
    console.print(f"tour     {into / f'{instance.stem}.tour'}", soft_wrap=True)
    picture = save(drawn(given, tour, length), into / f"{instance.stem}.svg")
    console.print(f"picture  {picture}", soft_wrap=True)


def _best_known(best: str, given: Instance) -> float | None:
    """The best known length, by a number or a file.

    Raises:
        UserError: it is neither, or the file's tour is none.
    """
    if not best:
        return given.best
    try:
        number = float(best)
    except ValueError:
        found = given.verify(read_tour(Path(best), given))
        if found.cost is None:
            raise UserError(f"The tour {best} does not fit {given.name}: {found.why}.") from None
        return found.cost
    if not 0 < number < float("inf"):
        raise UserError(f"--best is {best} but must be a length above 0, or the file of a tour.")
    return number


def _timed(tours: Callable[[], list[list[int]]], given: Instance) -> tuple[list[int], float, float]:
    """The shortest of some tours, its length by the verifier, and the seconds that they took together."""
    began = time.perf_counter()
    found = tours()
    took = time.perf_counter() - began
    judged = [given.verify(tour) for tour in found]
    for verdict in judged:
        if verdict.cost is None:
            raise RuntimeError(f"a tour of {given.name} is infeasible: {verdict.why}")
    lengths = [verdict.cost for verdict in judged if verdict.cost is not None]
    length = min(lengths)
    return found[lengths.index(length)], length, took


def mirrored(points: Tensor) -> Tensor:
    """Points of the unit square `[n, 2]` in its eight symmetries, `[8, n, 2]`, the first as they are."""
    flips = [torch.tensor([[a, b]]) for a in (False, True) for b in (False, True)]
    four = [torch.where(flip, 1 - points, points) for flip in flips]
    return torch.stack([turned for each in four for turned in (each, each.flip(1))])


def drawn(given: Instance, tour: list[int], length: float) -> Sheet:
    """The tour in the file's coordinates, as broad as high."""
    low, high = given.points.min(0).values, given.points.max(0).values
    half = 0.53 * float((high - low).max())
    middle = ((low + high) / 2).tolist()
    x, y = (Axis(domain=(m - half, m + half), title=name) for m, name in zip(middle, "xy", strict=True))
    points = [(float(a), float(b)) for a, b in given.points[[*tour, tour[0]]].tolist()]
    curve = Curve(points=points, kind="mean", dots=True)
    chart = Curves(
        width=SIDE, height=SIDE, x=x, y=y, series=[Series(name=given.name, look=0, curves=[curve])], unnamed=True
    )
    title = f"{given.name}: a tour of length {length:.0f}"
    return Sheet(
        width=SIDE + 20, height=SIDE + 50, label=title, items=[(20, 12, Words(lines=[title])), (10, 40, chart)]
    )
