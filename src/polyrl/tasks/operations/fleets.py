"""Days of a fleet of air taxis: what is given, plans as handed in, and their verifier.

Vertiports are places in a square, aircraft fly passengers between them. Times are hours after the day begins, distances
miles, energy kWh, money dollars. Whenever an aircraft is free, it is told its next vertiport; its own means that it
stays for a quarter of an hour, and charges meanwhile. Passengers wait by the hour and by their pair of vertiports, and
those of an hour that nobody flies in that hour are lost.

What chance does is part of the day: routes that the weather closes for an hour, and for each flight of each aircraft
how late it takes off and whether the aircraft fails then. So plans and policies meet the same luck.

Sizes are those of the first author's simulator of the same problem (2022, public) where that has them: four passengers,
74.5 miles an hour, 110 kWh and 50 miles, a tenth of an hour for taking off and for landing, 150 kW, $.20 a kWh. Chosen
here: where all chargers are booked an aircraft waits for the first that will be free; bookings are made at take-off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from polyrl.tasks.batched import Verdict

HOURS = 12
"""Of a day, from 6:00 to 18:00; decisions are made before its end, and what has taken off lands."""
SEATS = 4
SPEED = 74.5
"""Miles an hour."""
BATTERY = 110.0
"""Kilowatt hours, enough for 50 miles."""
PER_MILE = 2.2
"""Kilowatt hours."""
TAKE_OFF = LANDING = 0.1
STAY = 0.25
"""Hours that an aircraft stays which is told so."""
CHARGE_BELOW = 60.0
"""Kilowatt hours up to which an aircraft is charged to the full after landing, before it is free."""
POWER = 150.0
"""Kilowatts of a charger."""
ENERGY_PRICE = 0.2
"""Dollars a kilowatt hour."""
OPERATING = 0.64
"""Dollars a passenger and mile."""
BASE_FARE, MILE_FARE = 5.0, 1.28
"""Dollars of a passenger, and for each mile where nobody waits."""
REPAIR = 0.5
"""Hours that an aircraft which has failed cannot be charged or told anything after its landing."""
DELAY_DEVIATION = 0.05
"""Hours, of how late a take-off is around the vertiport's mean."""
ROUNDING = 1e-9
"""Kilowatt hours that a battery may lack, so that 50 miles are 50 miles."""
MOST_DECISIONS = 64
"""Of one aircraft in a day: none comes back before a fifth of an hour."""

Plan = list[list[int]]
"""The vertiports that each aircraft is told, in their order."""


@dataclass(frozen=True, eq=False)
class Day:
    """An instance: N vertiports, K aircraft, H hours.

    Attributes:
        places: of vertiports, float64 `[N, 2]`, miles.
        starts: at which vertiport each aircraft begins, int64 `[K]`.
        demand: passengers of each hour from a vertiport to another, int64 `[H, N, N]`.
        fare: dollars of a passenger, float64 `[H, N, N]`.
        mean_delay: of take-offs, float64 `[N]`, hours.
        closed: routes that are closed in an hour, bool `[H, N, N]`.
        noise: standard normal number of each flight of each aircraft, float64 `[K, MOST_DECISIONS]`.
        failed: whether the aircraft fails on its flight, bool `[K, MOST_DECISIONS]`.
        parking: aircraft that a vertiport has room for, those on their way to it included.
        chargers: of a vertiport.
    """

    places: Tensor
    starts: Tensor
    demand: Tensor
    fare: Tensor
    mean_delay: Tensor
    closed: Tensor
    noise: Tensor
    failed: Tensor
    parking: int
    chargers: int

    @property
    def revenue(self) -> float:
        """Dollars that all passengers would pay: no profit can be above it."""
        return float((self.demand * self.fare).sum())


@dataclass(frozen=True)
class Leg:
    """What an aircraft does from one decision to the next.

    Attributes:
        aircraft: its number.
        origin, target: vertiports; the same where it stays.
        decided: when it was told.
        landed: when it is on the ground; `decided` where it stays.
        charging, charged: from when to when it is charged; equal where it is not.
        free: when it is told the next time.
        passengers: that it takes.
        profit: dollars.
    """

    aircraft: int
    origin: int
    target: int
    decided: float
    landed: float
    charging: float
    charged: float
    free: float
    passengers: int
    profit: float


def profit_of(passengers: float, fare: float, miles: float) -> float:
    """Dollars of a flight: fares, without what passengers and energy cost."""
    return passengers * fare - OPERATING * miles * passengers - ENERGY_PRICE * (PER_MILE * miles)


def clock(hours: float) -> str:
    """`6.5` -> `12:30`."""
    minutes = round(60 * hours)
    return f"{6 + minutes // 60}:{minutes % 60:02d}"


def fly(day: Day, plan: Plan) -> list[Leg] | str:
    """Fly a plan decision by decision; why it cannot be flown, in a sentence, where it cannot."""
    places, chargers = day.places.tolist(), day.chargers
    count, mean_delay = len(places), day.mean_delay.tolist()
    waiting, fare, closed = day.demand.tolist(), day.fare.tolist(), day.closed.tolist()
    noise, failed = day.noise.tolist(), day.failed.tolist()
    at, fleet = day.starts.tolist(), len(day.starts)
    if len(plan) != fleet:
        return f"it is of {len(plan)} aircraft, and there are {fleet}"
    free, battery, flights, told = [0.0] * fleet, [BATTERY] * fleet, [0] * fleet, [0] * fleet
    booked = [(0.0, 0.0)] * fleet  # of each aircraft, when it was charged last or will be
    legs = list[Leg]()
    while min(free) < HOURS:
        k = free.index(min(free))
        now, here = free[k], at[k]
        who = f"aircraft {k} at {clock(now)}"
        if told[k] == len(plan[k]):
            return f"{who} is told nothing"
        target, hour = plan[k][told[k]], int(now)
        told[k] += 1
        others = [j for j in range(fleet) if j != k]
        if not 0 <= target < count:
            return f"{who} is told vertiport {target}, and there are {count}"
        if target == here:
            end = now + min(STAY, (BATTERY - battery[k]) / POWER)
            busy = [j for j in others if at[j] == here and booked[j][0] < end and booked[j][1] > now]
            charges = end > now and len(busy) < chargers
            if charges:
                battery[k], booked[k] = min(BATTERY, battery[k] + POWER * STAY), (now, end)
            free[k] = now + STAY
            legs.append(Leg(k, here, here, now, now, now, end if charges else now, free[k], 0, 0.0))
            continue
        (x, y), (u, v) = places[here], places[target]
        miles = math.sqrt((x - u) * (x - u) + (y - v) * (y - v))
        energy = PER_MILE * miles
        if energy > battery[k] + ROUNDING:
            return f"{who} has {battery[k]:.1f} kWh, and vertiport {target} is {energy:.1f} kWh away"
        if closed[hour][here][target]:
            return f"{who} is told vertiport {target}, to which the route is closed"
        if sum(at[j] == target for j in others) >= day.parking:
            return f"{who} is told vertiport {target}, which has no room"
        passengers = min(SEATS, waiting[hour][here][target])
        waiting[hour][here][target] -= passengers
        profit = profit_of(passengers, fare[hour][here][target], miles)
        delay = max(0.0, mean_delay[here] + DELAY_DEVIATION * noise[k][flights[k]])
        landed = now + TAKE_OFF + delay + miles / SPEED + LANDING
        ready = landed + REPAIR if failed[k][flights[k]] else landed
        flights[k], battery[k] = flights[k] + 1, battery[k] - energy
        begin = end = ready
        if battery[k] <= CHARGE_BELOW:
            ends = sorted(booked[j][1] for j in others if at[j] == target and booked[j][1] > ready)
            begin = ends[len(ends) - chargers] if len(ends) >= chargers else ready
            end, battery[k] = begin + (BATTERY - battery[k]) / POWER, BATTERY
        at[k], booked[k], free[k] = target, (begin, end), end
        legs.append(Leg(k, here, target, now, landed, begin, end, end, passengers, profit))
    for k, own in enumerate(plan):
        if told[k] < len(own):
            return f"aircraft {k} is told {len(own)} vertiports, and the day ends after {told[k]}"
    return legs


def verify(day: Day, plan: Plan) -> Verdict:
    """Minus the profit of a plan, from the day and the plan alone."""
    legs = fly(day, plan)
    if isinstance(legs, str):
        return Verdict(None, legs)
    return Verdict(-sum(leg.profit for leg in legs))


def airborne(legs: Sequence[Leg], at: float) -> int:
    """How many aircraft are between their decision to fly and their landing."""
    return sum(leg.origin != leg.target and leg.decided <= at < leg.landed for leg in legs)


def on_charge(legs: Sequence[Leg], vertiport: int, at: float) -> int:
    """How many aircraft are charged at a vertiport."""
    return sum(leg.target == vertiport and leg.charging <= at < leg.charged for leg in legs)
