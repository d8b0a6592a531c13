"""What PPO reaches: polyrl and Stable-Baselines3 with the zoo's hyperparameters, side by side.

    python benchmarks/control_learning.py                        every environment, 3 seeds: half an hour on two cores
    python benchmarks/control_learning.py --only CartPole-v1 Pendulum-v1
    python benchmarks/control_learning.py --steps 5000 --seeds 1 --only Hopper-v5 --out /tmp/smoke.json     a smoke run

Equal on both sides: environments and their versions, hyperparameters (rl-zoo3's tuned ones, below), steps, seeds, one
thread, and the judging: the most probable action in the same episodes (same seeds), statistics of normalization as
they were after training. Not equal: the random numbers; the clip range of CartPole, which the zoo lowers to 0 over the
run and polyrl keeps; exploration on Pendulum, where the zoo has state-dependent noise (gSDE) and polyrl has not:
Stable-Baselines3 runs there both with it and without.

Every finished run is kept in build/control-learning/ and not run again; an interrupted one of polyrl goes on from its
checkpoint. Two runs go at a time. The peer lives in an environment of its own, build/sb3, which the first call makes
from requirements-sb3.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from control_work import SETTINGS, Setting
from peers import BUILD, HERE, peer_python
from results import CONTROL, versions

KEPT = BUILD / "control-learning"
EPISODES = 50
"""Evaluation episodes of each trained policy."""


# ----------------------------------------------------------------------------------------------- one run, in a process


def evaluation_seeds() -> list[int]:
    """Those of polyrl's own evaluation; written to a file that the peer reads."""
    from polyrl.rollout.environments import episode_seed
    from polyrl.run_state.control import EVALUATION_SEED

    return [episode_seed(EVALUATION_SEED, 0, k) for k in range(EPISODES)]


def train_polyrl(name: str, setting: Setting, seed: int, steps: int, folder: Path) -> list[float]:
    """Train, or go on with what was interrupted; returns of the evaluation episodes."""
    import polyrl
    from polyrl.api import open_policy
    from polyrl.run_state.control import ControlRunState
    from polyrl.runtime.checkpoint import checkpoints

    if checkpoints(folder / "checkpoints"):
        polyrl.resume(folder, quiet=True)
    else:
        options = {"tensorboard": False, "evaluations": 10, "eval_episodes": 5, "checkpoint_every": 100}
        polyrl.train(
            "ppo", task=name, budget=f"steps={steps}", seed=seed, out=folder, overwrite=True, quiet=True,
            options=options, **setting.for_polyrl(),
        )  # fmt: skip
    run_state = open_policy(folder)
    assert isinstance(run_state, ControlRunState)
    return [episode.total for episode in run_state.judge(run_state.policy, EPISODES)]


def train_peer(name: str, setting: Setting, seed: int, steps: int, seeds: list[int]) -> list[float]:
    """The same with Stable-Baselines3, as rl-zoo3 sets it up."""
    import gymnasium
    from control_sb3 import make_model

    model, environments = make_model(name, setting, seed)
    model.learn(steps)
    judge = gymnasium.make(name)
    returns = []
    for episode in seeds:
        seen, _ = judge.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            shown = environments.normalize_obs(seen) if setting.normalize else seen
            action, _ = model.predict(shown, deterministic=True)
            seen, reward, end, cut, _ = judge.step(action)
            total, over = total + float(reward), bool(end or cut)
        returns.append(total)
    return returns


def run_one(job: dict[str, Any], seeds: list[int]) -> None:
    """Train and judge one policy, and keep the result."""
    setting = setting_of(job)
    if job["library"] == "polyrl":
        folder = KEPT / f"{job['key']}-run"
        returns = train_polyrl(job["environment"], setting, job["seed"], job["steps"], folder)
    else:
        returns = train_peer(job["environment"], setting, job["seed"], job["steps"], seeds)
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        **job,
        "returns": returns,
        "mean": statistics.fmean(returns),
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }
    partial = KEPT / f".{job['key']}.json"
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(KEPT / f"{job['key']}.json")


def setting_of(job: dict[str, Any]) -> Setting:
    """The zoo's setting, without gSDE where the job says so."""
    import dataclasses

    setting = SETTINGS[job["environment"]]
    return dataclasses.replace(setting, peer={}) if job["library"] == "sb3-no-gsde" else setting


# ------------------------------------------------------------------------------------------------------- all the runs


def jobs(only: list[str], seeds: int, steps: int | None) -> list[dict[str, Any]]:
    """What is to be run."""
    found = []
    for seed in range(seeds):
        for name in only:
            setting = SETTINGS[name]
            libraries = ["polyrl", "sb3", *(["sb3-no-gsde"] if "use_sde" in setting.peer else [])]
            for library in libraries:
                budget = steps or setting.steps
                key = f"{library}-{name}-seed{seed}-steps{budget}"
                job = {"key": key, "library": library, "environment": name, "seed": seed, "steps": budget}
                found.append(job)
    return found


def start(job: dict[str, Any], peer: str, seeds: Path) -> None:
    """Run one job in a process of its own, unless its result is there."""
    if (KEPT / f"{job['key']}.json").is_file():
        return
    python = sys.executable if job["library"] == "polyrl" else peer
    limits = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    told = subprocess.run(
        [python, str(Path(__file__).resolve()), "--one", json.dumps(job), "--seeds-file", str(seeds)],
        env={**os.environ, **limits}, cwd=KEPT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = f"failed: {told.stderr.strip().splitlines()[-1:]}"
    if told.returncode == 0:
        result = json.loads((KEPT / f"{job['key']}.json").read_text(encoding="utf-8"))
        said = f"{result['mean']:.1f} after {result['cpu_seconds']:.0f} CPU seconds"
    print(f"{job['key']}: {said}", flush=True)


def summarize(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Interquartile means over seeds, and what they are made of, by environment and library."""
    from polyrl.report.statistics import interquartile_mean

    summary: dict[str, Any] = {}
    for job in found:
        file = KEPT / f"{job['key']}.json"
        if file.is_file():
            result = json.loads(file.read_text(encoding="utf-8"))
            place = summary.setdefault(job["environment"], {}).setdefault(job["library"], {"runs": []})
            place["runs"].append(result)
    for libraries in summary.values():
        for place in libraries.values():
            runs = place.pop("runs")
            # the seed is the unit, not the episode; of three seeds no quarter can be dropped
            place["interquartile_mean"] = interquartile_mean([[run["mean"]] for run in runs])
            place["mean_by_seed"] = {str(run["seed"]): run["mean"] for run in runs}
            place["steps"] = runs[0]["steps"]
            place["steps_per_cpu_second"] = statistics.median(run["steps"] / run["cpu_seconds"] for run in runs)
    return summary


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of the budgets below")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "control_learning.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seeds-file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(json.loads(given.one), json.loads(given.seeds_file.read_text(encoding="utf-8")))
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    peer = peer_python("sb3")
    seeds_file = KEPT / "evaluation-seeds.json"
    seeds_file.write_text(json.dumps(evaluation_seeds()), encoding="utf-8")
    wanted = jobs(given.only, given.seeds, given.steps)
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(lambda job: start(job, peer, seeds_file), wanted))
    table = {
        "what": __doc__.partition("\n")[0],
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {"polyrl": versions(sys.executable, CONTROL), "sb3": versions(peer, CONTROL)},
        "evaluation": {"episodes": EPISODES, "actions": "most probable"},
        "settings": {name: {k: v for k, v in vars(SETTINGS[name]).items()} for name in given.only},
        "results": summarize(wanted),
    }
    given.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    for name, libraries in table["results"].items():
        shown = ", ".join(f"{lib} {r['interquartile_mean']:.1f}" for lib, r in libraries.items())
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main()
