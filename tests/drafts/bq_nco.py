"""BQ-NCO: build a tour from the sub-problem that remains, and learn it from optimal tours cut into sub-problems.

A draft of arXiv:2301.03313 on the traveling salesman: a state is where one stands, where the tour ends, and what is not
visited yet, so that prefixes with the same future are one state. One attention network reads it anew at every step; it
imitates the first decision of sub-paths of optimal tours, which are cut in the source. Sizes differ and are padded, and
the network reads any: greedy decoding of a batch of instances judges it at sizes that it was not trained on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.core.update import Sample, Update
from polyrl.data.base import Rows, Source
from polyrl.models.actor_critic import MlpPolicyNetwork
from polyrl.models.base import Interface, Trained
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import Categorical
from polyrl.parts.improve import NLL
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runtime.seeding import stream_seed
from polyrl.tasks.batched import Actions, Observation, Padded, greedily
from polyrl.tasks.operations.routing import TravelingSalesman, held_karp

SLUG, TITLE, PAPER, YEAR = (
    "bq-nco-draft",
    "Bisimulation Quotienting for Combinatorial Optimization",
    "arXiv:2301.03313",
    2023,
)
FORMULA = "loss = -log pi(first node of an optimal sub-path | origin, destination, the nodes between)"
SIZES = (5, 6, 7)
MOST = max(SIZES)


def optimal(points: NDArray[Any], origin: NDArray[Any], destination: NDArray[Any]) -> tuple[float, list[int]]:
    """Length and order of the shortest path from `origin` through all `points` `[n, 2]` to `destination`."""
    orders = np.array(list(itertools.permutations(range(len(points)))))
    ends = (np.broadcast_to(end, (len(orders), 1, 2)) for end in (origin, destination))
    first, last = ends
    paths = np.concatenate([first, points[orders], last], 1)
    lengths = np.linalg.norm(np.diff(paths, axis=1), axis=2).sum(1)
    best = int(lengths.argmin())
    return float(lengths[best]), orders[best].tolist()


def shown(
    origin: NDArray[Any], destination: NDArray[Any], nodes: NDArray[Any], left: NDArray[np.bool_]
) -> NDArray[Any]:
    """A sub-problem as tokens (x, y, is there) `[2 + MOST, 3]`, origin and destination first, as one flat array."""
    tokens = np.zeros((2 + MOST, 3), np.float32)
    tokens[0], tokens[1] = [*origin, 1], [*destination, 1]
    tokens[2 : 2 + len(nodes), :2], tokens[2 : 2 + len(nodes), 2] = nodes * left[:, None], left
    return tokens.reshape(-1)


class Tour(gymnasium.Env[np.ndarray, int]):
    """Visit uniform cities and come back; the reward is minus the distance. One row of the batched environment."""

    observation_space = spaces.Box(0, 1, ((2 + MOST) * 3,), np.float32)
    action_space = spaces.Discrete(MOST)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.row = TravelingSalesman(int(self.np_random.integers(2**31)), 1, min(SIZES), max(SIZES))
        cities = self.row.instance(0)
        self.start, self.nodes = cities[0], cities[1:]
        return self._told()

    def _told(self) -> Any:
        mask = np.zeros(MOST, np.int8)
        mask[: max(SIZES) - 1] = self.row.state["left"][0, 1:].numpy()
        return tokens_of(self.row.observe(), MOST)[0].numpy(), {"action_mask": mask}

    def step(self, action: int) -> Any:
        moved = self.row.step(torch.tensor([int(action) + 1]))
        observation, info = self._told()
        return observation, float(moved.reward), bool(moved.terminated), False, info


def tokens_of(seen: Observation, most: int) -> Tensor:
    """What is shown of rows as tokens (x, y, is there), origin and destination first, then `most` places, flat."""
    cities, left = seen["cities"], seen["left"]
    assert isinstance(cities, Padded) and isinstance(left, Tensor)
    rows = torch.arange(len(left))
    ends = torch.stack([cities.values[rows, seen[name]] for name in ("here", "end")], 1)  # type: ignore[index]
    between = torch.cat([cities.values, torch.ones(*left.shape, 1)], 2)[:, 1:] * left[:, 1:, None]
    empty = torch.zeros(len(left), most - between.shape[1], 3)
    return torch.cat([torch.cat([ends, torch.ones(len(left), 2, 1)], 2), between, empty], 1).flatten(1)


def deciding(network: Attention) -> Actions:
    """Greedy decoding of rows of any size by a network that was trained on sub-problems."""

    @torch.no_grad()
    def scores(seen: Observation) -> Tensor:
        left = seen["left"]
        assert isinstance(left, Tensor)
        found: Tensor = network(tokens_of(seen, left.shape[1] - 1))
        return torch.cat([found.new_zeros(len(left), 1), found], 1)  # city 0 is where the tour ends

    return greedily(scores)


class Solved(Rows):
    """Optimal tours; a row is a random sub-path of one, its middle in random order, its first node the action."""

    def __init__(self, count: int, seed: int):
        instances = TravelingSalesman(stream_seed(seed, "solutions"), count, min(SIZES), max(SIZES))
        cities = [instances.instance(row) for row in range(count)]
        self.tours = [points[held_karp(points)[1]] for points in cities]

    def ready(self) -> bool:
        return True

    def sample(self, count: int, stream: torch.Generator) -> Experience:
        drawn = np.random.default_rng(int(torch.randint(2**31, (1,), generator=stream)))
        rows, actions, masks = [], [], np.zeros((count, MOST), dtype=bool)
        number = drawn.integers(len(self.tours), size=count)
        for i, n in enumerate(number):
            tour = np.roll(self.tours[n], drawn.integers(MOST), 0)[:: drawn.choice((-1, 1))]
            closed = np.concatenate([tour, tour[:1]])  # the whole instance has its origin twice
            path = closed[: drawn.integers(4, len(closed) + 1)]
            order = drawn.permutation(len(path) - 2)
            rows.append(shown(path[0], path[-1], path[1:-1][order], np.ones(len(order), dtype=bool)))
            actions.append(int(order.argmin()))
            masks[i, : len(order)] = True
        fields = {"observation": np.stack(rows), "action": np.array(actions), "action_mask": masks, "row": number}
        found = Experience({name: torch.from_numpy(x).unsqueeze(1) for name, x in fields.items()})
        return found.with_fields(weight=torch.ones(count, 1))


@dataclass(frozen=True)
class Solutions(Source):
    """Sub-problems of optimally solved instances."""

    fields: ClassVar[frozenset[str]] = frozenset({"observation", "action", "action_mask", "weight", "row"})

    instances: int = hyperparameter(500, "tours that are solved", low=1)

    def make(self, name: str, task: Any, config: Any) -> Rows:
        return Solved(self.instances, config.seed)


class Attention(nn.Module):
    """Tokens to scores of the nodes between; ReZero, no positions, padding is not looked at."""

    def __init__(self, width: int, layers: int, stream: torch.Generator):
        super().__init__()
        self.begin, self.end = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.embed, self.score = nn.Linear(2, width), nn.Linear(width, 1)
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers))
        wide = (
            nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.forth = nn.ModuleList(wide)
        self.alpha = nn.Parameter(torch.zeros(layers, 2))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name != "alpha":
                    parameter.uniform_(-1, 1, generator=stream).mul_(parameter.shape[-1] ** -0.5)

    def forward(self, observation: Tensor) -> Tensor:
        """Scores `[..., M]` of flat observations `[..., 3 (2 + M)]`, of any number M of nodes between."""
        most = observation.shape[-1] // 3 - 2
        tokens = observation.reshape(-1, 2 + most, 3)
        away = tokens[..., 2] == 0
        marks = torch.stack([self.begin, self.end, *[torch.zeros_like(self.begin)] * most])
        h = self.embed(tokens[..., :2]) + marks
        for attend, forth, alpha in zip(self.attend, self.forth, self.alpha, strict=True):
            h = h + alpha[0] * attend(h, h, h, key_padding_mask=away, need_weights=False)[0]
            h = h + alpha[1] * forth(h)
        scores: Tensor = self.score(h)[:, 2:, 0]
        return scores.reshape(*observation.shape[:-1], most)


@dataclass(frozen=True, kw_only=True)
class PathPolicy(Trained):
    """Attention over the sub-problem that remains; it also gives what reinforcement learning asks for."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy"})
    acting_gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})

    width: int = hyperparameter(32, "numbers of a token, a multiple of 4", low=4)
    layers: int = hyperparameter(2, "attention layers", low=1)

    def make(self, interface: Interface, stream: torch.Generator) -> MlpPolicyNetwork:
        network = Attention(self.width, self.layers, stream)
        policy = ControlPolicy(network, Categorical(MOST), interface.continuous, normalize=False)
        return MlpPolicyNetwork(policy, masked=interface.masked > 0)


def recipe() -> Recipe:
    """Cross-entropy of the first decision, on sub-problems drawn anew for each update; nothing is collected."""
    return Recipe(
        name=SLUG,
        models={"policy": PathPolicy(learning_rate=2e-3, schedule="cosine", max_grad_norm=1.0)},
        sources={"solutions": Solutions()},
        updates=(Update("policy", (NLL(),), Sample("solutions", batch_size=128)),),
        turns=100,
        adds=("policy", "nll"),
        budget="iterations=8",
    )
