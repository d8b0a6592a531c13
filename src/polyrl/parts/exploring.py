"""Exploring a few actions: greedy ones, and a falling share of random ones between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.actor import Actor, Making, Moment, Player, Wrapper
from polyrl.parts.replayed import StepAndKeep
from polyrl.recipe import hyperparameter


class EpsilonGreedy(Wrapper):
    """Acts greedily, but for a share `epsilon` of the steps at random.

    Attributes:
        inner: the greedy actor, over one of a few actions.
        epsilon: share of random actions from the next rollout on.
    """

    def __init__(self, inner: Actor, choices: int):
        super().__init__(inner)
        self.choices, self.epsilon = choices, 1.0

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """Numbers in [0, 1) `[steps, count]` that choose a random action, and -1 where the greedy one is taken."""
        random = torch.rand((steps, count), generator=generator)
        explores = torch.rand((steps, count), generator=generator) < self.epsilon
        return torch.where(explores, random, -1.0).numpy()

    def player(self) -> Player:
        """Replace the greedy actions where there are random ones."""
        play = self.inner.player()

        def explore(moment: Moment) -> NDArray[Any]:
            greedy, random = play(moment), moment.noise
            if random is None:
                return greedy
            return np.where(random >= 0, chosen(random, self.choices, moment.mask), greedy)

        return explore


def chosen(uniform: NDArray[Any], choices: int, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Actions `[B]`, each allowed one as likely as another, by numbers in [0, 1) `[B]`."""
    allowed = np.ones((len(uniform), choices), dtype=bool) if mask is None else mask
    place = np.floor(uniform * allowed.sum(1))  # of the allowed ones, in their order
    found: NDArray[np.int64] = (allowed.cumsum(1) > place[:, None]).argmax(1)
    return found


def exploration(progress: float, fraction: float, initial: float, final: float) -> float:
    """From `initial` to `final` in a straight line over the first `fraction` of a run."""
    done = 1.0 if fraction == 0 else min(progress / fraction, 1.0)
    return initial + done * (final - initial)


@dataclass(frozen=True, kw_only=True)
class ExploreEnvironments(StepAndKeep):
    """Step environments with greedy actions, and a falling share of random ones."""

    steps_per_environment: int = hyperparameter(256, "steps of each environment in one turn", low=1)
    exploration_fraction: float = hyperparameter(
        0.16, "share of the run over which random actions become rarer", low=0, high=1
    )
    exploration_initial: float = hyperparameter(1.0, "share of random actions at first", low=0, high=1)
    exploration_final: float = hyperparameter(0.04, "share of random actions after that", low=0, high=1)

    def follows_budget(self) -> tuple[str, ...]:
        """The falling share of random actions."""
        return ("exploration_fraction",) if self.exploration_fraction else ()

    def actor(self, inner: Actor, making: Making) -> Actor:
        """The greedy actor with random actions between.

        Raises:
            UserError: actions are not a few.
        """
        space = making.task.actions.space
        if not isinstance(space, spaces.Discrete):
            raise UserError(
                f"'{self.name}' draws one of a few actions, and the actions of {making.task.name} are {space}; leave "
                "it away, or take a task with Discrete actions."
            )
        return EpsilonGreedy(inner, int(space.n))

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `[B, T]` steps; logs the share of random actions."""
        actor = context.run_state.actor
        while isinstance(actor, Wrapper) and not isinstance(actor, EpsilonGreedy):
            actor = actor.inner  # of a paper that puts something around it, such as a guide
        assert isinstance(actor, EpsilonGreedy)
        actor.epsilon = exploration(
            context.progress, self.exploration_fraction, self.exploration_initial, self.exploration_final
        )
        context.log(exploration=actor.epsilon)
        return super().__call__(experience, context)
