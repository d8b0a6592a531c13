"""Sampling in proportion to priorities, in two levels of sums that are always sums of what lies below them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024


class Priorities:
    """Priorities of numbered rows.

    The sum of each block of 1,024 rows is computed from its rows whenever one of them changes, and never from
    differences, so that a resumed run has the same sums to the bit.

    Attributes:
        held: rows with a priority.
    """

    def __init__(self, rows: int):
        blocks = -(-rows // BLOCK)
        self._values = np.zeros((blocks, BLOCK))
        self._sums = np.zeros(blocks)
        self._counts = np.zeros(blocks, dtype=np.int64)
        self.largest = 1.0

    @property
    def held(self) -> int:
        """How many rows have a priority."""
        return int(self._counts.sum())

    def add(self, rows: NDArray[np.int64], counted: NDArray[np.bool_]) -> None:
        """Give new rows `[N]` the largest priority so far, and those that do not count none."""
        self._write(rows, np.where(counted, self.largest, 0.0))

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Take rows' priorities away."""
        self._write(rows, np.zeros(len(rows)))

    def set(self, rows: NDArray[np.int64], priority: NDArray[np.float64]) -> None:
        """Set the priorities `[N]` of rows `[N]`; where a row stands twice, the last counts."""
        self.largest = max(self.largest, float(priority.max()))
        self._write(rows, priority)

    def _write(self, rows: NDArray[np.int64], priority: NDArray[np.float64]) -> None:
        block, place = np.divmod(rows, BLOCK)
        self._values[block, place] = priority
        touched = np.unique(block)
        self._sums[touched] = self._values[touched].sum(1)
        self._counts[touched] = np.count_nonzero(self._values[touched], axis=1)

    def sample(self, uniform: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows `[N]` and their probabilities `[N]`, by numbers `[N]` in [0, 1): one in each N-th of the whole sum."""
        total = self._sums.sum()
        count = len(uniform)
        goal = (np.arange(count) + uniform.astype(np.float64)) / count * total
        below = np.cumsum(self._sums)
        block = np.minimum(np.searchsorted(below, goal, side="right"), len(below) - 1)
        rest = goal - np.where(block > 0, below[block - 1], 0.0)
        within = np.cumsum(self._values[block], 1)
        place = np.minimum((within <= rest[:, None]).sum(1), BLOCK - 1)
        rows = block * BLOCK + place
        chosen = self._values[block, place]
        if not chosen.all():  # rounding has led beyond the last row that counts
            for i in np.flatnonzero(chosen == 0):
                rows[i] = block[i] * BLOCK + int(np.flatnonzero(self._values[block[i]])[-1])
            chosen = self._values.reshape(-1)[rows]
        return rows, chosen / total

    def state(self) -> dict[str, NDArray[np.float64]]:
        """What a checkpoint keeps."""
        return {"priorities": self._values, "largest": np.array([self.largest])}

    def load(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Read back `state`.

        Raises:
            ValueError: it is of another number of rows.
        """
        self._values[:] = state["priorities"]
        self.largest = float(state["largest"][0])
        self._sums[:], self._counts[:] = self._values.sum(1), np.count_nonzero(self._values, axis=1)
