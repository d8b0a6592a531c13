"""What SAC, TD3 and DQN reach: polyrl and Stable-Baselines3 with the zoo's hyperparameters, side by side.

    python benchmarks/off_policy_learning.py                     every case, 5 seeds: five hours on one core
    python benchmarks/off_policy_learning.py --only sac-pendulum --seeds 0 1
    python benchmarks/off_policy_learning.py --tables            no runs: the table of what is there

Equal on both sides: environments, hyperparameters (off_policy_work.py), steps, seeds, one thread, and the judging: the
greedy action in the same 20 episodes, on the way and at the end. Not equal: the random numbers.

Every finished run is kept in build/off-policy/ and not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from off_policy_work import LEARNING
from peers import BUILD, peer_python
from results import commit, table, write
from turns import one_thread

KEPT = BUILD / "off-policy"
LIBRARIES = ("polyrl", "sb3")
EPISODES = 20


# ----------------------------------------------------------------------------------------------- one run, in a process


def evaluation_seeds() -> list[int]:
    """Those of polyrl's own evaluation; written to a file that the peer reads."""
    from polyrl.rollout.environments import episode_seed
    from polyrl.run_state.control import EVALUATION_SEED

    return [episode_seed(EVALUATION_SEED, 0, k) for k in range(EPISODES)]


def train_polyrl(job: dict[str, Any], folder: Path) -> dict[int, float]:
    """Train once; mean return of evaluations by steps."""
    import polyrl

    case = LEARNING[job["case"]]
    options = {"tensorboard": False, "evaluations": case.evaluations, "eval_episodes": EPISODES, "threads": 1}
    polyrl.train(
        case.setting.method, task=case.environment, budget=f"steps={job['steps']}", seed=job["seed"], out=folder,
        overwrite=True, quiet=True, options={**options, "checkpoint_every": 1_000_000}, turns=case.turns,
        **case.setting.for_polyrl(),
    )  # fmt: skip
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r["steps"]: r["eval/return"] for r in records if "eval/return" in r and r["steps"]}


def run_one(job: dict[str, Any]) -> None:
    """Train and judge one policy, and keep the result."""
    if job["library"] == "polyrl":
        curve = train_polyrl(job, KEPT / f"{job['key']}-run")
    else:
        from off_policy_sb3 import learn_from_file

        curve = learn_from_file(job, KEPT / "evaluation-seeds.json")
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {**job, **commit(), "curve": sorted(curve.items()), "cpu_seconds": used.ru_utime + used.ru_stime}
    partial = KEPT / f".{job['key']}.json"
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(KEPT / f"{job['key']}.json")


# ------------------------------------------------------------------------------------------------------- all the runs


def jobs(only: list[str], seeds: list[int], steps: int | None) -> list[dict[str, Any]]:
    """What is to be run: seed by seed, so that what is there at any time is even."""
    found = []
    for seed in seeds:
        for name in only:
            for library in LIBRARIES:
                budget = steps or LEARNING[name].steps
                key = f"{library}-{name}-seed{seed}-steps{budget}"
                found.append({"key": key, "case": name, "library": library, "seed": seed, "steps": budget})
    return found


def start(job: dict[str, Any]) -> None:
    """Run one job in a process of its own, unless its result is there."""
    kept = KEPT / f"{job['key']}.json"
    if kept.is_file():
        return
    python = sys.executable if job["library"] == "polyrl" else peer_python("sb3")
    told = subprocess.run(
        [python, str(Path(__file__).resolve()), "--one", json.dumps(job)],
        env=one_thread(), cwd=KEPT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = f"failed: {told.stderr.strip().splitlines()[-1:]}"
    if told.returncode == 0:
        result = json.loads(kept.read_text(encoding="utf-8"))
        said = f"{result['curve'][-1][1]:.1f} after {result['cpu_seconds']:.0f} CPU seconds"
    print(f"{job['key']}: {said}", flush=True)


def summarize(name: str, steps: int) -> dict[str, Any]:
    """Interquartile means with bootstrap intervals, at every evaluation, over the seeds that both sides have."""
    runs: dict[str, dict[int, Any]] = {library: {} for library in LIBRARIES}
    for library, found in runs.items():
        for file in KEPT.glob(f"{library}-{name}-seed*-steps{steps}.json"):
            result = json.loads(file.read_text(encoding="utf-8"))
            found[result["seed"]] = result
    seeds = sorted(runs["polyrl"].keys() & runs["sb3"].keys())
    if not seeds:
        return {}
    return {
        "seeds": seeds,
        "commits": sorted({runs[library][seed].get("commit", "unknown") for library in LIBRARIES for seed in seeds}),
        "sides": {library: side([found[seed] for seed in seeds]) for library, found in runs.items()},
    }


def side(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One library's curve and end. The seed is the unit, not the episode."""
    curve = [
        {"steps": steps, **estimate([run["curve"][place][1] for run in runs])}
        for place, (steps, _) in enumerate(runs[0]["curve"])
    ]
    return {"curve": curve, "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs)}


def estimate(returns: list[float]) -> dict[str, Any]:
    """Interquartile mean with its bootstrap interval, none of fewer than three seeds; and every seed's return."""
    from polyrl.report.statistics import suite_interquartile_mean

    found = suite_interquartile_mean([[x] for x in returns])
    interval = None if found.low is None else [found.low, found.high]
    return {"interquartile_mean": found.value, "interval": interval, "by_seed": returns}


def text(found: dict[str, Any]) -> str:
    """`-150.1 (-160.0 to -140.2)`."""
    interval = found["interval"]
    return f"{found['interquartile_mean']:.1f}" + (f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")


def print_case(name: str, found: dict[str, Any]) -> None:
    """A table of one case."""
    print(f"\n{name}, {len(found['seeds'])} seeds")
    curves = [found["sides"][library]["curve"] for library in LIBRARIES]
    rows = [[str(points[0]["steps"]), *(text(point) for point in points)] for points in zip(*curves, strict=True)]
    print(table(["steps", *LIBRARIES], rows))


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*LEARNING], default=[*LEARNING])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="instead of the budgets, to try it: nothing is written")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(json.loads(given.one))
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / "evaluation-seeds.json").write_text(json.dumps(evaluation_seeds()), encoding="utf-8")
    for job in () if given.tables else jobs(given.only, given.seeds, given.steps):
        start(job)
    for name in given.only:
        if found := summarize(name, given.steps or LEARNING[name].steps):
            print_case(name, found)
            if not given.steps:
                setting = vars(LEARNING[name].setting)
                work = {"episodes": EPISODES, "threads": 1, "setting": setting}
                write(
                    "off_policy_learning", {"polyrl": sys.executable, "sb3": peer_python("sb3")}, {name: found}, **work
                )


if __name__ == "__main__":
    main()
