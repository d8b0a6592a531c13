"""AirLLM: PPO chooses a short code, and a denoiser makes of it the rank of every adapted layer, within a radio budget.

A conditional DDIM with classifier-free guidance belongs to what PPO acts on: it expands the code, and learns from the
ranks that were executed, weighted by reward. What is adapted trains on inside the environment over all episodes.

As the paper's code (ZJUNICE/AirLLM) has it, no condition is the code 0, the predicted noise is not found anew after its
clean sample was cut, and the density is that of the code before the tanh, which is the same in both terms of the ratio.
Policy and critic are two networks here. Of the thousand steps of noise only ten are taken back; a hundred steps of the
same rates, as a shorter chain, would leave half of the ranks in what is to be pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Draws, Epochs, Fresh, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.errors import Diverged, UserError
from polyrl.models.actor import Actor, DistributionActor, Making, Moment, Player
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import Interface, Network, Trained
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import DiagonalGaussian, Distribution
from polyrl.models.graph import Node
from polyrl.parts.control import StateValues, StepEnvironments
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.runtime.seeding import generator

SLUG = "airllm"
TITLE = "Diffusion Policy-based Adaptive LoRA for Remote Fine-Tuning of LLM over the Air"
PAPER = "arXiv:2507.11515"
YEAR = 2025
FORMULA = "r_l = r_min + floor((x_l + 1) / 2 (R - r_min)), x = DDIM(noise | tanh u), u ~ N(mu(s), sigma)"
TASK = "lora-channel"
FAMILY = "operations"

NOISING_STEPS = 1_000
CODE_HELP = "numbers of the coarse code that PPO chooses"


# -------------------------------------------------------------------------------------------------------- the denoiser


def kept_signal(steps: int) -> Tensor:
    """ab_t `[steps]`, the product of 1 - beta, whose square roots rise evenly from sqrt 1e-4 to sqrt 2e-2."""
    beta = torch.linspace(1e-4**0.5, 2e-2**0.5, steps, dtype=torch.float64).square()
    return torch.cumprod(1 - beta, 0).float()


def ddim_step(x: Tensor, noise: Tensor, kept: Tensor, before: Tensor | None) -> Tensor:
    """A step without noise of its own, from ab_t to ab_prev; the last one, without `before`, ends at x0 in [-1, 1]."""
    clean = ((x - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
    return clean if before is None else before.sqrt() * clean + (1 - before).sqrt() * noise


class RankDenoiserNetwork(Network):
    """Predicts the noise in codes of ranks, given the coarse code, or 0 for no condition.

    Attributes:
        numbers, code: L and d.
    """

    kept: Tensor

    def __init__(self, numbers: int, code: int, hidden: int, stream: torch.Generator):
        super().__init__()
        self.numbers, self.code = numbers, code
        self.enter, self.time = nn.Linear(numbers + code, hidden), nn.Linear(hidden, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.leave = nn.Linear(hidden, numbers)
        self.register_buffer("kept", kept_signal(NOISING_STEPS))
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(hidden // 2) / (hidden // 2)))
        for layer in (self.enter, self.time, *self.blocks, self.leave):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, *(b / math.sqrt(layer.in_features) for b in (-1, 1)), generator=stream)

    def forward(self, noisy: Tensor, step: Tensor, code: Tensor) -> Tensor:
        """Noise `[..., L]` of noisy codes `[..., L]` at steps `[..., 1]`, counted from 0, under codes `[..., d]`."""
        angle = step * self.rates
        h = self.enter(torch.cat([noisy, code], -1)) + self.time(torch.cat([angle.sin(), angle.cos()], -1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(nn.functional.mish(norm(h)))
        found: Tensor = self.leave(h)
        return found

    def expand(self, code: Tensor, noise: Tensor, guidance: float, steps: int) -> Tensor:
        """Codes of ranks `[N, L]` in [-1, 1] of codes `[N, d]` and noise `[N, L]`."""
        grid, x = torch.linspace(NOISING_STEPS - 1, 0, steps).long(), noise
        conditions = torch.cat([torch.zeros_like(code), code])
        for at, t in enumerate(grid):
            free, told = self(x.repeat(2, 1), t.float().expand(2 * len(x), 1), conditions).chunk(2)
            guided = free + guidance * (told - free)
            x = ddim_step(x, guided, self.kept[t], self.kept[grid[at + 1]] if at + 1 < steps else None)
        return x

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: mean squared error of the noise put on the ranks that were executed.

        A tenth of the rows has no condition.
        """
        target, code = batch["rank_code"], batch["action"][..., : self.code].tanh()
        code = code * (draw.uniform(*target.shape[:-1], 1) >= 0.1)
        step = (draw.uniform(*target.shape[:-1], 1) * NOISING_STEPS).long()
        noise, kept = draw(*target.shape), self.kept[step]
        noisy = kept.sqrt() * target + (1 - kept).sqrt() * noise
        return {"imitation": (self(noisy, step.float(), code) - noise).square().mean(-1)}


@dataclass(frozen=True, kw_only=True)
class RankDenoiser(Trained):
    """A conditional denoiser of ranks."""

    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    code: int = hyperparameter(16, CODE_HELP, low=1)
    width: int = hyperparameter(128, "size of the denoiser's layers", low=2)

    def make(self, interface: Interface, stream: torch.Generator) -> RankDenoiserNetwork:
        """A network of the task's numbers and a code."""
        return RankDenoiserNetwork(math.prod(interface.box(SLUG).shape), self.code, self.width, stream)


# ------------------------------------------------------------------------------------------------------------- acting


@dataclass(frozen=True, kw_only=True)
class CodePolicy(MlpPolicy):
    """A Gaussian over the coarse code, whatever the environment takes."""

    code: int = hyperparameter(16, CODE_HELP, low=1)

    def distribution(self, interface: Interface) -> Distribution:
        """Over d numbers."""
        return DiagonalGaussian(self.code, self.log_std_init)


Decoder = Literal["denoiser", "linear", "none"]


class Expander(DistributionActor):
    """Acts with a code and the noise that it is expanded from; the environment gets what the decoder makes of both.

    Evaluations take the most probable code, with noise of a stream that begins anew with each.
    """

    is_policy = True

    def __init__(
        self, policy: ControlPolicy, numbers: int, denoiser: RankDenoiserNetwork, part: ExpandCodes, seed: int
    ):
        super().__init__(policy)
        (self.code,), self.numbers, self.denoiser, self.part = self.action_shape, numbers, denoiser, part
        self.action_shape, self.executed_shape = (self.code + numbers,), (numbers,)
        self.execute = self.expanded
        self.linear = torch.randn(self.code, numbers, generator=generator(seed, "linear-decoder")) / self.code**0.5

    def expanded(self, action: NDArray[Any]) -> NDArray[Any]:
        """Codes of ranks `[B, L]` of codes and noise `[B, d + L]`.

        Raises:
            Diverged: they are not finite.
        """
        code, noise = torch.from_numpy(action).split([self.code, self.numbers], 1)
        code = code.tanh()
        if self.part.decoder == "denoiser":
            with torch.no_grad():
                found = self.denoiser.expand(code, noise, self.part.guidance, self.part.denoising_steps)
        else:
            found = code if self.part.decoder == "none" else (code @ self.linear).clamp(-1, 1)
        if not bool(torch.isfinite(found).all()):
            raise Diverged("What the denoiser says is not finite; lower its learning rate.")
        return found.numpy()

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """Of the code, and what chains begin with, `[steps, count, d + L]`."""
        chain = torch.randn((steps, count, self.numbers), generator=generator).numpy()
        return np.concatenate([super().noise(steps, count, generator), chain], -1)

    def player(self) -> Player:
        """A code with its noise."""
        play, judging = super().player(), torch.Generator().manual_seed(0)

        def act(moment: Moment) -> NDArray[Any]:
            whole = moment.noise
            if whole is None:
                chain = torch.randn((len(moment.seen), self.numbers), generator=judging).numpy()
            else:
                moment.noise, chain = whole[:, : self.code], whole[:, self.code :]
            return np.concatenate([play(moment), chain], 1)

        return act

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """Of the code alone."""
        return super().fields(records, action[..., : self.code])

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Of the code alone."""
        return super().outputs(batch.with_fields(action=batch["action"][..., : self.code]), wants)

    def greedy(self, masked: bool) -> list[Node]:
        """Chains have no form that is exported."""
        return Actor.greedy(self, masked)


@dataclass(frozen=True, kw_only=True)
class ExpandCodes(StepEnvironments):
    """Step environments with expanded codes."""

    models: ClassVar[frozenset[str]] = frozenset({"denoiser"})

    environments: int = hyperparameter(1, "environments that are stepped together, each with an adapter", low=1)
    steps_per_environment: int = hyperparameter(15, "steps of each environment in one iteration", low=1)
    decoder: Decoder = hyperparameter(
        "denoiser", "makes ranks of codes; as controls a fixed random linear map, or none: the code is the ranks"
    )
    guidance: float = hyperparameter(1.5, "w of classifier-free guidance; 1 is the condition alone, 0 none", low=0)
    denoising_steps: int = hyperparameter(10, "DDIM steps that a chain takes", low=1, high=NOISING_STEPS)

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Put the decoder behind the policy.

        Raises:
            UserError: without a decoder, a code has not one number for each of the task's.
        """
        assert isinstance(inner, DistributionActor)
        numbers, (code,) = math.prod(making.task.actions.space.shape), inner.action_shape
        if self.decoder == "none" and code != numbers:
            raise UserError(
                f"With decoder=none the code is what {making.task.spec} is given, {numbers} numbers, and it has {code}; "
                f"set --code {numbers}."
            )
        return Expander(inner.policy, numbers, making.models["denoiser"], self, making.seed)


@dataclass(frozen=True, kw_only=True)
class TellLink(Part):
    """Log what was sent and what it has come to."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"kilobits", "arrived", "accuracy", "mask"})
    told: ClassVar[frozenset[str]] = frozenset({"kilobits", "arrived", "accuracy"})

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Nothing is changed."""
        memory, mask = context.memory(self.name), experience["mask"]
        memory["megabits"] = memory.get("megabits", 0.0) + float(experience["kilobits"][mask].sum()) / 1000
        context.log(
            link__megabits=memory["megabits"],
            link__arrived=float(experience["arrived"][mask].mean()),
            link__accuracy=float(experience["accuracy"][:, -1].mean()),
        )
        return experience


# ------------------------------------------------------------------------------------------------- the denoiser learns


@dataclass(frozen=True, kw_only=True)
class RewardWeights(Part):
    """Weigh rows by their reward: 1 + share x its standard score in the batch, between 0.1 and 10."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})

    reward_weight: float = hyperparameter(0.1, "what one standard deviation of reward adds to a row's weight", low=0)

    def apply(self, batch: Experience, see: See) -> Experience:
        """Replace `weight` `[B, T]`."""
        reward = batch["reward"]
        score = (reward - reward.mean()) / (reward.std(correction=0) + 1e-8)
        return batch.with_fields(weight=batch["weight"] * (1 + self.reward_weight * score).clamp(0.1, 10))


@dataclass(frozen=True, kw_only=True)
class ImitateExecuted(OffPolicyTerm):
    """Imitate the ranks that were executed."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"rank_code", "action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"imitation"})
    told: ClassVar[frozenset[str]] = frozenset({"rank_code"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every step, `[B, T]`."""
        return outputs["imitation"]


def recipe() -> Recipe:
    """After each episode PPO on the code, and some updates of the denoiser on what was executed."""
    return Recipe(
        name=SLUG,
        models={
            "policy": CodePolicy(log_std_init=-0.5, normalize_observation=False),
            "critic": MlpCritic(),
            "denoiser": RankDenoiser(),
        },
        collect=ExpandCodes(),
        score=(TellLink(),),
        sources={"executed": Replay(capacity=10_000, learning_starts=128, gamma=0.95, also=("rank_code",))},
        updates=(
            Epochs(
                (
                    Update("policy", (ClippedSurrogate(clip_range=0.2), EntropyBonus(entropy_coef=0.01)), Again()),
                    Update("critic", (ValueLoss(value_coef=0.5),), Again()),
                ),
                Fresh(),
                credit=(StateValues("critic"), GAE(gamma=0.95), WhitenAdvantage()),
                epochs=4,
                minibatch_of="steps",
            ),
            Repeat(4, (Update("denoiser", (ImitateExecuted(),), Sample("executed", 64), credit=(RewardWeights(),)),)),
        ),
        adds=("reward-weights", "imitate-executed"),
        notes={
            "collect": "a code of PPO's, expanded by the denoiser to a rank for every layer",
            "improve": "PPO on the code; the denoiser imitates what was executed, better rewards a little more",
        },
    )
