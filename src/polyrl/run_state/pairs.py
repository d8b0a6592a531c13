"""What run states of preference pairs share: how well held-out pairs are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.models.language.pairs import FixedPairs, by_pair, sequence_log_ratio
from polyrl.run_state.base import RunState
from polyrl.tasks.language.base import content

if TYPE_CHECKING:
    from polyrl.recipe import Term

EQUAL = 1e-5
"""Margins this small are rounding: such a pair is half right."""


@torch.no_grad()
def judged_pairs(
    run_state: RunState, pairs: FixedPairs, terms: Sequence[Term], *, most: int, shown: int, output: str = "logprob"
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of held-out pairs, the first `most` of them, told apart by the run state's "logprob" or "score".

    Returns "eval/pair_accuracy", the share of pairs whose chosen response is ahead (a margin of nothing counts one
    half), "eval/margin", by how much on average (a policy: nats of summed log-ratio to the reference; a reward model:
    its score), and "eval/loss", the sum of those `terms` that can be computed on given pairs, if there are any. And the
    first `shown` pairs with both responses' log-ratios or scores, to be read by a person.
    """
    numbers = range(min(len(pairs), most))
    batch = pairs.batch(numbers)
    batch = batch.with_fields(weight=batch["mask"].float())
    outputs = {name: x.float() for name, x in run_state.measured_outputs(batch, {output}, "pair").items()}
    batch, chosen, rejected = _by_side(run_state, pairs, batch, outputs)
    margin = chosen - rejected
    right = torch.where(margin.abs() <= EQUAL, 0.5, (margin > 0).float())
    metrics = {"eval/pair_accuracy": float(right.mean()), "eval/margin": float(margin.mean())}
    able = [t for t in terms if t.required() <= set(batch.fields())]
    if able:
        metrics["eval/loss"] = sum(float((t.loss(outputs, batch) * t.step_weights(batch)).sum()) for t in able)
    both = zip(pairs.rows, chosen.tolist(), rejected.tolist(), strict=False)
    return metrics, [_sample(*one) for one in islice(both, min(shown, most))]


def _sample(row: Mapping[str, Any], chosen: float, rejected: float) -> dict[str, Any]:
    return {
        "split": "test",
        "prompt": row["prompt"],
        "completion": content(row["chosen"]),
        "score": chosen,
        "correct": chosen > rejected,
        "expected": None,
        "rejected": content(row["rejected"]),
        "score_rejected": rejected,
    }


def _by_side(
    run_state: RunState, pairs: FixedPairs, batch: Experience, outputs: dict[str, Tensor]
) -> tuple[Experience, Tensor, Tensor]:
    """The batch with what was needed, and the log-ratios or scores of chosen and rejected responses, `[pairs]` each."""
    if "score" in outputs:
        value = outputs["score"]
    else:
        reference: Tensor = pairs.reference_cache.of(batch, run_state.reference_of)  # type: ignore[attr-defined]
        batch = batch.with_fields(ref_logprob=reference)
        value = sequence_log_ratio(outputs["logprob"], reference, batch["mask"])
    chosen, rejected = by_pair(value, batch["pair"], batch["preferred"])
    return batch, chosen[batch["preferred"]], rejected[batch["preferred"]]
