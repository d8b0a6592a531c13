"""Observations of every space as vectors, actions as environments want them, and what cannot be used told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten

from polyrl.errors import UserError
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder

FLAT = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(-np.inf, np.inf, (2, 3), dtype=np.float64),
    spaces.Discrete(4),
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 2]]),
    spaces.MultiBinary(3),
    spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    spaces.Dict({"b": spaces.Box(0, 1, (2,)), "a": spaces.Dict({"z": spaces.Discrete(3), "y": spaces.MultiBinary(2)})}),
]


@pytest.mark.parametrize("space", FLAT, ids=str)
def test_a_vector_is_what_gymnasium_flattens_to(space: spaces.Space[Any]) -> None:
    space.seed(0)
    encoder = ObservationEncoder(space)
    for _ in range(20):
        seen, row = space.sample(), np.full(encoder.size, np.nan)
        encoder.encode(seen, row)
        np.testing.assert_allclose(row, flatten(space, seen), rtol=1e-6)


@pytest.mark.parametrize("space", [s for s in FLAT if not isinstance(s, spaces.Tuple)], ids=str)
def test_a_batch_is_its_rows(space: spaces.Space[Any]) -> None:
    from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

    space.seed(1)
    seen = [space.sample() for _ in range(5)]
    batched = concatenate(space, seen, create_empty_array(space, 5))
    encoder = ObservationEncoder(space)
    whole, rows = np.full((2, 5, encoder.size), np.nan)
    encoder.encode_batch(batch_space(space, 5), batched, whole)
    for row, one in zip(rows, seen, strict=True):
        encoder.encode(one, row)
    np.testing.assert_array_equal(whole, rows)


def test_bytes_become_fractions() -> None:
    encoder = ObservationEncoder(spaces.Box(0, 255, (2, 2), dtype=np.uint8))
    row = np.zeros(4)
    encoder.encode(np.array([[0, 51], [102, 255]], dtype=np.uint8), row)
    np.testing.assert_allclose(row, [0, 0.2, 0.4, 1])


@pytest.mark.parametrize("stack", [False, True])
def test_lists_are_padded_and_say_what_is_there(stack: bool) -> None:
    space = spaces.Dict({"near": spaces.Sequence(spaces.Box(-9, 9, (2,)), stack=stack), "x": spaces.Box(0, 1, (1,))})
    encoder = ObservationEncoder(space, max_items=3)
    row = np.full(encoder.size, np.nan)
    items = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    encoder.encode({"near": np.stack(items) if stack else tuple(items), "x": np.array([0.5])}, row)
    np.testing.assert_array_equal(row, [1, 2, 1, 3, 4, 1, 0, 0, 0, 0.5])
    assert encoder.continuous.tolist() == [False] * 9 + [True]
    with pytest.raises(ValueError, match="'near' holds 4 items, more than max_items=3"):
        encoder.encode({"near": tuple(items * 2), "x": np.array([0.5])}, row)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2, 2)), spaces.MultiBinary(4)], ids=str)
def test_an_observation_of_another_size_does_not_fit(space: spaces.Space[Any]) -> None:
    into = np.zeros(4)
    for wrong in (np.ones(1), np.ones(3), np.float64(1.0), [1.0]):  # one number would fill the row
        with pytest.raises(ValueError, match="its shape is"):
            ObservationEncoder(space).encode(wrong, into)
    assert not into.any()


def test_only_numbers_that_vary_are_normalized() -> None:
    space = spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)), spaces.MultiBinary(1)))
    assert ObservationEncoder(space).continuous.tolist() == [False, False, True, True, False]


def test_spaces_that_cannot_be_used_are_told() -> None:
    with pytest.raises(UserError, match=r"part 'a\.near' of Env-v0 is a list of any length.*Env-v0\(max_items=16\)"):
        nested = spaces.Dict({"a": spaces.Dict({"near": spaces.Sequence(spaces.Discrete(2))})})
        ObservationEncoder(nested, owner="Env-v0")
    with pytest.raises(UserError, match="part 'name' of Env-v0 is a Text space"):
        ObservationEncoder(spaces.Dict({"name": spaces.Text(5)}), owner="Env-v0")
    with pytest.raises(UserError, match="actions of Env-v0 are a Dict space"):
        ActionAdapter(spaces.Dict({"a": spaces.Discrete(2)}), "Env-v0")
    with pytest.raises(UserError, match="Box of int32; declare whole numbers as MultiDiscrete"):
        ActionAdapter(spaces.Box(0, 3, (2,), dtype=np.int32), "Env-v0")


@pytest.mark.parametrize(
    ("space", "chosen", "wanted"),
    [
        (spaces.Discrete(3), [0, 2], [0, 2]),
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1]),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [1, 0]], [[0, 2], [1, 0]]),
        (spaces.MultiDiscrete([[2], [3]], start=[[1], [4]]), [[0, 2], [1, 0]], [[[1], [6]], [[2], [4]]]),
        (spaces.MultiBinary(2), [[0, 1], [1, 1]], [[0, 1], [1, 1]]),
        (spaces.Box(-1, 1, (2,)), [[0.5, 3.0], [-2.0, 1.0]], [[0.5, 1.0], [-1.0, 1.0]]),
        (
            spaces.Box(np.float64(-1), np.float64(np.inf), (1, 2), dtype=np.float64),
            [[9, -9], [0, 0]],
            [[[9, -1]], [[0, 0]]],
        ),
    ],
    ids=str,
)
def test_actions_reach_the_environment_inside_its_space(space: Any, chosen: Any, wanted: Any) -> None:
    action = np.array(chosen, dtype=np.float32 if isinstance(space, spaces.Box) else np.int64)
    before = action.copy()
    adapter = ActionAdapter(space)
    np.testing.assert_array_equal(adapter.batch(action), wanted)
    each = [*adapter.each(action)]
    assert all(space.contains(a if isinstance(a, np.ndarray) else np.int64(a)) for a in each), each
    np.testing.assert_array_equal(action, before)
    assert isinstance(each[0], int) or not np.shares_memory(adapter.each(action), action)
    assert not np.shares_memory(adapter.batch(action), action)  # an environment may keep what it was given
