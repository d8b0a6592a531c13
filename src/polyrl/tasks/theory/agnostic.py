"""Problems that tell kinds of access apart, each with a policy class (arXiv:2506.01884).

Singletons, a ladder under resets, and a lock that is seen through rich observations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch

from polyrl.runtime.seeding import generator
from polyrl.tasks.theory.families import check_setting
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask
from polyrl.tasks.theory.policy_class import PolicyClass


@dataclass(frozen=True)
class Singletons(FiniteTask):
    """One secret step at which action 1 is good; each policy of the class plays it at one step and state alone.

    Action 0 leads to an ordinary state of the next layer, each equally often. Action 1 leads to the good branch at the
    secret step and state, to the bad one elsewhere; in a branch 0 stays there and 1 leads to the bad one. The last step
    pays 1 with probability .4 after action 0 in an ordinary state, .9 in the good branch, .1 in the bad one.

    The class has the policy that always plays 0, and for each layer and ordinary state the one that plays 1 there. The
    core of its sunflower is 0 everywhere, and for each layer 1 in that layer; a policy's petal is where it plays 1.

    Attributes:
        horizon: H, steps.
        width: ordinary states of a layer.
        instance: number of the secret; none takes the run's seed, so that seeds are secrets.
    """

    horizon: int = 8
    width: int = 4
    instance: int | None = None

    name: ClassVar[str] = "singletons"
    budget: ClassVar[str] = "samples=26000"
    drawn_by_seed: ClassVar[bool] = True

    def for_seed(self, seed: int) -> Singletons:
        """Its secret."""
        return replace(self, instance=seed) if self.instance is None else self

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, horizon=self.horizon >= 1, width=self.width >= 1)
        super().__post_init__()

    @cached_property
    def secret(self) -> tuple[int, int]:
        """Layer and state, from 0."""
        stream = generator(self.instance or 0, "singletons")
        return divmod(int(torch.randint(self.horizon * self.width, (), generator=stream)), self.width)

    @cached_property
    def mdp(self) -> FiniteMDP:
        """The ordinary states, then the good and the bad branch."""
        h, n = self.horizon, self.width
        good, bad = n, n + 1
        transition = torch.zeros(h, n + 2, 2, n + 2, dtype=torch.float64)
        transition[:, :n, 0, :n] = 1 / n
        transition[:, :, 1, bad] = 1
        transition[:, good, 0, good] = transition[:, bad, 0, bad] = 1
        reward = torch.zeros(h, n + 2, 2, dtype=torch.float64)
        reward[-1] = 0.1
        reward[-1, :n, 0], reward[-1, good, 0] = 0.4, 0.9
        layer, state = self.secret
        transition[layer, state, 1] = 0
        transition[layer, state, 1, good] = 1
        if layer == h - 1:
            reward[-1, state, 1] = 0.9
        first = torch.zeros(n + 2, dtype=torch.float64)
        first[:n] = 1 / n
        steps = [(t, s) for t in range(h) for s in range(n)]
        policies = torch.zeros(len(steps) + 1, h, n + 2, dtype=torch.long)
        for number, (t, s) in enumerate(steps):
            policies[number + 1, t, s] = 1
        core = torch.zeros(h + 1, h, n + 2, dtype=torch.long)
        for t in range(h):
            core[t + 1, t] = 1
        return FiniteMDP(
            transition,
            reward,
            first,
            horizon=h,
            restart=first,
            reward_noise="bernoulli",
            states=(*(f"ordinary {s}" for s in range(n)), "good", "bad"),
            policies=PolicyClass(policies, core, ((), *(((step),) for step in steps))),
        )


@dataclass(frozen=True)
class Ladder(FiniteTask):
    """Two policies, of which one is the best everywhere; but noise in the last layers hides it, and errors add up.

    Layer h has states a and b. In a action 0 leads to b of the next layer and 1 pays 1/2; in b action 0 pays 1/2 and 1
    pays 3^-h less. In the last layer a pays 1/2 for both. Rewards are Bernoulli. It begins in b; resets draw a with
    probability 6/7. The class: 0 everywhere, which is optimal, and 1 everywhere.

    Attributes:
        horizon: H, layers.
    """

    horizon: int = 5

    name: ClassVar[str] = "reset-ladder"
    budget: ClassVar[str] = "queries=50000"

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, horizon=self.horizon >= 1)
        super().__post_init__()

    @cached_property
    def mdp(self) -> FiniteMDP:
        """States a, b and the end."""
        layers = self.horizon
        transition = torch.zeros(layers, 3, 2, 3, dtype=torch.float64)
        transition[..., 2] = 1
        reward = torch.zeros(layers, 3, 2, dtype=torch.float64)
        for h in range(layers):
            reward[h, 0, 1] = reward[h, 1, 0] = 0.5
            reward[h, 1, 1] = 0.5 - 3.0 ** -(h + 1)
            if h + 1 == layers:
                reward[h, 0, 0] = 0.5
            else:
                transition[h, 0, 0] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        return FiniteMDP(
            transition,
            reward,
            [0.0, 1.0, 0.0],
            horizon=layers,
            restart=[6 / 7, 1 / 7, 0.0],
            reward_noise="bernoulli",
            states=("a", "b", "end"),
            policies=PolicyClass([[0, 0, 0], [1, 1, 1]]),
        )


@dataclass(frozen=True)
class RichLock(FiniteTask):
    """A combination lock of two actions whose state is not seen: each visit shows one of many observations of it.

    The secret action of a layer keeps the lock good, the other makes it bad for ever; the last step pays 1 with
    probability .9 if the lock is good behind it, else .1. Good and bad show `emissions` observations each, equally
    often. A policy of the class has a code of its own and takes the other action at a tenth of the observations, others
    for each policy and layer: so data of one policy say nothing of another, and the class does not hold the best
    policy. One policy has the secret code, and is worth .1 + .8 .9^H. Resets draw either state, equally often.

    Attributes:
        horizon: H, layers.
        emissions: observations of a state, a multiple of ten.
        candidates: policies of the class.
        instance: number of the secret; none takes the run's seed, so that seeds are secrets.
    """

    horizon: int = 8
    emissions: int = 40
    candidates: int = 64
    instance: int | None = None

    name: ClassVar[str] = "rich-lock"
    budget: ClassVar[str] = "samples=33000"
    drawn_by_seed: ClassVar[bool] = True

    def for_seed(self, seed: int) -> RichLock:
        """Its secret."""
        return replace(self, instance=seed) if self.instance is None else self

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, horizon=self.horizon >= 1, candidates=self.candidates >= 1)
        check_setting(self, emissions=self.emissions >= 10 and self.emissions % 10 == 0)
        super().__post_init__()

    @cached_property
    def mdp(self) -> FiniteMDP:
        """Observations of the good state, then those of the bad one."""
        h, e, n = self.horizon, self.emissions, self.candidates
        stream = generator(self.instance or 0, "rich lock")
        codes = torch.randint(2, (n, h), generator=stream)
        right = int(torch.randint(n, (), generator=stream))
        transition = torch.zeros(h, 2 * e, 2, 2 * e, dtype=torch.float64)
        transition[..., e:] = 1 / e
        reward = torch.zeros(h, 2 * e, 2, dtype=torch.float64)
        reward[-1] = 0.1
        for layer, secret in enumerate(codes[right].tolist()):
            transition[layer, :e, secret, :e], transition[layer, :e, secret, e:] = 1 / e, 0
        reward[-1, :e, int(codes[right, -1])] = 0.9
        order = torch.rand(n, h, 2, e, generator=stream).argsort(-1).argsort(-1)
        noise = (order < e // 10).long().view(n, h, 2 * e)  # a tenth of each state's observations
        first = torch.zeros(2 * e, dtype=torch.float64)
        first[:e] = 1 / e
        return FiniteMDP(
            transition,
            reward,
            first,
            horizon=h,
            reward_noise="bernoulli",
            policies=PolicyClass(codes[:, :, None] ^ noise),
        )
