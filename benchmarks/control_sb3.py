"""Stable-Baselines3's side of the control benchmarks, as rl-zoo3 sets it up.

Runs in the environment build/sb3, started by run.py; `python control_sb3.py CASE --whole` trains for the case's whole
budget and prints nothing: the time of a user's script.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from control_work import CASES, Setting, setting_of
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from turns import Side


def make_model(name: str, setting: Setting, seed: int) -> tuple[Any, Any]:
    """The trainer and its environments."""
    torch.set_num_threads(1)

    def rate(value: float) -> Any:
        return (lambda left: left * value) if setting.linear else value

    environments = make_vec_env(name, n_envs=setting.environments, seed=seed)
    if setting.normalize:
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
    return model, environments


class Steps(BaseCallback):  # type: ignore[misc]
    """Ends a step of the benchmark where a rollout begins: the update before it is over."""

    def __init__(self, side: Side):
        super().__init__()
        self.side, self.seen, self.updates = side, 0, 0

    def _on_training_start(self) -> None:
        self.side.begin(iteration=self.model.n_steps * self.model.n_envs)

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:  # a second rollout begins
            updates = self.model._n_updates  # counts epochs
            minibatches = -(-self.model.n_steps * self.model.n_envs // self.model.batch_size)
            self.side.step(steps=self.num_timesteps - self.seen, updates=(updates - self.updates) * minibatches)
            self.seen, self.updates = self.num_timesteps, updates

    def _on_step(self) -> bool:
        return True


def main() -> None:
    """Take turns, or train once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--peer", default="sb3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    case = CASES[given.case]
    model, _ = make_model(case.environment, setting_of(case, given.peer), given.seed)
    if given.whole:
        model.learn(case.setting.steps)
        return
    side = Side()
    side.clock.wrap(model, "collect_rollouts", "collecting")
    side.clock.wrap(model, "train", "update")
    # so many that no schedule moves: what is measured is the loop, not the end of a run
    model.learn(100_000_000, callback=Steps(side))


if __name__ == "__main__":
    main()
