"""What stands beside a policy of air taxis: chance, greed, and a genetic algorithm over plans of a whole day."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import State

if TYPE_CHECKING:
    from polyrl.tasks.operations.air_taxis import AirTaxis

POPULATION, GENERATIONS = 50, 40
TOURNAMENT, ELITE, MUTATION = 3, 2, 0.02
"""Plans of which the best becomes a parent, plans that live on, and chance that a vertiport is drawn anew."""


def _flown(rows: AirTaxis, told: Callable[[State, Tensor], Tensor]) -> None:
    """Fly rows to their end by what aircraft are told, of states and masks `[B, N]`."""
    while True:
        moved = rows.advance(rows.state, told(rows.state, rows.allowed(rows.state)))
        rows.state, rows.ended = moved.state, moved.terminated
        if bool(rows.ended.all()):
            return


def flown_at_random(environment: AirTaxis, seed: int = 0) -> AirTaxis:
    """Rows at their end, from where they are: everything that is allowed with equal chances, staying too."""
    rows, stream = environment.copies(1), generator(seed, "random-fleet")
    _flown(rows, lambda s, allowed: torch.multinomial(allowed.float(), 1, generator=stream)[:, 0])
    return rows


def flown_greedily(environment: AirTaxis, by_hour: bool = True) -> AirTaxis:
    """Rows at their end, from where they are: the most dollars for an hour that the aircraft is taken, or in all.

    Staying earns nothing; of equal ones the first.
    """
    rows = environment.copies(1)

    def told(s: State, allowed: Tensor) -> Tensor:
        offers = rows.offers(s)
        worth = offers.profit / offers.hours if by_hour else offers.profit
        return worth.masked_fill(~allowed, -torch.inf).argmax(1)

    _flown(rows, told)
    return rows


def flown_by(environment: AirTaxis, plans: Tensor) -> AirTaxis:
    """Rows at their end, each by a plan, int64 `[B, K, MOST_DECISIONS]`; what is not allowed becomes a stay."""
    rows = environment.copies(1)

    def told(s: State, allowed: Tensor) -> Tensor:
        row, k, _, here = rows.asked(s)
        wanted = plans[row, k, s["told"][row, k].clamp(max=plans.shape[2] - 1)]
        return torch.where(allowed.gather(1, wanted[:, None])[:, 0], wanted, here)

    _flown(rows, told)
    return rows


def evolved(
    environment: AirTaxis, population: int = POPULATION, generations: int = GENERATIONS, seed: int = 0
) -> AirTaxis:
    """Rows at their end, by the best plans that a genetic algorithm finds on the forecast.

    A plan says each aircraft's vertiports. It is judged on the day without luck, and the best one is flown on the day
    as it comes. Parents win tournaments of three; a child has each aircraft's plan up to some point from one of two
    parents, and from the other behind it. The paper's own operators were not read; these are the usual ones.
    """
    days, fleet, most = environment.rows, environment.aircraft, environment.state["plan"].shape[2]
    stream = generator(seed, "evolved-fleet")
    shape = (days, population, fleet, most)
    plans = torch.randint(environment.vertiports, shape, generator=stream)
    trial = environment.forecast().copies(population)
    row = torch.arange(days)[:, None]
    for born in range(generations):
        earned = flown_by(trial, plans.flatten(0, 1)).state["earned"].view(days, population)
        best = earned.argsort(dim=1, descending=True, stable=True)
        if born + 1 == generations:
            return flown_by(environment, plans[row[:, 0], best[:, 0]])
        rivals = torch.randint(population, (days, 2, population, TOURNAMENT), generator=stream)
        scores = earned[row[..., None, None], rivals]
        parents = rivals.gather(3, scores.argmax(3, keepdim=True))[..., 0]
        one, other = plans[row, parents[:, 0]], plans[row, parents[:, 1]]
        cut = torch.randint(most, (days, population, fleet, 1), generator=stream)
        child = torch.where(torch.arange(most) < cut, one, other)
        anew = torch.rand(shape, generator=stream) < MUTATION
        child = torch.where(anew, torch.randint(environment.vertiports, shape, generator=stream), child)
        child[:, :ELITE] = plans[row, best[:, :ELITE]]
        plans = child
    raise ValueError("a genetic algorithm has one generation at least")
