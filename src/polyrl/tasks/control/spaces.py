"""Gymnasium's spaces as arrays: observations of any structure as one flat vector, actions as environments want them.

Which parts of an observation vary continuously is kept beside it: only those are worth normalizing by running
statistics; one-hot numbers, bits and padded lists stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from polyrl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Write = Callable[[Any, NDArray[np.float64]], None]
"""Writes an observation into its place of a flat vector."""
Convert = Callable[[NDArray[Any]], NDArray[Any]]
"""A policy's actions `[B, ...]` to those of an environment, in a new array."""


@dataclass(frozen=True)
class Image:
    """Where an image lies in the vector of an observation, and how it is laid out there.

    Attributes:
        begin: place of its first number.
        height, width, channels: of the image.
        channels_first: whether it is `[C, H, W]` there, and not `[H, W, C]`.
    """

    begin: int
    height: int
    width: int
    channels: int
    channels_first: bool

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.height * self.width * self.channels

    def of(self, rows: Tensor) -> Tensor:
        """The images `[N, C, H, W]` of observations `[N, D]`."""
        pixels = rows[:, self.begin : self.begin + self.size]
        if self.channels_first:
            return pixels.reshape(-1, self.channels, self.height, self.width)
        return pixels.reshape(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)


def image_at(begin: int, space: spaces.Space[Any]) -> Image | None:
    """The image that a part of an observation is: bytes of two or three axes, or other numbers of three.

    Of three axes the channels are the first or the last, whichever is shorter; of two equal ones the last.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in ((2, 3) if _is_bytes(space) else (3,)):
        return None
    shape = space.shape if len(space.shape) == 3 else (*space.shape, 1)
    first = shape[0] < shape[2]
    height, width = shape[1:] if first else shape[:2]
    return Image(begin, int(height), int(width), int(shape[0] if first else shape[2]), first)


@dataclass(frozen=True)
class _Leaf:
    """One part of an observation: which of its numbers vary continuously, and how it is written.

    `write_all` writes many at once where that is faster than one after another; `images` are those in it.
    """

    continuous: NDArray[np.bool_]
    write: Write
    write_all: Write | None = None
    images: tuple[Image, ...] = ()

    @property
    def size(self) -> int:
        return len(self.continuous)

    def fill(self, values: Any, into: NDArray[np.float64]) -> None:
        """Write `N` observations, arrays `[N, ...]` nested as the space is, into `[N, size]`."""
        if self.write_all is not None:
            self.write_all(values, into)
            return
        for value, row in zip(values, into, strict=True):
            self.write(value, row)


class ObservationEncoder:
    """Turns observations of a space into flat float64 vectors `[size]`.

    Box: flattened, bytes (0 to 255) divided by 255. Discrete and MultiDiscrete: one-hot. MultiBinary: its bits. Dict
    and Tuple: their parts one after another. Sequence: padded to `max_items` items, each followed by a bit that says
    whether it is there.

    Attributes:
        size: length of the vector.
        continuous: bool `[size]`, which entries vary continuously.
        images: those among its parts; of a Sequence none.
    """

    def __init__(self, space: spaces.Space[Any], *, max_items: int = 0, owner: str = "the environment"):
        self.space, self.max_items = space, max_items
        leaf = _leaf(space, "", max_items, owner)
        if not leaf.size:
            raise UserError(
                f"The observation of {owner} has no numbers in it (its space is {space}), so there is nothing to "
                "choose actions by; let the environment show at least one number."
            )
        self.size, self.continuous, self.images = leaf.size, leaf.continuous, leaf.images
        self.encode = leaf.write
        """Writes one observation into the row `into` `[size]`; ValueError, TypeError, KeyError if it does not fit.

        Box: its shape; bounds are not asked for, which environments keep to loosely. All others: the values too.
        """
        self.encode_all = leaf.fill
        """The same of `N` observations, arrays `[N, ...]` nested as the space is, into `[N, size]`."""
        self._plain = isinstance(space, spaces.Box) and not _is_bytes(space)

    def encode_batch(self, batched: spaces.Space[Any], observations: Any, into: NDArray[np.float64]) -> None:
        """Write the observations of a vector environment, whose batched space is `batched`, into `[B, size]`."""
        if self._plain:
            array, shape = np.asarray(observations), (len(into), *(self.space.shape or ()))
            if array.shape != shape:
                raise ValueError(f"its shape is {array.shape} and not {shape}")
            into[:] = array.reshape(into.shape)
            return
        for row, observation in zip(into, iterate(batched, observations), strict=True):
            self.encode(observation, row)

    def described(self) -> dict[str, Any]:
        """The space as JSON has it, by which exported policies turn observations into the same numbers.

        Raises:
            UserError: a part's name is neither a text nor a whole number.
        """
        return _described(self.space, self.max_items)


def _described(space: spaces.Space[Any], max_items: int) -> dict[str, Any]:
    kind = type(space).__name__
    if isinstance(space, spaces.Box):
        kind = "bytes" if _is_bytes(space) else "Box"
        return {"kind": kind, "shape": [*space.shape], "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"kind": kind, "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        start = np.asarray(space.start).reshape(-1).tolist()
        return {"kind": kind, "shape": [*space.nvec.shape], "start": start, "sizes": space.nvec.reshape(-1).tolist()}
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {"kind": kind, "parts": [[_written(key), _described(part, max_items)] for key, part in items]}
    if isinstance(space, spaces.Sequence):
        item = _described(space.feature_space, max_items)
        size = ObservationEncoder(space.feature_space, max_items=max_items).size
        return {"kind": kind, "max_items": max_items, "item": item, "item_size": size}
    return {"kind": kind, "shape": [*(space.shape or ())]}


def _written(key: Any) -> str | int:
    """A part's name as JSON keeps it."""
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int | np.integer):
        return int(key)
    raise UserError(f"The observation's part {key!r} has a name that files do not keep: use a text or a whole number.")


# ------------------------------------------------------------------------------------------------ parts of a space


def _leaf(space: spaces.Space[Any], path: str, max_items: int, owner: str) -> _Leaf:
    def all_of(size: int, continuous: bool) -> NDArray[np.bool_]:
        return np.full(size, continuous)

    if isinstance(space, spaces.Box):
        size, image = int(np.prod(space.shape)), image_at(0, space)
        images: tuple[Image, ...] = () if image is None else (image,)
        if _is_bytes(space):
            return _Leaf(all_of(size, True), _bytes(space), images=images)
        return _Leaf(all_of(size, True), _numbers(space), _all_numbers(space), images)
    if isinstance(space, spaces.Discrete):
        return _Leaf(all_of(int(space.n), False), _one_hot(int(space.start), int(space.n)))
    if isinstance(space, spaces.MultiDiscrete):
        return _Leaf(all_of(int(space.nvec.sum()), False), _several_one_hot(space))
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return _Leaf(all_of(size, False), _bits(space))
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = list(space.spaces.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))
        leaves = [(key, _leaf(sub, _below(path, key), max_items, owner)) for key, sub in items]
        continuous = [leaf.continuous for _, leaf in leaves]
        keyed = isinstance(space, spaces.Dict)
        together = np.concatenate([all_of(0, True), *continuous])
        begins = np.cumsum([0, *(leaf.size for _, leaf in leaves)]).tolist()
        images = tuple(
            dataclasses.replace(image, begin=begin + image.begin)
            for begin, (_, leaf) in zip(begins, leaves, strict=False)
            for image in leaf.images
        )
        return _Leaf(together, _several(leaves, keyed), _all_of_several(leaves, keyed), images)
    if isinstance(space, spaces.Sequence):
        if max_items < 1:
            raise UserError(
                f"{_part(path)} of {owner} is a list of any length; say how many items it holds at most, as in "
                f"'{owner}(max_items=16)'."
            )
        item = _leaf(space.feature_space, _below(path, "*"), max_items, owner)
        return _Leaf(all_of(max_items * (item.size + 1), False), _padded(item, max_items, path))
    raise UserError(
        f"{_part(path)} of {owner} is a {type(space).__name__} space, which polyrl cannot turn into numbers; wrap "
        "the environment so that it gives Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple or Sequence."
    )


def _is_bytes(space: spaces.Box) -> bool:
    return space.dtype == np.uint8


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _part(path: str) -> str:
    return f"The observation's part '{path}'" if path else "The observation"


def _flat(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The numbers of an array of this shape, one after another; axes of length 1 may be there or not."""
    array = np.asarray(value)
    if array.shape != shape and [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"its shape is {array.shape} and not {shape}")
    return array.reshape(-1)


def _numbers(space: spaces.Box) -> Write:
    shape = space.shape
    flat = len(shape) == 1

    def write(value: Any, into: NDArray[np.float64]) -> None:
        if type(value) is not np.ndarray or value.shape != shape or not flat:
            value = _flat(value, shape)
        into[:] = value

    return write


def _all_numbers(space: spaces.Box) -> Write:
    def write(values: Any, into: NDArray[np.float64]) -> None:
        into[:] = _flat(values, (len(into), *space.shape)).reshape(into.shape)

    return write


def _bytes(space: spaces.Box) -> Write:
    shape = space.shape

    def write(value: Any, into: NDArray[np.float64]) -> None:
        array = _flat(value, shape)
        if array.dtype != np.uint8 and not _whole_within(array, 0, 255):
            raise ValueError("its numbers are not bytes, whole and from 0 to 255")
        np.divide(array, 255.0, out=into)

    return write


def _bits(space: spaces.MultiBinary) -> Write:
    shape = space.shape

    def write(value: Any, into: NDArray[np.float64]) -> None:
        array = _flat(value, shape)
        if not _whole_within(array, 0, 1):
            raise ValueError("its numbers are not 0 or 1")
        into[:] = array

    return write


def _whole_within(array: NDArray[Any], low: Any, high: Any) -> bool:
    """Whether all are whole numbers from `low` to `high`."""
    return bool(((array >= low) & (array <= high) & (array == np.floor(array))).all())


def _one_hot(start: int, size: int) -> Write:
    def write(value: Any, into: NDArray[np.float64]) -> None:
        number = int(value)
        place = number - start
        if number != value or not 0 <= place < size:  # a negative one would count from the end
            raise ValueError(f"{value} is not a whole number from {start} to {start + size - 1}")
        into[:] = 0.0
        into[place] = 1.0

    return write


def _several_one_hot(space: spaces.MultiDiscrete) -> Write:
    start, sizes = np.asarray(space.start).reshape(-1), space.nvec.reshape(-1)
    offsets, last, shape = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - start, start + sizes - 1, space.nvec.shape

    def write(value: Any, into: NDArray[np.float64]) -> None:
        array = _flat(value, shape)
        if not _whole_within(array, start, last):
            raise ValueError(f"{array.tolist()} are not whole numbers from {start.tolist()} to {last.tolist()}")
        into[:] = 0.0
        into[array.astype(np.int64) + offsets] = 1.0

    return write


def _several(leaves: list[tuple[Any, _Leaf]], keyed: bool) -> Write:
    ends = np.cumsum([leaf.size for _, leaf in leaves]).tolist()
    places = [(key, leaf.write, end - leaf.size, end) for (key, leaf), end in zip(leaves, ends, strict=True)]

    def write(value: Any, into: NDArray[np.float64]) -> None:
        for key, write_part, begin, end in places:
            write_part(value[key], into[begin:end])
        _check_parts(value, len(places), keyed)

    return write


def _all_of_several(leaves: list[tuple[Any, _Leaf]], keyed: bool) -> Write:
    def write(values: Any, into: NDArray[np.float64]) -> None:
        end = 0
        for key, leaf in leaves:
            begin, end = end, end + leaf.size
            leaf.fill(values[key], into[:, begin:end])
        _check_parts(values, len(leaves), keyed)

    return write


def _check_parts(value: Any, wanted: int, keyed: bool) -> None:
    if len(value) != wanted:
        told = f": {', '.join(map(str, value))}" if keyed else ""
        raise ValueError(f"it has {len(value)} parts instead of {wanted}{told}")


def _padded(item: _Leaf, max_items: int, path: str) -> Write:
    def write(value: Any, into: NDArray[np.float64]) -> None:
        items = list(value)
        if len(items) > max_items:
            raise ValueError(f"{_part(path)} holds {len(items)} items, more than max_items={max_items}")
        into[:] = 0.0
        table = into.reshape(max_items, item.size + 1)
        for row, one in zip(table, items, strict=False):
            item.write(one, row[:-1])
            row[-1] = 1.0

    return write


class ActionAdapter:
    """Turns a policy's actions into those that the environment expects.

    A policy's action is int64 `[B]` for Discrete, int64 `[B, A]` for MultiDiscrete and MultiBinary, float32 `[B, A]`
    for Box. What a Box environment receives is clipped to its bounds; the policy's own action stays as it was sampled.
    """

    def __init__(self, space: spaces.Space[Any], owner: str = "the environment"):
        self.space = space
        if space.shape is not None and not np.prod(space.shape):
            raise UserError(
                f"The action of {owner} has no numbers in it (its space is {space}), so there is nothing to choose; "
                "let the environment take at least one number."
            )
        self._start = int(space.start) if isinstance(space, spaces.Discrete) else None
        if isinstance(space, spaces.Box):
            if not np.issubdtype(space.dtype, np.floating):
                raise UserError(
                    f"The actions of {owner} are a Box of {space.dtype}; declare whole numbers as MultiDiscrete."
                )
            self.batch = _clipped(space)
            """What a vector environment expects: `[B, ...]` of the space's own shape and type, a new array."""
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            self.batch = _shifted(space, getattr(space, "start", 0))
        else:
            raise UserError(
                f"The actions of {owner} are a {type(space).__name__} space, for which polyrl has no policy; wrap the "
                "environment so that it takes Discrete, MultiDiscrete, MultiBinary or Box."
            )

    def each(self, action: NDArray[Any]) -> Any:
        """What single environments expect, one after another: plain integers for Discrete, else rows of a new array."""
        if self._start is None:
            return self.batch(action)
        chosen = action.tolist()
        return [one + self._start for one in chosen] if self._start else chosen


def _clipped(space: spaces.Box) -> Convert:
    shape, dtype, low, high = space.shape, space.dtype, space.low[None], space.high[None]
    fits = len(shape) == 1 and dtype == np.float32  # as policies give them

    def convert(action: NDArray[Any]) -> NDArray[Any]:
        if not fits:
            action = action.reshape(len(action), *shape).astype(dtype)
        # two plain operations take a third of np.clip's time on a handful of numbers
        inside: NDArray[Any] = np.maximum(action, low)
        np.minimum(inside, high, out=inside)
        return inside

    return convert


def _shifted(space: spaces.Space[Any], start: Any) -> Convert:
    shape, dtype = space.shape, space.dtype
    assert shape is not None

    def convert(action: NDArray[Any]) -> NDArray[Any]:
        moved: NDArray[Any] = action.reshape(len(action), *shape).astype(dtype)
        moved += start
        return moved

    return convert
