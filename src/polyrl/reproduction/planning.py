"""A claim's experiment as lines of a shell: of each look its runs, and the next look only where they do not decide.

Whoever runs the lines gives the same command again: it says what is missing, plans the next look, or lets the verdict
be entered, for which nothing is run any more.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from polyrl.comparison import run_comparison
from polyrl.comparison_folder import clear
from polyrl.comparison_plan import Standing, planned_lines, planned_text, standings, unfinished_text, write_plan
from polyrl.errors import UserError
from polyrl.reproduction.claim import Claim
from polyrl.reproduction.judging import INCONCLUSIVE, Observed, judge, verdict_of
from polyrl.reproduction.provenance import refuse_uncommitted
from polyrl.reproduction.running import (
    base_of,
    default_folder,
    group_folders,
    groups,
    observe,
    span,
    stage_folder,
    stages,
)
from polyrl.runtime.executor import PLAN, check_executor


def check_planned(executor: str, workers: int | None, *, quick: bool) -> None:
    """Refuse what cannot be asked together.

    Raises:
        UserError: there is no such executor, or a smoke test, which takes less than a plan of it.
    """
    check_executor(executor, workers)
    if executor == PLAN and quick:
        raise UserError("--quick is made here within a minute, so it is not planned; leave --executor plan away.")


def plan(
    claim: Claim,
    out: Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    overwrite: bool = False,
) -> str:
    """Plan the first look whose runs are not there; return what is to be done, or an empty string.

    It is empty where all runs are made that a verdict needs: `reproduce` then judges them.

    Raises:
        UserError: an arm cannot be run, the folder holds something else, or there are uncommitted changes.
    """
    chosen, folder = list(seeds if seeds is not None else claim.seeds), out or default_folder(claim)
    if chosen == list(claim.seeds):
        refuse_uncommitted()
    looks = stages(claim, chosen)
    if overwrite:
        for stage in looks[1:]:
            for place in group_folders(claim, stage_folder(claim, folder, stage)).values():
                clear(place)
    gather = f"polyrl reproduce {shlex.quote(claim.slug)} --executor plan"
    gather += f" --seeds {','.join(map(str, chosen))}{',' if len(chosen) == 1 else ''}" if seeds is not None else ""
    gather += f" --out {shlex.quote(str(out))}" if out else ""
    observed: list[Observed] = []
    seen: list[int] = []
    for stage in looks:
        place = stage_folder(claim, folder, stage)
        comparisons = list(group_folders(claim, place).items())
        if overwrite or not all((inner / "compare.yaml").is_file() for _, inner in comparisons):
            return _plan_look(claim, stage, place, gather, overwrite=overwrite)
        runs = [run for _, inner in comparisons for run in standings(inner)]
        if left := [run for run in runs if not _made(run)]:
            return "\n".join(unfinished_text(left, len(runs), place))
        seen += stage
        observed += observe(claim, place)
        if verdict_of((j.criterion.kind, j.outcome) for j in judge(claim, observed, seen)) != INCONCLUSIVE:
            break
    return ""


def _made(run: Standing) -> bool:
    """Whether there is nothing more to make: a run that diverged counts against its method."""
    return run.finished or run.diverged


def _plan_look(claim: Claim, seeds: Sequence[int], place: Path, gather: str, *, overwrite: bool) -> str:
    lines: list[str] = []
    threads = 1
    for (task, budget), inner in group_folders(claim, place).items():
        base = base_of(claim, task, budget)
        if overwrite or not (inner / "compare.yaml").is_file():
            arms = {arm.name: arm.method for arm in groups(claim)[task, budget]}
            run_comparison(arms, base, seeds, inner, quiet=True, overwrite=overwrite, executor=PLAN)
        found = planned_lines(inner)
        if not found:
            raise UserError(
                f"{inner} was begun without a plan; go on with `polyrl reproduce {claim.slug}`, or say --overwrite."
            )
        lines += [text for _, text in found.values()]
        threads = max(threads, base.threads)
    about = f"They put the claim of `{claim.slug}` to the test with the seeds {span(seeds)}: {claim.question}"
    write_plan(place, lines, threads, about, gather)
    return planned_text(place, len(lines), gather)
