"""Stepping environments: rollouts of a fixed length from several environments at once, and whole episodes to judge by.

The loop over steps touches arrays that were made once; log-probabilities, returns and checks of rewards come after it,
for the whole rollout at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from polyrl.errors import Diverged, UserError
from polyrl.policies.control import ControlPolicy, Floats
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.control.environment import ControlTask, Environment, Vector
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder
from polyrl.tasks.language.phrases import reason_of

REPLAY_LIMIT = 50_000
"""Longest episode, in steps, that a checkpoint keeps for replay; a longer one is started anew there."""


def episode_seed(seed: int, environment: int, episode: int) -> int:
    """Seed of episode number `episode` of environment number `environment`, 31 bits: what every environment accepts."""
    return stream_seed(seed, "environment", environment, episode) % 2**31


def _failed(spec: str, environment: int, step: int, what: str) -> UserError:
    return UserError(
        f"Environment {environment} of {spec} {what} at step {step} of its episode; the run stopped there."
    )


# ------------------------------------------------------------------------------------------------------ environments


class Environments(ABC):
    """Several environments that are stepped together. All arrays are owned by it and written over by each step.

    Attributes:
        observation: float64 `[B, D]`, what each environment shows now, after a reset where its episode ended.
        final: float64 `[B, D]`, what each showed when its episode ended; only rows that ended at the last step count.
        reward: float64 `[B]`; terminated, truncated: bool `[B]`, never both.
        dead: bool `[B]`, the next step only resets this environment (Gymnasium's NEXT_STEP): what it gives is no
            experience, and `observation` still is the one that ended the episode.
        episode: int64 `[B]`, number of the present episode, from 0.
        length: int64 `[B]`, steps of the present episode so far.
    """

    replayable = False
    """Whether each episode starts from a seed of its own, so that actions bring back its state."""

    def __init__(self, spec: str, count: int, observations: ObservationEncoder, actions: ActionAdapter):
        self.spec, self.count = spec, count
        self.observations, self.actions = observations, actions
        self.observation = np.zeros((count, observations.size))
        self.final = np.zeros((count, observations.size))
        self.reward = np.zeros(count)
        self.terminated, self.truncated, self.dead = (np.zeros(count, dtype=bool) for _ in range(3))
        self.episode, self.length = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)

    @abstractmethod
    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start an episode everywhere: number `episodes[i]` in environment `i`."""

    @abstractmethod
    def step(self, action: NDArray[Any]) -> None:
        """Take the policy's actions `[B, ...]`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the environments."""

    def check_finite(self) -> None:
        """Refuse observations that are not finite.

        Raises:
            UserError: names the environment and the step.
        """
        if math.isfinite(self.observation.sum()):
            return
        for i in np.flatnonzero(~np.isfinite(self.observation).all(1)):
            raise _failed(self.spec, int(i), int(self.length[i]), "gave an observation that is not finite")


class SingleEnvironments(Environments):
    """Environments of one kind, stepped one after another, each episode from a seed of its own."""

    replayable = True

    def __init__(self, spec: str, made: list[Environment], observations: ObservationEncoder, actions: ActionAdapter):
        super().__init__(spec, len(made), observations, actions)
        self.made = made
        self.seed = 0

    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start these episodes; each is a pure function of (seed, environment, episode, actions)."""
        self.seed = seed
        for i, episode in enumerate(episodes):
            self.begin(i, episode)

    def begin(self, i: int, episode: int) -> None:
        """Start an episode in one environment."""
        self.episode[i] = episode
        self.reset(i, episode_seed(self.seed, i, episode))

    def reset(self, i: int, seed: int) -> None:
        """Reset one environment with a seed."""
        self.length[i] = 0
        try:
            observation, _ = self.made[i].reset(seed=seed)
        except Exception as error:
            raise _failed(self.spec, i, 0, f"raised {reason_of(error)}") from error
        self._encode(i, observation)

    def step(self, action: NDArray[Any]) -> None:
        """Step every environment; where an episode ends, the next one starts at once."""
        for i, chosen in enumerate(self.actions.each(action)):
            if self.step_one(i, chosen):
                self.final[i] = self.observation[i]
                self.check_finite()
                self.begin(i, int(self.episode[i]) + 1)

    def step_one(self, i: int, chosen: Any) -> bool:
        """Step one environment with an action as it expects it; return whether its episode ended."""
        self.length[i] += 1
        try:
            observation, reward, ends, cuts, _ = self.made[i].step(chosen)
            self.reward[i] = reward
        except Exception as error:
            raise _failed(self.spec, i, int(self.length[i]), f"raised {reason_of(error)}") from error
        self._encode(i, observation)
        self.terminated[i], self.truncated[i] = ends, cuts and not ends
        return bool(ends or cuts)

    def replay(self, i: int, episode: int, actions: NDArray[Any]) -> None:
        """Bring environment `i` to where these actions `[n, ...]` lead in this episode."""
        self.begin(i, episode)
        for chosen in self.actions.each(actions):
            self.step_one(i, chosen)

    def _encode(self, i: int, observation: Any) -> None:
        try:
            self.observations.encode(observation, self.observation[i])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            text = f"gave an observation that does not fit its space ({reason_of(error)})"
            raise _failed(self.spec, i, int(self.length[i]), text) from error

    def close(self) -> None:
        """Close every environment."""
        for environment in self.made:
            environment.close()


class VectorEnvironments(Environments):
    """A Gymnasium vector environment, in whichever way it resets the episodes that have ended."""

    def __init__(self, spec: str, made: Vector, observations: ObservationEncoder, actions: ActionAdapter):
        super().__init__(spec, made.num_envs, observations, actions)
        self.made = made
        self.mode = autoreset_mode(spec, made)

    def start(self, seed: int, episodes: Sequence[int]) -> None:
        """Start an episode everywhere; its randomness follows from `seed` and the first episode's number alone."""
        self.episode[:], self.length[:], self.dead[:] = episodes, 0, False
        try:
            observation, _ = self.made.reset(seed=episode_seed(seed, 0, int(episodes[0])))
        except Exception as error:
            raise UserError(f"{self.spec} raised {reason_of(error)} when it was reset.") from error
        self._encode(observation, self.observation)

    def step(self, action: NDArray[Any]) -> None:
        """Step all at once; ends of episodes are told in the same way for all three modes of resetting."""
        self.length += ~self.dead
        try:
            observation, reward, terminated, truncated, info = self.made.step(self.actions.batch(action))
        except Exception as error:
            raise UserError(
                f"{self.spec} raised {reason_of(error)} at step {self.length.max()} of its longest episode; the run "
                "stopped there."
            ) from error
        self._encode(observation, self.observation)
        self.reward[:] = reward
        self.terminated[:] = terminated
        self.truncated[:] = truncated & ~self.terminated
        begun = self.dead.copy()  # those whose step was the reset
        ended = self.terminated | self.truncated
        self.episode += begun
        self.length[begun] = 0
        if self.mode is AutoresetMode.NEXT_STEP:
            self.dead[:] = ended
            self.final[ended] = self.observation[ended]
        elif ended.any():
            if self.mode is AutoresetMode.SAME_STEP:
                self._read_final(info, np.flatnonzero(ended))
            else:
                self.final[ended] = self.observation[ended]
                self.check_finite()
                fresh, _ = self.made.reset(options={"reset_mask": ended})
                self._encode(fresh, self.observation)
            self.episode += ended
            self.length[ended] = 0

    def _read_final(self, info: dict[str, Any], ended: NDArray[np.int64]) -> None:
        found = info.get("final_obs", info.get("final_observation"))
        if found is None:
            raise UserError(
                f"{self.spec} resets in the same step but gives no info['final_obs']: without it the value of what a "
                "time limit cut off is unknown; let it give them, or use the mode NEXT_STEP."
            )
        for i in ended:
            one = {key: value[i] for key, value in found.items()} if isinstance(found, dict) else found[i]
            self.observations.encode(one, self.final[i])
            if not np.isfinite(self.final[i]).all():
                raise _failed(self.spec, int(i), int(self.length[i]), "gave an observation that is not finite")

    def _encode(self, observation: Any, into: NDArray[np.float64]) -> None:
        try:
            self.observations.encode_batch(self.made.observation_space, observation, into)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"{self.spec} gave an observation that does not fit its space ({reason_of(error)})."
            ) from error

    def close(self) -> None:
        """Close the vector environment."""
        self.made.close()


def autoreset_mode(spec: str, made: Vector) -> AutoresetMode:
    """How a vector environment resets, from its metadata.

    Raises:
        UserError: it does not say.
    """
    stated = made.metadata.get("autoreset_mode")
    try:
        return stated if isinstance(stated, AutoresetMode) else AutoresetMode(stated)
    except ValueError:
        raise UserError(
            f"{spec} does not say how it resets; set its metadata['autoreset_mode'] to a "
            f"gymnasium.vector.AutoresetMode ({', '.join(m.name for m in AutoresetMode)})."
        ) from None


def environments_of(task: ControlTask, count: int) -> Environments:
    """Make the training environments of a task."""
    if task.is_vector or task.stepping != "single":
        return VectorEnvironments(task.spec, task.vector(count), task.observations, task.actions)
    return SingleEnvironments(task.spec, task.singles(count), task.observations, task.actions)


# ------------------------------------------------------------------------------------------------------------ rollouts


@dataclass
class Rollout:
    """What one rollout gave: arrays `[B, T]`, environments first. Fields of `Experience` have its names."""

    observation: Floats
    action: NDArray[Any]
    numbers: Floats
    """`[B, T, O]`: what the policy said in each state."""
    reward: Floats
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    present: NDArray[np.bool_]
    final_observation: Floats
    starts_episode: NDArray[np.bool_]
    returns: list[float]
    """Raw returns of the episodes that ended."""
    lengths: list[int]


@dataclass
class Standing:
    """Where the environments stand between rollouts: what a checkpoint needs to go on to the same numbers.

    Attributes:
        episode: number of each environment's present episode.
        paid: return so far of each present episode.
        actions: the policy's actions in each present episode, for replay.
        observation: float64 `[B, D]`, what each environment shows, to see whether a replay came to the same.
        restarts: how often all episodes were started anew.
        running: false where episodes start anew at the next rollout.
    """

    episode: list[int] = field(default_factory=list)
    paid: list[float] = field(default_factory=list)
    actions: list[NDArray[Any]] = field(default_factory=list)
    observation: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    restarts: int = 0
    running: bool = False

    def copy(self) -> Standing:
        """A copy that later rollouts do not change."""
        return Standing(
            [*self.episode], [*self.paid], [*self.actions], self.observation.copy(), self.restarts, self.running
        )


class Collector:
    """Collects rollouts with a policy, and knows where the environments stand."""

    def __init__(
        self, environments: Environments, policy: ControlPolicy, seed: int, say: Callable[[str], None] = lambda _: None
    ):
        self.environments, self.policy, self.seed, self.say = environments, policy, seed, say
        self.standing = Standing()
        self._ready = False
        self._before: tuple[Standing, dict[str, torch.Tensor]] | None = None
        self._buffers: dict[str, NDArray[Any]] = {}
        self._current: Floats = np.zeros((0, 0), dtype=np.float32)

    # ------------------------------------------------------------------------------------- between rollouts

    def rest(self) -> Standing:
        """Where the environments stand, to be written into a checkpoint.

        What cannot be brought back by replay is started anew after every checkpoint, in this process as well as in one
        that resumes, so that both go on to the same numbers.
        """
        standing, environments = self.standing, self.environments
        if not standing.running:
            return standing
        if not environments.replayable:
            self.standing = Standing(restarts=standing.restarts + 1)
            self._ready = False
        elif max(map(len, standing.actions)) > REPLAY_LIMIT:
            for i, actions in enumerate(standing.actions):
                if len(actions) > REPLAY_LIMIT:
                    standing.episode[i] += 1
                    standing.actions[i], standing.paid[i] = actions[:0], 0.0
                    standing.observation[i] = np.nan  # not known before the episode starts
            self._ready = False
        return self.standing

    def go_on_from(self, standing: Standing) -> None:
        """Stand where a checkpoint says; the environments follow at the next rollout."""
        self.standing, self._ready = standing, False

    def rewind(self) -> None:
        """Forget the latest rollout, finished or not: stand where it began, with the statistics of then."""
        if self._before is not None:
            standing, buffers = self._before
            for name, buffer in self.policy.named_buffers():
                buffer.copy_(buffers[name])
            self.go_on_from(standing)

    def _prepare(self) -> None:
        """Bring the environments to where they should stand."""
        environments, standing = self.environments, self.standing
        self._ready = True
        if not standing.running or len(standing.episode) != environments.count:
            empty = np.zeros((0, *self.policy.distribution.action_shape), dtype=self.policy.distribution.dtype)
            first = standing.restarts if not environments.replayable else 0
            environments.start(self.seed, [first] * environments.count)
            self._begin([True] * environments.count)
            self.standing = Standing(
                episode=environments.episode.tolist(),
                paid=[0.0] * environments.count,
                actions=[empty] * environments.count,
                observation=environments.observation.copy(),
                restarts=standing.restarts,
                running=True,
            )
            return
        assert isinstance(environments, SingleEnvironments)
        environments.seed = self.seed
        strayed, fresh = [], []
        for i, (episode, actions) in enumerate(zip(standing.episode, standing.actions, strict=True)):
            known = bool(np.isfinite(standing.observation[i]).all())
            environments.replay(i, episode, actions)
            if not known:
                fresh.append(i)
            elif not np.array_equal(environments.observation[i], standing.observation[i]):
                strayed.append(i)
                environments.begin(i, episode + 1)
                standing.paid[i], standing.actions[i] = 0.0, actions[:0]
        if strayed:
            self.say(
                f"{environments.spec} is not a function of its seed and the actions: environments "
                f"{', '.join(map(str, strayed))} could not be brought back and start new episodes, so the run goes on "
                "to other numbers than without the interruption."
            )
        self._begin([i in strayed or i in fresh for i in range(environments.count)])

    def _begin(self, fresh: list[bool]) -> None:
        """Show the policy the first observations of new episodes."""
        self.policy.see(self.environments.observation[np.array(fresh)])
        self._current = self.policy.normalise(self.environments.observation)

    # ------------------------------------------------------------------------------------------- one rollout

    def collect(self, steps: int, generator: torch.Generator) -> Rollout:
        """Step every environment `steps` times with actions sampled from the policy as it is now.

        Raises:
            UserError: an environment raised, or gave an observation or reward that is not finite.
        """
        self._before = self.standing.copy(), {name: b.clone() for name, b in self.policy.named_buffers()}
        if not self._ready:
            self._prepare()
        environments, policy = self.environments, self.policy
        distribution, forward = policy.distribution, policy.snapshot()
        count, size = environments.count, environments.observations.size
        noise = distribution.noise((steps, count), generator)
        b = self._made(steps, count, size)
        starts = environments.dead | (environments.length == 0)
        length = np.where(starts, 0, environments.length)
        current = self._current
        for t in range(steps):
            b["observation"][t] = current
            b["dead"][t] = environments.dead
            numbers = forward(current)
            if not math.isfinite(numbers.sum()):
                self._blame_policy(current)
            b["numbers"][t] = numbers
            action = distribution.decide(numbers + noise[t])
            b["action"][t] = action
            environments.step(action)
            b["reward"][t], b["terminated"][t], b["truncated"][t] = (
                environments.reward,
                environments.terminated,
                environments.truncated,
            )
            environments.check_finite()
            # the observation that ends an episode under NEXT_STEP is shown to the critic only, never to the statistics
            policy.see(
                environments.observation[~environments.dead] if environments.dead.any() else environments.observation
            )
            if environments.truncated.any():
                cut = environments.truncated
                b["final"][t, cut] = policy.normalise(environments.final[cut])
            current = policy.normalise(environments.observation)
        self._current = current
        return self._finish(b, starts, length)

    def _made(self, steps: int, count: int, size: int) -> dict[str, NDArray[Any]]:
        """The buffers of a rollout, time first; made once."""
        b = self._buffers
        if not b or b["reward"].shape != (steps, count):
            distribution = self.policy.distribution
            b["observation"] = np.empty((steps, count, size), dtype=np.float32)
            b["final"] = np.empty((steps, count, size), dtype=np.float32)
            b["numbers"] = np.empty((steps, count, distribution.size), dtype=np.float32)
            b["action"] = np.empty((steps, count, *distribution.action_shape), dtype=distribution.dtype)
            b["reward"] = np.empty((steps, count))
            b["terminated"], b["truncated"], b["dead"] = (np.empty((steps, count), dtype=bool) for _ in range(3))
        b["final"][:] = 0.0
        return b

    def _finish(self, b: dict[str, NDArray[Any]], starts: NDArray[np.bool_], length: NDArray[np.int64]) -> Rollout:
        environments = self.environments
        present = ~b["dead"]
        ended = b["terminated"] | b["truncated"]
        if not np.isfinite(b["reward"][present]).all():
            self._blame_reward(b["reward"], present, ended, length)
        returns, lengths = self._episodes(b["reward"], b["action"], present, ended, length)
        # the rollout's end cuts an episode that goes on: the value of what follows counts, as at a time limit
        goes_on = present[-1] & ~ended[-1]
        b["truncated"][-1] |= goes_on
        b["final"][-1, goes_on] = self._current[goes_on]

        def by_environment(x: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(x.swapaxes(0, 1))

        self.standing.episode = environments.episode.tolist()
        self.standing.observation = environments.observation.copy()
        return Rollout(
            observation=by_environment(b["observation"]),
            action=by_environment(b["action"]),
            numbers=by_environment(b["numbers"]),
            reward=by_environment(np.where(present, b["reward"], 0.0)).astype(np.float32),
            terminated=by_environment(b["terminated"]),
            truncated=by_environment(b["truncated"]),
            present=by_environment(present),
            final_observation=by_environment(b["final"]),
            starts_episode=starts,
            returns=returns,
            lengths=lengths,
        )

    def _episodes(
        self,
        reward: NDArray[np.float64],
        action: NDArray[Any],
        present: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        length: NDArray[np.int64],
    ) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended; brings `standing` up to date."""
        returns, lengths = [], []
        for i in range(reward.shape[1]):
            paid, steps, begins = self.standing.paid[i], int(length[i]), 0
            for end in np.flatnonzero(ended[:, i]):
                inside = present[begins : end + 1, i]
                returns.append(paid + float(reward[begins : end + 1, i][inside].sum()))
                lengths.append(steps + int(inside.sum()))
                paid, steps, begins = 0.0, 0, int(end) + 1
            inside = present[begins:, i]
            self.standing.paid[i] = paid + float(reward[begins:, i][inside].sum())
            if self.environments.replayable:
                before = self.standing.actions[i] if begins == 0 else self.standing.actions[i][:0]
                self.standing.actions[i] = np.concatenate([before, action[begins:, i]])
        return returns, lengths

    # --------------------------------------------------------------------------------------------- what fails

    def _blame_policy(self, current: Floats) -> None:
        if all(bool(torch.isfinite(p).all()) for p in self.policy.parameters()):
            raise UserError(
                f"The policy's output for an observation of {self.environments.spec} overflows (the largest input is "
                f"{np.abs(current).max():.3g}); use --normalise-observation true, or scale the observations."
            )
        raise Diverged("The policy's weights are not finite; lower the learning rate.")

    def _blame_reward(
        self,
        reward: NDArray[np.float64],
        present: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        length: NDArray[np.int64],
    ) -> None:
        t, i = map(int, np.argwhere(present & ~np.isfinite(reward))[0])
        before = np.flatnonzero(ended[:t, i])
        step = int(present[before[-1] + 1 : t + 1, i].sum()) if len(before) else int(length[i]) + t + 1
        raise _failed(self.environments.spec, i, step, f"gave the reward {reward[t, i]}")


# ------------------------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Episode:
    """One whole episode with the policy's most probable actions."""

    seed: int
    total: float
    """Sum of its rewards, undiscounted."""
    length: int
    ended: str
    """"terminated", "truncated", or "cut" at the limit of evaluation."""


@dataclass
class Judge:
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

    def __call__(self, policy: ControlPolicy, episodes: int) -> list[Episode]:
        """Play episodes 0 to `episodes - 1`.

        Raises:
            UserError: an environment cannot be made, or fails.
        """
        forward = policy.snapshot()

        def decide(observation: NDArray[np.float64]) -> NDArray[Any]:
            return policy.distribution.decide(forward(policy.normalise(observation)))

        return self._in_rounds(decide, episodes) if self.task.is_vector else self._in_lanes(decide, episodes)

    def close(self) -> None:
        """Let go of the environments."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def seed_of(self, episode: int) -> int:
        """The seed of an episode."""
        return episode_seed(self.seed, 0, episode)

    def _in_lanes(self, decide: Callable[[NDArray[np.float64]], NDArray[Any]], episodes: int) -> list[Episode]:
        """Single environments: a lane whose episode is over takes the next one."""
        made = self._singles(min(self.lanes, episodes))
        waiting = iter(range(episodes))
        playing: dict[int, int] = {}  # lane -> episode
        totals = np.zeros(made.count)
        found: dict[int, Episode] = {}

        def next_in(lane: int) -> None:
            playing.pop(lane, None)
            episode = next(waiting, None)
            if episode is not None:
                made.reset(lane, self.seed_of(episode))
                made.check_finite()
                playing[lane], totals[lane] = episode, 0.0
                self._show(made.made[lane])

        for lane in range(made.count):
            next_in(lane)
        while playing:
            chosen = made.actions.each(decide(made.observation))
            for lane, episode in [*playing.items()]:
                over = made.step_one(lane, chosen[lane])
                made.check_finite()
                totals[lane] += made.reward[lane]
                self._show(made.made[lane])
                if over or made.length[lane] >= self.task.eval_limit:
                    ended = "terminated" if made.terminated[lane] else "truncated" if over else "cut"
                    found[episode] = Episode(self.seed_of(episode), float(totals[lane]), int(made.length[lane]), ended)
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
            self._made = SingleEnvironments(task.spec, made, task.observations, task.actions)
        return self._made

    def _in_rounds(self, decide: Callable[[NDArray[np.float64]], NDArray[Any]], episodes: int) -> list[Episode]:
        """Vector environments: all are reset together, and the first episode of each counts, as often as it takes."""
        if self.watch is not None or self.render_mode is not None:
            raise UserError(f"{self.task.spec} is a vector environment, which cannot be shown; give a single one.")
        task, found = self.task, list[Episode]()
        vector = task.create(count=min(self.lanes, episodes))
        assert not isinstance(vector, gymnasium.Env)
        made = VectorEnvironments(task.spec, vector, task.observations, task.actions)
        while len(found) < episodes:
            number = len(found)
            made.start(self.seed, [number] * made.count)
            totals, lengths = np.zeros(made.count), np.zeros(made.count, dtype=np.int64)
            ended = [""] * made.count
            while not all(ended):
                made.step(decide(made.observation))
                made.check_finite()
                for i in (i for i in range(made.count) if not ended[i]):
                    totals[i] += made.reward[i]
                    lengths[i] += 1
                    ended[i] = "terminated" if made.terminated[i] else "truncated" if made.truncated[i] else ""
                    if not ended[i] and lengths[i] >= task.eval_limit:
                        ended[i] = "cut"
            seed = episode_seed(self.seed, 0, number)
            found += [
                Episode(seed, float(total), int(length), end)
                for total, length, end in zip(totals, lengths, ended, strict=True)
            ]
        made.close()
        return found[:episodes]
