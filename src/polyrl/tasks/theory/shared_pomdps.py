"""Several small POMDPs as one task, whose models have a part in common, and exact answers by enumeration.

A history is o_1 a_1 o_2 ... o_h. With two observations and two actions there are few, so they are the states of a
finite MDP, one block of them for each problem: an episode begins in one of the problems, each equally often, and what
a policy is worth is its mean over the problems. The hidden state is nobody's to see.

Histories of h observations are numbered from 0, the last observation counting the fastest; those of all H are the
sequences, X = 2 4^(H - 1) of them. What is done after the last observation leads nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.runtime.seeding import generator
from polyrl.tasks.theory.families import check_setting
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

OBSERVATIONS = ACTIONS = 2
TRANSITIONS = tuple(itertools.product((0.6, 0.75, 0.9), (0.5, 0.7, 0.9)))
"""Probabilities (p, q) that action 0 keeps the hidden state and that action 1 switches it."""
EMISSIONS = tuple(itertools.product((0.7, 0.9), repeat=2))
"""Probabilities (e0, e1) that the observation is the hidden state, in either."""
MODELS = tuple((*moves, *shows) for moves in TRANSITIONS for shows in EMISSIONS)
"""The models of one problem, (p, q, e0, e1)."""
MOST_JOINT = 10_000
"""The largest joint class: its pairs are enumerated."""


def histories(models: Sequence[Sequence[float]], horizon: int) -> list[Tensor]:
    """Probabilities of the observations of every history under models (p, q, e0, e1), given its actions.

    Returns:
        for h = 1..H `[M, 2 4^(h - 1)]`; each sums to 1 over observations whatever the actions are.
    """
    p, q, e0, e1 = torch.tensor(models, dtype=torch.float64).T
    keeps = torch.stack([p, 1 - q], 1)  # [M, A]
    move = torch.stack([torch.stack([keeps, 1 - keeps], -1), torch.stack([1 - keeps, keeps], -1)], 2)  # [M, A, S, S]
    shows = torch.stack([torch.stack([e0, 1 - e0], -1), torch.stack([1 - e1, e1], -1)], 1)  # [M, S, O]
    joint = 0.5 * shows.transpose(1, 2)  # [M, histories, S]: of the history and the hidden state
    found = [joint.sum(-1)]
    for _ in range(horizon - 1):
        joint = torch.einsum("mxs,mast,mto->mxaot", joint, move, shows).flatten(1, 3)
        found.append(joint.sum(-1))
    return found


def best_response(weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """max over policies of sum over sequences of pi(sequence) W(sequence), which is sum max sum max ... sum.

    An action may depend on the observations before it, so sums over them stand outside its maximum.

    Args:
        weights: W `[..., X]`.

    Returns:
        the value `[...]`, and the actions after each history of h = 1..H - 1 observations, `[..., 2 4^(h - 1)]`.
    """
    value, actions = weights, list[Tensor]()
    while value.shape[-1] > OBSERVATIONS:
        best = value.reshape(*value.shape[:-1], -1, ACTIONS, OBSERVATIONS).sum(-1).max(-1)
        value = best.values
        actions.insert(0, best.indices)
    return value.sum(-1), actions


def distances(likelihoods: Tensor) -> Tensor:
    """Total variation of the sequences of two models under the policy that tells them apart the best, `[M, M]`.

    Args:
        likelihoods: `[M, X]`.
    """
    return best_response((likelihoods[:, None] - likelihoods).abs() / 2)[0]


@dataclass(frozen=True)
class SharedPOMDPs(FiniteTask):
    """POMDPs of two states, observations and actions, whose models are of a finite class; each seed draws others.

    Half of the episodes begin in either hidden state. Action 0 keeps it with probability p, action 1 switches it with
    probability q; an observation is the hidden state with probability e0 or e1, by the state. From the second step on
    an observation pays 1 / (H - 1), where it is 1 at even steps and 0 at odd ones.

    Attributes:
        tasks: N, problems.
        horizon: H, observations of an episode.
        shared: what the problems are known to have in common: (p, q), the whole model, or nothing.
        known_transition: whether (p, q) is known, as it is where it was learned on other problems.
        instance: number of the problems; none takes the run's seed, so that seeds are problems.
    """

    tasks: int = 2
    horizon: int = 3
    shared: Literal["transition", "everything", "nothing"] = "transition"
    known_transition: bool = False
    instance: int | None = None

    name: ClassVar[str] = "shared-pomdps"
    budget: ClassVar[str] = "iterations=6000"
    drawn_by_seed: ClassVar[bool] = True
    equal_optima: ClassVar[bool] = False

    def for_seed(self, seed: int) -> SharedPOMDPs:
        """Its problems."""
        return replace(self, instance=seed) if self.instance is None else self

    def __post_init__(self) -> None:
        """Refuse numbers out of their ranges, and a class that is too large to be enumerated."""
        check_setting(self, tasks=self.tasks >= 1, horizon=2 <= self.horizon <= 4)
        check_setting(self, shared=self.shared in ("transition", "everything", "nothing"))
        moves = 1 if self.known_transition else len(TRANSITIONS)
        powers = {"transition": (1, self.tasks), "everything": (1, 1), "nothing": (self.tasks, self.tasks)}
        of_moves, of_shows = powers[self.shared]
        size = moves**of_moves * len(EMISSIONS) ** of_shows
        if size > MOST_JOINT:
            raise UserError(
                f"{self.tasks} problems that share {self.shared} have {size:,} joint models, and at most "
                f"{MOST_JOINT:,} are enumerated; give {self.name} fewer tasks."
            )
        super().__post_init__()

    # -- the class of models, and the true ones

    @cached_property
    def truth(self) -> Tensor:
        """Numbers of the true models in `MODELS`, `[N]`."""
        streams = [
            generator(self.instance or 0, "shared pomdps", str(n)) for n in range(self.tasks)
        ]  # fewer: the first
        moves, shows = (
            torch.cat([torch.randint(len(kinds), (1,), generator=stream) for stream in streams])
            for kinds in (TRANSITIONS, EMISSIONS)
        )
        if self.shared != "nothing":
            moves = moves[:1].expand(self.tasks)
        if self.shared == "everything":
            shows = shows[:1].expand(self.tasks)
        return moves * len(EMISSIONS) + shows

    @cached_property
    def joint(self) -> Tensor:
        """The joint class: numbers in `MODELS` for each problem, `[J, N]`."""
        known, shows = (self.truth // len(EMISSIONS)).tolist(), range(len(EMISSIONS))
        every = [[t] if self.known_transition else [*range(len(TRANSITIONS))] for t in known]
        moves = [*itertools.product(*every)] if self.shared == "nothing" else [(t,) * self.tasks for t in every[0]]
        kinds = [*itertools.product(shows, repeat=self.tasks)]
        if self.shared == "everything":
            kinds = [(e,) * self.tasks for e in shows]
        return torch.tensor(moves)[:, None].mul(len(EMISSIONS)).add(torch.tensor(kinds)).flatten(0, 1)

    @cached_property
    def likelihoods(self) -> Tensor:
        """Probability of the observations of every sequence under every model, given the actions, `[36, X]`."""
        return histories(MODELS, self.horizon)[-1]

    @cached_property
    def distances(self) -> Tensor:
        """How far two models are apart under the policy that tells them apart the best, `[36, 36]`."""
        return distances(self.likelihoods)

    @cached_property
    def returns(self) -> Tensor:
        """R of every sequence, `[X]`, from 0 to 1."""
        total = torch.zeros(OBSERVATIONS, dtype=torch.float64)
        for step in range(1, self.horizon):
            total = (total[:, None, None] + self._pays(step)).expand(-1, ACTIONS, OBSERVATIONS).flatten()
        return total

    def _pays(self, step: int) -> Tensor:
        """What the observations `[2]` of a step, from 0, pay."""
        wanted = torch.arange(OBSERVATIONS) == step % 2
        return wanted.double() / (self.horizon - 1) if step else torch.zeros(OBSERVATIONS, dtype=torch.float64)

    # -- histories as states: of each problem all of one observation, of two, ...

    @cached_property
    def _begin(self) -> list[int]:
        """Where in a problem's block the histories of 1..H observations begin, and where the block ends."""
        sizes = (OBSERVATIONS * (ACTIONS * OBSERVATIONS) ** h for h in range(self.horizon))
        return [0, *itertools.accumulate(sizes)]

    def sequences(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Problem and number of the sequence of final states `[B]`, two times `[B]`."""
        return states // self._begin[-1], states % self._begin[-1] - self._begin[-2]

    def policy(self, actions: Sequence[Tensor]) -> Tensor:
        """A policy `[H, S, A]` of actions after histories of h = 1..H - 1 observations, `[N, 2 4^(h - 1)]` each.

        Uniform after the last observation.
        """
        found = self.mdp.uniform.view(self.horizon, self.tasks, -1, ACTIONS).clone()  # [H, N, block, A]
        for h, chosen in enumerate(actions):
            found[h, :, self._begin[h] : self._begin[h + 1]] = torch.nn.functional.one_hot(chosen, ACTIONS).double()
        return found.flatten(1, 2)

    @cached_property
    def mdp(self) -> FiniteMDP:
        """Histories, and the next observation by the true models; played from the start and not otherwise."""
        block, chances = self._begin[-1], histories([MODELS[m] for m in self.truth.tolist()], self.horizon)
        transition = torch.eye(block, dtype=torch.float64)[None, :, None].repeat(self.tasks, 1, ACTIONS, 1)
        reward, names = torch.zeros(block, dtype=torch.float64), [str(o) for o in range(OBSERVATIONS)]
        for h in range(self.horizon):
            here = slice(self._begin[h], self._begin[h + 1])
            reward[here] = self._pays(h).repeat((here.stop - here.start) // OBSERVATIONS)
            if h + 1 == self.horizon:
                break
            transition[:, here] = 0
            following = chances[h + 1].view(self.tasks, -1, ACTIONS, OBSERVATIONS) / chances[h][:, :, None, None]
            for number in range(here.stop - here.start):
                first = self._begin[h + 1] + number * ACTIONS * OBSERVATIONS
                for action in range(ACTIONS):
                    after = slice(first + action * OBSERVATIONS, first + (action + 1) * OBSERVATIONS)
                    transition[:, here.start + number, action, after] = following[:, number, action]
            before = names[here]
            names += [f"{n} a{a} {o}" for n in before for a in range(ACTIONS) for o in range(OBSERVATIONS)]
        start = torch.zeros(self.tasks, block, dtype=torch.float64)
        start[:, :OBSERVATIONS] = chances[0] / self.tasks
        apart = torch.zeros(self.tasks, block, ACTIONS, self.tasks, block, dtype=torch.float64)
        for n in range(self.tasks):
            apart[n, :, :, n] = transition[n]
        return FiniteMDP(
            apart.reshape(self.tasks * block, ACTIONS, -1),
            reward.repeat(self.tasks)[:, None].expand(-1, ACTIONS),
            start.flatten(),
            horizon=self.horizon,
            states=[f"{n + 1}: {name}" for n in range(self.tasks) for name in names],
            access=frozenset({"episodes"}),
        )
