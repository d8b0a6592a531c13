"""The batched, differentiable inventory simulator.

Order of events in period t, which fixes every closed form in `optima`:

1. the policy sees the inventories before demand, and all locations order at once;
2. demand hits the stores: cost = penalty * unmet + holding * left over; unmet demand is lost or waits (an order may
   cost something by itself, whatever its size);
3. every supplier ships what was ordered from it, and pays holding for what it keeps; goods in transit cost nothing;
4. the pipelines move up: what arrives joins what is on hand, and the order enters at slot L - 1.

Inventories are `[B, N, slots]`: slot 0 is on hand (negative: waiting customers), slot k arrives k periods from now.
Gradients flow through every operation; at kinks they are sub-gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polyrl.tasks.operations.network import Network

Policy = Callable[[Tensor], Tensor]
"""Inventories `[B, N, slots]` -> orders `[B, N]`, units, at least 0."""


@dataclass(frozen=True)
class Rollout:
    """A simulated batch.

    Attributes:
        cost: `[B, T]` cost of each period, summed over locations, per store.
        inventory: `[B, T, N, slots]` before each period's order, if it was recorded.
        order: `[B, T, N]` what was shipped to each location, if it was recorded.
    """

    cost: Tensor
    inventory: Tensor | None = None
    order: Tensor | None = None


@dataclass(frozen=True)
class Simulator:
    """Runs policies on a `Network`. Stateless: everything that moves is an argument."""

    network: Network

    @cached_property
    def _holding(self) -> Tensor:
        return torch.tensor(self.network.holding)

    @cached_property
    def _penalty(self) -> Tensor:
        return torch.tensor(self.network.penalty)

    @cached_property
    def _supplies(self) -> Tensor:
        """`[N, E]`: 1 where the row's location orders from the column's."""
        found = torch.zeros(self.network.locations, self.network.upstream)
        for i, s in enumerate(self.network.supplier):
            if s >= 0:
                found[i, s] = 1
        return found

    @cached_property
    def _inside(self) -> Tensor:
        """`[N]`: 1 where the supplier is one of the locations."""
        return self._supplies.sum(1)

    @cached_property
    def _entry(self) -> Tensor | None:
        """`[N, slots]`: 1 at the slot where a location's order enters; None if that is the last for all of them."""
        if len(set(self.network.lead_time)) == 1:
            return None
        return torch.eye(self.network.slots)[[t - 1 for t in self.network.lead_time]]

    def shipped(self, order: Tensor, on_hand: Tensor) -> Tensor:
        """What suppliers ship of what is ordered: all of it, or proportional shares where they are short.

        A network in transit ships everything that is on hand, in proportion to the orders (equal shares if all are 0).

        Args:
            order: `[B, N]` units, at least 0.
            on_hand: `[B, E]` units at the supplying locations.

        Returns:
            `[B, N]` units.
        """
        if not self.network.upstream:
            return order
        asked = order @ self._supplies
        if self.network.transit:
            blank = 1e-6 * (asked <= 0).to(order.dtype) @ self._supplies.T
            order = order + blank
            share = on_hand / (order @ self._supplies)
        else:
            share = (on_hand / asked.clamp(min=1e-9)).clamp(max=1)
        return order * (share @ self._supplies.T + (1 - self._inside))

    def step(self, inventory: Tensor, order: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """One period after the orders are known and feasible.

        Args:
            inventory: `[B, N, slots]` units before demand.
            order: `[B, N]` units, as `shipped` gives them.
            demand: `[B, n]` units, of the stores.

        Returns:
            the inventories of the next period `[B, N, slots]`, and what each location has at the end of this one
            `[B, N]`, before unmet demand is forgotten: negative where demand was not met.
        """
        leaves = demand if not self.network.upstream else torch.cat([order @ self._supplies, demand], 1)
        end = inventory[..., 0] - leaves
        kept = end.clamp(min=0) if self.network.lost else end
        if self._entry is None:
            if self.network.slots == 1:
                return (kept + order)[..., None], end
            moved = [(kept + inventory[..., 1])[..., None], inventory[..., 2:], order[..., None]]
            return torch.cat(moved, -1), end
        moved = [(kept + inventory[..., 1])[..., None], inventory[..., 2:], torch.zeros_like(kept)[..., None]]
        return torch.cat(moved, -1) + order[..., None] * self._entry, end

    def cost(self, end: Tensor) -> Tensor:
        """Cost of what is left or missing at the end of periods: `[..., N]` units -> `[...]`, per store."""
        each = torch.maximum(self._holding * end, -self._penalty * end)
        return each.sum(-1) / self.network.stores

    def run(
        self,
        policy: Policy,
        inventory: Tensor,
        demand: Tensor,
        *,
        integer: bool = False,
        record: bool = False,
    ) -> Rollout:
        """Unroll a policy; gradients flow from every cost to the policy's parameters, nothing is detached.

        Args:
            policy: inventories `[B, N, slots]` -> orders `[B, N]`; negative orders count as 0.
            inventory: `[B, N, slots]` units at the start.
            demand: `[B, T, n]` units.
            integer: round the inventories at the start and all orders to whole units.
            record: keep inventories and orders as well.
        """
        if integer:
            inventory = inventory.round()
        ends, states, orders = [], [], []
        fixed = self.network.ordering_cost
        for wanted in demand.unbind(1):
            order = policy(inventory)
            if integer:
                order = order.round()
            order = self.shipped(order.clamp(min=0), inventory[:, : self.network.upstream, 0])
            if record:
                states.append(inventory)
            if record or fixed:
                orders.append(order)
            inventory, end = self.step(inventory, order, wanted)
            ends.append(end)
        cost = self.cost(torch.stack(ends, 1))
        if fixed:
            cost = cost + fixed * (torch.stack(orders, 1) > 0).sum(-1) / self.network.stores
        if record:
            return Rollout(cost, torch.stack(states, 1), torch.stack(orders, 1))
        return Rollout(cost)
