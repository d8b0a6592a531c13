"""A minibatch whose micro-batches are parted among the processes of a run: what they come to becomes one again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from polyrl.core.context import Context
from polyrl.core.means import Means
from polyrl.errors import UserError
from polyrl.runtime.ranks import present

if TYPE_CHECKING:
    from torch import Tensor

GAP = "logprob_gap"


@contextmanager
def pooled(means: Means, context: Context) -> Iterator[Means]:
    """Averages for this rank's micro-batches to log to; at the end all ranks' come to `means`, in their order.

    The largest gap between sampler and trainer is that of all. An error of one rank is raised on every one. Where one
    process is all there is, `means` itself is given.

    Raises:
        UserError: a rank raised it.
    """
    ranks = present()
    if ranks.alone:
        yield means
        return
    own, error = Means(), None
    before = context.metrics.pop(GAP, None)
    try:
        yield own
    except UserError as raised:
        error = raised
    ranks.agree(error)
    told = ranks.gathered({"sums": own.sums, "counts": own.counts, "gap": context.metrics.pop(GAP, None)})
    gaps = [gap for gap in (before, *(one["gap"] for one in told)) if gap is not None]
    if gaps:
        context.metrics[GAP] = max(gaps)
    for one in told:
        for key, value in one["sums"].items():
            means.add(key, value, one["counts"][key])


def sums_of_ranks(losses: Sequence[float], outputs: Mapping[str, Tensor]) -> tuple[list[float], dict[str, Tensor]]:
    """Each term's loss and the outputs `[B, ...]` of all rows, where each rank has those of its own rows, and zeros."""
    ranks = present()
    if ranks.alone:
        return list(losses), dict(outputs)
    sums = torch.tensor(losses, dtype=torch.float64)
    ranks.add([sums])
    return sums.tolist(), ranks.added(outputs)


def add_gradients(*optimizers: Any) -> None:
    """Sum over all ranks the gradients of what the optimizers train."""
    ranks = present()
    if not ranks.alone:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        ranks.add_gradients([parameter for group in groups for parameter in group["params"]])
