"""`polyrl solve` for asymmetric tours, orienteering and knapsacks: solutions beside heuristics, files, pictures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from polyrl.cli.solve_shop import best_known
from polyrl.errors import UserError
from polyrl.report.drawing import save
from polyrl.rollout.construction import beam_search, build
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.runtime.drawing import Axis, Curve, Curves, Placed, Series, Sheet, Span, Spans, Words
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.batched import Verdict
from polyrl.tasks.operations import pyvrp_routes
from polyrl.tasks.operations.asymmetric import AsymmetricTravelingSalesman
from polyrl.tasks.operations.combinatorial import ConstructionEnvironment
from polyrl.tasks.operations.instance_files import (
    AsymmetricInstance,
    read_costs,
    read_items,
    read_places,
    write_items,
)
from polyrl.tasks.operations.knapsack import MOST_EXACT, Items, Knapsack, densest
from polyrl.tasks.operations.orienteering import MOST_EXACT as MOST_PLACES
from polyrl.tasks.operations.orienteering import Orienteering, Places, best_route, way_length
from polyrl.tasks.operations.prize_routes import nearest_prizes
from polyrl.tasks.operations.routing import MOST_EXACT as MOST_CITIES
from polyrl.tasks.operations.routing import shortest
from polyrl.tasks.operations.tours import exchanged, from_first, nearest_neighbor
from polyrl.tasks.operations.tsplib import read_tour, write_tour

SECONDS = 5.0
"""Of PyVRP, where it is installed."""
MOST_SEARCHED = 200
"""Nodes up to which local search stands beside: it looks at all triples, again and again."""
WIDTH = 860
"""Pixels of a picture, and of one whose sides are alike."""
SIDE = 560
Solution = list[int]


@dataclass(frozen=True)
class Posed:
    """An instance of a file, and what is done with it.

    Attributes:
        title: what it is, in a line.
        label: of what is counted.
        maximizes: whether more of it is better.
        rows: in which the policy builds; the best of them is taken.
        verify: the cost of a solution, from it alone; minus what is gained.
        beside: what stands beside the policy, by name; an optimum where one is known.
        best: the best known of what is counted.
        kind: of the solution's file.
        write: writes a solution, what it comes to, and whose it is.
        draw: the picture.
    """

    title: str
    label: str
    maximizes: bool
    rows: ConstructionEnvironment
    verify: Callable[[Solution], Verdict]
    beside: Mapping[str, Callable[[], Solution]]
    best: float | None
    kind: str
    write: Callable[[Path, Solution, float, str], None]
    draw: Callable[[Solution, float], Sheet]

    def worth(self, solution: Solution) -> float:
        """What a solution comes to.

        Raises:
            RuntimeError: it is infeasible.
        """
        found = self.verify(solution)
        if found.cost is None:
            raise RuntimeError(f"a solution is infeasible: {found.why}")
        return -found.cost if self.maximizes else found.cost


def solve_posed(run_state: CombinatorialRunState, path: Path, posed: Posed, into: Path, beam: int, called: str) -> None:
    """Print what the policy and what stands beside it come to, and write the policy's solution and a picture of it.

    Args:
        run_state: of a run on the same problem.
        path: of the instance.
        posed: the instance.
        into: folder of what is written.
        beam: prefixes that are kept; 1 is greedy.
        called: what else is done to solve it, in words.
    """
    network = run_state.network(run_state.judges)

    def by_policy() -> Solution:
        rows = posed.rows
        done = build(network, rows).environment if beam == 1 else beam_search(network, rows, beam)
        return (max if posed.maximizes else min)((done.solution(row) for row in range(done.rows)), key=posed.worth)

    called = "this policy, " + ("greedy" if beam == 1 else f"beam {beam}") + called
    found, known = dict[str, tuple[Solution, float]](), posed.best
    console = Terminal()
    console.print(Text(posed.title, "bold"))
    for name, way in {called: by_policy, **posed.beside}.items():
        began = time.perf_counter()
        solution = way()
        found[name] = solution, time.perf_counter() - began
    if known is None and "optimum" in found:
        known = posed.worth(found["optimum"][0])
    table = Table(box=None, padding=(0, 3, 0, 0))
    beside = "below the best known" if posed.maximizes else "above the best known"
    for column in ("", posed.label, beside, "seconds"):
        table.add_column(column, header_style="dim", justify="right" if column else "left")
    for name, (solution, seconds) in found.items():
        worth = posed.worth(solution)
        gap = "" if not known else f"{100 * abs(worth / known - 1):.2f}%"
        better = known is not None and gap not in ("", "0.00%") and (worth > known) is posed.maximizes
        table.add_row(name, f"{worth:.12g}", f"better by {gap}" if better else gap, f"{seconds:.2f}")
    if known is not None:
        table.add_row(Text("best known", "dim"), Text(f"{known:.12g}", "dim"), "", "")
    console.print(table)
    if known is None:
        console.print(f"No best known {posed.label} is stated, and none is computed; give --best one.", style="dim")
    solution = found[called][0]
    worth = posed.worth(solution)
    target = into / f"{path.stem}.{posed.kind}"
    posed.write(target, solution, worth, called)
    console.print(f"{posed.kind:<8} {target}", soft_wrap=True)
    picture = save(posed.draw(solution, worth), into / f"{path.stem}.svg")
    console.print(f"picture  {picture}", soft_wrap=True)


# --------------------------------------------------------------------------------------------------------------- tours


def posed_costs(path: Path, best: str) -> Posed:
    """A tour whose costs differ by direction.

    Raises:
        UserError: the file cannot be read, or `best` is neither a cost nor the file of a tour.
    """
    given = read_costs(path)
    costs, count = given.costs, len(given.costs)
    away = torch.from_numpy(costs)[None]
    nearest = nearest_neighbor(away, torch.zeros(1, dtype=torch.int64))
    beside: dict[str, Callable[[], Solution]] = {"nearest neighbor": nearest[0].tolist}
    if count <= MOST_SEARCHED:
        beside["3-opt without reversal of it"] = lambda: from_first(exchanged(away, nearest))[0].tolist()
    if count <= MOST_CITIES:
        beside["optimum"] = lambda: shortest(costs)[1]
    if pyvrp_routes.is_installed():
        beside[f"PyVRP, {SECONDS:g} s"] = lambda: pyvrp_routes.tour(costs, SECONDS)
    return Posed(
        title=f"{given.name}: {count} nodes, costs by direction",
        label="cost",
        maximizes=False,
        rows=AsymmetricTravelingSalesman(0, 1, count, instances=lambda row, episode: costs),
        verify=given.verify,
        beside=beside,
        best=_best_cost(best, given),
        kind="tour",
        write=lambda target, tour, cost, by: write_tour(target, given, tour, cost, by),
        draw=lambda tour, cost: drawn_costs(given, tour, cost),
    )


def _best_cost(best: str, given: AsymmetricInstance) -> float | None:
    if best and Path(best).is_file():
        found = given.verify(read_tour(Path(best), given))
        if found.cost is None:
            raise UserError(f"The tour {best} does not fit {given.name}: {found.why}.")
        return found.cost
    known = best_known(best, "cost")
    return given.best if known is None else known


def drawn_costs(given: AsymmetricInstance, tour: Solution, cost: float) -> Sheet:
    """What each step of the tour costs, from its beginning on, and below it what the cheapest from that node would."""
    costs, rows, at = given.costs, list[list[Span]]([[], []]), 0.0
    for here, there in itertools.pairwise([*tour, tour[0]]):
        name, way = given.numbers[here], float(costs[here, there])
        title = f"from {name} to {given.numbers[there]}: {way:.12g}"
        rows[0].append(Span(low=at, high=at + way, look=here, text=name, title=title))
        least, to = min((float(costs[here, node]), node) for node in range(len(costs)) if node != here)
        title = f"the cheapest from {name} is to {given.numbers[to]}: {least:.12g}"
        rows[1].append(Span(low=at, high=at + min(least, way), look=here, faint=True, title=title))
        at += way
    title = f"{given.name}: a tour that costs {cost:.12g}; steps by the node they leave"
    return _bars(title, at or 1.0, ["tour", "cheapest step"], rows, "cost so far")


def _bars(title: str, most: float, names: list[str], rows: list[list[Span]], axis: str) -> Sheet:
    chart = Spans(width=WIDTH, domain=(0, most), names=names, items=rows, title=axis)
    items: list[Placed] = [(20, 12, Words(lines=[title])), (20, 40, chart)]
    return Sheet(width=WIDTH + 40, height=chart.height + 44, label=title, items=items)


# ------------------------------------------------------------------------------------------------------- orienteering


def posed_places(path: Path, best: str, turned: Callable[[Tensor], Tensor] | None) -> Posed:
    """A way that collects prizes; `turned` gives points of the unit square in all ways that are solved.

    Raises:
        UserError: the file cannot be read, or `best` is no number of prizes.
    """
    given, stated = read_places(path)
    count = len(given.prize)
    rows = Orienteering(0, 1, count - 1, instances=lambda row, episode: given)
    if turned is not None:
        points = turned(rows.state["points"][0])
        rows = rows.copies(len(points))
        rows.state = {**rows.state, "points": points}
    one = {name: rows.state[name][:1] for name in ("away", "prize", "longest", "end")}

    def routed(routes: Tensor) -> Solution:
        return [node for node in routes[0].tolist() if node]

    beside: dict[str, Callable[[], Solution]] = {
        "greedy prize by distance": lambda: routed(nearest_prizes(**one)),
        "ruin and recreate": lambda: routed(rows.good_routes()),
    }
    if count - 1 - bool(given.end) <= MOST_PLACES:
        beside["optimum"] = lambda: best_route(given)
    known = best_known(best, "number of prizes")

    def verify(route: Solution) -> Verdict:
        return rows.verify(given, route)

    def written(target: Path, route: Solution, prizes: float, by: str) -> None:
        head = (
            f"prizes {prizes:.12g}, length {way_length(given, route):.12g} of {given.longest:.12g}, {by}; node numbers"
        )
        write_items(target, [node + 1 for node in (0, *route, given.end)], head)

    return Posed(
        title=f"{path.stem}: {count - 1 - bool(given.end)} places, the longest way is {given.longest:.12g}",
        label="prizes",
        maximizes=True,
        rows=rows,
        verify=verify,
        beside=beside,
        best=stated if known is None else known,
        kind="route",
        write=written,
        draw=lambda route, prizes: drawn_route(path.stem, given, route, prizes),
    )


def drawn_route(name: str, given: Places, route: Solution, prizes: float) -> Sheet:
    """The way in the file's coordinates, and the places; those that are not visited have another mark."""
    low, high = given.points.min(0).values, given.points.max(0).values
    half = 0.53 * float((high - low).max())
    middle = ((low + high) / 2).tolist()
    x, y = (Axis(domain=(m - half, m + half), title=title) for m, title in zip(middle, "xy", strict=True))

    def at(nodes: Solution) -> list[tuple[float, float]]:
        return [(float(a), float(b)) for a, b in given.points[nodes].tolist()]

    visited = [0, *route, given.end]
    series = [Series(name="way", look=0, curves=[Curve(points=at(visited), kind="mean", dots=True)])]
    for node in range(len(given.prize)):
        if node not in visited:
            series.append(Series(name="not visited", look=1, curves=[Curve(points=at([node]), kind="mean", dots=True)]))
    chart = Curves(width=SIDE, height=SIDE, x=x, y=y, series=series, unnamed=True)
    length = way_length(given, route)
    title = f"{name}: prizes of {prizes:.12g} on a way of {length:.6g}, {given.longest:.6g} at most"
    return Sheet(
        width=SIDE + 20, height=SIDE + 50, label=title, items=[(20, 12, Words(lines=[title])), (10, 40, chart)]
    )


# ----------------------------------------------------------------------------------------------------------- knapsacks


def posed_items(path: Path, best: str) -> Posed:
    """A knapsack.

    Raises:
        UserError: the file cannot be read, or `best` is no value.
    """
    given = read_items(path)
    count = len(given.value)
    rows = Knapsack(0, 1, count, instances=lambda row, episode: given)
    beside: dict[str, Callable[[], Solution]] = {"density greedy": lambda: densest(given)}
    if given.whole and count * given.capacity <= MOST_EXACT:
        beside["optimum"] = lambda: rows.good_items()[0].nonzero()[:, 0].tolist()
    return Posed(
        title=f"{path.stem}: {count} items, {given.capacity:.12g} fit of {sum(given.weight):.12g}",
        label="value",
        maximizes=True,
        rows=rows,
        verify=lambda items: rows.verify(given, items),
        beside=beside,
        best=best_known(best, "value"),
        kind="items",
        write=lambda target, items, value, by: write_items(
            target, items, f"value {value:.12g}, weight {_weight(given, items):.12g}, {by}; item numbers"
        ),
        draw=lambda items, value: drawn_items(path.stem, given, items, value),
    )


def _weight(given: Items, items: Solution) -> float:
    return sum(given.weight[item - 1] for item in items)


def drawn_items(name: str, given: Items, items: Solution, value: float) -> Sheet:
    """What the items weigh as parts of the capacity, and their values as parts of what all items are worth."""
    rows, most = list[list[Span]](), sum(given.value)
    for each, whole in ((given.weight, given.capacity), (given.value, most)):
        ends = [0.0, *itertools.accumulate(100 * each[item - 1] / whole for item in items)]
        rows.append(
            [
                Span(low=low, high=high, look=item, text=str(item), title=f"item {item}: {each[item - 1]:.12g}")
                for item, (low, high) in zip(items, itertools.pairwise(ends), strict=True)
            ]
        )
    weight = _weight(given, items)
    title = f"{name}: items worth {value:.12g} of {most:.12g}, which weigh {weight:.12g} of {given.capacity:.12g}"
    return _bars(title, 100.0, ["weight", "value"], rows, "percent of what fits, and of the value of all items")
