"""Rollouts: the same data whichever way environments reset, ends told apart, trouble named, episodes replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from control_environments import OneState, Walk, random_walk
from polyrl.errors import Diverged, UserError
from polyrl.models.actor import DistributionActor
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import distribution_of
from polyrl.parts.control import MlpActorCritic
from polyrl.parts.credit import gae
from polyrl.rollout.control import Collector, Rollout
from polyrl.rollout.environments import SingleEnvironments
from polyrl.rollout.evaluation import Evaluator
from polyrl.rollout.stepping import environments_of
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.environment import ControlTask

torch.set_num_threads(1)
MODES = [None, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def make_task(make: Callable[..., Any], mode: AutoresetMode | None = None, **settings: Any) -> ControlTask:
    """The environment on its own (None), or in a vector environment of this mode."""
    if mode is None:
        return ControlTask("mine", make=make, **settings)

    def vector(num_envs: int = 2) -> Any:
        return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)

    return ControlTask("mine", make=vector, **settings)


def make_policy(task: ControlTask, *, normalize: bool = False, quiet: bool = False, seed: int = 0) -> ControlPolicy:
    distribution = distribution_of(task.actions.space, -1.0)
    policy = MlpActorCritic(normalize_observation=normalize, orthogonal=False).make_policy(
        distribution, task.observations.continuous, seed
    )
    if quiet:  # the most probable action, whatever the step in the rollout
        distribution.noise = lambda shape, generator: np.zeros((*shape, distribution.size), dtype=np.float32)  # type: ignore[method-assign]
    return policy


def policy_of(collector: Collector) -> ControlPolicy:
    assert isinstance(collector.actor, DistributionActor)
    return collector.actor.policy


def make_collector(task: ControlTask, count: int, **settings: Any) -> Collector:
    return Collector(environments_of(task, count), DistributionActor(make_policy(task, **settings)), seed=3)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joined(rollouts: list[Rollout], i: int) -> dict[str, np.ndarray[Any, Any]]:
    """The live steps of environment `i`, rollout after rollout."""
    names = ("observation", "action", "reward", "terminated", "truncated", "final_observation")
    live = np.concatenate([r.present[i] for r in rollouts])
    return {name: np.concatenate([getattr(r, name)[i] for r in rollouts])[live] for name in names}


def test_all_ways_of_resetting_give_the_same_data_but_for_dead_rows() -> None:
    found: dict[Any, dict[str, Any]] = {}
    for mode in MODES:
        collector = make_collector(make_task(Walk, mode), 2, quiet=True)
        rollouts = [collector.collect(40, stream())]
        found[mode] = {**joined(rollouts, 0), "returns": rollouts[0].returns, "lengths": rollouts[0].lengths}
        dead = ~rollouts[0].present
        assert bool(dead.any()) == (mode is AutoresetMode.NEXT_STEP)
        assert rollouts[0].starts_episode.all()
    wanted = found[None]
    assert wanted["terminated"].any() and wanted["truncated"][:-1].any(), "the walk must end in both ways"
    last = len(found[AutoresetMode.NEXT_STEP]["reward"]) - 1  # its rollout is shorter by the dead rows
    for mode in MODES[1:]:
        for name in ("observation", "action", "reward", "terminated", "truncated", "final_observation"):
            np.testing.assert_array_equal(found[mode][name][:last], wanted[name][:last], err_msg=f"{mode} {name}")
        # environment by environment: the first one's episodes come first
        assert found[mode]["lengths"][:7] == wanted["lengths"][:7] == [7, 5, 2, 7, 5, 2, 7]
        assert found[mode]["returns"][:7] == pytest.approx(wanted["returns"][:7])


def test_statistics_do_not_depend_on_the_way_of_resetting() -> None:
    means = []
    for mode in MODES:
        collector = make_collector(make_task(Walk, mode), 1, quiet=True, normalize=True)
        steps = 0
        while steps < 30:
            steps += int(collector.collect(1, stream()).present.sum())
        data = policy_of(collector).observation_moments
        assert data is not None
        means.append((float(data.count), *data.mean.tolist(), *data.variance.tolist()))
    for other in means[1:]:
        # an episode's last observation is not in them; under NEXT_STEP the next first one is not yet
        assert other == pytest.approx(means[0], rel=0.05)


def test_dead_rows_change_no_advantage() -> None:
    def credit(mode: Any) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
        rollout = make_collector(make_task(Walk, mode), 1, quiet=True).collect(40, stream())
        tensors = {n: torch.from_numpy(getattr(rollout, n)) for n in ("reward", "terminated", "truncated", "present")}
        value, final = (torch.from_numpy(o).sin().sum(-1) for o in (rollout.observation, rollout.final_observation))
        advantage = gae(
            tensors["reward"], value, tensors["terminated"], tensors["truncated"], tensors["present"],
            gamma=0.9, gae_lambda=0.8, final_value=final,
        )  # fmt: skip
        return advantage[0][tensors["present"][0]], np.flatnonzero(rollout.terminated[0] | rollout.truncated[0])

    wanted, ends = credit(None)
    other, _ = credit(AutoresetMode.NEXT_STEP)
    whole = ends[ends < len(other) - 7][-1] + 1  # up to the last episode that both rollouts hold whole
    torch.testing.assert_close(other[:whole], wanted[:whole])


def test_the_rollouts_end_is_a_cut_and_the_next_rollout_goes_on() -> None:
    task = make_task(OneState)
    collector = make_collector(task, 2)
    first, second = collector.collect(8, stream()), collector.collect(8, stream(1))
    assert first.truncated[:, -1].all() and not first.truncated[:, :-1].any() and not first.terminated.any()
    np.testing.assert_array_equal(first.final_observation[:, -1], second.observation[:, 0])
    np.testing.assert_array_equal(first.final_observation[:, :-1], 0)
    assert first.starts_episode.all() and not second.starts_episode.any()
    assert first.returns == [] and second.returns == [10.0, 10.0] and second.lengths == [10, 10]
    assert second.truncated[:, 1].all() and second.truncated[:, -1].all()


def test_what_an_episode_was_paid_before_the_rollout_is_its_own_alone() -> None:
    collector = make_collector(make_task(OneState), 1)
    assert collector.collect(8, stream()).returns == []
    assert collector.collect(25, stream(1)).returns == [10.0, 10.0, 10.0] and collector.state.return_so_far == [3.0]
    assert collector.collect(8, stream(2)).returns == [10.0]


def test_every_episode_of_a_rollout_has_a_number_and_a_seed_of_its_own() -> None:
    collector = make_collector(make_task(random_walk), 2)
    rollout = collector.collect(60, stream())
    for i, ended in enumerate(rollout.terminated | rollout.truncated & ~rollout.rollout_end):
        first = [tuple(seen) for seen in rollout.observation[i][np.flatnonzero(np.r_[True, ended[:-1]])]]
        assert len(set(first)) == len(first) > 5  # it begins somewhere else each time
        assert collector.state.episode[i] == np.count_nonzero(ended)


def test_dead_steps_are_no_steps_of_an_episode() -> None:
    environments = environments_of(make_task(lambda: OneState(4), AutoresetMode.NEXT_STEP), 2)
    environments.start(0, [0, 0])
    lengths = []
    for _ in range(11):
        environments.step(np.zeros(2, dtype=np.int64))
        lengths.append(environments.length.tolist())
    assert lengths == [[n, n] for n in (1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1)]


def test_a_real_end_at_the_rollouts_end_is_no_cut() -> None:
    collector = make_collector(make_task(lambda: OneState(4, real=True)), 1)
    rollout = collector.collect(8, stream())
    assert np.flatnonzero(rollout.terminated[0]).tolist() == [3, 7] and not rollout.truncated.any()
    assert collector.collect(4, stream()).starts_episode.all()


def test_an_end_that_is_both_counts_as_real() -> None:
    class Both(OneState):
        def step(self, action: Any) -> Any:
            seen, reward, _, cut, info = super().step(action)
            return seen, reward, cut, cut, info

    for mode in MODES:
        rollout = make_collector(make_task(Both, mode), 1).collect(12, stream())
        assert rollout.terminated[0, 9] and not rollout.truncated[0, :10].any()


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another() -> None:
    task = make_task(random_walk)

    def collected(seed: int) -> Rollout:
        return Collector(environments_of(task, 3), DistributionActor(make_policy(task)), seed).collect(30, stream())

    one, again, other = collected(0), collected(0), collected(1)
    np.testing.assert_array_equal(one.observation, again.observation)
    assert not np.array_equal(one.observation, other.observation)
    assert len({tuple(row) for row in one.observation[:, 0]}) == 3  # each environment has seeds of its own


def test_what_the_environment_gets_is_clipped_and_what_is_stored_is_not() -> None:
    got: list[float] = []

    class Listening(Walk):
        def step(self, action: Any) -> Any:
            got.append(float(action[0]))
            return super().step(action)

    task = make_task(Listening)
    collector = make_collector(task, 1)
    with torch.no_grad():
        policy_of(collector).distribution.log_std.fill_(1.0)  # type: ignore[operator]
    stored = collector.collect(50, stream()).action[0, :, 0]
    assert np.abs(stored).max() > 1.5 and stored.dtype == np.float32
    np.testing.assert_allclose(got, stored.clip(-0.5, 0.5))


@pytest.mark.parametrize("discrete", [False, True])
def test_acting_in_numpy_gives_the_rollout_that_torch_gives(discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(lambda: Walk(random=True, discrete=discrete))

    def collected() -> Rollout:
        return make_collector(task, 3, normalize=True).collect(40, stream())

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", None)  # would fail where torch is used
        fast = collected()
    monkeypatch.setattr("polyrl.models.control.numpy_forward", lambda network: None)
    plain = collected()
    for name in ("terminated", "truncated", "present"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name))
    np.testing.assert_allclose(fast.records["params"], plain.records["params"], atol=1e-5)
    for name in ("observation", "action", "reward", "final_observation", "returns"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), atol=1e-5, err_msg=name)
    assert fast.lengths == plain.lengths and len(fast.lengths) > 9


@pytest.mark.parametrize("count", [1, 2])
def test_a_rollout_stays_as_it_was_when_the_next_one_is_collected(count: int) -> None:
    collector = make_collector(make_task(random_walk), count)
    first = collector.collect(8, stream())
    kept = {name: np.copy(getattr(first, name)) for name in ("observation", "action", "reward", "final_observation")}
    collector.collect(8, stream(1))
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(first, name), value)


def test_an_environment_may_keep_its_action_and_its_observation() -> None:
    given, shown = [], []

    class Keeping(Walk):
        def step(self, action: Any) -> Any:
            given.append((action, action.copy()))
            seen, *state = super().step(action)
            shown.append((seen, seen.copy()))
            return seen, *state

    make_collector(make_task(Keeping), 2).collect(10, stream())
    for kept in (given, shown):
        assert len(kept) == 20 and all(np.array_equal(one, copy) for one, copy in kept)


# ------------------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("normalize", [False, True])
def test_a_checkpoint_in_the_middle_of_episodes_is_gone_on_from_exactly(normalize: bool) -> None:
    task = make_task(random_walk)
    first = make_collector(task, 3, normalize=normalize)
    first.collect(11, stream(0))
    state, weights = first.state_to_save().copy(), {k: v.clone() for k, v in policy_of(first).state_dict().items()}
    assert any(len(a) for a in state.actions)
    wanted = first.collect(11, stream(1))

    second = make_collector(task, 3, normalize=normalize, seed=9)
    policy_of(second).load_state_dict(weights)
    second.load_state(state)
    found = second.collect(11, stream(1))
    for name in ("observation", "action", "reward", "final_observation", "starts_episode"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    assert found.returns == wanted.returns and second.state.return_so_far == first.state.return_so_far


def test_an_environment_that_cannot_be_brought_back_is_told_and_starts_anew() -> None:
    class Moody(Walk):
        moods = np.random.default_rng(0)

        def step(self, action: Any) -> Any:
            self.x += float(self.moods.normal(0, 0.01))
            return super().step(action)

    task, said = make_task(Moody), list[str]()
    first = make_collector(task, 2)
    first.collect(5, stream())
    second = Collector(environments_of(task, 2), DistributionActor(make_policy(task)), 3, said.append)
    second.load_state(first.state_to_save().copy())
    rollout = second.collect(5, stream(1))
    assert len(said) == 1 and "environments 0, 1 could not be brought back and start new episodes" in said[0]
    assert rollout.starts_episode.all()


def test_vector_environments_start_anew_after_a_checkpoint_in_every_process() -> None:
    task = make_task(random_walk, AutoresetMode.NEXT_STEP)
    first = make_collector(task, 3)
    first.collect(9, stream(0))
    state = first.state_to_save().copy()
    wanted = first.collect(9, stream(1))
    assert wanted.starts_episode.all() and state.restarts == 1
    second = make_collector(task, 3)
    second.load_state(state)
    found = second.collect(9, stream(1))
    np.testing.assert_array_equal(found.observation, wanted.observation)
    before = make_collector(task, 3).collect(9, stream(1))
    assert not np.array_equal(before.observation, wanted.observation)  # new episodes, not the first ones again


def test_very_long_episodes_start_anew_at_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyrl.rollout.control.REPLAY_LIMIT", 6)
    task = make_task(lambda: OneState(100))
    first = make_collector(task, 1, normalize=True)
    first.collect(8, stream())
    state, weights = first.state_to_save().copy(), {k: v.clone() for k, v in policy_of(first).state_dict().items()}
    assert len(state.actions[0]) == 0 and state.episode == [1]
    wanted = first.collect(3, stream(1))
    second = make_collector(task, 1, normalize=True)
    policy_of(second).load_state_dict(weights)
    second.load_state(state)
    found = second.collect(3, stream(1))
    assert found.starts_episode.all() and wanted.starts_episode.all()
    np.testing.assert_array_equal(found.observation, wanted.observation)


def test_a_rollout_that_fails_can_be_forgotten() -> None:
    class Fragile(Walk):
        left = 40

        def step(self, action: Any) -> Any:
            Fragile.left -= 1
            if Fragile.left == 0:
                raise ConnectionError("the cable came out")
            return super().step(action)

    task = make_task(Fragile)
    collector = make_collector(task, 2, normalize=True)
    collector.collect(10, stream())
    assert policy_of(collector).observation_moments is not None
    before = collector.state.copy(), policy_of(collector).observation_moments.mean.clone()
    told = r"Environment 1 of mine raised ConnectionError: the cable came out \(.*sampling.py, line \d+\) at step \d"
    with pytest.raises(UserError, match=told):
        collector.collect(20, stream(1))
    assert not torch.equal(before[1], policy_of(collector).observation_moments.mean)
    collector.rewind()
    assert torch.equal(before[1], policy_of(collector).observation_moments.mean)
    assert collector.state.episode == before[0].episode
    for mine, kept in zip(collector.state.actions, before[0].actions, strict=True):
        np.testing.assert_array_equal(mine, kept)


# ------------------------------------------------------------------------------------------------------------ trouble


class Sick(Walk):
    """Gives nonsense at step 3 of its second episode."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def step(self, action: Any) -> Any:
        seen, reward, end, cut, info = super().step(action)
        if self.what and self.episodes == 2 and self.t == 3:
            if self.what == "raise":
                raise ZeroDivisionError("division by zero")
            if self.what == "shape":
                return np.zeros(3), reward, end, cut, info
            seen, reward = (seen * np.nan, reward) if self.what == "observation" else (seen, float("nan"))
        return seen, reward, end, cut, info


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("observation", "gave an observation that is not finite"),
        ("reward", "gave the reward nan"),
        ("raise", "raised ZeroDivisionError: division by zero"),
        ("shape", "gave an observation that does not fit its space"),
    ],
)
def test_an_environment_in_trouble_is_named_with_its_step(what: str, said: str) -> None:
    made = [Sick(""), Sick(what), Sick("")]
    task = make_task(Walk)
    environments = SingleEnvironments("mine", made, task.observations, task.actions)  # type: ignore[arg-type]
    collector = Collector(environments, DistributionActor(make_policy(task)), seed=0)
    with pytest.raises(UserError, match=f"Environment 1 of mine {said}.* at step 3 of its episode"):
        collector.collect(8, stream())
        collector.collect(8, stream(1))


def test_a_first_observation_that_is_not_finite_is_the_environments_fault() -> None:
    class Ill(Walk):
        def reset(self, **settings: Any) -> Any:
            seen, info = super().reset(**settings)
            return np.full_like(seen, np.inf), info

    for mode in (None, AutoresetMode.NEXT_STEP):
        with pytest.raises(UserError, match="Environment 0 of mine gave an observation that is not finite at step 0"):
            make_collector(make_task(Ill, mode), 2, normalize=True).collect(3, stream())


def test_a_policy_that_is_not_finite_is_told_before_it_acts() -> None:
    class Strict(Walk):
        def step(self, action: Any) -> Any:
            assert np.isfinite(action).all()
            return super().step(action)

    collector = make_collector(make_task(Strict), 2)
    with torch.no_grad():
        policy_of(collector).network[0].weight[0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(Diverged, match="weights are not finite"):
        collector.collect(3, stream())


def test_vector_environments_must_say_how_they_reset() -> None:
    def silent() -> Any:
        made = SyncVectorEnv([Walk] * 2)
        del made.metadata["autoreset_mode"]
        return made

    with pytest.raises(UserError, match="mine does not say how it resets"):
        environments_of(ControlTask("mine", make=silent), 2)
    with pytest.raises(UserError, match="holds 2 environments but 8 are asked for; set --environments 2"):
        environments_of(make_task(lambda: SyncVectorEnv([Walk] * 2)), 8)


def test_what_is_no_environment_is_told() -> None:
    shared = Walk()
    for make, said in (
        (lambda: 3, "returned an int and not a gymnasium.Env"),
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (lambda: shared, "returned the same environment twice"),
    ):
        with pytest.raises(UserError, match=said):
            environments_of(ControlTask("mine", make=make), 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CartPol-v1", "no environment 'CartPol-v1'. Did you mean 'CartPole-v1'"),
        ("CartPole-v7", "Did you mean .*CartPole-v1"),
        ("no_such_package:Thing-v0", "needs the package 'no_such_package', which cannot be imported"),
        ("CartPole-v1(stepping=fast)", "stepping of CartPole-v1 is 'fast' but must be one of single, async, vector"),
        ("CartPole-v1(eval_episodes=0)", "eval_episodes of CartPole-v1 must be at least 1"),
        ("no_file.py:make", "no file 'no_file.py' to load an environment from"),
        ("control_environments:wlk", "no function 'wlk'. Did you mean 'walk'"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_made(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        named_task(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Pendulum-v1(gravity=9)", "does not take such a setting"),
        ("Pendulum-v1(stepping=vector)", "no vectorized form of its own; use stepping=single"),
    ],
)
def test_a_wrong_setting_is_told_when_it_is_made(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        environments_of(named_task(name), 2)


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install ...`")

    monkeypatch.setattr(gymnasium, "make", fails)
    with pytest.raises(UserError, match=r"missing .*: pip install 'polyrl\[control\]'"):
        named_task("Hopper-v5").create()


def test_settings_reach_the_environment_and_a_function_is_found_by_its_place() -> None:
    made: Any = named_task("Pendulum-v1(g=9.81)").create()
    assert made.unwrapped.g == 9.81
    mine = named_task("control_environments:walk(random=true)")
    assert isinstance(mine.create(), Walk) and mine.create().random is True  # type: ignore[union-attr]
    assert named_task("CartPole-v1").metric.lines == {"solved": 475.0}
    assert mine.metric.lines == {}


# ------------------------------------------------------------------------------------------------------------- judging


def test_evaluation_depends_on_neither_lanes_nor_earlier_evaluations() -> None:
    task = make_task(random_walk)
    policy = make_policy(task, normalize=True)
    judge = Evaluator(task, 7, lanes=4)
    once, again = (judge(DistributionActor(policy), 10) for _ in range(2))
    alone = Evaluator(task, 7, lanes=1)(DistributionActor(policy), 6)
    assert once == again and len({e.seed for e in once}) == 10
    assert [e.total for e in alone] == pytest.approx([e.total for e in once[:6]], abs=1e-6)
    assert policy.observation_moments is not None and float(policy.observation_moments.count) < 1  # stood still


def test_evaluation_is_the_episode_played_by_hand() -> None:
    task = make_task(random_walk)
    policy = make_policy(task)
    episode = Evaluator(task, 7)(DistributionActor(policy), 3)[2]
    environment = random_walk()
    seen, _ = environment.reset(seed=episode.seed)
    total, steps, over = 0.0, 0, False
    while not over:
        mean = policy.network(torch.tensor(seen, dtype=torch.float32)[None])[0].detach().numpy()
        seen, reward, end, cut, _ = environment.step(mean.clip(-0.5, 0.5))
        total, steps, over = total + reward, steps + 1, end or cut
    assert (episode.length, episode.ended) == (steps, "terminated" if end else "truncated")
    assert episode.total == pytest.approx(total, abs=1e-5)


def test_evaluation_reads_what_the_policy_was_trained_to_read() -> None:
    """Observations by the statistics of the policy, as they are."""
    task = make_task(random_walk)
    collector = make_collector(task, 2, normalize=True)
    collector.collect(60, stream())
    policy, environment = policy_of(collector), random_walk()
    episode = Evaluator(task, 7)(collector.actor, 1)[0]
    moments = policy.observation_moments
    assert moments is not None and float((moments.variance - 1).abs().max()) > 0.1
    mean, variance = moments.mean.double().numpy(), moments.variance.double().numpy()
    seen, _ = environment.reset(seed=episode.seed)
    total, over = 0.0, False
    while not over:
        normal = torch.tensor((seen - mean) / np.sqrt(variance + 1e-8), dtype=torch.float32)
        action = policy.network(normal[None])[0].detach().numpy()
        seen, reward, end, cut, _ = environment.step(action.clip(-0.5, 0.5))
        total, over = total + reward, end or cut
    assert episode.total == pytest.approx(total, abs=1e-4)


def test_evaluation_of_vector_environments_counts_the_first_episode_of_each() -> None:
    task = make_task(lambda: OneState(6), AutoresetMode.NEXT_STEP)
    played = Evaluator(task, 7, lanes=4)(DistributionActor(make_policy(task)), 7)
    assert [(e.total, e.length, e.ended) for e in played] == [(6.0, 6, "truncated")] * 7


def test_an_episode_without_end_is_cut_in_evaluation() -> None:
    task = make_task(lambda: OneState(10**9), eval_limit=15)
    assert [(e.length, e.ended) for e in Evaluator(task, 7)(DistributionActor(make_policy(task)), 2)] == [
        (15, "cut")
    ] * 2
