"""Fleets of air taxis: verifier, simulator, all plans of a small day, symmetries, what stands beside."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SEED
from polyrl.errors import UserError
from polyrl.tasks.batched import State
from polyrl.tasks.operations import task
from polyrl.tasks.operations.air_taxis import AirTaxis
from polyrl.tasks.operations.fleet_rules import evolved, flown_at_random, flown_by, flown_greedily
from polyrl.tasks.operations.fleets import (
    HOURS,
    MOST_DECISIONS,
    Day,
    Leg,
    Plan,
    airborne,
    clock,
    fly,
    on_charge,
    verify,
)

torch.set_num_threads(1)


def day_of(*places: tuple[float, float], starts: tuple[int, ...] = (0,), **given: Any) -> Day:
    """Four passengers everywhere in every hour for $50, nothing by chance."""
    n, k = len(places), len(starts)
    usual: dict[str, Any] = {
        "demand": torch.full((HOURS, n, n), 4),
        "fare": torch.full((HOURS, n, n), 50.0, dtype=torch.float64),
        "mean_delay": torch.zeros(n, dtype=torch.float64),
        "closed": torch.zeros(HOURS, n, n, dtype=torch.bool),
        "noise": torch.zeros(k, MOST_DECISIONS, dtype=torch.float64),
        "failed": torch.zeros(k, MOST_DECISIONS, dtype=torch.bool),
        "parking": 10,
        "chargers": 6,
    }
    where = torch.tensor(places, dtype=torch.float64)
    return Day(places=where, starts=torch.tensor(starts), **{**usual, **given})


def rows_of(day: Day, rows: int = 1) -> AirTaxis:
    return AirTaxis(
        SEED,
        rows,
        len(day.places),
        len(day.starts),
        parking=day.parking,
        chargers=day.chargers,
        instances=lambda row, episode: day,
    )


def done_by(day: Day, *first: tuple[int, ...]) -> tuple[Plan, list[Leg]]:
    """Plans of the vertiports that are given, then stays to the day's end; and their legs."""
    plan = [list(own) for own in first]
    while isinstance(legs := fly(day, plan), str):
        assert legs.endswith("is told nothing"), legs
        k = int(legs.split()[1])
        at = plan[k][-1] if plan[k] else int(day.starts[k])
        plan[k].append(at)
    return plan, legs


APART = ((0.0, 0.0), (30.0, 0.0))

# ------------------------------------------------------------------------------------------------------- plans by hand


def test_a_flight_of_thirty_miles_by_hand() -> None:
    fare = torch.full((HOURS, 2, 2), 45 + 0.64 * 30, dtype=torch.float64)  # the 2022 fare, operating costs on top
    day = day_of(*APART, fare=fare)
    leg = done_by(day, (1,))[1][0]
    assert leg.landed == pytest.approx(0.1 + 30 / 74.5 + 0.1)
    assert leg.landed == pytest.approx(0.60268, abs=1e-5)
    assert leg.charged - leg.charging == pytest.approx(66 / 150) and leg.free == pytest.approx(1.04268, abs=1e-5)
    assert leg.passengers == 4 and leg.profit == pytest.approx(180 - 13.2)
    offers = rows_of(day).offers(rows_of(day).state)
    assert offers.hours[0].tolist() == pytest.approx([0.25, leg.free]) and offers.passengers[0].tolist() == [0, 4]
    assert offers.profit[0].tolist() == pytest.approx([0, 166.8])


def test_delays_and_failures_take_time_and_late_hours_have_their_own_passengers() -> None:
    failed = torch.zeros(1, MOST_DECISIONS, dtype=torch.bool)
    failed[0, 1] = True
    noise = torch.zeros(1, MOST_DECISIONS, dtype=torch.float64)
    noise[0, 0], noise[0, 1] = 2.0, -3.0
    demand = torch.full((HOURS, 2, 2), 4)
    demand[0, 0, 1], demand[1, 1, 0] = 3, 9
    day = day_of(*APART, failed=failed, noise=noise, demand=demand, mean_delay=torch.tensor([0.1, 0.1]).double())
    legs = done_by(day, (1, 0))[1]
    late = 0.1 + 0.05 * 2  # the second take-off would be early, and is on time
    assert legs[0].landed == pytest.approx(0.2 + late + 30 / 74.5) and legs[0].passengers == 3
    assert legs[0].free == pytest.approx(1.04268 + late, abs=1e-5)
    assert legs[1].landed == pytest.approx(legs[0].free + 0.2 + 30 / 74.5) and legs[1].passengers == 4
    assert legs[1].charging == pytest.approx(legs[1].landed + 0.5)


@pytest.mark.parametrize(
    ("battery", "miles", "reached"), [(110, 50, True), (110, 50.01, False), (60, 27.27, True), (60, 27.28, False)]
)
def test_the_battery_reaches_as_far_as_it_does(battery: float, miles: float, reached: bool) -> None:
    rows = rows_of(day_of((0, 0), (miles, 0)))
    rows.state["battery"] = torch.full((1, 1), battery, dtype=torch.float64)
    assert rows.allowed(rows.state).tolist() == [[True, reached]]
    rows.state["battery"] -= 0.01
    assert rows.allowed(rows.state).tolist() == [[True, False]]


def test_a_stay_charges_and_a_full_battery_does_not() -> None:
    day = day_of((0, 0), (10, 0))
    plan, legs = done_by(day, (1, 1, 1))
    assert [leg.charged - leg.charging for leg in legs[:3]] == pytest.approx([0, 22 / 150, 0])
    rows = rows_of(day)
    for target, battery in zip(plan[0][:3], (88, 110, 110), strict=True):
        rows.step(torch.tensor([target]))
        assert float(rows.state["battery"][0, 0]) == pytest.approx(battery)


def test_whoever_finds_all_chargers_booked_waits_for_the_first_that_is_free() -> None:
    day = day_of((0, 0), (30, 0), (0, 40), starts=(0, 0, 2), chargers=1)
    legs = done_by(day, (1,), (1,), (2, 2, 2, 2))[1]
    first, second = (leg for leg in legs if leg.target == 1 and leg.origin == 0)
    assert second.charging == first.charged and second.charged == pytest.approx(first.charged + 0.44)
    assert max(on_charge(legs, 1, leg.charging) for leg in legs) == 1


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ([[1]], "it is of 1 aircraft, and there are 2"),
        ([[3], []], "aircraft 0 at 6:00 is told vertiport 3, and there are 3"),
        ([[2], []], "aircraft 0 at 6:00 has 110.0 kWh, and vertiport 2 is 132.0 kWh away"),
        ([[1], [1]], "aircraft 1 at 6:00 is told vertiport 1, which has no room"),
        ([[0, 0, 0, 0, 1], [1]], "aircraft 0 at 7:00 is told vertiport 1, to which the route is closed"),
        ([[0, 0], [0]], "aircraft 1 at 6:15 is told nothing"),
        ([[0] * 49, [0] * 48], "aircraft 0 is told 49 vertiports, and the day ends after 48"),
    ],
)
def test_plans_that_cannot_be_flown_are_told(plan: Plan, said: str) -> None:
    closed = torch.zeros(HOURS, 3, 3, dtype=torch.bool)
    closed[1, 0, 1] = True
    day = day_of((0, 0), (30, 0), (0, 60), starts=(0, 0), parking=1, closed=closed)
    assert verify(day, plan).why == said and verify(day, plan).cost is None
    assert verify(day, [[0] * 48, [0] * 48]).cost == 0


def test_clocks() -> None:
    assert [clock(x) for x in (0, 0.25, 6.51, 11.999)] == ["6:00", "6:15", "12:31", "18:00"]


# ----------------------------------------------------------------------------------------------------------- simulator


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (10_000, {"vertiports": 3, "aircraft": 3, "parking": 2, "chargers": 1, "closures": 0.2, "failures": 0.1}),
        (200, {"vertiports": 5, "aircraft": 9, "parking": 3, "chargers": 2}),
        (100, {}),
    ],
)
def test_random_days_can_be_flown_and_earn_what_the_verifier_says(rows: int, settings: dict[str, Any]) -> None:
    done = flown_at_random(AirTaxis(SEED, rows, **settings), SEED)
    for row in range(rows):
        found = verify(done.instance(row), done.solution(row))
        assert found.cost is not None, found.why
        assert found.cost == pytest.approx(-float(done.state["earned"][row]), rel=1e-12)


def test_aircraft_and_passengers_are_conserved() -> None:
    done = flown_at_random(AirTaxis(SEED, 40, 3, 5, parking=2, chargers=1, failures=0.2), SEED)
    waited = 0
    for row in range(done.rows):
        day, plan = done.instance(row), done.solution(row)
        legs = fly(day, plan)
        assert not isinstance(legs, str)
        for now in sorted({leg.decided for leg in legs} | {leg.landed for leg in legs}):
            flying, charged = airborne(legs, now), [on_charge(legs, i, now) for i in range(3)]
            latest = {leg.aircraft: leg for leg in legs if leg.decided <= now}
            ground = [leg for leg in latest.values() if leg.landed <= now]
            parked = [leg for leg in ground if not leg.charging <= now < leg.charged]
            assert len(parked) + sum(charged) + flying == 5
            assert max(charged) <= 1
            heading = [sum(leg.target == i for leg in latest.values()) for i in range(3)]
            assert max(heading) <= 2
            waited += sum(leg.charging > leg.landed + 0.51 for leg in ground)
        served = torch.zeros_like(day.demand)
        for leg in legs:
            served[int(leg.decided), leg.origin, leg.target] += leg.passengers
        assert torch.equal(served + done.state["waiting"][row], day.demand)
        assert served.sum() > 0 and -found_cost(day, plan) <= day.revenue
    assert waited > 0  # chargers were short


def found_cost(day: Day, plan: Plan) -> float:
    cost = verify(day, plan).cost
    assert cost is not None
    return cost


def test_a_day_is_a_function_of_its_seed_row_and_episode_whatever_is_flown() -> None:
    few, many, other = AirTaxis(SEED, 2), AirTaxis(SEED, 5), AirTaxis(SEED + 1, 2)
    before = many.instance(1)
    for name, x in vars(few.instance(1)).items():
        assert not isinstance(x, Tensor) or torch.equal(x, vars(before)[name])
    assert not torch.equal(other.instance(1).demand, before.demand)
    for done in (flown_greedily(many), flown_at_random(many)):
        assert all(torch.equal(x, vars(done.instance(1))[n]) for n, x in vars(before).items() if isinstance(x, Tensor))
    few.reset(torch.tensor([1]))
    assert not torch.equal(few.instance(1).noise, before.noise)


def test_demand_has_its_peaks_and_fares_rise_with_it() -> None:
    days = AirTaxis(SEED, 400)
    demand = days.state["demand"].double().mean(0)
    to_hot, from_hot = demand[:, 1:, 0].mean(1), demand[:, 0, 1:].mean(1)
    peak = 4 + 12 * torch.tensor(-0.125).exp()  # half an hour from 9:00 and from 16:30, where slots have their middle
    assert to_hot[2].item() == pytest.approx(float(peak), abs=0.5) and from_hot[10] == pytest.approx(16, abs=0.5)
    assert from_hot[2].item() == pytest.approx(4, abs=0.3) and to_hot[10] == pytest.approx(4, abs=0.3)
    assert bool((demand.diagonal(dim1=1, dim2=2) == 0).all())
    day = days.instance(0)
    miles = (day.places[:, None] - day.places).norm(dim=-1)
    most = int(day.demand.max())
    h, i, j = (day.demand == most).nonzero()[0].tolist()
    assert float(day.fare[h, i, j]) == pytest.approx(5 + 1.28 * float(miles[i, j]) * 1.5)


def test_means_are_those_of_the_description() -> None:
    days = AirTaxis(SEED, 60)
    # measured there, in NumPy, over twenty days: $4,725 at random and $6,534 greedily
    assert float(flown_at_random(days).state["earned"].mean()) == pytest.approx(4725, rel=0.1)
    assert float(flown_greedily(days).state["earned"].mean()) == pytest.approx(6534, rel=0.08)


def midway(environment: AirTaxis, steps: int) -> AirTaxis:
    rows, stream = environment.copies(1), torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        rows.step(torch.multinomial(rows.allowed(rows.state).float(), 1, generator=stream)[:, 0])
    return rows


FLEET = (
    "at",
    "starts",
    "free",
    "landed",
    "charging",
    "charged",
    "battery",
    "flights",
    "told",
    "plan",
    "noise",
    "failed",
)


def reordered(rows: AirTaxis, aircraft: Tensor, vertiports: Tensor) -> AirTaxis:
    """The same days with other numbers of aircraft and vertiports: number i is then what `vertiports[i]` was."""
    twin = rows.copies(1)
    s: State = {name: x[:, aircraft] if name in FLEET else x for name, x in rows.state.items()}
    new = vertiports.argsort()
    for name in ("at", "starts"):
        s[name] = new[s[name]]
    s["plan"] = torch.where(s["plan"] >= 0, new[s["plan"].clamp(min=0).long()].short(), s["plan"])
    for name in ("places", "mean_delay", "nodes"):
        s[name] = s[name][:, vertiports]
    s["miles"] = s["miles"][:, vertiports][:, :, vertiports]
    for name in ("demand", "fare", "closed", "waiting"):
        s[name] = s[name][:, :, vertiports][:, :, :, vertiports]
    twin.state = s
    return twin


def test_numbers_of_aircraft_and_vertiports_mean_nothing() -> None:
    one = midway(AirTaxis(SEED, 30, 4, 5, parking=2, chargers=1), 23)
    aircraft, vertiports = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    two = reordered(one, aircraft, vertiports)
    new, stream = vertiports.argsort(), torch.Generator().manual_seed(SEED)
    for _ in range(20):
        assert torch.equal(two.allowed(two.state), one.allowed(one.state)[:, vertiports])
        action = torch.multinomial(one.allowed(one.state).float(), 1, generator=stream)[:, 0]
        paid = [rows.step(a).reward for rows, a in ((one, action), (two, new[action]))]
        torch.testing.assert_close(*paid)
        again = reordered(one, aircraft, vertiports)
        for name, x in two.state.items():
            torch.testing.assert_close(x, again.state[name])


# ---------------------------------------------------------------------------------------------------------- brute force


def evening(seed: int) -> tuple[Day, Plan]:
    """A small day with one or two aircraft, and stays until three quarters of an hour before its end."""
    days = AirTaxis(seed, 1, 3, 2, parking=1, chargers=1, closures=0.2, failures=0.2)
    return days.instance(0), [[int(start)] * 45 for start in days.state["starts"][0]]


def all_plans(day: Day, plan: Plan) -> dict[str, float]:
    """Every plan that begins so, and what it earns, by the verifier alone."""
    legs = fly(day, plan)
    if not isinstance(legs, str):
        return {str(plan): sum(leg.profit for leg in legs)}
    if not legs.endswith("is told nothing"):
        return {}
    k = int(legs.split()[1])
    found = {}
    for target in range(len(day.places)):
        found |= all_plans(day, [[*own, target] if j == k else own for j, own in enumerate(plan)])
    return found


def test_the_simulator_reaches_all_plans_that_can_be_flown_and_no_other() -> None:
    sizes = []
    for seed in range(SEED, SEED + 4):
        day, begun = evening(seed)
        rows = rows_of(day)
        for _ in range(90):
            rows.step(rows.state["at"].gather(1, rows.asked(rows.state)[1][:, None])[:, 0])
        found = dict[str, float]()
        while rows.rows:
            row, action = rows.mask().nonzero(as_tuple=True)  # type: ignore[union-attr]
            rows = rows.part(row)
            rows.step(action)
            for ended in rows.ended.nonzero()[:, 0].tolist():
                found[str(rows.solution(ended))] = float(rows.state["earned"][ended])
            rows = rows.part((~rows.ended).nonzero()[:, 0])
        assert found == pytest.approx(all_plans(day, begun), rel=1e-12)
        sizes.append(len(found))
        for chosen in (flown_greedily(rows_of(day)), flown_at_random(rows_of(day))):
            assert verify(day, chosen.solution(0)).cost is not None
    assert max(sizes) > 40


# --------------------------------------------------------------------------------------------------- what stands beside


def test_greed_takes_what_a_plain_look_at_each_vertiport_takes() -> None:
    days = AirTaxis(SEED, 60, closures=0.3, failures=0.0, delay=0.0).forecast()
    worth: list[Callable[[Leg], float]] = [lambda leg: leg.profit / (leg.free - leg.decided), lambda leg: leg.profit]
    for by_hour, value in zip((True, False), worth, strict=True):
        done = flown_greedily(days, by_hour)
        for row in range(days.rows):
            day = days.instance(row)
            alone = {name: vars(day)[name][:1] for name in ("starts", "noise", "failed")}
            day, first = dataclasses.replace(day, **alone), {}
            for target in range(4):
                why = fly(day, [[target]])
                assert isinstance(why, str)
                if why.endswith("is told nothing"):  # else the first flight cannot be flown
                    first[target] = value(done_by(day, (target,))[1][0])
            assert done.solution(row)[0][0] == max(first, key=lambda target: first[target])


def test_plans_are_flown_as_they_are_and_stay_where_they_cannot() -> None:
    days = AirTaxis(SEED, 20)
    done = flown_at_random(days)
    plans = done.state["plan"].long().clamp(min=0)
    again = flown_by(days, plans)
    assert torch.equal(again.state["earned"], done.state["earned"])
    full = flown_by(rows_of(day_of((0, 0), (60, 0))), torch.ones(1, 1, MOST_DECISIONS, dtype=torch.int64))
    assert full.solution(0) == [[0] * 48]


def test_evolution_never_loses_its_best_and_finds_the_best_plan_of_a_small_day() -> None:
    days = AirTaxis(SEED, 4, 3, 2).forecast()
    earned = [evolved(days, 16, generations).state["earned"] for generations in (1, 2, 4, 8)]
    assert all(bool((a <= b).all()) for a, b in itertools.pairwise(earned)) and bool((earned[0] < earned[-1]).any())
    demand = torch.zeros(HOURS, 2, 2, dtype=torch.int64)
    demand[0, 0, 1] = 4
    closed = torch.ones(HOURS, 2, 2, dtype=torch.bool)
    closed[0] = False
    day = day_of((0, 0), (49, 0), demand=demand, closed=closed)
    best = -found_cost(day, done_by(day, (1,))[0])  # with the only passengers of the day, and no way back
    assert float(evolved(rows_of(day), 20, 5).state["earned"]) == pytest.approx(best) and best > 0


def test_evolution_is_judged_on_the_forecast_and_flown_on_the_day() -> None:
    days = AirTaxis(SEED, 6, 3, 2, closures=0.5)
    forecast = days.forecast()
    assert not bool(forecast.state["closed"].any() | forecast.state["failed"].any())
    assert torch.equal(forecast.state["demand"], days.state["demand"])
    best = evolved(forecast, 10, 2)
    plans = best.state["plan"].long().clamp(min=0)
    assert bool((evolved(days, 10, 2).state["earned"] <= best.state["earned"] + 1e-9).float().mean() > 0.5)
    assert bool((flown_by(days, plans).state["earned"] != best.state["earned"]).any())


# ---------------------------------------------------------------------------------------------------------------- task


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("air-taxis(n=2)", "air-taxis.n is 2 but must be from 3 to 50"),
        ("air-taxis(aircraft=0)", "air-taxis.aircraft is 0 but must be from 1 to 200"),
        ("air-taxis(chargers=0)", "air-taxis.chargers is 0 but must be from 1 to 200"),
        ("air-taxis(closures=2)", "air-taxis.closures is 2.* but must be from 0 to 1"),
        ("air-taxis(delay=-1)", "air-taxis.delay is -1.* but must be from 0 to 1"),
        ("air-taxis(parking=1)", "has 6 aircraft, and 4 vertiports have room for 4; raise parking or n"),
        ("air-taxis(aircraft=x)", "aircraft"),
    ],
)
def test_sizes_and_chances_that_make_no_day_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(spec)


def test_the_metric_is_a_profit_beside_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyrl.tasks.operations.fleet_rules.GENERATIONS", 2)
    found = task("air-taxis(n=3,aircraft=2,failures=0)")
    assert found.describe() == "2 air taxis among 3 vertiports, a day from 6:00 to 18:00"
    metric = dataclasses.replace(found).metric
    assert metric.key == "eval/profit" and metric.higher_is_better and metric.unit == "$"
    assert [*metric.lines] == ["greedy", "genetic algorithm", "random"]
    assert metric.lines["greedy"] > metric.lines["random"] > 0
