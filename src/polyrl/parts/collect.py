"""Stage 1, collect: where experience comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.recipe import Part, Stage, hyperparameter
from polyrl.tasks.language.base import Row

LANGUAGE_FIELDS = frozenset(
    {
        "prompt_ids",
        "prompt_mask",
        "action",
        "present",
        "mask",
        "behaviour_logprob",
        "temperature",
        "ended",
        "group",
        "greedy",
        "length_limit",
    }
)


@dataclass(frozen=True, kw_only=True)
class SampleResponses(Part):
    """Sample a group of responses to each of a few prompts from the present policy."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = LANGUAGE_FIELDS
    greedy_baseline: ClassVar[bool] = False
    """Whether every group also holds the policy's greedy response."""

    prompts_per_step: int = hyperparameter(8, "prompts in one iteration", low=1)
    completions_per_prompt: int = hyperparameter(8, "responses sampled for each prompt", low=1)
    temperature: float = hyperparameter(1.0, "sampling temperature; every log-probability uses it", above=0)
    top_k: int = hyperparameter(0, "sample among the k likeliest tokens only; 0 is off", low=0)
    top_p: float = hyperparameter(1.0, "sample among the likeliest tokens that hold this mass", above=0, high=1)

    def rows(self, context: Context) -> list[Row]:
        """The prompts of this iteration: the next few of the task's endless stream."""
        start = (context.iteration - 1) * self.prompts_per_step
        rows: list[Row] = context.run_state.task.rows("train", context.seed, start, self.prompts_per_step)
        return rows

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return a fresh batch of `prompts_per_step * completions_per_prompt` responses (plus greedy baselines)."""
        from polyrl.rollout.language import Sampling

        run_state = context.run_state
        rows = self.rows(context)
        sampling = Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_tokens=run_state.task.max_tokens,
            stop=tuple(run_state.task.stop),
        )
        batch: Experience = run_state.sample(
            rows,
            sampling,
            completions_per_prompt=self.completions_per_prompt,
            greedy_baseline=self.greedy_baseline,
            generator=context.generator("collect"),
        )
        if self.greedy_baseline:
            batch = batch.with_fields(has_greedy_baseline=torch.ones(len(batch), dtype=torch.bool))
        present, ended = batch["present"], batch["ended"]
        lengths = present.sum(1).float()
        context.spent.samples += len(batch)
        context.spent.tokens += int(present.sum())
        context.spent.steps += int(batch["mask"].sum())
        sampled = ~batch["greedy"]
        context.log(
            completions__mean_length=lengths[sampled].mean(),
            completions__max_length=lengths[sampled].max(),
            completions__clipped_ratio=1 - ended[sampled].float().mean(),
            decode_steps=lengths.max(),
        )
        return batch


def count_given(batch: Experience, context: Context) -> None:
    """Count responses that were given, and not sampled just now, as samples `[B]`; log how long they are, in tokens."""
    context.spent.samples += len(batch)
    lengths = batch["present"].sum(1).float()
    context.log(completions__mean_length=lengths.mean(), completions__max_length=lengths.max())
