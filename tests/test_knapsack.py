"""The knapsack: masks, verifier, the optimum by all subsets, greed, and learning from optima and by reward."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import polyrl as package
from conftest import SEED, reached
from polyrl.errors import UserError
from polyrl.methods.operations.bq_nco import SubproblemAttention
from polyrl.methods.operations.bq_nco.selections import RestsOfKnapsacks
from polyrl.models.constructive import Seen
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.operations.knapsack import Items, Knapsack, densest, filled
from test_construction import Alike, loop_of, stirred

torch.set_num_threads(1)
BY_HAND = Items((6.0, 10.0, 12.0, 9.0), (1.0, 2.0, 3.0, 2.5), 5.0)
"""Densest first: items 1 and 2, and then nothing that fits; the best are 2 and 3."""


def most(instance: Items) -> float:
    """By all subsets."""
    count = len(instance.value)
    return max(
        sum(v for v, taken in zip(instance.value, those, strict=True) if taken)
        for those in itertools.product((False, True), repeat=count)
        if sum(w for w, taken in zip(instance.weight, those, strict=True) if taken) <= instance.capacity
    )


def test_ten_thousand_random_solutions_are_feasible_and_full() -> None:
    environment = Knapsack(SEED, 1_000, 8, 1_200)
    built = build(Alike(), environment, copies=10, stream=torch.Generator().manual_seed(SEED)).environment
    costs = judged(built)
    state = built.state
    value = torch.where(state["left"], 0.0, state["value"]).sum(1)
    assert costs == pytest.approx((-value).tolist())
    weight = torch.where(state["left"], 0.0, state["weight"]).sum(1)
    assert bool((weight <= 1_200).all()) and float(weight.max()) > 1_150
    lightest = torch.where(state["left"], state["weight"], torch.inf).amin(1)
    assert bool((weight + lightest > 1_200).all())  # nothing more would fit
    assert torch.equal(build(Alike(), environment).costs, -build(Alike(), environment).steps["reward"].sum(1))


def test_what_may_come_next_by_hand() -> None:
    environment = Knapsack(SEED, 1, 4, instances=lambda row, episode: BY_HAND)
    allowed = [environment.mask().int().tolist()[0]]  # type: ignore[union-attr]
    shown = environment.observe()
    assert float(shown["context"]) == pytest.approx(5 / 3)  # type: ignore[arg-type]
    torch.testing.assert_close(shown["nodes"].values[0, 2], torch.tensor([10 / 12, 2 / 3]))  # type: ignore[union-attr]
    moved = environment.step(torch.tensor([3]))
    allowed.append(environment.mask().int().tolist()[0])  # type: ignore[union-attr]
    assert allowed == [[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]] and float(moved.reward) == 12
    for wrong in (0, 3, 4):
        with pytest.raises(ValueError, match=f"the action {wrong} of row 0 is not allowed"):
            environment.step(torch.tensor([wrong]))
    assert bool(environment.step(torch.tensor([2])).terminated) and environment.solution(0) == [2, 3]
    assert environment.verify(BY_HAND, [2, 3]).cost == -22


def test_where_nothing_fits_nothing_is_taken() -> None:
    heavy = Items((5.0, 5.0, 1.0), (10.0, 11.0, 12.0), 9.0)
    environment = Knapsack(SEED, 1, 3, instances=lambda row, episode: heavy)
    assert environment.mask().tolist() == [[True, False, False, False]]  # type: ignore[union-attr]
    for method in ("am", "bq-nco"):
        network = stirred(loop_of(method, "knapsack(n=3,capacity=1000)").run_state.policy)
        done = build(network, environment).environment
        assert done.solution(0) == [] and judged(done) == [0] and judged(beam_search(network, environment, 3)) == [0]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([3, 2], ""),
        ([], ""),
        ([1, 2, 3], "the items weigh 6 of 5"),
        ([2, 3, 2], "item 2 is taken twice"),
        ([0], "there is no item 0 among 4"),
        ([5], "there is no item 5 among 4"),
    ],
)
def test_what_is_infeasible_is_told(items: list[int], said: str) -> None:
    found = Knapsack(SEED, 1, 4).verify(BY_HAND, items)
    assert found.why == said and found.cost == (None if said else -22 if items else 0)


def test_weights_that_are_no_whole_numbers_fill_a_knapsack_exactly() -> None:
    thirds = Items((1.0,) * 3, (0.1, 0.2, 0.3), 0.6)  # 0.1 + 0.2 + 0.3 is above 0.6 in binary
    assert 0.1 + 0.2 + 0.3 > 0.6 and not thirds.whole and Items((1.0,), (2.0,), 2.5).whole
    environment = Knapsack(SEED, 1, 3, instances=lambda row, episode: thirds)
    for item in (1, 2, 3):
        environment.step(torch.tensor([item]))
    assert judged(environment) == [-3] and environment.verify(thirds, [1, 2, 3]).cost == -3
    assert environment.verify(Items((1.0,) * 3, (0.1, 0.2, 0.3), 0.5999), [1, 2, 3]).cost is None
    assert [*environment.lines()] == ["density greedy"]


def test_the_optimum_is_that_of_all_subsets_and_greed_is_below_it() -> None:
    environment = Knapsack(SEED, 40, 9, 1_300)
    lines = environment.references()
    assert lines["optimum"].tolist() == [-most(environment.instance(row)) for row in range(40)]
    greedy = [
        -sum(environment.instance(row).value[i - 1] for i in densest(environment.instance(row))) for row in range(40)
    ]
    assert lines["density greedy"].tolist() == greedy and [*lines] == ["optimum", "density greedy"]
    assert bool((lines["optimum"] <= lines["density greedy"]).all()) and lines["optimum"].sum() < sum(greedy)
    assert densest(BY_HAND) == [1, 2] and most(BY_HAND) == 22
    # of rows with other capacities, some at a time
    value, weight = np.array([[6.0, 10, 12], [6, 10, 12], [1, 1, 1]]), np.array([[1, 2, 3], [1, 2, 3], [9, 9, 9]])
    assert filled(value, weight, np.array([5, 4, 8])).tolist() == [
        [False, True, True],
        [True, False, True],
        [False] * 3,
    ]


def test_a_wide_beam_finds_the_optimum() -> None:
    network = stirred(loop_of("bq-nco", "knapsack(n=5,capacity=1000)").run_state.policy)
    environment = Knapsack(SEED, 6, 5, 1_000)
    found = judged(beam_search(network, environment, 400))
    assert found == environment.references()["optimum"].tolist()


def test_the_papers_network_has_as_many_parameters_as_the_card_says() -> None:
    sizes = {"width": 192, "heads": 12, "layers": 9, "feed_forward": 512}
    kind = type("Interface", (), {"kind": Knapsack})
    network = SubproblemAttention(**sizes).make(kind, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in network.parameters()) == 3_107_347


def test_every_row_is_what_remains_of_an_optimum() -> None:
    environment = Knapsack(SEED, 20, 7, 1_500)
    batch = RestsOfKnapsacks(RestsOfKnapsacks.solved(environment)).sample(400, torch.Generator().manual_seed(SEED))
    gone = set()
    for k in range(400):
        row = int(batch["row"][k])
        whole = environment.instance(row)
        left = batch["left"][k, 0]
        heaviest = max(whole.weight)
        capacity = round(float(batch["context"][k, 0, 0]) * heaviest)
        items = [i - 1 for i in left.nonzero()[:, 0].tolist()]
        rest = Items(tuple(whole.value[i] for i in items), tuple(whole.weight[i] for i in items), capacity)
        right = (batch["target"][k, 0] > 0).nonzero()[:, 0].tolist()
        assert set(right) <= {i + 1 for i in items} and sum(whole.value[i - 1] for i in right) == most(rest)
        assert sum(whole.weight[i - 1] for i in right) <= capacity and int(batch["action"][k]) in right
        assert batch["target"][k, 0][right].tolist() == pytest.approx([1 / len(right)] * len(right))
        fits = [i + 1 for i in items if whole.weight[i] <= capacity]
        assert batch["action_mask"][k, 0].nonzero()[:, 0].tolist() == fits
        gone.add(7 - len(items))
    assert min(gone) == 0 and len(gone) > 3
    shown = environment.observe()["nodes"].values  # type: ignore[union-attr]
    assert torch.equal(batch["nodes"][:, 0], shown[batch["row"][:, 0]])


def test_any_order_of_the_optimal_items_is_right() -> None:
    """Of five items that fit two are optimal: equal scores lose ln 5, and the least loss is ln 2, not 0."""
    loop = loop_of("bq-nco", "knapsack(n=5)")
    network = loop.run_state.policy
    easy = Items((1.0, 9.0, 2.0, 9.0, 1.0), (3.0, 3.0, 3.0, 2.9, 3.0), 6.0)
    environment = Knapsack(SEED, 300, 5, instances=lambda row, episode: easy)
    batch = RestsOfKnapsacks(RestsOfKnapsacks.solved(environment)).sample(300, torch.Generator().manual_seed(SEED))
    batch = batch.rows((batch["target"] > 0).sum(-1)[:, 0].eq(2).nonzero()[:, 0])
    stirred(network)
    found = network.outputs(batch, {"logprob"}, None)["logprob"].detach()  # type: ignore[arg-type]
    said = network.logprobs(Seen.stored(batch), {}).detach()[:, 0]
    for k in range(0, len(batch), 10):
        right = said[k][batch["target"][k, 0] > 0]
        assert float(found[k]) == pytest.approx(float(right.mean()), abs=1e-5) and float(right[0] - right[1]) != 0
    network.alpha.data.zero_(), network.score.weight.data.zero_()

    def loss() -> list[float]:
        found: list[float] = (-network.outputs(batch, {"logprob"}, None)["logprob"].detach()[:, 0]).tolist()
        return found

    assert loss() == pytest.approx([math.log(5)] * len(batch), abs=1e-5) and len(batch) > 100
    network.embed.weight.data.zero_()
    network.embed.weight.data[0, 0] = 1  # the value alone is seen
    network.embed.bias.data.zero_()
    network.score.weight.data[0, 0] = 200
    assert loss() == pytest.approx([math.log(2)] * len(batch), abs=1e-5)


def test_capacities_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"knapsack\.capacity is 900 but must be from 998 to 50000"):
        make_loop(RunConfig(method="bq-nco", task="knapsack(capacity=900)", budget="iterations=1"))


@pytest.mark.parametrize("method", ["bq-nco", "am+multi-start"])
def test_training_fills_knapsacks(tmp_path: Path, method: str) -> None:
    own = {"solved": 1_000, "batch_size": 64, "beam_width": 4} if method == "bq-nco" else {"instances": 32, "starts": 8}
    done = package.train(
        method,
        task="knapsack(n=10,capacity=1250)",
        budget="updates=200" if method == "bq-nco" else "updates=60",
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
    assert done.start["eval/gap_optimum"] > 10
    reached(-done.final["eval/gap_optimum"], -6)
    assert done.final["eval/value"] > done.start["eval/value"]
