"""What BQ-NCO imitates where not everything is taken: ways that collect prizes, and knapsacks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from polyrl.methods.operations.bq_nco.subproblems import Draw, Subproblems, mirrored
from polyrl.tasks.operations.combinatorial import distances
from polyrl.tasks.operations.knapsack import Knapsack, fitting, seen_items
from polyrl.tasks.operations.orienteering import Orienteering, in_reach, seen_places


class RestsOfRoutes(Subproblems):
    """What remains of `routes` `[count, n]` among `points` `[count, n + 1, 2]` at one of their nodes, either way round.

    All places that were not visited before are left, those of the route and all others.
    """

    what: ClassVar[str] = "routes"
    solution: ClassVar[str] = "routes"

    @staticmethod
    def solved(environment: Orienteering) -> dict[str, Tensor]:
        """What ruin and recreate comes to."""
        s = environment.state
        return {"routes": environment.good_routes(), **{name: s[name] for name in ("points", "prize", "longest")}}

    def drawn(self, count: int, draw: Draw, stream: torch.Generator) -> dict[str, Tensor]:
        """The rest after a random number of the route's places, mirrored where there are `symmetries`."""
        at, number = torch.arange(count), draw(0, len(self.found["routes"]))
        points, prize, longest = (self.found[name][number] for name in ("points", "prize", "longest"))
        route = self.found["routes"][number]
        length = (route > 0).sum(1)
        place = torch.arange(route.shape[1])
        back = (length[:, None] - 1 - place).clamp(min=0)  # what is behind the last place stays there, as 0
        turned = torch.where(place < length[:, None], route.gather(1, back), 0)
        route = torch.where(draw(0, 2, 1).bool(), turned, route)
        done = (torch.rand(count, generator=stream) * length).long()  # places that were visited before
        left = torch.ones(points.shape[:2], dtype=torch.bool).scatter(
            1, torch.where(place < done[:, None], route, 0), 0
        )
        left[:, 0] = False
        before = torch.cat([torch.zeros_like(route[:, :1]), route], 1)  # from the depot on
        here = before[at, done]
        away = distances(points)
        steps = away[at[:, None], before[:, :-1], route] * (place < done[:, None])
        home = torch.zeros_like(here)
        state = {"here": here, "end": home, "left": left, "away": away, "longest": longest}
        state["room"] = longest - steps.sum(1)
        nodes = seen_places(mirrored(points, draw) if self.symmetries else points, prize)
        may = in_reach(state)
        may[:, 0] = length == 0
        return {
            "nodes": nodes,
            "node_mask": torch.ones(nodes.shape[:2], dtype=torch.bool),
            "here": here,
            "end": home,
            "left": left,
            "context": state["room"].float()[:, None],
            "action": route[at, done.clamp(max=route.shape[1] - 1)],
            "action_mask": may,
            "row": number,
        }


class RestsOfKnapsacks(Subproblems):
    """What remains of optimal knapsacks, `taken` bool `[count, n + 1]`, without some of their items.

    Any of those that remain is a right decision, for their order is free: `target` has the same share for each.
    """

    what: ClassVar[str] = "knapsacks"
    solution: ClassVar[str] = "taken"

    @staticmethod
    def solved(environment: Knapsack) -> dict[str, Tensor]:
        """The optimum."""
        s = environment.state
        return {"taken": environment.good_items(), **{name: s[name] for name in ("value", "weight", "capacity")}}

    def drawn(self, count: int, draw: Draw, stream: torch.Generator) -> dict[str, Tensor]:
        """The rest after a random number of items that are drawn among the optimal ones."""
        number = draw(0, len(self.found["taken"]))
        taken, value, weight, capacity = (self.found[x][number] for x in ("taken", "value", "weight", "capacity"))
        many = taken.sum(1, keepdim=True)
        place = torch.rand(taken.shape, generator=stream).masked_fill(~taken, 2).argsort(1).argsort(1)
        gone = place < (torch.rand(count, 1, generator=stream) * many).long()
        fits = capacity - (weight * gone).sum(1)
        left = ~gone
        left[:, 0] = False
        right = taken & ~gone
        may = fitting(left, weight, fits, capacity)
        may[:, 0] = right[:, 0] = many[:, 0] == 0
        nodes, context = seen_items(value, weight, fits)
        nowhere = torch.zeros(count, dtype=torch.int64)
        return {
            "nodes": nodes,
            "node_mask": torch.ones(nodes.shape[:2], dtype=torch.bool),
            "here": nowhere,
            "end": nowhere,
            "left": left,
            "context": context,
            "action": right.int().argmax(1),
            "target": right / right.sum(1, keepdim=True),
            "action_mask": may,
            "row": number,
        }
