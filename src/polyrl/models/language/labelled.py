"""Responses that are labelled good or bad, as rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polyrl.core.experience import Experience
from polyrl.models.language.responses import GivenResponses


class LabelledResponses(GivenResponses):
    """Labelled responses of one split; their rows have a `label`, true or false."""

    def some(self, most: int) -> list[int]:
        """Numbers of `most` responses, the first ones of each kind, as many as its share, and at least one of each."""
        kinds = [[n for n, row in enumerate(self.rows) if row["label"] == kind] for kind in (True, False)]
        if most >= len(self):
            return list(range(len(self)))
        good = min(max(round(most * len(kinds[0]) / len(self)), 1), max(most - 1, 1))
        return sorted([*kinds[0][:good], *kinds[1][: max(most - good, 1)]])

    def batch(self, numbers: Sequence[int]) -> Experience:
        """The responses of these numbers, as `GivenResponses.batch`, and `desirable` [B]."""
        desirable = torch.tensor([bool(self.rows[n]["label"]) for n in numbers], dtype=torch.bool)
        return super().batch(numbers).with_fields(desirable=desirable)
