"""How a language run is judged, apart from training: one response to each prompt of the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.rollout.language import Sampling
from polyrl.run_state.completions import judged_completions
from polyrl.run_state.labels import judged_labels
from polyrl.run_state.pairs import judged_pairs
from polyrl.run_state.tables import judged_exactly
from polyrl.runtime.seeding import generator
from polyrl.tasks.language import Row
from polyrl.tasks.language.base import table_rows
from polyrl.tasks.language.columns import told_columns
from polyrl.tasks.language.reward_runner import Scores
from polyrl.tasks.language.tabled import TabledTask

if TYPE_CHECKING:
    from polyrl.run_state.language_run_state import LanguageRunState

EVALUATION_SEED = 1234
"""Every method and seed is judged on the same prompts."""


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged, apart from training: the same prompts of the test split each time.

    Attributes:
        prompts: how many.
        greedy: argmax decoding; otherwise one sampled response each (temperature 1), with the same random numbers
            at every evaluation.
        shown: how many responses are kept in samples.jsonl.
    """

    prompts: int = 200
    greedy: bool = True
    shown: int = 8
    seed: int = EVALUATION_SEED


def scores_by_reward(scores: Scores) -> dict[str, Tensor]:
    """What each reward function gave, `[B]`; nothing where there is one alone, which would only repeat the total."""
    if len(scores.parts) < 2:
        return {}
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.parts.items()}


def told(experience: Experience) -> dict[str, list[Any]]:
    """What rewards and checkers are told beside prompts and responses: the data's columns, and what was made."""
    return told_columns(experience.task_rows, experience.columns)


def seen_rows(experience: Experience) -> list[Row]:
    """The task's row of each response, with what its session reported."""
    return table_rows(experience.columns["prompt"], told(experience))


@torch.no_grad()
def evaluate(run_state: LanguageRunState) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """How well the policy does on the fixed test prompts, and the first few responses or pairs.

    Where there are rewards, accuracy, reward and length of one response to each. Where the task has preference pairs or
    labelled responses, how well held-out ones are told apart, and of sampled responses the KL to the start: without
    rewards nothing is answered for that, unless responses are to be sampled. Where responses are imitated, how likely
    held-out ones are. Where all answers are tables, what they are worth on average, the KL and more, exactly, and
    nothing is sampled.
    """
    how, task, terms = run_state.evaluation, run_state.task, run_state.pair_terms
    given = bool(task.fixed_pairs or task.labelled)
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    if isinstance(task, TabledTask):
        metrics, samples = judged_exactly(run_state)
    elif answers(run_state):
        metrics, samples, batch = _answered(run_state)
        if given and not how.greedy:
            log_ratio = (batch["behaviour_logprob"] - run_state.reference_of(batch)) * batch["mask"]
            metrics["eval/kl"] = float(log_ratio.sum(1).mean())
    if task.labelled or (task.fixed_pairs and any("desirable" in term.required() for term in terms)):
        most = how.prompts if task.labelled else 2 * how.prompts  # the responses of as many pairs
        labels, shown = judged_labels(run_state, run_state.labelled("test"), terms, most=most, shown=how.shown)
        metrics, samples = metrics | labels, samples or shown
    if task.fixed_pairs:
        paired, shown = judged_pairs(run_state, run_state.pairs("test"), terms, most=how.prompts, shown=how.shown)
        metrics, samples = metrics | paired, samples or shown
    if task.completions:
        likely, shown = judged_completions(run_state, most=how.prompts, shown=how.shown)
        metrics, samples = metrics | likely, samples or shown
    if given:
        run_state.release_reference()
    return metrics, samples


def answers(run_state: LanguageRunState) -> bool:
    """Whether an evaluation answers prompts: not where given responses are all that a run is judged by."""
    if isinstance(run_state.task, TabledTask):
        return False
    return run_state.rewards is not None or not run_state.evaluation.greedy


def _answered(run_state: LanguageRunState) -> tuple[dict[str, float], list[dict[str, Any]], Experience]:
    """Metrics of one response to each test prompt, the first few responses, and all of them."""
    how = run_state.evaluation
    size = run_state.task.size("test")  # no prompt of a small test set is counted twice
    rows = run_state.task.rows("test", how.seed, 0, how.prompts if size is None else min(how.prompts, size))
    sampling = Sampling(max_tokens=run_state.task.max_tokens, stop=tuple(run_state.task.stop), greedy=how.greedy)
    stream = generator(how.seed, "evaluation")
    batch = run_state.sample(rows, sampling, completions_per_prompt=1, generator=stream)
    rows = seen_rows(batch)
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = [
        {"split": "test", "prompt": run_state.policy.asked(row["prompt"]), "completion": text}
        for row, text in zip(rows[: how.shown], batch.columns["completion"], strict=False)
    ]
    if run_state.rewards is not None:
        judged, seen = _judged(run_state, rows, batch)
        metrics |= judged
        samples = [{**s, **more} for s, more in zip(samples, seen, strict=False)]
    metrics["eval/mean_length"] = float(batch["present"].sum(1).float().mean())
    metrics |= {f"eval/{name}": float(values.mean()) for name, values in run_state.measures(batch).items()}
    summary = run_state.task.summary(rows, batch.columns["completion"])
    metrics |= {f"eval/{name}": value for name, value in summary.items()}
    return metrics, samples, batch


def _judged(
    run_state: LanguageRunState, rows: Sequence[Row], batch: Experience
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What rewards and checker say of one response to each row; for every response its score and verdict."""
    texts = batch.columns["completion"]
    scored = run_state.scores(batch)
    scores, parts = torch.tensor(scored.total, dtype=torch.float32), scores_by_reward(scored)
    earned = [dict(zip(scored.parts, values, strict=True)) for values in zip(*scored.parts.values(), strict=True)]
    right = [run_state.task.judged(row, text, e) for row, text, e in zip(rows, texts, earned, strict=True)]
    kept = ~torch.isnan(scores)
    metrics = {
        "eval/accuracy": sum(right) / len(right),
        "eval/reward": float(scores[kept].mean()) if bool(kept.any()) else 0.0,
    }
    for name, values in parts.items():
        known = values[~torch.isnan(values)]
        if len(known):
            metrics[f"eval/rewards/{name}"] = float(known.mean())
    metrics |= {f"eval/logged/{name}": fmean(values) for name, values in scored.logged.metrics.items()}
    seen: list[dict[str, Any]] = [
        {"score": score, "correct": bool(r), "expected": run_state.task.expected(row)}
        for row, score, r in zip(rows, scores.tolist(), right, strict=True)
    ]
    for name, shown in scored.logged.columns.items():
        for sample, value in zip(seen, shown, strict=True):
            sample.setdefault("logged", {})[name] = value
    return metrics, seen
