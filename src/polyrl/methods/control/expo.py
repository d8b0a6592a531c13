"""EXPO: no gradient of the critic goes through a denoiser; it imitates, and the best of its edited actions is taken.

A denoising chain imitates the actions of data and buffer. A small Gaussian edit is trained to move its actions uphill
in Q, within a box. What acts, and what stands in the targets, is the best of N base and N edited actions.

Edits are trained on fresh base actions, as a co-author's code has it, and their entropy is that before they are scaled.
Candidates are compared by the mean of the critics, in targets by that of their slow copies, and what is chosen there is
worth the least of a few. The variant with an entropy in the targets is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Draws, Mix, Move, Phase, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.models.base import Copy, Interface, Network, Trained
from polyrl.models.critics import QNetwork
from polyrl.models.denoiser import Denoiser
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import StackedMlp
from polyrl.models.scalar import PositiveScalar
from polyrl.models.squashed import LOG_STD_MAX, LOG_STD_MIN, squashed_logprob
from polyrl.parts.imitating import ActByChoice, OwnImitation, ProposalTarget, taken
from polyrl.parts.replayed import EntropyTarget, OffPolicyTerm, SquaredTD
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "expo"
TITLE = "Stable Reinforcement Learning with Expressive Policies"
PAPER = "arXiv:2507.07986"
YEAR = 2025
FORMULA = "a* = argmax over {a_i, clip(a_i + e_i)} of Q(s, a), a_i ~ base, e_i ~ edit in [-radius, radius]"
TASK = "Pendulum-v1"


class EditNetwork(Network):
    """A tanh-Gaussian change of an action, within a box of `radius`."""

    def __init__(self, network: StackedMlp, radius: float):
        super().__init__()
        self.network, self.radius = network, radius

    def sample(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Edits `[..., A]` in `[-radius, radius]` and their log-densities before scaling `[...]`."""
        mean, log_std = self.network(torch.cat([observation, action], -1)).squeeze(-2).chunk(2, -1)
        log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        before = mean + log_std.exp() * noise
        return self.radius * before.tanh(), squashed_logprob(before, noise, log_std)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "edited" `[B, T, A]` and "sampled_logprob" `[B, T]` of fresh edits of the batch's base actions."""
        base = batch["base_action"]
        edit, logprob = self.sample(batch["observation"], base, draw(*base.shape))
        return {"edited": (base + edit).clamp(-1, 1), "sampled_logprob": logprob}


@dataclass(frozen=True, kw_only=True)
class Edit(Trained):
    """A Gaussian edit of actions."""

    outputs: ClassVar[frozenset[str]] = frozenset({"edited", "sampled_logprob"})

    hidden: str = hyperparameter("64x64", "sizes of the hidden layers, joined by x")
    radius: float = hyperparameter(0.2, "beta, largest change of each number of an action in [-1, 1]", low=0)

    def make(self, interface: Interface, stream: torch.Generator) -> EditNetwork:
        """A network of the task's observations and an action."""
        numbers = math.prod(interface.box("An edit").shape)
        inputs = interface.observation_size + numbers
        return EditNetwork(StackedMlp(inputs, layer_sizes(self.hidden), 2 * numbers, generator=stream), self.radius)


def noise_shape(models: Mapping[str, Any], candidates: int) -> tuple[int, int]:
    """N, and the normal numbers of a base action and behind them its edit's."""
    return candidates, models["base"].proposal_size + models["base"].numbers


def best_action(models: Mapping[str, Any], observation: Tensor, noise: Tensor, by: str) -> Tensor:
    """The best by the mean of the critics `by` of N base and N edited actions, `[..., A]`.

    Args:
        models: base, edit and critics.
        observation: `[..., D]`.
        noise: `[..., *noise_shape]`.
        by: name of the critics.
    """
    repeated = observation.unsqueeze(-2).expand(*noise.shape[:-1], observation.shape[-1])
    size = models["base"].proposal_size
    base = models["base"].propose(repeated, noise[..., :size])
    edit, _ = models["edit"].sample(repeated, base, noise[..., size:])
    both = torch.cat([base, (base + edit).clamp(-1, 1)], -2)
    return taken(both, models[by](torch.cat([repeated, repeated], -2), both).mean(-1).argmax(-1))


@dataclass(frozen=True, kw_only=True)
class ActOnTheFly(ActByChoice):
    """Step environments with the best of base and edited actions."""

    models: ClassVar[frozenset[str]] = frozenset({"base", "edit", "q"})

    candidates: int = hyperparameter(4, "N: base actions, and as many edited ones", low=1)

    def choice(self, models: Mapping[str, Any]) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]:
        """By the mean of the critics."""
        return lambda seen, noise: best_action(models, seen, noise, "q"), noise_shape(models, self.candidates)


@dataclass(frozen=True, kw_only=True)
class OnTheFlyTarget(ProposalTarget):
    """Targets with the same choice: r + discount min Q'(s', a*), a* the best of N base and N edited actions."""

    models: ClassVar[frozenset[str]] = frozenset({"base", "edit", "q_target"})

    candidates: int = hyperparameter(4, "N: base actions, and as many edited ones", low=1)
    follows: Literal["best", "base"] = hyperparameter("best", "what the target's next action is: the best, or a base's")

    def apply(self, batch: Experience, see: See) -> Experience:
        """Choose by the mean of the target critics."""
        following, base = batch["next_observation"], see["base"]
        noise = see.draw(*following.shape[:-1], *noise_shape(see.models, self.candidates))
        if self.follows == "best":
            return self.valued(batch, best_action(see.models, following, noise, "q_target"), see)
        return self.valued(batch, base.propose(following, noise[..., 0, : base.proposal_size]), see)


@dataclass(frozen=True, kw_only=True)
class BaseActions(Part):
    """Fresh base actions for the edit to be trained on, as constants."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"base_action"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "base_action": Field("[B, T, A]", "float32", "in [-1, 1]", "what the base policy would do (EXPO)"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"base"})

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `base_action` `[B, T, A]`."""
        observation, base = batch["observation"], see["base"]
        noise = see.draw(*observation.shape[:-1], base.proposal_size)
        return batch.with_fields(base_action=base.propose(observation, noise))


@dataclass(frozen=True, kw_only=True)
class EditValue(OffPolicyTerm):
    """Raise the mean critic's value of edited actions, and the edit's entropy."""

    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "base_action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"edited", "sampled_logprob"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "temperature"})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """alpha log pi_edit - Q(s, a + e), `[B, T]`."""
        value = see["q"](batch["observation"], outputs["edited"]).mean(-1)
        loss: Tensor = see["temperature"]() * outputs["sampled_logprob"] - value
        return loss


@dataclass(frozen=True, kw_only=True)
class EditEntropy(EntropyTarget):
    """Move the temperature so that the edit's entropy comes to minus half the number of an action's numbers."""

    grad_outputs = EntropyTarget.grad_outputs
    statistics = EntropyTarget.statistics

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-log alpha (log pi + H*), `[B, T]`."""
        half = -experience["action"].shape[-1] / 2
        target = half if self.target_entropy is None else self.target_entropy
        return -outputs["log_number"] * (experience["sampled_logprob"] + target)


def recipe() -> Recipe:
    """First the base policy imitates the data; then critics are trained several times a step, and the others once."""
    imitate = (OwnImitation(),)
    critics = (
        Update("q", (SquaredTD(),), Mix("data", "replay", batch_size=256), credit=(OnTheFlyTarget(),)),
        Move("q_target", "q", tau=0.005),
    )
    return Recipe(
        name=SLUG,
        models={
            "base": Denoiser(denoising_steps=10, noise_schedule="cosine"),
            "edit": Edit(),
            "q": QNetwork(critics=4, layer_norm=True),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(),
        },
        acts="base",
        collect=ActOnTheFly(),
        sources={"replay": Replay(learning_starts=100), "data": Transitions()},
        updates=(
            Phase((Update("base", imitate, Sample("data", batch_size=256)),), optimizer_steps=2_000, collects=False),
            Phase(
                (
                    Repeat(4, critics),
                    Update("edit", (EditValue(),), Again(), credit=(BaseActions(),)),
                    Update("temperature", (EditEntropy(),), Again()),
                    Update("base", imitate, Again()),
                )
            ),
        ),
        turns=500,
        adds=("on-the-fly-target", "edit-value"),
        notes={
            "collect": "the best by the critics of base and edited actions",
            "improve": "the base policy imitates, the edit follows the critics, which look at what would be chosen",
        },
    )
