"""Averages of what an iteration logs."""

from __future__ import annotations


class Means:
    """Averages of what is logged over the updates of an iteration."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def add(self, key: str, value: float, count: float = 1.0) -> None:
        """Take in the sum `value` of `count` numbers."""
        self.sums[key] = self.sums.get(key, 0.0) + value
        self.counts[key] = self.counts.get(key, 0.0) + count

    def so_far(self, key: str) -> tuple[float, float]:
        """Sum and count, to be given to `since`."""
        return self.sums.get(key, 0.0), self.counts.get(key, 0.0)

    def since(self, key: str, then: tuple[float, float]) -> float:
        """The mean of what came after `then`; 0 of nothing."""
        now = self.so_far(key)
        return (now[0] - then[0]) / max(now[1] - then[1], 1.0)

    def found(self) -> dict[str, float]:
        """Every mean."""
        return {key: self.since(key, (0.0, 0.0)) for key in self.sums}
