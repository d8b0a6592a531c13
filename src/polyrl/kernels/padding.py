"""Rows of token ids as one padded table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PaddingSide = Literal["left", "right"]


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: PaddingSide) -> tuple[Tensor, Tensor]:
    """Return token ids [B, L] int64 padded on that side to the longest row, and [B, L] bool, true where real."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = True
    return ids, mask
