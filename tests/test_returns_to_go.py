"""Returns from a step to its episode's end in rows of replays and data: against a plain sum, resumed, and undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyrl.core.experience import Experience
from polyrl.data import replay as replay_module
from polyrl.data.replay import Replay, ReplayBuffer
from polyrl.data.returns import returns_to_go
from polyrl.data.transitions import GivenTransitions, Transitions
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.recorded import read_recorded

GAMMA = 0.9
LANES = 2


def story(seed: int, length: int) -> dict[str, Any]:
    """What `LANES` environments do for `length` steps: rewards, ends of both kinds, steps that only reset."""
    random = np.random.default_rng(seed)
    kind = random.choice([*[""] * 12, "terminated", "truncated", "rests"], size=(LANES, length))
    return {"reward": random.normal(size=(LANES, length)).astype(np.float32), "kind": kind}


def rows_of(told: dict[str, Any], first: int, last: int) -> Experience:
    """Steps `first` to `last` of a story as a rollout, whose end cuts what goes on."""
    kind, reward = told["kind"][:, first:last], told["reward"][:, first:last]
    flags = {name: kind == name for name in ("terminated", "truncated")}
    rollout_end = np.zeros_like(flags["truncated"])
    goes_on = ~flags["terminated"][:, -1] & ~flags["truncated"][:, -1] & (kind[:, -1] != "rests")
    rollout_end[:, -1] = flags["truncated"][:, -1]
    rollout_end[:, -1] = goes_on
    flags["truncated"][:, -1] |= goes_on
    shown = np.zeros((*reward.shape, 1), dtype=np.float32)
    fields = {
        **flags,
        "rollout_end": rollout_end,
        "reward": reward.copy(),
        "mask": kind != "rests",
        "observation": shown,
        "next_observation": shown,
        "action": shown,
    }
    return Experience({name: torch.from_numpy(x) for name, x in fields.items()})


def plainly(told: dict[str, Any], upto: int) -> dict[tuple[int, int], float]:
    """(lane, step) -> its return, of the episodes that ended before step `upto`, by adding up."""
    found = {}
    for lane in range(LANES):
        for t in range(upto):
            total, factor = 0.0, 1.0
            for k in range(t, upto):
                kind = told["kind"][lane, k]
                if kind == "rests":
                    break
                total += factor * float(told["reward"][lane, k])
                factor *= GAMMA
                if kind in ("terminated", "truncated"):
                    found[lane, t] = total
                    break
    return found


def buffer(capacity: int = 200) -> ReplayBuffer:
    return ReplayBuffer("replay", Replay(capacity=capacity, learning_starts=0, gamma=GAMMA, returns=True))


def check(held: ReplayBuffer, told: dict[str, Any], upto: int) -> None:
    """What the buffer tells of its rows is what the plain sum says."""
    oldest, expected = max(0, upto - held.slots), plainly(told, upto)
    numbers = [(lane, t) for t in range(oldest, upto) for lane in range(LANES)]
    found = held.rows(np.array([t % held.slots * LANES + lane for lane, t in numbers]))
    assert found["return_known"][:, 0].tolist() == [number in expected for number in numbers]
    values = [expected.get(number, 0.0) for number in numbers]
    np.testing.assert_allclose(found["return_to_go"][:, 0].numpy(), values, rtol=1e-5, atol=1e-6)


def test_a_sum_of_discounted_rewards() -> None:
    assert returns_to_go(np.array([1, 2, 4], dtype=np.float32), 0.5).tolist() == [3.0, 4.0, 4.0]


@pytest.mark.parametrize("capacity", [200, 24, 8])
@pytest.mark.parametrize("rollout", [1, 3, 7])
def test_returns_of_a_replay_are_those_of_a_plain_sum(rollout: int, capacity: int) -> None:
    told, held = story(rollout, 63), buffer(capacity)
    for first in range(0, 63, rollout):
        last = min(first + rollout, 63)
        held.take(rows_of(told, first, last))
        check(held, told, last)


def test_what_ended_in_an_iteration_that_is_undone_is_open_again() -> None:
    told, held = story(1, 40), buffer()
    held.take(rows_of(told, 0, 20))
    held.commit()
    held.take(rows_of(told, 20, 33))
    assert held.rewind()
    check(held, told, 20)
    held.take(rows_of(told, 20, 40))
    check(held, told, 40)


def test_a_buffer_that_was_saved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "PIECE", 6)
    told, held = story(2, 50), buffer()
    previous = None
    for number, (first, last) in enumerate([(0, 13), (13, 16), (16, 31)]):
        held.take(rows_of(told, first, last))
        held.commit()
        folder = tmp_path / str(number)
        folder.mkdir()
        held.save(folder, previous)
        previous = folder
    other = buffer()
    assert previous is not None
    other.load(previous)
    check(other, told, 31)  # pieces that an episode's end reached back into were written anew
    other.take(rows_of(told, 31, 50))
    check(other, told, 50)


def test_rows_of_data_have_them_too(tmp_path: Path) -> None:
    rewards = np.array([1, 2, 4, 8, 16, 32], dtype=np.float32)
    terminations = np.array([0, 0, 1, 0, 0, 0], dtype=bool)
    truncations = np.array([0, 0, 0, 0, 1, 0], dtype=bool)
    shown = np.arange(18, dtype=np.float32).reshape(6, 3)
    actions = np.zeros((6, 1), dtype=np.float32)
    actions[1] = np.nan  # left out, and its reward still is of the episode
    np.savez(
        tmp_path / "data.npz",
        observations=shown,
        next_observations=shown + 1,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
    )
    task = ControlTask("Pendulum-v1", spec="Pendulum-v1")
    recorded = read_recorded(tmp_path / "data.npz", task, skip_bad_rows=True)
    entry = Transitions(gamma=0.5, returns=True, reward_shift=1.0)
    rows = GivenTransitions("data", entry, recorded).rows(torch.arange(5))
    assert rows["return_known"][:, 0].tolist() == [True, True, True, True, False]
    # of 2, 3, 5 | 9, 17 | 33: the second step is left out
    assert rows["return_to_go"][:, 0].tolist() == [2 + 1.5 + 1.25, 5, 9 + 8.5, 17, 0]
    assert {"return_to_go", "return_known"} <= entry.sampled()
    assert "return_to_go" not in GivenTransitions("data", Transitions(), recorded).rows(torch.arange(2)).fields()
