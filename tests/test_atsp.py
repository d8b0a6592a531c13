"""Tours whose costs differ by direction: costs, masks, verifier, heuristics, and learning by BQ-NCO."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, reached
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.operations.bq_nco.subproblems import PartsOfDirectedTours
from polyrl.models.constructive import Seen
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.operations.asymmetric import AsymmetricTravelingSalesman, drawn_costs
from polyrl.tasks.operations.routing import shortest
from polyrl.tasks.operations.tours import exchanged, tour_lengths
from test_construction import Alike, loop_of, stirred

torch.set_num_threads(1)
BY_HAND = np.array([[0.0, 1, 9, 9], [9, 0, 1, 9], [9, 9, 0, 1], [1, 9, 9, 0]])
"""1 forward, 9 in all other ways."""


def cheapest(costs: Tensor) -> float:
    """By all tours."""
    orders = [(0, *rest) for rest in itertools.permutations(range(1, len(costs)))]
    return min(sum(float(costs[a, b]) for a, b in zip(o, o[1:] + o[:1], strict=True)) for o in orders)


def test_costs_are_those_of_the_cheapest_ways_and_differ_by_direction() -> None:
    costs = drawn_costs(9, torch.Generator().manual_seed(SEED))
    plain = torch.rand(9, 9, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64).fill_diagonal_(0)
    best = plain.clone()  # Bellman's equation, over and over
    for _ in range(9):
        best = torch.minimum(best, (best[:, :, None] + plain[None]).amin(1))
    torch.testing.assert_close(costs, best)
    assert bool((costs.diagonal() == 0).all()) and not torch.allclose(costs, costs.T, atol=0.05)
    assert bool((costs[:, :, None] + costs[None] >= costs[:, None] - 1e-12).all())  # no detour is cheaper
    one, other = AsymmetricTravelingSalesman(SEED, 2, 6), AsymmetricTravelingSalesman(SEED, 5, 6)
    assert all(torch.equal(one.state[name], other.state[name][:2]) for name in one.state)
    assert not torch.equal(one.state["costs"][0], one.state["costs"][1])


def test_ten_thousand_random_solutions_are_feasible() -> None:
    environment = AsymmetricTravelingSalesman(SEED, 1_000, 7)
    built = build(Alike(), environment, copies=10, stream=torch.Generator().manual_seed(SEED))
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-4)
    assert len({tuple(built.environment.solution(row)) for row in range(10_000)}) == 720  # all tours of seven


@pytest.mark.parametrize(
    ("tour", "said", "cost"),
    [
        ([0, 1, 2, 3], "", 4),
        ([0, 3, 2, 1], "", 36),
        ([0, 1, 2], "node 3 is not visited", None),
        ([0, 1, 2, 2], "node 2 is visited twice", None),
        ([0, 1, 2, 4], "there is no node 4 among 4", None),
        ([1, 2, 3, 0], "the tour begins in node 1 and not in node 0", None),
    ],
)
def test_what_is_infeasible_is_told(tour: list[int], said: str, cost: float | None) -> None:
    found = AsymmetricTravelingSalesman(SEED, 1, 4).verify(BY_HAND, tour)
    assert (found.why, found.cost) == (said, cost)


def test_the_optimum_is_that_of_all_tours_and_heuristics_are_beside_it() -> None:
    environment = AsymmetricTravelingSalesman(SEED, 30, 7)
    lines = environment.references()
    best = torch.tensor([cheapest(costs) for costs in environment.state["costs"]], dtype=torch.float64)
    torch.testing.assert_close(lines["optimum"], best)
    assert bool((lines["3-opt without reversal"] >= best - 1e-9).all())
    assert float(lines["3-opt without reversal"].mean()) < 1.01 * float(best.mean())
    assert float(lines["nearest neighbor"].mean()) > 1.1 * float(best.mean())
    assert [*lines] == ["optimum", "3-opt without reversal", "nearest neighbor"]
    by_hand = AsymmetricTravelingSalesman(SEED, 1, 4, instances=lambda row, episode: BY_HAND)
    assert by_hand.lines() == {"optimum": 4, "3-opt without reversal": 4, "nearest neighbor": 4}
    assert [*AsymmetricTravelingSalesman(SEED, 2, 14).lines()] == ["3-opt without reversal", "nearest neighbor"]


def test_no_exchange_of_neighboring_parts_shortens_what_local_search_leaves() -> None:
    """All of them, one by one; and nothing is turned round on the way."""
    environment = AsymmetricTravelingSalesman(SEED, 8, 8)
    order = exchanged(environment.state["costs"], torch.arange(8).repeat(8, 1))
    for costs, tour in zip(environment.state["costs"], order.tolist(), strict=True):
        assert sorted(tour) == [*range(8)]
        others = [
            tour[:a] + tour[b:c] + tour[a:b] + tour[c:]
            for a, b, c in itertools.combinations(range(9), 3)  # the first node moves, too
        ]
        best = float(tour_lengths(costs.expand(len(others), -1, -1), torch.tensor(others)).min())
        assert best >= float(tour_lengths(costs[None], torch.tensor([tour]))) - 1e-5


def test_copies_begin_everywhere_and_a_wide_beam_finds_the_optimum() -> None:
    environment = AsymmetricTravelingSalesman(SEED, 3, 5)
    built = build(Alike(), environment, copies=5, stream=torch.Generator().manual_seed(SEED))
    assert built.environment.state["start"].tolist() == [0, 1, 2, 3, 4] * 3
    assert judged(built.environment) == pytest.approx(built.costs.tolist(), abs=1e-5)
    assert all(built.environment.solution(row)[0] == 0 for row in range(15))
    network = stirred(loop_of("bq-nco", "atsp(n=5)").run_state.policy)
    found = judged(beam_search(network, environment, 24))
    assert found == pytest.approx([shortest(costs.numpy())[0] for costs in environment.state["costs"]])


def test_scores_follow_the_order_of_nodes_and_the_direction_of_costs() -> None:
    network = stirred(loop_of("bq-nco", "atsp(n=6)").run_state.policy)
    environment = AsymmetricTravelingSalesman(SEED, 6, 6)
    environment.step(environment.mask().float().argmax(1))  # type: ignore[union-attr]
    mask = environment.mask()
    assert mask is not None
    seen = Seen.of(environment.observe(), mask)
    assert seen.costs is not None

    def said(seen: Seen) -> Tensor:
        return network.logprobs(seen, {}).detach()

    order = torch.randperm(6, generator=torch.Generator().manual_seed(SEED))
    back = order.argsort()
    turned = Seen(
        seen.nodes[:, order],
        seen.present,
        back[seen.here],
        back[seen.end],
        seen.left[..., order],
        seen.context,
        seen.mask[..., order],
        costs=seen.costs[:, order][:, :, order],
    )
    torch.testing.assert_close(said(turned), said(seen)[..., order], atol=1e-4, rtol=1e-4)
    whole = [seen.nodes, seen.present, seen.here, seen.end, seen.left, seen.context, seen.mask, None]
    scaled = Seen(*whole, 1000 * seen.costs)  # type: ignore[arg-type]
    torch.testing.assert_close(said(scaled), said(seen), atol=1e-4, rtol=1e-4)  # shares of their mean
    other = Seen(*whole, seen.costs.mT)  # type: ignore[arg-type]
    assert not torch.allclose(said(other)[seen.mask], said(seen)[seen.mask], atol=1e-3)
    gone = ~(seen.left[:, 0] | (torch.arange(6) == seen.here) | (torch.arange(6) == seen.end))
    assert bool(gone.any(1).any()) or int(seen.left.sum()) == 24
    unseen = torch.where(gone[:, :, None] | gone[:, None], 7.0, seen.costs)
    torch.testing.assert_close(said(Seen(*whole, unseen)), said(seen))  # type: ignore[arg-type]


def test_costs_are_heard_either_way() -> None:
    """At first a node's score is of itself and of the costs between it and others, into it and out of it."""
    network = loop_of("bq-nco", "atsp(n=6)").run_state.policy
    assert float(network.alpha.abs().max()) == 0
    draw = torch.Generator().manual_seed(SEED)
    tokens, costs = torch.rand(1, 5, 8, generator=draw), torch.rand(1, 5, 5, generator=draw)
    with torch.no_grad():
        before = network(tokens, None, costs)  # type: ignore[operator]
        for a, b in ((2, 4), (4, 2), (0, 4)):
            moved = costs.clone()
            moved[0, a, b] += 0.5
            moved[0, 3, 1] -= 0.5  # their mean stays what it was
            after = network(tokens, None, moved)  # type: ignore[operator]
            changed = ((after - before).abs() > 1e-5)[0].nonzero()[:, 0].tolist()
            assert changed == sorted({a, b, 3, 1})


def test_padding_is_not_heard() -> None:
    network = stirred(loop_of("bq-nco", "atsp(n=6)").run_state.policy)
    draw = torch.Generator().manual_seed(SEED)
    tokens, costs = torch.rand(2, 4, 8, generator=draw), torch.rand(2, 4, 4, generator=draw)
    wide, more = torch.full((2, 6, 8), 3.0), torch.full((2, 6, 6), 3.0)
    wide[:, :4], more[:, :4, :4] = tokens, costs
    with torch.no_grad():
        found = network(wide, (torch.arange(6) < 4).expand(2, -1), more)[:, :4]  # type: ignore[operator]
        torch.testing.assert_close(found, network(tokens, None, costs))  # type: ignore[operator]


def test_every_row_is_the_first_decision_of_an_optimal_path() -> None:
    """By the dynamic program over each part that is cut; all sizes and both kinds of ends occur."""
    environment = AsymmetricTravelingSalesman(SEED, 20, 7)
    tours = torch.tensor([shortest(costs.numpy())[1] for costs in environment.state["costs"]])
    rows = PartsOfDirectedTours({"costs": environment.state["costs"].float(), "tours": tours})
    batch = rows.sample(300, torch.Generator().manual_seed(SEED))
    lengths, closed = set(), 0
    for k in range(300):
        there = batch["node_mask"][k, 0]
        count = int(there.sum())
        away = batch["costs"][k, 0].double()[:count, :count]
        nodes = batch["nodes"][k, 0][:count]
        assert int(batch["here"][k]) == 0 and int(batch["end"][k]) == count - 1 and int(batch["action"][k]) == 1
        lengths.add(count)
        is_closed = torch.equal(nodes[0], nodes[-1])
        closed += is_closed
        length = float(away.diagonal(1).sum())
        if is_closed:
            assert shortest(away[:-1, :-1].numpy())[0] == pytest.approx(length, abs=1e-5) and count == 8
        else:  # a path is a tour in which the way from the destination to the origin costs nothing
            away[-1, 0] = -10.0
            assert shortest(away.numpy())[0] + 10 == pytest.approx(length, abs=1e-5)
    assert lengths == {4, 5, 6, 7, 8} and closed == int((batch["node_mask"].sum(-1) == 8).sum())
    first = batch["nodes"][:, 0, 0]
    assert float(first.abs().max()) <= 1 and len(torch.unique(first, dim=0)) == 300  # drawn anew for each row


def test_steps_that_are_trained_on_are_those_that_were_sampled() -> None:
    network = stirred(loop_of("bq-nco", "atsp(n=6)").run_state.policy)
    built = build(
        network,
        AsymmetricTravelingSalesman(SEED, 5, 6),
        copies=3,
        stream=torch.Generator().manual_seed(SEED),
        record=True,
    )
    shown = built.environment.observe()
    fields = {name: shown[name].values[:, None] for name in ("nodes", "costs")}  # type: ignore[union-attr]
    fields["node_mask"] = shown["nodes"].present[:, None]  # type: ignore[union-attr]
    batch = Experience({**built.steps, **fields, "group": torch.arange(5).repeat_interleave(3)})
    for rows in (batch, batch.rows(torch.tensor([2, 0, 9, 14]))):
        found = network.outputs(rows, {"logprob"}, None)["logprob"].detach()  # type: ignore[arg-type]
        torch.testing.assert_close(found, rows["behaviour_logprob"], atol=1e-5, rtol=1e-5)


def test_the_network_of_sub_problems_also_learns_by_reward() -> None:
    loop = make_loop(
        RunConfig(
            method="am+multi-start+subproblem-attention",
            task="atsp(n=6)",
            budget="iterations=2",
            hyperparameters={"instances": "4", "starts": "6", "width": "16", "heads": "2", "layers": "1"},
            tensorboard=False,
        )
    )[0]
    before = loop.run_state.models.flat["policy"].vector.detach().clone()
    batch = loop.iterate()
    assert batch is not None and batch["costs"].shape == (24, 1, 6, 6)
    assert not torch.equal(before, loop.run_state.models.flat["policy"].vector)


def test_methods_that_read_places_are_refused() -> None:
    with pytest.raises(UserError, match="'policy' of am reads places of nodes, and atsp has costs between them"):
        make_loop(RunConfig(method="am", task="atsp", budget="iterations=1"))


def test_imitating_good_tours_makes_cheap_ones(tmp_path: Path) -> None:
    done = package.train(
        "bq-nco",
        task="atsp(n=8)",
        budget="updates=300",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 200},
        solved=1_000,
        batch_size=64,
        learning_rate=3e-3,
        width=32,
        heads=4,
        layers=2,
        feed_forward=64,
        beam_width=4,
    )
    assert done.start["eval/gap_optimum"] > 40  # nearest neighbor: 20
    reached(-done.final["eval/gap_optimum"], -14)
