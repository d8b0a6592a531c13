"""Distributions, running statistics and acting: each against brute force or a reference written another way."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.models.control import ControlPolicy, numpy_forward
from polyrl.models.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    distribution_of,
)
from polyrl.models.mlp import mlp
from polyrl.models.normalization import RunningMoments
from polyrl.parts.control import MlpActorCritic, ScaleReward, discounted_returns, running_deviation
from polyrl.runtime.budget import Budget

torch.set_num_threads(1)
N = 40_000


def every_action(distribution: Distribution) -> list[Any]:
    if isinstance(distribution, Categorical):
        return [*range(distribution.size)]
    sizes = distribution.choices if isinstance(distribution, MultiCategorical) else [2] * distribution.size
    return np.stack(np.meshgrid(*map(range, sizes), indexing="ij"), -1).reshape(-1, len(sizes)).tolist()


def sampled(distribution: Distribution, params: torch.Tensor) -> np.ndarray[Any, Any]:
    noise = distribution.noise((N,), torch.Generator().manual_seed(0))
    return distribution.mode(params.numpy() + noise)


@pytest.mark.parametrize("distribution", [Categorical(4), MultiCategorical([2, 3]), Bernoulli(3)], ids=str)
def test_finite_distributions_sum_to_one_and_are_what_is_sampled(distribution: Distribution) -> None:
    params = torch.randn(distribution.size, generator=torch.Generator().manual_seed(3))
    actions = every_action(distribution)
    logs = distribution.log_prob(params.expand(len(actions), -1), torch.tensor(actions))
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert float(distribution.entropy(params)) == pytest.approx(float(-(logs.exp() * logs).sum()), abs=1e-6)
    drawn = sampled(distribution, params)
    assert drawn.dtype == np.int64 and drawn.shape == (N, *distribution.action_shape)
    for action, log in zip(actions, logs, strict=True):
        share = float(np.all(drawn.reshape(N, -1) == np.reshape(action, -1), axis=1).mean())
        assert share == pytest.approx(math.exp(float(log)), abs=4 * math.sqrt(0.25 / N))
    best = distribution.mode(params[None].numpy())[0]
    assert np.array_equal(best, actions[int(logs.argmax())])


def test_the_gaussian_is_torchs_and_what_is_sampled() -> None:
    gaussian = DiagonalGaussian(2, log_std_init=-0.7)
    with torch.no_grad():
        gaussian.log_std[1] = 0.4
    means, action = torch.tensor([1.0, -2.0]), torch.tensor([[0.3, 0.0], [5.0, -2.0]])
    truth = torch.distributions.Normal(means, gaussian.log_std.detach().exp())
    torch.testing.assert_close(gaussian.log_prob(means, action).detach(), truth.log_prob(action).sum(-1))
    torch.testing.assert_close(gaussian.entropy(means).detach(), truth.entropy().sum())
    drawn = sampled(gaussian, means)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), means, atol=0.03)
    np.testing.assert_allclose(drawn.std(0), truth.stddev, rtol=0.02)
    np.testing.assert_array_equal(gaussian.mode(means[None].numpy())[0], means)


def test_each_space_gets_its_distribution() -> None:
    kinds = [
        (spaces.Discrete(3, start=2), Categorical, 3),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), MultiCategorical, 14),
        (spaces.MultiBinary((2, 2)), Bernoulli, 4),
        (spaces.Box(-1, 1, (2, 3)), DiagonalGaussian, 6),
    ]
    for space, kind, size in kinds:
        made = distribution_of(space)
        assert type(made) is kind and made.size == size


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
def test_acting_in_numpy_is_torchs_forward(activation: Any) -> None:
    stream = torch.Generator().manual_seed(0)
    network = mlp(5, (64, 64), 3, activation, gain=1.0, generator=stream)
    act = numpy_forward(network)
    assert act is not None
    seen = 3 * torch.randn(100, 5, generator=stream)
    kept = seen.numpy().copy()
    before = act(seen.numpy())
    np.testing.assert_allclose(before, network(seen).detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(seen.numpy(), kept)
    with torch.no_grad():
        network[0].weight.add_(1.0)
    np.testing.assert_array_equal(act(seen.numpy()), before)  # a snapshot, which updates do not reach
    assert numpy_forward(torch.nn.Sequential(torch.nn.LSTM(2, 2))) is None


def test_a_forward_pass_in_numpy_fills_what_it_is_given_and_keeps_nothing_back() -> None:
    network = mlp(5, (64, 64), 3, "tanh", gain=1.0, generator=torch.Generator().manual_seed(0))
    act = numpy_forward(network)
    assert act is not None
    one, other = np.ones((4, 5), dtype=np.float32), np.zeros((4, 5), dtype=np.float32)
    first = act(one)
    kept, out = first.copy(), np.empty((4, 3), dtype=np.float32)
    assert act(other, out) is out and not np.array_equal(out, kept)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(act(one[:1]), act(one)[:1], rtol=1e-5)
    for bad in (torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(5, 3)), torch.nn.Linear(5, 3)):
        assert numpy_forward(bad) is None


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
def test_values_of_a_rollout_are_the_critics_without_its_graph(
    activation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = MlpActorCritic(hidden="64x64", activation=activation).make_critic(5, seed=1)
    seen = 3 * torch.randn(4, 300, 5, generator=torch.Generator().manual_seed(0))
    wanted = critic(seen).detach()
    monkeypatch.setattr(torch.nn.Linear, "forward", None)  # no torch in it
    found = critic.values(seen)
    assert found.shape == (4, 300) and not found.requires_grad
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_running_moments_row_by_row_are_those_of_the_textbook() -> None:
    """Welford's recurrence, with the prior's 1e-4 observations; fixed entries stay 0 and 1."""
    data = np.random.default_rng(0).normal([5.0, 1.0, -2.0], [2.0, 1.0, 0.1], (60, 3))
    moments = RunningMoments(3, np.array([False, True, False]))
    mean, squares, count = np.zeros(3), np.full(3, 1e-4), 1e-4
    for row in data:
        moments.update(row[None])
        count += 1
        off = row - mean
        mean = mean + off / count
        squares = squares + off * (row - mean)
    mean[1], squares[1] = 0.0, count
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, squares / count, rtol=1e-9)
    assert moments.variance[1] == 1 and float(moments.count) == pytest.approx(count)
    arrays, out = moments.arrays(), np.empty((60, 3), dtype=np.float32)
    assert arrays.normalize(data, out) is out
    white = ((data - mean) / np.sqrt(squares / count + 1e-8)).clip(-10, 10)
    np.testing.assert_allclose(out, white, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out, moments.normalize(data))
    arrays.update(data[:1])  # the buffers' own memory
    assert float(moments.count) == pytest.approx(count + 1)


def test_running_moments_are_those_of_everything_seen() -> None:
    data = np.random.default_rng(0).normal([1e4, -2.0], [0.5, 3.0], (999, 2))
    moments = RunningMoments(2)
    for begin, end in ((0, 1), (1, 4), (4, 4), (4, 500), (500, 999)):
        moments.update(data[begin:end])
    np.testing.assert_allclose(moments.mean, data.mean(0), rtol=1e-6)
    # the prior counts as 1e-4 observations of mean 0 and variance 1
    rest = 1e-4 * (1 + data.mean(0) ** 2) / 999
    np.testing.assert_allclose(moments.variance, data.var(0) + rest, rtol=1e-5)
    white = moments.normalize(np.array([[1e4, -2.0], [1e9, -1e9]]))
    np.testing.assert_allclose(white[0], 0, atol=0.2)
    assert white[1].tolist() == [10.0, -10.0] and white.dtype == np.float32


def test_statistics_are_saved_with_the_policy_and_leave_bits_alone() -> None:
    continuous = np.array([True, False])
    made = [MlpActorCritic().make_policy(Categorical(2), continuous, seed) for seed in (0, 1)]
    data = np.random.default_rng(0).normal(5.0, 2.0, (50, 2))
    made[0].update_statistics(data)
    made[1].load_state_dict(made[0].state_dict())
    np.testing.assert_array_equal(made[0].normalize(data), made[1].normalize(data))
    assert abs(made[0].normalize(data)[:, 0].mean()) < 0.01
    np.testing.assert_allclose(made[0].normalize(data)[:, 1], data[:, 1].clip(-10, 10), rtol=1e-6)
    assert {n for n, _ in made[0].named_buffers()} >= {"observation_moments.mean", "reward_moments.variance"}


def test_initial_weights_are_the_papers() -> None:
    """The 37 details: orthogonal with gains sqrt 2, 0.01 and 1; biases 0; a policy that starts almost uniform."""
    architecture = MlpActorCritic(hidden="64x64")
    policy = architecture.make_policy(Categorical(3), np.ones(4, dtype=bool), seed=0)
    critic = architecture.make_critic(4, seed=0)
    first, second, last = (layer for layer in policy.network if isinstance(layer, torch.nn.Linear))
    torch.testing.assert_close(second.weight @ second.weight.T, 2 * torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(last.weight @ last.weight.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)
    assert float(critic.network[-1].weight.detach().norm()) == pytest.approx(1, abs=1e-5)
    assert not any(bool(layer.bias.any()) for layer in (first, second, last))
    again = architecture.make_policy(Categorical(3), np.ones(4, dtype=bool), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------ reward scaling


def vec_normalized(rewards: Any, ended: Any, mask: Any, gamma: float) -> np.ndarray[Any, Any]:
    """Stable-Baselines3's VecNormalize, step by step: rewards `[T, B]`, one pass over all rollouts."""
    mean, variance, count = 0.0, 1.0, 1e-4
    returns, scaled = np.zeros(rewards.shape[1]), np.zeros_like(rewards)
    for t, reward in enumerate(rewards):
        live = mask[t]
        returns[live] = returns[live] * gamma + reward[live]
        batch = returns[live]
        if len(batch):
            delta, total = batch.mean() - mean, count + len(batch)
            m2 = variance * count + batch.var() * len(batch) + delta**2 * count * len(batch) / total
            mean, variance, count = mean + delta * len(batch) / total, m2 / total, total
        scaled[t] = np.clip(reward / np.sqrt(variance + 1e-8), -10, 10)
        returns[ended[t] & live] = 0
    return scaled


def test_reward_scaling_is_vec_normalize_with_rollouts_of_any_length() -> None:
    stream = np.random.default_rng(0)
    steps, rows, gamma = 60, 3, 0.9
    rewards = 50 * stream.normal(1, 3, (steps, rows))
    ended, mask = stream.random((steps, rows)) < 0.1, stream.random((steps, rows)) < 0.9
    ended &= mask
    wanted = vec_normalized(rewards, ended, mask, gamma)
    for length in (60, 20, 7):
        moments, before, found = RunningMoments(1), torch.zeros(rows, dtype=torch.float64), []
        starts = torch.ones(rows, dtype=torch.bool)
        for begin in range(0, steps, length):
            piece = slice(begin, begin + length)
            reward, over, counted = (torch.from_numpy(x[piece].T.copy()) for x in (rewards, ended, mask))
            returns, before = discounted_returns(reward, counted, over, starts, before, gamma)
            starts = torch.zeros(rows, dtype=torch.bool)
            found.append((reward / running_deviation(moments, returns, counted)).clamp(-10, 10).T)
        result = torch.cat(found).numpy()
        np.testing.assert_allclose(result[mask], wanted[mask], rtol=1e-9)


@pytest.mark.parametrize("length", [60, 20, 7])
def test_the_part_scales_episodes_that_go_on_in_the_next_rollout(length: int) -> None:
    """The return that is watched is carried over the rollout's end, and begins anew with an episode only."""
    stream = np.random.default_rng(1)
    steps, rows, gamma = 60, 3, 0.9
    rewards = 50 * stream.normal(1, 3, (steps, rows))
    ended, mask = stream.random((steps, rows)) < 0.1, stream.random((steps, rows)) < 0.9
    ended &= mask
    cut = ended & (stream.random((steps, rows)) < 0.5)  # by a time limit: an end like any other
    moments = RunningMoments(1)
    run_state = SimpleNamespace(reward_moments=lambda stream: moments)
    context = Context(run_state=run_state, seed=0, budget=Budget(steps=1))
    over, found, part = np.ones(rows, dtype=bool), [], ScaleReward(gamma=gamma)
    for begin in range(0, steps, length):
        piece = slice(begin, begin + length)
        fields = {"reward": rewards, "mask": mask, "terminated": ended & ~cut, "truncated": cut}
        rollout = Experience({name: torch.from_numpy(x[piece].T.copy()) for name, x in fields.items()})
        last = rollout["mask"].shape[1] - 1
        goes_on = ~rollout["terminated"][:, last]  # a rollout cuts what goes on, which is no end of an episode
        rollout["truncated"][:, last] |= goes_on & rollout["mask"][:, last]
        found.append(part(rollout.with_fields(starts_episode=torch.from_numpy(over)), context)["reward"].T)
        for row in range(rows):
            live = np.flatnonzero(mask[:, row] & (np.arange(steps) < begin + length))
            over[row] = ended[live[-1], row]
    wanted = vec_normalized(rewards, ended, mask, gamma)
    np.testing.assert_allclose(torch.cat(found).numpy()[mask], wanted[mask], rtol=1e-5)


def test_a_policy_without_normalization_sees_what_is_there() -> None:
    policy = MlpActorCritic(normalize_observation=False).make_policy(Categorical(2), np.ones(2, dtype=bool), 0)
    assert isinstance(policy, ControlPolicy) and policy.observation_moments is None
    np.testing.assert_array_equal(policy.normalize(np.array([[1e6, -3.0]])), np.array([[1e6, -3.0]], dtype=np.float32))
