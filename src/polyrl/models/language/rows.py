"""Rows of a batch as a model reads them: prompt and response joined, without the padding stored between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.kernels.padding import PaddingSide, pad_rows
from polyrl.runtime.ranks import present

Index = Tensor | Sequence[int]


@dataclass(frozen=True)
class Layout:
    """Rows as a model reads them. `b` rows, `L` tokens in the longest one, `T` response columns of the batch."""

    input_ids: Tensor
    """[b, L] int64, prompt and response without a gap."""
    attention_mask: Tensor | None
    """[b, L] int64, or None where causal attention alone hides the padding."""
    position_ids: Tensor
    """[b, L] int64, 0 at each row's first token."""
    place: Tensor
    """[b, T] int64, where each response token lies in `input_ids` (0 where there is none).

    `place - 1` is the position that predicts the token: the state before the action.
    """

    def beginning(self, rows: Tensor, width: int) -> Layout:
        """The first `width` tokens of some rows `[m]` int64, of a layout that is padded on the right."""
        if self.attention_mask is not None:
            raise ValueError("rows that are padded on the left do not begin at their first token")
        return Layout(self.input_ids[rows, :width], None, self.position_ids[rows, :width], self.place[rows])


def lay_out(
    experience: Experience, pad_id: int, rows: Index | None = None, *, padding_side: PaddingSide = "right"
) -> Layout:
    """Join `prompt_ids` and `action` of the rows, padded to the longest. Errors: ValueError on an empty prompt."""
    names = ("prompt_ids", "prompt_mask", "action", "present")
    prompt, prompt_mask, action, present = (take(experience[name], rows) for name in names)
    ids, real = torch.cat([prompt, action], 1), torch.cat([prompt_mask, present], 1)
    check_prompts(prompt_mask)
    length = real.sum(1, keepdim=True)
    longest = int(length.max())
    place = real.cumsum(1) - 1
    if padding_side == "left":
        place = place + (longest - length)
    row, column = real.nonzero(as_tuple=True)
    input_ids = ids.new_full((len(ids), longest), pad_id)
    input_ids[row, place[row, column]] = ids[row, column]
    position = torch.arange(longest, device=ids.device).expand(len(ids), -1)
    mask = None
    if padding_side == "left":
        position = (position - (longest - length)).clamp(min=0)
        mask = (torch.arange(longest, device=ids.device) >= longest - length).long()
    return Layout(input_ids, mask, position, place[:, prompt.shape[1] :].masked_fill(~present, 0))


def check_prompts(prompt_mask: Tensor) -> None:
    """Refuse a batch with an empty prompt in `prompt_mask` [B, P]: nothing would precede its first action."""
    if not bool(prompt_mask.any(1).all()):
        raise ValueError("a row has an empty prompt: nothing predicts its first response token")


def as_experience(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int) -> Experience:
    """Make a batch of given token ids, every response token counted in `mask`, temperature 1, each row its own group.

    For data that no policy sampled: demonstrations, preference pairs. Fields: prompt_ids, prompt_mask, action, present,
    mask, temperature, group.
    """
    prompt_ids, prompt_mask = pad_rows(prompts, pad_id, "left")
    action, present = pad_rows(responses, pad_id, "right")
    size = len(prompt_ids)
    return Experience(
        {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "action": action,
            "present": present,
            "mask": present.clone(),
            "temperature": torch.ones(size),
            "group": torch.arange(size),
        }
    )


def micro_batches(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Split rows of `lengths` [B] (prompt plus response tokens) into groups of at most `max_tokens` padded tokens.

    Rows of similar length share a group and the longest come first, so that memory peaks at once. A row longer than
    `max_tokens` is a group of its own. Returns row indices, int64; every row is in exactly one group.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    groups, start = [], 0
    for _ in range(len(order)):
        if start == len(order):
            break
        longest = max(1, int(lengths[order[start]]))
        size = max(1, max_tokens // longest)
        groups.append(order[start : start + size])
        start += len(groups[-1])
    return groups


PREFIX_COST = 1 / 8
"""Memory of a prompt's keys and values, that a response is read after, against that of a token that is read."""


def micro_batches_of(
    experience: Experience, max_tokens: int, grouped_by: str = "", chunk: Tensor | None = None
) -> list[Tensor]:
    """`micro_batches` of the rows of a batch; rows with equal `experience[grouped_by]` stay together.

    Units of several rows count with the tokens of all of them, and one that is longer than `max_tokens` is by itself.
    Where prompts are shared, `chunk` [B] says which rows' prompts are read together: the chunks come one after another,
    and prompts count for the room of their keys and values. Where a run has several processes, they are so small that
    each has one.
    """
    prompt, response = experience["prompt_mask"].sum(1), experience["present"].sum(1)
    lengths = prompt + response if chunk is None else (PREFIX_COST * prompt).long() + response
    unit = torch.arange(len(lengths))
    if grouped_by:
        unit = torch.unique(experience[grouped_by], return_inverse=True)[1]
    units = int(unit.max()) + 1 if len(unit) else 0
    longest = lengths.new_zeros(units).scatter_reduce(0, unit, lengths, "amax")
    size = longest * torch.bincount(unit, minlength=units)
    # a unit whose rows lie in several chunks goes with the first
    first = torch.full((units,), len(lengths)).scatter_reduce(
        0, unit, torch.zeros_like(unit) if chunk is None else chunk, "amin"
    )
    if (count := present().count) > 1:  # so that each has something to compute
        max_tokens = min(max_tokens, -(-int(size.sum()) // count))
    groups = []
    for number in sorted(set(first.tolist())):
        among = (first == number).nonzero()[:, 0]
        groups += [torch.isin(unit, among[picked]).nonzero()[:, 0] for picked in micro_batches(size[among], max_tokens)]
    return groups


def take(value: Tensor, rows: Index | None) -> Tensor:
    """The given rows [b, ...] of a tensor [B, ...], or all of it."""
    return value if rows is None else value[torch.as_tensor(rows, dtype=torch.long, device=value.device)]


def to_device(layout: Layout, device: torch.device) -> Layout:
    """The layout on a device."""
    mask = None if layout.attention_mask is None else layout.attention_mask.to(device)
    return Layout(layout.input_ids.to(device), mask, layout.position_ids.to(device), layout.place.to(device))
