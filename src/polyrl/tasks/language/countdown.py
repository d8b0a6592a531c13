"""Countdown: reach a target with given numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from polyrl.tasks.language.base import GeneratedTask, Reward, Row, content, table_rows
from polyrl.tasks.language.expression import evaluate

_LARGEST_STEP = 200
_LARGEST_TARGET = 100


@dataclass
class Countdown(GeneratedTask):
    """Use each number exactly once, with + - *: `3 7 12 to 33=` is answered by `7*3=21;21+12=33;(7*3)+12`.

    The trace is one step an operation; after the last `;` stands the expression. Every expression that uses the
    numbers exactly once and reaches the target is right, whatever the trace.
    """

    difficulty: int = 3
    """How many numbers (each 1 to 20) there are, 2 to 6."""
    start_accuracy: float | None = 0.25
    """As everywhere; lower here because a tiny model needs minutes for more."""
    format_reward: bool = False
    """Add a reward of weight 0.1 for an expression that uses the numbers exactly once, whatever its value."""

    name = "countdown"
    family: ClassVar[str] = "countdown"
    difficulties: ClassVar[range] = range(2, 7)

    def __post_init__(self) -> None:
        """Check the settings and put the rewards in place."""
        super().__post_init__()
        if self.format_reward:
            self.rewards.append(Reward("format", self.format_score, 0.1))

    def problem(self, rng: random.Random) -> Row:
        """Draw numbers and combine them at random; draw again until target and steps are positive and small."""
        while True:
            numbers = [rng.randint(1, 20) for _ in range(self.difficulty)]
            solved = _combine(rng, numbers)
            if solved is not None:
                target, solution = solved
                prompt = f"{' '.join(map(str, numbers))} to {target}="
                return {"prompt": prompt, "numbers": numbers, "target": target, "solution": solution}

    def canonical(self, row: Row) -> str:
        """Return the numbers in order of size and the target."""
        return f"{sorted(row['numbers'])} {row['target']}"

    def longest(self) -> int:
        """Return an upper bound of the length of a worked solution."""
        steps = self.difficulty - 1
        step = len(f"{_LARGEST_STEP}+{_LARGEST_STEP}={_LARGEST_STEP};")
        return step * steps + 2 * self.difficulty + steps + 2 * (steps - 1)

    def worked(self, row: Row) -> str:
        """Return the solution that the problem was made from."""
        return str(row["solution"])

    def correct(self, row: Row, completion: str) -> bool:
        """Return whether the expression after the last `;` uses the numbers exactly once and reaches the target."""
        return _reached(row, completion) == int(row["target"])

    def format_score(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> list[float | None]:
        """Return 1 for each expression that uses the numbers exactly once, whatever its value, else 0."""
        rows = table_rows(prompts, columns)
        return [float(_reached(row, content(c)) is not None) for row, c in zip(rows, completions, strict=True)]

    def expected(self, row: Row) -> str:
        """Return one right expression; there may be others."""
        return str(row["solution"]).rpartition(";")[2]


def _reached(row: Row, completion: str) -> int | None:
    """Return the value of the completion's expression, or None if it does not use the numbers exactly once."""
    try:
        value, used = evaluate(completion.rpartition(";")[2].strip())
    except ValueError:
        return None
    return value if sorted(used) == sorted(row["numbers"]) else None


def _combine(rng: random.Random, numbers: list[int]) -> tuple[int, str] | None:
    """Combine the numbers, two at a time, and return the target and the worked solution; None if a step is too big."""
    pool = [(n, str(n)) for n in numbers]
    trace = ""
    while len(pool) > 1:
        (x, x_text), (y, y_text) = pool.pop(rng.randrange(len(pool))), pool.pop(rng.randrange(len(pool)))
        op = rng.choice("+-*")
        value = x + y if op == "+" else x - y if op == "-" else x * y
        if not 0 < value <= _LARGEST_STEP:
            return None
        trace += f"{x}{op}{y}={value};"
        pool.append((value, f"({x_text}{op}{y_text})"))
    target, text = pool[0]
    return (target, trace + text[1:-1]) if target <= _LARGEST_TARGET else None
