"""Parts for finding the best of a policy class: which policies agree with what was done, and taking the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import OwnUpdate, See
from polyrl.models.finite import ClassValues
from polyrl.tasks.theory.finite import FiniteMDP


def agreeing(policies: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Whether each policy `[N, L, S]` takes the action of each step `[B, T]` in its state: `[N, B, T]` bool."""
    layer = batch["step"].clamp(max=policies.shape[1] - 1)
    found: Tensor = policies[:, layer, batch["state"]] == batch["action"]
    return found


def one_hot(policies: Tensor, actions: int) -> Tensor:
    """Deterministic policies `[..., S]` as probabilities `[..., S, A]`."""
    return torch.nn.functional.one_hot(policies, actions).double()


@dataclass(frozen=True)
class TakeBest(OwnUpdate):
    """Answer with the policy of the class whose estimated value is the largest, the first of equals.

    `class_error` is the largest distance of an estimated value from the exact one; it judges and is not acted by.
    """

    solves: ClassVar[str] = "finite"
    models: ClassVar[frozenset[str]] = frozenset({"values"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """Nothing, as long as nothing is known."""
        mdp: FiniteMDP = see.context.run_state.mdp
        values: ClassValues = see["values"]
        if bool(values.estimates.isnan().any()):
            return {}
        best = int(values.estimates.argmax())
        see[self.trains].assign(one_hot(mdp.policy_class.policies[best], mdp.shape[2]))
        error = float((values.estimates - mdp.class_worths).abs().max())
        return {"class_error": error, "best_of_class": best}


def trees_for(policies: int, error: float, failure: float = 0.1) -> int:
    """Trees after which all values of so many policies are within `error`, but for a chance of `failure`."""
    return math.ceil(math.log(2 * policies / failure) / (2 * error**2))
