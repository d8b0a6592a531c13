"""Token generation: prompts in, an `Experience` of sampled responses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from polyrl.errors import Diverged, UserError
from polyrl.experience import Experience
from polyrl.policies.language import LanguagePolicy
from polyrl.policies.rows import pad_rows
from polyrl.tasks.language.base import Tool


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Errors: UserError on values that mean nothing."""

    temperature: float = 1.0
    """Logits are divided by it; log-probabilities of the batch use it too."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens that together have this probability."""
    max_tokens: int = 64
    """Longest response, tool-returned tokens included."""
    stop: tuple[str, ...] = ()
    """Strings that end the response; they stay in it."""
    greedy: bool = False
    """Always take the most probable token."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature must be above 0, not {self.temperature}; for greedy decoding set greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError("stop must be a list of strings that are not empty.")


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
        greedy_twin: bool = False,
        tools: Tool | Sequence[Tool | None] | None = None,
    ) -> Experience:
        """Sample `completions_per_prompt` responses to each prompt, and a greedy one after them with `greedy_twin`.

        Rows are prompt-major. Fields: prompt_ids, prompt_mask, action, present, mask, behaviour_logprob, temperature,
        ended, group, greedy. Column: completion, the response's text without special tokens.
        """
        ...


class TransformersEngine:
    """Samples with the policy's own transformers model, in the training process.

    Each distinct prompt is read once and its key-value cache shared by all its responses; responses that ended leave
    the batch. A row's tokens depend on its own uniform numbers only, not on when other rows leave.
    """

    def __init__(self, policy: LanguagePolicy, *, max_rows: int = 256, compact_at: float = 0.25):
        """`max_rows` responses at a time bound memory; ended rows leave when they are `compact_at` of the batch."""
        if max_rows < 1:
            raise UserError(f"max_rows must be at least 1, not {max_rows}.")
        self.policy = policy
        self.max_rows = max_rows
        self.compact_at = compact_at

    @torch.no_grad()  # not inference_mode: tensors that the model caches in passing must stay usable in training
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        completions_per_prompt: int,
        generator: torch.Generator,
        greedy_twin: bool = False,
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
        each = completions_per_prompt + int(greedy_twin)
        size, length = len(prompts) * each, sampling.max_tokens
        greedy = torch.full((size,), sampling.greedy, device=device)
        if greedy_twin:
            greedy[each - 1 :: each] = True
        # one table of uniform numbers, drawn at once: what a row draws does not depend on the rest of the batch
        uniform = torch.rand(size, length, dtype=torch.float64, generator=generator).to(device)
        rows = _Rows(
            action=torch.full((size, length), policy.pad_id, device=device),
            present=torch.zeros(size, length, dtype=torch.bool, device=device),
            mask=torch.zeros(size, length, dtype=torch.bool, device=device),
            logprob=torch.zeros(size, length, device=device),
            ended=torch.zeros(size, dtype=torch.bool, device=device),
            temperature=torch.where(greedy, 1.0, sampling.temperature),
            greedy=greedy,
            uniform=uniform,
        )
        per_prompt = tools if isinstance(tools, Sequence) else [tools] * len(prompts)
        if len(per_prompt) != len(prompts):
            raise ValueError(f"{len(per_prompt)} tools for {len(prompts)} prompts")
        words = None
        if sampling.stop or any(tool is not None for tool in per_prompt):
            words = _Words(policy, sampling.stop, [per_prompt[row // each] for row in range(size)])
        # prompts of similar length share a chunk, so that little padding is read
        order = sorted(range(size), key=lambda row: len(prompts[row // each]))
        with policy.autocast():
            for start in range(0, size, self.max_rows):
                chunk = order[start : start + self.max_rows]
                self._decode(chunk, [tuple(prompts[row // each]) for row in chunk], sampling, rows, words)
        if not bool(torch.isfinite(rows.logprob).all()):
            raise Diverged(
                "The model's logits are not finite: its weights diverged or are damaged; lower the step size."
            )
        lengths = rows.present.sum(1)
        longest = int(lengths.max())
        prompt_ids, prompt_mask = pad_rows(prompts, policy.pad_id, "left")
        texts = [policy.decode(ids[:n]) for ids, n in zip(rows.action.tolist(), lengths.tolist(), strict=True)]
        return Experience(
            {
                "prompt_ids": prompt_ids.repeat_interleave(each, 0).to(device),
                "prompt_mask": prompt_mask.repeat_interleave(each, 0).to(device),
                "action": rows.action[:, :longest].contiguous(),
                "present": rows.present[:, :longest].contiguous(),
                "mask": rows.mask[:, :longest].contiguous(),
                "behaviour_logprob": rows.logprob[:, :longest].contiguous(),
                "temperature": rows.temperature,
                "ended": rows.ended,
                "group": torch.arange(len(prompts), device=device).repeat_interleave(each),
                "greedy": rows.greedy,
            },
            {"completion": texts},
        )

    def check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Raise UserError where `generate` would because of the prompts or the model."""
        if not prompts:
            raise UserError("There are no prompts to answer.")
        if not self.policy.accepts("past_key_values"):  # it would ignore the cache and forget what came before
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

    def _decode(
        self,
        chunk: list[int],
        prompts: list[tuple[int, ...]],
        sampling: Sampling,
        rows: _Rows,
        words: _Words | None,
    ) -> None:
        """Fill `rows` for the rows numbered `chunk`, which answer `prompts`."""
        policy, device = self.policy, self.policy.device
        number: dict[tuple[int, ...], int] = {}
        source = torch.tensor([number.setdefault(prompt, len(number)) for prompt in prompts], device=device)
        ids, real = (t.to(device) for t in pad_rows(list(number), policy.pad_id, "left"))
        cache = _new_cache(policy.causal_lm, room=sampling.max_tokens)
        selectable = _selectable(cache)
        if not selectable:  # then every row reads its own prompt and stays to the end
            ids, real, source = ids[source], real[source], torch.arange(len(source), device=device)
        ragged = not bool(real.all())
        position = (real.cumsum(1) - 1).clamp(min=0)
        logits = policy.next_logits(
            ids, attention_mask=real.long() if ragged else None, position_ids=position, cache=cache
        )
        if selectable:
            cache.reorder_cache(source)
        logits, position = logits[source], position[source, -1:]
        seen = torch.nn.functional.pad(real[source].long(), (0, sampling.max_tokens), value=1) if ragged else None
        row = torch.tensor(chunk, device=device)
        alive = torch.ones(len(row), dtype=torch.bool, device=device)
        end_ids = torch.tensor(policy.end_ids, device=device)
        for step in range(sampling.max_tokens):
            token, logprob = _draw(logits, rows.temperature[row], rows.greedy[row], rows.uniform[row, step], sampling)
            chosen = alive
            if words is not None and words.replies:
                chosen = words.force(row.tolist(), token, alive)
            rows.action[row, step] = token.masked_fill(~alive, policy.pad_id)
            rows.present[row, step] = alive
            rows.mask[row, step] = chosen
            rows.logprob[row, step] = logprob.masked_fill(~chosen, 0.0)
            ended = chosen & torch.isin(token, end_ids)
            if words is not None:
                ended = ended | words.hear(row, token, chosen & ~ended, rows.action, step)
            rows.ended[row] |= ended
            alive = alive & ~ended
            count = int(alive.sum())
            if count == 0 or step + 1 == sampling.max_tokens:
                break
            if selectable and len(row) - count >= max(1, self.compact_at * len(row)):
                keep = alive.nonzero()[:, 0]
                cache.reorder_cache(keep)
                row, token, position, alive = row[keep], token[keep], position[keep], alive[keep]
                seen = None if seen is None else seen[keep]
            position = position + 1
            logits = policy.next_logits(
                token[:, None],
                attention_mask=None if seen is None else seen[:, : ids.shape[1] + step + 1],
                position_ids=position,
                cache=cache,
            )


@dataclass
class _Rows:
    """What is known and written of all rows; [B, max_tokens] or [B]."""

    action: Tensor
    present: Tensor
    mask: Tensor
    logprob: Tensor
    ended: Tensor
    temperature: Tensor
    greedy: Tensor
    uniform: Tensor


def _draw(
    logits: Tensor, temperature: Tensor, greedy: Tensor, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Token [n] by inverse CDF (greedy rows: argmax), its log-probability [n] under softmax(logits / temperature)."""
    logprobs = torch.log_softmax(logits / temperature[:, None], -1)
    best = logits.argmax(-1)
    if sampling.greedy:
        token = best
    else:
        # double precision: a running sum over a large vocabulary must not swallow rare tokens
        cdf = filtered(logprobs.double().exp(), sampling.top_k, sampling.top_p).cumsum(-1)
        token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
        token = torch.where(greedy, best, token.clamp(max=logits.shape[1] - 1))
    return token, logprobs.gather(1, token[:, None])[:, 0]


def filtered(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to 0 what top-k and then top-p (of what top-k left) exclude; [n, V] in and out, not renormalised."""
    if top_k == 0 and top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[:, top_k:] = 0
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probs).scatter(-1, order, ordered)


class _Words:
    """Follows what rows say, as text: stop strings and tools. Rows are numbered over the whole batch."""

    def __init__(self, policy: LanguagePolicy, stop: tuple[str, ...], tools: list[Tool | None]):
        self.policy = policy
        self.stop = stop
        self.tools = tools
        self.replies: dict[int, list[int]] = {}
        """Tokens of a tool's reply that a row has still to take, last one first."""
        self.said: list[list[int]] = [[] for _ in tools]
        """The policy's tokens since the tool last spoke, special tokens left out."""
        self.special = set(policy.tokenizer.all_special_ids)
        strings = {*stop, *(tool.stop for tool in tools if tool is not None)}
        if not all(strings):
            raise UserError("A tool's stop string is empty; give the text that calls the tool.")
        # every token says at least one byte; some more so that decoders that treat a first token apart do no harm
        self.window = max(len(s.encode()) for s in strings) + 8
        self.closing = {s[-1] for s in strings}
        self.anchor = next(i for i in range(len(policy.tokenizer)) if i not in self.special)
        self.pieces: dict[int, bool] = {}

    def force(self, rows: list[int], token: Tensor, alive: Tensor) -> Tensor:
        """Replace tokens of rows inside a tool's reply, in place; return which tokens the policy chose."""
        chosen = alive.clone()
        for i, row in enumerate(rows):
            if row in self.replies:
                token[i] = self.replies[row].pop()
                chosen[i] = False
                if not self.replies[row]:
                    del self.replies[row]
        return chosen

    def hear(self, row: Tensor, token: Tensor, chosen: Tensor, action: Tensor, step: int) -> Tensor:
        """Take in one token a row; return which rows said a stop string, and ask the tools that were called."""
        ended = torch.zeros_like(chosen)
        heard = zip(row.tolist(), token.tolist(), chosen.tolist(), strict=True)
        for i, (number, word, mine) in enumerate(heard):
            if not mine or word in self.special:
                continue
            said = self.said[number]
            said.append(word)
            if not self._may_close(word):
                continue
            text = self.policy.decode(said[-self.window :])
            tool = self.tools[number]
            if tool is not None and text.endswith(tool.stop):
                self._ask(tool, number, self.policy.decode(action[number, : step + 1].tolist()))
            elif any(s in text for s in self.stop):
                ended[i] = True
        return ended

    def _ask(self, tool: Tool, number: int, text: str) -> None:
        try:
            reply = tool.reply(text)
        except Exception:  # a broken tool is something that a policy meets in the world, not the end of the run
            reply = "error"
        ids = self.policy.encode(reply) if reply else []
        if ids:
            self.replies[number] = ids[::-1]
        if reply is not None:
            self.said[number] = []

    def _may_close(self, word: int) -> bool:
        """Whether this token can complete one of the strings: decoding is needed only then."""
        known = self.pieces.get(word)
        if known is None:
            alone, both = self.policy.decode([self.anchor]), self.policy.decode([self.anchor, word])
            piece = both.removeprefix(alone)
            unsure = not both.startswith(alone) or "\ufffd" in both
            known = self.pieces[word] = unsure or not self.closing.isdisjoint(piece)
        return known


# ------------------------------------------------------------------------------------------- key-value cache


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values with room for the tokens to come: adding a token copies that token, not the cache."""

    def __init__(self, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.stores: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self.is_initialized or self.keys is None or self.values is None:
            self.lazy_initialization(*new)
            self.keys, self.values = new
            return new
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if not self.stores or end > self.stores[0].shape[-2]:
            self.stores = [self._grown(old, end) for old in (self.keys, self.values)]
        for store, states in zip(self.stores, new, strict=True):
            store[..., start:end, :] = states
        self.keys, self.values = (store[..., :end, :] for store in self.stores)
        return self.keys, self.values

    def _grown(self, old: Tensor, end: int) -> Tensor:
        new = old.new_empty((*old.shape[:-2], end + self.room, old.shape[-1]))
        new[..., : old.shape[-2], :] = old
        return new

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.stores = []


def _new_cache(model: Any, room: int) -> Any:
    cache = DynamicCache(config=model.config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [_RoomyLayer(room) for _ in cache.layers]
    return cache


def _selectable(cache: Any) -> bool:
    """Whether rows can be picked from the cache: the layers of transformers itself can, a model's own may not."""
    return all(type(layer).__module__ in ("transformers.cache_utils", __name__) for layer in cache.layers)
