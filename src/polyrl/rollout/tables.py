"""Sampling from a policy over tables (`polyrl.models.language.tables`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.language.tables import TablePolicy
from polyrl.rollout.drawing import Sampling, draw
from polyrl.tasks.language.base import Tool
from polyrl.tasks.language.tables import ENDS


class TableEngine:
    """Walks through the states of a table, all answers at once."""

    def __init__(self, policy: TablePolicy):
        self.policy = policy

    def check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Refuse answers that are cut off: where there are no tokens for a whole one.

        Raises:
            UserError: `max_tokens` is too small; 0 asks for none.
        """
        longest = self.policy.tables.longest
        if 0 < max_tokens < longest:
            raise UserError(f"Answers have up to {longest} tokens here; leave --max-tokens away.")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        completions_per_prompt: int,
        generator: torch.Generator,
        greedy_baseline: bool = False,
        tools: Tool | Sequence[Tool | None] | None = None,
    ) -> Experience:
        """See `Engine.generate`."""
        each = completions_per_prompt + int(greedy_baseline)
        size, tables = len(prompts) * each, self.policy.tables
        greedy = torch.full((size,), sampling.greedy)
        if greedy_baseline:
            greedy[each - 1 :: each] = True
        uniform = torch.rand(size, tables.longest, generator=generator, dtype=torch.float64)
        temperature = torch.where(greedy, 1.0, sampling.temperature)
        action = torch.zeros(size, tables.longest, dtype=torch.long)
        present = torch.zeros(size, tables.longest, dtype=torch.bool)
        logprob = torch.zeros(size, tables.longest)
        logits, state = self.policy.logits(), torch.zeros(size, dtype=torch.long)
        for step in range(tables.longest):
            alive = state != ENDS
            here = state.clamp(min=0)
            token, found = draw(logits[here], temperature, greedy, uniform[:, step], sampling)
            action[:, step], present[:, step] = torch.where(alive, token, 0), alive
            logprob[:, step] = torch.where(alive, found.float(), 0.0)
            state = torch.where(alive, tables.following[here, token], ENDS)
        texts = [tables.text(ids[:n]) for ids, n in zip(action.tolist(), present.sum(1).tolist(), strict=True)]
        return Experience(
            {
                "prompt_ids": torch.zeros(size, 1, dtype=torch.long),
                "prompt_mask": torch.ones(size, 1, dtype=torch.bool),
                "action": action,
                "present": present,
                "mask": present.clone(),
                "behaviour_logprob": logprob,
                "temperature": temperature,
                "ended": torch.ones(size, dtype=torch.bool),
                "group": torch.arange(len(prompts)).repeat_interleave(each),
                "greedy": greedy,
            },
            {"completion": texts},
        )
