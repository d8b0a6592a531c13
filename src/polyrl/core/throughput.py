"""How fast a run is: tokens or steps per second, and the share of what the machine's matrix products could do.

The work is counted from shapes: what the method needs, whatever the implementation does. A prompt that several
responses share is read once, and padding is no work; so a share says how far a run is from the best that this machine
can.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from polyrl.core.part import STAGES

if TYPE_CHECKING:
    pass

COUNTED = ("tokens", "steps", "queries", "samples", "updates")
"""What speed is counted in: the first of them that a run has any of."""


# ------------------------------------------------------------------------------------------------- per second


def throughput(
    seconds: Mapping[str, float], spent: Mapping[str, float], sampled: Collection[str] = ("collect",)
) -> dict[str, Any]:
    """Speed of a run in collecting and overall.

    Args:
        seconds: wall time by stage; what is no stage (evaluation, checkpoints) does not count.
        spent: counts since the start of the run, as `polyrl.runtime.budget.Spent` has them.
        sampled: stages in which they were collected: not collect alone, where credit goes on from states.

    Returns:
        "unit" ("tokens", "steps", "queries", "samples" or "updates"), and per second "collect" and "overall"; a number
        is missing where there is nothing to divide by, or nothing was collected.
    """
    unit = next((name for name in COUNTED if spent.get(name)), "samples")
    stages = {"overall": STAGES} if unit == "updates" else {"collect": sampled, "overall": STAGES}
    times = {name: sum(seconds.get(stage, 0.0) for stage in counted) for name, counted in stages.items()}
    return {"unit": unit, **{name: spent[unit] / took for name, took in times.items() if took > 0}}
