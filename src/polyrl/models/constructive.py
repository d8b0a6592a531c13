"""Networks that build solutions node by node: what they see, what they say, and what their models give to terms.

An instance may be in several states at once: copies that are built in parallel, beams, or the steps of an episode that
is trained on. So what is of an instance is `[B, ...]`, and what is of its states `[B, K, ...]`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from polyrl.models.base import Network
from polyrl.tasks.batched import Observation, Padded

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

Memory = Mapping[str, Tensor]
"""What a network has read of instances, `[B, ...]` each."""


@dataclass(frozen=True)
class Seen:
    """B instances, each in K states.

    Attributes:
        nodes: `[B, N, F]`.
        present: bool `[B, N]`, which nodes there are.
        here, end: int64 `[B, K]`, the node where one is, and the one where one is to end.
        left: bool `[B, K, N]`, what is still to be visited.
        context: `[B, K, C]`, numbers that change on the way.
        mask: bool `[B, K, N]`, what may come next; a state in which nothing may has ended. Of moves `[B, K, A]`.
        node_state: `[B, K, N, D]`, numbers of nodes that change on the way; None where there are none.
        costs: `[B, N, N]`, of the way from each node to each other; None where the nodes say them.
    """

    nodes: Tensor
    present: Tensor
    here: Tensor
    end: Tensor
    left: Tensor
    context: Tensor
    mask: Tensor
    node_state: Tensor | None = None
    costs: Tensor | None = None

    @classmethod
    def of(cls, shown: Observation, mask: Tensor, copies: int = 1) -> Seen:
        """What an environment shows of rows, of which `copies` in turn are of one instance."""
        nodes = shown["nodes"]
        assert isinstance(nodes, Padded)
        states = {name: x for name, x in shown.items() if isinstance(x, Tensor)}

        def grouped(x: Tensor) -> Tensor:
            return x.reshape(len(x) // copies, copies, *x.shape[1:])

        here, end, left, context = (grouped(states[name]) for name in ("here", "end", "left", "context"))
        first = slice(None, None, copies)
        changing = grouped(states["node_state"]) if "node_state" in states else None
        between = shown.get("costs")
        costs = between.values[first] if isinstance(between, Padded) else None
        return cls(nodes.values[first], nodes.present[first], here, end, left, context, grouped(mask), changing, costs)

    @classmethod
    def stored(cls, batch: Experience) -> Seen:
        """What rows of steps saw, K being all steps of all rows of an instance, row after row.

        Rows of one `group` stand for one instance where all groups are whole and equally large; else each for itself.
        """
        copies = _copies(batch["group"]) if "group" in batch else 1

        def grouped(name: str) -> Tensor:
            x = batch[name]
            return x.reshape(len(x) // copies, copies * x.shape[1], *x.shape[2:])

        nodes, present = batch["nodes"][::copies, 0], batch["node_mask"][::copies, 0]
        here, end, left, context, mask = map(grouped, ("here", "end", "left", "context", "action_mask"))
        changing = grouped("node_state") if "node_state" in batch else None
        costs = batch["costs"][::copies, 0] if "costs" in batch else None
        return cls(nodes, present, here, end, left, context, mask, changing, costs)


def _copies(group: Tensor) -> int:
    """How many rows in turn share a number, `[B]` int64, where all numbers have as many; else 1."""
    first = int((group != group[0]).int().argmax()) or len(group)
    if len(group) % first:
        return 1
    rows = group.view(-1, first)
    whole = bool((rows == rows[:, :1]).all()) and len(torch.unique(rows[:, 0])) == len(rows)
    return first if whole else 1


class ConstructiveNetwork(Network):
    """Reads instances once, and scores the nodes that may come next in each of their states.

    Class attributes:
        reads_node_state: whether it reads what changes at nodes, without which some problems cannot be told apart.
        reads_costs: whether it reads the costs between nodes.
        scores_moves: whether what it scores are moves, A of them, and not nodes: A then stands for N in what follows.
    """

    reads_node_state: ClassVar[bool] = False
    reads_costs: ClassVar[bool] = False
    scores_moves: ClassVar[bool] = False

    def read(self, nodes: Tensor, present: Tensor) -> Memory:
        """What there is to read of instances before anything is built, from `[B, N, F]` and bool `[B, N]`."""
        return {}

    @abstractmethod
    def scores(self, seen: Seen, memory: Memory) -> Tensor:
        """A score of each node in each state, `[B, K, N]`; those that may not come next may have any finite one."""
        raise NotImplementedError

    def logprobs(self, seen: Seen, memory: Memory) -> Tensor:
        """Log-probabilities `[B, K, N]` of the next node, -inf where it may not come; of ended states anything finite.

        Raises:
            Diverged: what the network says is not finite.
        """
        return self.masked(self.scores(seen, memory), seen)

    def masked(self, scores: Tensor, seen: Seen) -> Tensor:
        """Log-probabilities `[B, K, N]` of scores: -inf where a node may not come next; of ended states finite."""
        ended = ~seen.mask.any(-1, keepdim=True)
        found: Tensor = scores.masked_fill(~(seen.mask | ended), -torch.inf).log_softmax(-1)
        return found

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Log-probability and entropy of the steps, `[B, T]` each."""
        seen = Seen.stored(batch)
        return self.of_steps(self.logprobs(seen, self.read(seen.nodes, seen.present)), batch, wants)

    def of_steps(self, logprobs: Tensor, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Log-probability and entropy `[B, T]` of the steps of a batch, of those of all nodes `[B, K, N]`."""
        found = logprobs.reshape(*batch["action"].shape, -1)
        given = {"logprob": found.gather(-1, batch["action"][..., None])[..., 0]}
        if "entropy" in wants:
            given["entropy"] = -(found.exp() * found.clamp(min=-1e9)).sum(-1)
        return {name: x for name, x in given.items() if name in wants}


def draw_weights(network: nn.Module, stream: torch.Generator) -> None:
    """Draw every matrix and vector uniformly from +-1 / sqrt(its last size), in the order of their names."""
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            parameter.uniform_(-1, 1, generator=stream).mul_(parameter.shape[-1] ** -0.5)


def by_heads(x: Tensor, heads: int) -> Tensor:
    """`[R, M, D]` as attention takes it, `[R, heads, M, D / heads]`."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def feed_forward_layers(layers: int, width: int, hidden: int) -> nn.ModuleList:
    """Of each layer what every node goes through by itself: out to `hidden` numbers, ReLU, and back."""
    return nn.ModuleList(
        nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(layers)
    )
