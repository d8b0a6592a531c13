"""Token generation: prompts in, an `Experience` of sampled responses out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Protocol

import torch

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.kernels.decoder import Decoder, refusal
from polyrl.kernels.decoding import Decoding
from polyrl.kernels.padding import pad_rows
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.cached import Plain, read_plainly
from polyrl.rollout.decoding import Rows, decode_rows, rows_of_this_rank
from polyrl.rollout.drawing import Sampling
from polyrl.rollout.room import ROWS, row_bytes, rows_that_fit
from polyrl.rollout.words import StopStringTracker
from polyrl.runtime.memory import free_memory
from polyrl.tasks.language.base import Tool

__all__ = ["Engine", "Sampling", "TransformersEngine"]


class Engine(Protocol):
    """Anything that samples responses: this module's `TransformersEngine`, or an adapter to a serving engine."""

    def check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Raise UserError where `generate` would because of the prompts or the model."""
        ...

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
        """Sample `completions_per_prompt` responses to each prompt, and a greedy one after them with `greedy_baseline`.

        Rows are prompt-major. Fields: prompt_ids, prompt_mask, action, present, mask, behaviour_logprob, temperature,
        ended, group, greedy. Column: completion, the response's text without the tokens that end and pad.

        `tools`: one for all, one for each prompt, or one for each response (a session).
        """
        ...


class TransformersEngine:
    """Samples with the policy's own transformers model, in the training process.

    Each distinct prompt is read once and its key-value cache shared by all its responses; responses that ended leave
    the batch. A row's tokens depend on its own uniform numbers only, not on when other rows leave.

    Models that `polyrl.kernels.decoder` knows run there, others through their own forward pass: `plain_because`
    says which and why. Both draw the same tokens from the same numbers, up to rounding.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        *,
        max_rows: int | None = None,
        compact_at: float | None = None,
        fast: bool = True,
        free: Callable[[torch.device], int | None] = free_memory,
    ):
        """`compact_at` is explained in `decode_rows`.

        Args:
            policy: what samples.
            max_rows: responses at a time, which bound memory and mean nothing else; None takes `ROWS`, and as many as
                `free` has room for where that is known.
            compact_at: see above.
            fast: without it every model runs through its own forward pass.
            free: bytes that are free on a device, or None where that is not known.
        """
        if max_rows is not None and max_rows < 1:
            raise UserError(f"max_rows must be at least 1, not {max_rows}.")
        self.policy = policy
        self.max_rows = max_rows
        self.free = free
        self.compact_at = compact_at
        self.fast = fast

    @cached_property
    def plain_because(self) -> str | None:
        """Why sampling runs through the model's own forward pass, in a few words; None where the decoder does it."""
        if not self.fast:
            return "it was asked for"
        return refusal(self.policy.causal_lm, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.policy.precision == "bfloat16" else torch.float32

    def rows_at_once(self, length: int) -> int:
        """How many responses are sampled at a time where prompt and response have up to `length` tokens."""
        if self.max_rows is not None:
            return self.max_rows
        free = self.free(self.policy.device)
        return ROWS if free is None else rows_that_fit(free, row_bytes(self.policy, length))

    def decoder(self, size: int, length: int) -> Decoder | None:
        """What decodes `size` rows of up to `length` tokens, with a copy of the weights; None where the model does."""
        if self.plain_because is not None:
            return None
        return Decoder(self.policy.causal_lm, rows=min(size, self.rows_at_once(length)), dtype=self._dtype)

    @torch.no_grad()  # not inference_mode: tensors that the model caches in passing must stay usable in training
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
        """See `Engine.generate`.

        Errors: UserError on an empty prompt, a prompt that leaves no room in the model's context, or a model whose
        logits are not finite.
        """
        policy, device = self.policy, self.policy.device
        if completions_per_prompt < 0:
            raise UserError(f"completions_per_prompt must be at least 0, not {completions_per_prompt}.")
        self.check(prompts, sampling.max_tokens)
        each = completions_per_prompt + int(greedy_baseline)
        size = len(prompts) * each
        of_each = list(tools) if isinstance(tools, Sequence) else [tools] * size
        if len(of_each) == len(prompts):
            of_each = [tool for tool in of_each for _ in range(each)]
        if len(of_each) != size:
            raise ValueError(f"{len(of_each)} tools for {len(prompts)} prompts and {size} responses")
        words = None
        if sampling.stop or any(tool is not None for tool in of_each):
            words = StopStringTracker(policy, sampling.stop, of_each)
        greedy = torch.full((size,), sampling.greedy, device=device)
        if greedy_baseline:
            greedy[each - 1 :: each] = True
        room = torch.full((size,), sampling.max_tokens)
        rows = Rows.new(sampling, greedy, room, generator, heard=words is not None)
        # prompts of similar length share a chunk, so that little padding is read
        order = rows_of_this_rank(
            sorted(range(size), key=lambda row: len(prompts[row // each])),
            asks=any(tool is not None for tool in of_each),
        )
        length = max(map(len, prompts)) + sampling.max_tokens
        at_once = self.rows_at_once(length)
        decoder = self.decoder(size, length)
        # around all steps: autocast keeps what it has cast until its outermost context ends
        with policy.autocast() if decoder is None else nullcontext():
            for start in range(0, len(order), at_once):
                chunk = order[start : start + at_once]
                decode_rows(
                    self._read([tuple(prompts[row // each]) for row in chunk], sampling.max_tokens, decoder),
                    torch.tensor(chunk, device=device),
                    rows,
                    words,
                    end_ids=policy.end_ids,
                    compact_at=self.compact_at,
                )
        del decoder  # its copy of the weights
        rows.join()
        found = rows.found(policy.pad_id)
        prompt_ids, prompt_mask = pad_rows(prompts, policy.pad_id, "left")
        lengths = found["present"].sum(1).tolist()
        texts = [policy.decode(ids[:n]) for ids, n in zip(found["action"].tolist(), lengths, strict=True)]
        return Experience(
            {
                "prompt_ids": prompt_ids.repeat_interleave(each, 0).to(device),
                "prompt_mask": prompt_mask.repeat_interleave(each, 0).to(device),
                **found,
                "group": torch.arange(len(prompts), device=device).repeat_interleave(each),
                "greedy": greedy,
            },
            {"completion": texts},
        )

    def _read(self, prompts: list[tuple[int, ...]], room: int, decoder: Decoder | None) -> Decoding | Plain:
        """Read the prompts of some rows, each distinct one once; every row has room for `room` tokens."""
        number: dict[tuple[int, ...], int] = {}
        answered = [number.setdefault(prompt, len(number)) for prompt in prompts]
        source = torch.tensor(answered, device=self.policy.device)
        if decoder is None:
            return read_plainly(self.policy, list(number), source, room)
        return decoder.read(list(number), source, room=room)

    def check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Raise UserError where `generate` would because of the prompts or the model."""
        if not prompts:
            raise UserError("There are no prompts to answer.")
        if not self.policy.keeps_cache:  # it would ignore the cache and forget what came before
            kind = type(self.policy.causal_lm).__name__
            raise UserError(f"{kind} keeps no key-value cache, so polyrl cannot sample from it; choose another model.")
        context = self.policy.context
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"Prompt {i} is empty; give it at least one token.")
            if context is not None and len(prompt) + max_tokens > context:
                raise UserError(
                    f"Prompt {i} has {len(prompt)} tokens: with max_tokens {max_tokens} it exceeds the "
                    f"model's context of {context}; shorten the prompt or lower max_tokens."
                )
