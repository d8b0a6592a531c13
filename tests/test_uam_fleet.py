"""Graph capsules over a fleet: by hand and node by node, symmetries, rewards, refusals, learning, solving."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyrl as package
from conftest import SEED, Command, reached, read_records, stopped_after
from polyrl.cli.solve import solve
from polyrl.cli.solve_fleet import drawn_day
from polyrl.errors import UserError
from polyrl.methods.operations.uam_fleet import FleetPolicy
from polyrl.methods.operations.uam_fleet.networks import (
    FleetNetwork,
    GraphCapsule,
    capsule,
    laplacian,
    positions,
)
from polyrl.models.constructive import Seen
from polyrl.rollout.construction import beam_search, build, judged
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.runtime.drawing import Spans
from polyrl.tasks.operations import task
from polyrl.tasks.operations.air_taxis import AirTaxis
from polyrl.tasks.operations.day_files import read_day, write_day
from polyrl.tasks.operations.fleets import fly, verify
from test_air_taxis import APART, day_of, done_by, midway, reordered
from test_construction import stirred

torch.set_num_threads(1)
SMALL = {"instances": "4", "width": "8"}
TINY = "air-taxis(n=3,aircraft=2)"


@pytest.fixture(autouse=True)
def quick_evolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the genetic algorithm that stands beside; what it comes to is asked in test_air_taxis.py."""
    monkeypatch.setattr("polyrl.tasks.operations.fleet_rules.GENERATIONS", 2)


def config_of(spec: str = TINY, budget: str = "iterations=3", **settings: str) -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 4, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(
        method="uam-fleet", task=spec, budget=budget, seed=SEED, hyperparameters={**SMALL, **settings}, **options
    )


def network_of(spec: str = "air-taxis", **settings: Any) -> FleetNetwork:
    entry = FleetPolicy(**{"width": 8, **settings})
    made = entry.make(task(spec), torch.Generator().manual_seed(SEED))
    assert isinstance(stirred(made), FleetNetwork)
    return made


def seen_of(rows: AirTaxis) -> Seen:
    mask = rows.mask()
    assert mask is not None
    return Seen.of(rows.observe(), mask)


def both(network: FleetNetwork, rows: AirTaxis) -> tuple[Tensor, Tensor]:
    seen = seen_of(rows)
    with torch.no_grad():
        scores, value = network.both(seen, network.read(seen.nodes, seen.present))
    return scores[:, 0], value[:, 0]


# -------------------------------------------------------------------------------------------------------------- network


def test_the_laplacian_by_hand() -> None:
    found = laplacian(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert found.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    some = laplacian(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(SEED)))
    assert torch.allclose(some @ torch.ones(4), torch.zeros(5, 4), atol=1e-6)
    degree_minus_one = found - torch.eye(2)  # of the 2022 code
    assert (degree_minus_one @ torch.ones(2)).tolist() == [-1, -1]


def test_a_capsule_takes_powers_of_numbers_and_of_the_matrix() -> None:
    x, of = torch.tensor([[2.0], [3.0]]), torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    found = capsule(x, of, moments=2, hops=2)
    assert found[0].tolist() == [[2, -0.5, -0.5], [3, 0.5, 0.5]]  # L L = L
    assert found[1].tolist() == [[4, -2.5, -2.5], [9, 2.5, 2.5]]
    of = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert capsule(x, of, 1, 2)[0].tolist() == [[2, -1, -2], [3, 1, 2]]  # L L = 2 L, and not the squares in it


def test_a_layer_of_capsules_node_by_node() -> None:
    stream = torch.Generator().manual_seed(SEED)
    layer, features = GraphCapsule(3, 4, moments=2, hops=1), torch.randn(5, 3, generator=stream)
    told = torch.randn(5, 4, generator=stream)
    with torch.no_grad():
        x = [layer.embed(features[u]) + told[u] for u in range(5)]
        wanted = []
        for u in range(5):
            parts = []
            for p, mix in enumerate(layer.mix, 1):
                near = [1 / (1 + float((features[u] - features[v]).norm())) for v in range(5)]
                told_by = sum(((x[u] ** p - x[v] ** p) * near[v] for v in range(5) if v != u), torch.zeros(4))
                parts.append(torch.tanh(mix(torch.cat([x[u] ** p, told_by]))))
            wanted.append(torch.tanh(layer.join(torch.cat(parts))))
        torch.testing.assert_close(layer(features, told), torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_hours_have_places() -> None:
    found = positions(3, 6)
    assert found[0].tolist() == [0, 1] * 3
    torch.testing.assert_close(found[2, :2], torch.tensor([0.909297, -0.416147]))
    assert float(found[2, 2]) == pytest.approx(float(torch.tensor(2 * 10_000 ** (-1 / 3)).sin()))


@pytest.mark.parametrize(("moments", "hops"), [(1, 1), (2, 2), (1, 0)])
def test_numbers_of_aircraft_and_vertiports_mean_nothing(moments: int, hops: int) -> None:
    network = network_of(moments=moments, hops=hops)
    one = midway(AirTaxis(SEED, 12, 4, 6, parking=2, chargers=1), 31)
    aircraft, vertiports = torch.tensor([3, 0, 4, 1, 5, 2]), torch.tensor([2, 0, 3, 1])
    scores, value = both(network, one)
    again, too = both(network, reordered(one, aircraft, vertiports))
    torch.testing.assert_close(again, scores[:, vertiports], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(too, value, atol=1e-5, rtol=1e-4)
    assert float(scores.std(1).min()) > 1e-4  # and they are no constants


def test_a_network_over_graphs_flies_fleets_of_any_size_and_one_over_a_row_does_not() -> None:
    for rows in (AirTaxis(SEED, 3, 8, 12), AirTaxis(SEED, 3, 3, 1)):
        done = build(network_of(), rows).environment
        assert judged(done) == pytest.approx([-x for x in done.state["earned"].tolist()])
    with pytest.raises(UserError, match="is for the 4 vertiports that it was made for, and here are 8; train with"):
        build(network_of(reads="flat"), AirTaxis(SEED, 1, 8, 6))
    flat, rows = network_of(reads="flat"), midway(AirTaxis(SEED, 5), 9)
    swapped = reordered(rows, torch.arange(6), torch.tensor([2, 0, 3, 1]))
    assert not torch.allclose(both(flat, swapped)[0], both(flat, rows)[0][:, [2, 0, 3, 1]], atol=1e-3)


def test_each_kind_of_hours_is_over_its_largest() -> None:
    rows = AirTaxis(SEED, 2)
    static, hours = FleetNetwork.scaled(rows.state["nodes"])
    torch.testing.assert_close(hours.amax((1, 2)), torch.ones(2, 4))
    out = rows.state["demand"].sum(3).float()
    torch.testing.assert_close(hours[..., 0], (out / out.amax((1, 2), keepdim=True)).transpose(1, 2))
    torch.testing.assert_close(static[..., 0], (rows.state["places"][..., 0] / 50).float())


# --------------------------------------------------------------------------------------------------------------- method


def test_a_day_is_worth_nothing_before_training() -> None:
    for reads in ("graph", "flat"):
        made = FleetPolicy(reads=reads).make(task("air-taxis"), torch.Generator().manual_seed(SEED))  # type: ignore[arg-type]
        assert isinstance(made, FleetNetwork)
        assert bool((both(made, midway(AirTaxis(SEED, 5), 9))[1] == 0).all())


@pytest.mark.parametrize("reads", ["graph", "flat"])
def test_steps_are_those_that_were_sampled_and_rewards_are_shares_of_the_revenue(reads: str) -> None:
    loop = make_loop(config_of(reads=reads))[0]
    stirred(loop.run_state.policy)
    batch = loop.recipe.collect(None, loop.context)
    out = loop.run_state.policy.outputs(batch, {"logprob", "entropy", "value"}, None)  # type: ignore[arg-type]
    there = batch["present"]
    torch.testing.assert_close(out["logprob"].detach()[there], batch["behaviour_logprob"][there], atol=1e-5, rtol=1e-5)
    assert out["value"].shape == there.shape == out["entropy"].shape and not bool(batch["truncated"].any())
    stream = loop.context.generator("construction")
    done = build(loop.run_state.policy, loop.run_state.environment, stream=stream).environment
    assert judged(done) == pytest.approx((-batch["reward"].sum(1)).tolist(), rel=1e-5)
    paid = loop.recipe.score[0](batch, loop.context)["reward"].sum(1)
    for row in range(4):
        wanted = 2 * float(done.state["earned"][row]) / done.instance(row).revenue
        assert float(paid[row]) == pytest.approx(wanted, rel=1e-4)
    valued = loop.recipe.credit[0](batch, loop.context)["value"]
    torch.testing.assert_close(valued[there], out["value"].detach()[there])
    assert bool((valued[~there] == 0).all())


def test_what_cannot_be_flown_together_is_refused() -> None:
    with pytest.raises(UserError, match="does not read what changes at the nodes of air-taxis"):
        make_loop(RunConfig(method="am", task="air-taxis", budget="iterations=1"))
    with pytest.raises(UserError, match="fleet-policy flies air taxis and not tsp; use --task air-taxis"):
        make_loop(RunConfig(method="uam-fleet", task="tsp", budget="iterations=1"))
    with pytest.raises(UserError, match=r"fleet-policy.width is 6 but must be even and a multiple of heads \(4\)"):
        make_loop(RunConfig(method="uam-fleet", budget="iterations=1", hyperparameters={"width": "6"}))
    with pytest.raises(UserError, match=r"fleet-policy\.hops has no effect with reads=flat"):
        make_loop(config_of(reads="flat", hops="2"))


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    start_run(config_of(), tmp_path / "whole").run()
    stopped_after(start_run(config_of(), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    weights = [(tmp_path / name / "model" / "policy.safetensors").read_bytes() for name in ("whole", "half")]
    assert weights[0] == weights[1]


def test_profits_are_shown_as_profits(tmp_path: Path, polyrl: Command) -> None:
    start_run(config_of(budget="iterations=1"), tmp_path / "run").run()
    last = read_records(tmp_path / "run")[-1]
    lines = task(TINY).metric.lines
    days = task(TINY).held_out
    costs = [days.references()["greedy"][:4].mean()]
    assert last["eval/gap_greedy"] == pytest.approx(100 * (1 + last["eval/profit"] / float(costs[0])))
    told = polyrl("play", tmp_path / "run", "--episodes", 1).out
    assert "profit of a day, greedily, mean of 4 held-out instances" in told
    assert f"{last['eval/profit']:.4f}" in told and f"{lines['random']:.4f}" in told


# -------------------------------------------------------------------------------------------------------------- solving


def test_days_are_read_as_they_were_written(tmp_path: Path) -> None:
    day = AirTaxis(SEED, 1, 3, 2, parking=4, chargers=2).instance(0)
    write_day(tmp_path / "a.json", day)
    again = read_day(tmp_path / "a.json")
    for name in ("places", "starts", "demand", "fare", "mean_delay", "closed"):
        assert torch.equal(vars(again)[name], vars(day)[name])
    assert (again.parking, again.chargers) == (4, 2) and not bool(again.failed.any() | again.noise.any())
    few = {"vertiports": [[0, 0], [30, 40]], "aircraft": [1], "demand": [[[0, 4], [1, 0]]] * 12}
    (tmp_path / "b.json").write_text(json.dumps(few))
    usual = read_day(tmp_path / "b.json")
    assert float(usual.fare[0, 0, 1]) == pytest.approx(5 + 1.28 * 50) and usual.parking == 10 and usual.chargers == 6


GIVEN = {"vertiports": [[0, 0], [30, 0]], "aircraft": [0, 1], "demand": [[[0, 4], [1, 0]]] * 12}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"planes": 3}, "has 'planes', but a fleet's day has vertiports, aircraft, demand"),
        ({"aircraft": None}, "aircraft of .* must be any numbers"),
        ({"aircraft": [0, 2]}, "aircraft of .* must be whole numbers from 0 to 1"),
        ({"aircraft": []}, "has 2 vertiports and 0 aircraft; from 2 and 1 to 200 can be flown"),
        ({"aircraft": [0] * 11}, r"more aircraft at one vertiport than it has parking for \(10\)"),
        ({"demand": [[0, 4]]}, "demand of .* is 1 x 2 but must be 12 x 2 x 2 numbers"),
        ({"demand": [[[0, 0.5], [1, 0]]] * 12}, "demand of .* must be whole numbers from 0"),
        ({"vertiports": [[0, 0], [1]]}, "vertiports of .* must be any x 2 numbers, in lists of equal lengths"),
        ({"mean_delay": [0, -1]}, "a fare or a mean_delay below 0"),
        ({"closed": [[12, 0, 1]]}, "closes a route of an hour or a vertiport that is not there"),
        ({"demand": [[[0, 4], [1, 0]]] * 11 + [[[0, 4], [1, 2]]]}, "passengers of hour 11 from vertiport 1 to itself"),
        ({"mean_delay": [math.nan, 0]}, "mean_delay of .* has a number that is not finite, or beyond 1,000,000"),
        ({"vertiports": [[0, 0], [1e200, 0]]}, "vertiports of .* has a number that is not finite, or beyond"),
        ({"fare": [[[0, 1e308], [1, 0]]] * 12}, "fare of .* has a number that is not finite, or beyond"),
        ({"parking": True}, "parking of .* is True but must be a whole number"),
        ({"chargers": 0}, "chargers of .* is 0 but must be a whole number from 1 to 200"),
    ],
)
def test_files_that_are_no_day_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**GIVEN, **changed}))
    with pytest.raises(UserError, match=said):
        read_day(tmp_path / "x.json")


def test_files_without_an_entry_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"aircraft": [0]}))
    with pytest.raises(UserError, match="is no fleet's day: it has no 'vertiports'"):
        read_day(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
        read_day(tmp_path / "none.json")
    (tmp_path / "y.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"y.json is no fleet's day: "):
        read_day(tmp_path / "y.json")


def test_solve_writes_a_plan_and_a_picture(tmp_path: Path, polyrl: Command) -> None:
    start_run(config_of(budget="iterations=1"), tmp_path / "run").run()
    write_day(tmp_path / "monday.json", AirTaxis(SEED, 1, 4, 3).instance(0))  # larger than what it was trained on
    told = polyrl("solve", tmp_path / "run", "--instance", tmp_path / "monday.json", "--best", 9000, "--beam", 2).out
    for name in ("this policy, beam 2", "greedy, dollars an hour", "genetic algorithm", "random, mean of 100"):
        assert name in told
    lines = (tmp_path / "run" / "solutions" / "monday.plan").read_text().splitlines()
    plan = [[int(word) for word in line.split()] for line in lines if not line.startswith("#")]
    day = read_day(tmp_path / "monday.json")
    cost = verify(day, plan).cost
    assert cost is not None and f"profit {-cost:.2f}" in lines[0] and f"{-cost:,.0f}" in told
    assert f"{100 * (1 + cost / 9000):+.2f}%" in told
    legs = fly(day, plan)
    assert not isinstance(legs, str)
    picture = (tmp_path / "run" / "solutions" / "monday.svg").read_text()
    assert picture.count('class="span') >= sum(leg.origin != leg.target for leg in legs) > 0 and "aircraft 2" in picture
    with pytest.raises(UserError, match="--symmetries are those of the square"):
        solve(tmp_path / "run", tmp_path / "monday.json", symmetries=True)
    with pytest.raises(UserError, match="--best is x but must be a profit above 0"):
        solve(tmp_path / "run", tmp_path / "monday.json", best="x")


def test_the_picture_has_what_a_plan_says() -> None:
    day = day_of(*APART, starts=(0, 1))
    legs = done_by(day, (0, 1), ())[1]
    chart = drawn_day("x", day, legs).items[1][2]
    assert isinstance(chart, Spans) and chart.domain == (6, 18) and [*chart.names] == ["aircraft 0", "aircraft 1"]
    flight, charge = chart.items[0]
    assert (flight.low, flight.text, flight.look, flight.faint) == (6.25, "1", 1, False)
    assert flight.high == charge.low == pytest.approx(6.25 + 0.60268, abs=1e-5) and charge.faint and charge.look == 1
    assert charge.high == pytest.approx(6.25 + 1.04268, abs=1e-5) and chart.items[1] == []
    assert "6:15 to 6:51: vertiport 0 to 1, 4 passengers" in flight.title


def test_beams_come_to_no_less_than_their_plans_say() -> None:
    network, rows = network_of(TINY), AirTaxis(SEED, 3, 3, 2)
    done = beam_search(network, rows, 3)
    assert judged(done) == pytest.approx((-done.state["earned"]).tolist())


def test_training_earns_more_on_held_out_days(tmp_path: Path) -> None:
    done = package.train(
        "uam-fleet",
        budget="steps=7500",
        seed=SEED,
        out=tmp_path / "run",
        quiet=True,
        options={"evaluations": 1, "eval_episodes": 20},
    )
    line = task("air-taxis").metric.lines["random"]
    reached(done.final["eval/profit"] / line, 1.2)
