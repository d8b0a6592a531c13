"""Worlds of few answers: everything that there is to answer, how likely the start finds it, and what it is worth.

An answer is a walk through states, one token a step, until it ends. The start says log ref(a | s), a table, and the
policy is log pi(a | s) = log ref(a | s) + phi(s, a) . theta + const: features that actions share, or one for each.
Gold is a sum over steps. So the expected gold, the KL and every answer's probability are sums over states, in float64,
and nothing is sampled where a policy is judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from polyrl.errors import UserError

ENDS = -1
"""In `following`: the answer ends with this token."""


@dataclass(frozen=True, eq=False)
class AnswerTables:
    """All answers to the one prompt, with S states and V tokens in each; state 0 is the first.

    Attributes:
        tokens: what the V tokens are called; an answer is their names with spaces between.
        log_reference: `[S, V]` float64, log-probabilities of the start.
        features: `[S, V, d]` float64, phi.
        gold: `[S, V]` float64, what each step adds.
        following: `[S, V]` int64, the next state, above this one, or `ENDS`.
        seen: `[n, T]` int64, the answers that data may hold; what else there is lies off the data. Empty: not told.
    """

    tokens: tuple[str, ...]
    log_reference: Tensor
    features: Tensor
    gold: Tensor
    following: Tensor
    seen: Tensor

    def __post_init__(self) -> None:
        """Refuse walks that may never end; raises `ValueError`."""
        later = self.following > torch.arange(len(self.following))[:, None]
        if not bool((later | (self.following == ENDS)).all()):
            raise ValueError("a state must be followed by later ones")

    # ------------------------------------------------------------------------------------------------- answers

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        steps = [1] * len(self.following)
        for state in reversed(range(len(steps))):
            after = [s for s in set(self.following[state].tolist()) if s != ENDS]
            steps[state] = 1 + max((steps[s] for s in after), default=0)
        return steps[0]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.tokens)}

    def text(self, ids: Sequence[int]) -> str:
        """The answer in words."""
        return " ".join(self.tokens[i] for i in ids)

    def ids(self, text: str) -> list[int]:
        """The answer as numbers of tokens.

        Raises:
            UserError: a word is no token.
        """
        words = text.split()
        if unknown := [word for word in words if word not in self._numbers]:
            raise UserError(f"'{unknown[0]}' is no answer: there are {self.tokens[0]} to {self.tokens[-1]}.")
        return [self._numbers[word] for word in words]

    def walk(self, ids: Tensor, present: Tensor) -> Tensor:
        """The state before each token: `[B, T]` int64 and bool -> `[B, T]` int64, 0 where not `present`."""
        states, here = torch.zeros_like(ids), torch.zeros_like(ids[:, 0])
        for step in range(ids.shape[1]):
            states[:, step] = torch.where(present[:, step], here, 0)
            here = self.following[states[:, step], torch.where(present[:, step], ids[:, step], 0)]
        return states

    def logprob_of(self, table: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities `[n]` of whole answers `[n, T]`, under a policy `[S, V]`."""
        states = self.walk(ids, torch.ones_like(ids, dtype=torch.bool))
        return table[states, ids].sum(1)

    def worths(self, ids: Tensor) -> Tensor:
        """Gold `[n]` of whole answers `[n, T]`."""
        states = self.walk(ids, torch.ones_like(ids, dtype=torch.bool))
        return self.gold[states, ids].sum(1)

    def worth(self, ids: Sequence[int]) -> float:
        """Gold of an answer."""
        return float(self.worths(torch.tensor([list(ids)])))

    # ------------------------------------------------------------------------------------------ exact measures

    def reached(self, table: Tensor) -> Tensor:
        """Probability `[S]` with which a policy `[S, V]` comes to each state."""
        probability = table.exp()
        mass = torch.zeros(len(table), dtype=table.dtype)
        mass[0] = 1
        for state in range(len(table)):
            goes_on = self.following[state] != ENDS
            mass.index_add_(0, self.following[state][goes_on], mass[state] * probability[state][goes_on])
        return mass

    def mean(self, table: Tensor, values: Tensor) -> float:
        """Expected sum of `values` `[S, V]` over the steps of an answer of the policy `[S, V]`."""
        return float((self.reached(table)[:, None] * table.exp() * values).sum())

    def kl(self, table: Tensor) -> float:
        """KL(pi || ref) of whole answers, nats."""
        return max(0.0, self.mean(table, table - self.log_reference))

    def off_data(self, table: Tensor) -> float:
        """Probability of the answers that no data hold, under a policy `[S, V]`."""
        return max(0.0, 1 - float(self.logprob_of(table, self.seen).exp().sum()))

    @cached_property
    def best(self) -> float:
        """Gold of the best answer."""
        return float(self._backward(0.0)[0])

    def _backward(self, temperature: float) -> Tensor:
        """Values `[S]`: max E[gold] - temperature KL(pi || ref) of what follows, the best answer's gold at 0."""
        value = torch.zeros(len(self.gold), dtype=torch.float64)
        for state in reversed(range(len(value))):
            after = self.following[state]
            q = self.gold[state] + torch.where(after == ENDS, 0.0, value[after.clamp(min=0)])
            if temperature == 0:
                value[state] = q.max()
            else:
                value[state] = temperature * torch.logsumexp(self.log_reference[state] + q / temperature, 0)
        return value

    def advantages(self, table: Tensor) -> Tensor:
        """By how much each token `[S, V]` raises the expected gold of what a policy `[S, V]` goes on to write."""
        value, q = torch.zeros(len(table), dtype=table.dtype), torch.zeros_like(table)
        for state in reversed(range(len(table))):
            after = self.following[state]
            q[state] = self.gold[state] + torch.where(after == ENDS, 0.0, value[after.clamp(min=0)])
            value[state] = (table[state].exp() * q[state]).sum()
        return q - value[:, None]

    def tilted(self, temperature: float) -> Tensor:
        """The policy `[S, V]` of most E[gold] - temperature KL(pi || ref): ref exp(q / temperature) / Z."""
        value = self._backward(temperature)
        after = self.following
        q = self.gold + torch.where(after == ENDS, 0.0, value[after.clamp(min=0)])
        return torch.log_softmax(self.log_reference + q / temperature, -1)

    def gold_at(self, kl: float) -> float:
        """The most gold that any policy has at a KL to the start, nats: that of `tilted`, found by bisection."""
        low, high = math.log(1e-4), math.log(1e4)  # of the temperature; the KL falls with it
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.kl(self.tilted(math.exp(middle))) > kl else (low, middle)
        return self.mean(self.tilted(math.exp(high)), self.gold)

    def measures(self, table: Tensor) -> dict[str, float]:
        """What a policy `[S, V]` is judged by, exactly: `gold`, `kl`, `gold_at_kl`, `off_data`."""
        kl = self.kl(table)
        found = {"gold": self.mean(table, self.gold), "kl": kl, "gold_at_kl": self.gold_at(kl)}
        return {**found, "off_data": self.off_data(table)} if len(self.seen) else found
