"""Ranks of a network's adapter over a radio link: what is trained far away has to be sent, and the channel changes.

The environment of arXiv:2507.11515's code. In the place of its language model stands a small network that is adapted to
another classification (`svd_lora`), and in the place of what it tells of a batch's tokens what its classes tell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from polyrl.errors import UserError
from polyrl.tasks.control.svd_lora import Adapter, Frozen, networks

Ranks = NDArray[np.int64]
SNRS = (-5.0, 0.0, 5.0, 10.0, 15.0)
"""Signal-to-noise ratios in decibels, of which every step has another."""
BITS, SECONDS, LEAST, STEPS = 32, 1.0, 1, 15
"""Bits of a number, time for one step's transmission, least rank, steps of an episode."""
PRICE, PENALTY = 0.1, 10.0
"""What a unit of cost takes off the reward, and what it takes besides where nothing arrives."""
WIDTH, CLASSES, BATCH, HELD_OUT, CHANGED = 16, 8, 32, 1_000, 2
"""Numbers of a layer, classes, rows of a batch and of the test set, and layers in which the other problem differs."""
FULL_EFFICIENCY = 2.0
"""Bits a second and hertz at which the full rank just fits: it does from 5 dB on."""
SMALL = 64
"""Plans of constant ranks of which the best is found by trying all."""


def capacity(snr: float, bandwidth: float) -> float:
    """Bits a second of a channel of `snr` decibels and `bandwidth` hertz (Shannon)."""
    return bandwidth * math.log2(1 + 10 ** (snr / 10))


def unit_sizes(sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Numbers that one component of each layer has, inputs + outputs + 1, `[L]`."""
    return np.array([inputs + outputs + 1 for inputs, outputs in sizes])


def transmission_cost(numbers: float, snr: float, bandwidth: float) -> float:
    """Time to send that many numbers, over what there is; above 1 they do not arrive."""
    return BITS * numbers / (capacity(snr, bandwidth) * SECONDS)


def decoded(code: Any, highest: int) -> Ranks:
    """Ranks LEAST to `highest` of numbers in [-1, 1], cut there: the floor of equal shares, and the highest only at 1.

    Codes of ranks, which are rounded, are read as the ranks that they are of.
    """
    share = (np.clip(np.asarray(code, np.float64), -1, 1) + 1) / 2
    found: Ranks = LEAST + np.floor(share * (highest - LEAST) + 1e-6).astype(np.int64)
    return found


def encoded(ranks: Ranks, highest: int) -> NDArray[np.float64]:
    """The least numbers in [-1, 1] that are decoded to these ranks."""
    return 2 * (ranks - LEAST) / max(highest - LEAST, 1) - 1.0


def verify(ranks: Any, sizes: Sequence[tuple[int, int]], highest: int, snr: float, bandwidth: float) -> float:
    """The transmission cost of `ranks`, found from them alone.

    Raises:
        UserError: they are no ranks of these layers, or do not fit the channel.
    """
    found = [*ranks]
    if len(found) != len(sizes):
        raise UserError(f"There are {len(found)} ranks for {len(sizes)} layers.")
    bits = 0
    for layer, (rank, (inputs, outputs)) in enumerate(zip(found, sizes, strict=True)):
        if rank != int(rank) or not LEAST <= rank <= highest:
            raise UserError(f"The rank of layer {layer} is {rank} and not a whole number from {LEAST} to {highest}.")
        bits += BITS * int(rank) * (inputs + outputs + 1)
    seconds = bits / (bandwidth * math.log2(1 + 10 ** (snr / 10)))
    if seconds > SECONDS:
        raise UserError(f"These ranks take {seconds:.3g} s to send at {snr:g} dB, and there is {SECONDS:g} s.")
    return seconds / SECONDS


# --------------------------------------------------------------------------------------------------- what is adapted


@dataclass(frozen=True)
class Problem:
    """What does not change over a run.

    Attributes:
        start: the adapter at first, with the frozen network.
        goal: says the right classes.
        changed: layers in which it differs from the frozen network.
        tested: inputs `[N, D]` and classes `[N]` that are never trained on.
    """

    start: Adapter
    goal: Frozen
    changed: tuple[int, ...]
    tested: tuple[NDArray[np.float64], NDArray[np.int64]]

    @property
    def unit(self) -> NDArray[np.int64]:
        """Numbers of one component of each layer, `[L]`."""
        return unit_sizes(self.start.frozen.sizes)

    @property
    def bandwidth(self) -> float:
        """Hertz."""
        return BITS * int(self.unit.sum()) * self.start.rank / (FULL_EFFICIENCY * SECONDS)

    def accuracy(self, adapter: Adapter) -> float:
        """Share of the test set that is right with all components."""
        x, y = self.tested
        full = np.full(len(adapter.frozen.weights), adapter.rank)
        return float((adapter.logits(x, full).argmax(1) == y).mean())


@lru_cache
def problem_of(layers: int, rank: int, instance: int) -> Problem:
    """Networks, adapter and test set."""
    draw = np.random.default_rng([instance, 17])
    changed = tuple(sorted(draw.choice(layers, min(CHANGED, layers), replace=False).tolist()))
    changes = [WIDTH // 2 if layer in changed else 0 for layer in range(layers)]
    frozen, goal = networks(draw, layers, WIDTH, CLASSES, changes)
    start = Adapter.new(frozen, rank, draw)
    x = draw.standard_normal((HELD_OUT, WIDTH))
    return Problem(start, goal, changed, (x, goal.classes(x)))


# ----------------------------------------------------------------------------------------------------------- the rules


def largest_uniform(problem: Problem, snr: float, draw: np.random.Generator) -> Ranks:
    """The largest rank that fits, for all layers the same."""
    layers, fits = len(problem.unit), LEAST
    while fits < problem.start.rank:
        if transmission_cost(int(problem.unit.sum()) * (fits + 1), snr, problem.bandwidth) > 1:
            break
        fits += 1
    return np.full(layers, fits)


def lowest(problem: Problem, snr: float, draw: np.random.Generator) -> Ranks:
    """The least rank everywhere."""
    return np.full(len(problem.unit), LEAST)


def full(problem: Problem, snr: float, draw: np.random.Generator) -> Ranks:
    """The full rank everywhere, whether it fits or not."""
    return np.full(len(problem.unit), problem.start.rank)


def changed_first(problem: Problem, snr: float, draw: np.random.Generator) -> Ranks:
    """Rank by rank to the layers in which the problems differ, then to the others, as far as it fits.

    It knows what no learner is told: which layers these are.
    """
    others = [layer for layer in range(len(problem.unit)) if layer not in problem.changed]
    return _filled(problem, snr, [[*problem.changed], others])


def random_that_fits(problem: Problem, snr: float, draw: np.random.Generator) -> Ranks:
    """Some of the components that fit, each in a layer at random."""
    spare = transmission_cost(int(problem.unit.sum()) * LEAST, snr, problem.bandwidth)
    most = int((1 / spare - 1) * LEAST * len(problem.unit)) if spare < 1 else 0
    ranks, wanted = lowest(problem, snr, draw), int(draw.integers(max(most, 0) + 1))
    for layer in draw.permutation(np.repeat(np.arange(len(ranks)), problem.start.rank - LEAST))[:wanted]:
        ranks[layer] += 1
        if transmission_cost(float(ranks @ problem.unit), snr, problem.bandwidth) > 1:
            ranks[layer] -= 1
            break
    return ranks


def _filled(problem: Problem, snr: float, order: list[list[int]]) -> Ranks:
    ranks = np.full(len(problem.unit), LEAST)
    for layers in order:
        for _, layer in itertools.product(range(problem.start.rank - LEAST), layers):
            ranks[layer] += 1
            if transmission_cost(float(ranks @ problem.unit), snr, problem.bandwidth) > 1:
                ranks[layer] -= 1
                return ranks
    return ranks


Rule = Callable[[Problem, float, np.random.Generator], Ranks]
RULES: dict[str, Rule] = {
    "lowest": lowest,
    "full": full,
    "random": random_that_fits,
    "uniform": largest_uniform,
    "changed-first": changed_first,
}
"""What may decide in the place of a policy, by name."""
LINES = {"rank 1": "lowest", "largest uniform rank that fits": "uniform", "changed layers first": "changed-first"}
"""Rules that stand beside every result."""


# ----------------------------------------------------------------------------------------------------- the environment


class LoraLink(gymnasium.Env[NDArray[np.float32], Any]):
    """The link without what stands beside its results: see `LoraChannel`."""

    def __init__(
        self, layers: int = 8, rank: int = 8, snr: float | None = None, instance: int = 0, rule: str | None = None
    ):
        for name, value, least in (("layers", layers, 1), ("rank", rank, 1), ("instance", instance, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"The {name} of lora-channel must be a whole number from {least}, not {value!r}.")
        if rank > WIDTH:
            raise UserError(f"The rank of lora-channel must be at most {WIDTH}, the width of its layers, not {rank}.")
        if snr is not None and (isinstance(snr, bool) or not isinstance(snr, int | float) or not math.isfinite(snr)):
            raise UserError(f"The snr of lora-channel must be a number of decibels, not {snr!r}.")
        if rule is not None and rule not in RULES:
            raise UserError(f"The rule of lora-channel must be one of {', '.join(RULES)}, not {rule!r}.")
        self.problem, self.rank = problem_of(layers, rank, instance), rank
        self.snrs = SNRS if snr is None else (float(snr),)
        self.plan: Rule | None = None if rule is None else RULES[rule]
        self.observation_space = spaces.Box(0, 1, (4 + layers,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Box(-1, 1, (layers,), np.float32)
        start = self.problem.start
        self.vector, self.averages, self.taken = start.vector.copy(), start.averages.copy(), start.taken.copy()
        self.accuracy = np.array([self.problem.accuracy(start)])
        self.metadata: dict[str, Any] = {
            "render_modes": [],
            "info_fields": {"rank_code": (layers,), "kilobits": (), "arrived": (), "accuracy": ()},
            "lasting": ("vector", "averages", "taken", "accuracy"),
        }

    @property
    def adapter(self) -> Adapter:
        """What has been trained up to now."""
        start = self.problem.start
        return Adapter(start.frozen, start.rank, self.vector, self.averages, self.taken)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Half of the full rank everywhere, and a batch; what has been trained stays."""
        super().reset(seed=seed)
        self.ranks, self.t = np.full(len(self.problem.unit), max(LEAST, self.rank // 2)), 0
        self._draw_batch()
        return self._shown(), {}

    def _draw_batch(self) -> None:
        self.x = self.np_random.standard_normal((BATCH, WIDTH))
        self.y = self.problem.goal.classes(self.x)

    def _shown(self) -> NDArray[np.float32]:
        """Draw the channel of the next step, and show it with the batch's classes and the ranks."""
        self.snr = float(self.np_random.choice(self.snrs))
        low, high = min(self.snrs), max(self.snrs)
        shares = np.bincount(self.y, minlength=CLASSES) / len(self.y)
        entropy = -float((shares * np.log(np.where(shares > 0, shares, 1))).sum()) / math.log(CLASSES)
        channel = [(self.snr - low) / (high - low) if high > low else 0.5, 0.5]
        told = [*channel, entropy, float((shares == 0).mean()), *(self.ranks / self.rank)]
        return np.array(told, dtype=np.float32)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Send these ranks over the channel that was shown; what fits is trained by one step, and what does not is not.

        Raises:
            ValueError: an action is not finite.
        """
        if not np.isfinite(action).all():
            raise ValueError("a rank was to be made of a number that is not finite")
        problem = self.problem
        self.ranks = decoded(action, self.rank)
        if self.plan is not None:
            self.ranks = self.plan(problem, self.snr, self.np_random)
        numbers = int(self.ranks @ problem.unit)
        cost = transmission_cost(numbers, self.snr, problem.bandwidth)
        arrived, reward, self.t = cost <= 1, -PRICE * cost, self.t + 1
        if arrived:
            reward -= self.adapter.train(self.x, self.y, self.ranks)
            self._draw_batch()
        else:
            reward -= PENALTY * cost
        if self.t >= STEPS:
            self.accuracy[0] = problem.accuracy(self.adapter)
        told = {
            "rank_code": encoded(self.ranks, self.rank),
            "kilobits": BITS * numbers / 1000 if arrived else 0.0,
            "arrived": float(arrived),
            "accuracy": self.accuracy[0],
        }
        return self._shown(), reward, self.t >= STEPS, False, told


class LoraChannel(LoraLink):
    """Choose at each of 15 steps the rank of every layer's update; rewards are minus loss and cost of sending.

    A number in [-1, 1] for each of `layers` is read as a rank from 1 to `rank`. A channel is drawn for every step out
    of five, or is always `snr` decibels; it is shown beside the entropy of the batch's classes, the share of classes
    that are not in it, and the ranks before. Ranks that do not fit cost ten times their time, and nothing is trained.
    The adapter trains on from episode to episode. `instance` draws another problem. With a `rule` that one decides,
    whatever the actions are, as something to compare with.
    """

    def __init__(
        self, layers: int = 8, rank: int = 8, snr: float | None = None, instance: int = 0, rule: str | None = None
    ):
        super().__init__(layers, rank, snr, instance, rule)
        self.metadata["lines"] = rule_returns(layers, rank, snr, instance)


def mean_return(link: LoraLink, action: NDArray[np.float64], episodes: int = 10) -> float:
    """Of episodes with one action, or with the link's rule, each from a new adapter."""
    start, total = link.problem.start, 0.0
    for seed in range(episodes):
        link.vector, link.averages, link.taken = start.vector.copy(), start.averages.copy(), start.taken.copy()
        link.reset(seed=seed)
        total += sum(link.step(action)[1] for _ in range(STEPS))
    return total / episodes


@lru_cache
def rule_returns(layers: int, rank: int, snr: float | None, instance: int) -> dict[str, float]:
    """Mean returns of the rules of `LINES`; in a small problem with one channel also of the best constant ranks."""
    nothing = np.zeros(layers)
    found = {
        name: mean_return(LoraLink(layers, rank, snr, instance, rule=rule), nothing) for name, rule in LINES.items()
    }
    if snr is not None and rank**layers <= SMALL:
        link = LoraLink(layers, rank, snr, instance)
        plans = itertools.product(range(LEAST, rank + 1), repeat=layers)
        found["best constant ranks"] = max(mean_return(link, encoded(np.array(plan), rank)) for plan in plans)
    return found
