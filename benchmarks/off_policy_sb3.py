"""Stable-Baselines3's side of the off-policy benchmarks. Runs in the environment build/sb3."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from off_policy_work import CASES, LEARNING, Setting
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from turns import Side

METHODS = {"sac": SAC, "td3": TD3, "dqn": DQN}


def make_model(name: str, setting: Setting, seed: int) -> Any:
    """The trainer, with its environment."""
    torch.set_num_threads(1)
    environment = gymnasium.make(name)
    options = setting.for_peer()
    if setting.method == "td3":
        numbers = environment.action_space.shape
        options["action_noise"] = NormalActionNoise(np.zeros(numbers), 0.1 * np.ones(numbers))
    return METHODS[setting.method]("MlpPolicy", environment, seed=seed, device="cpu", **options)


class Every(BaseCallback):  # type: ignore[misc]
    """Calls back where a rollout begins and so many steps were done: the update before it is over."""

    def __init__(self, steps: int, call: Callable[[int], None]):
        super().__init__()
        self.steps, self.call, self.seen = steps, call, 0

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self.seen >= self.steps:
            self.seen = self.num_timesteps
            self.call(self.num_timesteps)

    def _on_step(self) -> bool:
        return True


def evaluate(model: Any, name: str, seeds: list[int]) -> float:
    """Mean return of greedy episodes from these seeds."""
    judge, returns = gymnasium.make(name), []
    for episode in seeds:
        seen, _ = judge.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(seen, deterministic=True)
            seen, reward, end, cut, _ = judge.step(action)
            total, over = total + float(reward), bool(end or cut)
        returns.append(total)
    return statistics.fmean(returns)


def learn(name: str, seed: int, steps: int, seeds: list[int]) -> dict[int, float]:
    """Train once; mean return of evaluations by steps, at the iterations at which polyrl evaluates."""
    case = LEARNING[name]
    model = make_model(case.environment, case.setting, seed)
    iteration, curve = case.turns * case.setting.train_freq, dict[int, float]()
    due = 0

    def look(done: int) -> None:
        nonlocal due
        if done < steps and done * case.evaluations // steps > due:
            due = done * case.evaluations // steps
            curve[done] = evaluate(model, case.environment, seeds)

    model.learn(steps, callback=Every(iteration, look))
    curve[model.num_timesteps] = evaluate(model, case.environment, seeds)
    return curve


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    case = CASES[given.case]
    model, side = make_model(case.environment, case.setting, given.seed), Side()
    side.clock.wrap(model, "collect_rollouts", "collecting")
    side.clock.wrap(model, "train", "update")
    iteration, last = case.turns * case.setting.train_freq, {"steps": 0, "updates": 0}

    def step(done: int) -> None:
        now = {"steps": done, "updates": model._n_updates}
        side.step(**{key: now[key] - last[key] for key in now})
        last.update(now)

    side.begin(iteration=iteration)
    # so many that exploration stays where it starts: what is measured is the loop
    model.learn(100_000_000, callback=Every(iteration, step))


def learn_from_file(job: dict[str, Any], seeds_file: Path) -> dict[int, float]:
    """One run of the benchmark of learning."""
    seeds = json.loads(seeds_file.read_text(encoding="utf-8"))
    return learn(job["case"], job["seed"], job["steps"], seeds)


if __name__ == "__main__":
    main()
