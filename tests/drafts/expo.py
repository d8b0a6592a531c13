"""EXPO: never send the critic's gradient through a denoiser; imitate with it, and choose the best of edited actions.

A draft of arXiv:2507.07986: a denoising chain imitates all actions, a small Gaussian edit nudges them uphill in Q, and
what acts, and stands in the targets, is the best by the critics of N base and N edited actions. It shows what a method
file can do alone; claims and the paper's tasks are not here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.update import Again, Draws, Move, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.actor import Actor, Making, Moment, Player
from polyrl.models.base import Copy, Interface, Network, PolicyNetwork, Trained
from polyrl.models.critics import QNetwork
from polyrl.models.mlp import layer_sizes
from polyrl.models.networks import StackedMlp
from polyrl.models.scalar import PositiveScalar
from polyrl.models.squashed import scaler, squashed_logprob
from polyrl.parts.replayed import EntropyTarget, OffPolicyTerm, SquaredTD, StepAndKeep
from polyrl.recipe import Part, Recipe, Stage, hyperparameter

SLUG = "expo-draft"
TITLE = "Stable Reinforcement Learning with Expressive Policies"
PAPER = "arXiv:2507.07986"
YEAR = 2025
FORMULA = "a* = argmax over {a_i, clip(a_i + e_i)} of Q(s, a), a_i ~ base, e_i ~ edit in [-radius, radius]"
TASK = "Pendulum-v1"


class DenoisingPolicy(PolicyNetwork):
    """A DDPM over actions (arXiv:2006.11239) whose network predicts the noise that was added."""

    def __init__(self, network: StackedMlp, numbers: int, steps: int):
        super().__init__()
        self.network, self.numbers, self.steps = network, numbers, steps
        beta = torch.linspace(1e-4, 0.3, steps)
        self.register_buffer("beta", beta)
        self.register_buffer("kept", torch.cumprod(1 - beta, 0))

    def noise_of(self, observation: Tensor, noisy: Tensor, step: Tensor) -> Tensor:
        """Predicted noise `[..., A]` of noisy actions `[..., A]` at steps `[..., 1]`."""
        said: Tensor = self.network(torch.cat([observation, noisy, step.float() / self.steps], -1))
        return said.squeeze(-2)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions `[..., A]` of observations `[..., D]` by noise `[..., steps + 1, A]`: the whole chain."""
        action = noise[..., 0, :]
        for t in reversed(range(self.steps)):
            step = torch.full((*action.shape[:-1], 1), t)
            beta, kept = self.beta[t], self.kept[t]
            action = (action - beta / (1 - kept).sqrt() * self.noise_of(observation, action, step)) / (1 - beta).sqrt()
            if t:
                action = action + beta.sqrt() * noise[..., t, :]
        return action.clamp(-1, 1)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "imitation" `[B, T]`: the squared error of the predicted noise on the batch's actions."""
        action = batch["action"]
        step = (draw.uniform(*action.shape[:-1], 1) * self.steps).long()
        noise, kept = draw(*action.shape), self.kept[step]
        noisy = kept.sqrt() * action + (1 - kept).sqrt() * noise
        return {"imitation": (self.noise_of(batch["observation"], noisy, step) - noise).square().mean(-1)}

    def actor(self) -> Actor:
        """It never acts alone."""
        return Unused()


class Unused(Actor):
    """Stands in for an actor that a wrapper replaces."""

    action_shape, action_dtype, recorded = (), np.float32, {}

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        raise NotImplementedError

    def player(self) -> Player:
        raise NotImplementedError

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        return {}

    def is_finite(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Denoiser(Trained):
    """A denoising chain over actions, trained by imitation."""

    outputs: ClassVar[frozenset[str]] = frozenset({"imitation"})

    hidden: str = hyperparameter("128x128", "sizes of the hidden layers")
    denoising_steps: int = hyperparameter(5, "steps of the chain", low=1)

    def make(self, interface: Interface, stream: torch.Generator) -> DenoisingPolicy:
        numbers = int(np.prod(interface.box("A denoiser").shape))
        inputs = interface.observation_size + numbers + 1
        network = StackedMlp(inputs, layer_sizes(self.hidden), numbers, generator=stream)
        return DenoisingPolicy(network, numbers, self.denoising_steps)


class EditNetwork(Network):
    """A small tanh-Gaussian change of an action, within a box of `radius`."""

    def __init__(self, network: StackedMlp, numbers: int, radius: float):
        super().__init__()
        self.network, self.numbers, self.radius = network, numbers, radius

    def sample(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Edits `[..., A]` in `[-radius, radius]` and their log-densities before scaling `[...]`."""
        mean, log_std = self.network(torch.cat([observation, action], -1)).squeeze(-2).chunk(2, -1)
        log_std = log_std.clamp(-20, 2)
        before = mean + log_std.exp() * noise
        return self.radius * before.tanh(), squashed_logprob(before, noise, log_std)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "edited" `[B, T, A]` and "sampled_logprob" `[B, T]` of fresh edits of the batch's base actions."""
        base = batch["base_action"]
        edit, logprob = self.sample(batch["observation"], base, draw(*base.shape))
        return {"edited": base + edit, "sampled_logprob": logprob}


@dataclass(frozen=True, kw_only=True)
class Edit(Trained):
    """A Gaussian edit of actions."""

    outputs: ClassVar[frozenset[str]] = frozenset({"edited", "sampled_logprob"})

    hidden: str = hyperparameter("64x64", "sizes of the hidden layers")
    radius: float = hyperparameter(0.3, "largest change of each number of an action", low=0)

    def make(self, interface: Interface, stream: torch.Generator) -> EditNetwork:
        numbers = int(np.prod(interface.box("An edit").shape))
        inputs = interface.observation_size + numbers
        network = StackedMlp(inputs, layer_sizes(self.hidden), 2 * numbers, generator=stream)
        return EditNetwork(network, numbers, self.radius)


def best_action(models: Mapping[str, Any], observation: Tensor, chain: Tensor, edits: Tensor, by: str) -> Tensor:
    """The best by the critics `by` of N base and N edited actions, `[..., A]`.

    Args:
        observation: `[..., D]`; chain: noise of N denoising chains `[..., N, steps + 1, A]`; edits: `[..., N, A]`.
    """
    repeated = observation.unsqueeze(-2).expand(*chain.shape[:-2], observation.shape[-1])
    base = models["base"].sample(repeated, chain)
    edit, _ = models["edit"].sample(repeated, base, edits)
    both = torch.cat([base, (base + edit).clamp(-1, 1)], -2)
    shown = torch.cat([repeated, repeated], -2)
    best = models[by](shown, both).mean(-1).argmax(-1)
    return both.gather(-2, best[..., None, None].expand(*best.shape, 1, both.shape[-1])).squeeze(-2)


class BestOf(Actor):
    """Acts on the fly: the best of what base and edit propose. It is what evaluations judge."""

    action_dtype, recorded, is_policy = np.float32, {}, True

    def __init__(self, making: Making, candidates: int):
        self.models, self.candidates = making.models, candidates
        space = making.task.actions.space
        self.numbers = int(np.prod(space.shape))
        self.action_shape, self.execute = (self.numbers,), scaler(space)

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """Of chains and edits: `[steps, count, N, denoising steps + 2, A]`."""
        rows = self.models["base"].steps + 2
        return torch.randn((steps, count, self.candidates, rows, self.numbers), generator=generator).numpy()

    def player(self) -> Player:
        """The best candidate; while judged, of the same proposals every time."""
        fixed = torch.from_numpy(self.noise(1, 1, torch.Generator().manual_seed(0))[0])

        @torch.no_grad()
        def play(moment: Moment) -> NDArray[Any]:
            seen = torch.from_numpy(moment.seen)
            noise = (
                fixed.expand(len(seen), *fixed.shape[1:]) if moment.noise is None else torch.from_numpy(moment.noise)
            )
            return best_action(self.models, seen, noise[..., :-1, :], noise[..., -1, :], "q").numpy()

        return play

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        return {}

    def is_finite(self) -> bool:
        return all(
            bool(torch.isfinite(p).all()) for name in ("base", "edit", "q") for p in self.models[name].parameters()
        )


@dataclass(frozen=True, kw_only=True)
class ActOnTheFly(StepAndKeep):
    """Step environments with the best of base and edited actions."""

    candidates: int = hyperparameter(4, "N: base actions, and as many edited ones", low=1)

    def actor(self, inner: Actor, making: Making) -> Actor:
        return BestOf(making, self.candidates)


@dataclass(frozen=True, kw_only=True)
class OnTheFlyTarget(Part):
    """Targets with the same choice: r + discount min Q'(s', a*), a* the best of N base and N edited actions."""

    stage: ClassVar[Stage] = "credit"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"base", "edit", "q_target"})

    candidates: int = hyperparameter(4, "N", low=1)

    def apply(self, batch: Experience, see: See) -> Experience:
        following, base = batch["next_observation"], see["base"]
        shape = (*following.shape[:-1], self.candidates)
        chain = see.draw(*shape, base.steps + 1, base.numbers)
        action = best_action(see.models, following, chain, see.draw(*shape, base.numbers), "q_target")
        value = see["q_target"](following, action).amin(-1)
        return batch.with_fields(value_target=batch["reward"] + batch["discount"] * value)


@dataclass(frozen=True, kw_only=True)
class BaseActions(Part):
    """Fresh base actions for the edit to be trained on, as constants."""

    stage: ClassVar[Stage] = "credit"
    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"base_action"})
    models: ClassVar[frozenset[str]] = frozenset({"base"})

    def apply(self, batch: Experience, see: See) -> Experience:
        shape = batch["observation"].shape[:-1]
        chain = see.draw(*shape, see["base"].steps + 1, see["base"].numbers)
        return batch.with_fields(base_action=see["base"].sample(batch["observation"], chain))


@dataclass(frozen=True, kw_only=True)
class EditValue(OffPolicyTerm):
    """Raise the mean critic's value of edited actions, and the edit's entropy."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "base_action", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"edited", "sampled_logprob"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "temperature"})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        value = see["q"](batch["observation"], outputs["edited"]).mean(-1)
        loss: Tensor = see["temperature"]() * outputs["sampled_logprob"] - value
        return loss


@dataclass(frozen=True, kw_only=True)
class Imitation(OffPolicyTerm):
    """The model's own supervised loss on the batch's actions."""

    wants: ClassVar[frozenset[str]] = frozenset({"imitation"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return outputs["imitation"]


def recipe() -> Recipe:
    """EXPO without offline data: critics several times a step, then edit, temperature and base on the last batch."""
    return Recipe(
        name=SLUG,
        models={
            "base": Denoiser(),
            "edit": Edit(),
            "q": QNetwork(critics=4, layer_norm=True),
            "q_target": Copy("q"),
            "temperature": PositiveScalar(),
        },
        acts="base",
        collect=ActOnTheFly(random_steps=1_000),
        sources={"replay": Replay(learning_starts=1_000)},
        updates=(
            Repeat(
                4,
                (
                    Update("q", (SquaredTD(),), Sample("replay"), credit=(OnTheFlyTarget(),)),
                    Move("q_target", "q", tau=0.005),
                ),
            ),
            Update("edit", (EditValue(),), Again(), credit=(BaseActions(),)),
            Update("temperature", (EntropyTarget(),), Again()),
            Update("base", (Imitation(),), Again()),
        ),
        turns=1_000,
        adds=("on-the-fly-target", "edit-value", "imitation"),
    )
