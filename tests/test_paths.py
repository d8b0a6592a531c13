"""Paths over a terrain: set functions by hand and by brute force, moves and walls, the verifier, planners, tasks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED
from polyrl.errors import UserError
from polyrl.rollout.construction import judged
from polyrl.tasks.batched import State, play
from polyrl.tasks.operations import task
from polyrl.tasks.operations.path_planners import best_path, greedy_path, random_worth
from polyrl.tasks.operations.path_tasks import PathTask
from polyrl.tasks.operations.paths import PathProblem, Paths
from polyrl.tasks.operations.set_functions import Coverage, Information, Items, SetFunction
from polyrl.tasks.operations.terrain import (
    HILLS,
    ITEMS,
    MOVES,
    WANTED,
    Terrain,
    footprints,
    items,
    known_at,
    matern,
    two_rooms,
    weights,
)

torch.set_num_threads(1)
SMALL = ("coverage(n=5,horizon=8)", "two-rooms(n=5,horizon=9)", "item-collection", "experiment-design(n=5,horizon=8)")


def drawn(rows: Paths) -> Paths:
    """Rows at their end, by moves of equal chances."""
    stream = torch.Generator().manual_seed(SEED)
    moves = len(rows.problem.terrain.moves)
    play(rows, lambda seen, mask: torch.randint(moves, (rows.rows,), generator=stream))
    return rows


def gains(worth: SetFunction, cells: list[int]) -> list[float]:
    """What each cell adds to those before it, one by one, by what rows are stepped by."""
    state: State = {name: x[None] for name, x in worth.begin(len(cells)).items()}
    found = []
    for cell in cells:
        gain, state = worth.add(state, torch.tensor([cell]))
        found.append(float(gain))
    return found


def functions() -> dict[str, SetFunction]:
    """One of each kind over 16 cells."""
    square = Terrain(4, 4, 5)
    kernel = known_at(matern(square, 1.5), torch.tensor([3, 9]), 0.2)
    kinds = torch.tensor([0, 1, -1, 2, 0, 0, 1, 2, -1, 2, 2, 0, 1, 1, 0, -1])
    return {
        "coverage": Coverage(footprints(square), weights(square, "gp", 1, 2.0)),
        "large": Coverage(footprints(square, 2), weights(square, "hills", 0, 1.0)),
        "items": Items(kinds, (2, 1, 3)),
        "information": Information(kernel, 0.2),
    }


# ------------------------------------------------------------------------------------------------------- set functions


def test_coverage_of_a_grid_of_nine_by_hand() -> None:
    worth = Coverage(footprints(Terrain(3, 3, 0)), torch.ones(9))
    assert worth.value([0]) == 4 and worth.value([0, 1]) == 6 and worth.value([8]) == 1 and worth.value(range(9)) == 9
    assert gains(worth, [0, 1, 0, 8, 4]) == [4, 2, 0, 1, 1]
    assert worth.alone.tolist() == [4, 4, 2, 4, 4, 2, 2, 2, 1]
    two_hops = footprints(Terrain(4, 4, 0), 2)
    assert two_hops[0].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert two_hops[11].nonzero()[:, 0].tolist() == [11, 15]


def test_information_of_measurements_by_hand() -> None:
    worth = Information(torch.eye(3), 1.0)
    assert worth.value([0]) == pytest.approx(0.34657, abs=1e-5)
    assert worth.value([0, 2]) == pytest.approx(0.69315, abs=1e-5)
    assert worth.value([0, 0]) == pytest.approx(0.54931, abs=1e-5)
    assert gains(worth, [0, 0, 2]) == pytest.approx([0.34657, 0.20273, 0.34657], abs=1e-5)


def test_items_by_hand() -> None:
    kinds = torch.tensor([0] * 18 + [1] * 14 + [2] * 13 + [3] * 16 + [4] * 18 + [5] * 14 + [-1] * 12)
    worth = Items(kinds, WANTED)
    assert worth.value([0, 1, 2, 3, 4, 18]) == 4
    assert gains(worth, [0, 1, 1, 2, 3, 4, 18, 0, 100]) == [1, 1, 0, 1, 0, 0, 1, 0, 0]
    assert worth.value(range(105)) == sum(WANTED) == 21
    assert float(worth.alone.sum()) == sum(ITEMS) == 93


@pytest.mark.parametrize("name", ["coverage", "large", "items", "information"])
def test_more_is_worth_more_but_adds_less_to_more(name: str) -> None:
    worth, stream = functions()[name], torch.Generator().manual_seed(SEED)
    assert worth.value([]) == 0
    for _ in range(150):
        cells = torch.randperm(16, generator=stream).tolist()
        few, more, one = cells[:3], cells[:7], cells[8]
        to_few = worth.value([*few, one]) - worth.value(few)
        to_more = worth.value([*more, one]) - worth.value(more)
        assert to_few >= to_more - 1e-9 and to_more >= -1e-9
        assert float(worth.alone[one]) == pytest.approx(worth.value([one]), rel=1e-5)


@pytest.mark.parametrize("name", ["coverage", "large", "items", "information"])
def test_gains_in_batch_are_differences_of_the_function(name: str) -> None:
    worth = functions()[name]
    cells = torch.randint(16, (20, 12), generator=torch.Generator().manual_seed(SEED))
    begun = worth.begin(12)
    state: State = {key: x.expand(20, *x.shape) for key, x in begun.items()}
    for step in range(12):
        before = {key: x.clone() for key, x in state.items()}
        gain, after = worth.add(state, cells[:, step])
        assert all(torch.equal(state[key], x) for key, x in before.items())  # nothing is changed in place
        for row in range(20):
            path = cells[row, : step + 1].tolist()
            wanted = worth.value(path) - worth.value(path[:-1])
            assert float(gain[row]) == pytest.approx(wanted, abs=2e-5)
            if cells[row, step] in cells[row, :step] and not worth.repeats:
                assert float(gain[row]) == 0
        state = after


# -------------------------------------------------------------------------------------------------------------- terrain


def test_blocked_moves_stay_and_others_go_where_they_say() -> None:
    grid = Terrain(2, 3, 0, frozenset({1}))
    assert grid.following.tolist() == [
        [0, 0, 0, 3, 0],
        [1, 2, 0, 4, 1],
        [2, 2, 2, 5, 2],
        [3, 4, 3, 3, 0],
        [4, 5, 3, 4, 4],
        [5, 5, 4, 5, 2],
    ]
    assert [*MOVES] == ["stay", "right", "left", "down", "up"]
    assert grid.places.tolist() == [[0, 0], [0, 0.5], [0, 1], [1, 0], [1, 0.5], [1, 1]]


def test_two_rooms_are_those_of_the_paper() -> None:
    rooms = two_rooms(7)
    picture = ["".join("#" if 14 * r + c in rooms.walls else "." for c in range(14)) for r in range(7)]
    assert picture == ["....######...."] * 2 + ["." * 14] * 2 + ["....######...."] * 3
    assert rooms.start == 34
    assert task("two-rooms").problem.worth.value(range(98)) == 98 - 30
    assert task("item-collection").problem.terrain.start == 34


def test_weights_are_those_of_plain_loops() -> None:
    square = Terrain(10, 10, 11)
    hills, bimodal = weights(square, "hills", 0, 3), weights(square, "bimodal", 0, 3)
    for cell in range(100):
        y, x = divmod(cell, 10)
        total = 0.05
        for u, v, radius, height in HILLS:
            total += height * math.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * radius**2))
        assert float(hills[cell]) == pytest.approx(total)
        assert float(bimodal[cell]) == pytest.approx(1 / (1 + math.exp(-(2 * x / 9 - 1) * (2 * y / 9 - 1))))
    assert float(hills.sum()) == pytest.approx(44.56, abs=0.01)
    process = [weights(square, "gp", seed, 3) for seed in range(40)]
    assert not torch.equal(process[0], process[1]) and bool((process[0] >= 0).all())
    assert float(torch.stack(process).mean()) == pytest.approx(3, abs=0.3)
    assert float(torch.stack(process).std()) == pytest.approx(1, abs=0.2)


def test_covariances_by_hand() -> None:
    kernel = matern(Terrain(1, 3, 0), 2.0)
    away = math.sqrt(5) / 2
    assert float(kernel[0, 1]) == pytest.approx((1 + away + away**2 / 3) * math.exp(-away))
    left = known_at(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([0]), 0.25)
    assert float(left[1, 1]) == pytest.approx(1 - 0.25 / 1.25)
    assert float(left[0, 0]) == pytest.approx(1 - 1 / 1.25)


def test_items_lie_in_so_many_cells() -> None:
    grid = Terrain(7, 15, 0)
    found = items(grid, 3)
    assert torch.bincount(found + 1).tolist() == [105 - 93, *ITEMS]
    assert torch.equal(found, items(grid, 3)) and not torch.equal(found, items(grid, 4))


# ---------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize("spec", SMALL)
def test_ten_thousand_random_paths_are_feasible_and_their_gains_sum_to_what_the_verifier_says(spec: str) -> None:
    made = task(spec)
    rows = made.environment(SEED, 10_000)
    stream, moves = torch.Generator().manual_seed(SEED), len(made.problem.terrain.moves)
    total = play(rows, lambda seen, mask: torch.randint(moves, (rows.rows,), generator=stream))
    torch.testing.assert_close(torch.tensor(judged(rows)), -total, rtol=1e-4, atol=1e-4)


def test_a_path_is_what_it_says() -> None:
    rows = Paths(SEED, 2, PathProblem(Terrain(1, 4, 1), Coverage(torch.eye(4) > 0, torch.ones(4)), 3))
    assert rows.solution(0) == [1] and rows.observe()["left"].tolist() == [[True, False, True, True]] * 2  # type: ignore[union-attr]
    rewards = [rows.step(torch.tensor(moves)).reward.tolist() for moves in ((1, 2), (1, 2), (1, 3))]
    assert rewards == [[2, 2], [1, 0], [0, 0]]  # the first with the start's own
    assert rows.solution(0) == [1, 2, 3, 3] and rows.solution(1) == [1, 0, 0, 0]
    assert bool(rows.ended.all()) and rows.state["alone"].tolist() == [3, 3]
    assert (~rows.state["visited"]).tolist() == [[True, False, False, False], [False, False, True, True]]
    assert rows.observe()["context"].tolist() == [[1], [1]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ([5, 6, 7], "a path has 3 moves, and this one 2"),
        ([4, 5, 6, 7], "begins in cell 4 and not in cell 5"),
        ([5, 6, 8, 8], r"no move leads from cell 6 to cell 8 \(step 1\)"),
        ([5, 4, 3, 3], "no move leads from cell 4 to cell 3"),  # over the border of a row
        ([5, 9, 9, 9], "no move leads from cell 5 to cell 9"),  # a wall
        ([5, 1, -3, 1], "no move leads from cell 1 to cell -3"),
    ],
)
def test_infeasible_paths_are_told(path: list[int], said: str) -> None:
    problem = PathProblem(Terrain(4, 4, 5, frozenset({9})), functions()["coverage"], 3)
    found = Paths(0, 1, problem).verify(problem, path)
    assert found.cost is None
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.why)


def test_staying_is_a_path_only_where_something_blocks_or_it_is_a_move() -> None:
    chain = Terrain(1, 4, 1, moves=("left", "right"))
    problem = PathProblem(chain, Coverage(torch.eye(4) > 0, torch.ones(4)), 2)
    rows = Paths(0, 1, problem)
    assert rows.verify(problem, [1, 1, 1]).cost is None and rows.verify(problem, [1, 0, 0]).cost == -2


def test_a_mirrored_map_mirrors_paths() -> None:
    """Rows as columns: the footprint is its own mirror image."""
    one = PathProblem(
        Terrain(5, 5, 6), Coverage(footprints(Terrain(5, 5, 6)), weights(Terrain(5, 5, 6), "gp", 2, 2)), 9
    )
    assert isinstance(one.worth, Coverage)
    turned = Coverage(one.worth.footprint, one.worth.weights.view(5, 5).T.flatten())
    two = PathProblem(one.terrain, turned, 9)
    stream = torch.Generator().manual_seed(SEED)
    moves = torch.randint(5, (9, 30), generator=stream)
    mirrored = torch.tensor([0, 3, 4, 1, 2])[moves]
    a, b = Paths(0, 30, one), Paths(0, 30, two)
    for first, second in zip(moves, mirrored, strict=True):
        torch.testing.assert_close(a.step(first).reward, b.step(second).reward)
    assert [[5 * (c % 5) + c // 5 for c in a.solution(row)] for row in range(30)] == [
        b.solution(row) for row in range(30)
    ]


# ------------------------------------------------------------------------------------------------------------- planners


@pytest.mark.parametrize("name", ["coverage", "large", "items", "information"])
def test_the_best_path_is_that_of_all_sequences_of_moves(name: str) -> None:
    """On 4 by 4 cells: 5^5 sequences."""
    problem = PathProblem(Terrain(4, 4, 5, frozenset({6})), functions()[name], 5)
    every = torch.tensor([*itertools.product(range(5), repeat=5)])
    rows = Paths(0, len(every), problem)
    for step in range(5):
        rows.step(every[:, step])
    best = -min(judged(rows))
    found = best_path(problem)
    assert found is not None
    reached = rows.verify(problem, found).cost
    assert reached is not None and -reached == pytest.approx(best)
    lines = rows.references()
    assert [*lines] == ["optimum", "greedy planner", "random moves"]
    optimum, greedy, by_chance = (-float(costs[0]) for costs in lines.values())
    assert optimum == pytest.approx(best) and by_chance < greedy <= optimum + 1e-9
    assert by_chance == pytest.approx(-sum(judged(rows)) / len(every), rel=0.05)
    assert best_path(problem, most=10) is None


def test_ways_that_measure_a_cell_again_are_ways_of_their_own() -> None:
    """From a cell that is nearly known to one that is not: to measure the second twice is best."""
    problem = PathProblem(Terrain(1, 2, 0), Information(torch.diag(torch.tensor([1.0, 9.0])), 1.0), 2)
    assert best_path(problem) == [0, 1, 1]


def test_the_greedy_planner_takes_what_adds_most_and_has_the_value_that_was_measured() -> None:
    problem = task("coverage").problem
    path, value = greedy_path(problem), problem.worth.value
    for step in range(1, len(path)):
        ahead = [value([*path[:step], there]) for there in problem.terrain.following[path[step - 1]].tolist()]
        assert value(path[: step + 1]) == pytest.approx(max(ahead), abs=1e-6)
    assert value(path) == pytest.approx(28.49, abs=0.005)
    assert random_worth(problem) == random_worth(problem)


def test_the_greedy_planner_goes_to_the_nearest_cell_that_adds_something_where_no_next_one_does() -> None:
    """From the middle of 25 cells to a corner, four moves away, and eight on to the other; then nothing is left."""
    kinds = torch.full((25,), -1)
    kinds[[0, 24]] = torch.tensor([0, 1])
    grid = Terrain(5, 5, 12, frozenset({7}))
    found = greedy_path(PathProblem(grid, Items(kinds, (1, 1)), 14))
    assert found[4] == 0 or found[4] == 24
    assert found[-1] in (0, 24) and len({*found} & {0, 24}) == 2 and found[12] == found[-1]
    assert greedy_path(PathProblem(grid, Items(kinds, (0, 0)), 3)) == [12] * 4


# ---------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("coverage(n=2)", "coverage.n is 2 but must be from 3 to 40"),
        ("coverage(horizon=0)", "coverage.horizon is 0 but must be from 1 to 400"),
        ("coverage(map=-1)", "coverage.map is -1 but must be 0 or more"),
        ("coverage(lengthscale=0)", "coverage.lengthscale is 0 but must be above 0"),
        ("coverage(weights=flat)", "weights"),
        ("two-rooms(n=3)", "two-rooms.n is 3 but must be from 4 to 40"),
        ("item-collection(n=6)", "item-collection.n is 6 but must be from 7 to 40"),
        ("experiment-design(noise=0)", "experiment-design.noise is 0 but must be above 0"),
        ("experiment-design(lengthscale=inf)", "experiment-design.lengthscale is inf"),
    ],
)
def test_settings_that_make_no_problem_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(spec)


def test_a_task_is_judged_by_values_and_has_its_lines_beside() -> None:
    made = task("coverage(n=4,horizon=5,weights=constant)")
    metric = made.metric
    assert (metric.key, metric.higher_is_better, metric.target) == ("eval/value", True, "optimum")
    assert [*metric.lines] == ["optimum", "greedy planner", "random moves"] and metric.lines["optimum"] == 12
    assert task("tsp(n=5)").metric.key == "eval/cost"
    design = task("experiment-design")
    assert design.metric.unit == "nats" and "lengthscale 3, noise 0.1, paths of 20 moves" in design.describe()


def test_maps_that_are_drawn_have_numbers() -> None:
    def weight(spec: str) -> Tensor:
        made: Any = task(spec)
        assert isinstance(made, PathTask) and isinstance(made.problem.worth, Coverage)
        return made.problem.worth.weights

    assert not torch.equal(weight("coverage(weights=gp)"), weight("coverage(weights=gp,map=1)"))
    assert torch.equal(weight("coverage(weights=gp,map=1)"), weight("coverage(weights=gp,map=1)"))
    one, two = (task(f"experiment-design(map={k})").problem.worth for k in (0, 1))
    assert not torch.equal(one.alone, two.alone)
