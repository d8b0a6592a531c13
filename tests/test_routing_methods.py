"""The attention model and BQ-NCO: the papers' numbers, their baselines by hand, and what is cut from tours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, reached
from polyrl import catalogue
from polyrl.api import open_policy
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.operations.am import AttentionModel, BetterBaseline, MultiStartBaseline
from polyrl.methods.operations.bq_nco import GoodTours, SubproblemAttention
from polyrl.methods.operations.bq_nco.subproblems import PartsOfTours
from polyrl.models.constructive import Seen
from polyrl.rollout.construction import build
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.routing import TravelingSalesman, shortest
from test_construction import loop_of, stirred

torch.set_num_threads(1)

# ----------------------------------------------------------------------------------------------------- attention model


def test_advantages_are_against_the_greedy_rollout_of_the_baseline() -> None:
    loop = loop_of("am")
    stirred(loop.run_state.network("baseline"))
    batch = loop.recipe.collect(None, loop.context)
    after = loop.recipe.credit[0](batch, loop.context)
    greedy = build(loop.run_state.network("baseline"), loop.run_state.environment).environment
    for row in range(len(batch)):
        environment = loop.run_state.environment
        baseline = environment.verify(environment.instance(row), greedy.solution(row)).cost
        wanted = float(batch["reward"][row].sum()) + baseline
        assert after["advantage"][row].tolist() == pytest.approx([wanted] * batch["mask"].shape[1], abs=1e-5)


def test_the_gradient_is_that_of_equation_8() -> None:
    """The mean over solutions of (L - b) grad log p, p a product over steps; one whole update against a plain sum."""
    without = {"better-baseline.every": "1000"}
    loop = loop_of("am", **without)
    network = loop.run_state.policy
    batch = loop.iterate()
    assert batch is not None
    again = loop_of("am", **without)
    start = again.run_state.policy
    for parameter in start.parameters():
        parameter.requires_grad_(True)
    total = torch.zeros(())
    out = start.outputs(batch, {"logprob"}, None)  # type: ignore[arg-type]
    for row in range(len(batch)):
        total = total - batch["advantage"][row, 0] * out["logprob"][row].sum()
    grads = torch.autograd.grad(total / len(batch), [*start.parameters()])
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert loop.context.metrics["grad_norm/policy"] == pytest.approx(norm, rel=1e-4)
    assert network is loop.run_state.policy and norm > 0


def test_the_mean_of_the_copies_is_the_multi_start_baseline() -> None:
    reward = torch.tensor([[-1.0, -2.0], [-2.0, -3.0], [-4.0, 0.0], [-6.0, 0.0]])
    batch = Experience({"reward": reward, "mask": torch.ones(4, 2) > 0, "group": torch.tensor([3, 3, 1, 1])})
    found = MultiStartBaseline()(batch, None)["advantage"]  # type: ignore[arg-type]
    assert found.tolist() == [[1, 1], [-1, -1], [1, 1], [-1, -1]]


def test_copies_of_an_instance_begin_in_different_cities() -> None:
    loop = loop_of("am+multi-start", "tsp(n=7)")
    assert [*loop.recipe.models] == ["policy"] and [step.name for step in loop.recipe.updates] == ["policy-update"]
    batch = loop.recipe.collect(None, loop.context)
    assert batch["end"][:, 0].tolist() == [0, 1, 2, 3, 4] * 4 and batch["group"].tolist() == sorted([0, 1, 2, 3] * 5)
    assert torch.equal(batch["here"][:, 0], batch["end"][:, 0])
    nodes = batch["nodes"].view(4, 5, -1)
    assert torch.equal(nodes, nodes[:, :1].expand_as(nodes))
    with pytest.raises(UserError, match="'multi-start' is for what builds solutions of random instances"):
        catalogue.build("hdpo+multi-start")
    with pytest.raises(UserError, match="of one alone that says nothing; set --starts 2 or more"):
        catalogue.build("am+multi-start", {"starts": 1})


@pytest.mark.parametrize("better", [True, False])
def test_the_baseline_follows_where_the_policy_is_better(better: bool) -> None:
    """Trained for a little and untrained, whichever of them is the baseline."""
    loop = loop_of("am", "tsp(n=8)", every="1000", test_instances="100")
    models = loop.run_state.models
    good = loop_of("am+multi-start", "tsp(n=8)", instances="16", starts="8", learning_rate="0.01")
    for _ in range(15):
        good.iterate()
    models.flat["policy" if better else "baseline"].vector.data.copy_(good.run_state.models.flat["policy"].vector.data)
    assert models.distance("policy", "baseline") > 0
    update = next(step for step in loop.recipe.updates if isinstance(step, BetterBaseline))
    from polyrl.core.update import See

    see = See(models, loop.context, update.name)
    assert update.step(None, see) == {"baseline/replaced": float(better)}  # type: ignore[arg-type]
    assert (models.distance("policy", "baseline") == 0) == better
    assert update.step(None, see) == {"baseline/replaced": 0.0}  # type: ignore[arg-type]


def test_logits_stay_within_the_clip() -> None:
    network = stirred(AttentionModel(width=16, heads=2, tanh_clip=3.0).build(2, 0, torch.Generator().manual_seed(0)))
    environment = TravelingSalesman(SEED, 4, 6)
    mask = environment.mask()
    assert mask is not None
    seen = Seen.of(environment.observe(), mask)
    for weight in network.parameters():
        weight.data *= 30
    assert float(network.scores(seen, network.read(seen.nodes, seen.present)).detach().abs().max()) <= 3


# -------------------------------------------------------------------------------------------------------------- BQ-NCO


def subproblem(network: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(tokens[None])[0]
    return found


def test_the_papers_network_has_as_many_parameters_as_the_card_says() -> None:
    sizes = {"width": 192, "heads": 12, "layers": 9, "feed_forward": 512}
    network = SubproblemAttention(**sizes).build(2, 0, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in network.parameters()) == 3_107_539
    layer = [p for name, p in network.named_parameters() if name.split(".")[0] in ("query", "keys", "out", "forth")]
    assert sum(p.numel() for p in layer) == 9 * (147_840 + 197_312)


def test_prefixes_with_one_future_are_one_state() -> None:
    """From the environment itself: n = 5 has 65 prefixes and 33 sub-problems."""
    environment = TravelingSalesman(SEED, 1, 5)
    prefixes, states, frontier = 0, set(), [environment.save_rows(torch.tensor([0]))]
    while frontier:
        at = frontier.pop()
        prefixes += 1
        states.add((int(at["here"]), tuple(at["left"][0].tolist())))
        for node in at["left"][0].nonzero()[:, 0].tolist():
            after = environment.advance(
                {k: v for k, v in at.items() if k not in ("episode", "ended")}, torch.tensor([node])
            )
            if bool(after.state["left"].any()):
                frontier.append({**after.state, "episode": at["episode"], "ended": at["ended"]})
            else:
                prefixes += 1
                states.add((node, ()))
    assert (prefixes, len(states)) == (65, 1 + 4 * 2**3)


def test_values_of_the_unit_square() -> None:
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    environment = TravelingSalesman(SEED, 1, 4, instances=lambda row, episode: square)
    start = environment.state

    def value(state: Any) -> float:
        left = state["left"][0].nonzero()[:, 0].tolist()
        found = []
        for node in left:
            moved = environment.advance(state, torch.tensor([node]))
            found.append(float(moved.reward) + (0.0 if bool(moved.terminated) else value(moved.state)))
        return max(found)

    def after(*nodes: int) -> Any:
        state = start
        for node in nodes:
            state = environment.advance(state, torch.tensor([node])).state
        return state

    assert value(start) == pytest.approx(-4)
    assert value(after(2)) == pytest.approx(-3.41421, abs=1e-5) and value(after(1)) == pytest.approx(-3)
    assert value(after(1, 2)) == pytest.approx(-2) == value(environment.advance(start, torch.tensor([1])).state) + 1


def test_scores_are_of_tokens_alone_at_first_and_of_sets_always() -> None:
    network = SubproblemAttention(width=16, heads=2).build(2, 0, torch.Generator().manual_seed(SEED))
    tokens = torch.rand(5, 2, generator=torch.Generator().manual_seed(SEED))
    swapped = tokens[[1, 0, 2, 3, 4]]
    torch.testing.assert_close(subproblem(network, tokens)[2:], subproblem(network, swapped)[2:])
    moved = tokens.clone()
    moved[3] += 0.3
    assert torch.equal(subproblem(network, moved)[[0, 1, 2, 4]], subproblem(network, tokens)[[0, 1, 2, 4]])
    network.alpha.data.fill_(1.0)
    turned = [0, 1, 4, 2, 3]
    torch.testing.assert_close(subproblem(network, tokens[turned]), subproblem(network, tokens)[turned])
    assert not torch.allclose(subproblem(network, tokens)[2:], subproblem(network, swapped)[2:], atol=1e-4)
    alone = torch.cat([tokens, torch.full((2, 2), 9.0)])[None]  # padding enters nothing
    with torch.no_grad():
        padded = network(alone, torch.tensor([[True] * 5 + [False] * 2]))[0, :5]
    torch.testing.assert_close(padded, subproblem(network, tokens))


def test_equal_scores_of_three_nodes_lose_ln_three() -> None:
    loop = loop_of("bq-nco")
    network = loop.run_state.policy
    network.score.weight.data.zero_()
    cities = torch.rand(4, 4, 2, generator=torch.Generator().manual_seed(SEED))
    rows = PartsOfTours({"cities": cities, "tours": torch.arange(4).repeat(4, 1)}, symmetries=True)
    batch = rows.sample(200, torch.Generator().manual_seed(SEED))
    loss = -network.outputs(batch, {"logprob"}, None)["logprob"].detach()[:, 0]  # type: ignore[arg-type]
    between = batch["action_mask"].sum(-1)[:, 0]
    assert set(between.tolist()) == {2, 3}
    torch.testing.assert_close(loss[between == 3], torch.full_like(loss[between == 3], 1.09861), atol=1e-5, rtol=0)
    assert float(loss[between == 2][0]) == pytest.approx(math.log(2))


def test_every_row_is_the_first_decision_of_an_optimal_path() -> None:
    """Of optimal tours, by the dynamic program over each part that is cut; all sizes, ends and ways round occur."""
    environment = TravelingSalesman(SEED, 20, 7)
    tours = [shortest(distances(torch.from_numpy(environment.instance(row))).numpy())[1] for row in range(20)]
    rows = PartsOfTours({"cities": environment.state["cities"], "tours": torch.tensor(tours)}, symmetries=True)
    batch = rows.sample(300, torch.Generator().manual_seed(SEED))
    lengths, closed = set(), 0
    for k in range(300):
        there = batch["node_mask"][k, 0]
        path = batch["nodes"][k, 0][there].double()
        count = len(path)
        assert int(batch["here"][k]) == 0 and int(batch["end"][k]) == count - 1 and int(batch["action"][k]) == 1
        assert batch["action_mask"][k, 0].nonzero()[:, 0].tolist() == [*range(1, count - 1)]
        lengths.add(count)
        closed += bool(torch.equal(path[0], path[-1]))
        length = float((path[1:] - path[:-1]).norm(dim=1).sum())
        away = distances(path)
        if count < 8:  # a path is a tour in which the way from the destination to the origin costs nothing
            away[0, -1] = away[-1, 0] = -10.0
            assert shortest(away.numpy())[0] + 10 == pytest.approx(length, abs=1e-5)
        else:
            assert shortest(away[:-1, :-1].numpy())[0] == pytest.approx(length, abs=1e-5)
    assert lengths == {4, 5, 6, 7, 8} and closed == int((batch["node_mask"].sum(-1) == 8).sum())
    points = batch["nodes"][batch["node_mask"]]
    assert bool(((points >= 0) & (points <= 1)).all())
    original = {tuple(p) for p in environment.state["cities"].flatten(0, 1).tolist()}
    assert sum(tuple(p) in original for p in points.tolist()) < 0.5 * len(points)  # the others are mirrored
    plain = PartsOfTours({"cities": environment.state["cities"], "tours": torch.tensor(tours)}, symmetries=False)
    kept = plain.sample(50, torch.Generator().manual_seed(SEED))
    assert all(tuple(p) in original for p in kept["nodes"][kept["node_mask"]].tolist())


def test_imitating_good_tours_comes_near_to_them_and_goes_on_to_larger_ones(tmp_path: Any) -> None:
    done = package.train(
        "bq-nco",
        task="tsp(n=8)",
        budget="updates=300",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 200},
        solved=1_000,
        batch_size=64,
        width=32,
        heads=4,
        layers=2,
        feed_forward=64,
        beam_width=4,
    )
    assert done.start["eval/gap_optimum"] > 25
    reached(-done.final["eval/gap_optimum"], -6)
    assert -1e-4 < done.final["eval/beam/gap_optimum"] < done.final["eval/gap_optimum"]
    larger = TravelingSalesman(SEED, 60, 13)
    state: Any = open_policy(tmp_path / "run")
    cost = float(build(state.network("policy"), larger).costs.mean())
    lines = larger.lines()
    reached(-cost / lines["optimum"], -1.13)
    assert lines["nearest neighbor"] / lines["optimum"] > 1.08


def test_a_source_takes_the_place_of_its_own_kind_alone() -> None:
    recipe = catalogue.build("bq-nco", {"solved": "7"}, domain="operations") + GoodTours(solved=9)
    source = recipe.sources["solutions"]
    assert isinstance(source, GoodTours) and source.solved == 9 and [*recipe.sources] == ["solutions"]
    with pytest.raises(UserError, match="am has no source that 'good-tours' would take the place of"):
        catalogue.build("am+good-tours")


def test_the_network_of_sub_problems_also_learns_by_reward() -> None:
    import dataclasses

    from polyrl.runs import make_loop
    from polyrl.runtime.config import PythonObjects, RunConfig

    recipe = catalogue.build("am+multi-start", {"instances": "4", "starts": "5"}, domain="operations")
    by_reward = dataclasses.replace(recipe, name="mine", models={"policy": SubproblemAttention(width=16, heads=2)})
    config = RunConfig(method="mine", task="tsp(n=6)", budget="iterations=2", seed=SEED, tensorboard=False)
    loop = make_loop(config, given=PythonObjects(recipe=by_reward.check()))[0]
    before = loop.run_state.models.flat["policy"].vector.detach().clone()
    loop.iterate()
    assert not torch.equal(before, loop.run_state.models.flat["policy"].vector)
