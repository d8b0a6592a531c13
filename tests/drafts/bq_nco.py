"""BQ-NCO: build a tour from the sub-problem that remains, and learn it from optimal tours cut into sub-problems.

A draft of arXiv:2301.03313 on the traveling salesman: a state is where one stands, where the tour ends, and what is not
visited yet, so that prefixes with the same future are one state. One attention network reads it anew at every step; it
imitates the first decision of sub-paths of optimal tours, which are cut in the source. Sizes differ and are padded.
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
    """Visit uniform cities and come back; the reward is minus the distance."""

    observation_space = spaces.Box(0, 1, ((2 + MOST) * 3,), np.float32)
    action_space = spaces.Discrete(MOST)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        size = int(self.np_random.choice(SIZES))
        self.start, self.nodes = self.np_random.random(2), self.np_random.random((size - 1, 2))
        self.at, self.left = self.start, np.ones(size - 1, dtype=bool)
        return self._told()

    def _told(self) -> Any:
        mask = np.zeros(MOST, np.int8)
        mask[: len(self.left)] = self.left
        return shown(self.at, self.start, self.nodes, self.left), {"action_mask": mask}

    def step(self, action: int) -> Any:
        chosen = self.nodes[action]
        cost = float(np.linalg.norm(chosen - self.at))
        self.at, self.left[action] = chosen, False
        over = not self.left.any()
        cost += float(np.linalg.norm(self.start - chosen)) if over else 0.0
        observation, info = self._told()
        return observation, -cost, over, False, info


class Solved(Rows):
    """Optimal tours; a row is a random sub-path of one, its middle in random order, its first node the action."""

    def __init__(self, count: int, seed: int):
        drawn = np.random.default_rng(stream_seed(seed, "solutions"))
        self.tours = []
        for _ in range(count):
            points = drawn.random((int(drawn.choice(SIZES)), 2))
            _, order = optimal(points[1:], points[0], points[0])
            self.tours.append(np.concatenate([points[:1], points[1:][order]]))

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
        """Scores `[..., MOST]` of flat observations `[..., 3 (2 + MOST)]`."""
        tokens = observation.reshape(-1, 2 + MOST, 3)
        away = tokens[..., 2] == 0
        marks = torch.stack([self.begin, self.end, *[torch.zeros_like(self.begin)] * MOST])
        h = self.embed(tokens[..., :2]) + marks
        for attend, forth, alpha in zip(self.attend, self.forth, self.alpha, strict=True):
            h = h + alpha[0] * attend(h, h, h, key_padding_mask=away, need_weights=False)[0]
            h = h + alpha[1] * forth(h)
        scores: Tensor = self.score(h)[:, 2:, 0]
        return scores.reshape(*observation.shape[:-1], MOST)


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
