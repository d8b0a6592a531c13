"""The work of the off-policy benchmarks: SAC, TD3 and DQN with hyperparameters equal to Stable-Baselines3's.

Only the standard library is needed to import this: the peer reads it in its own environment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Hyperparameters of one method; the names are Stable-Baselines3's, and so are the defaults."""

    method: str
    learning_rate: float
    learning_starts: int = 100
    """Steps before updates; their actions are drawn at random on both sides."""
    batch_size: int = 256
    buffer_size: int = 1_000_000
    gamma: float = 0.99
    train_freq: int = 1
    gradient_steps: int = 1
    network: str = "256x256"
    exploration_fraction: float = 0.16
    exploration_final_eps: float = 0.04
    target_every: int = 1
    """Rounds of `train_freq` steps from one renewal of DQN's copy to the next."""

    def sizes(self) -> list[int]:
        """Units of each hidden layer."""
        return [int(n) for n in self.network.split("x")]

    def for_polyrl(self) -> dict[str, Any]:
        """The same in polyrl's words."""
        common: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "learning_starts": self.learning_starts,
            "random_steps": self.learning_starts,
            "batch_size": self.batch_size,
            "capacity": self.buffer_size,
            "gamma": self.gamma,
            "hidden": self.network,
        }
        if self.method == "dqn":
            return {
                **common,
                "steps_per_environment": self.train_freq,
                "gradient_steps": self.gradient_steps,
                "exploration_fraction": self.exploration_fraction,
                "exploration_final": self.exploration_final_eps,
                "q-target-move.every": self.target_every,
                "double": "false",  # the peer has no double DQN
            }
        assert self.train_freq == self.gradient_steps == 1  # as polyrl's recipes are
        return common

    def for_peer(self) -> dict[str, Any]:
        """Arguments of the peer's class, but for the environment."""
        common: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "learning_starts": self.learning_starts,
            "batch_size": self.batch_size,
            "buffer_size": self.buffer_size,
            "gamma": self.gamma,
            "train_freq": self.train_freq,
            "gradient_steps": self.gradient_steps,
            "policy_kwargs": {"net_arch": self.sizes()},
        }
        if self.method == "dqn":
            # in steps; the copy is renewed before a round of updates, as at the zoo's interval of 10 for CartPole
            common |= {"target_update_interval": self.target_every * self.train_freq}
            common |= {"exploration_fraction": self.exploration_fraction}
            common |= {"exploration_final_eps": self.exploration_final_eps}
        return common


@dataclass(frozen=True)
class Learning:
    """One comparison of what is learned: rl-zoo3's hyperparameters on both sides."""

    environment: str
    setting: Setting
    steps: int
    turns: int
    """Rounds of `train_freq` steps in one iteration of polyrl's, after which it may evaluate."""
    evaluations: int


DQN = Setting(
    "dqn", 2.3e-3, learning_starts=1_000, batch_size=64, buffer_size=100_000, train_freq=256, gradient_steps=128
)
"""rl-zoo3's hyperparameters for CartPole-v1."""
MOUNTAIN = Setting(
    "dqn", 4e-3, learning_starts=1_000, batch_size=128, buffer_size=10_000, gamma=0.98, train_freq=16,
    gradient_steps=8, exploration_fraction=0.2, exploration_final_eps=0.07, target_every=38,
)  # fmt: skip
"""rl-zoo3's hyperparameters for MountainCar-v0; its copy is renewed every 600 steps, this one every 608."""
SAC = Setting("sac", 1e-3)
"""rl-zoo3's hyperparameters for Pendulum-v1."""
TD3 = Setting("td3", 1e-3, learning_starts=10_000, buffer_size=200_000, gamma=0.98, network="400x300")
"""rl-zoo3's hyperparameters for Pendulum-v1."""
CHEETAH_SAC = Setting("sac", 3e-4, learning_starts=10_000)
"""rl-zoo3's hyperparameters for HalfCheetah."""
CHEETAH_TD3 = Setting("td3", 1e-3, learning_starts=10_000, network="400x300")
"""rl-zoo3's hyperparameters for HalfCheetah."""

LEARNING = {
    "dqn-cartpole": Learning("CartPole-v1", DQN, 50_000, turns=4, evaluations=5),
    "dqn-mountaincar": Learning("MountainCar-v0", MOUNTAIN, 120_000, turns=25, evaluations=6),
    "sac-pendulum": Learning("Pendulum-v1", SAC, 20_000, turns=1_000, evaluations=10),
    "td3-pendulum": Learning("Pendulum-v1", TD3, 20_000, turns=1_000, evaluations=10),
    "sac-halfcheetah": Learning("HalfCheetah-v5", CHEETAH_SAC, 50_000, turns=2_500, evaluations=5),
    "td3-halfcheetah": Learning("HalfCheetah-v5", CHEETAH_TD3, 50_000, turns=2_500, evaluations=5),
}
"""Pendulum's and MountainCar's budgets are the zoo's own; HalfCheetah's is a twentieth of it."""


@dataclass(frozen=True)
class Case:
    """One line of the table of speed."""

    environment: str
    setting: Setting
    goal: float
    """How many times faster polyrl is to be."""
    turns: int
    """Rounds of `train_freq` steps in one measured turn."""


PLAIN_SAC = Setting("sac", 3e-4)
"""Stable-Baselines3's defaults."""
PLAIN_TD3 = Setting("td3", 1e-3)
"""Stable-Baselines3's defaults, but for the networks, which it has of 400 and 300 units."""
CASES = {
    "sac-pendulum": Case("Pendulum-v1", PLAIN_SAC, 2.0, 100),
    "sac-halfcheetah": Case("HalfCheetah-v5", PLAIN_SAC, 2.0, 100),
    "td3-pendulum": Case("Pendulum-v1", PLAIN_TD3, 2.0, 100),
    "td3-halfcheetah": Case("HalfCheetah-v5", PLAIN_TD3, 2.0, 100),
    "dqn-cartpole": Case("CartPole-v1", replace(DQN, learning_starts=256), 2.0, 4),
}
