"""Preference pairs of language tasks: the user's own in TRL's columns, and a task made for them.

A pair is a row with `prompt`, `chosen` and `rejected`, each text or a list of messages. Pairs of other tasks come from
the starting model (`polyrl.pretrain.pairs`).
"""

from __future__ import annotations

import logging
import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from polyrl.errors import UserError
from polyrl.runtime.metric import Metric
from polyrl.tasks.language.base import (
    GeneratedTask,
    Preference,
    Reward,
    Row,
    content,
    table_rows,
)
from polyrl.tasks.language.chat import Columns
from polyrl.tasks.language.dataset import AS_NAMED, DatasetTask, checked, load_rows, unpaired
from polyrl.tasks.language.formats import SIDES, check_response, check_template_columns, is_empty, pair_of
from polyrl.tasks.language.labelled import LabelledDataset
from polyrl.tasks.language.left_out import LeftOut
from polyrl.tasks.language.phrases import shortened
from polyrl.tasks.language.rankings import pairs_of, ranked
from polyrl.tasks.language.wanted import SEEDS_APART, PairsWanted, Wanted

_log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------- the user's own


@dataclass
class PairDataset(DatasetTask):
    """The user's preference pairs, in TRL's columns `prompt`, `chosen` and `rejected`.

    Without a `prompt` it is what chosen and rejected begin with in common. Without rewards, a run is judged by the
    share of held-out pairs that the policy orders rightly.
    """

    def __post_init__(self) -> None:
        """Load, check and split the pairs."""
        self.data = _checked(self.data, "the data", self.skipped, self.columns)
        if self.test_data is not None:
            self.test_data = _checked(self.test_data, "the test data", self.skipped, self.columns)
        super().__post_init__()
        self.fixed_pairs = {"train": self.train_rows, "test": self.test_rows}
        if not self.rewards:
            self.metric = PAIR_METRIC


PAIR_METRIC = Metric(key="eval/pair_accuracy", label="held-out pairs ordered rightly", unit="share")


def dataset_task(
    data: Any,
    test_data: Any = None,
    rewards: Sequence[Reward] = (),
    checker: str | None = None,
    skip_bad_rows: bool = False,
    judged_whole: bool = False,
    columns: Columns = AS_NAMED,
) -> DatasetTask:
    """The user's data as a task; with `judged_whole` all rows are test rows.

    A `PairDataset` where it has the columns `chosen` and `rejected`, or `responses` that are ranked or graded, a
    `LabelledDataset` where it has `completion` and a `label` that is true or false.
    """
    passed = LeftOut() if skip_bad_rows else None
    rows = load_rows(str(data), passed, columns) if isinstance(data, str | Path) else list(data)
    if ranked(rows):
        data = rows = pairs_of(rows, f"'{data}'" if isinstance(data, str | Path) else "the data", passed)
        if test_data is not None:
            test = load_rows(str(test_data), passed, columns) if isinstance(test_data, str | Path) else list(test_data)
            test_data = pairs_of(test, "the test data", passed) if ranked(test) else test
    paired = any(isinstance(row, dict) and all(row.get(side) is not None for side in SIDES) for row in rows)
    kind = PairDataset if paired else LabelledDataset if unpaired(rows) else DatasetTask
    how: dict[str, Any] = {"checker": checker, "skip_bad_rows": skip_bad_rows, "judged_whole": judged_whole}
    return kind(data, test_data=test_data, rewards=list(rewards), columns=columns, **how)


def _checked(data: Any, label: str, left_out: LeftOut | None, columns: Columns) -> list[Row]:
    """Rows of preference pairs in one form, each with two responses that have text and differ."""
    found = checked(data, label, left_out, _checked_pair, "pair", columns)
    if all(_repeats(row) for row in found):
        _log.warning(
            "All responses of %s begin with the text of their prompt, which the model has read before them: where they "
            "are whole texts, leave the column 'prompt' out.",
            f"'{data}'" if isinstance(data, str | Path) else label,
        )
    return found


def _repeats(row: Row) -> bool:
    """Whether both responses are texts that begin with the prompt."""
    prompt, responses = row["prompt"], [row[side] for side in SIDES]
    return isinstance(prompt, str) and all(isinstance(r, str) and r.startswith(prompt) for r in responses)


def _checked_pair(where: str, row: Row) -> Row:
    for side in SIDES:
        if row.get(side) is None:
            raise UserError(f"{where}: no column '{side}'; it has {', '.join(k for k in row if row[k] is not None)}.")
        check_response(where, side, row[side])
    row = pair_of(where, row)
    for side in SIDES:
        if is_empty(row[side]):
            raise UserError(f"{where}: the column '{side}' is empty; leave the pair out, as --skip-bad-rows does.")
    if row["chosen"] == row["rejected"]:
        raise UserError(
            f"{where}: chosen and rejected are equal ({_excerpt(row['chosen'])}); leave the pair out, as "
            "--skip-bad-rows does."
        )
    # a text prompt has become messages where the responses are messages, and they take columns of the template
    return check_template_columns(where, row)


def _excerpt(response: Any) -> str:
    return shortened(content(response))


# ------------------------------------------------------------------------------------------------------- sort-pairs

ILLEGAL = "abcde"
"""Characters that a corrupted demonstration may hold and that no right answer has."""


@dataclass
class SortPairs(GeneratedTask):
    """Sort 4 to `difficulty` digits (`52814>` is answered by `12458`), taught badly and mended by preferences.

    The starting model has imitated corrupted demonstrations: each character is replaced with probability `corruption`
    by a digit or a letter a-e, and with probability `lengthening` up to two characters more follow. The gold score is
    r* = 4 (share of positions right) - 0.25 |length error| - 2 [some character is no digit], at most 4. Fixed pairs are
    two answers of the start, labelled by a judge who prefers a to b with the Bradley-Terry probability
    sigmoid(r*(a) - r*(b)). A run is judged by the gold of sampled answers, not of greedy ones: that is what a policy is
    whose preferences and KL are measured.

    With `cycle` the judge goes in circles, and no reward explains it: an answer whose length is one more than the
    other's, counted modulo 3, has that much more for it, and one whose length is two more as much less.
    """

    difficulty: int = 6
    """Most digits, 4 to 9."""
    start_accuracy: float | None = None
    corruption: float = 0.3
    """Probability with which each character of a demonstration is replaced."""
    lengthening: float = 0.1
    """Probability with which a demonstration is too long."""
    pairs: int = 4000
    """Fixed training pairs."""
    pair_seed: int = 0
    """Of the fixed pairs and their labels."""
    cycle: float = 0.0
    """How much an answer's length counts in circles for the judge, in units of gold."""

    name = "sort-pairs"
    family: ClassVar[str] = "sort"
    difficulties: ClassVar[range] = range(4, 10)
    budget = "samples=8000"  # one pass over the fixed pairs
    evaluation_prompts = 500
    evaluation_greedy = False
    pairs_by_preference = True
    start_size = MappingProxyType({"hidden": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "mlp": 256, "context": 64})

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name in ("corruption", "lengthening"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The {name} of the task '{self.name}' must be from 0 to 1, not {getattr(self, name)}.")
        if self.pairs < 1:
            raise UserError(f"The pairs of the task '{self.name}' must be at least 1, not {self.pairs}.")
        if not 0 <= self.cycle < math.inf:
            raise UserError(f"The cycle of the task '{self.name}' must be a number of at least 0, not {self.cycle}.")
        self.rewards = [Reward("gold", self.gold_reward)]
        circles = f"gold and length in circles, {self.cycle:g}" if self.cycle else "gold"
        self.preference = Preference(circles, self.gold_preference)
        self.token_gold = self.added_by_tokens
        self.metric = Metric(
            key="eval/gold",
            label="gold score of sampled answers",
            lines={"always right": 4.0},
        )

    @property
    def wanted(self) -> Wanted | None:
        """The fixed pairs, where they are not there yet."""
        return None if self.fixed_pairs else PairsWanted(train=self.pairs, seed=self.pair_seed)

    def draw_anew(self, seed: int) -> None:
        """Draw other pairs for each seed."""
        self.pair_seed += SEEDS_APART * seed
        super().draw_anew(seed)

    def drawn_from(self) -> list[int]:
        """Return the seed of the pairs, and those of others."""
        return [self.pair_seed, *super().drawn_from()]

    def start_settings(self) -> dict[str, Any]:
        """Return the settings that the starting model depends on."""
        return {k: v for k, v in super().start_settings().items() if k not in ("pairs", "pair_seed", "cycle")}

    def problem(self, rng: random.Random) -> Row:
        """Draw a length uniformly, then digits."""
        digits = "".join(rng.choices(string.digits, k=rng.randint(4, self.difficulty)))
        return {"prompt": f"{digits}>", "digits": digits, "answer": "".join(sorted(digits))}

    def canonical(self, row: Row) -> str:
        """Return the sorted digits: all orders of the same digits have one answer."""
        return "".join(sorted(row["digits"]))

    def longest(self) -> int:
        """Return the length of the longest demonstration."""
        return self.difficulty + 2

    def worked(self, row: Row) -> str:
        """Return the sorted digits."""
        return str(row["answer"])

    def demonstrated(self, row: Row) -> str:
        """Return the corrupted demonstration of this prompt: the same one each time."""
        dice = random.Random(f"{self.name}-corruption-{row['digits']}")
        alphabet = string.digits + ILLEGAL
        text = "".join(dice.choice(alphabet) if dice.random() < self.corruption else c for c in row["answer"])
        if dice.random() < self.lengthening:
            text += "".join(dice.choices(alphabet, k=dice.randint(1, 2)))
        return text

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the completion is the sorted digits, and nothing else."""
        return completion.strip() == str(row["answer"])

    def expected(self, row: Row) -> str:
        """Return the sorted digits."""
        return str(row["answer"])

    def gold(self, row: Row, completion: str) -> float:
        """Return r*, from about -4 to 4 (4 exactly when the completion is right)."""
        answer = str(row["answer"])
        right = sum(x == y for x, y in zip(answer, completion, strict=False))
        wrong_length = abs(len(answer) - len(completion))
        illegal = any(c not in string.digits for c in completion)
        return 4 * right / len(answer) - 0.25 * wrong_length - 2 * illegal

    def added_by_tokens(self, row: Row, tokens: Sequence[str]) -> list[float]:
        """Return what each token adds to r*, less half of what a right one adds; of the end token what is missing.

        A first character that is no digit costs 2 more, and what stands behind the answer's length 0.25 each.
        """
        answer = "".join(sorted(content(row["prompt"]).rstrip(">")))  # rows of pairs have no other column
        found, place, legal = list[float](), 0, True
        for token in tokens:
            worth = 0.0 if token else -0.25 * max(len(answer) - place, 0)
            for character in token:
                right = place < len(answer) and character == answer[place]
                worth += (4 * right - 2) / len(answer) if place < len(answer) else -0.25
                if legal and character not in string.digits:
                    worth, legal = worth - 2, False
                place += 1
            found.append(worth)
        return found

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return the gold score: what runs are judged by, whatever reward they are given."""
        return {"gold": self.gold(row, completion)}

    def gold_reward(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return `gold` of each completion."""
        rows = table_rows(prompts, columns)
        return [self.gold(row, content(c)) for row, c in zip(rows, completions, strict=True)]

    def gold_preference(
        self, prompts: list[Any], completions_a: list[Any], completions_b: list[Any], **columns: list[Any]
    ) -> list[float]:
        """Return the probability sigmoid(r*(a) - r*(b) + cycle turn) with which each a beats its b, turn 1, 0 or -1."""
        a = self.gold_reward(prompts, completions_a, **columns)
        b = self.gold_reward(prompts, completions_b, **columns)
        sizes = zip(map(len, map(content, completions_a)), map(len, map(content, completions_b)), strict=True)
        turns = [(0, 1, -1)[(mine - other) % 3] for mine, other in sizes]
        ahead = [(x or 0.0) - (y or 0.0) + self.cycle * turn for x, y, turn in zip(a, b, turns, strict=True)]
        return [0.5 * (1 + math.tanh(0.5 * by)) for by in ahead]
