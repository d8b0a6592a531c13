"""Fast forms of what is written plainly elsewhere: with none of them every result is the same but for rounding."""

from __future__ import annotations

import os

ENABLED = os.environ.get("POLYRL_KERNELS", "on") != "off"
"""Whether fast forms are used: `POLYRL_KERNELS=off` computes everything in the plain way."""
