"""Solutions that are built node by node: heuristics, rollouts, decoders, and what a run does with them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.errors import Diverged, UserError
from polyrl.models.constructive import ConstructiveNetwork, Memory, Seen
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.operations import task
from polyrl.tasks.operations.combinatorial import ConstructionEnvironment, distances
from polyrl.tasks.operations.routing import TravelingSalesman
from polyrl.tasks.operations.tours import (
    farthest_insertion,
    from_first,
    improved,
    nearest_neighbor,
    searched,
    tour_lengths,
)

torch.set_num_threads(1)
SMALL = {"width": "16", "heads": "2", "layers": "1", "feed_forward": "16"}
SIZES = {
    "am": {**SMALL, "instances": "8", "test_instances": "20", "better-baseline.every": "1"},
    "am+multi-start": {**SMALL, "instances": "4", "starts": "5"},
    "bq-nco": {**SMALL, "turns": "3", "solved": "30", "batch_size": "8", "beam_width": "3"},
}


def config_of(method: str, spec: str = "tsp(n=7)", budget: str = "iterations=3", **settings: str) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 20, "tensorboard": False, "checkpoint_every": 1}
    sizes = {**SIZES[method], **settings}
    return RunConfig(method=method, task=spec, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(method: str, spec: str = "tsp(n=7)", **settings: str) -> Any:
    return make_loop(config_of(method, spec, **settings))[0]


def stirred(network: ConstructiveNetwork) -> ConstructiveNetwork:
    """Every parameter another, so that nothing is 0 because it began so."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(SEED))
    return network


# --------------------------------------------------------------------------------------------------------------- tours


def lengths_of_all(away: Tensor) -> list[float]:
    n = len(away)
    return [
        sum(float(away[a, b]) for a, b in itertools.pairwise((0, *rest, 0)))
        for rest in itertools.permutations(range(1, n))
    ]


def test_local_search_comes_to_the_best_of_all_tours_of_seven() -> None:
    points = torch.rand(30, 7, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    away = distances(points)
    found = tour_lengths(away, searched(away, 7))
    best = torch.tensor([min(lengths_of_all(one)) for one in away], dtype=torch.float64)
    torch.testing.assert_close(found, best)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 30])
def test_every_heuristic_gives_tours_and_search_shortens_them(count: int) -> None:
    away = distances(torch.rand(20, count, 2, generator=torch.Generator().manual_seed(SEED)))
    first = torch.arange(20) % count
    for order in (nearest_neighbor(away, first), farthest_insertion(away)):
        after = improved(away, order)
        for tours in (order, after, from_first(after)):
            assert torch.equal(tours.sort(1).values, torch.arange(count).expand(20, -1))
        assert bool((tour_lengths(away, after) <= tour_lengths(away, order) + 1e-5).all())
        torch.testing.assert_close(tour_lengths(away, from_first(after)), tour_lengths(away, after))
    assert torch.equal(nearest_neighbor(away, first)[:, 0], first) and bool((from_first(after)[:, 0] == 0).all())


def test_no_single_move_shortens_what_local_search_leaves() -> None:
    """All reversals and all moves of up to three nodes, one by one."""
    away = distances(torch.rand(6, 9, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64))
    order = improved(away, torch.arange(9).repeat(6, 1))
    for one, tour in zip(away, order.tolist(), strict=True):
        length = float(tour_lengths(one[None], torch.tensor([tour])))
        others = []
        for i, j in itertools.combinations(range(10), 2):
            others.append(tour[:i] + tour[i:j][::-1] + tour[j:])
        for i, size in itertools.product(range(9), (1, 2, 3)):
            turned = tour[i:] + tour[:i]
            part, rest = turned[:size], turned[size:]
            for place in range(len(rest)):
                others += [rest[:place] + piece + rest[place:] for piece in (part, part[::-1])]
        best = float(tour_lengths(one.expand(len(others), -1, -1), torch.tensor(others)).min())
        assert best >= length - 1e-5


def test_farthest_insertion_by_hand() -> None:
    """Points on a line: the farthest first, each where it costs nothing."""
    away = distances(torch.tensor([[[0.0, 0.0], [0.25, 0.0], [1.0, 0.0], [0.5, 0.0]]]))
    assert float(tour_lengths(away, farthest_insertion(away))) == pytest.approx(2)
    assert nearest_neighbor(away, torch.tensor([3])).tolist() == [[3, 1, 0, 2]]


# --------------------------------------------------------------------------------------------------------- environment


def test_copies_begin_everywhere_and_are_stepped_apart() -> None:
    environment = TravelingSalesman(SEED, 3, 4, 6)
    twin = environment.copies(4)
    twin.state = twin.varied(twin.state, torch.arange(12) % 4)
    assert twin.state["start"].tolist() == [0, 1, 2, 3] * 3
    paid = torch.zeros(12)
    while not bool(twin.ended.all()):
        mask = twin.mask()
        assert mask is not None
        paid -= twin.step(mask.float().argmax(1)).reward
    assert bool((environment.state["left"].sum(1) == environment.state["count"] - 1).all())
    assert judged(twin) == pytest.approx(paid.tolist(), abs=1e-5)
    assert all(twin.solution(row)[0] == 0 for row in range(12))


def test_an_infeasible_solution_is_never_a_number() -> None:
    environment = TravelingSalesman(SEED, 2, 5)
    with pytest.raises(RuntimeError, match="the solution of row 0 is infeasible: city 1 is not visited"):
        judged(environment)


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("method", [*SIZES])
def test_scores_follow_the_order_of_nodes_and_padding_is_not_seen(method: str) -> None:
    network = stirred(loop_of(method).run_state.policy)
    environment = TravelingSalesman(SEED, 6, 5, 8)
    environment.step(environment.mask().float().argmax(1))  # type: ignore[union-attr]
    shown, mask = environment.observe(), environment.mask()
    assert mask is not None
    seen = Seen.of(shown, mask)

    def said(seen: Seen) -> Tensor:
        return network.logprobs(seen, network.read(seen.nodes, seen.present)).detach()

    order = torch.randperm(8, generator=torch.Generator().manual_seed(SEED))
    back = order.argsort()
    turned = Seen(
        seen.nodes[:, order],
        seen.present[:, order],
        back[seen.here],
        back[seen.end],
        seen.left[..., order],
        seen.context,
        seen.mask[..., order],
    )
    torch.testing.assert_close(said(turned), said(seen)[..., order], atol=1e-4, rtol=1e-4)
    moved = torch.where(seen.present[..., None], seen.nodes, 7.0)
    torch.testing.assert_close(said(Seen(moved, *list(vars(seen).values())[1:])), said(seen), atol=1e-4, rtol=1e-4)
    assert torch.equal(said(seen) > -torch.inf, seen.mask | ~seen.mask.any(-1, keepdim=True))
    torch.testing.assert_close(said(seen).exp().sum(-1), torch.ones(6, 1))


@pytest.mark.parametrize("method", [*SIZES])
def test_steps_that_are_trained_on_are_those_that_were_sampled(method: str) -> None:
    """All steps at once, an instance read once for its copies, against step by step; and each row by itself."""
    loop = loop_of("am+multi-start" if method == "bq-nco" else method, "tsp(n=6)")
    network = stirred(loop_of(method).run_state.policy)
    run_state = loop.run_state
    assert isinstance(run_state.policy, ConstructiveNetwork)
    environment = TravelingSalesman(SEED, 5, 4, 7)
    built = build(network, environment, copies=3, stream=torch.Generator().manual_seed(SEED), record=True)
    nodes = built.environment.observe()["nodes"]
    from polyrl.core.experience import Experience

    fields = {**built.steps, "nodes": nodes.values[:, None], "node_mask": nodes.present[:, None]}  # type: ignore[union-attr]
    batch = Experience({**fields, "group": torch.arange(5).repeat_interleave(3)})
    wanted = torch.where(batch["present"], batch["behaviour_logprob"], 0.0)
    for rows in (batch, batch.rows(torch.arange(15)), batch.rows(torch.tensor([2, 0, 9, 14]))):
        found = network.outputs(rows, {"logprob", "entropy"}, None)  # type: ignore[arg-type]
        logprob = torch.where(rows["present"], found["logprob"], 0.0).detach()
        again = torch.where(rows["present"], rows["behaviour_logprob"], 0.0)
        torch.testing.assert_close(logprob, again, atol=1e-5, rtol=1e-5)
        assert bool(torch.isfinite(found["entropy"]).all()) and bool((found["entropy"] >= -1e-6).all())
    assert not bool(batch["present"].all()) and float(wanted.abs().sum()) > 1
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-5)


class Alike(ConstructiveNetwork):
    """Says the same of every node that may come next."""

    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        return torch.zeros(seen.mask.shape)


def test_ten_thousand_random_solutions_are_feasible() -> None:
    environment = TravelingSalesman(SEED, 1_000, 3, 9)
    built = build(Alike(), environment, copies=10, stream=torch.Generator().manual_seed(SEED), record=True)
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-4)
    chance = torch.where(built.steps["present"], built.steps["behaviour_logprob"], 0.0).sum(1)
    ways = [-math.lgamma(int(count)) for count in built.environment.state["count"]]
    assert chance.tolist() == pytest.approx(ways, abs=1e-4)  # 1 / (n - 1)!


def test_a_network_that_is_not_finite_is_told() -> None:
    class Lost(ConstructiveNetwork):
        def scores(self, seen: Seen, memory: Memory) -> Tensor:
            return torch.full(seen.mask.shape, torch.nan)

    with pytest.raises(Diverged, match="the nodes that may come next is not finite"):
        build(Lost(), TravelingSalesman(SEED, 2, 5))


# -------------------------------------------------------------------------------------------------------------- beams


def test_a_beam_of_one_is_greedy_and_a_wide_one_finds_the_best_of_all() -> None:
    network = stirred(loop_of("am").run_state.policy)
    environment = TravelingSalesman(SEED, 12, 4, 6)
    greedy = build(network, environment).environment
    one = beam_search(network, environment, 1)
    assert [one.solution(row) for row in range(12)] == [greedy.solution(row) for row in range(12)]
    found = judged(beam_search(network, environment, 120))  # 5! prefixes at most
    best = [min(lengths_of_all(distances(torch.from_numpy(environment.instance(row))))) for row in range(12)]
    assert found == pytest.approx(best, abs=1e-5)
    assert all(
        f <= g + 1e-6 for f, g in zip(judged(beam_search(network, environment, 120)), judged(greedy), strict=True)
    )


def test_a_beam_keeps_the_most_probable_prefixes() -> None:
    """Against a plain loop over one instance."""
    network = stirred(loop_of("am").run_state.policy)
    environment = TravelingSalesman(SEED, 1, 6)
    beams: list[tuple[float, ConstructionEnvironment]] = [(0.0, environment.copies(1))]
    memory = network.read(environment.state["cities"], torch.ones(1, 6, dtype=torch.bool))
    for _ in range(5):
        nexts = []
        for score, rows in beams:
            mask = rows.mask()
            assert mask is not None
            said = network.logprobs(Seen.of(rows.observe(), mask), memory)[0, 0]
            for node in mask[0].nonzero()[:, 0].tolist():
                child = rows.copies(1)
                child.step(torch.tensor([node]))
                nexts.append((score + float(said[node]), child))
        beams = sorted(nexts, key=lambda pair: -pair[0])[:4]
    best = min(judged(rows)[0] for _, rows in beams)
    assert judged(beam_search(network, environment, 4)) == pytest.approx([best], abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("method", [*SIZES])
def test_runs_go_on_to_the_same_numbers_when_they_were_stopped(tmp_path: Path, method: str) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of(method), tmp_path / "whole").run()
    loop = start_run(config_of(method), tmp_path / "half")
    stopped_after(loop, 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    last = numbers(tmp_path / "whole")[-1]
    assert last["eval/cost"] > 1 and last["eval/gap_optimum"] > -1e-4
    assert ("eval/beam/cost" in last) == (method == "bq-nco")


def test_what_is_judged_is_of_the_instances_that_all_share() -> None:
    loop, other = loop_of("am"), loop_of("bq-nco")
    other.run_state.models._modules["policy"] = loop.run_state.policy
    mine = loop.run_state.evaluate()[0]
    assert other.run_state.evaluate()[0]["eval/cost"] == mine["eval/cost"]
    found = judged(build(loop.run_state.policy, loop.run_state.task.held_out).environment)[:20]
    assert sum(found) / 20 == pytest.approx(mine["eval/cost"], abs=1e-9)
    optimum = loop.run_state.task.references["optimum"][:20].mean()
    assert mine["eval/gap_optimum"] == pytest.approx(100 * (mine["eval/cost"] / float(optimum) - 1), abs=1e-6)
    assert loop.metric.target == "optimum" and loop.metric.lines["optimum"] < loop.metric.lines["nearest neighbor"]


@pytest.mark.parametrize(
    ("method", "spec", "said"),
    [
        ("reinforce", "tsp", "its part 'sample-orders' is for inventories, and this is a combinatorial problem"),
        ("hdpo", "tsp", "asks for differentiable access"),
        ("am", "lost-sales", "cannot order; use a method for inventories"),
        ("bq-nco", "backlog", "cannot order; use a method for inventories"),
        ("am", "tsp(n=2)", "tsp.n is 2 but must be from 3 to 200"),
        ("am(width=10)", "tsp", "width is 10 but must be a multiple of heads"),
        ("bq-nco(width=10)", "tsp", "width is 10 but must be a multiple of heads"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(method: str, spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        make_loop(RunConfig(method=method, task=spec, budget="iterations=1"))


def test_other_sizes_are_judged_beside() -> None:
    from polyrl.recipe import Judged

    class Larger(Judged):
        domain = "operations"

    recipe = catalogue.build("am", SIZES["am"], domain="operations")
    import dataclasses

    from polyrl.run_state.operations import make_run_state

    with_larger = dataclasses.replace(recipe, also_judged={"larger": Larger(task="tsp(n=9)")})
    config = config_of("am")
    state = make_run_state(config, task("tsp(n=5)"), with_larger)
    found = state.evaluate()[0]
    assert found["eval/larger/cost"] > found["eval/cost"] and found["eval/larger/gap_optimum"] > 0
    with pytest.raises(UserError, match="judges on lost-sales, which is no other size of tsp"):
        other = dataclasses.replace(recipe, also_judged={"larger": Larger(task="lost-sales")})
        make_run_state(config, task("tsp(n=5)"), other)


def test_training_shortens_tours(tmp_path: Path) -> None:
    done = package.train(
        "am+multi-start",
        task="tsp(n=8)",
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
    assert done.start["eval/gap_optimum"] > 15
    reached(-done.final["eval/gap_optimum"], -6)
