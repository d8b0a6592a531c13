"""Rows that are being decoded: their keys and values, and the step that gives each its next token's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyrl.kernels.linear import onednn_pays
from polyrl.kernels.padding import pad_rows

if TYPE_CHECKING:
    from polyrl.kernels.decoder import Decoder

PREFILL_TOKENS = 2**13
"""Prompt tokens, padding included, that are read at a time: what lies between two layers must not fill the memory."""


class Decoding:
    """Rows that are being decoded: keys and values of their prompts and of their responses, apart from each other.

    A prompt's are kept once for all rows that answer it. Its rows ask them together, in one product, and a row's own
    keys and values grow by a place a step.
    """

    logits: Tensor
    """[n, V] float32, of the first token of each row's response."""
    selectable = True
    """Rows can leave."""
    slot: Tensor
    """[n K] int64, of each row and head of keys, its slot among those of its prompt and head."""
    slots: Tensor
    """[P K G] int64, whose slot each is (number in [n K]); G is the most rows that a prompt has."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        source: Tensor,
        room: int,
        cut: tuple[Tensor, Tensor] | None = None,
    ):
        """With `cut`, two [p], the rows answer beginnings: of which of the texts `prompts`, and of how many tokens."""
        self.decoder = decoder
        self.source = source
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
        self.width = int(lengths.max())
        """Places of the prompts, which are padded on the right."""
        self.turns = decoder.turns(self.width + room)
        self.prompts = decoder.cache(len(prompts), self.width)
        self.responses = decoder.cache(len(source), max(1, room - 1))  # the last token is never read
        self.end = 0
        """Places of the responses in use."""
        text, lengths = (torch.arange(len(prompts), device=decoder.device), lengths) if cut is None else cut
        self.position = lengths[source]
        self.padding: Tensor | None = None
        """0 at a prompt's tokens and -inf at its padding, [P, 1, width]."""
        hidden = torch.arange(self.width, device=decoder.device) >= lengths[:, None, None]
        if bool(hidden.any()):
            self.padding = torch.zeros(hidden.shape, dtype=decoder.attention_dtype, device=decoder.device)
            self.padding.masked_fill_(hidden, float("-inf"))
        at_once = max(1, PREFILL_TOKENS // self.width)
        last: Tensor | None = None
        for i in range(0, len(prompts), at_once):
            states = self._prefill(prompts[i : i + at_once], i)
            here = ((text >= i) & (text < i + at_once)).nonzero()[:, 0]
            last = states.new_empty(len(text), states.shape[-1]) if last is None else last
            last[here] = states[text[here] - i, lengths[here] - 1]
        assert last is not None
        self.logits = decoder.logits(last)[source]
        if cut is not None:  # a beginning's keys and values are its text's; what comes after it there is hidden
            self.prompts = self.prompts.index_select(2, text)
        self._group()
        self._look()

    def _prefill(self, prompts: Sequence[Sequence[int]], first: int) -> Tensor:
        """Read some prompts, numbered from `first`; their states [p, width, D], of no account at padding."""
        decoder = self.decoder
        ids = pad_rows(prompts, 0, "right")[0].to(decoder.device)
        size, width = ids.shape

        def attend(layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
            pair = keys_values.view(size, width, 2, -1, decoder.size).permute(2, 0, 3, 1, 4)
            self.prompts[layer, :, first : first + size, :, :width] = pair
            keys, values = pair
            read = F.scaled_dot_product_attention(
                queries.view(size, width, -1, decoder.size).transpose(1, 2),
                keys,
                values,
                is_causal=True,  # padding is on the right, where no token of the prompt looks
                scale=1.0,
                enable_gqa=decoder.query_heads != decoder.key_heads,
            )
            return read.transpose(1, 2).flatten(2).flatten(0, 1)

        self.prompts[:, :, first : first + size, :, width:] = 0  # of shorter prompts than others: hidden, but finite
        turn = self.turns[:width].repeat(size, 1, 1)
        return decoder.states(ids.flatten(), turn, attend).view(size, width, -1)

    def next(self, token: Tensor) -> Tensor:
        """Logits [n, V] float32 after one more token [n] of each row."""
        turn = self.turns.index_select(0, self.position)
        self.position = self.position + 1
        self.end += 1
        return self.decoder.logits(self.decoder.states(token, turn, self._attend))

    def _attend(self, layer: int, queries: Tensor, keys_values: Tensor) -> Tensor:
        """One query a row and head over the row's prompt and response: plain products, which beat fused kernels here.

        A slot is a row and a head of keys; the slots of one prompt and head make one product.
        """
        n, size, end, width = queries.shape[0], self.decoder.size, self.end, self.width
        prompt_keys, prompt_values, keys, values, store = self.views[layer]
        store[:, :, :, end - 1] = keys_values.view(n, 2, -1, size).transpose(0, 1)
        queries = queries.reshape(keys.shape[0], -1)
        grouped = queries.index_select(0, self.slots).view(prompt_keys.shape[0], -1, size)
        asked = _product(grouped, prompt_keys.transpose(1, 2))
        if self.padding is not None:
            asked.view(self.padding.shape[0], -1, width).add_(self.padding)
        asked = asked.view(self.slots.shape[0], -1).index_select(0, self.slot).view(keys.shape[0], -1, width)
        said = _product(queries.view(keys.shape[0], -1, size), keys[:, :end].transpose(1, 2))
        shares = torch.cat([asked, said], -1).softmax(-1)
        asked, said = shares[..., :width], shares[..., width:]
        grouped = asked.index_select(0, self.slots).view(prompt_keys.shape[0], -1, width)
        read = _product(grouped, prompt_values).view(self.slots.shape[0], -1).index_select(0, self.slot)
        return _product(said, values[:, :end]).view(n, -1).add_(read.view(n, -1))

    def keep(self, alive: Tensor) -> Tensor:
        """Let rows go that are not `alive` [n]; return which rows stay [m], in their new order."""
        order = _close_ranks(self.responses[..., : self.end, :], alive)
        self.position, self.source = self.position[order], self.source[order]
        self.slot = self.slot.view(len(alive), -1)[order].flatten()
        if len(self.slots) > 2 * len(self.slot):
            self._group()
        self._look()
        return order

    def _group(self) -> None:
        """Let prompts go that no row has any more, and give each row a slot among those of its prompt."""
        asked = torch.zeros(self.prompts.shape[2], dtype=torch.bool, device=self.source.device)
        asked[self.source] = True
        order = _close_ranks(self.prompts, asked)
        self.prompts = self.prompts[:, :, : len(order)]
        self.padding = None if self.padding is None else self.padding[order]
        number = torch.empty_like(asked, dtype=torch.long)
        number[order] = torch.arange(len(order), device=order.device)
        self.source = number[self.source]
        counted = F.one_hot(self.source, len(order)).cumsum(0)  # [n, P]: rows of each prompt so far
        rank = counted.gather(1, self.source[:, None]) - 1
        largest, heads = int(counted[-1].max()), self.decoder.key_heads
        head = torch.arange(heads, device=order.device)
        self.slot = ((self.source[:, None] * heads + head) * largest + rank).flatten()
        self.slots = self.slot.new_zeros(len(order) * heads * largest)

    def _look(self) -> None:
        """Views of each layer's caches, and which row and head each slot belongs to."""
        n = len(self.source)
        self.slots.zero_()  # an empty slot does the first row's work once more
        self.slots[self.slot] = torch.arange(len(self.slot), device=self.slot.device)
        self.views = [
            (*prompt.flatten(1, 2), *response.flatten(1, 2), response)
            for prompt, response in zip(self.prompts, self.responses[:, :, :n], strict=True)
        ]


def _close_ranks(cache: Tensor, alive: Tensor) -> Tensor:
    """Move entries of a cache [L, 2, n, ...] from its end to the places of those not `alive` [n]; return who stays."""
    count = int(alive.sum())
    order = torch.arange(count, device=alive.device)
    free = (~alive[:count]).nonzero()[:, 0]
    order[free] = alive[count:].nonzero()[:, 0] + count
    for place, late in zip(free.tolist(), order[free].tolist(), strict=True):
        cache[:, :, place] = cache[:, :, late]
    return order


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Batched x [b, m, k] times y [b, k, n]."""
    if x.shape[1] == 1 and x.dtype is torch.float32 and x.device.type == "cpu" and onednn_pays():
        # of one row NumPy's BLAS makes up to twice the speed of MKL, where that takes AVX2 kernels (measured)
        return torch.from_numpy(np.matmul(x.numpy(), y.numpy()))
    return torch.bmm(x, y)
