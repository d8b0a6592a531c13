"""A policy class as a value: finitely many deterministic policies, and what of their structure is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyrl.errors import UserError

Petal = tuple[int, int]
"""A layer and a state, both from 0."""


@dataclass(frozen=True, eq=False)
class PolicyClass:
    """Finitely many deterministic policies, and a sunflower of theirs (arXiv:2310.06113).

    A sunflower has a core of K policies, and for each policy at most D petals, so that whatever a policy does from any
    layer on is what some core policy does there, or meets a petal on the way. Every class has the one whose core is the
    class itself, without petals.

    Attributes:
        policies: the action of each policy in each layer and state, `[N, L, S]` int64; `[N, S]` for every layer.
        core: the same of the core `[K, L, S]`; none is the class itself.
        petals: of each policy its petals; empty is none of any.
    """

    policies: Any
    core: Any = None
    petals: Sequence[Sequence[Petal]] = ()

    def checked(self, shape: tuple[int, int, int]) -> PolicyClass:
        """The class for a problem of L layers, S states and A actions, its arrays as tensors with every layer.

        Raises:
            UserError: shapes that do not fit, or actions that there are not.
        """
        policies = _actions("policies", self.policies, shape)
        core = policies if self.core is None else _actions("core policies", self.core, shape)
        if self.petals and len(self.petals) != len(policies):
            raise UserError(f"There are {len(policies)} policies in the class, and petals for {len(self.petals)}.")
        layers, states, _ = shape
        for h, s in (petal for petals in self.petals for petal in petals):
            if not (0 <= h < layers and 0 <= s < states):
                raise UserError(f"The petal ({h}, {s}) is none of {layers} layers and {states} states.")
        petals = tuple(tuple(sorted(of)) for of in self.petals) or ((),) * len(policies)
        return PolicyClass(policies, core, petals)

    def __len__(self) -> int:
        return len(self.policies)


def _actions(name: str, given: Any, shape: tuple[int, int, int]) -> Tensor:
    layers, states, actions = shape
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"The {name} of the class cannot be read as an array of actions.") from None
    if found.dim() == 2:
        found = found[:, None].expand(-1, layers, -1)
    if tuple(found.shape[1:]) != (layers, states) or not len(found):
        raise UserError(
            f"The {name} of the class have the shape {[*found.shape]} but must be [N, {layers}, {states}], an action "
            "for each layer and state, of one policy at least."
        )
    whole = found.long()
    if not bool((whole == found).all()) or int(whole.min()) < 0 or int(whole.max()) >= actions:
        raise UserError(f"The {name} of the class take actions that are none of the {actions}, which count from 0.")
    return whole.contiguous()


def constant(shape: tuple[int, int, int]) -> PolicyClass:
    """The class that is taken where a problem states none: one action everywhere, for each action."""
    layers, states, actions = shape
    every = torch.arange(actions)[:, None, None].expand(-1, layers, states)
    return PolicyClass(every).checked(shape)
