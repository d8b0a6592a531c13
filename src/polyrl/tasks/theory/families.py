"""Finite MDPs by family and number: a combination lock, rivers to swim in, a grid with holes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask


def check_setting(task: FiniteTask, **wanted: bool) -> None:
    """Refuse a setting, by its name, for which what is wanted does not hold."""
    for name, good in wanted.items():
        if not good:
            raise UserError(f"The task {task.name} has {name}={getattr(task, name)}, which is out of its range.")


@dataclass(frozen=True)
class CombinationLock(FiniteTask):
    """A lock with a secret action for each step: one wrong action, or bad luck, and it is bad for ever.

    In the good state the secret action stays good with probability `keep`; whatever else leads to the bad state. Only
    the last step pays: 1 for the secret action in the good state, `consolation` in the bad one, 0 for a wrong action in
    the good one. Rewards are Bernoulli. `reset-to-distribution` begins in either state, equally often.

    Attributes:
        horizon: H, steps.
        choices: A, actions.
        keep: probability that the right action keeps the lock good.
        consolation: mean reward of the bad state's last step.
        instance: number of the secret code.
    """

    horizon: int = 5
    choices: int = 3
    keep: float = 0.9
    consolation: float = 0.1
    instance: int = 0

    name: ClassVar[str] = "combination-lock"
    budget: ClassVar[str] = "iterations=2000"

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, horizon=self.horizon >= 1, choices=self.choices >= 2)
        check_setting(self, keep=0 <= self.keep <= 1, consolation=0 <= self.consolation <= 1)
        super().__post_init__()

    @cached_property
    def code(self) -> tuple[int, ...]:
        """The secret action of each step."""
        stream = generator(self.instance or 0, "combination lock")
        return tuple(torch.randint(self.choices, (self.horizon,), generator=stream).tolist())

    @cached_property
    def mdp(self) -> FiniteMDP:
        """Two states, good and bad."""
        h, a = self.horizon, self.choices
        transition = torch.zeros(h, 2, a, 2, dtype=torch.float64)
        transition[:, :, :, 1] = 1
        reward = torch.zeros(h, 2, a, dtype=torch.float64)
        for step, secret in enumerate(self.code):
            transition[step, 0, secret] = torch.tensor([self.keep, 1 - self.keep], dtype=torch.float64)
        reward[-1, 1] = self.consolation
        reward[-1, 0, self.code[-1]] = 1
        return FiniteMDP(transition, reward, horizon=h, reward_noise="bernoulli", states=("good", "bad"))


@dataclass(frozen=True)
class StochasticLock(CombinationLock):
    """The combination lock, with another secret code for each seed of a run.

    Attributes:
        instance: number of the secret code; none takes the run's seed, so that seeds are locks.
    """

    instance: int | None = None  # type: ignore[assignment]

    name: ClassVar[str] = "stochastic-lock"
    budget: ClassVar[str] = "samples=16000"
    drawn_by_seed: ClassVar[bool] = True

    def for_seed(self, seed: int) -> StochasticLock:
        """Its lock."""
        return replace(self, instance=seed) if self.instance is None else self


def river(length: int, inner: tuple[float, float, float], small: float, large: float) -> tuple[Tensor, Tensor]:
    """Transition `[S, 2, S]` and mean rewards `[S, 2]` of a river, its states from the left bank to the right.

    Args:
        length: S.
        inner: between the banks, probabilities that swimming right leads one down, nowhere, one up.
        small, large: mean rewards of left at the left bank and of right at the right one.
    """
    transition, reward = torch.zeros(length, 2, length, dtype=torch.float64), torch.zeros(length, 2).double()
    for s in range(length):
        transition[s, 0, max(s - 1, 0)] = 1
        moves = dict(zip((s - 1, s, s + 1), inner, strict=True))
        moves = {s: 0.4, s + 1: 0.6} if s == 0 else {s - 1: 0.4, s: 0.6} if s == length - 1 else moves
        for following, probability in moves.items():
            transition[s, 1, following] = probability
    reward[0, 0], reward[-1, 1] = small, large
    return transition, reward


@dataclass(frozen=True)
class RiverSwim(FiniteTask):
    """A river to swim in: drifting left is easy and pays little, the right bank pays 1 and is against the current.

    Left moves one state left for sure. Right: at the left bank .4 stay, .6 one up; between .05 down, .6 stay, .35 up;
    at the right bank .4 down, .6 stay. (There are other RiverSwims, with other numbers.) Rewards are Bernoulli: `small`
    for left at the left bank, 1 for right at the right bank. It is judged by its average reward unless it has a horizon
    or a discount.

    Attributes:
        length: S, states.
        small: mean reward of the left bank.
        horizon: steps of an episode; none has no episodes.
        discount: of a step; none is the average.
    """

    length: int = 6
    small: float = 0.005
    horizon: int | None = None
    discount: float | None = None

    name: ClassVar[str] = "river-swim"
    budget: ClassVar[str] = "iterations=2000"

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, length=self.length >= 2, small=0 <= self.small <= 1)
        super().__post_init__()

    @cached_property
    def mdp(self) -> FiniteMDP:
        """States from the left bank to the right."""
        return FiniteMDP(
            *river(self.length, (0.05, 0.6, 0.35), self.small, 1.0),
            horizon=self.horizon,
            discount=self.discount,
            reward_noise="bernoulli",
            actions=("left", "right"),
        )


@dataclass(frozen=True)
class LinearRiver(FiniteTask):
    """The river of `river-swim` with more to see and to do than there is to learn, on average: linear in 2 S features.

    Each place of the river shows one of `sights` sights, drawn anew with each step and without meaning; actions are how
    hard to swim, from left (0) to right (1): an effort of a half goes left in half of the steps, and right in the other
    half. So a place and an effort e have the features 1 - e and e, of left and right at that place.

    Attributes:
        length: S, places.
        sights: of each place; states are places and sights.
        efforts: A, from 0 to 1 at equal distances.
        small: mean reward of the left bank.
    """

    length: int = 6
    sights: int = 3
    efforts: int = 3
    small: float = 0.005

    name: ClassVar[str] = "linear-river"
    budget: ClassVar[str] = "steps=20000"

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, length=self.length >= 2, sights=self.sights >= 1, efforts=self.efforts >= 2)
        check_setting(self, small=0 <= self.small <= 1)
        super().__post_init__()

    @cached_property
    def mdp(self) -> FiniteMDP:
        """Places from the left bank to the right, the sights of each side by side."""
        moves, paid = river(self.length, (0.05, 0.6, 0.35), self.small, 1.0)
        effort = torch.linspace(0, 1, self.efforts, dtype=torch.float64)
        shares = torch.stack([1 - effort, effort], -1)  # [A, 2]
        features = torch.einsum("st,ac->satc", torch.eye(self.length).double(), shares).flatten(2)
        transition = (features @ moves.flatten(0, 1)).repeat_interleave(self.sights, 0) / self.sights
        return FiniteMDP(
            transition.repeat_interleave(self.sights, 2),
            (features @ paid.flatten()).repeat_interleave(self.sights, 0),
            reward_noise="bernoulli",
            states=[f"{s}{chr(97 + v % 26)}{v // 26 or ''}" for s in range(self.length) for v in range(self.sights)],
            actions=[f"{share:g}" for share in effort.tolist()],
            features=features.repeat_interleave(self.sights, 0),
        )


@dataclass(frozen=True)
class RiverClass(FiniteTask):
    """A river that is known to be one of 72, by how it flows between the banks and what these pay.

    The class has every combination of the values that each setting may have. At the banks moves are those of
    `river-swim`, in all of them. Rewards are Bernoulli, and the average reward counts.

    Attributes:
        up: probability that swimming right between the banks leads one up: .1, .2, .35 or .5.
        down: that it leads one down: .05 or .2.
        small: mean reward of left at the left bank: .005, .1 or .3.
        large: mean reward of right at the right bank: .2, .6 or 1.
    """

    up: float = 0.2
    down: float = 0.05
    small: float = 0.1
    large: float = 0.2

    name: ClassVar[str] = "river-class"
    budget: ClassVar[str] = "steps=20000"
    values: ClassVar[dict[str, tuple[float, ...]]] = {
        "up": (0.1, 0.2, 0.35, 0.5),
        "down": (0.05, 0.2),
        "small": (0.005, 0.1, 0.3),
        "large": (0.2, 0.6, 1.0),
    }

    def __post_init__(self) -> None:
        """Refuse a river that is none of the class."""
        check_setting(self, **{name: getattr(self, name) in values for name, values in self.values.items()})
        super().__post_init__()

    @cached_property
    def mdp(self) -> FiniteMDP:
        """Six states from the left bank to the right."""

        def one(up: float, down: float, small: float, large: float, **stated: Any) -> FiniteMDP:
            arrays = river(6, (down, 1 - up - down, up), small, large)
            return FiniteMDP(*arrays, reward_noise="bernoulli", actions=("left", "right"), **stated)

        models = [one(*values) for values in itertools.product(*self.values.values())]
        return one(self.up, self.down, self.small, self.large, models=models)


@dataclass(frozen=True)
class HoleGrid(FiniteTask):
    """A grid with holes: walk from one corner to the other; who falls into a hole stays there.

    Up, down, left, right; with probability `slip` the step goes to a side, each equally often. Walls are stayed at. The
    goal pays 1 once, and leads to an end that pays nothing. The holes are drawn by `instance`, and leave a way.

    Attributes:
        width: cells of a side.
        holes: how many cells are holes.
        slip: probability that a step goes aside.
        horizon: steps of an episode; none discounts instead.
        discount: of a step; where there is neither it is .95.
        instance: number of the layout.
    """

    width: int = 4
    holes: int = 3
    slip: float = 0.1
    horizon: int | None = None
    discount: float | None = None
    instance: int = 0

    name: ClassVar[str] = "hole-grid"
    budget: ClassVar[str] = "iterations=2000"

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges."""
        check_setting(self, width=2 <= self.width <= 30, holes=0 <= self.holes <= (self.width - 1) ** 2)
        check_setting(self, slip=0 <= self.slip <= 1)
        super().__post_init__()

    @cached_property
    def layout(self) -> frozenset[int]:
        """The cells that are holes: the first draw that leaves a way from the first cell to the last."""
        cells = self.width**2
        for attempt in range(100_000):
            order = torch.randperm(cells - 2, generator=generator(self.instance, "hole grid", attempt)) + 1
            holes = frozenset(order[: self.holes].tolist())
            seen, edge = {0}, [0]
            while edge:
                cell = edge.pop()
                new = {self._towards(cell, d) for d in range(4)} - seen - holes
                seen |= new
                edge += new
            if cells - 1 in seen:
                return holes
        raise UserError(f"The task {self.name} found no layout with {self.holes} holes that leaves a way; take fewer.")

    def _towards(self, cell: int, direction: int) -> int:
        row, column = divmod(cell, self.width)
        down, right = ((-1, 0), (1, 0), (0, -1), (0, 1))[direction]
        inside = 0 <= row + down < self.width and 0 <= column + right < self.width
        return cell + down * self.width + right if inside else cell

    @cached_property
    def mdp(self) -> FiniteMDP:
        """The cells row by row, and the end."""
        cells = self.width**2
        transition = torch.zeros(cells + 1, 4, cells + 1, dtype=torch.float64)
        reward = torch.zeros(cells + 1, 4, dtype=torch.float64)
        sides = ((2, 3), (2, 3), (0, 1), (0, 1))
        for cell in range(cells):
            for action in range(4):
                if cell in self.layout:
                    transition[cell, action, cell] = 1
                elif cell == cells - 1:
                    transition[cell, action, cells], reward[cell, action] = 1, 1
                else:
                    transition[cell, action, self._towards(cell, action)] += 1 - self.slip
                    for side in sides[action]:
                        transition[cell, action, self._towards(cell, side)] += self.slip / 2
        transition[cells, :, cells] = 1
        places = [f"{row},{column}" for row in range(self.width) for column in range(self.width)]
        return FiniteMDP(
            transition,
            reward,
            horizon=self.horizon,
            discount=self.discount if self.discount or self.horizon else 0.95,
            states=(*places, "end"),
            actions=("up", "down", "left", "right"),
        )
