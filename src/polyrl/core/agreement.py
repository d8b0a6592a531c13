"""Whether sampler and trainer agree on the log-probabilities of the actions that one took and the other learns from."""

from __future__ import annotations

import math

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.errors import UserError

LARGEST_GAP = {"float32": 0.2, "bfloat16": 2.0}
"""Difference of two log-probabilities of one action, nats, that cannot be rounding. In float32 up to 2e-4 was seen over
all methods; in bfloat16 logits of 16 to 32 are an eighth apart, and the largest of a million differences is told."""


def check_logprob_gap(logprob: Tensor, rows: Experience, limit: float | None, context: Context) -> None:
    """Before the first step sampler and trainer are the same policy: a gap is an error of one of them.

    Steps that an earlier policy took (`policy_version`) are expected to differ, and are left out. The largest gap of an
    iteration is logged as `logprob_gap`.

    Args:
        logprob: `[B, T]`, the trainer's.
        rows: with `behaviour_logprob` and `weight`, `[B, T]`.
        limit: largest gap allowed, nats; None takes `LARGEST_GAP`.

    Raises:
        UserError: the gap is beyond what rounding makes.
    """
    own = rows["weight"] != 0
    if "policy_version" in rows:
        own &= rows["policy_version"] == context.iteration
    if not bool(own.any()):
        return
    gap = float((logprob.detach() - rows["behaviour_logprob"])[own].abs().max())
    context.metrics["logprob_gap"] = max(context.metrics.get("logprob_gap", 0.0), gap)
    limit = LARGEST_GAP[context.run_state.precision] if limit is None else limit
    if limit < gap < math.inf:  # what is not finite is told by the loss
        raise UserError(
            f"Sampler and trainer disagree on the log-probability of an action by {gap:.3g} nats before the first "
            f"update of iteration {context.iteration}, more than {limit:g} (max_logprob_gap), so nothing was "
            "trained on this batch: what was sampled is not from the policy that is trained, or its "
            "log-probability is computed in two ways."
        )
