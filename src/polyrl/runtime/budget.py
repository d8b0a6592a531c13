"""Budgets: what a run may spend, and what it has spent so far."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from polyrl.errors import UserError, nearest


@dataclass
class Spent:
    """Cumulative spending of a run.

    Attributes:
        samples: episodes collected for training (responses, greedy baselines included).
        tokens: tokens generated, those returned by tools included (language only).
        steps: steps chosen by the policy: environment steps, or tokens it generated.
        reward_calls: episodes scored by a reward function or model, evaluation not counted.
        queries: what was asked of the environment beside plain steps: resets to a state or from a distribution, and
            draws of a generative model, one each; the start of an ordinary episode is none.
        seconds: wall time in the five stages; evaluation and checkpoints are not counted.
        updates: optimizer steps.
        iterations: finished passes through the five stages.
    """

    samples: int = 0
    tokens: int = 0
    steps: int = 0
    reward_calls: int = 0
    queries: int = 0
    seconds: float = 0.0
    updates: int = 0
    iterations: int = 0


UNITS = tuple(f.name for f in dataclasses.fields(Spent))


@dataclass(frozen=True)
class Budget:
    """What ends a run: the first limit reached, checked after every iteration. At least one must be set."""

    samples: int | None = None
    tokens: int | None = None
    steps: int | None = None
    reward_calls: int | None = None
    queries: int | None = None
    seconds: float | None = None
    updates: int | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        """Refuse empty and non-positive budgets."""
        if not self.limits():
            raise UserError(f"The budget is empty; give at least one of {', '.join(UNITS)}, such as samples=4000.")
        for unit, value in self.limits().items():
            if not math.isfinite(value) or value <= 0:
                raise UserError(f"The budget {unit}={value:g} is impossible; it must be a number above 0.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `samples=4000,seconds=120` (also 20k, 1.5M; seconds also as 90s, 3m, 1h)."""
        values: dict[str, float] = {}
        for item in filter(None, (t.strip() for t in text.split(","))):
            unit, _, amount = (t.strip() for t in item.partition("="))
            unit = unit.replace("-", "_")
            if unit not in UNITS:
                raise UserError(
                    f"Unknown budget unit '{unit}' in '{text}'.{nearest(unit, UNITS)} Units: {', '.join(UNITS)}."
                )
            factors = {"s": 1, "m": 60, "h": 3600} if unit == "seconds" else {"k": 1e3, "m": 1e6, "g": 1e9}
            factor = factors.get(amount[-1:].lower())
            try:
                number = float(amount[:-1]) * factor if factor else float(amount)
            except ValueError:
                raise UserError(f"The budget '{item}' has no number; write it like {unit}=4000.") from None
            if not math.isfinite(number):
                raise UserError(f"The budget {unit}={amount} is impossible; it must be a number above 0.")
            values[unit] = number if unit == "seconds" else int(number)
        return cls(**values)  # type: ignore[arg-type]

    def limits(self) -> dict[str, float]:
        """The limits that are set, unit -> amount."""
        return {u: v for u in UNITS if (v := getattr(self, u)) is not None}

    def progress(self, spent: Spent) -> float:
        """Share of the budget that is spent, in [0, 1]; 1 means the run is over."""
        return min(1.0, max(float(getattr(spent, unit)) / limit for unit, limit in self.limits().items()))

    def expected_iterations(self, spent: Spent) -> float:
        """Iterations that the whole run has, those done and those to come, if they go on to cost what they did so far.

        Rounded up, because the iteration that crosses a limit is finished; infinite where no cost is known yet. Whole
        numbers are divided as such, so that a constant cost gives the same number after every iteration, in any unit.
        """
        to_come = math.inf
        for unit, limit in self.limits().items():
            cost = getattr(spent, unit)  # of all iterations so far
            if cost:
                to_come = min(to_come, -((cost - limit) * spent.iterations // cost))
        return spent.iterations + max(to_come, 0)

    def schedule_progress(self, began: Spent) -> float:
        """Share of the run's iterations that are done where the spending `began` begins the next one, in [0, 1).

        A function of iterations done and to come, and so the same in every unit; 0 at the first iteration.
        """
        return began.iterations / self.expected_iterations(began) if began.iterations else 0.0

    def __str__(self) -> str:
        return ",".join(f"{unit}={value!r}" for unit, value in self.limits().items())
