"""A single trained number."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from polyrl import kernels
from polyrl.models.base import ClosedForm, Interface, Network, Trained
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

    def closed_form(self, wants: Collection[str]) -> ClosedForm | None:
        """The number itself."""
        return _ScalarPasses(self.log) if kernels.ENABLED and self.log.grad is not None else None


class _ScalarPasses(ClosedForm):
    """ "log_number", of which nothing is computed."""

    def __init__(self, log: nn.Parameter):
        self.log = log

    def forward(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """The logarithm as it is now, a copy."""
        return {"log_number": self.log.detach().clone()}

    def backward(self, grad_outputs: Mapping[str, Tensor]) -> None:
        """To the logarithm."""
        assert self.log.grad is not None
        self.log.grad.copy_(grad_outputs["log_number"])


@dataclass(frozen=True, kw_only=True)
class PositiveScalar(Trained):
    """A positive number that is trained, such as a temperature."""

    outputs: ClassVar[frozenset[str]] = frozenset({"log_number"})

    initial: float = hyperparameter(1.0, "its value at first", above=0)

    def make(self, interface: Interface, stream: torch.Generator) -> PositiveNumber:
        """The number at its first value."""
        return PositiveNumber(self.initial)
