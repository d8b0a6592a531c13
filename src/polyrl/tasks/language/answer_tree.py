"""Answer-tree: one pair of walks through a small tree, and a policy whose parameters prefixes share, or not.

Where does the mass go that one pair moves? Of 27 walks two are in the data. With parameters for each prefix a loss on
the pair can move nothing else; where prefixes share them, it moves others along, and the chosen walk itself may lose
(arXiv:2406.02900, section 4; there the policy is a recurrent network, and sizes are not told).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.base import Row, Split
from polyrl.tasks.language.tabled import PROMPT, STEP, TabledTask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.tasks.language.tables import AnswerTables

ACTIONS, DEPTH = 3, 3


@dataclass
class AnswerTree(TabledTask):
    """Take three of three actions, one after another. The one pair of training is two random walks.

    With `shared` the policy is a linear softmax on a constant, the last action and how often each was taken, over 3:
    21 parameters for 13 prefixes. Without, each prefix has its own. The start has imitated both walks for `taught`
    steps of Adam (0.05). Gold is 1 for the chosen walk and 0 for the others: it is the probability of the chosen one.
    """

    pairs: int = 1
    shared: bool = True
    taught: int = 30

    name = "answer-tree"
    max_tokens = DEPTH
    budget = "iterations=500"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.pairs != 1 or self.taught < 0:
            raise UserError(
                f"The task {self.name} has pairs={self.pairs} and taught={self.taught}; it has one pair, and its start "
                "is taught for 0 steps or more."
            )
        super().__post_init__()
        self.metric = Metric(key="eval/gold", label="probability of the chosen answer (exact)", unit="share")

    def walks(self) -> Tensor:
        """Return the chosen and the rejected walk, `[2, 3]` int64, which differ."""
        import torch

        first, second = torch.randperm(ACTIONS**DEPTH, generator=self.stream("walks"))[:2].tolist()
        places = [ACTIONS**i for i in reversed(range(DEPTH))]
        return torch.tensor([[n // place % ACTIONS for place in places] for n in (first, second)])

    def make_tables(self) -> AnswerTables:
        """A state for each prefix, shorter ones first."""
        import torch

        from polyrl.tasks.language.tables import ENDS, AnswerTables

        prefixes: list[tuple[int, ...]] = [()]
        for prefix in prefixes:
            if len(prefix) + 1 < DEPTH:
                prefixes += [(*prefix, action) for action in range(ACTIONS)]
        number = {prefix: state for state, prefix in enumerate(prefixes)}
        following = torch.tensor([[number.get((*p, a), ENDS) for a in range(ACTIONS)] for p in prefixes])
        one = torch.eye(ACTIONS, dtype=torch.float64)
        if self.shared:
            seen = [
                torch.cat([one[0, :1], one[p[-1]] if p else 0 * one[0], sum((one[a] for a in p), 0 * one[0]) / DEPTH])
                for p in prefixes
            ]
            features = torch.einsum("sx,ab->sabx", torch.stack(seen), one).flatten(2)
        else:
            features = torch.eye(len(prefixes) * ACTIONS, dtype=torch.float64).view(len(prefixes), ACTIONS, -1)
        walks = self.walks()
        gold = torch.zeros(len(prefixes), ACTIONS, dtype=torch.float64)
        gold[number[tuple(walks[0, :-1].tolist())], walks[0, -1]] = 1
        flat = torch.full(gold.shape, 1 / ACTIONS, dtype=torch.float64).log()
        tables = AnswerTables(
            tokens=tuple(f"a{i}" for i in range(ACTIONS)),
            log_reference=flat,
            features=STEP * features,
            gold=gold,
            following=following,
            seen=walks,
        )
        return self._taught(tables)

    def _taught(self, tables: AnswerTables) -> AnswerTables:
        """The same world from the start that has imitated both walks."""
        from dataclasses import replace

        import torch

        phi = tables.features / STEP
        theta = torch.zeros(phi.shape[2], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([theta], lr=0.05)
        with torch.enable_grad():
            for _ in range(self.taught):
                optimizer.zero_grad()
                loss = -tables.logprob_of(torch.log_softmax(phi @ theta, -1), tables.seen).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return replace(tables, log_reference=torch.log_softmax(phi @ theta.detach(), -1))

    def couples(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the one pair, over and over."""
        chosen, rejected = self.walks()
        return chosen.expand(count, -1), rejected.expand(count, -1)

    def drawn(self, split: Split) -> list[Row]:
        """Return the one pair, for both splits."""
        chosen, rejected = map(self.tables.text, self.walks().tolist())
        return [{"prompt": PROMPT, "chosen": chosen, "rejected": rejected}]
