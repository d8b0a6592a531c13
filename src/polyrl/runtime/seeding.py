"""Random streams that need no saved state: each is a pure function of (seed, what it is for, iteration).

A resumed run draws the same numbers as one that was never interrupted, because nothing has to be remembered.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def stream_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream called `names` of a run's `seed`."""
    text = "/".join(str(n) for n in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a fresh CPU generator for the stream called `names` of a run's `seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection in which every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def counted_uniforms(seed: int, *names: object, rows: Tensor, times: Tensor, numbers: int = 1) -> Tensor:
    """Uniform numbers in [0, 1), each a function of the stream, its row, its time and its place among `numbers`.

    So a row's numbers are the same whatever rows are drawn beside it, and however many steps at once.

    Args:
        seed, names: of the stream.
        rows: `[B]` int64, such as the number of an episode within the run.
        times: `[T]` int64, or `[B, T]` where rows differ.
        numbers: how many for each.

    Returns:
        `[B, T, numbers]` float64, multiples of 2^-53.
    """
    step = np.uint64(0x9E3779B97F4A7C15)
    key = np.array(stream_seed(seed, *names), dtype=np.uint64)[None]
    row = _mixed(key + (rows.numpy().astype(np.uint64) + np.uint64(1)) * step)[:, None]
    time = times if times.dim() == 2 else times[None]
    moment = _mixed(row + (time.numpy().astype(np.uint64) + np.uint64(1)) * step)[..., None]
    place = (np.arange(numbers).astype(np.uint64) + np.uint64(1)) * step
    bits = _mixed(_mixed(moment + place) + step)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
