"""`polyrl solve` for asymmetric tours, orienteering and knapsacks: files, what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Command
from polyrl.errors import UserError
from polyrl.runs import start_run
from polyrl.tasks.operations.instance_files import read_costs, read_items, read_places
from polyrl.tasks.operations.orienteering import best_route, way_length
from polyrl.tasks.operations.tsplib import read_tour
from test_construction import config_of

ATSP = """NAME: four
TYPE: ATSP
COMMENT: made up (Optimum: 7)
DIMENSION:  4
EDGE_WEIGHT_TYPE: EXPLICIT
EDGE_WEIGHT_FORMAT: FULL_MATRIX
EDGE_WEIGHT_SECTION
 9999    1   50
   50   50 9999    2   50 50 50
 9999    3    1   50   50 9999
EOF
"""
OP = """NAME : five
TYPE : OP
COST_LIMIT : 22
EDGE_WEIGHT_TYPE : EUC_2D
NODE_COORD_SECTION
1 0 0
2 3 4.4
3 6 8
4 0 11
5 90 90
NODE_SCORE_SECTION
1 0
2 10
3 20
4 15
5 99
DEPOT_SECTION
1
-1
EOF
"""
PLAIN = "20 1\n0 0 0\n10 0 0\n5 5 7\n5 -5.0 9\n0 5 3\n\n"
ITEMS = "4 5\n6 1\n10 2\n12 3\n9 2\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in (("four.atsp", ATSP), ("five.oplib", OP), ("plain.txt", PLAIN), ("items.txt", ITEMS)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each problem, trained for a moment."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("atsp(n=5)", "orienteering(n=5)", "knapsack(n=5)"):
        start_run(config_of("bq-nco", name, "iterations=1", solved="20"), folder / name.partition("(")[0]).run()
    return folder


def test_costs_are_read_row_by_row(files: Path) -> None:
    found = read_costs(files / "four.atsp")
    assert (found.name, found.numbers, found.best) == ("four", ("1", "2", "3", "4"), 7)
    assert found.costs.tolist() == [[0, 1, 50, 50], [50, 0, 2, 50], [50, 50, 0, 3], [1, 50, 50, 0]]
    assert found.verify([0, 1, 2, 3]).cost == 7 == found.verify([2, 3, 0, 1]).cost
    assert found.verify([0, 3, 2, 1]).cost == 200 and found.verify([0, 1, 2]).why == "node 3 is not visited"


def test_places_of_both_kinds_are_read(files: Path) -> None:
    found, best = read_places(files / "five.oplib")
    assert best is None and (found.prize, found.longest, found.end, found.whole) == ((0, 10, 20, 15, 99), 22, 0, True)
    assert found.away[0].tolist() == [0, 5, 10, 11, 127] and way_length(found, [1, 2]) == 20  # 5.32, 4.69 and 10
    assert best_route(found) in ([1, 2], [2, 1])
    plain, _ = read_places(files / "plain.txt")
    assert (plain.prize, plain.longest, plain.end, plain.whole) == ((0, 0, 7, 9, 3), 20, 1, False)
    assert plain.points.shape == (5, 2) and way_length(plain, [2]) == pytest.approx(2 * 50**0.5)
    assert read_places(_changed(files / "five.oplib", "TYPE : OP", "TYPE : OP\nCOMMENT : best known 30"))[1] == 30


def test_items_are_read(files: Path) -> None:
    found = read_items(files / "items.txt")
    assert (found.value, found.weight, found.capacity) == ((6, 10, 12, 9), (1, 2, 3, 2), 5)


def _changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("four.atsp", "TYPE: ATSP", "TYPE: TSP", "is of the type TSP; a run on atsp solves files of the type ATSP"),
        ("four.atsp", "FULL_MATRIX", "UPPER_ROW", "costs of the type EXPLICIT UPPER_ROW; polyrl solve knows EXPLICIT"),
        ("four.atsp", "DIMENSION:  4", "DIMENSION: 5", "says 5 nodes and has 16 costs"),
        ("four.atsp", "DIMENSION:  4", "DIMENSION: four", "has 'four' as DIMENSION, and a whole number must stand"),
        ("four.atsp", " 9999    1   50", " 9999    x   50", "has 'x' where a number must stand"),
        ("four.atsp", " 9999    1   50", " 9999    nan   50", "has the number nan, which is not finite"),
        ("four.atsp", " 9999    1   50", " 9999    -1   50", "has costs below 0"),
        (
            "five.oplib",
            "TYPE : OP",
            "TYPE : CVRP",
            "is of the type CVRP; a run on orienteering solves files of the type OP",
        ),
        ("five.oplib", "EUC_2D", "GEO", "has distances of the type GEO; of orienteering polyrl solve knows EUC_2D"),
        (
            "five.oplib",
            "COST_LIMIT : 22",
            "COST_LIMIT : 1 2",
            "has '1 2' as COST_LIMIT, and 1 numbers must stand there",
        ),
        ("five.oplib", "5 99\n", "", "has 5 nodes with coordinates and 4 with scores"),
        ("five.oplib", "DEPOT_SECTION\n1", "DEPOT_SECTION\n2", "has another depot than its first node"),
        ("five.oplib", "5 99\n", "5 -9\n", "has a score below 0"),
        ("plain.txt", "20 1", "20 2", "asks for 2 paths; orienteering has 1"),
        ("plain.txt", "20 1", "20", "has '20' as the first line, and 2 numbers must stand there"),
        ("plain.txt", "0 5 3", "0 5", "has '0 5' as a line, and 3 numbers must stand there"),
        ("items.txt", "4 5", "5 5", "says 5 items and has 4, a value and a weight on a line"),
        ("items.txt", "9 2", "9 0", "a weight or a capacity that is not above it"),
        ("items.txt", "9 2", "9 2 1", "has '9 2 1' as a line"),
    ],
)
def test_files_that_cannot_be_solved_are_refused(files: Path, file: str, old: str, new: str, said: str) -> None:
    read = {"four.atsp": read_costs, "items.txt": read_items}.get(file, read_places)
    with pytest.raises(UserError, match=said):
        read(_changed(files / file, old, new))  # type: ignore[operator]
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(files / "none")  # type: ignore[operator]


def test_a_tour_is_solved_written_and_drawn(runs: Path, files: Path, polyrl: Command) -> None:
    told = polyrl("solve", runs / "atsp", "--instance", files / "four.atsp", "--beam", "6", "--out", files)
    assert told.code == 0, told.err
    found, words = read_costs(files / "four.atsp"), " ".join(told.out.split())
    tour = read_tour(files / "four.tour", found)
    assert found.verify(tour).cost == 7  # a beam as wide as there are tours
    for line in (
        "this policy, beam 6 7 0.00%",
        "nearest neighbor 7 0.00%",
        "3-opt without reversal",
        "optimum 7 0.00%",
    ):
        assert line in words
    assert "best known 7" in words and "a tour that costs 7" in (files / "four.svg").read_text()
    # a worse tour is told as such, and so is a best one that is worse than what is found
    bad = (files / "four.tour").read_text().split("TOUR_SECTION")[0] + "TOUR_SECTION\n1\n4\n3\n2\n-1\nEOF\n"
    (files / "bad.tour").write_text(bad)
    again = polyrl(
        "solve", runs / "atsp", "--instance", files / "four.atsp", "--best", files / "bad.tour", "--out", files
    )
    assert "nearest neighbor 7 better by 96.50%" in " ".join(again.out.split())
    for wrong, said in (("-1", "--best is -1 but must be a cost above 0"), ("x.tour", "must be a cost above 0")):
        refused = polyrl("solve", runs / "atsp", "--instance", files / "four.atsp", "--best", wrong)
        assert refused.code == 2 and said in refused.err


def test_a_way_is_solved_written_and_drawn(runs: Path, files: Path, polyrl: Command) -> None:
    told = polyrl(
        "solve", runs / "orienteering", "--instance", files / "five.oplib", "--symmetries", "--beam", 20, "--out", files
    )
    assert told.code == 0, told.err
    words = " ".join(told.out.split())
    for line in (
        "this policy, beam 20, 8 symmetries 30 0.00%",
        "optimum 30 0.00%",
        "ruin and recreate 30",
        "best known 30",
    ):
        assert line in words
    written = (files / "five.route").read_text().splitlines()
    assert written[0].startswith("# prizes 30, length 20 of 22") and written[1:] in (
        ["1", "2", "3", "1"],
        ["1", "3", "2", "1"],
    )
    picture = (files / "five.svg").read_text()
    assert "prizes of 30 on a way of 20, 22 at most" in picture and picture.count("<circle") >= 3
    plain = polyrl("solve", runs / "orienteering", "--instance", files / "plain.txt", "--beam", 20, "--out", files)
    assert plain.code == 0 and "this policy, beam 20 10 0.00%" in " ".join(plain.out.split())
    assert (files / "plain.route").read_text().splitlines()[1:] == ["1", "5", "3", "2"]


def test_a_knapsack_is_solved_written_and_drawn(runs: Path, files: Path, polyrl: Command) -> None:
    told = polyrl("solve", runs / "knapsack", "--instance", files / "items.txt", "--beam", 20, "--out", files)
    assert told.code == 0, told.err
    words = " ".join(told.out.split())
    for line in ("this policy, beam 20 25 0.00%", "density greedy 25 0.00%", "optimum 25 0.00%", "best known 25"):
        assert line in words
    written = (files / "items.items").read_text().splitlines()
    assert written[0].startswith("# value 25, weight 5, this policy") and written[1:] == ["1", "2", "4"]
    picture = (files / "items.svg").read_text()
    assert "items worth 25 of 37, which weigh 5 of 5" in picture
    far = polyrl("solve", runs / "knapsack", "--instance", files / "items.txt", "--best", "30", "--out", files)
    assert "density greedy 25 16.67%" in " ".join(far.out.split())


@pytest.mark.parametrize(
    ("run", "file", "what"), [("atsp", "four.atsp", "a matrix of costs"), ("knapsack", "items.txt", "a knapsack")]
)
def test_symmetries_are_those_of_the_square(
    runs: Path, files: Path, polyrl: Command, run: str, file: str, what: str
) -> None:
    refused = polyrl("solve", runs / run, "--instance", files / file, "--symmetries")
    assert refused.code == 2 and f"--symmetries are those of the square, and {what} has none" in refused.err
    assert not list(runs.glob("*/solutions"))


def test_played_instances_are_shown_with_their_values(runs: Path, polyrl: Command) -> None:
    told = polyrl("play", runs / "knapsack", "--episodes", 2)
    assert told.code == 0 and "instance 1" in told.out and "density greedy" in told.out and "optimum" in told.out
