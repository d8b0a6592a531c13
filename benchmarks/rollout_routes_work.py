"""The work of the benchmark of building solutions: instances and networks, equal for polyrl and RL4CO.

Only the standard library is needed to import this: the peer reads it in its own environment.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Solutions of random instances, sampled from an untrained attention model (arXiv:1803.08475)."""

    problem: str
    nodes: int = 50
    batch: int = 512
    capacity: int = 0
    width: int = 128
    heads: int = 8
    layers: int = 3
    feed_forward: int = 512
    goal: float = 1.5
    """How many times faster polyrl is to be."""

    @property
    def task(self) -> str:
        """As polyrl says it."""
        capacity = f",capacity={self.capacity}" if self.capacity else ""
        return f"{self.problem}(n={self.nodes}{capacity})"


CASES = {"tsp-50": Case("tsp"), "cvrp-50": Case("cvrp", capacity=40)}
"""40 is RL4CO's capacity for 50 customers; demands are from 1 to 9 on both sides."""
