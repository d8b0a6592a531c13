"""Derived fields: facts and no choices, measured by a part that a recipe puts in where such a field is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from polyrl.core.part import Part

DERIVED = {
    "entropy_at_collection": "polyrl.parts.select:EntropyAtCollection",
    "next_observation": "polyrl.parts.replayed:NextObservation",
    "ref_logprob": "polyrl.parts.score:ReferenceLogprob",
    "turn": "polyrl.parts.tools:Turns",
    "value": "polyrl.parts.credit:Values",
    "weight": "polyrl.parts.select:AllSteps",
}
"""Field -> module and class of the part that measures it; what one paper alone derives is in its parts' `derives`."""


def measuring(name: str, parts: Iterable[Part]) -> type[Part] | None:
    """The part that measures the field `name`, of these parts' own or of the table; None where nothing derives it."""
    for part in parts:
        for own in part.derives:
            if name in own.gives:
                return own
    if name not in DERIVED:
        return None
    module, _, found = DERIVED[name].partition(":")
    kind: type[Part] = vars(importlib.import_module(module))[found]
    return kind
