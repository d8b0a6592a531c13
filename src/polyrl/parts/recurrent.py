"""`+gru`: a memory before the dense layers of policy and critic, for environments that do not show all that matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.models.actor import Actor
from polyrl.models.control import ControlCritic, ControlPolicy
from polyrl.models.distributions import Distribution
from polyrl.models.mlp import layer_sizes, mlp
from polyrl.models.recurrent import (
    CRITIC_STATE,
    POLICY_STATE,
    GruLayer,
    RecurrentActor,
    RecurrentCritic,
    RecurrentPolicy,
    starts_within,
)
from polyrl.parts.control import MlpActorCritic, StepEnvironments
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter, options
from polyrl.runtime.seeding import generator

SIZE_HELP = "numbers that policy and critic each remember"
WINDOW_HELP = "steps of one row of training: gradients go no further back; it divides the steps of a rollout"


@dataclass(frozen=True, kw_only=True)
class GruActorCritic(MlpActorCritic):
    """A GRU for the policy and one for the critic, each with dense layers behind it."""

    gives: ClassVar[frozenset[str]] = frozenset({POLICY_STATE, CRITIC_STATE})
    own_fields: ClassVar[Mapping[str, Field]] = {
        POLICY_STATE: Field("[B, T, H]", "float32", "-", "what the policy remembered before each step (gru)"),
        CRITIC_STATE: Field("[B, T, H]", "float32", "-", "what the critic remembered before each step (gru)"),
    }

    hidden: str = hyperparameter("64", "sizes of the hidden layers behind the memory, joined by x")
    gru_size: int = hyperparameter(64, SIZE_HELP, low=1)

    def make_policy(
        self, distribution: Distribution, continuous: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int
    ) -> ControlPolicy:
        """The policy: observations `[B, T, D]` to actions."""
        stream = generator(seed, "policy")
        gru = GruLayer(len(continuous), self.gru_size, orthogonal=self.orthogonal, generator=stream)
        gain = 0.01 if self.orthogonal else None
        head = mlp(
            self.gru_size, layer_sizes(self.hidden), distribution.size, self.activation, gain=gain, generator=stream
        )
        return RecurrentPolicy(gru, head, distribution, continuous, normalize=self.normalize_observation)

    def make_critic(self, inputs: int, seed: int) -> ControlCritic:
        """The critic: observations `[B, T, inputs]` to values."""
        stream = generator(seed, "critic")
        gru = GruLayer(inputs, self.gru_size, orthogonal=self.orthogonal, generator=stream)
        gain = 1.0 if self.orthogonal else None
        head = mlp(self.gru_size, layer_sizes(self.hidden), 1, self.activation, gain=gain, generator=stream)
        return RecurrentCritic(gru, head)

    def make_actor(self, policy: ControlPolicy, critic: ControlCritic | None, *, masked: bool) -> Actor:
        """What acts by the policy's memory, among the allowed actions where the environment tells them."""
        assert isinstance(policy, RecurrentPolicy) and (critic is None or isinstance(critic, RecurrentCritic))
        return RecurrentActor(policy, critic, masked=masked)


def check_acts_alone(recipe: Recipe, name: str) -> None:
    """Refuse that something acts around a policy that remembers; `name` is what lets it.

    Raises:
        UserError: names what does.
    """
    if type(recipe.collect) is not StepEnvironments:
        raise UserError(
            f"{recipe.name} acts by more than its policy, through '{recipe.collect and recipe.collect.name}', and "
            f"'{name}' does not know what that remembers; leave one of the two away."
        )


@dataclass(frozen=True, kw_only=True)
class CutIntoWindows(Part):
    """Cut rollouts into rows of fewer steps, to be shuffled; what is computed of whole rollouts is there already."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset(
        {POLICY_STATE, CRITIC_STATE, "terminated", "truncated", "present", "starts_episode"}
    )
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    window: int = hyperparameter(16, WINDOW_HELP, low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Windows are of equal length, and minibatches of whole ones: a memory runs through their steps."""
        check_acts_alone(recipe, "gru")
        steps = recipe.collect.setting("steps_per_environment", None) if recipe.collect else None
        if steps is not None and steps % self.window:
            raise UserError(
                f"{recipe.name}: rollouts of {steps} steps cannot be cut into windows of {self.window}; let "
                "--window divide --steps-per-environment."
            )
        if isinstance(recipe.optimize, Optimize) and recipe.optimize.minibatch_of != "rows":
            raise UserError(
                f"{recipe.name}: minibatches of single steps tear apart what a memory runs through; leave "
                "--minibatch-of rows."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Return `[B T / window, window]` steps: what is of a row becomes that of each of its windows."""
        return windows(experience, self.window)


def windows(experience: Experience, size: int) -> Experience:
    """Rows `[B, T]` as `[B T / size, size]`; fields `[B]` stand in each, but `starts_episode` is of its first step."""
    rows, steps = experience["terminated"].shape
    starts = starts_within(experience)
    starts[:, 0] = experience["starts_episode"]

    def cut(x: Tensor) -> Tensor:
        if x.shape[:2] == (rows, steps):
            return x.reshape(rows * steps // size, size, *x.shape[2:])
        return x.repeat_interleave(steps // size, 0)

    fields = {name: cut(x) for name, x in experience.data.items()}
    return Experience(fields | {"starts_episode": cut(starts)[:, 0].clone()})


@dataclass(frozen=True, kw_only=True)
class Gru(Change):
    """Remember what was seen before, by a GRU before the dense layers of policy and critic."""

    domain: ClassVar[str] = "control"

    gru_size: int = hyperparameter(64, SIZE_HELP, low=1)
    hidden: str = hyperparameter("64", "sizes of the hidden layers behind the memory, joined by x")
    window: int = hyperparameter(16, WINDOW_HELP, low=1)

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with networks that remember, trained on windows of its rollouts.

        Raises:
            UserError: it has no network that could, does not train on whole rollouts, or wraps what acts.
        """
        policy, optimize = recipe.policy, recipe.optimize
        if type(policy) is not MlpActorCritic or not isinstance(optimize, Optimize):
            raise UserError(
                f"{recipe.name} has no network that could remember; '{self.name}' is for methods with the policy and "
                "critic of control's ppo (name its task, such as --task t-maze), without +cnn."
            )
        check_acts_alone(recipe, self.name)
        settings = {f.name: policy.setting(f.name, None) for f in options(policy)}
        remembering = GruActorCritic(**{**settings, "hidden": self.hidden}, gru_size=self.gru_size)
        return dataclasses.replace(
            recipe,
            policy=remembering,
            select=(*recipe.select, CutIntoWindows(window=self.window)),
            optimize=dataclasses.replace(optimize, minibatch_of="rows"),
        )
