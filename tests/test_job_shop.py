"""Job shops without buffers: the verifier, the best of all schedules, the simulator, rules."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from conftest import SEED
from polyrl.errors import UserError
from polyrl.tasks.operations import task
from polyrl.tasks.operations.dispatching import RULES, dispatch, dispatched, dispatched_at_random
from polyrl.tasks.operations.job_shop import JobShop
from polyrl.tasks.operations.shops import Schedule, Shop, best_makespans, orders_of, random_shutdowns, verify

torch.set_num_threads(1)


def shop(*jobs: str) -> Shop:
    """`01 12`: one time unit on machine 0, then two on machine 1."""
    return Shop(tuple(tuple((int(word[0]), int(word[1:])) for word in job.split()) for job in jobs))


SWAP = shop("01 11", "11 01")
ROTATION = shop("01 11", "11 21", "21 01")
THREE = shop("02 13 22", "04 11 23", "23 02 12")
BLOCKED = shop("03 12", "12 04")


def rows_of(given: Shop, copies: int = 1, waiting: bool = False, **settings: int) -> JobShop:
    most = max(len(job) for job in given.jobs)
    return JobShop(
        SEED,
        copies,
        len(given.jobs),
        given.machines,
        waiting=waiting,
        operations=most,
        instances=lambda row, episode: given,
        **settings,
    )


def at_random(environment: JobShop, seed: int = SEED) -> JobShop:
    """Every allowed action with the same chance, waiting too."""
    rows, stream = environment.copies(1), torch.Generator().manual_seed(seed)
    while not bool(rows.ended.all()):
        mask = rows.mask()
        assert mask is not None
        chances = torch.where(rows.ended[:, None], 1.0, mask.double())
        rows.step(torch.multinomial(chances, 1, generator=stream)[:, 0])
    return rows


# ----------------------------------------------------------------------------------------------- schedules and verifier


@pytest.mark.parametrize(
    ("given", "swaps", "none", "buffers"),
    [(SWAP, 2, 4, 2), (ROTATION, 2, None, 2), (THREE, 11, None, 10), (BLOCKED, 7, None, 7)],
)
def test_optima_that_are_known(given: Shop, swaps: int, none: int | None, buffers: int) -> None:
    assert int(best_makespans([given])) == swaps
    assert int(best_makespans([given], buffers=True)) == buffers
    if none is not None:
        assert int(best_makespans([given], swaps=False)) == none


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ([[0, 3], [0, 3]], ""),
        ([[0, 3], [0]], "it does not begin every operation of every job once"),
        ([[0, 2], [0, 3]], "job 0 begins operation 1 at 2, and its operation before is done at 3"),
        ([[0, 3], [-1, 3]], "job 1 begins operation 0 at -1, before the shop opens"),
        ([[0, 3], [0, 4]], "job 0 enters machine 1 at 3, which job 1 holds until 4"),
        ([[0, 3], [0, 2]], "job 1 enters machine 0 at 2, which job 0 holds until 3"),
    ],
)
def test_what_is_infeasible_is_told(schedule: Schedule, said: str) -> None:
    found = verify(BLOCKED, schedule)
    assert found.why == said and found.cost == (None if said else 7)


def test_shutdowns_lengthen_operations_and_let_nobody_in() -> None:
    given = Shop(BLOCKED.jobs, (((2, 4), (6, 7)), ((5, 6),)))
    assert verify(given, [[0, 7], [0, 7]]).cost == 11  # machine 0 works at 0, 1, 4, then from 7 on
    assert "job 1 enters machine 0 at 6, which is down until 7" in verify(given, [[0, 6], [0, 6]]).why
    assert "job 0 enters machine 1 at 5, which is down until 6" in verify(given, [[0, 5], [0, 7]]).why
    assert "its operation before is done at 5" in verify(given, [[0, 4], [0, 7]]).why
    assert [given.done_at(0, 0, time) for time in (1, 2, 3, 4, 5)] == [1, 2, 5, 6, 8]


def plain(given: Shop, buffers: bool) -> int:
    """The optimum by going from time unit to time unit: any set of jobs that fits may move in each; no shutdowns."""
    best, seen = 10**9, set[tuple[object, ...]]()
    start = tuple((-1, 0) for _ in given.jobs)  # place, time units that remain
    frontier = [(0, start)]
    while frontier:
        now, state = frontier.pop()
        if now >= best or (now, state) in seen:
            continue
        seen.add((now, state))
        done = [place + 1 == len(job) and not rest for (place, rest), job in zip(state, given.jobs, strict=True)]
        if all(done):
            best = min(best, now)
            continue
        able = [j for j, (place, rest) in enumerate(state) if not rest and not done[j]]
        for count in range(len(able) + 1):
            for movers in itertools.combinations(able, count):
                after = list(state)
                for j in movers:
                    place = state[j][0] + 1
                    after[j] = (place, given.jobs[j][place][1])
                held = [
                    given.jobs[j][place][0]
                    for j, (place, rest) in enumerate(after)
                    if place >= 0 and (rest or (place + 1 < len(given.jobs[j]) and not buffers))
                ]
                if len(set(held)) == len(held):
                    frontier.append((now + 1, tuple((place, max(rest - 1, 0)) for place, rest in after)))
    return best


def small(seed: int) -> Shop:
    draw = random.Random(seed)
    orders = [draw.sample(range(3), 3) for _ in range(3)]
    return Shop(tuple(tuple((m, draw.randint(1, 4)) for m in order) for order in orders))


def test_the_best_of_all_orders_is_the_best_of_all_schedules() -> None:
    shops = [small(seed) for seed in range(12)]
    assert best_makespans(shops).tolist() == [plain(given, buffers=False) for given in shops]
    assert best_makespans(shops, buffers=True).tolist() == [plain(given, buffers=True) for given in shops]
    assert orders_of(shops[0]) == 6**3 and orders_of(ROTATION) == 2**3
    assert any(a < b for a, b in zip(best_makespans(shops, buffers=True), best_makespans(shops), strict=True))


# ---------------------------------------------------------------------------------------------------------- simulator


@pytest.mark.parametrize(("shutdowns", "waiting"), [(0.0, False), (0.1, False), (0.1, True), (0.0, True)])
def test_ten_thousand_random_schedules_are_feasible(shutdowns: float, waiting: bool) -> None:
    environment = JobShop(SEED, 2_500, 4, 3, shutdowns, waiting)
    done = at_random(environment)
    for row in range(done.rows):
        found = done.verify(done.instance(row), done.solution(row))
        assert found.cost == float(done.state["now"][row]), found.why


def test_rewards_add_up_to_minus_the_makespan_and_waiting_is_counted() -> None:
    environment = JobShop(SEED, 50, 4, 3, 0.1)
    rows, total = environment.copies(1), torch.zeros(50)
    while not bool(rows.ended.all()):
        mask = rows.mask()
        assert mask is not None
        total += rows.step(mask.int().argmax(1)).reward
    assert torch.equal(-total, rows.state["now"].float())
    for row in range(50):
        given, schedule = rows.instance(row), rows.solution(row)
        busy = sum(
            given.done_at(m, at, t) - at
            for job, begun in zip(given.jobs, schedule, strict=True)
            for (m, t), at in zip(job, begun, strict=True)
        )
        ends = sum(
            given.done_at(job[-1][0], begun[-1], job[-1][1]) for job, begun in zip(given.jobs, schedule, strict=True)
        )
        assert int(rows.state["waited"][row]) == ends - busy


def by_units(given: Shop, key: str) -> Schedule:
    """The same rules, time unit by time unit, in plain loops over lists."""
    place, rest = [-1] * len(given.jobs), [0] * len(given.jobs)
    begun: Schedule = [[] for _ in given.jobs]
    since, now = [0] * len(given.jobs), 0

    def held(j: int) -> int:
        over = place[j] + 1 == len(given.jobs[j]) and not rest[j]
        return -1 if place[j] < 0 or over else given.jobs[j][place[j]][0]

    def rank(j: int) -> float:
        ahead = given.jobs[j][place[j] + 1 :]
        work, time = sum(t for _, t in ahead), ahead[0][1]
        return {"FIFO": since[j], "SPT": time, "LPT": -time, "MWKR": -work, "LWKR": work}.get(
            key, len(ahead) if key == "LOR" else -len(ahead)
        )

    while any(place[j] + 1 < len(job) or rest[j] for j, job in enumerate(given.jobs)):
        down = {m for m in range(given.machines) for start, end in given.down(m) if start <= now < end}
        ready = [j for j, job in enumerate(given.jobs) if not rest[j] and place[j] + 1 < len(job)]
        wants = {j: given.jobs[j][place[j] + 1][0] for j in ready}
        occupant = {held(j): j for j in range(len(given.jobs)) if held(j) >= 0}
        picks = {}
        for m in sorted(set(wants.values()) - down):
            picks[min((j for j in ready if wants[j] == m), key=lambda j: (rank(j), j))] = m
        moves = dict(picks)
        while bad := [j for j, m in moves.items() if m in occupant and occupant[m] not in moves]:
            del moves[bad[0]]
        if not moves and not any(rest) and not any(m in down for m in wants.values()):
            way = [ready[0]]
            while wants[way[-1]] in occupant:
                following = occupant[wants[way[-1]]]
                if following in way:
                    way = way[way.index(following) :]
                    break
                way.append(following)
            moves = {j: wants[j] for j in way}
        for j in moves:
            place[j] += 1
            begun[j].append(now)
            rest[j] = given.jobs[j][place[j]][1]
        for j in range(len(given.jobs)):
            if rest[j] and held(j) not in down:
                rest[j] -= 1
                since[j] = now + 1
        now += 1
    return begun


@pytest.mark.parametrize("shutdowns", [0.0, 0.15])
def test_the_simulator_does_what_a_plain_loop_over_time_does(shutdowns: float) -> None:
    environment = JobShop(SEED, 8, 5, 4, shutdowns)
    for name, rule in RULES.items():
        done = dispatch(environment, rule)
        for row in range(8):
            assert done.solution(row) == by_units(done.instance(row), name), (name, row)


def test_swaps_and_rotations_go_through_and_no_cycle_is_a_deadlock() -> None:
    for given, best in ((SWAP, 2), (ROTATION, 2), (BLOCKED, 7)):
        done = dispatch(rows_of(given), RULES["FIFO"])
        assert float(done.state["now"]) == best == verify(given, done.solution(0)).cost


def test_waiting_reaches_every_optimum_and_dispatching_without_it_does_not() -> None:
    """All allowed choices of 3x3 shops, by a walk over states."""

    def reached(given: Shop, waiting: bool) -> int:
        environment, best, seen = rows_of(given, waiting=waiting), 10**9, set[object]()
        frontier = [environment.save_rows(torch.tensor([0]))]
        while frontier:
            state = {name: x for name, x in frontier.pop().items() if name not in ("episode", "ended")}
            key = tuple(tuple(state[name].flatten().tolist()) for name in ("now", "place", "until", "picked", "asked"))
            if key in seen or int(state["now"]) >= best:
                continue
            seen.add(key)
            for action in environment.allowed(state)[0].nonzero()[:, 0].tolist():
                moved = environment.advance(state, torch.tensor([action]))
                if bool(moved.terminated):
                    best = min(best, int(moved.state["now"]))
                else:
                    frontier.append(moved.state)
        return best

    shops = [small(seed) for seed in range(2)]
    best = best_makespans(shops).tolist()
    assert [reached(given, waiting=True) for given in shops] == best
    without = [reached(given, waiting=False) for given in shops]
    assert all(a >= b for a, b in zip(without, best, strict=True))


def test_shutdowns_are_those_of_the_row_whatever_is_done_and_as_frequent_as_is_said() -> None:
    one, other = JobShop(SEED, 3, 4, 3, 0.1), JobShop(SEED, 5, 4, 3, 0.1)
    assert [one.instance(row) for row in range(3)] == [other.instance(row) for row in range(3)]
    done = dispatch(one, RULES["LPT"])
    assert [done.instance(row) for row in range(3)] == [one.instance(row) for row in range(3)]
    assert one.instance(0).shutdowns != one.instance(1).shutdowns
    found = random_shutdowns(50, 40_000, 0.1, torch.Generator().manual_seed(SEED))
    up = [b[0] - a[1] for of in found for a, b in itertools.pairwise(of)]
    long = [end - start for of in found for start, end in of]
    assert min(up) == 1 and sum(up) / len(up) == pytest.approx(10, rel=0.02)
    assert {*long} == {1, 2, 3, 4, 5} and sum(long) / len(long) == pytest.approx(3, rel=0.02)
    assert random_shutdowns(2, 100, 0.0, torch.Generator()) == ()


def test_what_is_shown_is_what_a_schedule_says() -> None:
    """In the middle of the time of BLOCKED: job 1 blocks machine 1 at time 2, job 0 is processed until 3."""
    given = Shop((*BLOCKED.jobs, ((1, 3), (0, 1)), ((1, 5), (0, 2))))
    rows = rows_of(given)
    seen = [rows.observe()["node_state"][0]]  # type: ignore[index]
    assert seen[0][:, 3].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]  # all first operations are at their doors
    rows.step(torch.tensor([0]))  # machine 0 was asked, at time 0 even where it has no choice
    assert int(rows.state["now"]) == 0 and rows.mask()[0].nonzero()[:, 0].tolist() == [2, 4, 6]  # type: ignore[index]
    moved = rows.observe()["node_state"][0]  # type: ignore[index]
    assert moved[:, 8].tolist() == [0, 1, 1, 0, 1, 0, 1, 0] and moved[0, 10] == 1 and moved[2, 10] == 0
    rows.step(torch.tensor([2]))
    assert int(rows.state["now"]) == 3 and rows.solution(0) == [[0], [0], [], []]
    shown, mean = rows.observe(), (5 + 6 + 4 + 7) / 8
    state = shown["node_state"][0]  # type: ignore[index]
    assert state[2, 2] == 1 and state[3, 3] == 1 and state[3, 4] == pytest.approx(1 / mean)  # done at 2, blocks
    assert state[4, 4] == pytest.approx(3 / mean) and state[0, 2] == 1 and state[1, 3] == 1
    assert shown["left"][0].tolist() == [True] * 8  # type: ignore[index]


# -------------------------------------------------------------------------------------------------------------- rules


def test_the_rules_are_what_they_are_called() -> None:
    given = shop("09 11 21", "01 15 29", "05 19")
    first = {}
    for name, rule in RULES.items():
        keys = rule(rows_of(given).state)[0]
        first[name] = int(keys.argmin())
    assert first == {"FIFO": 0, "SPT": 1, "LPT": 0, "MWKR": 1, "LWKR": 0, "MOR": 0, "LOR": 2}


def test_lines_are_in_their_order_and_above_the_optimum() -> None:
    environment = JobShop(SEED, 40, 3, 3)
    lines = environment.references()
    assert [*lines] == ["optimum", "random", *RULES, "best rule of each"]
    best = lines["optimum"]
    for name, costs in lines.items():
        assert bool((costs >= best).all()), name
    assert torch.equal(torch.stack([lines[rule] for rule in RULES]).amin(0), lines["best rule of each"])
    side_by_side = dispatched(environment)
    for rule in ("SPT", "MOR"):
        assert torch.equal(side_by_side[rule], dispatch(environment, RULES[rule]).state["now"].double())
    assert "optimum" not in JobShop(SEED, 4, 3, 3, 0.1).references()


def test_being_asked_again_a_unit_later_changes_nothing_but_for_what_answers_otherwise() -> None:
    environment = JobShop(SEED, 30, 5, 4)
    again = environment.copies(1)
    again.asks_again = True
    for rule in RULES.values():
        assert torch.equal(dispatch(environment, rule).state["begun"], dispatch(again, rule).state["begun"])
    often = float(dispatched_at_random(environment.copies(20)).mean())
    seldom = float(at_random(environment.copies(20)).state["now"].double().mean())
    assert often < seldom


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("job-shop(machines=1)", r"job-shop\.machines is 1 but must be from 2 to 50"),
        ("job-shop(n=51)", r"job-shop\.n is 51 but must be from 3 to 50"),
        ("job-shop(shutdowns=0.6)", r"job-shop\.shutdowns is 0\.6 but must be from 0 to 0\.5"),
    ],
)
def test_shops_that_make_no_sense_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(spec)
