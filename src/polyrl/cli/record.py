"""`polyrl record`: episodes of trained policies of control as a Minari data set."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from polyrl.api import open_policy
from polyrl.cli.commands import domain_of_run
from polyrl.errors import UserError
from polyrl.rollout.recording import Recorder
from polyrl.run_state.control import ControlRunState
from polyrl.runtime.run_folder import RunFolder
from polyrl.runtime.terminal import Terminal
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.minari import write_dataset


def record_runs(
    runs: Sequence[Path],
    *,
    episodes: int = 100,
    sampled: bool = False,
    random: float = 0.0,
    seed: int = 0,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    out: Path | None = None,
    trust_code: bool = False,
) -> Path:
    """Write whole episodes of the policies of one or several runs into a new data set; return its folder.

    Args:
        runs: their folders; episodes of several stand in turn, one of each.
        episodes: of each run.
        sampled: sampled actions instead of the most probable ones.
        random: share of the steps whose action is drawn from the whole action space; 1 asks no policy.
        seed: of everything random.
        ref_min_score, ref_max_score: returns that count as 0 and 1 of a normalized score; both or none.
        out: folder to write; none is `dataset` in the first run's folder.
        trust_code: whether to run what code the folders name.

    Raises:
        UserError: runs of another domain or of different tasks, a folder that exists, or a missing extra.
    """
    if episodes < 1:
        raise UserError(f"--episodes is {episodes} but must be at least 1.")
    if not 0 <= random <= 1:
        raise UserError(f"--random is {random:g} but is a share of the steps, from 0 to 1.")
    references = {"ref_min_score": ref_min_score, "ref_max_score": ref_max_score}
    if (ref_min_score is None) != (ref_max_score is None):
        raise UserError("--ref-min-score and --ref-max-score say together what counts as 0 and as 1; give both.")
    low, high = (math.nan if score is None else score for score in references.values())
    if ref_min_score is not None and not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--ref-min-score is {low:g} and --ref-max-score {high:g}; the second must be above the first.")
    for run in runs:
        if (domain := domain_of_run(run)) != "control":
            raise UserError(f"{run} is a run of {domain}; only runs of control have episodes to record.")
    folder = out or runs[0] / "dataset"
    run_states = [_run_state(run, trust_code) for run in runs]
    task = _one_task(runs, [run_state.task for run_state in run_states])
    recorder = Recorder(task, [run_state.judged for run_state in run_states], seed=seed, sampled=sampled, random=random)
    about = [{"run": run.name, **_named(run)} for run in runs]
    facts: dict[str, Any] = {
        "dataset_id": dataset_id(folder),
        "algorithm_name": ", ".join(dict.fromkeys(run["method"] for run in about)),
        "requirements": [f"gymnasium=={version('gymnasium')}"],
        "polyrl": {"seed": seed, "sampled": sampled, "random": random, "episodes_of_each": episodes, "runs": about},
    }
    facts |= {name: score for name, score in references.items() if score is not None}
    if spec := stated_spec(task):
        facts["env_spec"] = spec
    _, steps = write_dataset(folder, recorder(episodes), task.observations.space, task.actions.space, facts)
    _print(task, runs, recorder, steps, folder)
    return folder


def _run_state(run: Path, trust_code: bool) -> ControlRunState:
    run_state: Any = open_policy(run, trust_code=trust_code)
    assert isinstance(run_state, ControlRunState)
    return run_state


def _one_task(runs: Sequence[Path], tasks: Sequence[ControlTask]) -> ControlTask:
    """The task of all runs."""
    for run, task in zip(runs, tasks, strict=True):
        if (task.spec, task.arguments) != (tasks[0].spec, tasks[0].arguments):
            raise UserError(
                f"{runs[0]} is a run on {tasks[0].name}, and {run} one on {task.name}; record runs of one task "
                "together."
            )
    return tasks[0]


def _named(run: Path) -> dict[str, Any]:
    facts = RunFolder(run).read_config()
    return {"method": str(facts.get("method", "")), "seed": facts.get("seed")}


def dataset_id(folder: Path) -> str:
    """A name as Minari takes it: `name-v0`."""
    name = re.sub(r"[^\w-]+", "-", folder.absolute().name).strip("-") or "dataset"
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def stated_spec(task: ControlTask) -> str:
    """How Gymnasium makes the environment again, as JSON; empty where it is a function of the user's."""
    if task.make is not None:
        return ""
    made = task.create()
    try:
        return "" if made.spec is None else made.spec.to_json()
    except (TypeError, ValueError, AttributeError):  # settings that JSON cannot hold
        return ""
    finally:
        made.close()


def _print(task: ControlTask, runs: Sequence[Path], recorder: Recorder, steps: int, folder: Path) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "episodes", "steps", "return"):
        table.add_column(column, justify="left" if column == "run" else "right", header_style="dim")
    for n, run in enumerate(runs):
        returns, lengths = recorder.returns[n], recorder.lengths[n]
        table.add_row(str(run), str(len(returns)), str(sum(lengths)), f"{statistics.fmean(returns):.2f}")
    console, how = Terminal(), "sampled actions" if recorder.sampled else "most probable actions"
    share = f", {100 * recorder.random:g}% of the steps at random" if recorder.random else ""
    console.print(f"{task.name}, {how}{share}", soft_wrap=True)
    console.print(table)
    console.print(f"data    {folder}, {steps:,} steps", soft_wrap=True)
    console.print(f"learn   polyrl train iql --task '{task.name}' --dataset {folder}", soft_wrap=True)
