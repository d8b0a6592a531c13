"""DQN: learn the value of each of a few actions from a replay buffer, and act greedily but for a share at random.

Targets come from a copy of the network that is renewed now and then. Double DQN (arXiv:1509.06461) lets the network
choose the target's action and the copy value it; `dueling` (arXiv:1511.06581) and `prioritised` (arXiv:1511.05952) are
options. The settings are those of the RL zoo for CartPole, not those of the paper's Atari runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Move, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.actor import Actor, Making, Moment, Player
from polyrl.models.base import Copy
from polyrl.models.critics import DiscreteQNetwork
from polyrl.parts.replayed import OffPolicyTerm, StepAndKeep
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "dqn"
TITLE = "Human-level Control through Deep Reinforcement Learning"
PAPER = "doi:10.1038/nature14236"
YEAR = 2015
FORMULA = "y = r + gamma Q'(s', argmax_a Q(s', a)); loss = Huber(Q(s, a) - y)"
TASK = "CartPole-v1"


class EpsilonGreedy(Actor):
    """Acts greedily, but for a share `epsilon` of the steps at random.

    Attributes:
        inner: the greedy actor, over one of a few actions.
        epsilon: share of random actions from the next rollout on.
    """

    action_shape, action_dtype = (), np.int64
    recorded: Mapping[str, tuple[tuple[int, ...], Any]] = {}

    def __init__(self, inner: Actor, choices: int):
        self.inner, self.choices, self.epsilon = inner, choices, 1.0

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

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """None: a value method weighs by no likelihood."""
        return {}

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """The inner actor's."""
        return self.inner.outputs(batch, wants)

    def is_finite(self) -> bool:
        """The inner actor's parameters."""
        return self.inner.is_finite()


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
        """The greedy actor with random actions between."""
        space = making.task.actions.space
        assert isinstance(space, spaces.Discrete)  # the model has refused others
        return EpsilonGreedy(inner, int(space.n))

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `[B, T]` steps; logs the share of random actions."""
        actor = context.run_state.actor
        assert isinstance(actor, EpsilonGreedy)
        actor.epsilon = exploration(
            context.progress, self.exploration_fraction, self.exploration_initial, self.exploration_final
        )
        context.log(exploration=actor.epsilon)
        return super().__call__(experience, context)


def double_target(reward: Tensor, discount: Tensor, values: Tensor, target_values: Tensor) -> Tensor:
    """r + discount Q'(s', argmax_a Q(s', a)) (arXiv:1509.06461, equation 4).

    Args:
        reward, discount: `[...]`.
        values, target_values: `[..., A]` in the state that follows, of the network and of its copy.
    """
    chosen = values.argmax(-1, keepdim=True)
    return reward + discount * target_values.gather(-1, chosen).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class GreedyTarget(Part):
    """Targets: the reward, and the copy's value of the best action that follows, chosen by the network where double."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "q_target"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    double: bool = hyperparameter(
        True, "the network chooses the target's action, the copy values it; false: the copy does both"
    )

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` [B, T]."""
        following = batch["next_observation"]
        theirs = see["q_target"](following)
        chooses = see["q"](following) if self.double else theirs
        if "next_action_mask" in batch:
            chooses = torch.where(batch["next_action_mask"], chooses, -torch.inf)
        return batch.with_fields(value_target=double_target(batch["reward"], batch["discount"], chooses, theirs))


@dataclass(frozen=True, kw_only=True)
class HuberTD(OffPolicyTerm):
    """Huber's loss of the taken action's value against its target: squared up to an error of 1, then linear."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"q"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every row, `[B, T]`."""
        return torch.nn.functional.smooth_l1_loss(outputs["q"], experience["value_target"], reduction="none")

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By Q: the error, cut at 1."""
        total = (self.loss(outputs, experience) * weights).sum()
        return total, {"q": (outputs["q"] - experience["value_target"]).clamp(-1, 1) * weights}

    def priority(self, outputs: Mapping[str, Tensor], batch: Experience) -> Tensor:
        """The absolute error `[B, T]`."""
        return (outputs["q"] - batch["value_target"]).abs()

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The mean value, and the targets'."""
        return {"q": outputs["q"], "value_target": experience["value_target"]}


def recipe() -> Recipe:
    """Double DQN with the RL zoo's settings for CartPole: 256 steps, 128 updates, then the copy is renewed."""
    return Recipe(
        name=SLUG,
        models={
            "q": DiscreteQNetwork(learning_rate=2.3e-3, max_grad_norm=10.0),
            "q_target": Copy("q"),
        },
        acts="q",
        collect=ExploreEnvironments(),
        sources={"replay": Replay(capacity=100_000, learning_starts=1_000)},
        updates=(
            Repeat(128, (Update("q", (HuberTD(),), Sample("replay", batch_size=64), credit=(GreedyTarget(),)),)),
            Move("q_target", "q"),
        ),
        turns=4,
        adds=("explore-environments", "greedy-target", "huber-td"),
        notes={
            "collect": "greedy actions, and random ones that become rarer",
            "improve": "Huber's loss against a target network that is copied now and then",
        },
    )
