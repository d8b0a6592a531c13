"""`+cnn`: convolutions before the dense layers of a method's policy and critic, for environments that show images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polyrl.errors import UserError
from polyrl.models.actor_critic import MlpCritic, MlpPolicy
from polyrl.models.control import ControlCritic, ControlPolicy
from polyrl.models.critics import DiscreteQNetwork
from polyrl.models.distributions import Distribution
from polyrl.models.images import (
    CONVOLUTIONS_HELP,
    CnnCritic,
    CnnPolicy,
    CnnQNetwork,
    image_critic,
    image_policy,
)
from polyrl.parts.control import MlpActorCritic
from polyrl.recipe import Change, Part, Recipe, hyperparameter, options
from polyrl.runtime.seeding import generator
from polyrl.tasks.control.spaces import Image, ObservationEncoder


@dataclass(frozen=True, kw_only=True)
class CnnActorCritic(MlpActorCritic):
    """Separate networks for policy and critic that look at images by convolutions; what is no image is normalized.

    Attributes:
        images: where they lie in an observation, each as `dataclasses.astuple` has an `Image`; the task says so.
    """

    convolutions: str = hyperparameter("auto", CONVOLUTIONS_HELP)
    images: Sequence[Sequence[Any]] = ()

    def fitted(self, observations: ObservationEncoder, task: str) -> CnnActorCritic:
        """For the images of a task.

        Raises:
            UserError: it shows none.
        """
        if not observations.images:
            raise UserError(f"{self.name} looks at images, and {task} shows none; leave +cnn away.")
        return dataclasses.replace(self, images=tuple(dataclasses.astuple(image) for image in observations.images))

    def make_policy(
        self, distribution: Distribution, continuous: np.ndarray[tuple[int], np.dtype[np.bool_]], seed: int
    ) -> ControlPolicy:
        """The policy: observations `[..., D]` to actions."""
        return image_policy(
            distribution,
            continuous,
            [Image(*image) for image in self.images],
            convolutions=self.convolutions,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            normalize=self.normalize_observation,
            stream=generator(seed, "policy"),
        )

    def make_critic(self, inputs: int, seed: int) -> ControlCritic:
        """The critic: observations `[..., inputs]` to values."""
        return image_critic(
            inputs,
            [Image(*image) for image in self.images],
            convolutions=self.convolutions,
            hidden=self.hidden,
            activation=self.activation,
            orthogonal=self.orthogonal,
            stream=generator(seed, "critic"),
        )


LOOKING: dict[type[Part], type[Any]] = {
    MlpActorCritic: CnnActorCritic,
    MlpPolicy: CnnPolicy,
    MlpCritic: CnnCritic,
    DiscreteQNetwork: CnnQNetwork,
}
"""Networks of numbers, and those that look at images in their place."""


@dataclass(frozen=True, kw_only=True)
class Cnn(Change):
    """Look at images by convolutions, before the dense layers of policy and critic."""

    domain: ClassVar[str] = "control"

    convolutions: str = hyperparameter("auto", CONVOLUTIONS_HELP)

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with networks that look at images.

        Raises:
            UserError: it has no network that could.
        """
        models = {name: self._looking(model) for name, model in recipe.models.items()}
        policy = None if recipe.policy is None else self._looking(recipe.policy)
        if policy is recipe.policy and all(models[name] is model for name, model in recipe.models.items()):
            raise UserError(
                f"{recipe.name} has no network that could look at images; '{self.name}' is for methods with the policy "
                "and critic of control's ppo (name its task, such as --task catch), or with the action values of dqn."
            )
        return dataclasses.replace(recipe, policy=policy, models=models)

    def _looking(self, part: Any) -> Any:
        kind = LOOKING.get(type(part))
        if kind is None:
            return part
        settings = {f.name: part.setting(f.name, None) for f in options(part)}
        return kind(**settings, convolutions=self.convolutions)
