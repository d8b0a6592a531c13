"""Grids to walk over: their moves, footprints, weights, items and Gaussian processes, as functions of a seed.

Cells are numbered row by row. Sizes and constants are those of the code of arXiv:2307.13372, or, where a grid is
smaller than its 30 by 30, keep their share of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator

Move = Literal["stay", "right", "left", "down", "up"]
MOVES: dict[Move, tuple[int, int]] = {"stay": (0, 0), "right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
"""Rows and columns that each move goes."""
Weights = Literal["hills", "constant", "gp", "bimodal"]
HILLS = ((2.5, 7.5, 1.2, 1.0), (7.5, 7.0, 1.5, 1.5), (7.0, 2.0, 1.0, 2.0))
"""Column, row, radius, height: on a grid of 10 by 10."""
PLAIN = 0.05
"""Weight where no hill is."""
ITEMS, WANTED = (18, 14, 13, 16, 18, 14), (3, 2, 3, 4, 6, 3)
"""Cells of each kind of item, and how many count."""


@dataclass(frozen=True)
class Terrain:
    """A grid with walls. Who moves against a wall or the border stays where he is.

    Attributes:
        rows, columns: of the grid.
        start: the cell where every path begins.
        walls: cells that nobody enters.
        moves: what may be done.
    """

    rows: int
    columns: int
    start: int
    walls: frozenset[int] = field(default_factory=frozenset)
    moves: tuple[Move, ...] = tuple(MOVES)

    @property
    def cells(self) -> int:
        """How many, walls too."""
        return self.rows * self.columns

    @cached_property
    def following(self) -> Tensor:
        """The cell to which each move leads, int64 `[cells, moves]`."""
        found = torch.arange(self.cells)[:, None].repeat(1, len(self.moves))
        for cell in range(self.cells):
            for k, move in enumerate(self.moves):
                row, column = cell // self.columns + MOVES[move][0], cell % self.columns + MOVES[move][1]
                if 0 <= row < self.rows and 0 <= column < self.columns:
                    there = row * self.columns + column
                    found[cell, k] = cell if there in self.walls else there
        return found

    @cached_property
    def places(self) -> Tensor:
        """Row and column of each cell, from 0 to 1 each, float32 `[cells, 2]`."""
        cell = torch.arange(self.cells)
        sides = torch.tensor([max(self.rows - 1, 1), max(self.columns - 1, 1)])
        return torch.stack([cell // self.columns, cell % self.columns], 1) / sides


def footprints(terrain: Terrain, hops: int = 1) -> Tensor:
    """The cells that each covers, bool `[cells, cells]`: itself, right, below and diagonal; so again for more hops."""
    one = torch.eye(terrain.cells, dtype=torch.bool)
    for cell in range(terrain.cells):
        row, column = divmod(cell, terrain.columns)
        for r, c in ((row, column + 1), (row + 1, column), (row + 1, column + 1)):
            if r < terrain.rows and c < terrain.columns:
                one[cell, r * terrain.columns + c] = True
    found = one
    for _ in range(hops - 1):
        found = (found.float() @ one.float()) > 0
    return found


def weights(terrain: Terrain, kind: Weights, seed: int, lengthscale: float) -> Tensor:
    """Weight of each cell, float64 `[cells]`; 0 in walls.

    Args:
        kind: constant 1; hills; a Gaussian process around 3; or high where row and column are far on the same side.
        seed: of the process.
        lengthscale: of the process, in cells.
    """
    row, column = terrain.places.double().unbind(1)
    found = torch.ones(terrain.cells, dtype=torch.float64)
    if kind == "hills":
        found = found * PLAIN
        for u, v, radius, height in HILLS:
            away = (9 * column - u).square() + (9 * row - v).square()
            found = found + height * torch.exp(-away / (2 * radius**2))
    elif kind == "bimodal":
        found = torch.sigmoid((2 * row - 1) * (2 * column - 1))
    elif kind == "gp":
        drawn = torch.randn(terrain.cells, generator=generator(seed, "weights"), dtype=torch.float64)
        root = torch.linalg.cholesky(matern(terrain, lengthscale) + 1e-9 * torch.eye(terrain.cells))
        found = (3 + root @ drawn).clamp(min=0)  # a negative weight would not be monotone
    found[sorted(terrain.walls)] = 0
    return found


def matern(terrain: Terrain, lengthscale: float) -> Tensor:
    """Covariances of a Gaussian process of unit variance and smoothness 5/2, float64 `[cells, cells]`."""
    cell = torch.arange(terrain.cells)
    at = torch.stack([cell // terrain.columns, cell % terrain.columns], 1).double()
    away = math.sqrt(5) * (at[:, None] - at[None]).norm(dim=2) / lengthscale
    found: Tensor = (1 + away + away.square() / 3) * torch.exp(-away)
    return found


def known_at(kernel: Tensor, cells: Tensor, noise: float) -> Tensor:
    """The covariances that are left after measurements in cells `[m]` with errors of variance `noise`."""
    seen = kernel[cells][:, cells] + noise * torch.eye(len(cells), dtype=kernel.dtype)
    cross = kernel[:, cells]
    found: Tensor = kernel - cross @ torch.linalg.solve(seen, cross.T)
    return found


def items(terrain: Terrain, seed: int) -> Tensor:
    """Kind of the item in each cell, int64 `[cells]`, -1 where there is none: as many of each as `ITEMS` says."""
    order = torch.randperm(terrain.cells, generator=generator(seed, "items"))[: sum(ITEMS)]
    found = torch.full((terrain.cells,), -1)
    found[order] = torch.repeat_interleave(torch.arange(len(ITEMS)), torch.tensor(ITEMS))
    return found


def two_rooms(n: int) -> Terrain:
    """Rooms of n rows at both ends of 2n columns, joined by a corridor of two rows, in which paths begin."""
    room, above = (n + 1) // 2, (n - 3) // 2
    walls = frozenset(
        row * 2 * n + column
        for row in range(n)
        for column in range(room, 2 * n - room)
        if row not in (above, above + 1)
    )
    return Terrain(n, 2 * n, above * 2 * n + n - 1, walls)
