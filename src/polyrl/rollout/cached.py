"""Decoding by a model's own forward pass, with a key-value cache of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from polyrl.kernels.padding import pad_rows
from polyrl.models.language.families import side
from polyrl.models.language.policy import LanguagePolicy


class Cached:
    """Rows that are being decoded by the model's own forward pass, with a key-value cache of transformers."""

    def __init__(self, policy: LanguagePolicy, prompts: list[tuple[int, ...]], source: Tensor, room: int):
        self.policy = policy
        device = policy.device
        ids, real = (t.to(device) for t in pad_rows(prompts, policy.pad_id, "left"))
        self.cache = _new_cache(policy.causal_lm, room=room)
        self.selectable = _selectable(self.cache)
        if not self.selectable:  # then every row reads its own prompt and stays to the end
            ids, real, source = ids[source], real[source], torch.arange(len(source), device=device)
        ragged = not bool(real.all())
        position = (real.cumsum(1) - 1).clamp(min=0)
        self.length = ids.shape[1]
        logits = self._forward(ids, real.long() if ragged else None, position)
        if self.selectable:
            self.cache.reorder_cache(source)
        self.logits, self.position = logits[source], position[source, -1:]
        self.seen = pad(real[source].long(), (0, room), value=1) if ragged else None

    def _forward(self, ids: Tensor, mask: Tensor | None, position: Tensor) -> Tensor:
        return self.policy.next_logits(ids, attention_mask=mask, position_ids=position, cache=self.cache)

    def next(self, token: Tensor) -> Tensor:
        """Logits [n, V] float32 after one more token [n] of each row."""
        self.position = self.position + 1
        self.length += 1
        return self._forward(token[:, None], None if self.seen is None else self.seen[:, : self.length], self.position)

    def keep(self, alive: Tensor) -> Tensor:
        """Let rows go that are not `alive` [n]; return which rows stay [m]."""
        order = alive.nonzero()[:, 0]
        self.cache.reorder_cache(order)
        self.position = self.position[order]
        self.seen = None if self.seen is None else self.seen[order]
        return order


class Switching:
    """Rows of a model whose RoPE changes with the length of the text: those on each side of a switch are read apart.

    A row that crosses it is read anew, as the model would read its text by itself: its keys were turned otherwise.
    """

    def __init__(self, policy: LanguagePolicy, prompts: list[tuple[int, ...]], source: Tensor, room: int):
        """Row i of [n] answers `prompts[source[i]]` with at most `room` tokens."""
        self.policy, self.room = policy, room
        self.texts = [list(prompts[i]) for i in source.tolist()]
        self.parts: list[tuple[Tensor, Cached]] = []
        """Rows [m] int64 that are decoded together, all on one side."""
        read = self._read(list(range(len(self.texts))))
        self.logits = torch.cat([part.logits for _, part in read])[torch.cat([rows for rows, _ in read]).argsort()]
        self.selectable = all(part.selectable for _, part in read)

    def _side(self, length: int) -> int:
        return int(side(torch.tensor(length), self.policy.rope_switches))

    def _read(self, rows: list[int]) -> list[tuple[Tensor, Cached]]:
        """Read the texts of some rows as new parts, and give these."""
        sides: dict[int, list[int]] = {}
        for row in rows:
            sides.setdefault(self._side(len(self.texts[row])), []).append(row)
        device, found = self.policy.device, []
        for together in sides.values():
            number: dict[tuple[int, ...], int] = {}
            source = [number.setdefault(tuple(self.texts[row]), len(number)) for row in together]
            part = Cached(self.policy, list(number), torch.tensor(source, device=device), self.room)
            found.append((torch.tensor(together, device=device), part))
        self.parts += found
        return found

    def next(self, token: Tensor) -> Tensor:
        """Logits [n, V] float32 after one more token [n] of each row."""
        crossed = torch.zeros(len(self.texts), dtype=torch.bool, device=token.device)
        for row, more in enumerate(token.tolist()):
            text = self.texts[row]
            text.append(more)
            crossed[row] = self._side(len(text)) != self._side(len(text) - 1)
        logits, parts, anew = torch.empty_like(self.logits), self.parts, list[int]()
        self.parts = []
        for rows, part in parts:
            gone = crossed[rows]
            if bool(gone.all()) or (bool(gone.any()) and not part.selectable):
                anew += rows.tolist()
                continue
            if bool(gone.any()):
                anew += rows[gone].tolist()
                rows = rows[part.keep(~gone)]
            logits[rows] = part.next(token[rows])
            self.parts.append((rows, part))
        for rows, part in self._read(anew):
            logits[rows] = part.logits
        self.logits = logits
        return logits

    def keep(self, alive: Tensor) -> Tensor:
        """Let rows go that are not `alive` [n]; return which rows stay [m]."""
        order = alive.nonzero()[:, 0]
        number = alive.cumsum(0) - 1
        parts, self.parts = self.parts, []
        for rows, part in parts:
            if bool(alive[rows].any()):
                self.parts.append((number[rows[part.keep(alive[rows])]], part))
        self.texts = [self.texts[row] for row in order.tolist()]
        self.logits = self.logits[order]
        return order


def read_plainly(policy: LanguagePolicy, prompts: list[tuple[int, ...]], source: Tensor, room: int) -> Plain:
    """Read distinct prompts by the model's own forward pass; row i of [n] answers `prompts[source[i]]`."""
    crosses = policy.changes_rope(max(len(prompt) for prompt in prompts) + room)
    return (Switching if crosses else Cached)(policy, prompts, source, room)


class Cut(Cached):
    """Rows that go on from beginnings of texts, each text read once by the model's own forward pass.

    The last token of each beginning is read once more: its logits are needed, and a forward pass gives the last ones.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        texts: Sequence[Sequence[int]],
        text: Tensor,
        length: Tensor,
        source: Tensor,
        room: int,
    ):
        """Row i of [n] goes on from the first `length[j]` tokens of `texts[text[j]]`, where j is `source[i]`."""
        self.policy = policy
        self.cache = _new_cache(policy.causal_lm, room=room + 1)
        self.selectable = True
        # padded on the right, where no token of a text looks
        ids = pad_rows(texts, policy.pad_id, "right")[0].to(policy.device)
        place = torch.arange(ids.shape[1], device=policy.device)
        self._forward(ids, None, place.expand(len(ids), -1))
        self.cache.reorder_cache(text)
        self.length, self.position = ids.shape[1], length[:, None] - 2
        self.seen = pad((place < length[:, None] - 1).long(), (0, room + 1), value=1)
        logits = self.next(ids[text, length - 1])
        self.cache.reorder_cache(source)
        self.logits, self.position, self.seen = logits[source], self.position[source], self.seen[source]


Plain = Cached | Switching
"""Rows that are decoded by the model's own forward pass."""


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
