"""Additions that are worth a scratch pad or not: whether to think is a choice that can be right or wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from polyrl.errors import UserError
from polyrl.runtime.chart import Chart
from polyrl.tasks.language.addition import Addition, number
from polyrl.tasks.language.base import GeneratedTask, Row, Split, stable_hash

Kind = Literal["easy", "medium", "hard"]
Mix = Literal["general", "hard", "warm-up"]

MIXES: dict[Mix, dict[Kind, float]] = {
    "general": {"easy": 0.5, "medium": 0.2, "hard": 0.3},
    "hard": {"hard": 1.0},
    "warm-up": {"easy": 0.25, "medium": 0.15, "hard": 0.6},
}
"""Shares of the training problems. A thought is useful for 40% of `general` and for two thirds of `warm-up`, as in the
paper."""

EVALUATED: tuple[Kind, ...] = ("easy", "hard", "medium", "easy", "hard")
"""Kinds of the test problems, over and over, whatever is trained on."""

OMITTED, SUPERFLUOUS = 0.3, 0.1
"""Shares of the demonstrations that leave out a useful thought, or think for nothing. The paper's supervised model
makes both mistakes, the first far more often (arXiv:2505.11896, table 1: recall 0.62, precision 0.96)."""


def read_thought(completion: str, tags: tuple[str, str]) -> tuple[bool, bool]:
    """Whether a completion thinks, and whether its tags are malformed.

    Well-formed is one opening tag, at the beginning, and one closing tag after it. It thinks if anything but whitespace
    stands between them; a thought that was cut off before its end is one, and malformed.
    """
    opening, closing = tags
    _, opened, rest = completion.partition(opening)
    thought, closed, _ = rest.partition(closing)
    well_formed = (
        completion.lstrip().startswith(opening)
        and bool(closed)
        and completion.count(opening) == 1
        and completion.count(closing) == 1
    )
    return bool(opened) and (bool(thought.strip()) or not closed), not well_formed


def needs_thought(labels: Sequence[Any], task: str) -> list[bool]:
    """The column `need` of a task as truth values.

    Raises:
        UserError: a row has no label, or one that is neither 0 nor 1.
    """
    known = {"0": False, "1": True, "False": False, "True": True}
    if any(str(label) not in known for label in labels):
        raise UserError(
            f"The part 'thinking-penalty' needs to know for which prompts a thought is useful, and the task '{task}' "
            "does not say; give every row of the data a column 'need' (0 or 1), or take the task thinking."
        )
    return [known[str(label)] for label in labels]


def decision_quality(need: Sequence[bool], thinks: Sequence[bool]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of the decision to think, judged by whether it was useful.

    Precision is 1 where nothing was thought about, recall where nothing was worth it, F1 is 0 where nothing was met.
    """
    met = sum(n and t for n, t in zip(need, thinks, strict=True))
    wanted, thought, right = sum(need), sum(thinks), sum(n == t for n, t in zip(need, thinks, strict=True))
    return {
        "accuracy": right / max(1, len(need)),
        "precision": met / thought if thought else 1.0,
        "recall": met / wanted if wanted else 1.0,
        "f1": 2 * met / max(1, wanted + thought),
    }


@dataclass
class Thinking(GeneratedTask):
    """Additions answered after a thought or at once: `<75=12;48=13;>132` or `<>132`.

    Between `<` and `>` stands the thought, the columns as in `addition`; after it the answer. A row's `kind` and `need`
    (1: a thought is useful):

    - easy, need 0: one digit added to two, without a carry. Answered at once.
    - hard, need 1: a number of `difficulty` digits and one of 2 to as many. Rarely right without the columns.
    - medium: two numbers of two digits. `need` is 1 for half of the problems, and nobody can foresee for which: the
      labels of a judge are noisy.

    The supervised model starts with mistakes of both kinds, more of omission. Test problems are of all three kinds
    whatever the mix; precision, recall, F1 and accuracy of the decision are over those whose kind settles the need.
    """

    difficulty: int = 3
    """Digits of the larger number of hard problems, 3 to 8."""
    mix: Mix = "general"
    """general: of all kinds, a thought is useful for 40%; hard: hard ones alone, as when reasoning is trained."""
    start_accuracy: float | None = 0.82

    name = "thinking"
    thinking_tags = ("<", ">")
    evaluation_prompts = 300
    evaluation_greedy = False  # the most probable decision hides how sure it is
    charts = (Chart(title="Thinking against accuracy", x="eval/trigger_rate", y=("eval/accuracy", "eval/mean_length")),)
    family: ClassVar[str] = "addition"
    difficulties: ClassVar[range] = range(3, 9)

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.mix not in MIXES:
            raise UserError(f"The mix of the task 'thinking' must be one of {', '.join(MIXES)}, not '{self.mix}'.")
        super().__post_init__()

    def starting(self) -> Thinking:
        """Return the task of the supervised model: one for every mix."""
        return replace(self, mix="warm-up")

    def problem(self, rng: random.Random) -> Row:
        """Draw a problem of the mix."""
        shares = MIXES[self.mix]
        return self._posed(rng, rng.choices([*shares], [*shares.values()])[0])

    def _posed(self, rng: random.Random, kind: Kind) -> Row:
        if kind == "easy":
            units = rng.randint(0, 9)
            a, b = 10 * rng.randint(1, 9) + units, rng.randint(0, 9 - units)
        else:
            digits = 2 if kind == "medium" else self.difficulty
            a, b = number(rng, digits), number(rng, rng.randint(2, digits))
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
        row = {"prompt": f"{a}+{b}=", "a": a, "b": b, "answer": str(a + b), "kind": kind}
        chance = stable_hash(f"need:{self.canonical(row)}") % 2
        need = chance if kind == "medium" else int(kind == "hard")
        return {**row, "need": need, "slip": rng.random() < (OMITTED if need else SUPERFLUOUS)}

    def _row(self, split: Split, seed: int, i: int) -> Row:
        if split == "train":
            return super()._row(split, seed, i)
        for attempt in range(1000):
            rng = random.Random(f"{self.name}-{split}-{seed}-{i}-{attempt}")
            row = self._posed(rng, EVALUATED[i % len(EVALUATED)])
            if self.split_of(row) == split:
                return row
        raise RuntimeError(f"the task '{self.name}' at difficulty {self.difficulty} has no {split} problems")

    def canonical(self, row: Row) -> str:
        """Return the operands in order of size: the problems of `addition`, whose split this task shares."""
        return f"{min(row['a'], row['b'])}+{max(row['a'], row['b'])}"

    def longest(self) -> int:
        """Return the length for two operands of full length with a last carry."""
        return 2 + 6 * self.difficulty + self.difficulty + 1

    def worked(self, row: Row) -> str:
        """Return the answer, after its columns where a thought is useful."""
        return _written(row, bool(row["need"]))

    def demonstrated(self, row: Row) -> str:
        """Return the same, unless the demonstration slips."""
        return _written(row, bool(row["need"]) != row["slip"])

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the text after the last `>` is the sum and nothing else; tags are not judged here."""
        return completion.rpartition(self.thinking_tags[1])[2].strip() == str(row["answer"])

    def expected(self, row: Row) -> str:
        """Return the sum."""
        return str(row["answer"])

    def measures(self, row: Row, completion: str) -> dict[str, float]:
        """Return whether the completion thinks, and whether its tags are malformed."""
        thinks, malformed = read_thought(completion, self.thinking_tags)
        return {"trigger_rate": float(thinks), "malformed": float(malformed)}

    def summary(self, rows: Sequence[Row], completions: Sequence[str]) -> dict[str, float]:
        """Return trigger rate and accuracy by kind, and how good the decision is where the kind settles the need."""
        thinks = [read_thought(text, self.thinking_tags)[0] for text in completions]
        right = [self.correct(row, text) for row, text in zip(rows, completions, strict=True)]
        found: dict[str, float] = {}
        for kind in dict.fromkeys(EVALUATED):
            own = [i for i, row in enumerate(rows) if row["kind"] == kind]
            if own:
                found[f"trigger_rate/{kind}"] = sum(thinks[i] for i in own) / len(own)
                found[f"accuracy/{kind}"] = sum(right[i] for i in own) / len(own)
        settled = [(bool(row["need"]), t) for row, t in zip(rows, thinks, strict=True) if row["kind"] != "medium"]
        quality = decision_quality([need for need, _ in settled], [t for _, t in settled])
        return found | {f"trigger_{name}": value for name, value in quality.items()}


def _written(row: Row, thinks: bool) -> str:
    opening, closing = Thinking.thinking_tags
    columns = COLUMNS.worked(row).rpartition(";")[0] + ";" if thinks else ""
    return f"{opening}{columns}{closing}{row['answer']}"


COLUMNS = Addition()
"""Writes the columns."""
