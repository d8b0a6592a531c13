"""BC, IQL and CQL on data of four kinds that polyrl recorded itself: what the data is worth to whom.

    python benchmarks/offline_mixtures.py                        Pendulum, 2 seeds: 12 CPU minutes on one core
    python benchmarks/offline_mixtures.py --task halfcheetah     the same there: 90 CPU minutes
    python benchmarks/offline_mixtures.py --sets medium --methods bc iql --seeds 0
    python benchmarks/offline_mixtures.py --tables               no runs: the table of what is there

One run of SAC is kept at twenty places, and `polyrl record --sampled` plays 50 episodes of it for each data set (10,000
steps of Pendulum, 50,000 of HalfCheetah): random actions; a policy half-way between the first and the last by its
evaluations; ten policies of the whole run, five episodes each; the last policy. Equal for the methods: rows, batches
and their size, networks, and the judging: the most probable action in the same 50 episodes. CQL computes several times
more a batch.

Every data set and finished run is kept in build/ and not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import BUILD
from results import commit, table, write


@dataclass(frozen=True)
class Setting:
    """What differs from task to task."""

    task: str
    kept: Path
    steps: int
    """Of the teacher."""
    learning_rate: float
    """Of the teacher: rl-zoo3's for this task."""
    random_steps: int
    """Of the teacher, as rl-zoo3 has them."""
    batches: int
    hidden: str
    batch_size: int

    @property
    def every(self) -> int:
        """Steps from one kept policy to the next."""
        return self.steps // 20

    @property
    def shared(self) -> dict[str, Any]:
        """The same for all methods; everything else is as their files have it."""
        return {"hidden": self.hidden, "batch_size": self.batch_size}


SETTINGS = {
    "pendulum": Setting("Pendulum-v1", BUILD / "offline-mixtures", 10_000, 1e-3, 100, 6_000, "64x64", 128),
    "halfcheetah": Setting(
        "HalfCheetah-v5", BUILD / "offline-halfcheetah", 100_000, 3e-4, 10_000, 10_000, "256x256", 256
    ),
}
EPISODES = 50
"""Of a data set, and of the judging."""
MIXED = 10
"""Policies in the replay-like set."""
SETS = ("random", "medium", "replay", "expert")
METHODS = ("bc", "iql", "cql")


# --------------------------------------------------------------------------------------------------------------- data


def teacher(setting: Setting) -> dict[int, float]:
    """Train SAC, unless it is there; the greedy return by steps, of every policy that was kept."""
    import polyrl

    folder, kept = setting.kept / "sac", setting.steps // setting.every
    if not (folder / "summary.json").is_file():
        polyrl.train(
            "sac", task=setting.task, budget=f"steps={setting.steps}", out=folder, overwrite=True, quiet=True,
            turns=setting.every, learning_rate=setting.learning_rate, random_steps=setting.random_steps,
            options={
                "tensorboard": False, "evaluations": kept, "eval_episodes": 20, "checkpoint_every": 1,
                "keep_checkpoints": kept + 1,
            },
        )  # fmt: skip
    return curve(folder, "steps")


def curve(folder: Path, unit: str) -> dict[int, float]:
    """Greedy returns of a run's evaluations after its start."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r[unit]: r["eval/return"] for r in records if "eval/return" in r and r[unit]}


def halfway(returns: dict[int, float]) -> int:
    """The steps at which the policy's return was nearest to the middle of the first and the last."""
    middle = (returns[min(returns)] + returns[max(returns)]) / 2
    return min(returns, key=lambda steps: abs(returns[steps] - middle))


def policy(setting: Setting, steps: int) -> Path:
    """A run's folder that holds the teacher's policy after so many steps."""
    folder = setting.kept / f"sac-{steps}"
    if not folder.is_dir():
        name = f"iteration-{steps // setting.every:06d}"
        partial = setting.kept / f".sac-{steps}"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(setting.kept / "sac" / "checkpoints" / name, partial / "checkpoints" / name)
        shutil.copy(setting.kept / "sac" / "config.yaml", partial)
        partial.rename(folder)
    return folder


def record(setting: Setting, name: str, returns: dict[int, float]) -> Path:
    """Record a data set, unless it is there; its folder."""
    folder, stages = setting.kept / "data" / name, sorted(returns)
    last = stages[-1]
    chosen = {
        "random": [stages[0]],
        "medium": [halfway(returns)],
        "replay": stages[len(stages) // MIXED - 1 :: len(stages) // MIXED],
        "expert": [last],
    }[name]
    if not folder.is_dir():
        how = ["--random", "1"] if name == "random" else ["--sampled"]
        subprocess.run(
            [sys.executable, "-m", "polyrl", "record", *(str(policy(setting, steps)) for steps in chosen), *how,
             "--episodes", str(EPISODES // len(chosen)), "--seed", str(SETS.index(name)), "--out", str(folder)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return folder


def returns_of(folder: Path) -> list[float]:
    """The return of every episode of a data set."""
    import h5py

    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        return [float(episode["rewards"][()].sum()) for episode in file.values()]


# --------------------------------------------------------------------------------------------------------------- runs


def learn(setting: Setting, method: str, name: str, seed: int, data: Path, batches: int) -> None:
    """Train and judge a policy, unless its result is there."""
    import polyrl

    key = f"{method}-{name}-seed{seed}-batches{batches}"
    kept, folder = setting.kept / f"{key}.json", setting.kept / "runs" / key
    if kept.is_file():
        return
    began = time.process_time()
    options = {"tensorboard": False, "evaluations": 4, "eval_episodes": EPISODES, "checkpoint_every": 1_000_000}
    done = polyrl.train(
        method, task=setting.task, dataset=data, budget=f"iterations={batches // 1_000}", seed=seed, out=folder,
        overwrite=True, quiet=True, options=options, turns=1_000, **setting.shared,
    )  # fmt: skip
    result = {
        **commit(),
        "return": done.final["eval/return"],
        "curve": sorted(curve(folder, "iteration").items()),
        "cpu_seconds": time.process_time() - began,
    }
    partial = setting.kept / f".{key}.json"
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(kept)
    print(f"{key}: {result['return']:.1f} after {result['cpu_seconds']:.0f} CPU seconds", flush=True)


def summarize(setting: Setting, name: str, batches: int) -> dict[str, Any]:
    """A data set's returns and what each method made of it; of every method the same seeds."""
    data = setting.kept / "data" / name
    found: dict[str, dict[int, Any]] = {method: {} for method in METHODS}
    for method, runs in found.items():
        for file in setting.kept.glob(f"{method}-{name}-seed*-batches{batches}.json"):
            seed = int(file.name.partition("seed")[2].partition("-")[0])
            runs[seed] = json.loads(file.read_text(encoding="utf-8"))
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    if not seeds:
        return {}
    returns = returns_of(data)
    return {
        "seeds": seeds,
        "data": {"mean": statistics.fmean(returns), "best": max(returns), "episodes": len(returns)},
        "methods": {method: side([runs[seed] for seed in seeds]) for method, runs in found.items()},
        "commits": sorted({runs[seed]["commit"] for runs in found.values() for seed in seeds}),
    }


def side(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A method's returns by seed, at the end and on the way, and what a run took."""
    return {
        "by_seed": [run["return"] for run in runs],
        "curves": [run["curve"] for run in runs],
        "cpu_seconds": statistics.fmean(run["cpu_seconds"] for run in runs),
    }


def row(name: str, found: dict[str, Any]) -> list[str]:
    """`medium  -700.1  -300.2  -512.3 (-500, -524) ...`."""
    cells = []
    for method in METHODS:
        ends = found["methods"][method]["by_seed"]
        cells.append(f"{statistics.fmean(ends):.0f} ({', '.join(f'{end:.0f}' for end in ends)})")
    return [name, f"{found['data']['mean']:.0f}", f"{found['data']['best']:.0f}", *cells]


def main() -> None:
    """Make what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*SETTINGS], default="pendulum")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batches", type=int, help="instead of the budget, to try it: nothing is written")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    setting = SETTINGS[given.task]
    batches = given.batches or setting.batches
    if not given.tables:
        returns = teacher(setting)
        print("the teacher's returns:", ", ".join(f"{steps}: {found:.0f}" for steps, found in returns.items()))
        folders = {name: record(setting, name, returns) for name in given.sets}
        for seed in given.seeds:
            for name in given.sets:
                for method in given.methods:
                    learn(setting, method, name, seed, folders[name], batches)
    summaries = {name: found for name in SETS if (found := summarize(setting, name, batches))}
    print(table(["data", "mean", "best", *METHODS], [row(name, found) for name, found in summaries.items()]))
    if not given.batches and summaries:
        taught = {"steps": setting.steps, "every": setting.every, "learning_rate": setting.learning_rate}
        work = {"threads": 1, "teacher": taught, "batches": batches, "setting": setting.shared}
        work |= {"task": setting.task, "judged_episodes": EPISODES}
        names = {"pendulum": "offline_mixtures", "halfcheetah": "offline_mixtures_halfcheetah"}
        write(names[given.task], {"polyrl": sys.executable}, summaries, **work)


if __name__ == "__main__":
    main()
