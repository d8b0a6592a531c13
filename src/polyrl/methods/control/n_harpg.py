"""N-HARPG: HARPG whose steps have a given length, whatever the scale of the rewards."""

from __future__ import annotations

import dataclasses

from polyrl.methods.control import harpg
from polyrl.recipe import Recipe

SLUG = "n-harpg"
TITLE = "Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies"
PAPER = "arXiv:2302.01734"
YEAR = 2023
FORMULA = "HARPG with theta += gamma d / |d|, gamma_t = gamma_0 2 / (t + 2)"
TASK = "Pendulum-v1"


def recipe() -> Recipe:
    """HARPG with normalized steps."""
    return dataclasses.replace(harpg.recipe().set("normalized", "true").set("step_size", "0.1"), name=SLUG)
