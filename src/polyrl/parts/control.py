"""Parts that control methods share: networks, stepping environments, scaling rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import See
from polyrl.errors import UserError
from polyrl.models.actor import Actor, DistributionActor, Making, MaskedActor
from polyrl.models.actor_critic import ORTHOGONAL_HELP, mlp_critic, mlp_policy
from polyrl.models.control import ControlCritic, ControlPolicy
from polyrl.models.critics import ValueModel
from polyrl.models.distributions import Distribution
from polyrl.models.mlp import Activation
from polyrl.models.normalization import CLIP, EPSILON, RunningMoments
from polyrl.recipe import Architecture, Part, Recipe, Scope, Stage, hyperparameter
from polyrl.runtime.seeding import generator

# ------------------------------------------------------------------------------------------------------------- policy


@dataclass(frozen=True, kw_only=True)
class MlpActorCritic(Architecture):
    """Separate networks for policy and critic, of equal hidden layers; log standard deviations are a free vector."""

    hidden: str = hyperparameter("64x64", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("tanh", "between layers: tanh, relu or elu")
    orthogonal: bool = hyperparameter(True, ORTHOGONAL_HELP)
    log_std_init: float = hyperparameter(0.0, "initial log standard deviation of continuous actions")
    normalize_observation: bool = hyperparameter(
        True, "running mean and variance of observations, kept with the policy"
    )

    def make_policy(
        self, distribution: Distribution, continuous: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int
    ) -> ControlPolicy:
        """The policy: observations `[..., D]`, of which the `continuous` entries `[D]` are normalized, to actions."""
        return mlp_policy(
            distribution,
            continuous,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            normalize=self.normalize_observation,
            stream=generator(seed, "policy"),
        )

    def make_actor(self, policy: ControlPolicy, critic: ControlCritic | None, *, masked: bool) -> Actor:
        """What acts by the policy, among the allowed actions where the environment tells them."""
        return (MaskedActor if masked else DistributionActor)(policy)

    def make_critic(self, inputs: int, seed: int) -> ControlCritic:
        """The critic: normalized observations `[..., inputs]` to values."""
        return mlp_critic(
            inputs,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            stream=generator(seed, "critic"),
        )


# ------------------------------------------------------------------------------------------------------------ collect


@dataclass(frozen=True, kw_only=True)
class StepEnvironments(Part):
    """Step several environments at once with the present policy, a fixed number of steps each."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "control"
    gives: ClassVar[frozenset[str]] = frozenset(
        {
            "observation",
            "action",
            "behaviour_logprob",
            "present",
            "mask",
            "reward",
            "terminated",
            "truncated",
            "final_observation",
            "starts_episode",
            "rollout_end",
        }
    )
    own_fields: ClassVar[Mapping[str, Field]] = {
        "final_observation": Field("[B, T, ...]", "float32", "task's own", "seen after each truncated step (control)"),
        "starts_episode": Field("[B]", "bool", "-", "the row's first step starts an episode (control)"),
        "rollout_end": Field(
            "[B, T]", "bool", "-", "the rollout ended here and the episode goes on in the next (control)"
        ),
    }

    anew: ClassVar[bool] = False
    """Whether every rollout begins with new episodes, and cuts those that are not over at its end."""

    environments: int = hyperparameter(8, "environments that are stepped together", low=1)
    steps_per_environment: int = hyperparameter(128, "steps of each environment in one iteration", low=1)

    def given_within(self, recipe: Recipe) -> frozenset[str]:
        """What parts ask the environment to tell, too; no `behaviour_logprob` where the acting model tells none."""
        gives = self.gives | recipe.told | (recipe.policy.gives if recipe.policy else frozenset())
        acting = recipe.acting
        return gives if acting is None else gives - {"behaviour_logprob"} | acting.acting_gives

    def actor(self, inner: Actor, making: Making) -> Actor:
        """What acts in training, made of the policy's own actor: here that itself; a paper's wrapper in its own part.

        Raises:
            UserError: the wrapper does not fit the task.
        """
        return inner

    def acting(self, context: Context) -> Actor | None:
        """Who acts in this turn, where that is not the run's actor; None is that."""
        return None

    def steps(self, context: Context) -> int:
        """Steps of each environment in this turn; a paper whose rollouts grow says it in its own part."""
        return self.steps_per_environment

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `[B, T]` steps, B = `environments`, T = `steps(context)`; logs the episodes that ended."""
        batch: Experience
        batch, returns, lengths = context.run_state.collect(
            self.environments,
            self.steps(context),
            context.generator("collect"),
            self.acting(context),
            context.stream,
            anew=self.anew,
        )
        context.spent.steps += int(batch["mask"].sum())
        context.spent.samples += len(returns)
        context.log_episodes(returns, lengths)
        return batch


def joined_rollouts(kept: Mapping[str, Tensor], new: Mapping[str, Tensor], capacity: int) -> dict[str, Tensor]:
    """A rollout `[B, T]` with what the same environments did next, of which the last `capacity` steps stay.

    Where an episode goes on, the end of the rollout in between is no cut any more.

    Args:
        kept: fields of the rollouts before; empty: there are none.
        new: fields of the next one, the same ones, as `StepEnvironments` gives them.
        capacity: steps of each environment.
    """
    if not kept:
        return dict(new)
    goes_on = kept["rollout_end"] & ~new["starts_episode"].unsqueeze(1)
    kept = {
        **kept,
        "rollout_end": kept["rollout_end"] & ~goes_on,
        "truncated": kept["truncated"] & ~goes_on,
        "final_observation": kept["final_observation"] * ~goes_on.unsqueeze(-1),
    }
    whole = {name: torch.cat([kept[name], new[name]], 1) for name in new if name != "starts_episode"}
    over = max(whole["reward"].shape[1] - capacity, 0)
    begins = (whole["terminated"] | whole["truncated"])[:, over - 1] if over else kept["starts_episode"]
    return {"starts_episode": begins, **{name: x[:, over:].contiguous() for name, x in whole.items()}}


# -------------------------------------------------------------------------------------------------------------- score


def discounted_returns(
    reward: Tensor, mask: Tensor, ended: Tensor, starts: Tensor, before: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """G_t = r_t + gamma G_{t-1}, begun anew after every episode's end: the sum that reward scaling watches.

    It runs forwards and is no return of any state, but its spread is that of returns.

    Args:
        reward: `[B, T]`; mask, ended: `[B, T]` bool, steps that are experience, and those that end an episode.
        starts: `[B]` bool, rows whose first step starts an episode.
        before: `[B]`, G of the step before the first.
        gamma: discount.

    Returns:
        G `[B, T]` (0 outside `mask`) and G after the last step `[B]`, which the next rollout goes on from.
    """
    # plain floats: a handful of numbers at each step, one after another
    totals, result = [], []
    rows = zip(*(x.tolist() for x in (reward, mask, ended, starts, before)), strict=True)
    for rewards, counted, ends, begins, total in rows:
        total, row = 0.0 if begins else total, [0.0] * len(rewards)
        for t, here in enumerate(counted):
            if here:
                row[t] = total = gamma * total + rewards[t]
                if ends[t]:
                    total = 0.0
        result.append(row)
        totals.append(total)
    return torch.tensor(result, dtype=reward.dtype).reshape(reward.shape), torch.tensor(totals, dtype=before.dtype)


def running_deviation(moments: RunningMoments, returns: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation `[T]` of all returns seen up to and with each step; takes `returns` `[B, T]` into `moments`.

    The same numbers as `moments.update` step by step would give, from cumulative sums over the whole rollout.
    """
    before, seen = float(moments.count), mask.numpy()
    shift = float(moments.mean)  # sums of squares around the old mean lose no digits
    centred = np.where(seen, returns.double().numpy() - shift, 0.0)
    count = before + seen.sum(0).cumsum()
    first = centred.sum(0).cumsum()
    second = float(moments.variance) * before + np.square(centred).sum(0).cumsum()
    mean = first / count
    variance = np.maximum(second / count - np.square(mean), 0.0)
    moments.mean.fill_(shift + float(mean[-1]))
    moments.variance.fill_(float(variance[-1]))
    moments.count.fill_(float(count[-1]))
    return torch.from_numpy(np.sqrt(variance + EPSILON))


@dataclass(frozen=True, kw_only=True)
class ScaleReward(Part):
    """Divide rewards by the running standard deviation of the discounted return; no centring, cut at +-10.

    What Stable-Baselines3's VecNormalize does. The statistics are the policy's and are saved with it.
    """

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "reward-scale"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask", "terminated", "truncated", "starts_episode"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    # rows are environments: some step of each is experience, and there is no other kind of row
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="none", greedy="none", masked="left out", unpaid="none"
    )

    scale_reward: bool = hyperparameter(True, "whether to divide at all")
    gamma: float = hyperparameter(0.99, "discount of the return whose spread is measured, per step", low=0, high=1)

    def check_within(self, recipe: Recipe) -> None:
        """The statistics are of the policy that acts, which must keep some.

        Raises:
            UserError: the model that acts keeps none.
        """
        acting = recipe.acting
        if acting is not None and self.scale_reward and not acting.scales_rewards:
            raise UserError(
                f"{recipe.name}: '{self.name}' divides by statistics that the policy keeps, and '{acting.name}' keeps "
                "none; let an mlp-policy act, or set --scale-reward false."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Replace `reward` [B, T] by the scaled one."""
        if not self.scale_reward:
            return experience
        memory, mask = context.memory(self.name), experience["mask"]
        rows = len(experience)
        before = torch.tensor(memory.get("returns", [0.0] * rows), dtype=torch.float64)
        # a rollout's end is no episode's end: `starts_episode` of the next one tells
        ended = experience["terminated"] | experience["truncated"]
        returns, after = discounted_returns(
            experience["reward"].double(),
            mask,
            torch.cat([ended[:, :-1], torch.zeros_like(ended[:, -1:])], 1),
            experience["starts_episode"],
            before if len(before) == rows else torch.zeros(rows, dtype=torch.float64),
            self.gamma,
        )
        memory["returns"] = after.tolist()
        deviation = running_deviation(context.run_state.reward_moments(context.stream), returns, mask)
        context.log(reward_scale=1 / deviation[-1])
        scaled = (experience["reward"] / deviation.float()).clamp(-CLIP, CLIP)
        return experience.with_fields(reward=scaled)


# ------------------------------------------------------------------------------------------------------------- credit


@dataclass(frozen=True)
class StateValues(Part):
    """Measure what a named critic says of the state before every step, in recipes that list their models.

    A paper with another critic derives from it and names the fields: the one that is looked at (`observation`), and
    those that the values (`value`) and the values after truncated steps (`final_`) go to. Where nothing tells what is
    seen after a truncated step, as of what an environment tells by itself, `bootstraps` is false and there are none.

    Attributes:
        model: the critic's name.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    gives: ClassVar[frozenset[str]] = frozenset({"value", "final_value"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "final_value": Field("[B, T]", "float32", "reward", "value of the state after a truncated step"),
    }
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    observation: ClassVar[str] = "observation"
    value: ClassVar[str] = "value"
    bootstraps: ClassVar[bool] = True

    model: str = "critic"

    def required(self) -> frozenset[str]:
        """What it looks at."""
        after = {f"final_{self.observation}", "truncated"} if self.bootstraps else set[str]()
        return frozenset({self.observation}) | after

    def required_models(self) -> frozenset[str]:
        """The critic."""
        return frozenset({self.model})

    def check_within(self, recipe: Recipe) -> None:
        """Refuse what is no critic.

        Raises:
            UserError: the recipe does not list such a model, or it gives no value.
        """
        if self.model not in recipe.models or "value" not in recipe.models[self.model].outputs:
            known = [name for name, model in recipe.models.items() if "value" in model.outputs]
            raise UserError(
                f"{recipe.name}: '{self.name}' asks the model '{self.model}' for values, and the recipe lists "
                f"{', '.join(known) or 'none'} that gives some."
            )

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add values [B, T], and those after truncated steps [B, T], 0 at the others."""
        critic: ValueModel = see[self.model]
        if not self.bootstraps:
            return batch.with_fields(**{self.value: critic.values(batch[self.observation])})
        cut = batch["truncated"]
        final = torch.zeros(cut.shape)
        if bool(cut.any()):
            final[cut] = critic.values(batch[f"final_{self.observation}"][cut])
        value = critic.values(batch[self.observation])
        return batch.with_fields(**{self.value: value, f"final_{self.value}": final})
