"""What tasks share whose answers are tables: one prompt, pairs labelled by their gold, a world for each seed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polyrl.runtime.chart import Chart
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.base import LanguageTask, Preference, Reward, Row, Split, content, digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyrl.tasks.language.tables import AnswerTables

HELD_OUT = 500
"""Pairs that no run learns from."""
STEP = 80.0
"""theta is counted in 1/80: where a recipe steps by 5e-4 at most, and half of that on average, it moves by 0.02."""
PROMPT = "answer:"


class DrawnPairs(Mapping[Split, list[Row]]):
    """Pairs of both splits, drawn when they are first asked for: a task that is only named costs nothing."""

    def __init__(self, draw: Callable[[Split], list[Row]]):
        self.draw, self.drawn = draw, dict[Split, list[Row]]()

    def __getitem__(self, split: Split) -> list[Row]:
        """The pairs of a split."""
        if split not in self.drawn:
            self.drawn[split] = self.draw(split)
        return self.drawn[split]

    def __iter__(self) -> Iterator[Split]:
        """Both splits."""
        return iter(("train", "test"))

    def __len__(self) -> int:
        """Two."""
        return 2


@dataclass
class TabledTask(LanguageTask):
    """A small world of answers: the policy is one over its tables, and is judged exactly.

    Subclasses draw the world (`make_tables`) and two answers of each pair (`couples`).
    """

    pairs: int = 100
    """Training pairs."""
    instance: int | None = None
    """Which world; none takes the run's seed where each seed has its own start, and else 0."""

    difficulty = 0
    access = frozenset({"episodes"})
    budget = "iterations=1000"
    evaluation_greedy = False
    pairs_by_preference = True
    charts = (
        Chart(
            title="Over-optimization: gold over what was spent of the KL",
            x="eval/kl",
            y=("eval/gold", "eval/gold_at_kl"),
            x_scale="sqrt",
            fitted="eval/gold",
        ),
    )

    def __post_init__(self) -> None:
        """Say what answers are judged by, and settle which world it is."""
        self.rewards = [Reward("gold", self.gold_reward)]
        self.preference = Preference("gold", self.gold_preference)
        self.token_gold = self.added_by_tokens
        self.metric = Metric(key="eval/gold", label="expected gold (exact)", lines=self.lines())
        self._settle(self.instance or 0)

    def _settle(self, world: int) -> None:
        self.world = world
        vars(self).pop("tables", None)
        self.fixed_pairs = DrawnPairs(self.drawn)

    def draw_anew(self, seed: int) -> None:
        """Another world for each seed, where none was named."""
        if self.instance is None:
            self._settle(seed)

    def drawn_from(self) -> list[int]:
        """Return the number of the world."""
        return [self.world]

    def lines(self) -> dict[str, float]:
        """Return gold that stands beside every result, alike in all worlds."""
        return {}

    def stream(self, *names: object) -> torch.Generator:
        """Return the random stream of something in this world."""
        from polyrl.runtime.seeding import generator

        return generator(self.world, self.name, *names)

    @abstractmethod
    def make_tables(self) -> AnswerTables:
        """Return the world of the number `world`."""

    @abstractmethod
    def couples(self, count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the two answers of `count` pairs, `[count, T]` each, never alike."""

    @cached_property
    def tables(self) -> AnswerTables:
        """All answers."""
        return self.make_tables()

    def drawn(self, split: Split) -> list[Row]:
        """Return the pairs of a split: two answers each, and which of them won, by Bradley-Terry on their gold."""
        import torch

        count, stream, tables = self.pairs if split == "train" else HELD_OUT, self.stream("pairs", split), self.tables
        first, second = self.couples(count, stream)
        gap = tables.worths(first) - tables.worths(second)
        won = torch.rand(count, generator=stream, dtype=torch.float64) < torch.sigmoid(gap)
        chosen, rejected = (torch.where(won[:, None], a, b).tolist() for a, b in ((first, second), (second, first)))
        return [
            {"prompt": PROMPT, "chosen": tables.text(a), "rejected": tables.text(b)}
            for a, b in zip(chosen, rejected, strict=True)
        ]

    # ---- what every task of language has

    def rows(self, split: Split, seed: int, start: int, count: int) -> list[Row]:
        """Return the one prompt."""
        return [{"prompt": PROMPT}] * count

    def worked(self, row: Row) -> str:
        """Return the best answer."""
        tables, state, ids = self.tables, 0, list[int]()
        table = tables.tilted(1e-9)
        while state >= 0:
            ids.append(int(table[state].argmax()))
            state = int(tables.following[state, ids[-1]])
        return tables.text(ids)

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether no answer is better."""
        return self.tables.worth(self.tables.ids(completion)) >= self.tables.best - 1e-9

    def expected(self, row: Row) -> str | None:
        """Return nothing: answers are better and worse."""
        return None

    def fingerprint(self) -> str:
        """Return a hash of the settings and of the world's number."""
        return digest([self.name, {f.name: vars(self)[f.name] for f in fields(self)}, self.world])

    def gold_reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return the gold of each answer."""
        return [self.tables.worth(self.tables.ids(content(c))) for c in completions]

    def added_by_tokens(self, row: Row, tokens: Sequence[str]) -> list[float]:
        """Return by how much each token raises the gold that is expected where the start writes what follows."""
        import torch

        ids = torch.tensor([[self.tables.ids(token)[0] for token in tokens]])
        states = self.tables.walk(ids, torch.ones_like(ids, dtype=torch.bool))
        return [float(x) for x in self.tables.advantages(self.tables.log_reference)[states, ids][0]]

    def gold_preference(
        self, prompts: list[Any], completions_a: list[Any], completions_b: list[Any], **columns: list[Any]
    ) -> list[float]:
        """Return the Bradley-Terry probability with which each a beats its b."""
        a, b = (self.gold_reward(prompts, c, **columns) for c in (completions_a, completions_b))
        return [0.5 * (1 + math.tanh(0.5 * ((x or 0.0) - (y or 0.0)))) for x, y in zip(a, b, strict=True)]

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return the gold."""
        return {"gold": self.tables.worth(self.tables.ids(completion))}
