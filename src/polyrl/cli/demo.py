"""`polyrl demo`: a comparison in one of a few fixed sizes, the largest whose page comes within five minutes here.

A seed's numbers depend on its size alone, so there are three and nothing between. Which one fits is found by a
measurement of a few seconds: as many processes as the comparison will have take iterations of its costliest method at
once, so that a slow processor, missing instruction sets and busy neighbors all show.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import fmean
from threading import BrokenBarrierError
from typing import Any

from rich.text import Text

from polyrl.comparison_folder import read_comparison
from polyrl.runtime.config import RunConfig
from polyrl.runtime.parent import end_with_parent
from polyrl.runtime.terminal import Terminal

METHODS = ("ppo", "grpo", "rloo", "remax")
COSTLIEST = "ppo"
LIMIT = 300.0
"""Seconds from the command to the page."""
REST = 15.0
"""Seconds that processes need to start, and the page to be written, where an iteration takes `USUAL`."""
USUAL = 1.2
"""Seconds of an iteration of ppo on the processor that `work` was measured on: it only scales `REST`."""


@dataclass(frozen=True)
class Size:
    """One of the fixed sizes."""

    name: str
    seeds: int
    samples: int
    evaluations: int
    work: float
    """All runs together, evaluations included, in iterations of ppo (measured; `longest` too)."""
    longest: float
    """The longest of its runs, in the same unit: more processes than runs make nothing faster."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"{self.name} size ({self.seeds} seeds, {self.samples:,} samples a run)"

    def config(self) -> RunConfig:
        """What all its runs share."""
        return RunConfig(
            method="",
            task="addition",
            budget=f"samples={self.samples}",
            evaluations=self.evaluations,
            eval_prompts=200,
            tensorboard=False,
        )

    def seconds(self, iteration: float, workers: int) -> float:
        """How long its runs and its page take where `workers` processes at once need `iteration` seconds for one."""
        busy = min(workers, len(METHODS) * self.seeds)
        return iteration * max(self.work / busy, self.longest) + REST * iteration / USUAL


SIZES = {
    size.name: size
    for size in (
        Size("full", seeds=5, samples=1792, evaluations=5, work=295, longest=31),
        Size("half", seeds=5, samples=768, evaluations=5, work=155, longest=15),
        Size("quarter", seeds=3, samples=640, evaluations=3, work=75, longest=12),
    )
}


def choose(iteration: float, workers: int, spent: float) -> Size:
    """The largest size whose page comes within `LIMIT`; the smallest where none does.

    Args:
        iteration: seconds of an iteration of ppo in each of `workers` processes at once.
        workers: processes that the comparison will have.
        spent: seconds since the command began.
    """
    fitting = [size for size in SIZES.values() if spent + size.seconds(iteration, workers) <= LIMIT]
    return fitting[0] if fitting else [*SIZES.values()][-1]


def explained(size: Size, iteration: float, workers: int, spent: float) -> str:
    """What was measured and chosen, for the terminal and the page."""
    processes = "1 process takes" if workers == 1 else f"{workers} processes at once take"
    total = spent + size.seconds(iteration, workers)
    full = (
        ""
        if size.name == "full"
        else f", the full one about {about(spent + SIZES['full'].seconds(iteration, workers))}"
    )
    late = f" (more than the {about(LIMIT)} it is meant to take)" if total > LIMIT else ""
    return (
        f"Measured: {processes} {iteration:.1f} s for an iteration of {COSTLIEST}. Chosen: the {size.words}, "
        f"about {about(total)} in all{late}{full}."
    )


def about(seconds: float) -> str:
    """`50 seconds`, `4 minutes`."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    return f"{round(seconds / 60)} minutes"


def measure(workers: int) -> float:
    """Mean seconds of an iteration of ppo in each of `workers` processes at once; the starting model must be there."""
    context = get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when numerical libraries are first imported
    told, end = context.Pipe(duplex=False)
    values = replace(SIZES["full"].config(), method=COSTLIEST).as_dict()
    start = context.Barrier(workers)
    with (
        told,
        end,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_together, initargs=(told, start)) as pool,
    ):
        return fmean([job.result() for job in [pool.submit(_iteration, values) for _ in range(workers)]])


_start: list[Barrier] = []
"""In a process that measures: where it waits for the others."""


def _together(told: Connection, start: Barrier) -> None:
    end_with_parent(told)
    _start.append(start)


def _iteration(values: dict[str, Any]) -> float:
    """Seconds of an iteration, the first one apart: kernels are prepared in it."""
    from polyrl.runs import make_loop

    loop, _ = make_loop(RunConfig.from_dict(values))
    loop.iterate()
    with suppress(BrokenBarrierError):  # another one is very late: measure without it
        _start[0].wait(60)
    began = time.perf_counter()
    loop.iterate()
    if time.perf_counter() - began < 5:
        loop.iterate()
    return (time.perf_counter() - began) / (loop.context.iteration - 1)


def begun(folder: Path) -> Size | None:
    """The size of the demo that this folder holds already; None where it holds none."""
    if not (folder / "compare.yaml").is_file():
        return None
    question = read_comparison(folder)["question"]
    for size in SIZES.values():
        if (question["seeds"], question["base"].get("budget")) == ([*range(size.seeds)], size.config().budget):
            return size
    return None


def plan(
    folder: Path,
    *,
    size: str | None,
    overwrite: bool,
    workers: int,
    prepared: Callable[[], object],
    measured: Callable[[int], float],
    clock: Callable[[], float],
) -> tuple[Size, str]:
    """The size to run, and what is to be said of it; nothing is measured where it is asked for or begun already.

    Args:
        folder: of the comparison; one that holds a demo goes on in its own size.
        size: one of `SIZES`, or None for the largest that fits.
        overwrite: whether what the folder holds goes.
        workers: processes that the comparison may have.
        prepared: makes the starting model; its time counts.
        measured: seconds of an iteration, by the number of processes.
        clock: seconds that pass.
    """
    if size:
        return SIZES[size], f"The {SIZES[size].words}, as asked for with --size."
    if not overwrite and (before := begun(folder)):
        return before, f"{folder} holds a demo of the {before.words} already, which goes on."
    began = clock()
    prepared()
    iteration = measured(workers)
    spent = clock() - began
    chosen = choose(iteration, workers, spent)
    return chosen, explained(chosen, iteration, workers, spent)


def run_demo(folder: Path, *, size: str | None = None, overwrite: bool = False, quiet: bool = False) -> None:
    """Make the starting model, find the size, compare, and write the page; as `plan` and `run_comparison`."""
    from polyrl.comparison import run_comparison
    from polyrl.request import completed, make_recipe
    from polyrl.runs import prepare

    def prepared() -> None:
        config = completed(replace(SIZES["full"].config(), method=COSTLIEST))
        prepare(config, [make_recipe(config)], say)

    console = Terminal()
    say: Callable[[str], None] = (lambda _: None) if quiet else lambda t: console.print(Text(t, "dim"), soft_wrap=True)
    chosen, note = plan(
        folder,
        size=size,
        overwrite=overwrite,
        workers=min(os.cpu_count() or 1, len(METHODS) * SIZES["full"].seeds),
        prepared=prepared,
        measured=measure,
        clock=time.perf_counter,
    )
    say(note)
    run_comparison(
        list(METHODS),
        chosen.config(),
        range(chosen.seeds),
        folder,
        quiet=quiet,
        overwrite=overwrite,
        note=note,
        own_starts=False,
    )
