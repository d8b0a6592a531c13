"""Files of three problems: asymmetric tours of TSPLIB, orienteering (OPLib, Tsiligirides), and knapsacks.

- Asymmetric tours are TSPLIB's `TYPE: ATSP` with `EDGE_WEIGHT_TYPE: EXPLICIT` and `EDGE_WEIGHT_FORMAT: FULL_MATRIX`,
  whose numbers may be spread over lines. What stands on the diagonal is not read.
- Orienteering is OPLib's `TYPE: OP`, closed ways with `COST_LIMIT`, `NODE_COORD_SECTION`, `NODE_SCORE_SECTION` and
  distances `EUC_2D`, rounded; or the plain text of Tsiligirides: the longest way and the number of paths (1), then x, y
  and score of each place, the start first and the end second, in distances that are not rounded.
- Knapsacks are plain text: the number of items and the capacity, then value and weight of each item.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from polyrl.errors import UserError
from polyrl.tasks.batched import Verdict
from polyrl.tasks.operations.asymmetric import Costs, directed_verdict
from polyrl.tasks.operations.knapsack import Items
from polyrl.tasks.operations.orienteering import Places
from polyrl.tasks.operations.tsplib import FARTHEST, OPTIMUM

SECTION = re.compile(r"^([A-Z_]+_SECTION)\s*:?\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class AsymmetricInstance:
    """Nodes by what a file calls them, and `costs` `[n, n]` from each (rows) to each other."""

    name: str
    numbers: tuple[str, ...]
    costs: Costs
    best: float | None = None

    def verify(self, tour: list[int]) -> Verdict:
        """The cost of a tour of nodes from 0, whichever it begins with."""
        first = tour.index(0) if 0 in tour else 0
        return directed_verdict(self.costs.tolist(), tour[first:] + tour[:first])


def read_costs(path: Path) -> AsymmetricInstance:
    """Read a file of the type ATSP.

    Raises:
        UserError: it cannot be read, is of another type, or its matrix is not whole.
    """
    text = _text(path)
    facts, sections, best = _parts(text)
    if (kind := facts.get("TYPE", "unknown")) != "ATSP":
        raise UserError(f"{path} is of the type {kind}; a run on atsp solves files of the type ATSP.")
    stated = facts.get("EDGE_WEIGHT_TYPE", "unknown"), facts.get("EDGE_WEIGHT_FORMAT", "unknown")
    if stated != ("EXPLICIT", "FULL_MATRIX"):
        raise UserError(f"{path} has costs of the type {' '.join(stated)}; polyrl solve knows EXPLICIT FULL_MATRIX.")
    numbers = _numbers(sections.get("EDGE_WEIGHT_SECTION", ""), path)
    count = _whole(facts.get("DIMENSION", ""), "DIMENSION", path)
    if count < 3 or len(numbers) != count * count:
        raise UserError(
            f"{path} says {count} nodes and has {len(numbers)} costs; a tour needs 3 nodes at least, and of each the "
            f"costs to all, {count * count}."
        )
    costs = np.array(numbers).reshape(count, count)
    np.fill_diagonal(costs, 0)
    if (costs < 0).any():
        raise UserError(f"{path} has costs below 0; polyrl solve knows costs of 0 and above.")
    return AsymmetricInstance(facts.get("NAME") or path.stem, tuple(str(k + 1) for k in range(count)), costs, best)


def read_places(path: Path) -> tuple[Places, float | None]:
    """Read an instance of orienteering, and the most prizes that its comment states.

    Raises:
        UserError: it cannot be read, or is none.
    """
    text = _text(path)
    if not SECTION.search(text):
        return _plain_places(text, path), None
    facts, sections, best = _parts(text)
    if (kind := facts.get("TYPE", "unknown")) != "OP":
        raise UserError(f"{path} is of the type {kind}; a run on orienteering solves files of the type OP.")
    if (weights := facts.get("EDGE_WEIGHT_TYPE", "unknown")) != "EUC_2D":
        raise UserError(f"{path} has distances of the type {weights}; of orienteering polyrl solve knows EUC_2D.")
    (longest,) = _numbers(facts.get("COST_LIMIT", ""), path, count=1, what="COST_LIMIT")
    points = _rows(sections.get("NODE_COORD_SECTION", ""), 3, path)
    scores = {row[0]: row[1] for row in _rows(sections.get("NODE_SCORE_SECTION", ""), 2, path)}
    if len(points) < 2 or {row[0] for row in points} != set(scores):
        raise UserError(f"{path} has {len(points)} nodes with coordinates and {len(scores)} with scores.")
    depots = [number for number in _numbers(sections.get("DEPOT_SECTION", "1"), path) if number >= 0]
    if depots != [points[0][0]]:
        raise UserError(f"{path} has another depot than its first node; polyrl solve knows ways from the first node.")
    prize = (0.0, *(scores[row[0]] for row in points[1:]))
    return _places([row[1:] for row in points], prize, longest, 0, True, path), best


def _plain_places(text: str, path: Path) -> Places:
    lines = [line for line in text.splitlines() if line.strip()]
    longest, paths = _numbers(lines[0] if lines else "", path, count=2, what="the first line")
    if paths != 1:
        raise UserError(f"{path} asks for {paths:.12g} paths; orienteering has 1.")
    rows = _rows("\n".join(lines[1:]), 3, path)
    if len(rows) < 3:
        raise UserError(f"{path} has {len(rows)} places; there must be a start, an end and one to visit.")
    prize = tuple(0.0 if k < 2 else row[2] for k, row in enumerate(rows))
    return _places([row[:2] for row in rows], prize, longest, 1, False, path)


def _places(
    points: list[list[float]], prize: tuple[float, ...], longest: float, end: int, whole: bool, path: Path
) -> Places:
    if min(prize) < 0 or max(prize) <= 0 or longest <= 0:
        raise UserError(f"{path} has a score below 0, none above it, or no way that is longer than 0.")
    return Places(torch.tensor(points, dtype=torch.float64), prize, longest, end, whole)


def read_items(path: Path) -> Items:
    """Read a knapsack.

    Raises:
        UserError: it cannot be read, or is none.
    """
    lines = [line for line in _text(path).splitlines() if line.strip()]
    count, capacity = _numbers(lines[0] if lines else "", path, count=2, what="the first line")
    rows = _rows("\n".join(lines[1:]), 2, path)
    if len(rows) != count or not rows:
        raise UserError(f"{path} says {count:.12g} items and has {len(rows)}, a value and a weight on a line.")
    if capacity <= 0 or min(value for value, _ in rows) < 0 or min(weight for _, weight in rows) <= 0:
        raise UserError(f"{path} has a value below 0, or a weight or a capacity that is not above it.")
    if max(value for value, _ in rows) <= 0:
        raise UserError(f"{path} has no item of a value above 0.")
    return Items(tuple(value for value, _ in rows), tuple(weight for _, weight in rows), capacity)


def write_items(path: Path, items: list[int], head: str) -> None:
    """Write numbers of places or items, each on a line, after a comment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {head}", *map(str, items)]) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ reading


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"The instance {path} cannot be read: {error.strerror}.") from None


def _parts(text: str) -> tuple[dict[str, str], dict[str, str], float | None]:
    """Facts by keyword, sections by name, and the best value that a comment states."""
    head, *rest = SECTION.split(text)
    lines = [tuple(part.strip() for part in line.partition(":")) for line in head.splitlines()]
    facts = {key.upper(): value for key, colon, value in lines if colon}
    sections = {name.upper(): body.partition("EOF")[0] for name, body in zip(rest[::2], rest[1::2], strict=True)}
    said = (OPTIMUM.search(value) for key, _, value in lines if key.upper() == "COMMENT")
    best = next((float(found[1].replace(",", "")) for found in said if found), None)
    return facts, sections, best


def _numbers(text: str, path: Path, *, count: int | None = None, what: str = "") -> list[float]:
    found = list[float]()
    for word in text.split():
        try:
            number = float(word)
        except ValueError:
            raise UserError(f"{path} has '{word}' where a number must stand.") from None
        if not math.isfinite(number) or abs(number) > FARTHEST:
            raise UserError(f"{path} has the number {word}, which is not finite or beyond {FARTHEST:g}.")
        found.append(number)
    if count is not None and len(found) != count:
        raise UserError(f"{path} has '{text.strip()}' as {what}, and {count} numbers must stand there.")
    return found


def _whole(text: str, what: str, path: Path) -> int:
    if not text.isdecimal():
        raise UserError(f"{path} has '{text}' as {what}, and a whole number must stand there.")
    return int(text)


def _rows(text: str, count: int, path: Path) -> list[list[float]]:
    lines = [line for line in text.splitlines() if line.strip()]
    return [_numbers(line, path, count=count, what="a line") for line in lines]
