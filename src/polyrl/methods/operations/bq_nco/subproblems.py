"""What BQ-NCO imitates: good solutions of many instances, and the first decisions of random parts of them; tours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.data.base import Rows
from polyrl.tasks.operations.asymmetric import IDENTIFIER, AsymmetricTravelingSalesman
from polyrl.tasks.operations.routing import TravelingSalesman

SHORTEST = 4
"""Tokens of the smallest part of a tour: two nodes to choose from."""
Draw = Callable[..., Tensor]
"""Whole numbers from the first argument up to below the second, one for each row, of a shape."""


class Subproblems(Rows):
    """Good solutions; a row is the first decision of a random part of one.

    Class attributes:
        what: the solutions are, in words.
        solution: their entry, `[count, nodes]`.
    """

    what: ClassVar[str]
    solution: ClassVar[str]

    def __init__(self, found: Mapping[str, Tensor], symmetries: bool = True, name: str = "solutions"):
        """`found` is what `solved` gives."""
        self.found, self.symmetries, self.name = dict(found), symmetries, name

    @staticmethod
    @abstractmethod
    def solved(environment: Any) -> dict[str, Tensor]:
        """Instances and good solutions of them, `[count, ...]` each."""

    def ready(self) -> bool:
        """From the start."""
        return True

    def sentence(self) -> str:
        """How many solutions there are, and of how many nodes."""
        count, nodes = self.found[self.solution].shape
        return f"{self.name}: {count:,} good {self.what} of {nodes} nodes, of which random parts are drawn"

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        """First decisions of random parts of random solutions."""

        def draw(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, (count, *shape), generator=stream)

        rows = self.drawn(count, draw, stream)
        return Experience({name: x[:, None] for name, x in {**rows, "weight": torch.ones(count)}.items()})

    @abstractmethod
    def drawn(self, count: int, draw: Draw, stream: torch.Generator) -> dict[str, Tensor]:
        """Fields of `count` rows, without the axis of steps."""


class PartsOfTours(Subproblems):
    """Parts of tours `tours` `[count, n]` through `cities` `[count, n, 2]`, either way round.

    Nodes stand in the order of the part, so that node 1 is the label; the network has no positions.
    """

    what: ClassVar[str] = "tours"
    solution: ClassVar[str] = "tours"

    @staticmethod
    def solved(environment: TravelingSalesman) -> dict[str, Tensor]:
        """What local search comes to."""
        return {"cities": environment.state["cities"].contiguous(), "tours": environment.good_tours()}

    def drawn(self, count: int, draw: Draw, stream: torch.Generator) -> dict[str, Tensor]:
        """Any part, the whole tour included, of the mirrored instance where there are `symmetries`."""
        number, place, length = parts(self.found["tours"], draw, reversible=True)
        nodes = self.found["cities"][number[:, None], place]
        if self.symmetries:
            nodes = mirrored(nodes, draw)
        return first_of_path(nodes, length, number)


class PartsOfDirectedTours(Subproblems):
    """Parts of tours `tours` `[count, n]` by `costs` `[count, n, n]`; identifiers are drawn anew for every row."""

    what: ClassVar[str] = "tours"
    solution: ClassVar[str] = "tours"

    @staticmethod
    def solved(environment: AsymmetricTravelingSalesman) -> dict[str, Tensor]:
        """What local search comes to."""
        return {"costs": environment.state["costs"].float(), "tours": environment.good_tours()}

    def drawn(self, count: int, draw: Draw, stream: torch.Generator) -> dict[str, Tensor]:
        """Any part, the whole tour included, in which its first node and its last are one."""
        number, place, length = parts(self.found["tours"], draw, reversible=False)
        size = self.found["tours"].shape[1]
        identifier = 2 * torch.rand(count, size, IDENTIFIER, generator=stream) - 1
        rows = first_of_path(identifier[torch.arange(count)[:, None], place], length, number)
        return {**rows, "costs": self.found["costs"][number[:, None, None], place[:, :, None], place[:, None]]}


def parts(tours: Tensor, draw: Draw, *, reversible: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of tours `[B]`, their nodes from a random one on and back to it `[B, n + 1]`, and lengths `[B, 1]`."""
    size = tours.shape[1]
    number, first = draw(0, len(tours)), draw(0, size, 1)
    turned = draw(0, 2, 1) if reversible else torch.zeros_like(first)
    length = draw(min(SHORTEST, size + 1), size + 2, 1)  # size + 1 tokens are the whole tour
    return number, tours[number[:, None], (first + (1 - 2 * turned) * torch.arange(size + 1)) % size], length


def first_of_path(nodes: Tensor, length: Tensor, number: Tensor) -> dict[str, Tensor]:
    """From the first of the first `length` `[B, 1]` nodes `[B, N, F]` to the last of them, the second is next."""
    place = torch.arange(nodes.shape[1])
    there, middle = place < length, (place > 0) & (place < length - 1)
    return {
        "nodes": nodes * there[..., None],
        "node_mask": there,
        "here": torch.zeros_like(number),
        "end": length[:, 0] - 1,
        "left": middle,
        "context": nodes.new_zeros(len(nodes), 0),
        "action": torch.ones_like(number),
        "action_mask": middle,
        "row": number,
    }


def mirrored(points: Tensor, draw: Draw) -> Tensor:
    """Points of the unit square `[B, N, 2]`, each row in one of the eight symmetries of the square."""
    points = torch.where(draw(0, 2, 1, 2).bool(), 1 - points, points)
    return torch.where(draw(0, 2, 1, 1).bool(), points.flip(-1), points)
