"""Dispatching rules of job shops: which of the jobs that want a machine comes next, by one number of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.batched import State

if TYPE_CHECKING:
    from polyrl.tasks.operations.job_shop import JobShop


def _next_time(s: State) -> Tensor:
    following = (s["place"] + 1).clamp(max=s["time"].shape[2] - 1)
    return s["time"].gather(2, following[..., None])[..., 0]


def _work_left(s: State) -> Tensor:
    ahead = torch.arange(s["time"].shape[2]) > s["place"][..., None]
    return (s["time"] * ahead).sum(2)


def _operations_left(s: State) -> Tensor:
    return s["count"] - s["place"] - 1


RULES: dict[str, Callable[[State], Tensor]] = {
    "FIFO": lambda s: s["until"],
    "SPT": _next_time,
    "LPT": lambda s: -_next_time(s),
    "MWKR": lambda s: -_work_left(s),
    "LWKR": _work_left,
    "MOR": lambda s: -_operations_left(s),
    "LOR": _operations_left,
}
"""Keys `[B, J]` of jobs by the rule's usual name; the least comes next, of equal ones the job of the lowest number.

First in, first out; shortest and longest processing time; most and least work remaining; most and least operations
remaining. None of them waits.
"""


def dispatch(environment: JobShop, key: Callable[[State], Tensor]) -> JobShop:
    """Rows at their end, from their present states, by keys `[B, J]`; `environment` stays as it is."""
    rows = environment.copies(1)
    _run(rows, key)
    return rows


def _run(rows: JobShop, key: Callable[[State], Tensor]) -> None:
    jobs = rows.jobs * rows.operations
    while not bool(rows.ended.all()):
        may = rows.allowed(rows.state)[:, :jobs].view(rows.rows, rows.jobs, -1).any(2)
        job = key(rows.state).double().masked_fill(~may, torch.inf).argmin(1)
        place = (rows.state["place"].gather(1, job[:, None])[:, 0] + 1).clamp(max=rows.operations - 1)
        rows.step(job * rows.operations + place)


def dispatched(environment: JobShop) -> dict[str, Tensor]:
    """Makespans `[B]` float64 of each rule, all of them side by side."""
    rows, count = environment.copies(len(RULES)), len(RULES)

    def key(s: State) -> Tensor:
        keys = [rule({name: x[k::count] for name, x in s.items()}) for k, rule in enumerate(RULES.values())]
        return torch.stack(keys, 1).flatten(0, 1)

    _run(rows, key)
    return {rule: rows.state["now"][k::count].double() for k, rule in enumerate(RULES)}


def dispatched_at_random(environment: JobShop, seed: int = 0) -> Tensor:
    """Makespans `[B]` float64 of choices with equal chances, drawn anew in every time unit until they can be made."""
    rows = environment.copies(1)
    rows.asks_again = True
    stream = generator(seed, "random-dispatch")
    _run(rows, lambda s: torch.rand(s["place"].shape, generator=stream))
    return rows.state["now"].double()
