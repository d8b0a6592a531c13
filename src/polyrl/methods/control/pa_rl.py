"""PA-RL: actions are improved, not parameters; then the policy, of whichever class, imitates the improved actions.

Of many proposals the best by the critics are kept, and each of these climbs a few steps of their gradient. What is best
then acts and stands in targets. The policy learns by its class's own supervised loss and needs no density.

As in the released code the critics are Cal-QL's, both operators rank by the mean of the present critics, the policy's
two actions in the penalty count as often as all random ones, and the policy stands still while critics learn from data.
Here a turn is a step and not an episode, with the policy's update before the critics'; values are numbers and no
distributions; and the policy imitates with the same step size before and after. The file is longer than others because
Cal-QL's penalty (arXiv:2303.05479), which no other method here has, stands in it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Batch, Mix, Move, Phase, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.data.transitions import Transitions
from polyrl.errors import UserError
from polyrl.models.base import Copy
from polyrl.models.critics import ActionCritics, QNetwork
from polyrl.models.denoiser import Denoiser
from polyrl.parts.imitating import ActByChoice, OwnImitation, ProposalTarget, taken
from polyrl.parts.replayed import OffPolicyTerm, SquaredTD
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "pa-rl"
TITLE = "Policy Agnostic RL: Offline RL and Online RL Fine-Tuning of Any Class and Backbone"
PAPER = "arXiv:2412.06685"
YEAR = 2024
FORMULA = "a_1..a_m best of k by Q, a <- a + step grad_a Q, T times; acts: argmax Q; policy: own loss on a ~ softmax Q"
TASK = "wall-point"


def climbed(
    critics: ActionCritics, observation: Tensor, action: Tensor, steps: int, size: float
) -> tuple[Tensor, Tensor]:
    """The best of each action `[..., A]` and those on its way along the gradient of the mean critic, and its `[...]`.

    Args:
        critics: whose mean is climbed; their parameters stay.
        observation: `[..., D]`.
        action: `[..., A]`, in [-1, 1] as all on the way.
        steps: T.
        size: of a step, which is not scaled by how long the gradient is.
    """
    best, most = action, torch.full(action.shape[:-1], -math.inf)
    for step in range(steps + 1):
        value, back = critics.way_back(observation, action)
        better = value.mean(-1) > most
        best = torch.where(better.unsqueeze(-1), action, best)
        most = torch.where(better, value.mean(-1), most)
        if step < steps:
            action = (action + size * back(torch.full_like(value, 1 / value.shape[-1]))).clamp(-1, 1)
    return best, most


@dataclass(frozen=True, kw_only=True)
class Operator(Part):
    """What improves actions: the best of many proposals, each of which then climbs."""

    models: ClassVar[frozenset[str]] = frozenset({"base", "q"})

    candidates: int = hyperparameter(16, "k, proposals of the policy", low=1)
    kept: int = hyperparameter(4, "m, how many of them climb", low=1)
    local_steps: int = hyperparameter(10, "T, steps along the critics' gradient", low=0)
    step_size: float = hyperparameter(3e-4, "alpha, what the gradient is multiplied with", low=0)

    def check_within(self, recipe: Recipe) -> None:
        """No more are kept than there are."""
        if self.kept > self.candidates:
            raise UserError(
                f"{recipe.name}: '{self.name}' keeps {self.kept} of {self.candidates} proposals; set kept to at most "
                "candidates."
            )

    def proposals(self, models: Mapping[str, Any], observation: Tensor, noise: Tensor, kept: int) -> Tensor:
        """The best first `[..., kept, A]` of proposals by noise `[..., k, P]` where `[..., D]` is seen (global)."""
        shown = observation.unsqueeze(-2).expand(*noise.shape[:-1], observation.shape[-1])
        found: Tensor = models["base"].propose(shown, noise)
        if noise.shape[-2] == 1:
            return found
        ranked = models["q"](shown, found).mean(-1).topk(kept, -1).indices
        return found.gather(-2, ranked.unsqueeze(-1).expand(*ranked.shape, found.shape[-1]))

    def climb(self, models: Mapping[str, Any], observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Actions `[..., m, A]` after their local steps, and the critics' mean of them `[..., m]`."""
        shown = observation.unsqueeze(-2).expand(*action.shape[:-1], observation.shape[-1])
        return climbed(models["q"], shown, action, self.local_steps, self.step_size)

    def best(self, models: Mapping[str, Any], observation: Tensor, noise: Tensor) -> Tensor:
        """The best `[..., A]` of what has climbed."""
        action, value = self.climb(models, observation, self.proposals(models, observation, noise, self.kept))
        return taken(action, value.argmax(-1))


@dataclass(frozen=True, kw_only=True)
class ActImproved(Operator, ActByChoice):
    """Step environments with the best of the improved actions."""

    models: ClassVar[frozenset[str]] = Operator.models

    def choice(self, models: Mapping[str, Any]) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]:
        """By the mean of the critics."""
        return lambda seen, noise: self.best(models, seen, noise), (self.candidates, models["base"].proposal_size)


@dataclass(frozen=True, kw_only=True)
class ImprovedTarget(Operator, ProposalTarget):
    """Targets with the best improved action of what follows; that one and the present one for Cal-QL's penalty too."""

    gives: ClassVar[frozenset[str]] = frozenset({"value_target", "policy_action"})
    needs: ClassVar[frozenset[str]] = ProposalTarget.needs | {"observation"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "policy_action": Field("[B, T, 2, A]", "float32", "in [-1, 1]", "what would be done next, and now (PA-RL)"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"base", "q", "q_target"})

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` `[B, T]` and `policy_action` `[B, T, 2, A]`."""
        shown = torch.stack([batch["next_observation"], batch["observation"]], -2)
        noise = see.draw(*shown.shape[:-1], self.candidates, see["base"].proposal_size)
        action = self.best(see.models, shown, noise)
        return self.valued(batch, action[..., 0, :], see).with_fields(policy_action=action)


@dataclass(frozen=True, kw_only=True)
class ImprovedAction(Operator):
    """Put an improved action in the place of each row's, for the policy to imitate.

    The row's own action takes the place of the worst that is kept, and climbs with the others.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "action", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"action", "weight"})
    models: ClassVar[frozenset[str]] = Operator.models

    imitates: Literal["softmax", "best", "nothing"] = hyperparameter(
        "softmax", "softmax draws one by its value, best takes the best, nothing lets the policy stand still"
    )

    def apply(self, batch: Experience, see: See) -> Experience:
        """Replace `action` `[B, T, A]`, or set `weight` `[B, T]` to 0."""
        if self.imitates == "nothing":
            return batch.with_fields(weight=torch.zeros_like(batch["weight"]))
        shown, action = batch["observation"], batch["action"].unsqueeze(-2)
        if self.kept > 1:
            noise = see.draw(*shown.shape[:-1], self.candidates, see["base"].proposal_size)
            action = torch.cat([self.proposals(see.models, shown, noise, self.kept - 1), action], -2)
        action, value = self.climb(see.models, shown, action)
        share, means = value.log_softmax(-1), see.context.means
        means.add("pa-rl/entropy", -float((share.exp() * share).sum()), share[..., 0].numel())
        if self.imitates == "best" or self.kept == 1:
            return batch.with_fields(action=taken(action, value.argmax(-1)))
        place = see.draw.uniform(*share.shape[:-1], 1)
        return batch.with_fields(action=taken(action, (place >= share.exp().cumsum(-1)[..., :-1]).sum(-1)))


def calibrated_gap(random: Tensor, policy: Tensor, data: Tensor, least: Tensor) -> Tensor:
    """log mean exp Q of random, the policy's and the data's actions, minus Q of the data's (arXiv:2303.05479).

    No value of the policy's actions counts as less than the return that was seen, so that it is not pressed below it.

    Args:
        random: `[..., n]`.
        policy: `[..., p]`; each counts n times.
        data: `[...]`.
        least: `[...]`, returns; -inf where there is none.
    """
    times = random.shape[-1]
    bounded = torch.maximum(policy, least.unsqueeze(-1)) + math.log(times)
    count = times * (1 + policy.shape[-1]) + 1
    return torch.logsumexp(torch.cat([random, bounded, data.unsqueeze(-1)], -1), -1) - math.log(count) - data


@dataclass(frozen=True, kw_only=True)
class CalibratedPenalty(OffPolicyTerm):
    """Press the critics down on actions that are not in the data, but not below what was earned (Cal-QL)."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"observation", "action", "policy_action", "return_to_go", "return_known", "weight"}
    )
    wants: ClassVar[frozenset[str]] = frozenset({"q"})
    models: ClassVar[frozenset[str]] = frozenset({"q"})

    conservative_weight: float = hyperparameter(0.005, "of the penalty beside the squared error; 0 is without", low=0)
    sampled_actions: int = hyperparameter(4, "n, random actions in it", low=1)

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """Summed over the critics, `[B, T]`."""
        if not self.conservative_weight:
            return torch.zeros_like(batch["weight"])
        shown, action = batch["observation"], batch["action"]
        random = 2 * see.draw.uniform(*action.shape[:-1], self.sampled_actions, action.shape[-1]) - 1
        actions = torch.cat([random, batch["policy_action"]], -2)
        q = see["q"](shown.unsqueeze(-2).expand(*actions.shape[:-1], shown.shape[-1]), actions).transpose(-1, -2)
        least = torch.where(batch["return_known"], batch["return_to_go"], -math.inf).unsqueeze(-1)
        gap = calibrated_gap(q[..., : self.sampled_actions], q[..., self.sampled_actions :], outputs["q"], least)
        return self.conservative_weight * gap.sum(-1)


def critics_on(batch: Batch) -> tuple[Update, Move]:
    """One update of the critics, and of their slow copies."""
    terms = (SquaredTD(), CalibratedPenalty())
    return Update("q", terms, batch, credit=(ImprovedTarget(),)), Move("q_target", "q", tau=0.005)


def recipe() -> Recipe:
    """The policy imitates the data; critics learn from the data with the operator on it; then both on line."""
    data, mixed = Sample("data", batch_size=256), Mix("data", "replay", batch_size=256)
    improve = Update("base", (OwnImitation(),), mixed, credit=(ImprovedAction(),))
    return Recipe(
        name=SLUG,
        models={
            "base": Denoiser(noise_schedule="cosine"),
            "q": QNetwork(critics=4, layer_norm=True),
            "q_target": Copy("q"),
        },
        acts="base",
        collect=ActImproved(),
        sources={"replay": Replay(learning_starts=100, returns=True), "data": Transitions(returns=True)},
        updates=(
            Phase((Update("base", (OwnImitation(),), data),), optimizer_steps=2_000, collects=False),
            Phase(critics_on(data), optimizer_steps=2_000, collects=False),
            Phase((Repeat(1, (improve, *critics_on(mixed))),), reset=("base", "q")),
        ),
        turns=500,
        adds=("improved-target", "calibrated-penalty", "improved-action"),
        notes={
            "collect": "the best of the policy's proposals, after a few steps along the critics' gradient",
            "improve": "critics look at what would be done; the policy imitates improved actions by its own loss",
        },
    )
