"""Random streams that need no saved state: each is a pure function of (seed, what it is for, iteration).

A resumed run draws the same numbers as one that was never interrupted, because nothing has to be remembered.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream called `names` of a run's `seed`."""
    text = "/".join(str(n) for n in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a fresh CPU generator for the stream called `names` of a run's `seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))
