"""Fast forms of what is written plainly elsewhere: with none of them every result is the same but for rounding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

ENABLED = os.environ.get("POLYRL_KERNELS", "on") != "off"
"""Whether fast forms are used: `POLYRL_KERNELS=off` computes everything in the plain way."""


@contextmanager
def plain() -> Iterator[None]:
    """Compute in the plain way within: fast passes give first derivatives only, plain ones any."""
    global ENABLED
    before, ENABLED = ENABLED, False
    try:
        yield
    finally:
        ENABLED = before
