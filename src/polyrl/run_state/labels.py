"""How well held-out labelled responses are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.models.language.labelled import LabelledResponses
from polyrl.models.language.pairs import sequence_log_ratio
from polyrl.run_state.pairs import EQUAL
from polyrl.runtime.budget import Budget
from polyrl.tasks.language.base import content

if TYPE_CHECKING:
    from polyrl.recipe import Term
    from polyrl.run_state.language_run_state import LanguageRunState


def auc(good: Tensor, bad: Tensor) -> float:
    """Share of all couples of a number of `good` `[n]` and one of `bad` `[m]` in which the first is larger.

    The area under the ROC curve; a difference of nothing counts one half.
    """
    ahead = good[:, None] - bad
    return float(torch.where(ahead.abs() <= EQUAL, 0.5, (ahead > 0).double()).mean())


@torch.no_grad()
def judged_labels(
    run_state: LanguageRunState, responses: LabelledResponses, terms: Sequence[Term], *, most: int, shown: int = 0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of `most` held-out labelled responses, of each kind as many as its share.

    Returns "eval/log_ratio_desirable" and "eval/log_ratio_undesirable", mean log-ratios to the reference (nats a
    response), "eval/margin", their difference, "eval/auc" of these log-ratios, and "eval/loss", the sum of those
    `terms` that can be computed on given responses, if there are any. And the first `shown` responses with their
    log-ratios and labels, to be read by a person.
    """
    numbers = responses.some(most)
    batch = responses.batch(numbers)
    batch = batch.with_fields(weight=batch["mask"].float())
    outputs = {name: x.float() for name, x in run_state.measured_outputs(batch, {"logprob"}).items()}
    reference = responses.reference_cache.of(batch, run_state.reference_of)
    batch = batch.with_fields(ref_logprob=reference)
    r = sequence_log_ratio(outputs["logprob"], reference, batch["mask"])
    good, bad = r[batch["desirable"]], r[~batch["desirable"]]
    metrics = {
        "eval/auc": auc(good, bad),
        "eval/log_ratio_desirable": float(good.mean()),
        "eval/log_ratio_undesirable": float(bad.mean()),
        "eval/margin": float(good.mean() - bad.mean()),
    }
    batch = _derived(run_state, batch, terms)
    able = [t for t in terms if t.required() <= set(batch.fields())]
    if able:
        metrics["eval/loss"] = sum(float((t.loss(outputs, batch) * t.step_weights(batch)).sum()) for t in able)
    rows = [responses.rows[n] for n in numbers[:shown]]
    samples: list[dict[str, Any]] = [
        {"split": "test", "prompt": row["prompt"], "completion": content(row["completion"]), "score": ratio}
        | {"label": row["label"]}
        for row, ratio in zip(rows, r.tolist(), strict=False)
    ]
    return metrics, samples


def _derived(run_state: LanguageRunState, batch: Experience, terms: Sequence[Term]) -> Experience:
    """The rows with the fields that the papers of these terms measure themselves, measured on these rows alone."""
    context = Context(run_state=run_state, seed=0, budget=Budget(samples=1))
    for kind in dict.fromkeys(kind for term in terms for kind in term.derives):
        if kind().required() <= set(batch.fields()):
            batch = kind()(batch, context)
    return batch
