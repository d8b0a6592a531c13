"""Whole episodes to judge a policy by: its most probable actions, the same episodes every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from polyrl.errors import NotFinite, UserError
from polyrl.models.actor import ActionNotFinite, Actor, Moment
from polyrl.rollout.control import memory_of
from polyrl.rollout.environments import Environments, SingleEnvironments, episode_seed
from polyrl.rollout.vector_environments import VectorEnvironments
from polyrl.tasks.control.environment import ControlTask, Environment

Decide = Callable[[Environments], NDArray[Any]]
"""What environments show now to actions `[B, ...]`."""


@dataclass(frozen=True)
class Episode:
    """One whole episode with the policy's most probable actions."""

    seed: int
    total: float
    """Sum of its rewards, undiscounted."""
    length: int
    ended: str
    """"terminated", "truncated", or "cut" at the limit of evaluation."""
    cost: float | None = None
    """What the environment told last, where policies are judged by that (`ControlTask.final_cost`)."""

    def shown(self, number: int) -> dict[str, Any]:
        """As samples.jsonl has it."""
        told = {} if self.cost is None else {"cost": self.cost}
        return {
            "episode": number,
            "seed": self.seed,
            "return": self.total,
            **told,
            "length": self.length,
            "ended": self.ended,
        }


@dataclass
class Evaluator:
    """Plays whole episodes with a policy's most probable actions and its statistics as they are.

    Episode `k` starts from a seed that depends on `seed` and `k` alone, whatever the number of environments.

    Attributes:
        task: what is played.
        seed: the same for all methods and runs that are compared.
        lanes: environments that play at the same time.
        render_mode: Gymnasium's, for environments that show themselves.
        watch: called with an environment after each of its resets and steps.
    """

    task: ControlTask
    seed: int
    lanes: int = 20
    render_mode: str | None = None
    watch: Callable[[Environment], None] | None = None
    _made: SingleEnvironments | None = None

    def __call__(self, actor: Actor, episodes: int) -> list[Episode]:
        """Play episodes 0 to `episodes - 1` greedily.

        Raises:
            UserError: an environment cannot be made, or fails.
        """
        play, memory = actor.player(), dict[str, NDArray[Any]]()

        def decide(made: Environments) -> NDArray[Any]:
            observation, starts, mask = made.observation, made.length == 0, made.mask
            if actor.memory and not memory:
                memory.update(memory_of(actor, made.count))
            for kept in memory.values():
                kept[starts] = 0
            try:
                action = play(Moment(actor.normalize(observation), observation, starts, mask=mask, memory=memory))
            except ActionNotFinite:
                raise NotFinite(
                    f"What the policy says in some state of {self.task.spec} is not finite, so it could not be judged; "
                    "lower the learning rate, or look at how large observations are."
                ) from None
            return action if actor.execute is None else actor.execute(action)

        return self._in_rounds(decide, episodes) if self.task.is_vector else self._in_lanes(decide, episodes)

    def close(self) -> None:
        """Let go of the environments."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def seed_of(self, episode: int) -> int:
        """The seed of an episode."""
        return episode_seed(self.seed, 0, episode)

    def _in_lanes(self, decide: Decide, episodes: int) -> list[Episode]:
        """Single environments: a lane whose episode is over takes the next one."""
        made = self._singles(min(self.lanes, episodes))
        waiting = iter(range(episodes))
        playing: dict[int, int] = {}  # lane -> episode
        totals = np.zeros(made.count)
        found: dict[int, Episode] = {}
        limit = self.task.eval_limit

        def next_in(lane: int) -> None:
            playing.pop(lane, None)
            episode = next(waiting, None)
            if episode is not None:
                made.reset(lane, self.seed_of(episode))
                playing[lane], totals[lane] = episode, 0.0
                self._show(made.made[lane])

        for lane in range(made.count):
            next_in(lane)
        while playing:
            over = made.advance(playing, made.actions.each(decide(made)))
            made.check_rewards(playing)
            totals += made.reward
            for lane in playing if self.watch is not None else ():
                self._show(made.made[lane])
            length = made.length
            cut = [lane for lane in playing if length[lane] >= limit] if length.max() >= limit else []
            for lane in dict.fromkeys([*over, *cut]):
                ended = "terminated" if made.terminated[lane] else "truncated" if lane in over else "cut"
                episode = playing[lane]
                seed, total = self.seed_of(episode), float(totals[lane])
                found[episode] = Episode(seed, total, int(length[lane]), ended, self._told(made, lane))
                next_in(lane)
        return [found[k] for k in range(episodes)]

    def _show(self, environment: Environment) -> None:
        if self.watch is not None:
            self.watch(environment)

    def _singles(self, count: int) -> SingleEnvironments:
        if self._made is None or self._made.count != count:
            self.close()
            task = self.task
            if self.render_mode is None:
                made = task.singles(count)
            else:
                shown = [task.create(render_mode=self.render_mode) for _ in range(count)]
                made = [environment for environment in shown if isinstance(environment, gymnasium.Env)]
            self._made = SingleEnvironments(
                task.spec, made, task.observations, task.actions, task.masked, self._asked, lasting=task.lasting
            )
        return self._made

    @property
    def _asked(self) -> dict[str, tuple[int, ...]]:
        """What the environments are to tell."""
        return {self.task.final_cost: ()} if self.task.final_cost else {}

    def _told(self, made: Environments, i: int) -> float | None:
        """The final cost of what has just ended in environment `i`."""
        return float(made.told[self.task.final_cost][i]) if self.task.final_cost else None

    def _in_rounds(self, decide: Decide, episodes: int) -> list[Episode]:
        """Vector environments: all are reset together, and the first episode of each counts, as often as it takes."""
        if self.watch is not None or self.render_mode is not None:
            raise UserError(f"{self.task.spec} is a vector environment, which cannot be shown; give a single one.")
        task, found = self.task, list[Episode]()
        vector = task.create(count=min(self.lanes, episodes))
        assert not isinstance(vector, gymnasium.Env)
        made = VectorEnvironments(task.spec, vector, task.observations, task.actions, task.masked, self._asked)
        while len(found) < episodes:
            number = len(found)
            made.start(self.seed, [number] * made.count)
            totals, lengths = np.zeros(made.count), np.zeros(made.count, dtype=np.int64)
            ended, costs = [""] * made.count, list[float | None]([None] * made.count)
            while not all(ended):
                made.step(decide(made))
                made.check_rewards(i for i in range(made.count) if not ended[i])
                for i in (i for i in range(made.count) if not ended[i]):
                    totals[i] += made.reward[i]
                    lengths[i] += 1
                    ended[i] = "terminated" if made.terminated[i] else "truncated" if made.truncated[i] else ""
                    if not ended[i] and lengths[i] >= task.eval_limit:
                        ended[i] = "cut"
                    costs[i] = self._told(made, i)
            seed = episode_seed(self.seed, 0, number)
            found += [
                Episode(seed, float(total), int(length), end, cost)
                for total, length, end, cost in zip(totals, lengths, ended, costs, strict=True)
            ]
        made.close()
        return found[:episodes]
