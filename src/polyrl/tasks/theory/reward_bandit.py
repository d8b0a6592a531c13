"""A bandit whose reward is to be learned: answers with features and gold scores, and a reference (arXiv:2309.01753).

Lower level: the policy of a reward r_w = features w, pi ~ ref exp(r_w / tau). Upper level: the loss of Bradley and
Terry of r_w on pairs that this policy draws and the gold scores label, plus ridge |w|^2: so the reward moves the pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.runtime.seeding import generator
from polyrl.tasks.theory.families import check_setting
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask


@dataclass(frozen=True)
class RewardBandit(FiniteTask):
    """Answers with random features and gold scores that are not linear in them; each seed is another bandit.

    Attributes:
        choices: K, answers.
        features: d, numbers by which a reward sees an answer.
        tau: what a nat of KL to the reference costs the policy.
        ridge: of the upper objective.
        instance: number of the bandit; none takes the run's seed, so that seeds are bandits.
    """

    choices: int = 20
    features: int = 3
    tau: float = 0.3
    ridge: float = 0.005
    instance: int | None = None

    name: ClassVar[str] = "reward-bandit"
    budget: ClassVar[str] = "iterations=600"
    drawn_by_seed: ClassVar[bool] = True
    equal_optima: ClassVar[bool] = False

    def for_seed(self, seed: int) -> RewardBandit:
        """Its bandit."""
        return replace(self, instance=seed) if self.instance is None else self

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, choices=self.choices >= 2, features=self.features >= 1)
        check_setting(self, tau=self.tau > 0, ridge=self.ridge >= 0)
        super().__post_init__()

    def _drawn(self, what: str, *shape: int) -> Tensor:
        stream = generator(self.instance or 0, "reward bandit", what)
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    @cached_property
    def seen(self) -> Tensor:
        """Features `[K, d]`."""
        return self._drawn("features", self.choices, self.features)

    @cached_property
    def gold(self) -> Tensor:
        """Gold scores `[K]`: linear in the features, and as much again that no reward can see."""
        linear = self.seen @ self._drawn("weights", self.features)
        return linear / math.sqrt(self.features) + self._drawn("rest", self.choices)

    @cached_property
    def log_reference(self) -> Tensor:
        """Log-probabilities of the reference `[K]`."""
        return torch.log_softmax(0.5 * self._drawn("reference", self.choices), -1)

    @cached_property
    def mdp(self) -> FiniteMDP:
        """One step in one state, paid by the gold score."""
        return FiniteMDP(torch.ones(1, self.choices, 1), self.gold[None], horizon=1)

    # -- the two levels, as functions of a reward's weights [d] and of log-probabilities [K]

    def lower(self, weights: Tensor, log_policy: Tensor) -> Tensor:
        """-E r_w + tau KL(policy || reference), `[]`, which the policy of a reward minimizes."""
        policy = log_policy.exp()
        return -policy @ (self.seen @ weights) + self.tau * policy @ (log_policy - self.log_reference)

    def upper(self, weights: Tensor, log_policy: Tensor) -> Tensor:
        """Loss of the reward on pairs of the policy, with gold labels, plus the ridge, `[]`."""
        reward, policy = self.seen @ weights, log_policy.exp()
        wins = torch.sigmoid(self.gold[:, None] - self.gold)
        loss = -wins * torch.nn.functional.logsigmoid(reward[:, None] - reward)
        return 2 * policy @ loss @ policy + self.ridge * weights.square().sum()  # a pair counts once in each order

    def response(self, weights: Tensor) -> Tensor:
        """The policy of a reward, exactly: log-probabilities `[K]`."""
        return torch.log_softmax(self.log_reference + self.seen @ weights / self.tau, -1)
