"""A policy that polyrl trained, acting by NumPy alone: `Policy("policy.npz").act(observation)`.

This file stands beside the policy's arrays and needs neither polyrl nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Policy:
    """The most probable action in each state.

    Attributes:
        about: what the policy is of: task, method, spaces, nodes.
    """

    def __init__(self, file: str | IO[bytes]):
        """Read `policy.npz`; nothing in it is code."""
        with np.load(file, allow_pickle=False) as arrays:
            self.about = json.loads(bytes(arrays["about"]).decode("utf-8"))
            self.arrays = {name: arrays[name] for name in arrays.files if name != "about"}

    def act(self, observation: Any, action_mask: Any = None) -> Any:
        """The action for one observation, each as the environment has it; `action_mask` [A] where it gives one."""
        mask = None if action_mask is None else np.asarray(action_mask)[None]
        return self.act_all([observation], mask)[0]

    def act_all(self, observations: Any, action_mask: Any = None) -> Array:
        """Actions for several observations, a list of them or an array [N, ...]; `action_mask` [N, A]."""
        rows = [encode(self.about["observation"], one) for one in observations]
        if not rows:
            return self.actions(np.zeros((0, *self.about["action"]["shape"])))
        return self.actions(self.computed(rows, action_mask))

    def computed(self, rows: Any, action_mask: Any = None) -> Array:
        """What the nodes give for encoded observations [N, D], float64.

        Raises:
            ValueError: the action mask is missing, of another shape, allows nothing, or is none of the policy's.
        """
        rows, masked = np.asarray(rows, dtype=np.float64), self.about["masked"]
        if masked and action_mask is None:
            raise ValueError("this policy needs the action mask that its environment gives with an observation")
        if action_mask is not None:
            if not masked:
                raise ValueError("this policy was trained without an action mask, so it looks at none")
            action_mask = np.asarray(action_mask)
            if action_mask.shape != (len(rows), masked):
                raise ValueError(f"the action mask's shape is {action_mask.shape} and not {(len(rows), masked)}")
            action_mask = action_mask.astype(bool)
            if not action_mask.any(1).all():
                raise ValueError("an action mask allows no action")
        first, *_ = self.about["nodes"]
        return self.run(self.about["nodes"], rows if first["kind"] == "normalize" else narrow(rows), action_mask)

    def run(self, nodes: Sequence[Mapping[str, Any]], x: Array, mask: Any) -> Array:
        """Nodes one after another on rows [N, ...]."""
        for node in nodes:
            if node["kind"] == "beside":
                x = np.concatenate([self.run(inner, x, mask) for inner in node["lists"]], axis=1)
            else:
                arrays = {name: self.arrays[place] for name, place in node["arrays"].items()}
                x = NODES[node["kind"]](x, mask, **arrays, **node["settings"])
        return x

    def actions(self, x: Array) -> Array:
        """Actions as the environment takes them."""
        space = self.about["action"]
        if space["kind"] == "Box":
            low, high = (self.arrays[name].reshape(1, -1) for name in ("action_low", "action_high"))
            inside = np.clip(x.astype(space["dtype"]), low, high)
            return np.asarray(inside.reshape(len(x), *space["shape"]), dtype=space["dtype"])
        whole: Array = x.reshape(len(x), *space["shape"]).astype(space["dtype"])
        whole += self.arrays["action_start"]
        return whole


def encode(space: Mapping[str, Any], value: Any) -> Array:
    """One observation of a space as a flat float64 array.

    Raises:
        ValueError: it is not of the space; a Box's bounds are not asked for.
    """
    kind = space["kind"]
    if kind in ("Dict", "Tuple"):
        return np.concatenate([np.zeros(0), *(encode(part, one) for part, one in parts(space["parts"], value))])
    if kind == "Discrete":
        return one_hot(numbers(value, [], exactly=True), [space["start"]], [space["n"]])
    if kind == "Sequence":
        items = list(value)
        if len(items) > space["max_items"]:
            raise ValueError(f"the observation has {len(items)} items, more than {space['max_items']}")
        rows = [np.append(encode(space["item"], one), 1.0) for one in items]
        return np.concatenate([*rows, np.zeros((space["max_items"] - len(items)) * (space["item_size"] + 1))])
    flat = numbers(value, space["shape"])
    if kind == "MultiDiscrete":
        return one_hot(flat, space["start"], space["sizes"])
    last = {"bytes": 255, "MultiBinary": 1}.get(kind)
    if last is not None and not ((flat >= 0) & (flat <= last) & (flat == np.floor(flat))).all():
        raise ValueError(f"the observation has numbers that are not whole and from 0 to {last}")
    return flat / 255.0 if kind == "bytes" else flat


def parts(stated: Sequence[tuple[Any, Any]], value: Any) -> list[tuple[Any, Any]]:
    """The parts of an observation, each with its space."""
    try:
        found, count = [(part, value[key]) for key, part in stated], len(value)
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"the observation must have the parts {', '.join(str(key) for key, _ in stated)}") from None
    if count != len(stated):
        raise ValueError(f"the observation has {count} parts and not {len(stated)}")
    return found


def numbers(value: Any, shape: Sequence[int], *, exactly: bool = False) -> Array:
    """The numbers of an array of this shape, float64 and flat; unless `exactly`, axes of length 1 may be missing."""
    array = np.asarray(value)
    if array.shape != tuple(shape) and (exactly or [n for n in array.shape if n != 1] != [n for n in shape if n != 1]):
        raise ValueError(f"the observation's shape is {array.shape} and not {tuple(shape)}")
    if array.size and array.dtype.kind not in "biuf":
        raise ValueError(f"the observation has {array.dtype} where numbers belong")
    flat = np.asarray(array, dtype=np.float64).reshape(-1)
    if not np.isfinite(flat).all():
        raise ValueError("the observation has a number that is not finite")
    return flat


def one_hot(values: Array, starts: Sequence[int], sizes: Sequence[int]) -> Array:
    """Ones at these choices of groups of these sizes, which count from `starts`."""
    found = []
    for value, start, size in zip(values, starts, sizes, strict=True):
        if value != np.floor(value) or not start <= value < start + size:
            raise ValueError(f"the observation has {value:g} and not a whole number from {start} to {start + size - 1}")
        found.append(np.eye(size)[int(value) - start])
    return np.concatenate(found)


def narrow(x: Array) -> Array:
    """As float32."""
    found: Array = x.astype(np.float32)
    return found


def normalize(x: Array, mask: Any, mean: Array, deviation: Array, clip: float) -> Array:
    """By the statistics of training."""
    return narrow(np.clip((x - mean) / deviation, -clip, clip))


def layer_norm(x: Array, mask: Any, scale: Array, shift: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 over a row, then scale and shift."""
    centered = x - x.mean(1, keepdims=True)
    deviation: Array = np.sqrt((centered * centered).mean(1, keepdims=True) + np.float32(epsilon))
    found: Array = centered / deviation * scale + shift
    return found


def expert(x: Array, mask: Any, experts: int, numbers: int) -> Array:
    """The columns of the expert of largest weight."""
    table = x[:, : experts * numbers].reshape(len(x), experts, numbers)
    return np.asarray(table[np.arange(len(x)), x[:, -experts:].argmax(1)])


def argmax_each(x: Array, mask: Any, sizes: Sequence[int]) -> Array:
    """The largest of each group of columns."""
    return np.stack([part.argmax(1) for part in np.split(x, np.cumsum(sizes)[:-1], axis=1)], axis=1)


def image(x: Array, mask: Any, height: int, width: int, channels: int, channels_first: bool) -> Array:
    """Rows as images [N, C, H, W]."""
    if channels_first:
        return x.reshape(-1, channels, height, width)
    return x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)


def convolve(x: Array, mask: Any, weight: Array, bias: Array, stride: int) -> Array:
    """A convolution without padding."""
    kernel = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))[:, :, ::stride, ::stride]
    found: Array = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[:, None, None]
    return found


NODES: dict[str, Callable[..., Array]] = {
    "normalize": normalize,
    "linear": lambda x, mask, weight, bias: x @ weight + bias,
    "tanh": lambda x, mask: np.tanh(x),
    "relu": lambda x, mask: np.maximum(x, np.float32(0)),
    "elu": lambda x, mask: np.asarray(np.where(x < 0, np.expm1(np.minimum(x, np.float32(0))), x)),
    "layer-norm": layer_norm,
    "take": lambda x, mask, begin, end: x[:, begin:end],
    "allow": lambda x, mask, blocked: np.asarray(np.where(mask, x, np.float32(blocked))),
    "expert": expert,
    "argmax": lambda x, mask: x.argmax(1),
    "argmax-each": argmax_each,
    "positive": lambda x, mask: (x > 0).astype(np.int64),
    "pick": lambda x, mask, places: x[:, places],
    "image": image,
    "convolve": convolve,
    "flatten": lambda x, mask: x.reshape(len(x), -1),
    "scale": lambda x, mask, half, middle: x * half + middle,
}
