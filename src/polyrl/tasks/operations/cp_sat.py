"""Schedules of job shops without buffers by constraint programming: OR-tools' CP-SAT, an extra that nothing else needs.

An operation holds its machine from its beginning to the beginning of the next one of its job, an interval of its time
or longer; intervals on a machine do not overlap. They are half open, which is just what allows swaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from polyrl.errors import UserError
from polyrl.tasks.operations.shops import Schedule, Shop


@dataclass(frozen=True)
class Found:
    """What the solver came to.

    Attributes:
        schedule: the best one.
        bound: a makespan that no schedule is below.
        proved: whether it is that of the schedule.
    """

    schedule: Schedule
    bound: int
    proved: bool


def is_installed() -> bool:
    """Whether OR-tools can be imported."""
    return find_spec("ortools") is not None


def solved(shop: Shop, seconds: float, workers: int = 1) -> Found | None:
    """The best schedule of a shop without shutdowns that is found in so many seconds; None where none was.

    Raises:
        UserError: OR-tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise UserError("CP-SAT needs OR-tools: pip install 'polyrl[solvers]'.") from None
    if shop.shutdowns:
        raise ValueError("nobody knows shutdowns beforehand, so there is no schedule to be found")
    model, horizon = cp_model.CpModel(), shop.work
    begin = [[model.new_int_var(0, horizon, "") for _ in job] for job in shop.jobs]
    end, held = [], dict[int, list[cp_model.IntervalVar]]()
    for job, begun in zip(shop.jobs, begin, strict=True):
        last = job[-1][1]
        for (machine, time), at, following in zip(job, begun, [*begun[1:], begun[-1] + last], strict=True):
            long = model.new_int_var(time, horizon, "")
            held.setdefault(machine, []).append(model.new_interval_var(at, long, following, ""))
        end.append(begun[-1] + last)
    for intervals in held.values():
        model.add_no_overlap(intervals)
    makespan = model.new_int_var(0, horizon, "")
    model.add_max_equality(makespan, end)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, workers
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    schedule = [[int(solver.value(at)) for at in begun] for begun in begin]
    return Found(schedule, round(solver.best_objective_bound), status == cp_model.OPTIMAL)
