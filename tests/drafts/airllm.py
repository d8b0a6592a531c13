"""AirLLM: a coarse code by PPO, expanded by a denoiser to the rank of every adapted layer, under a wireless budget.

A draft of arXiv:2507.11515: PPO acts with a short code, a conditional DDIM with classifier-free guidance makes a rank
for each layer of it, and the denoiser learns from the ranks that were executed, weighted by reward. What is adapted
trains on inside the environment over all episodes. Two learners, one of them on policy, one on a replay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Again, Draws, Epochs, Fresh, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.actor import Actor, DistributionActor, Making, Moment, Player
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import Interface, Network, Trained
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import DiagonalGaussian, Distribution
from polyrl.models.networks import StackedMlp
from polyrl.parts.control import StateValues, StepEnvironments
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Part, Recipe, Stage, hyperparameter

SLUG, TITLE, PAPER, YEAR = "airllm-draft", "Diffusion Policy-based Adaptive LoRA over the Air", "arXiv:2507.11515", 2025
FORMULA = "r_l = r_min + floor((x_l + 1) / 2 (R - r_min)), x = DDIM(noise | tanh u), u ~ N(mu(s), sigma)"
LAYERS, RANK = 6, 8


def capacity(snr: float, bandwidth: float) -> float:
    """Bits a second of a channel of `snr` decibels and `bandwidth` hertz."""
    return bandwidth * math.log2(1 + 10 ** (snr / 10))


def decoded(code: NDArray[Any]) -> NDArray[np.int64]:
    """Ranks 1 to R of numbers in [-1, 1]."""
    return (1 + np.floor((np.clip(code, -1, 1) + 1) / 2 * (RANK - 1) + 1e-6)).astype(np.int64)


class Channel(gymnasium.Env[np.ndarray, Any]):
    """Adapt linear layers, of which some need more than others, over a channel that is another at every step.

    What is adapted, `scale`, trains on from one episode to the next.
    """

    metadata: ClassVar[dict[str, Any]] = {"info_fields": {"rank_code": (LAYERS,)}, "lasting": ("scale",)}
    snrs = (-5.0, 0.0, 5.0, 10.0, 15.0)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (1 + LAYERS,), np.float32)
        self.action_space = spaces.Box(-1, 1, (LAYERS,), np.float32)
        self.goal = np.outer(np.linspace(2, 0, LAYERS), np.linspace(1, 0.2, RANK))  # what each component should become
        self.scale = np.zeros((LAYERS, RANK))

    def _shown(self) -> np.ndarray:
        self.snr = float(self.np_random.choice(self.snrs))
        return np.append((self.snr + 5) / 20, self.ranks / RANK).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.ranks, self.t = np.full(LAYERS, RANK // 2), 0
        return self._shown(), {}

    def step(self, action: Any) -> Any:
        self.ranks, self.t = decoded(np.asarray(action)), self.t + 1
        cost = self.ranks.sum() / (LAYERS * RANK) / (capacity(self.snr, 1.0) / capacity(5.0, 1.0))
        reward = -0.1 * cost
        if cost <= 1:
            sent = np.arange(RANK) < self.ranks[:, None]
            noise = 0.1 * self.np_random.standard_normal(self.scale.shape)
            self.scale = self.scale + 0.05 * sent * (self.goal - self.scale + noise)
            reward -= float(np.square(self.goal - self.scale).mean())
        else:  # nothing arrives, and nothing is trained
            reward -= 10 * cost
        told = {"rank_code": 2 * (self.ranks - 1) / (RANK - 1) - 1}
        return self._shown(), reward, False, self.t >= 15, told


class DenoiserNetwork(Network):
    """Predicts the noise on codes of ranks, given the coarse code, or 0 for no condition."""

    def __init__(self, network: StackedMlp, steps: int):
        super().__init__()
        self.network = network
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(0.01, 0.3, steps), 0))

    def forward(self, noisy: Tensor, step: Tensor, code: Tensor) -> Tensor:
        """Noise `[..., L]` of noisy codes `[..., L]` at steps `[..., 1]` under coarse codes `[..., d]`."""
        said: Tensor = self.network(torch.cat([noisy, step / len(self.kept), code], -1))
        return said.squeeze(-2)

    def expand(self, code: Tensor, noise: Tensor, guidance: float) -> Tensor:
        """DDIM with guidance: eps(0) + w (eps(c) - eps(0)); x0 is cut at +-1. `[..., d]`, `[..., L]` to `[..., L]`."""
        x = noise
        for t in reversed(range(len(self.kept))):
            step, kept = torch.full((*x.shape[:-1], 1), float(t)), self.kept[t]
            free = self(x, step, torch.zeros_like(code))
            said = free + guidance * (self(x, step, code) - free)
            start = ((x - (1 - kept).sqrt() * said) / kept.sqrt()).clamp(-1, 1)
            x = start if t == 0 else self.kept[t - 1].sqrt() * start + (1 - self.kept[t - 1]).sqrt() * said
        return x

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: squared error of the noise on the ranks that were executed, some without condition."""
        target = batch["rank_code"]
        code = batch["action"][..., : self.network.weights[0].shape[1] - target.shape[-1] - 1].tanh()
        step = (draw.uniform(*target.shape[:-1], 1) * len(self.kept)).floor()
        code = code * (draw.uniform(*target.shape[:-1], 1) >= 0.1)
        noise, kept = draw(*target.shape), self.kept[step.long()]
        noisy = kept.sqrt() * target + (1 - kept).sqrt() * noise
        return {"imitation": (self(noisy, step, code) - noise).square().mean(-1)}


@dataclass(frozen=True, kw_only=True)
class RankDenoiser(Trained):
    """A conditional denoiser of ranks."""

    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    code: int = hyperparameter(3, "numbers of the coarse code", low=1)
    denoising_steps: int = hyperparameter(5, "steps of the chain", low=1)

    def make(self, interface: Interface, stream: torch.Generator) -> DenoiserNetwork:
        numbers = int(np.prod(interface.box("A denoiser of ranks").shape))
        network = StackedMlp(numbers + 1 + self.code, (64, 64), numbers, generator=stream)
        return DenoiserNetwork(network, self.denoising_steps)


@dataclass(frozen=True, kw_only=True)
class CodePolicy(MlpPolicy):
    """A Gaussian over the coarse code, whatever the environment takes."""

    code: int = hyperparameter(3, "numbers of the coarse code", low=1)

    def distribution(self, interface: Interface) -> Distribution:
        return DiagonalGaussian(self.code, self.log_std_init)


class Expander(DistributionActor):
    """Acts with a code and the noise that it is expanded from; the environment gets what the chain makes of both."""

    is_policy = True

    def __init__(self, policy: ControlPolicy, denoiser: DenoiserNetwork, numbers: int, guidance: float):
        super().__init__(policy)
        self.denoiser, self.guidance, self.code = denoiser, guidance, self.action_shape[0]
        self.action_shape, self.executed_shape = (self.code + numbers,), (numbers,)
        self.execute = self.expanded

    def expanded(self, action: NDArray[Any]) -> NDArray[Any]:
        """Codes of ranks `[B, L]` of codes and noise `[B, d + L]`."""
        code, noise = torch.from_numpy(action).split([self.code, action.shape[1] - self.code], 1)
        with torch.no_grad():
            return self.denoiser.expand(code.tanh(), noise, self.guidance).numpy()

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        chain = torch.randn((steps, count, *self.executed_shape), generator=generator).numpy()
        return np.concatenate([super().noise(steps, count, generator), chain], -1)

    def player(self) -> Player:
        """Without noise the most probable code, expanded from 0."""
        play = super().player()

        def act(moment: Moment) -> NDArray[Any]:
            whole = moment.noise
            if whole is None:
                code = play(moment)
                return np.concatenate([code, np.zeros((len(code), *self.executed_shape), np.float32)], 1)
            moment.noise = whole[:, : self.code]
            return np.concatenate([play(moment), whole[:, self.code :]], 1)

        return act

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        return super().fields(records, action[..., : self.code])

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        return super().outputs(batch.with_fields(action=batch["action"][..., : self.code]), wants)


@dataclass(frozen=True, kw_only=True)
class ExpandCodes(StepEnvironments):
    """Step environments with expanded codes."""

    guidance: float = hyperparameter(1.5, "w of classifier-free guidance")

    def actor(self, inner: Actor, making: Making) -> Actor:
        assert isinstance(inner, DistributionActor)
        numbers = int(np.prod(making.task.actions.space.shape))
        return Expander(inner.policy, making.models["denoiser"], numbers, self.guidance)


@dataclass(frozen=True, kw_only=True)
class RewardWeights(Part):
    """Weigh rows by their reward: 1 + share x its standard score, between 0.1 and 10."""

    stage: ClassVar[Stage] = "credit"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})

    reward_weight: float = hyperparameter(0.1, "what one standard deviation of reward adds to a row's weight", low=0)

    def apply(self, batch: Experience, see: See) -> Experience:
        score = (batch["reward"] - batch["reward"].mean()) / (batch["reward"].std() + 1e-8)
        return batch.with_fields(weight=batch["weight"] * (1 + self.reward_weight * score).clamp(0.1, 10))


@dataclass(frozen=True, kw_only=True)
class Denoise(OffPolicyTerm):
    """Imitate the ranks that were executed."""

    needs: ClassVar[frozenset[str]] = frozenset({"rank_code", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"imitation"})
    told: ClassVar[frozenset[str]] = frozenset({"rank_code"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return outputs["imitation"]


def recipe() -> Recipe:
    """After each rollout PPO on the code, and some updates of the denoiser on what was executed."""
    return Recipe(
        name=SLUG,
        models={"policy": CodePolicy(), "critic": MlpCritic(), "denoiser": RankDenoiser()},
        collect=ExpandCodes(environments=1, steps_per_environment=15),
        sources={"executed": Replay(capacity=10_000, learning_starts=128, gamma=0.95, also=("rank_code",))},
        updates=(
            Epochs(
                (
                    Update("policy", (ClippedSurrogate(), EntropyBonus(entropy_coef=0.01)), Again()),
                    Update("critic", (ValueLoss(),), Again()),
                ),
                Fresh(),
                credit=(StateValues("critic"), GAE(gamma=0.95), WhitenAdvantage()),
                epochs=4,
                minibatch_of="steps",
            ),
            Repeat(4, (Update("denoiser", (Denoise(),), Sample("executed", 32), credit=(RewardWeights(),)),)),
        ),
        adds=("reward-weights", "denoise"),
    )
