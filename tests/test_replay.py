"""Replay buffers: what is kept and sampled, against plain lists; priorities; checkpoints that cost what is new."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyrl.core.experience import Experience
from polyrl.data import replay as replay_module
from polyrl.data.priorities import Priorities
from polyrl.data.replay import Replay, ReplayBuffer, importance_weights
from polyrl.errors import UserError


def steps(first: int, count: int, lanes: int = 2, ends: dict[tuple[int, int], str] | None = None) -> Experience:
    """`count` steps of `lanes` environments: everything tells its number, step `t` of lane `b` is 100 b + t."""
    number = torch.arange(first, first + count)[None] + 100 * torch.arange(lanes)[:, None]
    flags = {name: torch.zeros(lanes, count, dtype=torch.bool) for name in ("terminated", "truncated", "rollout_end")}
    flags["truncated"][:, -1] = flags["rollout_end"][:, -1] = True
    for (lane, t), how in (ends or {}).items():
        if first <= t < first + count:
            flags["rollout_end"][lane, t - first] = False
            flags["truncated"][lane, t - first] = how == "truncated"
            flags["terminated"][lane, t - first] = how == "terminated"
    value = number.float().unsqueeze(-1)
    return Experience(
        {
            "observation": value,
            "action": value / 10,
            "reward": number.float(),
            "next_observation": value + 1000,
            "mask": torch.ones(lanes, count, dtype=torch.bool),
            **flags,
        }
    )


def buffer(**settings: Any) -> ReplayBuffer:
    return ReplayBuffer("replay", Replay(**{"learning_starts": 0, **settings}))


def test_the_latest_steps_are_kept_and_the_oldest_overwritten() -> None:
    held = buffer(capacity=10)
    for first in range(0, 14, 2):
        held.take(steps(first, 2))
    assert (held.slots, held.count, held.held) == (5, 14, 5)
    found = held.rows(np.arange(10))
    assert sorted(found["observation"].flatten().tolist()) == [*range(9, 14), *range(109, 114)]
    assert torch.equal(found["next_observation"], found["observation"] + 1000)
    assert torch.equal(found["action"], found["observation"] / 10)


@pytest.mark.parametrize("count", [5, 7, 23])
def test_more_steps_than_there_is_room_for_leave_the_last_ones(count: int) -> None:
    at_once, one_by_one = buffer(capacity=10), buffer(capacity=10)
    at_once.take(steps(0, count))
    for t in range(count):
        one_by_one.take(steps(t, 1))
    for held in (at_once, one_by_one):
        shown = held.rows(np.arange(10))["observation"].flatten().tolist()
        assert sorted(shown) == sorted([t + 100 * b for b in range(2) for t in range(count - 5, count)])
    assert at_once.count == one_by_one.count
    np.testing.assert_array_equal(at_once.arrays["observation"], one_by_one.arrays["observation"])


def brute_force(rewards: list[float], ends: list[str], at: int, n: int, gamma: float) -> tuple[float, float, int]:
    """Reward of n steps, discount, and the last step, by going through a list."""
    total, discount, last = 0.0, 1.0, at
    for k in range(n):
        last = at + k
        total += discount * rewards[last]
        discount *= gamma
        if ends[last] or last == len(rewards) - 1:
            break
    return total, 0.0 if ends[last] == "terminated" else discount, last


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("capacity", [200, 24])
def test_rewards_of_several_steps_are_those_of_a_plain_list(n: int, capacity: int) -> None:
    ends = {(0, 4): "terminated", (0, 9): "truncated", (1, 11): "terminated", (1, 12): "truncated"}
    held = buffer(capacity=capacity, n_step=n, gamma=0.9)
    for first in range(0, 16, 2):  # every rollout ends in the middle of an episode, which is no end of it
        held.take(steps(first, 2, ends=ends))
    oldest = 16 - held.held
    found = held.rows(np.arange(held.held * 2))
    for row in range(len(found)):
        number = int(found["observation"][row])
        lane, t = divmod(number, 100)
        rewards = [100.0 * lane + k for k in range(16)]
        stops = [ends.get((lane, k), "") for k in range(16)]
        total, discount, last = brute_force(rewards, stops, t, n, 0.9)
        assert float(found["reward"][row]) == pytest.approx(total, rel=1e-6)
        assert float(found["discount"][row]) == pytest.approx(discount, rel=1e-6)
        assert float(found["next_observation"][row]) == 1000 + 100 * lane + last
        assert t >= oldest


def test_three_steps_of_the_card() -> None:
    held = buffer(capacity=100, n_step=3, gamma=0.9)
    given = steps(1, 4, lanes=1)
    held.take(given)
    found = held.rows(np.array([0]))
    assert float(found["reward"]) + float(found["discount"]) * 10 == pytest.approx(12.52, abs=1e-5)


def test_sampling_is_uniform_over_what_counts_and_follows_its_stream() -> None:
    held = buffer(capacity=100)
    given = steps(0, 8)
    mask = given["mask"].clone()
    mask[0, 3] = mask[1, 5] = False  # steps that only reset an environment
    held.take(given.with_fields(mask=mask))
    found = held.sample(20_000, torch.Generator().manual_seed(1))
    shown, counts = np.unique(found["observation"].flatten().numpy(), return_counts=True)
    assert len(shown) == 14 and 3.0 not in shown and 105.0 not in shown
    assert counts.min() > 1250 and counts.max() < 1610  # 1428.6, five deviations of 37
    again = held.sample(20_000, torch.Generator().manual_seed(1))
    assert torch.equal(found["observation"], again["observation"])
    assert bool((found["weight"] == 1).all())


def test_a_buffer_is_ready_when_enough_is_held() -> None:
    held = buffer(capacity=100, learning_starts=7)
    held.take(steps(0, 3))
    assert not held.ready()
    held.take(steps(3, 1))
    assert held.ready()


def test_what_does_not_fit_is_refused() -> None:
    held = buffer(capacity=100)
    held.take(steps(0, 3))
    with pytest.raises(UserError, match="holds steps of 2 environments, and 3 are stepped"):
        held.take(steps(3, 3, lanes=3))
    with pytest.raises(UserError, match="fewer than n_step=3 needs; raise --capacity"):
        buffer(capacity=6, n_step=3).take(steps(0, 1))


# ------------------------------------------------------------------------------------------------------- priorities


def test_priorities_of_the_card() -> None:
    held = Priorities(2)
    held.add(np.arange(2), np.ones(2, dtype=bool))
    held.set(np.arange(2), np.array([1.0, 2.0]) ** 0.6)
    rows, share = held.sample((np.arange(10_000) % 1).astype(float))
    assert share[rows == 1][0] == pytest.approx(0.6024989, abs=1e-7)
    assert float((rows == 1).mean()) == pytest.approx(0.6024989, abs=1e-3)
    weights = importance_weights(np.array([1 - 0.6024989, 0.6024989]), 2, 0.4)
    assert weights.flatten().tolist() == pytest.approx([1, 0.8467453], abs=1e-6)


def test_priorities_over_many_blocks_are_those_of_one_sum() -> None:
    stream = np.random.default_rng(3)
    held, plain = Priorities(5000), np.zeros(5000)
    for _ in range(30):
        rows = stream.integers(0, 5000, 300)
        value = stream.exponential(size=300)
        held.set(rows, value)
        for row, one in zip(rows, value, strict=True):
            plain[row] = one
    uniform = stream.random(4000)
    rows, share = held.sample(uniform)
    goal = (np.arange(4000) + uniform) / 4000 * plain.sum()
    wanted = np.searchsorted(np.cumsum(plain), goal, side="right")
    assert (rows == wanted).mean() > 0.999  # but for rounding at the edges
    np.testing.assert_allclose(share, plain[rows] / plain.sum(), rtol=1e-12)
    assert held.held == np.count_nonzero(plain)


def test_new_rows_have_the_largest_priority_and_dead_ones_none() -> None:
    held = buffer(capacity=100, priority_exponent=1.0)
    given = steps(0, 4)
    mask = given["mask"].clone()
    mask[0, 1] = False
    held.take(given.with_fields(mask=mask))
    held.feedback(torch.tensor([[0]]), torch.tensor([[9.0]]))
    held.take(steps(4, 1))
    assert held.priorities is not None
    _, share = held.priorities.sample(np.random.default_rng(0).random(5000))
    rows = held.sample(4000, torch.Generator().manual_seed(0))["row"].flatten()
    counts = torch.bincount(rows, minlength=10).float() / 4000
    assert counts[2] == 0  # step 1 of lane 0
    assert counts[0] == pytest.approx(9 / 33, abs=0.01) and counts[8] == pytest.approx(9 / 33, abs=0.01)
    assert counts[3] == pytest.approx(1 / 33, abs=0.01) and len(share) == 5000


def test_the_exponent_flattens_priorities() -> None:
    held = buffer(capacity=100, priority_exponent=0.5)
    held.take(steps(0, 1))
    held.feedback(torch.tensor([[0], [1]]), torch.tensor([[16.0], [-1.0]]))
    rows = held.sample(4000, torch.Generator().manual_seed(0))["row"].flatten()
    assert float((rows == 0).float().mean()) == pytest.approx(0.8, abs=0.01)  # 4 to 1


# ------------------------------------------------------------------------------------------------------ checkpoints


def same(one: ReplayBuffer, other: ReplayBuffer) -> bool:
    drawn = [x.sample(64, torch.Generator().manual_seed(5)) for x in (one, other)]
    return all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0].fields())


@pytest.mark.parametrize("settings", [{}, {"priority_exponent": 0.6}, {"n_step": 3}])
@pytest.mark.parametrize("count", [3, 11, 40])
def test_a_checkpoint_brings_back_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], count: int
) -> None:
    monkeypatch.setattr(replay_module, "PIECE", 8)
    held = buffer(capacity=40, **settings)
    for t in range(count):
        held.take(steps(t, 1))
        if held.wants_feedback:
            held.feedback(torch.tensor([[0, 1]]), torch.tensor([[t + 1.0, 3.0]]))
    held.save(tmp_path, None)
    read = buffer(capacity=40, **settings)
    read.load(tmp_path)
    assert same(held, read)
    for one in (held, read):
        one.take(steps(count, 3))
    assert same(held, read)


def test_pieces_that_have_not_changed_are_linked_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "PIECE", 8)  # four steps of two environments
    folders = [tmp_path / f"iteration-{i}" for i in range(4)]
    for folder in folders:
        folder.mkdir()
    held = buffer(capacity=40)
    held.take(steps(0, 10))
    held.save(folders[0], None)
    held.take(steps(10, 1))
    held.save(folders[1], folders[0])

    def number(folder: Path, piece: int) -> int:
        return os.stat(folder / f"source-replay-{piece:05d}.safetensors").st_ino

    assert [number(folders[1], k) == number(folders[0], k) for k in range(3)] == [True, True, False]
    other = buffer(capacity=40)  # gone on from the older checkpoint: the newer one is not what it knows
    other.load(folders[0])
    other.take(steps(50, 1))
    other.save(folders[2], folders[1])
    assert number(folders[2], 0) != number(folders[1], 0)
    read = buffer(capacity=40)
    read.load(folders[2])
    assert same(read, other)
    for t in range(11, 25):  # around the ring: every piece has changed
        held.take(steps(t, 1))
    held.save(folders[3], folders[1])
    read = buffer(capacity=40)
    read.load(folders[3])
    assert same(read, held)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    held = buffer(capacity=40)
    held.take(steps(0, 3))
    held.save(tmp_path, None)
    (tmp_path / "source-replay-00000.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="does not hold the replay buffer 'replay'"):
        buffer(capacity=40).load(tmp_path)
    with pytest.raises(UserError, match=r"holds 20 steps of an environment and not 30"):
        held.save(tmp_path, None)
        buffer(capacity=60).load(tmp_path)


def test_an_iteration_that_fails_is_forgotten_while_nothing_was_overwritten() -> None:
    for settings in ({}, {"priority_exponent": 0.6}):
        held, plain = buffer(capacity=10, **settings), buffer(capacity=10, **settings)
        for one in (held, plain):
            one.take(steps(0, 2))
            one.commit()
        held.take(steps(2, 2))
        assert held.rewind() and held.count == 2 and same(held, plain)
        for t in range(2, 8):
            held.take(steps(t, 1))
        assert not held.rewind()
