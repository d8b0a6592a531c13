"""A single trained number."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from polyrl.models.base import Interface, Network, Trained
from polyrl.recipe import hyperparameter

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws


class PositiveNumber(Network):
    """A positive number, trained as its logarithm."""

    def __init__(self, initial: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(initial)]))

    def forward(self) -> Tensor:
        """The number `[1]`, a constant: what trains it is its logarithm."""
        return self.log.detach().exp()

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """ "log_number" `[1]`."""
        return {"log_number": self.log}


@dataclass(frozen=True, kw_only=True)
class PositiveScalar(Trained):
    """A positive number that is trained, such as a temperature."""

    outputs: ClassVar[frozenset[str]] = frozenset({"log_number"})

    initial: float = hyperparameter(1.0, "its value at first", above=0)

    def make(self, interface: Interface, stream: torch.Generator) -> PositiveNumber:
        """The number at its first value."""
        return PositiveNumber(self.initial)
