"""Prompts that several rows have in common: read once, and gradients flow back through the keys and values.

A group's responses differ and its prompt does not. So each distinct prompt goes through the model once; responses are
read after it in micro-batches, over the keys and values that it left in every layer's cache. Those are leaves of the
micro-batches' graphs: what all of them send back gathers there, and one backward pass takes it through the prompts.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.kernels import llama
from polyrl.kernels.llama_weights import Weights
from polyrl.models.language.rows import Index, check_prompts, micro_batches, take

if TYPE_CHECKING:
    from polyrl.models.language.policy import Backbone

WORTH = 1 / 8
"""Share of all tokens that sharing must save: below it, another forward pass costs more."""


def distinct_prompts(experience: Experience, rows: Index | None = None) -> tuple[list[list[int]], Tensor]:
    """The different prompts of the rows as token ids, in order of appearance, and which of them each row has, `[b]`.

    Errors: ValueError on an empty prompt.
    """
    ids, real = take(experience["prompt_ids"], rows), take(experience["prompt_mask"], rows)
    check_prompts(real)
    number: dict[tuple[int, ...], int] = {}
    lengths = real.sum(1).tolist()
    # every row's tokens behind one another: no row by row work on tensors
    tokens, at = ids[real].tolist(), 0
    source = []
    for length in lengths:
        source.append(number.setdefault(tuple(tokens[at : at + length]), len(number)))
        at += length
    return [list(prompt) for prompt in number], torch.tensor(source, dtype=torch.long)


def worth_sharing(prompts: list[list[int]], source: Tensor, responses: int) -> bool:
    """Whether reading `prompts` once, not once for each entry of `source` [B], saves enough of all the tokens."""
    lengths = torch.tensor([len(p) for p in prompts])
    whole, once = int(lengths[source].sum()), int(lengths.sum())
    return whole - once >= WORTH * (whole + responses)


@dataclass(frozen=True)
class Plan:
    """Which prompts of a batch of `B` rows are read together: `p` distinct ones, in chunks."""

    prompts: list[list[list[int]]]
    """Token ids of the prompts of each chunk."""
    chunk: Tensor
    """`[B]`, the chunk that each row's prompt is in."""
    place: Tensor
    """`[B]`, and its place there."""
    own: bool
    """Whether the passes of `llama` read them."""


def make_plan(experience: Experience, max_tokens: int, *, even: bool = False, own: bool = False) -> Plan | None:
    """Chunks of at most `max_tokens` padded tokens, all of one length if `even`.

    None where sharing gains nothing, unless the passes of `llama` read the prompts (`own`).
    """
    prompts, source = distinct_prompts(experience)
    if not own and not worth_sharing(prompts, source, int(experience["present"].sum())):
        return None
    lengths = torch.tensor([len(p) for p in prompts])
    groups = micro_batches(lengths, max_tokens)
    if even:
        groups = [group[lengths[group] == n] for group in groups for n in sorted(set(lengths[group].tolist()))]
    chunk, place = torch.zeros_like(lengths), torch.zeros_like(lengths)
    for number, group in enumerate(groups):
        chunk[group], place[group] = number, torch.arange(len(group))
    return Plan([[prompts[i] for i in group.tolist()] for group in groups], chunk[source], place[source], own)


class Prompts:
    """Prompts that were read, ready for responses to be read after them."""

    def __init__(self, reader: Backbone, prompts: list[list[int]], cache: Any):
        """Read `prompts` into `cache`, an empty one."""
        device = reader.device
        self.reader, self.cache = reader, cache
        self.length = torch.tensor([len(p) for p in prompts], device=device)
        longest = max(len(p) for p in prompts)
        place = torch.arange(longest, device=device)
        self.real = place < self.length[:, None]
        self.even = min(len(p) for p in prompts) == longest
        # padded on the right: so every position sees a real token, and attention over nothing cannot occur
        ids = torch.tensor([p + [reader.pad_id] * (longest - len(p)) for p in prompts], device=device)
        states = reader.read(ids, None, place.expand(len(ids), -1), self.cache)
        self.last = states[torch.arange(len(ids), device=device), self.length - 1]
        self.kinds = [(layer.keys.dtype, layer.values.dtype) for layer in self.cache.layers]
        self._cuts: list[tuple[Tensor, Tensor]] = []
        self._closed = False

    def cut(self) -> None:
        """Stop gradients here; `close` takes on what has gathered."""
        self.last = self._leaf(self.last)
        if self.last.requires_grad:
            self.last.register_hook(self._check_open)  # type: ignore[no-untyped-call]
        for layer in self.cache.layers:
            layer.keys, layer.values = self._leaf(layer.keys), self._leaf(layer.values)

    def _leaf(self, read: Tensor) -> Tensor:
        if not read.requires_grad:
            return read
        leaf = read.detach().float().requires_grad_()  # what many rows send is summed in float32
        self._cuts.append((read, leaf))
        return leaf

    def close(self) -> None:
        """Take the gradients that came since `cut` through the prompts."""
        sent = [(read, leaf.grad.to(read.dtype)) for read, leaf in self._cuts if leaf.grad is not None]
        self._closed, self._cuts = True, []
        if sent:
            torch.autograd.backward([read for read, _ in sent], [grad_output for _, grad_output in sent])

    def _check_open(self, grad_output: Tensor) -> None:
        if self._closed:
            raise RuntimeError("a micro-batch went backward after its prompts had: each must before the next is read")

    def states(self, source: Tensor, action: Tensor, present: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """States `[n, d]` before the tokens at `row`, `column` `[n]` of responses `action` `[b, T]`.

        Row i answers prompt `source[i]` `[b]`, and its first tokens are real, those `present` `[b, T]`.
        """
        states, steps = self.last.index_select(0, source)[:, None], action.shape[1] - 1
        if steps < 1:
            return states[row, column]
        cache = copy.copy(self.cache)
        cache.layers = [self._picked(*pair, source) for pair in zip(self.cache.layers, self.kinds, strict=True)]
        mask = None if self.even else torch.nn.functional.pad(self.real[source].long(), (0, steps), value=1)
        position = self.length[source, None] + torch.arange(steps, device=action.device)
        after = self.reader.read(action[:, :steps], mask, position, cache)
        return torch.cat([states.to(after.dtype), after], 1)[row, column]

    def _picked(self, layer: Any, kinds: tuple[torch.dtype, torch.dtype], source: Tensor) -> Any:
        layer = copy.copy(layer)
        layer.keys, layer.values = (
            x.index_select(0, source).to(kind) for x, kind in zip((layer.keys, layer.values), kinds, strict=True)
        )
        return layer


class SharedPrompts:
    """The prompts of a batch in chunks that fit in memory, each read when a micro-batch asks for it.

    The chunk before it is closed then: a micro-batch must go backward before the next one is read. Gradients are
    whole when `close` has been called.
    """

    def __init__(self, reader: Backbone, plan: Plan, weights: Weights | None = None):
        """Read with passes of our own over `weights`, or with the model's own modules."""
        self.reader, self.plan, self.weights = reader, plan, weights
        self._open: Prompts | llama.Prompts | None = None
        self._number = -1

    def of(self, rows: Index | None) -> tuple[Prompts | llama.Prompts, Tensor] | None:
        """Prompts that were read, and which each of `rows` `[b]` has; None where they lie in several chunks."""
        numbers = set(take(self.plan.chunk, rows).tolist())
        if len(numbers) > 1:
            return None
        (number,) = numbers
        if self._open is None or number != self._number:
            self._close_prompts()
            prompts = self.plan.prompts[number]
            if self.weights is not None:
                self._open = llama.Prompts(self.weights, prompts)
            else:
                self._open = Prompts(self.reader, prompts, self.reader.empty_cache())
                self._open.cut()
            self._number = number
        return self._open, take(self.plan.place, rows).to(self.reader.device)

    def _close_prompts(self) -> None:
        if self._open is not None:
            # the next micro-batch asks for this in the middle of a forward pass
            with torch.autocast(self.reader.device.type, enabled=False):
                self._open.close()
        self._open = None

    def close(self) -> None:
        """Take gradients through the prompts that are open, and hand them to the parameters."""
        self._close_prompts()
        if self.weights is not None:
            self.weights.finish()
