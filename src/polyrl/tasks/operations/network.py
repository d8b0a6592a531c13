"""Who supplies whom: a tree of stocking points, with its lead times and costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from polyrl.errors import UserError


@dataclass(frozen=True)
class Network:
    """Stocking points in an order in which every supplier comes before those it supplies; stores come last.

    Attributes:
        supplier: index of each location's supplier; -1 is a source outside that never runs short.
        lead_time: periods from an order to its arrival, at least 1: an order of period t serves demand of t + L.
        holding: cost per unit on hand at the end of a period. Goods in transit cost nothing.
        penalty: cost per unit of demand not met in a period, for each store (0 for the other locations).
        stores: how many of the locations, the last ones, see customers.
        lost: whether unmet demand is lost; otherwise it waits (backlog).
        transit: whether the locations upstream must pass on at once whatever they have.
        ordering_cost: cost of each order above 0, whatever its size. It has no gradient.
    """

    supplier: tuple[int, ...]
    lead_time: tuple[int, ...]
    holding: tuple[float, ...]
    penalty: tuple[float, ...]
    stores: int = 1
    lost: bool = False
    transit: bool = False
    ordering_cost: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            UserError: a lead time below 1, a cost that is negative, or lists of different lengths.
        """
        size = len(self.supplier)
        for name in ("lead_time", "holding", "penalty"):
            if len(getattr(self, name)) != size:
                raise UserError(f"{name} has {len(getattr(self, name))} values for {size} locations.")
        for i, periods in enumerate(self.lead_time):
            if periods < 1:
                raise UserError(f"The lead time of location {i} is {periods} but must be at least 1 period.")
        for name in ("holding", "penalty"):
            for i, cost in enumerate(getattr(self, name)):
                if not 0 <= cost < float("inf"):
                    raise UserError(f"The {name} cost of location {i} is {cost:g} but must be at least 0 and finite.")
        if any(not -1 <= s < i for i, s in enumerate(self.supplier)):
            raise UserError("Every supplier must stand before those that it supplies.")
        if any(s >= self.upstream for s in self.supplier):
            raise UserError("A store cannot supply another location.")

    @property
    def locations(self) -> int:
        """How many stocking points there are, N."""
        return len(self.supplier)

    @property
    def upstream(self) -> int:
        """How many locations, the first ones, supply others and see no customers, E."""
        return self.locations - self.stores

    @property
    def slots(self) -> int:
        """Length of the inventory vector of a location: the longest lead time."""
        return max(self.lead_time)

    @cached_property
    def below(self) -> tuple[tuple[int, ...], ...]:
        """For each location, itself and all locations that it supplies, directly or not: its echelon."""
        members: list[set[int]] = [{i} for i in range(self.locations)]
        for i in reversed(range(self.locations)):
            if self.supplier[i] >= 0:
                members[self.supplier[i]] |= members[i]
        return tuple(tuple(sorted(m)) for m in members)
