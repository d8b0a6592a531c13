"""The interrupting swap-allowed blocking job shop as a batched environment that goes from event to event.

At every instant at which a machine can change its occupant, it is asked which of the jobs that want it comes next;
first those that are free, or whose occupant has got its next machine. Then the largest set of these moves that fits
together is made at once: a job moves if its machine is free or is left by a job that moves, so that chains, swaps and
rotations go through and nothing collides. A machine with one job to choose from is not asked, but at time 0. Where
nothing is processed, nobody waits for a machine that is down and no choice can be carried out, the jobs on the way from
the first waiting one to the machine it wants, to its occupant, and so on, move: a cycle, or a chain to a free machine.
So no shop comes to a deadlock.

The simulator of arXiv:2302.02506 was not found. Chosen here: nothing is forced while a job waits for a machine that is
down; a shutdown by itself is no event, because nothing can be begun by it.
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
from polyrl.tasks.operations.dispatching import dispatched, dispatched_at_random
from polyrl.tasks.operations.shops import Schedule, Shop, exact_makespans, random_shutdowns, verify

SHORTEST, LONGEST = 5, 99
"""Time units of random operations."""
FAR = 2**30
"""A time that never comes."""
UNASKED, WAITS = -2, -1
"""In `picked`: a machine that was not asked yet, and one that takes nobody for now."""


class JobShop(ConstructionEnvironment):
    """Shops of at most J jobs with at most K operations each, on M machines; a row is a shop and its shutdowns.

    Actions are operations, int64 `[B]`: j * K + k is operation k of job j, J * K is to wait, where that is offered.
    Nodes are operations: the number of the job, of the machine, place in the job and time units; the node of waiting
    has -1, -1, 0, 0. What changes at them (`node_state`, `[B, N, 11]`, times in mean times of an operation): whether
    its job has not come to it, is processed in it, blocks a machine (told at the operation before and the next one), or
    waits at its door; for how long its job waits; what remains to be processed; whether its machine is down; what
    remains to be processed on its machine; whether its machine is asked; whether its machine and its job were given a
    move at this instant. `left` are operations that are not done, or hold their machine; `here` and `end` are 0.

    Its state has `waited`, int64 `[B]`, the time units that all jobs have waited, blocking ones too.

    Attributes:
        asks_again: whether machines whose choice could not be carried out are asked again a time unit later, and not at
            the next event. For what always answers the same both are one.
    """

    access: ClassVar[frozenset[Access]] = frozenset({"reset-to-state"})
    node_features: ClassVar[int] = 4
    state_features: ClassVar[int] = 11
    counts: ClassVar[tuple[str, ...]] = ("waited",)

    def __init__(
        self,
        seed: int,
        rows: int,
        jobs: int = 6,
        machines: int = 6,
        shutdown_probability: float = 0.0,
        waiting: bool = False,
        operations: int | None = None,
        instances: Instances | None = None,
    ):
        """`instances` gives the `Shop` of a row's episode, which fits into the sizes; None draws random ones."""
        self.jobs, self.machines, self.operations = jobs, machines, operations or machines
        self.asks_again = False
        self.shutdown_probability, self.waiting, self.instances = shutdown_probability, waiting, instances
        super().__init__(seed, rows)

    # ----------------------------------------------------------------------------------------------------- instances

    def begin(self, row: int, episode: int) -> State:
        """All jobs at their first doors, all machines up."""
        shape = (self.jobs, self.operations)
        machine, time = torch.full(shape, -1), torch.zeros(shape, dtype=torch.int64)
        drawn = self._drawn(row, episode) if self.instances is None else self.instances(row, episode)
        for j, job in enumerate(drawn.jobs):
            machine[j, : len(job)] = torch.tensor([m for m, _ in job])
            time[j, : len(job)] = torch.tensor([t for _, t in job])
        most = max((len(of) for of in drawn.shutdowns), default=0)
        down = torch.full((self.machines, max(most, 1), 2), FAR)
        for m, of in enumerate(drawn.shutdowns):
            down[m, : len(of)] = torch.tensor(of).view(-1, 2)
        lost = (down[..., 1] - down[..., 0]).cumsum(1)
        state = {
            "machine": machine,
            "time": time,
            "count": (machine >= 0).sum(1),
            "down_from": down[..., 0].int(),
            "lost": torch.cat([torch.zeros_like(lost[:, :1]), lost], 1).int(),
            "down_until": torch.zeros(self.machines, dtype=torch.int64),
            "place": torch.full((self.jobs,), -1),
            "until": torch.zeros(self.jobs, dtype=torch.int64),
            "begun": torch.full(shape, -1),
            "now": torch.tensor(0),
            "picked": torch.full((self.machines,), UNASKED),
            "asked": torch.tensor(0),
            "waited": torch.tensor(0),
        }
        alone = {name: x[None] for name, x in state.items()}
        able = self._candidates(alone).any(-1)
        return {**state, "asked": able.int().argmax(1)[0]}

    def _drawn(self, row: int, episode: int) -> Shop:
        """Machines in a random order for each job, times uniform from 5 to 99, and shutdowns whatever a policy does."""
        stream = generator(self.seed, "jobs", row, episode)
        order = torch.rand(self.jobs, self.machines, generator=stream).argsort(1).tolist()
        times = torch.randint(SHORTEST, LONGEST + 1, (self.jobs, self.machines), generator=stream).tolist()
        jobs = tuple(tuple(zip(o, t, strict=True)) for o, t in zip(order, times, strict=True))
        work = self.jobs * self.operations * (SHORTEST + LONGEST) // 2
        stream = generator(self.seed, "shutdowns", row, episode)
        return Shop(jobs, random_shutdowns(self.machines, work, self.shutdown_probability, stream))

    # -------------------------------------------------------------------------------------------------- what is where

    @staticmethod
    def _ready(s: State) -> Tensor:
        """Bool `[B, J]`, jobs that wait: not processed, and with an operation to come."""
        return (s["until"] <= s["now"][:, None]) & (s["place"] + 1 < s["count"])

    @staticmethod
    def _wanted(s: State) -> Tensor:
        """The machine `[B, J]` of each job's next operation, -1 where there is none."""
        following = s["place"] + 1
        found = s["machine"].gather(2, following.clamp(max=s["machine"].shape[2] - 1)[..., None])[..., 0]
        return torch.where(following < s["count"], found, -1)

    @staticmethod
    def _held(s: State) -> Tensor:
        """The machine `[B, J]` on which each job stands, -1 where on none."""
        found = s["machine"].gather(2, s["place"].clamp(min=0)[..., None])[..., 0]
        gone = (s["place"] + 1 >= s["count"]) & (s["until"] <= s["now"][:, None])
        return torch.where((s["place"] >= 0) & ~gone, found, -1)

    def _on(self, machine: Tensor) -> Tensor:
        """Bool `[B, M, J]` of machines `[B, J]`."""
        return machine[:, None] == torch.arange(self.machines)[:, None]

    def _candidates(self, s: State) -> Tensor:
        """Bool `[B, M, J]`: jobs that wait for machines that are up."""
        up = s["down_until"] <= s["now"][:, None]
        return self._on(self._wanted(s)) & self._ready(s)[:, None] & up[..., None]

    # -------------------------------------------------------------------------------------------------------- a step

    def allowed(self, state: State) -> Tensor:
        """The next operations of the jobs that want the machine that is asked, and to wait, where that is offered."""
        rows = torch.arange(len(state["now"]))
        jobs = self._candidates(state)[rows, state["asked"]]
        nodes = torch.zeros(*jobs.shape, self.operations, dtype=torch.bool)
        place = (state["place"] + 1).clamp(max=self.operations - 1)
        nodes.scatter_(2, place[..., None], jobs[..., None])
        if not self.waiting:
            return nodes.flatten(1)
        return torch.cat([nodes.flatten(1), torch.ones(len(rows), 1, dtype=torch.bool)], 1)

    def advance(self, state: State, action: Tensor) -> Moved:
        """Give the machine that is asked its next job, and go on to the next machine that has a choice."""
        s, rows = dict(state), torch.arange(len(action))
        picked = s["picked"].clone()
        wait = action == self.jobs * self.operations
        picked[rows, s["asked"]] = torch.where(wait, WAITS, action // self.operations)
        s["picked"] = picked
        for name in ("asked", "down_until", "place", "until", "begun", "now", "waited"):
            s[name] = s[name].clone()
        over = torch.zeros(len(rows), dtype=torch.bool)
        going = rows
        while len(going):  # the tables of shutdowns are large: they are looked up, and not copied
            small = {name: x for name, x in s.items() if name not in ("down_from", "lost")}
            part, asked, ended = self._gone_on({**self.rows_of(small, going), "home": going}, s)
            for name, x in part.items():
                s[name][going] = x
            over[going[ended]] = True
            going = going[~(asked | ended)]
        return Moved(s, (state["now"] - s["now"]).float(), over)

    def _gone_on(self, s: State, tables: State) -> tuple[State, Tensor, Tensor]:
        """What changes until a machine is to be asked or time has passed once; which rows ask, and which have ended.

        `tables` has the shutdowns of all rows, of which these are those numbered `home`.
        """
        candidates, picked = self._candidates(s), s["picked"].clone()
        ready, wanted, on = self._ready(s), self._wanted(s), self._on(self._held(s))
        open_ = (picked == UNASKED) & self._can_change(candidates, ready, wanted, on)
        if not self.waiting:
            only = open_ & (candidates.sum(-1) == 1)
            picked = torch.where(only, candidates.int().argmax(-1), picked)
            open_ = open_ & ~only
        asks = open_.any(1)
        picks = picked[:, :, None] == torch.arange(self.jobs)
        sure = open_ & (~on.any(-1) | picks.any(1).gather(1, on.int().argmax(-1)))
        first = torch.where(sure.any(1, keepdim=True), sure, open_).int().argmax(1)
        asked = torch.where(asks, first, s["asked"])
        chosen = (picks & candidates).any(1)
        move = self._fitting(chosen, wanted, on) & ~asks[:, None]
        down = s["down_until"] > s["now"][:, None]
        repairs = (self._on(wanted) & ready[:, None] & down[..., None]).flatten(1).any(1)
        stuck = ~(asks | (s["until"] > s["now"][:, None]).any(1) | repairs | move.any(1))
        for row in stuck.nonzero()[:, 0].tolist():
            move[row] = self._forced(ready[row], wanted[row], on[row])
        after = {**s, "picked": picked, "asked": asked}
        self._begin(after, move, wanted, tables)
        passed = ~asks
        soon = (chosen & ~move).any(1) & ~stuck if self.asks_again else torch.zeros_like(asks)
        self._pass(after, passed, soon, tables)
        ended = passed & ((after["place"] + 1 >= after["count"]) & (after["until"] <= after["now"][:, None])).all(1)
        names = ("picked", "asked", "down_until", "place", "until", "begun", "now", "waited")
        return {name: after[name] for name in names}, asks, ended

    def _can_change(self, candidates: Tensor, ready: Tensor, wanted: Tensor, on: Tensor) -> Tensor:
        """Bool `[B, M]`, the largest set of machines with a candidate that are free, or whose occupant may move on."""
        held, occupant = on.any(-1), on.int().argmax(-1)
        done, target = ready.gather(1, occupant), wanted.gather(1, occupant).clamp(min=0)
        can = candidates.any(-1)
        for _ in range(self.machines):
            can = can & (~held | (done & can.gather(1, target)))
        return can

    def _fitting(self, move: Tensor, wanted: Tensor, on: Tensor) -> Tensor:
        """The largest part of moves, bool `[B, J]`, in which nobody enters a machine that its occupant keeps."""
        if not bool(move.any()):
            return move
        held, occupant = on.any(-1), on.int().argmax(-1)
        target = wanted.clamp(min=0)
        taken, by = held.gather(1, target), occupant.gather(1, target)
        for _ in range(self.machines):
            move = move & (~taken | move.gather(1, by))
        return move

    def _forced(self, ready: Tensor, wanted: Tensor, on: Tensor) -> Tensor:
        """Moves, bool `[J]`, from the first waiting job over occupants of wanted machines; none where all are done."""
        move = torch.zeros_like(ready)
        if not bool(ready.any()):
            return move
        way = [int(ready.int().argmax())]
        while bool(on[wanted[way[-1]]].any()):
            following = int(on[wanted[way[-1]]].int().argmax())
            if following in way:
                way = way[way.index(following) :]
                break
            way.append(following)
        move[way] = True
        return move

    def _begin(self, s: State, move: Tensor, wanted: Tensor, tables: State) -> None:
        """Put jobs that move, bool `[B, J]`, onto the machines they want, and see when they will be done there."""
        row, job = move.nonzero(as_tuple=True)
        if not len(row):
            return
        s["place"], s["begun"], s["until"] = s["place"].clone(), s["begun"].clone(), s["until"].clone()
        place, now, machine = s["place"][row, job] + 1, s["now"][row], wanted[row, job]
        s["place"][row, job], s["begun"][row, job, place] = place, now
        home = s["home"][row]
        worked = now - self._lost(tables, home, machine, now) + s["time"][row, job, place]
        # a clock that stands still while the machine is down says when so much will have been worked
        lost = tables["lost"][home, machine]
        clock = tables["down_from"][home, machine] - lost[:, :-1]
        before = (clock < worked[:, None]).sum(1)
        s["until"][row, job] = worked + lost.gather(1, before[:, None])[:, 0]

    @staticmethod
    def _lost(tables: State, row: Tensor, machine: Tensor, at: Tensor) -> Tensor:
        """Time units `[n]` in which machines of rows had been down by then, also by the shutdown that goes on."""
        start, lost = tables["down_from"], tables["lost"]
        begun = _begun(start, row, machine, at)
        latest = (begun - 1).clamp(min=0)
        so_far = lost[row, machine, latest] + at - start[row, machine, latest]
        return torch.where(begun > 0, torch.minimum(so_far, lost[row, machine, begun]), 0)

    def _pass(self, s: State, passed: Tensor, soon: Tensor, tables: State) -> None:
        """Let time go to the next completion or repair of a machine that is waited for; by one unit where `soon`."""
        now, ready = s["now"], self._ready(s)
        waited_for = (self._on(self._wanted(s)) & ready[:, None]).any(-1)
        done = torch.where(s["until"] > now[:, None], s["until"], FAR).amin(1)
        repaired = torch.where(waited_for & (s["down_until"] > now[:, None]), s["down_until"], FAR).amin(1)
        then = torch.minimum(done, repaired)
        then = torch.where(soon, now + 1, then)
        then = torch.where(passed & (then < FAR), then, now)
        s["waited"] = s["waited"] + ready.sum(1) * (then - now)
        s["now"] = then
        s["picked"] = torch.where(passed[:, None], UNASKED, s["picked"])
        start, lost = tables["down_from"], tables["lost"]
        if bool((start[:, :, 0] < FAR).any()):
            row, machine = s["home"][:, None].expand(-1, self.machines), torch.arange(self.machines)
            begun = _begun(start, row, machine, then[:, None].expand_as(row))
            latest = (begun - 1).clamp(min=0)
            end = start[row, machine, latest] + lost[row, machine, latest + 1] - lost[row, machine, latest]
            s["down_until"] = torch.where(begun > 0, end, 0).long()

    # ------------------------------------------------------------------------------------------------ what is shown

    def show(self, state: State) -> Observation:
        """Operations, and what changes at them."""
        rows, jobs, most = state["machine"].shape
        now, time, place = state["now"][:, None], state["time"], torch.arange(most)
        scale = (time.sum((1, 2)) / state["count"].sum(1))[:, None, None]
        there = place < state["count"][..., None]
        job = torch.arange(jobs)[:, None].expand(jobs, most)
        nodes = torch.stack([x.expand(rows, jobs, most) for x in (job, state["machine"], place, time)], -1).float()

        ready, held, at = self._ready(state), self._held(state), state["place"][..., None]
        works = state["until"] > now
        row, worker = works.nonzero(as_tuple=True)
        remains = torch.zeros(rows, jobs)
        begun = state["begun"].gather(2, at.clamp(min=0))[row, worker, 0]
        passed = [self._lost(state, row, held[row, worker], t) for t in (begun, now[row, 0])]
        gone = (now[row, 0] - begun) - (passed[1] - passed[0])
        remains[row, worker] = (time.gather(2, at.clamp(min=0))[row, worker, 0] - gone).float()

        def of_machines(x: Tensor) -> Tensor:  # [B, M] -> [B, J, K]
            return x.gather(1, state["machine"].clamp(min=0).flatten(1)).view(rows, jobs, most)

        on = self._on(held)
        busy = (on * remains[:, None]).sum(-1)
        here, door = (place == at), (place == at + 1) & there & ready[..., None]
        processed, blocks = here & works[..., None], here & (held >= 0)[..., None] & ~works[..., None]
        waits = torch.where(ready, now - state["until"], 0)[..., None] / scale
        down = of_machines((state["down_until"] > now).float())
        picked = (state["picked"][..., None] == torch.arange(jobs)).any(1)[..., None]
        numbers = [
            there & (place > at) & ~door,
            processed,
            blocks | (door & (held >= 0)[..., None]),
            door,
            waits * (blocks | door),
            processed * remains[..., None] / scale,
            down,
            of_machines(busy) / scale,
            state["machine"] == state["asked"][:, None, None],
            of_machines((state["picked"] >= 0).float()),
            picked.expand(rows, jobs, most),
        ]
        changing = torch.stack([x.float() for x in numbers], -1) * there[..., None]
        left = there & ((place > at) | processed | blocks)
        parts = [nodes.flatten(1, 2), there.flatten(1), changing.flatten(1, 2), left.flatten(1)]
        if self.waiting:
            wait = torch.tensor([-1.0, -1, 0, 0]).expand(rows, 1, 4)
            ones, zeros = torch.ones(rows, 1, dtype=torch.bool), torch.zeros(rows, 1, self.state_features)
            parts = [
                torch.cat(pair, 1) for pair in zip(parts, (wait, ones, zeros, torch.zeros_like(ones)), strict=True)
            ]
        none = torch.zeros(rows, dtype=torch.int64)
        return {
            "nodes": Padded(parts[0], parts[1]),
            "here": none,
            "end": none,
            "left": parts[3],
            "context": torch.zeros(rows, 0),
            "node_state": parts[2],
        }

    # ------------------------------------------------------------------------------------------------ as handed out

    def instance(self, row: int) -> Shop:
        """The row's shop, and its shutdowns."""
        s = {name: x[row] for name, x in self.state.items()}
        jobs = tuple(
            tuple((int(m), int(t)) for m, t in zip(machine[:count], time[:count], strict=True))
            for machine, time, count in zip(s["machine"].tolist(), s["time"].tolist(), s["count"].tolist(), strict=True)
        )
        start, length = s["down_from"].tolist(), s["lost"].diff(dim=1).tolist()
        found = tuple(
            tuple((a, a + b) for a, b in zip(of, long, strict=True) if a < FAR)
            for of, long in zip(start, length, strict=True)
        )
        return Shop(tuple(job for job in jobs if job), found if any(found) else ())

    def solution(self, row: int) -> Schedule:
        """When each job begins each of its operations, those that it has begun."""
        counts = self.state["count"][row].tolist()
        begun = self.state["begun"][row].tolist()
        return [[at for at in of[:count] if at >= 0] for of, count in zip(begun, counts, strict=True) if count]

    def verify(self, instance: Any, solution: Any) -> Verdict:
        """The makespan of a schedule (`polyrl.tasks.operations.shops`)."""
        return verify(instance, solution)

    def references(self) -> dict[str, Tensor]:
        """Makespans: the optimum where orders are few and nothing shuts down, random choice, rules, their best."""
        found = dispatched(self)
        best = torch.stack([*found.values()]).amin(0)
        exact = exact_makespans([self.instance(row) for row in range(self.rows)])
        optimum = {} if exact is None else {"optimum": exact.double()}
        return {**optimum, "random": dispatched_at_random(self), **found, "best rule of each": best}


def _begun(start: Tensor, row: Tensor, machine: Tensor, at: Tensor) -> Tensor:
    """How many shutdowns of machines of rows have begun by then; `start` `[B, M, Q]` ascends."""
    low, high = torch.zeros_like(at), torch.full_like(at, start.shape[2])
    for _ in range(start.shape[2].bit_length()):
        middle = (low + high) // 2
        begun = start[row, machine, middle.clamp(max=start.shape[2] - 1)] <= at
        going = low < high
        low, high = torch.where(going & begun, middle + 1, low), torch.where(going & ~begun, middle, high)
    return low


@dataclass(frozen=True)
class JobShopTask(CombinatorialTask):
    """The shortest makespan of n jobs that pass all machines, each in an order of its own, without buffers.

    Attributes:
        n: jobs.
        machines: which each job passes once.
        shutdowns: chance that a machine which is up shuts down in a time unit, for 1 to 5 units.
        waiting: whether a machine may also be left as it is until the next event, which the best schedules may need.
    """

    name: ClassVar[str] = "job-shop"
    label: ClassVar[str] = "makespan"
    most: ClassVar[int] = 50
    budget: ClassVar[str] = "steps=60000"
    kind: ClassVar[type[ConstructionEnvironment]] = JobShop

    n: int = 6
    machines: int = 6
    shutdowns: float = 0.05
    waiting: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and chances that make no shop."""
        super().__post_init__()
        if not 2 <= self.machines <= self.most:
            raise UserError(f"{self.name}.machines is {self.machines} but must be from 2 to {self.most}.")
        if not 0 <= self.shutdowns <= 0.5:
            raise UserError(f"{self.name}.shutdowns is {self.shutdowns} but must be from 0 to 0.5.")

    def environment(self, seed: int, rows: int) -> JobShop:
        """Rows of n jobs."""
        return JobShop(seed, rows, self.n, self.machines, self.shutdowns, self.waiting)

    def describe(self) -> str:
        """How many jobs and machines there are, and what may happen."""
        chance = f", each shuts down with chance {self.shutdowns:g} in a time unit" if self.shutdowns else ""
        return f"{self.n} jobs on {self.machines} machines without buffers{chance}"
