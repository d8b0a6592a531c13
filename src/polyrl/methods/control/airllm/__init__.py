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
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.methods.control.airllm.denoiser import NOISING_STEPS, RankDenoiserNetwork
from polyrl.methods.control.airllm.expander import Expander
from polyrl.models.actor import Actor, DistributionActor, Making
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.base import Interface, Trained
from polyrl.models.distributions import DiagonalGaussian, Distribution
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

CODE_HELP = "numbers of the coarse code that PPO chooses"


# ----------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, kw_only=True)
class RankDenoiser(Trained):
    """A conditional denoiser of ranks."""

    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    code: int = hyperparameter(16, CODE_HELP, low=1)
    width: int = hyperparameter(128, "size of the denoiser's layers", low=2)

    def make(self, interface: Interface, stream: torch.Generator) -> RankDenoiserNetwork:
        """A network of the task's numbers and a code."""
        return RankDenoiserNetwork(math.prod(interface.box(SLUG).shape), self.code, self.width, stream)


@dataclass(frozen=True, kw_only=True)
class CodePolicy(MlpPolicy):
    """A Gaussian over the coarse code, whatever the environment takes."""

    code: int = hyperparameter(16, CODE_HELP, low=1)

    def distribution(self, interface: Interface) -> Distribution:
        """Over d numbers."""
        return DiagonalGaussian(self.code, self.log_std_init)


# ------------------------------------------------------------------------------------------------------------- acting


@dataclass(frozen=True, kw_only=True)
class ExpandCodes(StepEnvironments):
    """Step environments with expanded codes."""

    models: ClassVar[frozenset[str]] = frozenset({"denoiser"})

    environments: int = hyperparameter(1, "environments that are stepped together, each with an adapter", low=1)
    steps_per_environment: int = hyperparameter(15, "steps of each environment in one iteration", low=1)
    decoder: Literal["denoiser", "linear", "none"] = hyperparameter(
        "denoiser", "makes ranks of codes; as controls a fixed random linear map, or none: the code is the ranks"
    )
    guidance: float = hyperparameter(1.5, "w of classifier-free guidance; 1 is the condition alone, 0 none", low=0)
    denoising_steps: int = hyperparameter(10, "DDIM steps that a chain takes", low=1, high=NOISING_STEPS)

    def actor(self, inner: Actor, making: Making) -> Actor:
        """Put the decoder behind the policy.

        Raises:
            UserError: what acts chooses no code, or without a decoder one that has not a number for each of the task's.
        """
        if not isinstance(inner, DistributionActor) or not isinstance(inner.distribution, DiagonalGaussian):
            raise UserError(
                f"'{self.name}' expands the code that a Gaussian policy chooses, and what acts on {making.task.name} "
                f"here is none; take {SLUG}."
            )
        numbers, (code,) = math.prod(making.task.actions.space.shape), inner.action_shape
        if self.decoder == "none" and code != numbers:
            raise UserError(
                f"With decoder=none the code is what {making.task.spec} is given, which is {numbers} numbers, and not "
                f"{code}; set --code {numbers}."
            )
        linear = torch.empty(code, numbers)
        torch.nn.init.orthogonal_(linear, generator=generator(making.seed, "linear-decoder"))
        denoiser: RankDenoiserNetwork = making.models["denoiser"]

        def decode(code: Tensor, noise: Tensor) -> Tensor:
            if self.decoder == "denoiser":
                return denoiser.expand(code, noise, self.guidance, self.denoising_steps)
            return code if self.decoder == "none" else (code @ linear).clamp(-1, 1)

        return Expander(inner.policy, numbers, decode)


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
class WeighByReward(Part):
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
            Repeat(4, (Update("denoiser", (ImitateExecuted(),), Sample("executed", 64), credit=(WeighByReward(),)),)),
        ),
        adds=("weigh-by-reward", "imitate-executed"),
        notes={
            "collect": "a code of PPO's, expanded by the denoiser to a rank for every layer",
            "improve": "PPO on the code; the denoiser imitates what was executed, better rewards a little more",
        },
    )
