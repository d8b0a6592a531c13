"""Files of job shops, as OR-Library and JSPLIB have them.

After comments (`#`) a line has the number of jobs and of machines; then each job has a line of its operations, machine
and time units in turn, machines counted from 0. Taillard's form, times in one matrix and machines from 1 in another, is
not read.
"""

from __future__ import annotations

from pathlib import Path

from polyrl.errors import UserError
from polyrl.tasks.operations.shops import Shop

MOST_WORK = 10**7
"""Time units of all operations, far below what the simulator can count."""


def read_shop(path: Path) -> Shop:
    """Read a file.

    Raises:
        UserError: it cannot be read, or a line is no line of a job.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"The instance {path} cannot be read: {error.strerror}.") from None
    rows = [
        (at, line.split()) for at, line in enumerate(lines, start=1) if line.strip() and line.strip()[0] not in "#+"
    ]
    numbers = list[tuple[int, list[int]]]()
    for at, words in rows:
        try:
            numbers.append((at, [int(word) for word in words]))
        except ValueError:
            raise UserError(
                f"Line {at} of {path} is '{' '.join(words)[:60]}' but must be whole numbers: of jobs and machines, "
                "then for each job its operations, machine and time in turn."
            ) from None
    if not numbers or len(numbers[0][1]) != 2:
        raise UserError(f"{path} is no job shop: its first line must be the numbers of jobs and of machines.")
    jobs, machines = numbers[0][1]
    if len(numbers) - 1 != jobs or jobs < 1:
        raise UserError(f"{path} says {jobs} jobs and has lines of {len(numbers) - 1}.")
    found = list[tuple[tuple[int, int], ...]]()
    for at, row in numbers[1:]:
        if not row or len(row) % 2:
            raise UserError(f"Line {at} of {path} has {len(row)} numbers but must be pairs of a machine and its time.")
        job = tuple(zip(row[::2], row[1::2], strict=True))
        for machine, time in job:
            if not 0 <= machine < machines:
                raise UserError(
                    f"Line {at} of {path} names machine {machine}, and there are {machines}, counted from 0; "
                    "polyrl does not read the form in which times and machines are two matrices."
                )
            if time < 1:
                raise UserError(
                    f"Line {at} of {path} has an operation of {time} time units but it must take 1 at least."
                )
        found.append(job)
    shop = Shop(tuple(found))
    if shop.work > MOST_WORK:
        raise UserError(
            f"The operations of {path} take {shop.work:,} time units, and polyrl counts up to {MOST_WORK:,}."
        )
    return shop


def write_schedule(path: Path, shop: Shop, schedule: list[list[int]], makespan: float, by: str) -> None:
    """Write when each job begins each of its operations, a line for each job."""
    lines = [f"# makespan {makespan:.0f}, {by}", "# a line for each job: when it begins each of its operations"]
    lines += [" ".join(map(str, begun)) for begun in schedule]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
