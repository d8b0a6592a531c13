"""Laws of over-optimization: how much is gained over the root of the KL, d, until more of it costs gold.

R(d) = d (alpha - beta log d) is the form that was found for reinforcement learning against a learned reward
(arXiv:2210.10760) and taken over for losses on pairs (arXiv:2406.02900); R(d) = d (alpha - beta d) is the quadratic
that it is compared with. Both are linear in alpha and beta, so least squares has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Law = Literal["log", "quadratic"]
LAWS: tuple[Law, ...] = ("log", "quadratic")
WORDS: dict[Law, str] = {"log": "d(α − β log d)", "quadratic": "d(α − β d)"}


def _falls(law: Law, d: float) -> float:
    return math.log(d) if law == "log" else d


@dataclass(frozen=True)
class Hump:
    """A fitted law.

    Attributes:
        law: its form.
        alpha, beta: its numbers.
        rmse: root of the mean squared error over the points that it was fitted to.
    """

    law: Law
    alpha: float
    beta: float
    rmse: float

    def at(self, d: float) -> float:
        """R(d); 0 at 0."""
        return d * (self.alpha - self.beta * _falls(self.law, d)) if d > 0 else 0.0

    @property
    def peak(self) -> float:
        """Where it is highest: exp(alpha / beta - 1), or alpha / (2 beta); infinite where it never falls."""
        if self.beta <= 0:
            return math.inf
        return math.exp(self.alpha / self.beta - 1) if self.law == "log" else self.alpha / (2 * self.beta)


def fitted(points: Sequence[tuple[float, float]], law: Law) -> Hump | None:
    """The law of least squares through points (d, R); those at d = 0 say nothing and are left out.

    None where fewer than two different d are left.
    """
    points = [(d, r) for d, r in points if d > 0]
    if len({d for d, _ in points}) < 2:
        return None
    rows = [(d, -d * _falls(law, d), r) for d, r in points]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    ay, by = (sum(row[i] * row[2] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    if determinant <= 1e-14 * aa * bb:
        return None
    alpha, beta = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
    wrong = sum((a * alpha + b * beta - y) ** 2 for a, b, y in rows)
    return Hump(law, alpha, beta, math.sqrt(wrong / len(rows)))
