"""What acts with a coarse code, of which a decoder makes what the environment is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import Diverged
from polyrl.models.actor import Actor, DistributionActor, Moment, Player
from polyrl.models.control import ControlPolicy
from polyrl.models.graph import Node

Decode = Callable[[Tensor, Tensor], Tensor]
"""Codes of ranks `[B, L]` in [-1, 1] of codes `[B, d]` in (-1, 1) and noise `[B, L]`."""


class Expander(DistributionActor):
    """Acts with a code before its tanh, and the noise that it is expanded from; likelihoods are of the code alone.

    Evaluations take the most probable code, with noise of a stream that begins anew with each.
    """

    is_policy = True

    def __init__(self, policy: ControlPolicy, numbers: int, decode: Decode):
        super().__init__(policy)
        (self.code,), self.numbers, self.decode = self.action_shape, numbers, decode
        self.action_shape, self.executed_shape = (self.code + numbers,), (numbers,)
        self.execute = self.expanded

    def expanded(self, action: NDArray[Any]) -> NDArray[Any]:
        """Codes of ranks `[B, L]` of codes and noise `[B, d + L]`.

        Raises:
            Diverged: they are not finite.
        """
        both = torch.from_numpy(action)
        with torch.no_grad():
            found: NDArray[Any] = self.decode(both[:, : self.code].tanh(), both[:, self.code :]).numpy()
        if not np.isfinite(found).all():
            raise Diverged("What the denoiser says is not finite; lower its learning rate.")
        return found

    def noise(self, steps: int, count: int, generator: torch.Generator) -> NDArray[Any]:
        """Of the code, and what chains begin with, `[steps, count, d + L]`."""
        code = super().noise(steps, count, generator)
        return np.concatenate([code, torch.randn((steps, count, self.numbers), generator=generator).numpy()], -1)

    def player(self) -> Player:
        """A code with its noise."""
        play, judging = super().player(), None

        def act(moment: Moment) -> NDArray[Any]:
            nonlocal judging
            whole = moment.noise
            if whole is None:
                judging = judging or torch.Generator().manual_seed(0)
                chain = torch.randn((len(moment.seen), self.numbers), generator=judging).numpy()
            else:
                moment.noise, chain = whole[:, : self.code], whole[:, self.code :]
            return np.concatenate([play(moment), chain], 1)

        return act

    def fields(self, records: Mapping[str, NDArray[Any]], action: Tensor) -> dict[str, Tensor]:
        """Of the code alone."""
        return super().fields(records, action[..., : self.code])

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Of the code alone."""
        return super().outputs(batch.with_fields(action=batch["action"][..., : self.code]), wants)

    def greedy(self, masked: bool) -> list[Node]:
        """Chains have no form that is exported."""
        return Actor.greedy(self, masked)
