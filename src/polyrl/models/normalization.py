"""Running statistics by which observations and rewards are normalized."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.models.graph import Node

Floats = NDArray[np.float32]
CLIP = 10.0
"""Normalized observations and rewards are cut at this many standard deviations."""
EPSILON = 1e-8
# operations on arrays are slower with plain numbers, which are made arrays every time
_MOST, _LEAST, _EPSILON = np.array(CLIP), np.array(-CLIP), np.array(EPSILON)


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al., 1979), in float64.

    Attributes:
        mean, variance: buffers `[size]`, 0 and 1 before anything is seen.
        count: buffer `[]`; starts at 1e-4, as in OpenAI's baselines and Stable-Baselines3.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, fixed: NDArray[np.bool_] | None = None):
        """`fixed` `[size]`: entries whose mean stays 0 and whose variance stays 1."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))
        self._fixed, self._held = fixed, False

    def hold(self) -> None:
        """Take in nothing from now on."""
        self._held = True

    def arrays(self) -> MomentArrays:
        """The buffers' memory with the arithmetic on it, for loops over steps; load and save the buffers as always."""
        kind = HeldArrays if self._held else MomentArrays
        return kind(self.mean.numpy(), self.variance.numpy(), self.count.numpy(), self._fixed)

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in `batch` `[N, size]`."""
        self.arrays().update(batch)

    def normalize(self, batch: NDArray[np.float64]) -> Floats:
        """`batch` `[..., size]` with mean 0 and variance 1, cut at +-10."""
        return self.arrays().normalize(batch)

    def nodes(self) -> list[Node]:
        """The same for export, by the statistics as they are now."""
        arrays = {"mean": self.mean.numpy().copy(), "deviation": np.sqrt(self.variance.numpy() + EPSILON)}
        return [Node("normalize", arrays, {"clip": CLIP})]


class MomentArrays:
    """What `RunningMoments` computes, on arrays: as few operations as can be, because each costs more than its numbers.

    Attributes:
        mean, variance: float64 `[1, size]`; count: float64 `[]`. Written in place.
    """

    def __init__(
        self,
        mean: NDArray[np.float64],
        variance: NDArray[np.float64],
        count: NDArray[np.float64],
        fixed: NDArray[np.bool_] | None = None,
    ):
        # one row each: operations on arrays of one shape take half as long as those that repeat a row
        self.mean, self.variance, self.count = mean[None], variance[None], count
        self.fixed = fixed

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in `batch` `[N, size]`."""
        n = len(batch)
        if not n:
            return
        mean, variance, before = self.mean, self.variance, self.count.item()
        total = before + n
        centre = batch if n == 1 else np.add.reduce(batch, 0, keepdims=True) / n
        off = centre - mean
        added = off * off
        added *= n / total
        variance += added
        variance *= before / total
        if n > 1:
            spread = batch - centre
            spread *= spread
            variance += np.add.reduce(spread, 0, keepdims=True) / total
        off *= n / total
        mean += off
        self.count[()] = total
        if self.fixed is not None:
            mean[:, self.fixed], variance[:, self.fixed] = 0.0, 1.0

    def normalize(self, batch: NDArray[np.float64], out: Floats | None = None) -> Floats:
        """`batch` `[..., size]` with mean 0 and variance 1, cut at +-10; written to `out` if it is given."""
        deviation = self.variance + _EPSILON
        np.sqrt(deviation, out=deviation)
        white = batch - self.mean
        white /= deviation
        np.minimum(white, _MOST, out=white)
        np.maximum(white, _LEAST, out=white)
        if out is None:
            return white.reshape(batch.shape).astype(np.float32)
        out[...] = white
        return out


class HeldArrays(MomentArrays):
    """Statistics that stay as they are."""

    def update(self, batch: NDArray[np.float64]) -> None:
        """Take in nothing."""
