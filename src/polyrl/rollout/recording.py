"""Whole episodes of trained policies, kept as their environment gave and took them: what offline methods learn from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from polyrl.errors import NotFinite, UserError
from polyrl.models.actor import ActionNotFinite, Actor, Moment
from polyrl.rollout.control import memory_of
from polyrl.rollout.environments import SingleEnvironments, episode_seed
from polyrl.runtime.seeding import generator, stream_seed
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.minari import Episode, stacked

BLOCK = 256
"""Steps whose noise is drawn at a time."""


class Tape(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps what an environment shows, takes and pays in its present episode."""

    def __init__(self, environment: gymnasium.Env[Any, Any]):
        super().__init__(environment)
        self.observations: list[Any] = []
        self.actions: list[Any] = []
        self.rewards: list[float] = []

    def reset(self, **options: Any) -> Any:
        """Begin an episode."""
        given = self.env.reset(**options)
        self.observations, self.actions, self.rewards = [copy.deepcopy(given[0])] if len(given) == 2 else [], [], []
        return given

    def step(self, action: Any) -> Any:
        """Take a step."""
        self.actions.append(copy.deepcopy(action))
        given = self.env.step(action)
        if isinstance(given, tuple) and len(given) == 5:  # what else an environment may give is told by who steps it
            self.observations.append(copy.deepcopy(given[0]))
            self.rewards.append(float(given[1]))
        return given


@dataclass
class Recorder:
    """Plays whole episodes with several policies in turn.

    Episode `k` of policy `n` is a pure function of (seed, n, k) and the policy.

    Attributes:
        task: what is played.
        actors: the policies.
        seed: of everything random.
        sampled: whether actions are sampled, or the most probable ones.
        random: share of the steps whose action is drawn from the whole action space.
        returns, lengths: of the episodes that were played, by policy.
    """

    task: ControlTask
    actors: Sequence[Actor]
    seed: int = 0
    sampled: bool = False
    random: float = 0.0
    returns: dict[int, list[float]] = field(default_factory=dict)
    lengths: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self, episodes: int) -> Iterator[Episode]:
        """`episodes` episodes of each policy, one of each in turn.

        Raises:
            UserError: the task has vector environments only, or an environment fails.
        """
        task = self.task
        if task.is_vector:
            raise UserError(
                f"{task.spec} makes vector environments, whose episodes cannot be recorded one by one; give a function "
                "that makes single ones."
            )
        tape = Tape(task.singles(1)[0])
        made = SingleEnvironments(task.spec, [tape], task.observations, task.actions, task.masked, lasting=task.lasting)
        try:
            for k in range(episodes):
                for n, actor in enumerate(self.actors):
                    yield self._play(made, tape, actor, n, k)
        finally:
            made.close()

    def _play(self, made: SingleEnvironments, tape: Tape, actor: Actor, n: int, k: int) -> Episode:
        task, play = self.task, actor.player()
        stream = generator(self.seed, "record", n, k)
        space = copy.deepcopy(task.actions.space)
        space.seed(stream_seed(self.seed, "record", "random", n, k) % 2**31)
        seed, starts, length = episode_seed(stream_seed(self.seed, "record"), n, k), np.ones(1, dtype=bool), 0
        made.reset(0, seed)
        memory = memory_of(actor, 1)
        ended: list[int] = []
        while not ended and length < task.eval_limit:
            if length % BLOCK == 0:
                noise, dice = actor.noise(BLOCK, 1, stream), torch.rand(BLOCK, generator=stream).tolist()
            at = length % BLOCK
            shown = made.observation
            drawn = noise[at] if self.sampled else None
            moment = Moment(actor.normalize(shown), shown, starts, drawn, made.mask, memory=memory)
            try:
                action = play(moment)
            except ActionNotFinite:
                raise NotFinite(
                    f"What a policy says in some state of {task.spec} is not finite, so nothing was recorded."
                ) from None
            if dice[at] < self.random:
                chosen = [space.sample(mask=None if made.mask is None else made.mask[0].astype(np.int8))]
            else:
                chosen = made.actions.each(action if actor.execute is None else actor.execute(action))
            ended = made.advance((0,), chosen)
            made.check_rewards((0,))
            starts, length = np.zeros(1, dtype=bool), length + 1
        rewards = np.array(tape.rewards, dtype=np.float64)
        self.returns.setdefault(n, []).append(float(rewards.sum()))
        self.lengths.setdefault(n, []).append(length)
        terminations, truncations = np.zeros(length, dtype=bool), np.zeros(length, dtype=bool)
        terminations[-1], truncations[-1] = made.terminated[0], not made.terminated[0]
        return Episode(
            observations=stacked(task.observations.space, tape.observations),
            actions=stacked(task.actions.space, tape.actions),
            rewards=rewards,
            terminations=terminations,
            truncations=truncations,
            seed=seed,
        )
