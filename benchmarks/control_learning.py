"""What PPO reaches: polyrl and Stable-Baselines3 with the zoo's hyperparameters, side by side.

    python benchmarks/control_learning.py                        every environment, 3 seeds: half an hour on two cores
    python benchmarks/control_learning.py --only CartPole-v1 Pendulum-v1
    python benchmarks/control_learning.py --steps 5000 --seeds 1 --only Hopper-v5 --out /tmp/smoke.json     a smoke run

Equal on both sides: environments and their versions, hyperparameters (rl-zoo3's tuned ones, below), steps, seeds, one
thread, and the judging: the most probable action in the same episodes (same seeds), statistics of normalisation as
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
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build"
PEER = BUILD / "sb3"
KEPT = BUILD / "control-learning"
EPISODES = 50
"""Evaluation episodes of each trained policy."""


@dataclass(frozen=True)
class Setting:
    """One line of rl-zoo3's hyperparams/ppo.yml; the names are Stable-Baselines3's."""

    environments: int
    steps: int
    n_steps: int
    batch_size: int
    n_epochs: int
    gamma: float
    gae_lambda: float
    learning_rate: float
    clip_range: float = 0.2
    linear: bool = False
    """Whether learning rate (and in the zoo the clip range) fall to 0."""
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    normalise: bool = False
    network: str = "64x64"
    activation: str = "tanh"
    orthogonal: bool = True
    log_std_init: float = 0.0
    peer: dict[str, Any] = field(default_factory=dict)
    """What the zoo has and polyrl has not."""

    def for_polyrl(self) -> dict[str, Any]:
        """The same in polyrl's words."""
        return {
            "environments": self.environments,
            "steps_per_environment": self.n_steps,
            "minibatches": self.environments * self.n_steps // self.batch_size,
            "epochs": self.n_epochs,
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
            "learning_rate": self.learning_rate,
            "critic_learning_rate": self.learning_rate,
            "schedule": "linear" if self.linear else "constant",
            "clip_range": self.clip_range,
            "entropy_coef": self.ent_coef,
            "value_coef": 2 * self.vf_coef,  # polyrl's value loss is half the squared error
            "max_grad_norm": self.max_grad_norm,
            "normalise_observation": self.normalise,
            "scale_reward": self.normalise,
            "hidden": self.network,
            "activation": self.activation,
            "orthogonal": self.orthogonal,
            "log_std_init": self.log_std_init,
        }


# a fifth of the zoo's million steps, on both sides
MUJOCO = {"environments": 1, "steps": 200_000, "n_steps": 512, "normalise": True, "network": "256x256"}
MUJOCO |= {"activation": "relu", "orthogonal": False, "log_std_init": -2.0}
SETTINGS = {
    "CartPole-v1": Setting(8, 100_000, 32, 256, 20, 0.98, 0.8, 1e-3, linear=True),
    "Pendulum-v1": Setting(
        4, 100_000, 1024, 64, 10, 0.9, 0.95, 1e-3, peer={"use_sde": True, "sde_sample_freq": 4}
    ),
    "HalfCheetah-v5": Setting(
        batch_size=64, n_epochs=20, gamma=0.98, gae_lambda=0.92, learning_rate=2.0633e-05, clip_range=0.1,
        ent_coef=0.000401762, vf_coef=0.58096, max_grad_norm=0.8, **MUJOCO,
    ),
    "Hopper-v5": Setting(
        batch_size=32, n_epochs=5, gamma=0.999, gae_lambda=0.99, learning_rate=9.80828e-05, clip_range=0.2,
        ent_coef=0.00229519, vf_coef=0.835671, max_grad_norm=0.7, **MUJOCO,
    ),
}  # fmt: skip

# ----------------------------------------------------------------------------------------------- one run, in a process


def evaluation_seeds() -> list[int]:
    """Those of polyrl's own evaluation; written to a file that the peer reads."""
    from polyrl.sampling.control import episode_seed
    from polyrl.worlds.control import EVALUATION_SEED

    return [episode_seed(EVALUATION_SEED, 0, k) for k in range(EPISODES)]


def train_polyrl(name: str, setting: Setting, seed: int, steps: int, folder: Path) -> list[float]:
    """Train, or go on with what was interrupted; returns of the evaluation episodes."""
    import polyrl
    from polyrl.api import open_policy
    from polyrl.runtime.checkpoint import checkpoints
    from polyrl.worlds.control import ControlWorld

    if checkpoints(folder / "checkpoints"):
        polyrl.resume(folder, quiet=True)
    else:
        options = {"tensorboard": False, "evaluations": 10, "eval_episodes": 5, "checkpoint_every": 100}
        polyrl.train(
            "ppo", task=name, budget=f"steps={steps}", seed=seed, out=folder, overwrite=True, quiet=True,
            options=options, **setting.for_polyrl(),
        )  # fmt: skip
    world = open_policy(folder)
    assert isinstance(world, ControlWorld)
    return [episode.total for episode in world.judge(world.policy, EPISODES)]


def train_peer(name: str, setting: Setting, seed: int, steps: int, seeds: list[int]) -> list[float]:
    """The same with Stable-Baselines3, as rl-zoo3 sets it up."""
    import gymnasium
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)

    def rate(value: float) -> Any:
        return (lambda left: left * value) if setting.linear else value

    environments = make_vec_env(name, n_envs=setting.environments, seed=seed)
    if setting.normalise:
        environments = VecNormalize(environments, gamma=setting.gamma)
    sizes = [int(n) for n in setting.network.split("x")]
    network = {
        "net_arch": {"pi": sizes, "vf": sizes},
        "activation_fn": {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[setting.activation],
        "ortho_init": setting.orthogonal,
        "log_std_init": setting.log_std_init,
    }
    model = PPO(
        "MlpPolicy", environments, seed=seed, device="cpu", policy_kwargs=network, n_steps=setting.n_steps,
        batch_size=setting.batch_size, n_epochs=setting.n_epochs, gamma=setting.gamma, gae_lambda=setting.gae_lambda,
        learning_rate=rate(setting.learning_rate), clip_range=rate(setting.clip_range), ent_coef=setting.ent_coef,
        vf_coef=setting.vf_coef, max_grad_norm=setting.max_grad_norm, **setting.peer,
    )  # fmt: skip
    model.learn(steps)
    judge = gymnasium.make(name)
    returns = []
    for episode in seeds:
        seen, _ = judge.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            shown = environments.normalize_obs(seen) if setting.normalise else seen
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


def make_peer() -> Path:
    """The Python that has Stable-Baselines3."""
    python = PEER / "bin" / "python"
    if not (PEER / ".installed").exists():
        print("making the environment of the peer in build/sb3 ...", flush=True)
        venv.create(PEER, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "--constraint", str(ROOT / "constraints.txt"), "-r", str(HERE / "requirements-sb3.txt")], check=True
        )
        (PEER / ".installed").touch()
    return python


def start(job: dict[str, Any], peer: Path, seeds: Path) -> None:
    """Run one job in a process of its own, unless its result is there."""
    if (KEPT / f"{job['key']}.json").is_file():
        return
    python = sys.executable if job["library"] == "polyrl" else str(peer)
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


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
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


def versions(python: str) -> dict[str, str]:
    """Versions of what decides the numbers, in one of the two environments."""
    code = (
        "import json; from importlib.metadata import version, PackageNotFoundError\n"
        "found = {}\n"
        "for name in ('polyrl', 'stable-baselines3', 'gymnasium', 'mujoco', 'numpy', 'torch'):\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(told.stdout)
    return found


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
    peer = make_peer()
    seeds_file = KEPT / "evaluation-seeds.json"
    seeds_file.write_text(json.dumps(evaluation_seeds()), encoding="utf-8")
    wanted = jobs(given.only, given.seeds, given.steps)
    with ThreadPoolExecutor(given.workers) as pool:
        list(pool.map(lambda job: start(job, peer, seeds_file), wanted))
    table = {
        "what": __doc__.partition("\n")[0],
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {"polyrl": versions(sys.executable), "sb3": versions(str(peer))},
        "evaluation": {"episodes": EPISODES, "actions": "most probable"},
        "settings": {name: {k: v for k, v in vars(SETTINGS[name]).items()} for name in given.only},
        "results": summarise(wanted),
    }
    given.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    for name, libraries in table["results"].items():
        shown = ", ".join(f"{lib} {r['interquartile_mean']:.1f}" for lib, r in libraries.items())
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main()
