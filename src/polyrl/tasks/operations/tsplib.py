"""Files of TSPLIB: instances with coordinates in the plane, and tours (Reinelt 1991).

Distances are those of the file's `EDGE_WEIGHT_TYPE`, `EUC_2D` (rounded to whole numbers) or `CEIL_2D` (rounded up), by
which published optima are stated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.tasks.batched import Verdict

TYPES = ("EUC_2D", "CEIL_2D")
OPTIMUM = re.compile(r"(?:optimal|optimum|best)[^\d\n]{0,24}?(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)", re.IGNORECASE)
"""How comments of files state the best known length: `Optimal value: 7542`."""
SECTION = re.compile(r"([A-Z_]+_SECTION)\s*:?", re.IGNORECASE)
FARTHEST = 1e12
"""Coordinates up to which tours of thousands of nodes have exact whole lengths in float64."""


class Numbered(Protocol):
    """What has nodes with numbers of its own."""

    @property
    def name(self) -> str:
        """Of the instance."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the file calls its nodes."""


@dataclass(frozen=True)
class Instance:
    """An instance as a file has it.

    Attributes:
        name: of the instance.
        points: `[n, 2]` float64, in the file's units.
        numbers: what the file calls its nodes.
        weights: one of `TYPES`.
        best: the best known length, where a comment says it.
    """

    name: str
    points: Tensor
    numbers: tuple[str, ...]
    weights: str
    best: float | None = None

    @property
    def distances(self) -> Tensor:
        """`[n, n]` float64, as the file's type has them."""
        away = (self.points[:, None] - self.points[None]).square().sum(-1).sqrt()
        return (away + 0.5).floor() if self.weights == "EUC_2D" else away.ceil()

    @property
    def scaled(self) -> Tensor:
        """The points in the unit square, `[n, 2]` float32: moved and scaled alike in both directions."""
        low, high = self.points.min(0).values, self.points.max(0).values
        size = float((high - low).max())
        return ((self.points - low) / (size or 1.0)).float()

    def verify(self, tour: list[int]) -> Verdict:
        """The length of a tour of nodes from 0, by the file's distances, from the coordinates alone."""
        if sorted(tour) != list(range(len(self.points))):
            return Verdict(None, f"it is no tour through all {len(self.points)} nodes, each of them once")
        total, points = 0, self.points.tolist()
        for k, node in enumerate(tour):
            (x, y), (u, v) = points[node], points[tour[(k + 1) % len(tour)]]
            way = math.sqrt((x - u) ** 2 + (y - v) ** 2)
            total += math.floor(way + 0.5) if self.weights == "EUC_2D" else math.ceil(way)
        return Verdict(float(total))


def read_instance(path: Path) -> Instance:
    """Read a file of the type TSP.

    Raises:
        UserError: it cannot be read, is of another type, has other distances or no coordinates, or fixes edges.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"The instance {path} cannot be read: {error.strerror}.") from None
    facts, comments = dict[str, str](), list[str]()
    points, numbers = list[tuple[float, float]](), dict[str, int]()
    section = ""
    for at, line in enumerate(map(str.strip, lines), start=1):
        if line == "EOF":
            break
        key, colon, value = (part.strip() for part in line.partition(":"))
        if found := SECTION.fullmatch(line):
            section = found[1].upper()
            if section == "FIXED_EDGES_SECTION":
                raise UserError(f"{path} fixes edges, line {at}; polyrl solve looks for any tour, so leave them out.")
        elif colon and not section:
            facts[key.upper()] = value
            if key.upper() == "COMMENT":
                comments.append(value)
        elif section == "NODE_COORD_SECTION" and line:
            fields = line.split()
            try:
                number, (x, y) = fields[0], map(float, fields[1:])
            except (IndexError, ValueError):
                raise UserError(f"Line {at} of {path} is '{line}' but must be a node's number, x and y.") from None
            if not (abs(x) <= FARTHEST and abs(y) <= FARTHEST) or number in numbers:
                raise UserError(
                    f"Line {at} of {path} has a node twice, or a coordinate that is not finite or beyond {FARTHEST:g}: "
                    f"'{line}'."
                )
            points.append((x, y))
            numbers[number] = at
    kind = facts.get("TYPE", "TSP").split()[0] if facts.get("TYPE", "TSP") else "TSP"
    if kind != "TSP":
        raise UserError(f"{path} is of the type {kind}; polyrl solve reads symmetric TSP files of TSPLIB.")
    weights = facts.get("EDGE_WEIGHT_TYPE", "")
    if weights not in TYPES:
        raise UserError(
            f"{path} has distances of the type {weights or 'unknown'}; polyrl solve knows {' and '.join(TYPES)}, whose "
            "nodes have coordinates in the plane."
        )
    said = facts.get("DIMENSION", str(len(points)))
    if len(points) < 3 or said != str(len(points)):
        raise UserError(f"{path} says {said} nodes and has coordinates of {len(points)}; a tour needs 3 at least.")
    best = next((float(m[1].replace(",", "")) for text in comments if (m := OPTIMUM.search(text))), None)
    return Instance(
        facts.get("NAME", "") or path.stem, torch.tensor(points, dtype=torch.float64), tuple(numbers), weights, best
    )


def read_tour(path: Path, instance: Numbered) -> list[int]:
    """Read a tour of the instance's nodes, as numbers from 0.

    Raises:
        UserError: it cannot be read, or names a node that the instance does not have.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"The tour {path} cannot be read: {error.strerror}.") from None
    words = text.partition("TOUR_SECTION")[2].split()
    places = {number: k for k, number in enumerate(instance.numbers)}
    tour = list[int]()
    for word in words:
        if word in ("-1", "EOF"):
            break
        if word not in places:
            raise UserError(f"The tour {path} has a node '{word}', which {instance.name} does not have.")
        tour.append(places[word])
    return tour


def write_tour(path: Path, instance: Numbered, tour: list[int], length: float, by: str) -> None:
    """Write a tour of nodes from 0 as TSPLIB has them."""
    head = [f"NAME : {path.name}", f"COMMENT : length {length:.0f}, {by}", "TYPE : TOUR", f"DIMENSION : {len(tour)}"]
    lines = [*head, "TOUR_SECTION", *(instance.numbers[node] for node in tour), "-1", "EOF"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
