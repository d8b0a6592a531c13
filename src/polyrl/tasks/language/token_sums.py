"""Token-sums: answers of several tokens whose gold is a sum, and a policy that can be anything at each place.

Nothing generalizes here and nothing is left out, so a loss on pairs is correctly specified: it shows what a weight for
each token does by itself, such as TGDPO's, where credit by whole answers already suffices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.tasks.language.tabled import STEP, TabledTask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.tasks.language.tables import AnswerTables


@dataclass
class TokenSums(TabledTask):
    """Write `length` tokens, each one of `choices`. The start draws them uniformly.

    Gold is a sum of one number N(0, 1) for each place and token, less its mean at the place, so the start's is 0. The
    policy has a number for each place and token. Pairs are two answers of the start, labelled by Bradley-Terry.
    """

    pairs: int = 300
    length: int = 8
    choices: int = 10

    name = "token-sums"

    def __post_init__(self) -> None:
        """Check the settings."""
        wrong = {"length": self.length < 1, "choices": self.choices < 2, "pairs": self.pairs < 1}
        if bad := [name for name, is_wrong in wrong.items() if is_wrong]:
            raise UserError(
                f"The task {self.name} has {bad[0]}={vars(self)[bad[0]]}; it needs a length and pairs of at least 1 "
                "and at least 2 choices."
            )
        self.max_tokens = self.length
        super().__post_init__()

    def lines(self) -> dict[str, float]:
        """Return the start's gold."""
        return {"the start": 0.0}

    def make_tables(self) -> AnswerTables:
        """A state for each place."""
        import torch

        from polyrl.tasks.language.tables import ENDS, AnswerTables

        shape = (self.length, self.choices)
        gold = torch.randn(*shape, generator=self.stream("gold", *shape), dtype=torch.float64)
        places = torch.arange(1, self.length + 1)
        places[-1] = ENDS
        return AnswerTables(
            tokens=tuple(f"t{i}" for i in range(self.choices)),
            log_reference=torch.full(shape, 1 / self.choices, dtype=torch.float64).log(),
            features=STEP * torch.eye(self.length * self.choices, dtype=torch.float64).view(*shape, -1),
            gold=gold - gold.mean(1, keepdim=True),
            following=places[:, None].expand(shape).contiguous(),
            seen=torch.empty(0, self.length, dtype=torch.long),
        )

    def couples(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return two answers of the start each, `[count, length]`; where they are alike, the last tokens differ."""
        import torch

        first, second = torch.randint(self.choices, (2, count, self.length), generator=stream)
        alike = (first == second).all(1)
        second[alike, -1] = (second[alike, -1] + 1) % self.choices
        return first, second
