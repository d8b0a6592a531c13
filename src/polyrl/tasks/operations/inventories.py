"""The inventory simulator as a batched environment: one period a step, with its known half before demand.

`Simulator.run` unrolls a policy over whole traces, which is what training wants; here a policy may be anything that
answers period by period, rows can be saved and restarted, and a written plan of orders is checked by a plain loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import Access, BatchedEnvironment, Moved, Observation, State, Verdict

if TYPE_CHECKING:
    from polyrl.tasks.operations.network import Network
    from polyrl.tasks.operations.settings import InventoryTask

SLACK = 1e-4
"""Share by which a plan may ship more than there is, for rounding."""


class InventoryEnvironment(BatchedEnvironment):
    """Inventories over a number of periods, which end all at once.

    Actions are orders, float32 `[B, N]` units; suppliers ship what they have of them. Shown are the `inventory` before
    the order, `[B, N, slots]`, and the `period`, `[B]`. The reward is minus the period's cost, per store.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state", "differentiable", "post-decision"})

    def __init__(self, task: InventoryTask, seed: int, rows: int, periods: int):
        self.task, self.periods = task, periods
        super().__init__(seed, rows)

    def begin(self, row: int, episode: int) -> State:
        """The inventories at the start, all demand that is to come, and no orders."""
        demand, start = self.task.drawn(generator(self.seed, "inventories", row, episode), 1, self.periods)
        return {
            "inventory": start[0],
            "start": start[0],
            "demand": demand[0],
            "period": torch.tensor(0),
            "shipped": torch.zeros(self.periods, self.task.network.locations),
        }

    def _shipped(self, state: State, action: Tensor) -> Tensor:
        inventory = state["inventory"]
        return self.task.simulator.shipped(action.clamp(min=0), inventory[:, : self.task.network.upstream, 0])

    def advance(self, state: State, action: Tensor) -> Moved:
        """One period: what is ordered is shipped, demand comes, pipelines move up."""
        at, period = torch.arange(len(action)), state["period"]
        order = self._shipped(state, action)
        inventory, end = self.task.simulator.step(state["inventory"], order, state["demand"][at, period])
        network = self.task.network
        cost = self.task.simulator.cost(end) + network.ordering_cost * (order > 0).sum(-1) / network.stores
        shipped = state["shipped"].index_put((at, period), order)
        after = {**state, "inventory": inventory, "period": period + 1, "shipped": shipped}
        return Moved(after, -cost, period + 1 == self.periods)

    def post_decision(self, state: State, action: Tensor) -> State:
        """Inventories after the orders are shipped and before demand: `post` `[B, N, slots + 1]`.

        Slot 0 is what can be sold in this period, slot k arrives k periods from now.
        """
        order, network = self._shipped(state, action), self.task.network
        post = torch.nn.functional.pad(state["inventory"], (0, 1))
        post = post + order[..., None] * torch.eye(network.slots + 1)[list(network.lead_time)]
        sent = torch.zeros_like(order)
        for location, supplier in enumerate(network.supplier):
            if supplier >= 0:
                sent = sent.index_add(1, torch.tensor([supplier]), order[:, location : location + 1])
        return {**state, "post": torch.cat([post[..., :1] - sent[..., None], post[..., 1:]], -1)}

    def show(self, state: State) -> Observation:
        """Inventories and the period."""
        return {"inventory": state["inventory"], "period": state["period"]}

    def instance(self, row: int) -> tuple[Tensor, Tensor]:
        """Inventories at the start `[N, slots]` and demand `[T, n]` of a row."""
        return self.state["start"][row], self.state["demand"][row]

    def solution(self, row: int) -> list[list[float]]:
        """What was shipped to each location in each period so far."""
        done = int(self.state["period"][row])
        found: list[list[float]] = self.state["shipped"][row, :done].tolist()
        return found

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """Mean cost per period and store of a plan, by a plain loop over periods and locations."""
        start, demand = (x.tolist() for x in instance)
        network = self.task.network
        if len(solution) != len(demand):
            return Verdict(None, f"the plan has {len(solution)} periods for {len(demand)} of demand")
        pipeline, total = [list(slots) for slots in start], 0.0
        for period, (plan, wanted) in enumerate(zip(solution, demand, strict=True)):
            if len(plan) != network.locations:
                return Verdict(None, f"period {period} has {len(plan)} orders for {network.locations} locations")
            if why := _infeasible(network, pipeline, plan, period):
                return Verdict(None, why)
            total += _period_cost(network, pipeline, plan, wanted)
        return Verdict(total / len(demand))

    def lines(self) -> dict[str, float]:
        """What is known of the setting: costs in the long run, not of these rows."""
        return self.task.lines()


def _infeasible(network: Network, pipeline: list[list[float]], plan: list[float], period: int) -> str:
    """Why the orders of a period cannot be shipped; empty where they can."""
    for location, units in enumerate(plan):
        if not math.isfinite(units) or (units < 0 and not network.transit):
            return f"location {location} orders {units:g} in period {period}"
    for supplier in range(network.upstream):
        sent = sum(units for units, s in zip(plan, network.supplier, strict=True) if s == supplier)
        there = pipeline[supplier][0]
        slack = SLACK * (1 + abs(there))
        if sent > there + slack:
            return f"location {supplier} ships {sent:g} of {there:g} in period {period}"
        if network.transit and sent < there - slack:
            return f"location {supplier} may keep nothing, and ships {sent:g} of {there:g} in period {period}"
    return ""


def _period_cost(network: Network, pipeline: list[list[float]], plan: list[float], wanted: list[float]) -> float:
    """Cost of a period per store; moves the pipelines up, in place."""
    paid = 0.0
    leaving = [0.0] * network.upstream + list(wanted)
    for units, supplier in zip(plan, network.supplier, strict=True):
        if supplier >= 0:
            leaving[supplier] += units
        paid += network.ordering_cost if units > 0 else 0.0
    for location, slots in enumerate(pipeline):
        end = slots[0] - leaving[location]
        paid += network.holding[location] * end if end > 0 else network.penalty[location] * -end
        kept = max(end, 0.0) if network.lost else end
        coming = [*slots[1:], 0.0]
        coming[network.lead_time[location] - 1] += plan[location]
        coming[0] += kept
        slots[:] = coming
    return paid / network.stores
