"""A term's written derivatives beside those that autograd finds."""

from __future__ import annotations

import torch
from torch import Tensor

from polyrl.core.agreement import differs
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.recipe import Term


def compare_with_autograd(term: Term, outputs: dict[str, Tensor], rows: Experience, weights: Tensor) -> None:
    """Compare a term's written derivatives (`grad_outputs`) with its loss, beside the outputs: there ratios are not 1.

    Raises:
        UserError: they are not the derivatives of the loss.
    """
    if type(term).grad_outputs is Term.grad_outputs:
        return
    angle = torch.arange(1, len(weights) + 1, dtype=weights.dtype)[:, None]
    beside = {name: x + 0.5 * torch.sin((i + 1) * angle) for i, (name, x) in enumerate(outputs.items())}
    told = [term.grad_outputs(beside, rows, weights), Term.grad_outputs(term, beside, rows, weights)]
    size = float(weights.abs().mean()) or 1.0  # as if each step weighed 1
    for name, x in beside.items():
        found, wanted = (grad_outputs.get(name, torch.zeros_like(x)) / size for _, grad_outputs in told)
        if differs(found, wanted):
            raise UserError(
                f"The derivative by {name} that the term '{term.name}' states (gradients) is not that of its loss, so "
                "nothing was trained; mend gradients, or leave them away: then autograd finds them."
            )
    if differs(told[0][0] / size, told[1][0] / size):
        raise UserError(
            f"The loss that the gradients of the term '{term.name}' give is not what its loss says, so nothing was "
            "trained; mend gradients, or leave them away: then autograd finds them."
        )
