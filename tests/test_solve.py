"""`polyrl solve`: files of TSPLIB, the distances by which they are judged, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import SEED, Command
from polyrl.cli.solve import mirrored
from polyrl.errors import UserError
from polyrl.runs import start_run
from polyrl.tasks.operations.tsplib import Instance, read_instance, read_tour, write_tour
from test_construction import config_of

HEAD = "NAME: five\nTYPE: TSP\nCOMMENT: made up (optimal: 2012)\nDIMENSION: 5\nEDGE_WEIGHT_TYPE: EUC_2D\n"
NODES = "NODE_COORD_SECTION\n10 0.0 0.0\n20 1e2 0.0\n30 1000 0\n40 1000 6\n50 0 6.4\nEOF\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "five.tsp"
    path.write_text(HEAD + NODES)
    return path


def test_distances_are_whole_and_the_verifier_is_their_sum(file: Path) -> None:
    found = read_instance(file)
    assert (found.name, found.numbers, found.best) == ("five", ("10", "20", "30", "40", "50"), 2012)
    away = found.distances
    assert away[0].tolist() == [0, 100, 1000, 1000, 6] and torch.equal(away, away.T)
    for tour in ([0, 1, 2, 3, 4], [4, 1, 0, 2, 3]):
        total = sum(float(away[a, b]) for a, b in zip(tour, tour[1:] + tour[:1], strict=True))
        assert found.verify(tour).cost == total
    for tour in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 5]):
        assert found.verify(tour).cost is None and "each of them once" in found.verify(tour).why
    up = Instance("up", found.points, found.numbers, "CEIL_2D")
    assert up.distances[0].tolist() == [0, 100, 1000, 1001, 7] and up.verify([0, 1, 2, 3, 4]).cost == 2014
    assert found.scaled.min() == 0 and found.scaled.max() == 1
    torch.testing.assert_close(found.scaled[4], torch.tensor([0, 0.0064]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD.replace("TYPE: TSP", "TYPE: ATSP") + NODES, "is of the type ATSP"),
        (HEAD.replace("EUC_2D", "GEO") + NODES, "distances of the type GEO; polyrl solve knows EUC_2D and CEIL_2D"),
        (HEAD.replace("EDGE_WEIGHT_TYPE: EUC_2D\n", "") + NODES, "distances of the type unknown"),
        (HEAD + NODES.replace("50 0 6.4\n", ""), "says 5 nodes and has coordinates of 4"),
        (HEAD + NODES.replace("40 1000 6", "40 1000"), "'40 1000' but must be a node's number, x and y"),
        (HEAD + NODES.replace("40 1000 6", "30 1000 6"), "has a node twice"),
        (HEAD + NODES.replace("40 1000 6", "40 nan 6"), "not finite"),
        (HEAD + NODES.replace("40 1000 6", "40 1e200 6"), "not finite or beyond 1e.12"),
        (HEAD + NODES.replace("40 1000 6", "40 1000 6 3"), "'40 1000 6 3' but must be a node's number, x and y"),
        (HEAD + NODES.replace("EOF", "FIXED_EDGES_SECTION\n10 30\n-1\nEOF"), "fixes edges, line 12"),
    ],
)
def test_files_that_cannot_be_solved_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.tsp").write_text(text)
    with pytest.raises(UserError, match=said):
        read_instance(tmp_path / "x.tsp")


def test_headings_and_comments_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "x.tsp"
    path.write_text(HEAD.replace("2012", "2,012") + NODES.replace("NODE_COORD_SECTION", "node_coord_section :"))
    found = read_instance(path)
    assert len(found.points) == 5 and found.best == 2012


def test_what_is_not_there_is_told(tmp_path: Path, file: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_instance(tmp_path / "none.tsp")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_tour(tmp_path / "none.tour", read_instance(file))
    (tmp_path / "bad.tour").write_text("TOUR_SECTION\n10 60\n-1\n")
    with pytest.raises(UserError, match="has a node '60', which five does not have"):
        read_tour(tmp_path / "bad.tour", read_instance(file))


def test_a_tour_is_read_as_it_was_written(tmp_path: Path, file: Path) -> None:
    found = read_instance(file)
    write_tour(tmp_path / "a" / "five.tour", found, [0, 1, 2, 3, 4], 2012, "by hand")
    assert read_tour(tmp_path / "a" / "five.tour", found) == [0, 1, 2, 3, 4]


def test_long_lengths_are_written_to_the_last_digit(tmp_path: Path, polyrl: Command) -> None:
    run, path = tmp_path / "run", tmp_path / "far.tsp"
    start_run(config_of("am", budget="iterations=1"), run).run()
    path.write_text(HEAD.split("COMMENT")[0] + "EDGE_WEIGHT_TYPE: EUC_2D\n" + NODES.replace("1000", "123456787"))
    told = polyrl("solve", run, "--instance", path, "--beam", "24")
    found = read_instance(path)
    length = found.verify(read_tour(run / "solutions" / "far.tour", found)).cost
    assert told.code == 0 and length is not None and length > 200_000_000 and length % 10
    for text in (told.out, *((run / "solutions" / f"far.{end}").read_text() for end in ("tour", "svg"))):
        assert f"{length:.0f}" in text
    assert "No best length is known" in told.out and "%" not in told.out


def test_cities_at_one_place_have_a_tour_of_nothing(tmp_path: Path, polyrl: Command) -> None:
    run, path = tmp_path / "run", tmp_path / "same.tsp"
    start_run(config_of("am", budget="iterations=1"), run).run()
    path.write_text("EDGE_WEIGHT_TYPE: EUC_2D\nNODE_COORD_SECTION\n1 3 3\n2 3 3\n3 3 3\n")
    write_tour(tmp_path / "best.tour", read_instance(path), [0, 1, 2], 0, "by hand")
    told = polyrl("solve", run, "--instance", path, "--best", tmp_path / "best.tour")
    assert told.code == 0, told.err
    assert "this policy, greedy 0 0." in " ".join(told.out.split())  # no share of nothing between length and seconds


def test_the_eight_symmetries_keep_all_distances() -> None:
    points = torch.rand(6, 2, generator=torch.Generator().manual_seed(SEED))
    found = mirrored(points)
    assert torch.equal(found[0], points) and len({tuple(x.flatten().tolist()) for x in found}) == 8
    for turned in found:
        torch.testing.assert_close(torch.cdist(turned, turned), torch.cdist(points, points), atol=1e-5, rtol=1e-5)
        assert float(turned.min()) >= 0 and float(turned.max()) <= 1


def test_an_instance_is_solved_by_a_run(tmp_path: Path, file: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    start_run(config_of("am", budget="iterations=1"), run).run()
    told = polyrl("solve", run, "--instance", file, "--best", "2010", "--beam", "24", "--symmetries")
    assert told.code == 0, told.err
    found = read_instance(file)
    tour = read_tour(run / "solutions" / "five.tour", found)
    length = found.verify(tour).cost
    assert length == 2012 and "beam 24, 8 symmetries 2012" in " ".join(told.out.split())  # as wide as there are tours
    assert f"{100 * (2012 / 2010 - 1):+.2f}%" in told.out and "best known" in told.out
    picture = (run / "solutions" / "five.svg").read_text()
    assert picture.startswith("<svg") and picture.count("<circle") >= 5
    best = polyrl("solve", run, "--instance", file, "--best", run / "solutions" / "five.tour", "--out", tmp_path / "o")
    assert "best known" in best.out and (tmp_path / "o" / "five.tour").is_file()
    for wrong in ("-1", "nan"):
        refused = polyrl("solve", run, "--instance", file, "--best", wrong)
        assert refused.code == 2 and f"--best is {wrong} but must be a length above 0" in refused.err
    assert "instance 1" in polyrl("play", run, "--episodes", 2).out
    assert "must be from 1 to 20" in polyrl("play", run, "--episodes", 21).err


def test_a_run_that_builds_no_tours_is_refused(tmp_path: Path, file: Path, polyrl: Command) -> None:
    run = tmp_path / "run"
    small = ["--scenarios", "8", "--periods", "5", "--eval-episodes", "8", "--evaluations", "1"]
    assert (
        polyrl("train", "hdpo", "--task", "backlog", "--budget", "iterations=1", "--out", run, "--quiet", *small).code
        == 0
    )
    refused = polyrl("solve", run, "--instance", file)
    assert refused.code == 2 and "builds no tours, so it cannot solve" in refused.err
