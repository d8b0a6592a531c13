"""Job shops without buffers: instances, schedules as handed in, their verifier, and the best of all of them.

A job is a chain of operations, each on a given machine for a whole number of time units. When an operation is done, its
job stays on the machine, which it blocks, until the next operation begins; the last one frees it at once. Occupations
are half-open intervals, so that jobs may change places at one instant (the swap-allowed blocking job shop of Mascis and
Pacciarelli 2002). Machines may shut down at times that nobody knows beforehand: a machine that is down neither
processes nor takes a job, and an interrupted operation goes on where it was.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.tasks.batched import Verdict

LONGEST_SHUTDOWN = 5
"""Time units of a random shutdown."""
MOST_SEQUENCES = 1_500
"""Orders on machines up to which `best_makespans` looks at all of them: three jobs on three machines have 216."""

Shutdowns = tuple[tuple[tuple[int, int], ...], ...]
"""Of each machine the intervals [from, to) in which it is down, in their order; none where empty."""
Schedule = list[list[int]]
"""When each job begins each of its operations."""


@dataclass(frozen=True)
class Shop:
    """An instance.

    Attributes:
        jobs: of each job its operations in their order, (machine, time units); machines are counted from 0.
        shutdowns: when each machine is down; empty where none ever is.
    """

    jobs: tuple[tuple[tuple[int, int], ...], ...]
    shutdowns: Shutdowns = ()

    @property
    def machines(self) -> int:
        """How many there are."""
        return 1 + max(machine for job in self.jobs for machine, _ in job)

    @property
    def work(self) -> int:
        """Time units of all operations."""
        return sum(time for job in self.jobs for _, time in job)

    def down(self, machine: int) -> tuple[tuple[int, int], ...]:
        """The shutdowns of a machine."""
        return self.shutdowns[machine] if self.shutdowns else ()

    def done_at(self, machine: int, begin: int, time: int) -> int:
        """When an operation that begins at `begin` is done: its time units, and the shutdowns on the way."""
        at, missing = begin, time
        for start, end in self.down(machine):
            if end <= at:
                continue
            if start >= at + missing:
                break
            missing -= start - at
            at = end
        return at + missing


def verify(shop: Shop, schedule: Schedule) -> Verdict:
    """The makespan of a schedule, from its beginnings of operations alone."""
    if [len(begun) for begun in schedule] != [len(job) for job in shop.jobs]:
        return Verdict(None, "it does not begin every operation of every job once")
    held = dict[int, list[tuple[int, int, int]]]()  # of each machine: from, to, job
    makespan = 0
    for j, (job, begun) in enumerate(zip(shop.jobs, schedule, strict=True)):
        ready = 0
        for k, ((machine, time), begin) in enumerate(zip(job, begun, strict=True)):
            if begin < ready:
                why = "before the shop opens" if k == 0 else f"and its operation before is done at {ready}"
                return Verdict(None, f"job {j} begins operation {k} at {begin}, {why}")
            for start, end in shop.down(machine):
                if start <= begin < end:
                    return Verdict(None, f"job {j} enters machine {machine} at {begin}, which is down until {end}")
            ready = shop.done_at(machine, begin, time)
            held.setdefault(machine, []).append((begin, begun[k + 1] if k + 1 < len(job) else ready, j))
        makespan = max(makespan, ready)
    for machine, intervals in sorted(held.items()):
        for (_, to, one), (begin, _, other) in itertools.pairwise(sorted(intervals)):
            if begin < to:
                return Verdict(
                    None, f"job {other} enters machine {machine} at {begin}, which job {one} holds until {to}"
                )
    return Verdict(float(makespan))


def random_shutdowns(machines: int, work: int, chance: float, stream: torch.Generator) -> Shutdowns:
    """When each machine is down, about as long as it takes to work for so many time units.

    In every time unit a machine that was up in the one before shuts down with this chance, for 1 to 5 units.
    """
    if not chance:
        return ()
    count = math.ceil(work * chance)
    uniform = torch.rand(machines, count, dtype=torch.float64, generator=stream).clamp(min=1e-300)
    up = 1 + (uniform.log() / math.log1p(-chance)).floor().long()
    long = torch.randint(1, LONGEST_SHUTDOWN + 1, up.shape, generator=stream)
    end = (up + long).cumsum(1)
    return tuple(tuple(zip(a, b, strict=True)) for a, b in zip((end - long).tolist(), end.tolist(), strict=True))


def orders_of(shop: Shop) -> int:
    """In how many ways the machines' operations can be ordered."""
    found = 1
    for operations in _of_machines(shop):
        for count in range(2, len(operations) + 1):
            found *= count
    return found


def _of_machines(shop: Shop) -> list[list[int]]:
    """Numbers of the operations of each machine, counted job after job."""
    found = [list[int]() for _ in range(shop.machines)]
    for number, (machine, _) in enumerate(operation for job in shop.jobs for operation in job):
        found[machine].append(number)
    return found


def exact_makespans(shops: Sequence[Shop]) -> Tensor | None:
    """The least makespans `[S]` int64; None where machines shut down, or orders are too many to look at all of them."""
    if any(any(shop.shutdowns) or orders_of(shop) > MOST_SEQUENCES for shop in shops):
        return None
    return best_makespans(shops)


def best_makespans(shops: Sequence[Shop], *, swaps: bool = True, buffers: bool = False) -> Tensor:
    """The least makespans `[S]` int64, over all orders of operations on machines; shops without shutdowns.

    An order is a graph of least delays between beginnings: an operation's time to the next of its job, and on a machine
    0 from the beginning of what the job before does next. Longest paths are the earliest schedule, and there is none
    where a cycle is longer than 0; cycles of 0 are swaps.

    Args:
        shops: of equally many operations on the same machines, no more orders than `MOST_SEQUENCES` each.
        swaps: whether jobs may change places at one instant.
        buffers: whether jobs that wait stand beside their machines: the plain job shop.
    """
    return torch.tensor([_best_makespan(shop, swaps, buffers) for shop in shops])


def _best_makespan(shop: Shop, swaps: bool, buffers: bool) -> int:
    times = [time for job in shop.jobs for _, time in job]
    count, never = len(times), -(10**9)
    last = set(itertools.accumulate(len(job) for job in shop.jobs))
    ends = [number + 1 in last for number in range(count)]
    # delays are in units of which a time unit has many, so that a least wait without swaps adds up to less than one
    unit = 4 * count
    chain = torch.full((count, count), never)
    chain.fill_diagonal_(0)
    for number in range(count - 1):
        if not ends[number]:
            chain[number, number + 1] = times[number] * unit
    delay = chain[None]
    for of in _of_machines(shop):
        orders = [*itertools.permutations(of)]
        own = torch.full((len(orders), count, count), never)
        for at, order in enumerate(orders):
            for before, after in itertools.pairwise(order):
                if buffers or ends[before]:
                    own[at, before, after] = times[before] * unit
                elif after != before + 1:
                    own[at, before + 1, after] = 0 if swaps else 1
        delay = torch.maximum(delay[:, None], own).flatten(0, 1)
    begin = torch.zeros(len(delay), count, dtype=torch.int64)
    for _ in range(count):
        begin = (begin[:, :, None] + delay).amax(1)
    fits = ((begin[:, :, None] + delay).amax(1) == begin).all(1)  # else there is a cycle longer than 0
    ends_at = (begin // unit + torch.tensor(times)).amax(1)
    return int(ends_at[fits].min())
