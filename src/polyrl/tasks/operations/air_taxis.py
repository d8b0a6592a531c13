"""A fleet of air taxis as a batched environment that goes from decision to decision.

The aircraft that is free first is asked for its next vertiport. What it costs, how long it takes and what waits is in
`polyrl.tasks.operations.fleets`, whose verifier flies a plan by itself. The reference simulator is this project's, with
the distributions of its description of arXiv:2401.04851: that paper's own were not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, Moved, Observation, Padded, State, Verdict
from polyrl.tasks.operations.combinatorial import CombinatorialTask, ConstructionEnvironment, Instances
from polyrl.tasks.operations.fleet_rules import evolved, flown_at_random, flown_greedily
from polyrl.tasks.operations.fleets import (
    BASE_FARE,
    BATTERY,
    CHARGE_BELOW,
    DELAY_DEVIATION,
    ENERGY_PRICE,
    HOURS,
    LANDING,
    MILE_FARE,
    MOST_DECISIONS,
    OPERATING,
    PER_MILE,
    POWER,
    REPAIR,
    ROUNDING,
    SEATS,
    SPEED,
    STAY,
    TAKE_OFF,
    Day,
    Plan,
    verify,
)

SIDE = 50.0
"""Miles of the square."""
SERIES = 4
"""Numbers of a vertiport in each hour: passengers from it and to it, and their fares."""


@dataclass(frozen=True)
class Offers:
    """What each vertiport offers the aircraft that is asked, `[B, N]` each.

    Attributes:
        passengers: whom it would take there, float64.
        profit: dollars, 0 where it stays, float64.
        hours: from now until it would be free if nothing happened by chance and a charger were there, float64.
    """

    passengers: Tensor
    profit: Tensor
    hours: Tensor


class AirTaxis(ConstructionEnvironment):
    """Days of K aircraft among N vertiports; a row is a day with its weather and its luck.

    Actions are vertiports, int64 `[B]`; the one where the aircraft is means to stay. Nodes are vertiports: x and y,
    whether it is one of the hot ones, its mean delay (hours), and for each of the twelve hours (4 x 12 numbers)
    passengers from it, to it, and the fares of both (dollars in sum). What changes there (`node_state`, `[B, N, 12]`):
    whether the aircraft that is asked is there; aircraft there or on their way, over the parking limit; charging, over
    the chargers; on their way, over the parking limit; miles over 50; passengers who would fly there now, over 4; what
    that would earn (hundreds of dollars); how long it would take (hours); whether the route is closed; passengers who
    wait there now (twenties), and in the hour of arrival, and their fares then (thousands of dollars).

    `context` has the time over 12 and of each aircraft seven numbers: x and y over 50 of where it is or will land,
    battery over the full one, hours until it is free, whether it is in the air, is charged, and is asked. `here` is the
    vertiport of the aircraft that is asked; `left` are all, `end` is 0.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state"})
    node_features: ClassVar[int] = 4 + SERIES * HOURS
    aircraft_features: ClassVar[int] = 7
    state_features: ClassVar[int] = 12

    def __init__(
        self,
        seed: int,
        rows: int,
        vertiports: int = 4,
        aircraft: int = 6,
        parking: int = 10,
        chargers: int = 6,
        delay: float = 0.1,
        closures: float = 0.05,
        failures: float = 0.005,
        instances: Instances | None = None,
    ):
        """`instances` gives the `Day` of a row's episode, of these sizes; None draws random ones."""
        self.vertiports, self.aircraft, self.parking, self.chargers = vertiports, aircraft, parking, chargers
        self.delay, self.closures, self.failures, self.instances = delay, closures, failures, instances
        super().__init__(seed, rows)

    # ----------------------------------------------------------------------------------------------------- instances

    def begin(self, row: int, episode: int) -> State:
        """All aircraft at 6:00 where they start, with full batteries."""
        day = self._drawn(row, episode) if self.instances is None else self.instances(row, episode)
        miles = (day.places[:, None] - day.places).square().sum(-1).sqrt()
        fleet, none = len(day.starts), torch.zeros(len(day.starts), dtype=torch.float64)
        paid = day.demand * day.fare
        series = torch.stack([day.demand.sum(2), day.demand.sum(1), paid.sum(2), paid.sum(1)], -1)  # [H, N, 4]
        hot = torch.arange(len(day.places)) < hot_ones(len(day.places))
        static = torch.cat([day.places, hot[:, None], day.mean_delay[:, None], series.transpose(0, 1).flatten(1)], 1)
        return {
            "nodes": static.float(),
            "places": day.places,
            "miles": miles,
            "starts": day.starts,
            "demand": day.demand,
            "fare": day.fare,
            "mean_delay": day.mean_delay,
            "closed": day.closed,
            "noise": day.noise,
            "failed": day.failed,
            "waiting": day.demand.int(),
            "at": day.starts,
            "free": none,
            "landed": none,
            "charging": none,
            "charged": none,
            "battery": none + BATTERY,
            "flights": torch.zeros(fleet, dtype=torch.int64),
            "told": torch.zeros(fleet, dtype=torch.int64),
            "plan": torch.full((fleet, MOST_DECISIONS), -1, dtype=torch.int16),
            "earned": torch.zeros((), dtype=torch.float64),
        }

    def _drawn(self, row: int, episode: int) -> Day:
        """Commuters between a hot part of the vertiports and the rest, fares that rise with demand, and luck."""
        stream = generator(self.seed, "fleet-demand", row, episode)
        n, k = self.vertiports, self.aircraft
        places = SIDE * torch.rand(n, 2, dtype=torch.float64, generator=stream)
        hot = torch.arange(n) < hot_ones(n)
        hour = 6.5 + torch.arange(HOURS, dtype=torch.float64)
        morning, evening = (torch.exp(-((hour - peak) ** 2) / 2)[:, None, None] for peak in (9.0, 16.5))
        to_hot, from_hot, among = ~hot[:, None] & hot, hot[:, None] & ~hot, hot[:, None] & hot
        mean = 4 + 12 * (morning * to_hot + evening * from_hot + (morning + evening) * among)
        mean = mean * ~torch.eye(n, dtype=torch.bool)
        demand = torch.poisson(mean, generator=stream)
        miles = (places[:, None] - places).square().sum(-1).sqrt()
        fare = BASE_FARE + MILE_FARE * miles * (1 + 0.5 * demand / demand.amax().clamp(min=1))
        starts = torch.randperm(n, generator=stream)[torch.arange(k) % n]
        mean_delay = self.delay * torch.rand(n, dtype=torch.float64, generator=stream)
        luck = generator(self.seed, "fleet-luck", row, episode)
        shape = (k, MOST_DECISIONS)
        return Day(
            places=places,
            starts=starts,
            demand=demand.long(),
            fare=fare,
            mean_delay=mean_delay,
            closed=torch.rand(HOURS, n, n, generator=luck) < self.closures,
            noise=torch.randn(shape, dtype=torch.float64, generator=luck),
            failed=torch.rand(shape, generator=luck) < self.failures,
            parking=self.parking,
            chargers=self.chargers,
        )

    # -------------------------------------------------------------------------------------------------------- a step

    @staticmethod
    def asked(s: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows, the aircraft that is free first, its time and its vertiport, `[B]` each; of several the first."""
        now, k = s["free"].min(1)
        return torch.arange(len(k)), k, now, _of(s["at"], k)

    def offers(self, s: State) -> Offers:
        """What each vertiport offers the aircraft that is asked."""
        rows, k, now, here = self.asked(s)
        hour = now.long().clamp(max=HOURS - 1)
        miles, stays = s["miles"][rows, here], torch.arange(self.vertiports) == here[:, None]
        passengers = s["waiting"][rows, hour, here].clamp(max=SEATS).double()
        profit = passengers * s["fare"][rows, hour, here] - OPERATING * miles * passengers
        profit = profit - ENERGY_PRICE * (PER_MILE * miles)
        ready = TAKE_OFF + _of(s["mean_delay"], here)[:, None] + miles / SPEED + LANDING
        left = _of(s["battery"], k)[:, None] - PER_MILE * miles
        hours = ready + torch.where(left <= CHARGE_BELOW, (BATTERY - left) / POWER, 0.0)
        passengers, profit = passengers.masked_fill(stays, 0), profit.masked_fill(stays, 0)
        return Offers(passengers, profit, hours.masked_fill(stays, STAY))

    def allowed(self, state: State) -> Tensor:
        """Where there is room, that the battery reaches and to which the route is open; and to stay."""
        rows, k, now, here = self.asked(state)
        hour = now.long().clamp(max=HOURS - 1)
        reached = PER_MILE * state["miles"][rows, here] <= _of(state["battery"], k)[:, None] + ROUNDING
        room = self._count(state["at"]) < self.parking
        stays = torch.arange(self.vertiports) == here[:, None]
        return (reached & room & ~state["closed"][rows, hour, here]) | stays

    def _count(self, at: Tensor, which: Tensor | None = None) -> Tensor:
        """How many aircraft `[B, N]` are at or on their way to each vertiport, of those in bool `[B, K]`."""
        found = at[:, None] == torch.arange(self.vertiports)[:, None]
        return (found if which is None else found & which[:, None]).sum(2)

    def advance(self, state: State, action: Tensor) -> Moved:
        """Send the aircraft that is asked, or let it stay. Rows whose day is over stay as they are."""
        s = dict(state)
        rows, k, now, here = self.asked(s)
        going = now < HOURS
        hour = now.long().clamp(max=HOURS - 1)
        flies, stays = going & (action != here), going & (action == here)
        others = torch.arange(s["free"].shape[1]) != k[:, None]
        battery, miles = _of(s["battery"], k), _of(s["miles"][rows, here], action)

        # a stay: charged for as long as a charger is free
        until = now + ((BATTERY - battery) / POWER).clamp(max=STAY)
        busy = others & (s["at"] == here[:, None]) & (s["charging"] < until[:, None]) & (s["charged"] > now[:, None])
        charges = stays & (until > now) & (busy.sum(1) < self.chargers)

        # a flight
        waiting = s["waiting"][rows, hour, here, action]
        passengers = torch.where(flies, waiting.clamp(max=SEATS), 0)
        profit = passengers * s["fare"][rows, hour, here, action] - OPERATING * miles * passengers
        profit = torch.where(flies, profit - ENERGY_PRICE * (PER_MILE * miles), 0.0)
        number = _of(s["flights"], k)
        late = (_of(s["mean_delay"], here) + DELAY_DEVIATION * s["noise"][rows, k, number]).clamp(min=0)
        landed = now + TAKE_OFF + late + miles / SPEED + LANDING
        ready = torch.where(s["failed"][rows, k, number], landed + REPAIR, landed)
        left = battery - PER_MILE * miles
        fills = left <= CHARGE_BELOW
        # the booked chargers there: it waits until one fewer than there are is in use
        booked = others & (s["at"] == action[:, None]) & (s["charged"] > ready[:, None])
        begin = ready
        if self.chargers < booked.shape[1]:
            ends = torch.where(booked, s["charged"], -torch.inf).topk(self.chargers, 1).values[:, -1]
            begin = torch.where(fills & (booked.sum(1) >= self.chargers), ends, ready)
        end = torch.where(fills, begin + (BATTERY - left) / POWER, ready)

        def put(name: str, flying: Tensor, staying: Tensor) -> None:
            after = torch.where(flies, flying, torch.where(stays, staying, _of(s[name], k)))
            s[name] = s[name].scatter(1, k[:, None], after[:, None])

        stayed = (battery + POWER * STAY).clamp(max=BATTERY)
        put("battery", torch.where(fills, BATTERY, left), torch.where(charges, stayed, battery))
        put("charging", begin, torch.where(charges, now, _of(s["charging"], k)))
        put("charged", end, torch.where(charges, until, _of(s["charged"], k)))
        put("landed", landed, _of(s["landed"], k))
        put("free", end, now + STAY)
        put("at", action, here)
        s["flights"] = s["flights"].scatter(1, k[:, None], (number + flies)[:, None])
        s["waiting"] = s["waiting"].index_put((rows, hour, here, action), waiting - passengers)
        told = _of(s["told"], k)
        s["plan"] = s["plan"].index_put((rows, k, told), torch.where(going, action.short(), s["plan"][rows, k, told]))
        s["told"] = s["told"].scatter(1, k[:, None], (told + going)[:, None])
        s["earned"] = s["earned"] + profit
        return Moved(s, profit.float(), s["free"].amin(1) >= HOURS)

    # ------------------------------------------------------------------------------------------------ what is shown

    def show(self, state: State) -> Observation:
        """Vertiports, what changes at them, and the fleet."""
        rows, k, now, here = self.asked(state)
        offers, later = self.offers(state), now[:, None]
        air = state["landed"] > later
        charging = (state["charging"] <= later) & (state["charged"] > later)
        hour = now.long().clamp(max=HOURS - 1)
        arrival = (later + offers.hours).long().clamp(max=HOURS - 1)
        each = torch.arange(self.vertiports)
        there = state["waiting"][rows[:, None], arrival, each]  # [B, N, N]
        paid = (there * state["fare"][rows[:, None], arrival, each]).sum(2)
        numbers = [
            each == here[:, None],
            self._count(state["at"]) / self.parking,
            self._count(state["at"], charging) / self.chargers,
            self._count(state["at"], air) / self.parking,
            state["miles"][rows, here] / SIDE,
            offers.passengers / SEATS,
            offers.profit / 100,
            offers.hours,
            state["closed"][rows, hour, here],
            state["waiting"][rows, hour].sum(2) / 20,
            there.sum(2) / 20,
            paid / 1000,
        ]
        fleet = state["free"].shape[1]
        of_aircraft = [
            *(state["places"][rows[:, None], state["at"]] / SIDE).unbind(-1),
            state["battery"] / BATTERY,
            state["free"] - later,
            air,
            charging,
            torch.arange(fleet) == k[:, None],
        ]
        crafts = torch.stack([x.float() for x in of_aircraft], -1)
        present = torch.ones(len(rows), self.vertiports, dtype=torch.bool)
        return {
            "nodes": Padded(state["nodes"], present),
            "here": here,
            "end": torch.zeros_like(here),
            "left": present,
            "context": torch.cat([(later / HOURS).float(), crafts.flatten(1)], 1),
            "node_state": torch.stack([x.float() for x in numbers], -1),
        }

    # ------------------------------------------------------------------------------------------------ as handed out

    def instance(self, row: int) -> Day:
        """The row's day, with its luck."""
        s = {name: x[row] for name, x in self.state.items()}
        names = ("places", "starts", "demand", "fare", "mean_delay", "closed", "noise", "failed")
        return Day(**{name: s[name] for name in names}, parking=self.parking, chargers=self.chargers)

    def solution(self, row: int) -> Plan:
        """The vertiports that each aircraft was told."""
        plan, told = self.state["plan"][row].tolist(), self.state["told"][row].tolist()
        return [own[:count] for own, count in zip(plan, told, strict=True)]

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """Minus the profit of a plan (`polyrl.tasks.operations.fleets`)."""
        return verify(instance, solution)

    def forecast(self) -> AirTaxis:
        """The same rows without luck: mean delays, no closed routes, no failures."""
        twin = self.copies(1)
        s = twin.state
        none = {name: torch.zeros_like(s[name]) for name in ("closed", "noise", "failed")}
        twin.state = {**s, **none}
        return twin

    def references(self) -> dict[str, Tensor]:
        """Minus profits: of the most dollars an hour at each decision, of a genetic algorithm's plans, of chance."""
        return {
            "greedy": -flown_greedily(self).state["earned"],
            "genetic algorithm": -evolved(self).state["earned"],
            "random": -flown_at_random(self).state["earned"],
        }


def _of(x: Tensor, k: Tensor) -> Tensor:
    """One of each row, `[B]`, of `[B, K]`."""
    return x.gather(1, k[:, None])[:, 0]


def hot_ones(vertiports: int) -> int:
    """How many vertiports, the first ones, commuters fly to in the morning and from in the evening."""
    return max(1, vertiports // 4)


@dataclass(frozen=True)
class AirTaxiTask(CombinatorialTask):
    """The most profit of a day with a fleet of air taxis among n vertiports.

    Attributes:
        n: vertiports.
        aircraft: of the fleet.
        parking: aircraft that a vertiport has room for.
        chargers: of a vertiport.
        delay: the largest mean delay of a take-off, hours.
        closures: chance that a route is closed in an hour.
        failures: chance that an aircraft fails on a flight.
    """

    name: ClassVar[str] = "air-taxis"
    label: ClassVar[str] = "profit of a day"
    unit: ClassVar[str] = "$"
    maximizes: ClassVar[bool] = True
    held_out_instances: ClassVar[int] = 20
    most: ClassVar[int] = 50
    budget: ClassVar[str] = "steps=100000"
    kind: ClassVar[type[ConstructionEnvironment]] = AirTaxis

    n: int = 4
    aircraft: int = 6
    parking: int = 10
    chargers: int = 6
    delay: float = 0.1
    closures: float = 0.05
    failures: float = 0.005

    def __post_init__(self) -> None:
        """Refuse sizes and chances that make no day."""
        super().__post_init__()
        for name, least, most in (
            ("aircraft", 1, 200),
            ("parking", 1, 200),
            ("chargers", 1, 200),
            ("delay", 0, 1),
            ("closures", 0, 1),
            ("failures", 0, 1),
        ):
            value = vars(self)[name]
            if not least <= value <= most:
                raise UserError(f"{self.name}.{name} is {value} but must be from {least} to {most}.")
        if self.aircraft > self.n * self.parking:
            raise UserError(
                f"{self.name} has {self.aircraft} aircraft, and {self.n} vertiports have room for "
                f"{self.n * self.parking}; raise parking or n."
            )

    @property
    def measure(self) -> str:
        """Profit."""
        return "profit"

    def environment(self, seed: int, rows: int) -> AirTaxis:
        """Rows of days."""
        sizes = (self.n, self.aircraft, self.parking, self.chargers)
        return AirTaxis(seed, rows, *sizes, self.delay, self.closures, self.failures)

    def describe(self) -> str:
        """How many vertiports and aircraft there are."""
        return f"{self.aircraft} air taxis among {self.n} vertiports, a day from 6:00 to 18:00"
