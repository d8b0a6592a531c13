"""Garbage-tail: preferences over a few hundred answers, shared features, and a tail of answers that no pair speaks of.

What pairs teach about features moves answers outside the data too. There the gold is bad, so a policy that goes far for
its pairs' sake gathers mass on the tail: over-optimization, in a world where gold, KL and every probability are
computed (after the toy problems of arXiv:2406.02900, 2405.16436 and 2406.01462, whose own sizes are not told).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.tasks.language.tabled import STEP, TabledTask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.tasks.language.tables import AnswerTables


@dataclass
class GarbageTail(TabledTask):
    """Choose one of `actions` answers. The first `covered` of them make up the data and are what pairs are drawn from.

    The start finds them equally likely, and the others, with `tail_mass` in all, too. Each has `width` features
    N(0, 1 / width); the policy is ref(a) exp(theta . phi(a)) / Z. Gold in the data is w . phi(a) / s + `noise` N(0, 1),
    standardized, so the start's gold is known: `tail_mass` times `tail_gold`. Pairs are two answers of the data,
    labelled by Bradley-Terry on their gold. With `benign` the tail's gold is made like the others', and the control is
    a world in which nothing bad waits outside the data.
    """

    actions: int = 2000
    covered: int = 400
    width: int = 16
    tail_mass: float = 0.05
    tail_gold: float = -2.0
    benign: bool = False
    noise: float = 0.5

    name = "garbage-tail"
    max_tokens = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        wrong = {
            "covered": not 2 <= self.covered <= self.actions,
            "width": self.width < 1,
            "pairs": self.pairs < 1,
            "tail_mass": not 0 <= self.tail_mass < 1 or (self.tail_mass > 0) != (self.covered < self.actions),
            "tail_gold": not math.isfinite(self.tail_gold),
            "noise": not 0 <= self.noise < math.inf,
        }
        if bad := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise UserError(
                f"The task {self.name} has {bad[0]}={vars(self)[bad[0]]}; it needs at least 2 covered answers and no "
                "more than there are, a width and pairs of at least 1, a tail_mass from 0 to 1 that is 0 exactly where "
                "all answers are covered, and a tail_gold and a noise of at least 0 that are finite numbers."
            )
        super().__post_init__()

    def lines(self) -> dict[str, float]:
        """Return the start's gold, which is known where the tail's is."""
        return {} if self.benign else {"the start": self.tail_mass * self.tail_gold}

    def _normal(self, what: str, *shape: int) -> Tensor:
        import torch

        stream = self.stream(what, self.actions, self.covered, self.width)
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    def make_tables(self) -> AnswerTables:
        """One state, a token for each answer."""
        import torch

        from polyrl.tasks.language.tables import ENDS, AnswerTables

        phi = self._normal("features", self.actions, self.width) / math.sqrt(self.width)
        told = phi @ self._normal("taste", self.width)
        known = slice(0, self.covered)
        raw = told / told[known].std(correction=0) + self.noise * self._normal("noise", self.actions)
        gold = (raw - raw[known].mean()) / raw[known].std(correction=0)
        tail = self.actions - self.covered
        if not self.benign:
            gold[self.covered :] = self.tail_gold
        mass = torch.full((self.actions,), (1 - self.tail_mass) / self.covered, dtype=torch.float64)
        if tail:
            mass[self.covered :] = self.tail_mass / tail
        return AnswerTables(
            tokens=tuple(f"a{i}" for i in range(self.actions)),
            log_reference=mass.log()[None],
            features=STEP * phi[None],
            gold=gold[None],
            following=torch.full((1, self.actions), ENDS),
            seen=torch.arange(self.covered)[:, None],
        )

    def couples(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return two different answers of the data each, `[count, 1]`."""
        import torch

        first = torch.randint(self.covered, (count, 1), generator=stream)
        return first, (first + torch.randint(1, self.covered, (count, 1), generator=stream)) % self.covered
