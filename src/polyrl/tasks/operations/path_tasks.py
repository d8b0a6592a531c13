"""Problems of paths as tasks: coverage of a map, of two rooms, items of several kinds, measurements of a process."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.operations import terrain as grids
from polyrl.tasks.operations.combinatorial import CombinatorialTask, ConstructionEnvironment
from polyrl.tasks.operations.paths import PathProblem, Paths
from polyrl.tasks.operations.set_functions import Coverage, Information, Items
from polyrl.tasks.operations.terrain import Terrain, Weights

MOST_MOVES = 400
KNOWN = 5
"""Cells of a process that were measured before a path begins."""


@dataclass(frozen=True)
class PathTask(CombinatorialTask):
    """Paths of `horizon` moves over a grid of n rows.

    Policies are judged as they act, by the mean worth of sampled paths: what is learned is a distribution of them.

    Attributes:
        n: rows of the grid.
        horizon: moves of a path.
        map: which of the maps that are drawn by chance; where nothing is, all are one.
    """

    most: ClassVar[int] = 40
    least: ClassVar[int] = 3
    budget: ClassVar[str] = "updates=200"
    kind: ClassVar[type[ConstructionEnvironment]] = Paths
    maximizes: ClassVar[bool] = True
    decoding: ClassVar[Literal["greedy", "sampled"]] = "sampled"

    n: int = 10
    horizon: int = 20
    map: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no grid, and paths of no length."""
        super().__post_init__()
        if self.n < self.least:
            raise UserError(f"{self.name}.n is {self.n} but must be from {self.least} to {self.most}.")
        if not 1 <= self.horizon <= MOST_MOVES:
            raise UserError(f"{self.name}.horizon is {self.horizon} but must be from 1 to {MOST_MOVES}.")
        if self.map < 0:
            raise UserError(f"{self.name}.map is {self.map} but must be 0 or more.")

    @cached_property
    def problem(self) -> PathProblem:
        """Where paths lead, and what they are worth."""
        return self.drawn()

    @abstractmethod
    def drawn(self) -> PathProblem:
        """The problem, a function of the settings."""

    def environment(self, seed: int, rows: int) -> Paths:
        """Rows of this problem."""
        return Paths(seed, rows, self.problem)

    def square(self) -> Terrain:
        """A grid without walls, where paths begin in the second cell of the second row."""
        return Terrain(self.n, self.n, self.n + 1)


@dataclass(frozen=True)
class CoverageTask(PathTask):
    """Cover as much weight of a map as possible.

    Attributes:
        weights: of cells: hills, constant, of a Gaussian process (gp), or bimodal.
        footprint: what is covered from a cell: itself, right, below and diagonal (small), or two cells on (large).
        lengthscale: of the Gaussian process, in cells.
    """

    name: ClassVar[str] = "coverage"
    label: ClassVar[str] = "weight covered"

    weights: Weights = "hills"
    footprint: Literal["small", "large"] = "small"
    lengthscale: float = 3.0

    def __post_init__(self) -> None:
        """Refuse a process without a length."""
        super().__post_init__()
        _above_0(self.name, "lengthscale", self.lengthscale)

    def drawn(self) -> PathProblem:
        """A square, footprints, weights."""
        square = self.square()
        weights = grids.weights(square, self.weights, self.map, self.lengthscale)
        hops = 1 if self.footprint == "small" else 2
        return PathProblem(square, Coverage(grids.footprints(square, hops), weights), self.horizon)

    def describe(self) -> str:
        """Size, weights and moves."""
        return f"a map of {self.n} by {self.n} cells ({self.weights}), paths of {self.horizon} moves"


@dataclass(frozen=True)
class TwoRoomsTask(PathTask):
    """Cover two rooms and the corridor between them, in which paths begin."""

    name: ClassVar[str] = "two-rooms"
    label: ClassVar[str] = "cells covered"
    least: ClassVar[int] = 4

    n: int = 7
    horizon: int = 40

    def drawn(self) -> PathProblem:
        """Rooms, footprints, weights of 1."""
        rooms = grids.two_rooms(self.n)
        weights = grids.weights(rooms, "constant", self.map, 1.0)
        return PathProblem(rooms, Coverage(grids.footprints(rooms), weights), self.horizon)

    def describe(self) -> str:
        """Size and moves."""
        return f"two rooms and a corridor on {self.n} by {2 * self.n} cells, paths of {self.horizon} moves"


@dataclass(frozen=True)
class ItemsTask(PathTask):
    """Collect items of six kinds, of each as many as are wanted: 21 at most."""

    name: ClassVar[str] = "item-collection"
    label: ClassVar[str] = "items collected"
    least: ClassVar[int] = 7

    n: int = 7
    horizon: int = 40

    def drawn(self) -> PathProblem:
        """Items in 93 of the cells."""
        grid = Terrain(self.n, 2 * self.n + 1, 2 * (2 * self.n + 1) + 4)
        return PathProblem(grid, Items(grids.items(grid, self.map), grids.WANTED), self.horizon)

    def describe(self) -> str:
        """Size and moves."""
        return f"items of six kinds on {self.n} by {2 * self.n + 1} cells, paths of {self.horizon} moves"


@dataclass(frozen=True)
class DesignTask(PathTask):
    """Measure a Gaussian process where it tells most (Bayesian D-design).

    Attributes:
        lengthscale: of the process, in cells.
        noise: variance of a measurement's error; that of the process is 1.
    """

    name: ClassVar[str] = "experiment-design"
    label: ClassVar[str] = "information"
    unit: ClassVar[str] = "nats"

    lengthscale: float = 3.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a process without a length, and measurements without an error."""
        super().__post_init__()
        _above_0(self.name, "lengthscale", self.lengthscale)
        _above_0(self.name, "noise", self.noise)

    def drawn(self) -> PathProblem:
        """A process of which five cells are known."""
        square = self.square()
        known = torch.randperm(square.cells, generator=generator(self.map, "known cells"))[:KNOWN]
        kernel = grids.known_at(grids.matern(square, self.lengthscale), known, self.noise)
        return PathProblem(square, Information(kernel, self.noise), self.horizon)

    def describe(self) -> str:
        """Size, process and moves."""
        return (
            f"measurements on {self.n} by {self.n} cells, lengthscale {self.lengthscale:g}, noise {self.noise:g}, "
            f"paths of {self.horizon} moves"
        )


def _above_0(task: str, name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UserError(f"{task}.{name} is {value:g} but must be above 0.")
