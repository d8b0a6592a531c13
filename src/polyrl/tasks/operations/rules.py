"""The classical ordering rules, as functions of inventories `[B, N, slots]` and levels: orders `[B, N]` in units.

The *position* of a location is what it has on hand and on order.
"""

from __future__ import annotations

import torch
from torch import Tensor


def base_stock(inventory: Tensor, level: Tensor) -> Tensor:
    """Order what the position lacks of a level S: q = (S - position)+; `level` broadcasts to `[B, N]`."""
    return (level - inventory.sum(-1)).clamp(min=0)


def capped_base_stock(inventory: Tensor, level: Tensor, cap: Tensor) -> Tensor:
    """Order up to S, but never more than a cap: q = min((S - position)+, cap); both broadcast to `[B, N]`."""
    return torch.minimum(base_stock(inventory, level), cap)


def reorder_point(inventory: Tensor, reorder: Tensor, level: Tensor) -> Tensor:
    """(s, S): once the position is at or below s, order up to S; both broadcast to `[B, N]`."""
    wanted = base_stock(inventory, level)
    return torch.where(inventory.sum(-1) <= reorder, wanted, torch.zeros_like(wanted))
