"""The work of the control benchmarks: environments and hyperparameters, equal for polyrl and Stable-Baselines3.

Only the standard library is needed to import this: the peer reads it in its own environment.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


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
    normalize: bool = False
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
            "normalize_observation": self.normalize,
            "scale_reward": self.normalize,
            "hidden": self.network,
            "activation": self.activation,
            "orthogonal": self.orthogonal,
            "log_std_init": self.log_std_init,
        }


# a fifth of the zoo's million steps, on both sides
MUJOCO: dict[str, Any] = {"environments": 1, "steps": 200_000, "n_steps": 512, "normalize": True, "network": "256x256"}
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

DEFAULTS = Setting(
    environments=1, steps=200_000, n_steps=2048, batch_size=64, n_epochs=10, gamma=0.99, gae_lambda=0.95,
    learning_rate=3e-4,
)  # fmt: skip
"""Stable-Baselines3's own: two hidden layers of 64, no normalization of observations."""


@dataclass(frozen=True)
class Case:
    """One line of the table of speed."""

    environment: str
    setting: Setting
    goal: float
    """How many times faster polyrl is to be."""
    steps: int
    """Environment steps of one turn."""
    peers: tuple[str, ...] = ("sb3",)
    """The first is the one that the ratio is to. "sb3-gsde" has what polyrl has not."""


CASES = {
    "cartpole-zoo": Case("CartPole-v1", SETTINGS["CartPole-v1"], 5.0, 8_192),
    "pendulum-zoo": Case("Pendulum-v1", SETTINGS["Pendulum-v1"], 4.0, 8_192, peers=("sb3", "sb3-gsde")),
    "halfcheetah-64": Case("HalfCheetah-v5", DEFAULTS, 4.0, 4_096),
    "halfcheetah-zoo": Case("HalfCheetah-v5", SETTINGS["HalfCheetah-v5"], 2.5, 2_048),
    "hopper-64": Case("Hopper-v5", DEFAULTS, 3.0, 4_096),
}
PEERS = {
    "sb3": "Stable-Baselines3, without gSDE, which polyrl has not",
    "sb3-gsde": "Stable-Baselines3 with state-dependent noise (gSDE), as the zoo has it on Pendulum",
}


def setting_of(case: Case, peer: str) -> Setting:
    """The case's setting as a peer runs it."""
    return case.setting if peer == "sb3-gsde" else replace(case.setting, peer={})
