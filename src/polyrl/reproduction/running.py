"""Runs a claim's experiment: every arm with the seeds of each look, until the rule decides or the seeds are at an end.

The folder of a reproduction is a comparison, or holds one for each task and budget that the arms ask for. Where the
claim has several looks it holds a folder for the seeds of each, made as follows. All go on where they stopped.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from polyrl.comparison import run_comparison
from polyrl.comparison_folder import folder_name
from polyrl.errors import UserError
from polyrl.report.runs import Run, load_comparison
from polyrl.report.statistics import Estimate
from polyrl.reproduction import ledger
from polyrl.reproduction.claim import RULE, Arm, Claim, fingerprint
from polyrl.reproduction.judging import INCONCLUSIVE, Judged, Observed, judge, rule_of, verdict_of
from polyrl.reproduction.provenance import code_of, commits_are_clean, machine, refuse_uncommitted
from polyrl.reproduction.quantities import curve_of, named
from polyrl.reproduction.variance import parts_of
from polyrl.request import make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.runtime.executor import LOCAL
from polyrl.runtime.metric import Metric
from polyrl.tasks import domain_of
from polyrl.tasks.language.base import GeneratedTask

POINTS = 60
"""Most points of a run's curve that the ledger keeps."""
PACKAGES = ("polyrl", "torch", "numpy", "scipy", "transformers", "gymnasium")


@dataclass(frozen=True)
class Reproduction:
    """What a reproduction came to.

    Attributes:
        entry: as the ledger keeps it.
        folder: of the runs.
        written: the ledger's file, None where nothing was entered.
        why_not: why nothing was entered.
        quick: whether this was only a smoke test.
    """

    entry: dict[str, Any]
    folder: Path
    written: Path | None
    why_not: str = ""
    quick: bool = False


# --------------------------------------------------------------------------------------------------------- running


def default_folder(claim: Claim, quick: bool = False) -> Path:
    """`runs/reproduce-<slug>`, where the same command goes on; a quick one has its own."""
    root = Path(os.environ.get("POLYRL_RUNS", "runs"))
    return root / f"reproduce-{folder_name(claim.slug)}{'-quick' if quick else ''}"


def groups(claim: Claim) -> dict[tuple[str, str], list[Arm]]:
    """The arms by what they share, (task, budget)."""
    found: dict[tuple[str, str], list[Arm]] = {}
    for arm in claim.arms:
        found.setdefault((claim.task_of(arm), claim.budget_of(arm)), []).append(arm)
    return found


def group_folders(claim: Claim, folder: Path) -> dict[tuple[str, str], Path]:
    """Where each group's comparison is: the folder itself if there is only one, else a folder for each in it."""
    keys = list(groups(claim))
    if len(keys) == 1:
        return {keys[0]: folder}
    return {(task, budget): folder / folder_name(f"{task} {budget}") for task, budget in keys}


def shortened(claim: Claim) -> Claim:
    """The claim's experiment at a share of every budget, as `--quick` runs it."""
    quick = claim.quick

    def part(budget: str) -> str:
        limits = Budget.parse(budget).limits() if budget else {}
        return ",".join(f"{unit}={max(1, math.ceil(limit * quick.share))}" for unit, limit in limits.items())

    return dataclasses.replace(
        claim,
        budget=part(claim.budget),
        arms=tuple(dataclasses.replace(arm, budget=part(arm.budget)) for arm in claim.arms),
        options={**claim.options, **quick.options},
        hyperparameters={**claim.hyperparameters, **quick.hyperparameters},
    )


def reproduce(
    claim: Claim,
    out: Path | None = None,
    *,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    executor: str = LOCAL,
    workers: int | None = None,
    ledger_folder: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Reproduction:
    """Run what is missing of the claim's experiment, judge it, and enter it into the ledger.

    A quick run, and one with other seeds than the claim's, is judged and told but not entered.

    Raises:
        UserError: an arm cannot be run, a run broke, or the folder holds something else.
    """
    # a smoke test must not look at the seeds of the test
    chosen = (
        list(seeds) if seeds is not None else list(claim.tuning_seeds[: claim.quick.seeds] if quick else claim.seeds)
    )
    folder = out or default_folder(claim, quick)
    tested = shortened(claim) if quick else claim
    why_not = ""
    if quick:
        why_not = "--quick is only a smoke test"
    elif chosen != list(claim.seeds):
        why_not = f"these are not the seeds of the test, which are {span(claim.seeds)}"
    else:
        refuse_uncommitted()
    began, fresh = time.perf_counter(), overwrite or not folder.exists()
    observed: list[Observed] = []
    seen: list[int] = []
    judged: list[Judged] = []
    for stage in stages(tested, chosen):
        place = stage_folder(tested, folder, stage)
        again = overwrite or (quick and out is None)
        run_seeds(tested, stage, place, workers, executor=executor, quiet=quiet, overwrite=again)
        seen += stage
        observed += observe(tested, place)
        judged = judge(tested, observed, seen)
        if verdict_of((j.criterion.kind, j.outcome) for j in judged) != INCONCLUSIVE:
            break
    entry = make_entry(tested, observed, judged, seen, time.perf_counter() - began if fresh else None)
    if quick:
        entry["verdict"] = "no verdict"
    if not why_not and not commits_are_clean(entry["commit"].split(", ")):
        why_not = "some of its runs were made from sources with uncommitted changes; --overwrite makes them again"
    written = None if why_not else ledger.write(entry, ledger_folder or ledger.writable_ledger())
    return Reproduction(entry, folder, written, why_not, quick)


def stages(claim: Claim, seeds: Sequence[int]) -> list[list[int]]:
    """The seeds that each look adds; seeds that are not the claim's own are looked at once."""
    if list(seeds) != list(claim.seeds):
        return [list(seeds)]
    return [list(seeds[before:upto]) for before, upto in pairwise((0, *claim.looks_at()))]


def stage_folder(claim: Claim, folder: Path, stage: Sequence[int]) -> Path:
    """Where the runs of a look's seeds are: the folder itself where there is one look."""
    ordered = list(stage) != list(claim.seeds) and set(stage) <= set(claim.seeds) and len(claim.looks_at()) > 1
    return folder / folder_name(f"seeds {span(stage)}") if ordered else folder


def run_seeds(
    claim: Claim,
    seeds: Sequence[int],
    folder: Path,
    workers: int | None,
    *,
    quiet: bool,
    overwrite: bool,
    executor: str = LOCAL,
) -> None:
    """Make what is missing of the runs of some seeds.

    Raises:
        UserError: an arm cannot be run, or the folder holds something else.
    """
    for (task, budget), place in group_folders(claim, folder).items():
        run_comparison(
            {arm.name: arm.method for arm in groups(claim)[task, budget]},
            base_of(claim, task, budget),
            seeds,
            place,
            executor=executor,
            workers=workers,
            quiet=quiet,
            overwrite=overwrite,
            sentences=False,
        )


def base_of(claim: Claim, task: str, budget: str) -> RunConfig:
    """What the runs of a group share."""
    start = claim.start if domain_of(task) == "language" and "model" not in claim.options else None
    asked = {"start": start, "method": "", "task": task, "budget": budget, "tensorboard": False, **claim.options}
    return RunConfig.stated({**asked, "hyperparameters": dict(claim.hyperparameters)}, f"The claim of {claim.slug}")


def span(seeds: Sequence[int]) -> str:
    """`10 to 14`, or the seeds one by one."""
    first, last = min(seeds), max(seeds)
    return f"{first} to {last}" if sorted(seeds) == list(range(first, last + 1)) else ", ".join(map(str, seeds))


def observe(claim: Claim, folder: Path) -> list[Observed]:
    """Read the runs of every arm.

    Raises:
        UserError: a run failed before it began.
    """
    found = []
    for key, place in group_folders(claim, folder).items():
        comparison = load_comparison(place)
        broken = [p for p in comparison.problems if "failed before it began" in p]
        if broken:
            raise UserError(f"{broken[0]} Mend that and give the same command again.")
        names = {arm.name for arm in groups(claim)[key]}
        found += [Observed(r.label, r.seed, r, comparison.metric) for r in comparison.runs if r.label in names]
    return found


# ----------------------------------------------------------------------------------------------------------- entry


def make_entry(
    claim: Claim, observed: Sequence[Observed], judged: Sequence[Judged], seeds: Sequence[int], wall: float | None
) -> dict[str, Any]:
    """Everything that the ledger keeps. `wall` is in seconds, None where the runs were not all made in one go."""
    first = [o for o in observed if o.arm == claim.arms[0].name]
    metric = shown_metric(claim, first)
    key = claim.curve or metric.key
    unit = next(iter(Budget.parse(claim.budget).limits()))
    x = "iteration" if unit == "iterations" else unit
    runs = [o.run for o in observed]
    prompts = _prompts(claim)
    return {
        "format": ledger.FORMAT,
        "slug": claim.slug,
        "claim": claim.sentence,
        "source": claim.source,
        "verdict": verdict_of((j.criterion.kind, j.outcome) for j in judged),
        "rule": RULE,
        "fingerprint": fingerprint(claim),
        "command": f"polyrl reproduce {claim.slug}",
        "date": datetime.datetime.now().date().isoformat(),
        "seconds": round(sum(_seconds(r) for r in runs), 1),
        "wall_seconds": None if wall is None else round(wall, 1),
        "commit": ", ".join(dict.fromkeys(str(r.config.get("commit") or "unknown") for r in runs)),
        "versions": {"python": platform.python_version(), **versions()},
        "code": code_of(claim, arm_configs(claim)),
        "machine": machine(),
        "seeds": list(seeds),
        "looks": list(rule_of(claim, seeds).looks),
        "cap": len(claim.seeds),
        "start": claim.start,
        "problems": problems(claim),
        "exact": claim.exact,
        "metric": metric.stated(),
        "curve": {"key": key, "x": x, "from": claim.curve_from},
        "criteria": [_criterion(j, observed, prompts) for j in judged],
        "arms": [_arm(claim, arm, [o for o in observed if o.arm == arm.name], key, x) for arm in claim.arms],
    }


def arm_configs(claim: Claim) -> list[RunConfig]:
    """What a run of each arm is asked, but for its seed."""
    return [
        dataclasses.replace(base_of(claim, claim.task_of(arm), claim.budget_of(arm)), method=arm.method)
        for arm in claim.arms
    ]


def spent_of(run: Run) -> dict[str, float]:
    """What a run spent, by unit, as far as it says so."""
    stated = run.summary.get("spent")
    spent = stated if isinstance(stated, Mapping) else {}
    return {str(k): float(f"{v:.6g}") for k, v in spent.items() if isinstance(v, int | float) and v}


def problems(claim: Claim) -> dict[str, str]:
    """Of each of the claim's language tasks a hash of what it asks: a task that changed is another experiment."""
    tasks = {key: make_task(base_of(claim, *key)) for key in groups(claim)}
    return {name: task.problems() for (name, _), task in tasks.items() if isinstance(task, GeneratedTask)}


def shown_metric(claim: Claim, observed: Sequence[Observed]) -> Metric:
    """What tables show of an arm: the task's metric, or the evaluation that the claim draws where the arm has it."""
    metric = observed[0].metric
    if not claim.curve.startswith("eval/") or all(o.run.final(claim.curve) is None for o in observed):
        return metric
    same = claim.curve == metric.key
    return metric if same else Metric(claim.curve, named(claim.curve, metric), higher_is_better=metric.higher_is_better)


def _arm(claim: Claim, arm: Arm, observed: Sequence[Observed], key: str, x: str) -> dict[str, Any]:
    metric = shown_metric(claim, observed)
    return {
        "name": arm.name,
        "method": arm.method,
        "task": claim.task_of(arm),
        "budget": claim.budget_of(arm),
        "drawn": arm.drawn,
        "hyperparameters": dict(observed[0].run.config["hyperparameters"]),
        "measured": metric.label,
        "runs": [_run(o.run, metric, key, x) for o in sorted(observed, key=lambda o: o.seed)],
    }


def versions() -> dict[str, str]:
    """Of the packages whose digits an entry depends on."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _seconds(run: Run) -> float:
    return sum(run.seconds_by_stage.values())


def _prompts(claim: Claim) -> int | None:
    """Test prompts of an evaluation of the claim's task; None outside language."""
    config = base_of(claim, claim.task, claim.budget)
    if domain_of(claim.task) != "language":
        return None
    return config.eval_prompts or int(make_task(config).evaluation_prompts)


def _criterion(judged: Judged, observed: Sequence[Observed], prompts: int | None) -> dict[str, Any]:
    criterion = judged.criterion
    metric = next(o.metric for o in observed if o.arm in criterion.quantity.arms())
    return {
        "name": criterion.name,
        "quantity": criterion.quantity.says(metric),
        "unit": criterion.unit,
        "kind": criterion.kind,
        "primary": criterion.primary,
        "at_least": criterion.at_least,
        "at_most": criterion.at_most,
        "outcome": judged.outcome,
        "decided_after": judged.decided,
        "estimate": _estimate(judged.estimate),
        "probability_of_improvement": _estimate(judged.improvement),
        "per_seed": {str(seed): value for seed, value in judged.per_seed.items()},
        "variance": parts_of(criterion, judged.per_seed, observed, prompts),
        "took_the_worst": [f"{arm}, seed {seed}" for arm, seed in judged.worst_taken],
    }


def _estimate(estimate: Estimate | None) -> dict[str, float | int | None] | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def _run(run: Run, metric: Metric, key: str, x: str) -> dict[str, Any]:
    points = curve_of(run, key, x)
    step = max(1, math.ceil(len(points) / POINTS))
    points = points[: len(points) - 1 : step] + points[-1:]
    ends = run.summary.get("final")
    return {
        "seed": run.seed,
        "status": "diverged" if run.status == "failed" else run.status,
        **({"error": run.error} if run.error else {}),
        "start": run.start(metric.key),
        "final": run.final(metric.key),
        "evaluation": {k: v for k, v in (ends if isinstance(ends, Mapping) else {}).items() if v is not None},
        "seconds": round(_seconds(run), 2),
        "spent": spent_of(run),
        "curve": {"x": [p[0] for p in points], "y": [float(f"{p[1]:.6g}") for p in points]},
    }
