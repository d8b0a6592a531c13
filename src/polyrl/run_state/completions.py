"""How likely the policy finds held-out responses of those that it imitates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from polyrl.models.language.pairs import sequence_logprob

if TYPE_CHECKING:
    from polyrl.run_state.language_run_state import LanguageRunState


@torch.no_grad()
def judged_completions(
    run_state: LanguageRunState, *, most: int, shown: int = 0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the first `most` held-out responses, and the first `shown` of them to be read by a person.

    Returns "eval/nll", the mean over all their tokens of -log pi (nats), as TRL's `eval_loss`. A response's score is
    its log-probability a token.
    """
    responses = run_state.completions("test")
    batch = responses.batch(range(min(most, len(responses))))
    logprob = run_state.measured_outputs(batch.with_fields(weight=batch["mask"].float()), {"logprob"})["logprob"]
    total, tokens = sequence_logprob(logprob.double(), batch["mask"]), batch["mask"].sum(1)
    texts = [run_state.policy.decode(responses.ids(n).response) for n in range(min(shown, len(batch)))]
    scores = (total / tokens.clamp(min=1)).tolist()
    samples: list[dict[str, Any]] = [
        {"split": "test", "prompt": row["prompt"], "completion": text, "score": score}
        for row, text, score in zip(responses.rows, texts, scores, strict=False)
    ]
    return {"eval/nll": float(-total.sum() / tokens.sum().clamp(min=1))}, samples
