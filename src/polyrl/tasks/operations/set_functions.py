"""Monotone submodular set functions of visited cells: what a path is worth, and what one more cell adds to it.

Each says its worth twice: in batch, as what cells add to what rows have already (`add`), and from a path alone
(`value`), by code that shares nothing with that. Of cells that were visited before the worth is known to be none, but
for measurements, which are noisy and may be repeated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyrl.tasks.batched import State


class SetFunction(ABC):
    """F over N cells.

    Attributes:
        cells: N.
        alone: F({v}) of each cell, float32 `[N]`.

    Class attributes:
        repeats: whether to visit a cell again may add something.
    """

    repeats: ClassVar[bool] = False
    cells: int
    alone: Tensor

    @abstractmethod
    def begin(self, visits: int) -> State:
        """What is kept of a row that has visited nothing and will visit so many cells, without the axis of rows."""

    @abstractmethod
    def add(self, state: State, cell: Tensor) -> tuple[Tensor, State]:
        """F(X + {v}) - F(X) `[B]` of cells `[B]`, and what is kept of X + {v}; nothing is changed in place."""

    @abstractmethod
    def value(self, path: Sequence[int]) -> float:
        """F of the cells of a path, from them alone."""


class Coverage(SetFunction):
    """The weight of all cells in the footprints of those that were visited.

    Attributes:
        footprint: bool `[N, N]`, which cells each covers.
        weights: float32 `[N]`, 0 or more.
    """

    def __init__(self, footprint: Tensor, weights: Tensor):
        self.cells, self.footprint, self.weights = len(weights), footprint, weights.float()
        self.alone = footprint.float() @ self.weights
        self._of = [set(row.nonzero()[:, 0].tolist()) for row in footprint]
        self._weight = weights.tolist()

    def begin(self, visits: int) -> State:
        """Nothing is covered."""
        return {"covered": torch.zeros(self.cells, dtype=torch.bool)}

    def add(self, state: State, cell: Tensor) -> tuple[Tensor, State]:
        """The weight of what was not covered."""
        here = self.footprint[cell]
        return (here & ~state["covered"]).float() @ self.weights, {"covered": state["covered"] | here}

    def value(self, path: Sequence[int]) -> float:
        """The weight of the union."""
        return math.fsum(self._weight[cell] for cell in set().union(*(self._of[cell] for cell in path)))


class Items(SetFunction):
    """Items collected of several kinds, of each kind at most so many: sum over k of min(cells of kind k, d_k).

    Attributes:
        kind: int64 `[N]`, of the item that lies in each cell, -1 where there is none.
        wanted: int64 `[K]`, d.
    """

    def __init__(self, kind: Tensor, wanted: Sequence[int]):
        self.cells, self.kind, self.wanted = len(kind), kind, torch.tensor(wanted)
        self.alone = ((kind >= 0) & (self.wanted[kind] > 0)).float()
        self._kinds = kind.tolist()

    def begin(self, visits: int) -> State:
        """Nothing was visited, nothing collected."""
        return {"emptied": torch.zeros(self.cells, dtype=torch.bool), "collected": torch.zeros_like(self.wanted)}

    def add(self, state: State, cell: Tensor) -> tuple[Tensor, State]:
        """1 where there is an item of a kind that is still wanted."""
        row, kind = torch.arange(len(cell)), self.kind[cell]
        is_there = (kind >= 0) & ~state["emptied"][row, cell]
        counts = is_there & (state["collected"][row, kind] < self.wanted[kind])
        emptied, collected = state["emptied"].clone(), state["collected"].clone()
        emptied[row, cell] = True
        collected[row, kind] += is_there
        return counts.float(), {"emptied": emptied, "collected": collected}

    def value(self, path: Sequence[int]) -> float:
        """The items of the distinct cells, counted by kind."""
        found = Counter(self._kinds[cell] for cell in set(path))
        return float(sum(min(found[k], wanted) for k, wanted in enumerate(self.wanted.tolist())))


class Information(SetFunction):
    """What noisy measurements tell of a Gaussian process (Bayesian D-design): 1/2 log det(I + K_SS / s2), in nats.

    A cell that is measured again tells less, but something. What cells add comes from Cholesky's decomposition of
    K_SS + s2 I, a column a measurement.

    Attributes:
        kernel: covariance of the process, float32 `[N, N]`.
        noise: s2, the variance of a measurement's error.
    """

    repeats: ClassVar[bool] = True

    def __init__(self, kernel: Tensor, noise: float):
        self.cells, self.kernel, self.noise = len(kernel), kernel.float(), noise
        self.alone = torch.log1p(self.kernel.diagonal() / noise) / 2
        self._kernel = kernel.double().numpy()

    def begin(self, visits: int) -> State:
        """The variance before anything is measured, and no columns yet."""
        return {
            "variance": self.kernel.diagonal().clone(),
            "columns": torch.zeros(visits, self.cells),
            "measured": torch.tensor(0),
        }

    def add(self, state: State, cell: Tensor) -> tuple[Tensor, State]:
        """Half the logarithm of 1 + the variance that is left, in units of the noise."""
        row, columns, measured = torch.arange(len(cell)), state["columns"], state["measured"]
        variance = state["variance"][row, cell].clamp(min=0)
        known = columns[row, :, cell]  # [B, visits]
        shared = self.kernel[cell] - torch.einsum("bvn,bv->bn", columns, known)
        column = shared / (variance + self.noise).sqrt()[:, None]
        columns = columns.clone()
        columns[row, measured] = column
        after = {"variance": state["variance"] - column.square(), "columns": columns, "measured": measured + 1}
        return torch.log1p(variance / self.noise) / 2, after

    def value(self, path: Sequence[int]) -> float:
        """The determinant as it is written, in double precision."""
        at = list(path)
        _, found = np.linalg.slogdet(np.eye(len(at)) + self._kernel[np.ix_(at, at)] / self.noise)
        return float(found) / 2
