"""Rows that are no ordinary responses: what kinds there are, what a part does with each, and which rows count.

Four kinds come from where experience comes from: a response that goes on next iteration is **unfinished** (windowed
rollouts), a **greedy** twin is a baseline, a row is **masked** where the policy chose no step of it, and **unpaid**
where its reward failed, so that its score is NaN. A fifth comes from selection: all steps of an **unselected** row have
weight 0. Statistics, spreads, averages and penalties take their rows from the functions below and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from polyrl.core.experience import Experience

Use = Literal["left out", "alone", "counted", "none"]

USES: Mapping[Use, str] = {
    "left out": "nothing is done to such a row but that its weight may become 0, and it enters nothing",
    "alone": "such a row gets what any other would, and enters nothing that is computed of others",
    "counted": "such a row enters what is computed of others",
    "none": "no such row can reach the part",
}
"""What a part may do with a kind of row."""


@dataclass(frozen=True, kw_only=True)
class SpecialRows:
    """What a part does with the rows that are no ordinary responses; see `USES`.

    Whatever it says, steps of an ordinary row that the policy did not choose (a tool's words, padding) enter nothing.
    """

    unfinished: Use
    greedy: Use
    masked: Use
    unpaid: Use
    unselected: Use = "left out"

    def uses(self) -> dict[str, Use]:
        """Kind of row -> what is done with it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


LEFT_OUT = SpecialRows(unfinished="left out", greedy="left out", masked="left out", unpaid="left out")
"""Of parts that compare responses: only whole ones that were sampled and paid are compared."""
ALONE = SpecialRows(unfinished="alone", greedy="alone", masked="alone", unpaid="alone", unselected="alone")
"""Of parts that look at one row at a time."""
PAID_AT_THE_END = SpecialRows(unfinished="left out", greedy="alone", masked="alone", unpaid="alone")
"""Of parts that change a response's score: what goes on has none yet."""
NO_SPECIAL_ROWS = SpecialRows(unfinished="none", greedy="none", masked="none", unpaid="none", unselected="none")
"""Of parts of exact methods: a row is an answer of a game or an episode of a finite MDP."""


def finished_rows(experience: Experience) -> Tensor:
    """Rows that are complete, `[B]` bool: all but those that windowed rollouts go on with."""
    if "finished" in experience:
        return experience["finished"]
    found: Tensor = experience["mask"].any(1) | True
    return found


def sampled_rows(experience: Experience) -> Tensor:
    """Rows in which the policy sampled a step and whose reward, if there is one, did not fail, `[B]` bool."""
    found: Tensor = experience["mask"].any(1)
    if "greedy" in experience:
        found = found & ~experience["greedy"]
    if "score" in experience:
        found = found & ~experience["score"].isnan()
    return found


def scored_rows(experience: Experience) -> Tensor:
    """Rows that may be judged as whole responses, `[B]` bool: sampled and finished."""
    return sampled_rows(experience) & finished_rows(experience)


def sampled_steps(experience: Experience) -> Tensor:
    """Steps that the policy sampled in this iteration and may learn from, `[B, T]` bool: of windows the new ones."""
    found = experience["mask"] & sampled_rows(experience)[:, None]
    return found & experience["window"] if "window" in experience else found
