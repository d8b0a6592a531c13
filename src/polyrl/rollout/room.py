"""How many responses are sampled at a time: as many as a device's free memory has room for."""

from __future__ import annotations

import torch

from polyrl.models.language.policy import LanguagePolicy

ROWS = 256
"""Where free memory is not known, as on the CPU: more are no faster there."""
MOST_ROWS = 4096
"""More than a GPU needs to be busy."""
SHARE = 0.5
"""Of the free memory that rows may take: a cache grows by copies, and training needs room behind it."""
DRAWING = 4
"""Copies of the logits that drawing a token makes."""


def rows_that_fit(free: int, each: int) -> int:
    """A power of two of rows with `each` bytes in a share of `free` ones, so that small changes of it change nothing.

    At least 1, at most `MOST_ROWS`.
    """
    fitting = int(free * SHARE) // each
    return min(MOST_ROWS, 1 << max(0, fitting.bit_length() - 1))


@torch.no_grad()
def row_bytes(policy: LanguagePolicy, length: int) -> int:
    """Bytes of a row of `length` tokens while it is sampled: keys and values of all layers, and its logits.

    A token is read to find out, for families keep different things. Under autocast keys and values are bfloat16.
    """
    cache = policy.empty_cache()
    place = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with policy.autocast():
        policy.read(place, None, place, cache)
    kept: int = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    vocabulary = int(policy.causal_lm.get_input_embeddings().weight.shape[0])
    return kept * length + DRAWING * 4 * vocabulary
