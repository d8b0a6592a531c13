"""Orienteering: masks by the length that is left, verifier, the optimum by all ways, heuristics, and learning."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

import polyrl as package
from conftest import SEED, reached
from polyrl.errors import UserError
from polyrl.methods.operations.bq_nco import SubproblemAttention
from polyrl.methods.operations.bq_nco.selections import RestsOfRoutes
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.operations.orienteering import Orienteering, Places, best_route, way_length
from test_construction import Alike, loop_of, stirred

torch.set_num_threads(1)
LINE = Places(torch.tensor([[0.0, 0], [1, 0], [3, 0], [-2, 0], [9, 0]], dtype=torch.float64), (0, 1.0, 5, 4, 50), 10.0)
"""A depot on a line: 1 and 2 on its right, 3 on its left; 4 is out of reach."""


def most(instance: Places) -> float:
    """By all orders of all sets of places."""
    points, end = instance.points.tolist(), instance.end
    places = [node for node in range(1, len(points)) if node != end]
    best = 0.0
    for count in range(1, len(places) + 1):
        for order in itertools.permutations(places, count):
            length = 0.0
            for a, b in itertools.pairwise((0, *order, end)):
                way = math.dist(points[a], points[b])
                length += math.floor(way + 0.5) if instance.whole else way
            if length <= instance.longest + 1e-9:
                best = max(best, sum(instance.prize[node] for node in order))
    return best


def random_places(end: int = 0, whole: bool = False, rows: int = 20) -> Orienteering:
    """Six places far from the unit square, with prizes of whole numbers, and another end where `end` says so."""
    draw = torch.Generator().manual_seed(SEED)

    def given(row: int, episode: int) -> Places:
        points = 40 * torch.rand(7, 2, generator=draw, dtype=torch.float64) - 10
        prize = torch.randint(1, 20, (7,), generator=draw).tolist()
        prize[0] = prize[end] = 0
        return Places(points, tuple(map(float, prize)), 70.0, end, whole)

    return Orienteering(SEED, rows, 6, instances=given)


def test_prizes_grow_with_the_distance_from_the_depot() -> None:
    environment = Orienteering(SEED, 5, 9)
    for row in range(5):
        found = environment.instance(row)
        away = [math.dist(found.points[0].tolist(), point) for point in found.points.tolist()]
        wanted = [0, *((1 + math.floor(99 * (d / max(away)))) / 100 for d in away[1:])]
        assert found.prize == pytest.approx(wanted) and max(found.prize) == 1 and found.longest == 2
        assert float(found.points.min()) >= 0 and float(found.points.max()) <= 1
    other = Orienteering(SEED, 2, 9)
    assert all(torch.equal(other.state[name], environment.state[name][:2]) for name in other.state)


@pytest.mark.parametrize(("places", "longest"), [(8, 2.0), (3, 0.6)])
def test_ten_thousand_random_solutions_are_feasible_and_go_on_while_something_is_in_reach(
    places: int, longest: float
) -> None:
    environment = Orienteering(SEED, 1_000, places, longest)
    built = build(Alike(), environment, copies=10, stream=torch.Generator().manual_seed(SEED))
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-5)
    nothing = 0
    for row in range(0, 10_000, 17):
        instance, route = built.environment.instance(row), built.environment.solution(row)
        assert way_length(instance, route) <= longest * (1 + 1e-9)
        for node in set(range(1, places + 1)) - set(route):
            assert way_length(instance, [*route, node]) > longest
        nothing += not route
    assert bool(nothing) == (longest == 0.6)


def test_what_may_come_next_by_hand() -> None:
    environment = Orienteering(SEED, 1, 4, instances=lambda row, episode: LINE)
    allowed = [environment.mask().int().tolist()[0]]  # type: ignore[union-attr]
    for node in (3, 1):
        environment.step(torch.tensor([node]))
        allowed.append(environment.mask().int().tolist()[0])  # type: ignore[union-attr]
    assert allowed == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]
    shown = environment.observe()  # 11 units are as wide as the unit square
    assert float(shown["context"]) == pytest.approx(5 / 11) and int(shown["here"]) == 1  # type: ignore[arg-type]
    torch.testing.assert_close(shown["nodes"].values[0, 2], torch.tensor([5 / 11, 0, 0.1]))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the action 4 of row 0 is not allowed"):
        environment.step(torch.tensor([4]))
    moved = environment.step(torch.tensor([2]))  # exactly as long as it may be
    assert bool(moved.terminated) and float(moved.reward) == 5
    assert environment.solution(0) == [3, 1, 2] and environment.verify(LINE, [3, 1, 2]).cost == -10


@pytest.mark.parametrize(
    ("route", "said"),
    [
        ([3, 1, 2], ""),
        ([], ""),
        ([1, 3, 2], "the way is 12 long, and 10 is the longest"),
        ([4], "the way is 18 long, and 10 is the longest"),
        ([1, 1], "place 1 is visited twice"),
        ([0], "there is no place 0"),
        ([5], "there is no place 5"),
    ],
)
def test_what_is_infeasible_is_told(route: list[int], said: str) -> None:
    found = Orienteering(SEED, 1, 4).verify(LINE, route)
    assert found.why == said and found.cost == (None if said else -10 if route else 0)


@pytest.mark.parametrize(("end", "whole"), [(0, False), (6, False), (3, True)])
def test_the_optimum_is_that_of_all_ways_and_heuristics_are_below_it(end: int, whole: bool) -> None:
    environment = random_places(end, whole)
    lines = environment.references()
    best = [-most(environment.instance(row)) for row in range(20)]
    assert lines["optimum"].tolist() == best
    for row in range(20):
        instance, route = environment.instance(row), best_route(environment.instance(row))
        assert environment.verify(instance, route).cost == best[row]
    for name, routes in (("ruin and recreate", environment.good_routes()),):
        for row, route in enumerate(routes.tolist()):
            given = [node for node in route if node]
            assert environment.verify(environment.instance(row), given).cost == lines[name][row]
            assert 0 not in route[: len(given)]
    assert float(lines["ruin and recreate"].sum()) < 0.99 * sum(best)
    greedy = lines["greedy prize by distance"]
    assert bool((greedy >= lines["optimum"]).all()) and sum(best) < float(greedy.sum()) < 0
    if end:
        with pytest.raises(ValueError, match=f"the action {end} of row 0 is not allowed"):
            environment.step(torch.full((20,), end))
        assert environment.verify(environment.instance(0), [end]).why == f"there is no place {end}"


def test_a_wide_beam_finds_the_optimum_where_ways_end_at_different_times() -> None:
    environment = random_places(rows=5)
    for method in ("am", "bq-nco"):
        network = stirred(loop_of(method, "orienteering(n=6)").run_state.policy)
        assert judged(beam_search(network, environment, 2_000)) == environment.references()["optimum"].tolist()


def test_steps_that_are_trained_on_are_those_that_were_sampled() -> None:
    loop = loop_of("am+multi-start", "orienteering(n=6)")
    batch = loop.recipe.collect(None, loop.context)
    out = loop.run_state.policy.outputs(batch, {"logprob"}, None)["logprob"].detach()
    there = batch["present"]
    assert not bool(there.all())
    torch.testing.assert_close(out[there], batch["behaviour_logprob"][there], atol=1e-5, rtol=1e-5)


def test_the_papers_network_has_as_many_parameters_as_the_card_says() -> None:
    sizes = {"width": 192, "heads": 12, "layers": 9, "feed_forward": 512}
    kind = type("Interface", (), {"kind": Orienteering})
    network = SubproblemAttention(**sizes).make(kind, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in network.parameters()) == 3_107_923


@pytest.mark.parametrize("symmetries", [False, True])
def test_every_row_is_what_remains_of_a_good_route(symmetries: bool) -> None:
    """What is left, the length that is left and what may come next, from the environment that went the same way."""
    environment = Orienteering(SEED, 15, 7)
    found = RestsOfRoutes.solved(environment)
    routes = [[node for node in route if node] for route in found["routes"].tolist()]
    batch = RestsOfRoutes(found, symmetries).sample(300, torch.Generator().manual_seed(SEED))
    turned, lengths = 0, set()
    for k in range(300):
        row, here, left = int(batch["row"][k]), int(batch["here"][k]), batch["left"][k, 0]
        gone = {node for node in range(1, 8) if not left[node]}
        route = routes[row] if set(routes[row][: len(gone)]) == gone else routes[row][::-1]
        ways = [
            r for r in (routes[row], routes[row][::-1]) if set(r[: len(gone)]) == gone and [0, *r][len(gone)] == here
        ]
        route = next(r for r in ways if r[len(gone)] == int(batch["action"][k]))
        turned += route != routes[row]
        one = environment.part(torch.tensor([row]))
        for node in route[: len(gone)]:
            one.step(torch.tensor([node]))
        shown, mask = one.observe(), one.mask()
        assert mask is not None and torch.equal(batch["action_mask"][k], mask)
        assert torch.equal(shown["left"], batch["left"][k]) and int(shown["here"]) == here  # type: ignore[arg-type]
        torch.testing.assert_close(shown["context"], batch["context"][k])
        nodes = shown["nodes"].values[0]  # type: ignore[union-attr]
        torch.testing.assert_close(torch.cdist(nodes, nodes), torch.cdist(batch["nodes"][k, 0], batch["nodes"][k, 0]))
        assert symmetries or torch.equal(nodes, batch["nodes"][k, 0])
        lengths.add(len(gone))
    assert 60 < turned < 240 and min(lengths) == 0 and len(lengths) > 3


def test_lengths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"orienteering\.length is 0.1 but must be from 0.5 to 100"):
        make_loop(RunConfig(method="am", task="orienteering(length=0.1)", budget="iterations=1"))


@pytest.mark.parametrize("method", ["bq-nco", "am+multi-start"])
def test_training_collects_more(tmp_path: Path, method: str) -> None:
    own = {"solved": 1_000, "batch_size": 64, "beam_width": 4} if method == "bq-nco" else {"instances": 32, "starts": 8}
    done = package.train(
        method,
        task="orienteering(n=8)",
        budget="updates=300" if method == "bq-nco" else "updates=80",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 200},
        learning_rate=3e-3,
        width=32,
        heads=4,
        layers=2,
        feed_forward=64,
        **own,
    )
    assert done.start["eval/gap_optimum"] > 30
    reached(-done.final["eval/gap_optimum"], -20)
