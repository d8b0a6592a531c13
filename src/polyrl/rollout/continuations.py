"""Going on from states: a state of a language model is a text, so any state can be gone back to for nothing.

Monte-Carlo values need several continuations of every step of a response, windowed rollouts one of every unfinished
response. States along one response are beginnings of each other: the response is read once and its key-value cache cut
at the states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.kernels.decoder import Decoder
from polyrl.kernels.decoding import Decoding
from polyrl.models.language.policy import LanguagePolicy
from polyrl.rollout.cached import Cut, Plain, read_plainly
from polyrl.rollout.decoding import Rows, decode_rows, rows_of_this_rank
from polyrl.rollout.drawing import Sampling
from polyrl.rollout.language import TransformersEngine
from polyrl.rollout.words import StopStringTracker
from polyrl.tasks.language.base import Tool, has_ended


@dataclass(frozen=True)
class State:
    """A prompt, and the first tokens of a response to it."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    heard: int = 0
    """Tokens of the response up to the end of what a tool said last."""

    @property
    def text(self) -> tuple[int, ...]:
        """All tokens."""
        return self.prompt + self.response


class _Prefixed:
    """A tool that is told what was said before the continuation began."""

    def __init__(self, tool: Tool, before: str):
        self.tool, self.before, self.stop = tool, before, tool.stop

    @property
    def ended(self) -> bool:
        return has_ended(self.tool)

    def reply(self, response: str) -> str | None:
        return self.tool.reply(self.before + response)


def states_of(experience: Experience, row: Tensor, tokens: Tensor) -> list[State]:
    """The states in rows `row` [S] after `tokens` [S] tokens of the response."""
    ids, real = experience["prompt_ids"], experience["prompt_mask"]
    prompts = [tuple(line[seen].tolist()) for line, seen in zip(ids, real, strict=True)]
    action, mask, present = (experience[name].tolist() for name in ("action", "mask", "present"))
    found = []
    for i, n in zip(row.tolist(), tokens.tolist(), strict=True):
        heard = max((t + 1 for t in range(n) if present[i][t] and not mask[i][t]), default=0)
        found.append(State(prompts[i], tuple(action[i][:n]), heard))
    return found


def shared_texts(texts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The texts that are no beginning of another one, and which of them begins with each text."""
    order = sorted(range(len(texts)), key=lambda i: texts[i])  # extensions of a text follow it at once
    longest: list[tuple[int, ...]] = []
    which = [0] * len(texts)
    for i in reversed(order):
        if not longest or longest[-1][: len(texts[i])] != texts[i]:
            longest.append(texts[i])
        which[i] = len(longest) - 1
    return longest, which


def _lots(which: Sequence[int], lengths: Sequence[int], most: int, among: Sequence[int]) -> Iterator[list[int]]:
    """Lots of at most `most` states (at least one), in which the states of one text stay together where they can.

    Of states whose text `which` is `among` some.
    """
    here = set(among)
    order = sorted((i for i in range(len(which)) if which[i] in here), key=lambda i: (lengths[which[i]], which[i]))
    lot: list[int] = []
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and end - start < most and which[order[end]] == which[order[start]]:
            end += 1
        if lot and len(lot) + end - start > most:
            yield lot
            lot = []
        lot += order[start:end]
        start = end
    if lot:
        yield lot


@dataclass(frozen=True)
class _Beginnings:
    """What n rows go on from: row i continues the first `length[j]` tokens of `texts[text[j]]`, j being `source[i]`."""

    texts: list[tuple[int, ...]]
    text: Tensor
    """[p] int64."""
    length: Tensor
    """[p] int64."""
    source: Tensor
    """[n] int64."""

    def read(self, policy: LanguagePolicy, room: int, decoder: Decoder | None, *, share: bool) -> Decoding | Plain:
        """Read them, with room for `room` more tokens; without `share` every beginning is a text by itself."""
        if decoder is not None:
            return decoder.read_cut(self.texts, self.text, self.length, self.source, room=room)
        if share:
            return Cut(policy, self.texts, self.text, self.length, self.source, room)
        return read_plainly(policy, self.texts, self.source, room)


@torch.no_grad()  # not inference_mode, see TransformersEngine.generate
def go_on(
    engine: TransformersEngine,
    states: Sequence[State],
    sampling: Sampling,
    *,
    count: int,
    generator: torch.Generator,
    limit: Tensor | None = None,
    tool: Tool | Sequence[Tool | None] | None = None,
    share: bool = True,
) -> Experience:
    """Sample `count` continuations of each state; row `i * count + k` continues `states[i]`.

    Args:
        engine: samples, with its policy as it is now.
        states: at least one, each with room for at least one more token.
        sampling: how tokens are drawn; `max_tokens` is the longest response, what is there already included.
        count: continuations of each state.
        generator: gives one table of uniform numbers, so what a continuation draws does not depend on the others.
        limit: `[S]` tokens that may be added to each state, where fewer than `max_tokens` leaves.
        tool: that responses may call, or one for each continuation: a session that has met the state's calls.
        share: read a text once for all states that are beginnings of it, where the model allows; else each by itself.

    Returns:
        Of the added tokens alone: `action`, `present`, `mask`, `behaviour_logprob` [S count, T]; `ended` [S count],
        false where a limit cut them off; `temperature`.

    Raises:
        UserError: the model's context is too short, or its logits are not finite.
    """
    policy, device = engine.policy, engine.policy.device
    engine.check([state.prompt for state in states], sampling.max_tokens)
    room = torch.tensor([sampling.max_tokens - len(state.response) for state in states])
    room = room if limit is None else torch.minimum(room, limit)
    if int(room.min()) < 1:
        raise ValueError("a state has no room for another token")
    size = len(states) * count
    greedy = torch.full((size,), sampling.greedy, device=device)
    words = None
    if sampling.stop or tool is not None:
        words = _words(policy, states, sampling, count, tool)
    rows = Rows.new(sampling, greedy, room.repeat_interleave(count), generator, heard=words is not None)
    texts = [state.text for state in states]
    longest_text = max(len(text) for text in texts) + int(room.max())
    decoder = engine.decoder(size, longest_text)
    if decoder is None and (not policy.can_share or policy.shares_even_only or policy.changes_rope(longest_text)):
        share = False
    longest, which = shared_texts(texts) if share else (texts, [*range(len(texts))])
    asks = any(one is not None for one in tool) if isinstance(tool, Sequence) else tool is not None
    among = rows_of_this_rank(range(len(longest)), asks=asks)
    with policy.autocast() if decoder is None else nullcontext():
        at_once = max(1, engine.rows_at_once(longest_text) // count)
        for lot in _lots(which, [len(text) for text in longest], at_once, among):
            number = {w: i for i, w in enumerate(dict.fromkeys(which[i] for i in lot))}
            cut = _Beginnings(
                texts=[longest[w] for w in number],
                text=torch.tensor([number[which[i]] for i in lot], device=device),
                length=torch.tensor([len(texts[i]) for i in lot], device=device),
                source=torch.arange(len(lot), device=device).repeat_interleave(count),
            )
            row = (torch.tensor(lot, device=device)[:, None] * count + torch.arange(count, device=device)).flatten()
            decode_rows(
                cut.read(policy, int(room[lot].max()), decoder, share=share),
                row,
                rows,
                words,
                end_ids=policy.end_ids,
                compact_at=engine.compact_at,
            )
    del decoder  # its copy of the weights
    rows.join()
    return Experience(rows.found(policy.pad_id)).to("cpu")


def _words(
    policy: LanguagePolicy,
    states: Sequence[State],
    sampling: Sampling,
    count: int,
    tool: Tool | Sequence[Tool | None] | None,
) -> StopStringTracker:
    """What follows stop strings and tools, knowing what the states have said."""
    said = [policy.decode(state.response) for state in states]
    of_each = tool if isinstance(tool, Sequence) else [tool] * len(states) * count
    tools = [None if own is None else _Prefixed(own, said[i // count]) for i, own in enumerate(of_each)]
    words = StopStringTracker(policy, sampling.stop, [*tools])
    for i, state in enumerate(states):
        for k in range(count):
            words.begin(i * count + k, state.response[state.heard :])
    return words
