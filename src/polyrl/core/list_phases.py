"""Phases of a list of updates: which one a run is in, and with what it begins."""

from __future__ import annotations

from collections.abc import Sequence

from polyrl.core.context import Context
from polyrl.core.update import Phase, Step


def phase_of(updates: Sequence[Step], context: Context) -> Phase | None:
    """The phase that the run is in, by the optimizer steps that it has taken; None where the list has none."""
    phases = [step for step in updates if isinstance(step, Phase)]
    taken = context.spent.updates
    for phase in phases[:-1]:
        if taken < phase.optimizer_steps:
            return phase
        taken -= phase.optimizer_steps
    return phases[-1] if phases else None


def begin(phase: Phase | None, updates: Sequence[Step], context: Context) -> None:
    """Where a phase has just begun, forget what the optimizers know that it begins without."""
    phases = [step for step in updates if isinstance(step, Phase)]
    if phase is None or not any(p.reset for p in phases):
        return
    memory, number = context.memory("phases"), phases.index(phase)
    if memory.get("began", 0) != number:
        for name in phase.reset:
            context.optimizer[name].state.clear()
    memory["began"] = number
