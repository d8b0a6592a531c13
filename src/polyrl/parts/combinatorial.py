"""Parts for combinatorial problems: what builds solutions, and building those of random instances."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.models.base import Trained
from polyrl.models.constructive import ConstructiveNetwork
from polyrl.recipe import Judged, Part, Scope, Stage, hyperparameter

SEEN = frozenset({"nodes", "node_mask", "here", "end", "left", "context"})
"""What a step of building a solution has seen, beside `action_mask`."""


@dataclass(frozen=True, kw_only=True)
class ConstructivePolicy(Trained):
    """What builds solutions of combinatorial problems."""

    slot: ClassVar[str] = "constructive-policy"
    domain: ClassVar[str] = "operations"
    solves: ClassVar[str] = "combinatorial"
    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy"})
    acting_gives: ClassVar[frozenset[str]] = frozenset({"behaviour_logprob"})

    def make(self, interface: Any, stream: torch.Generator) -> ConstructiveNetwork:
        """The network for a task's problem, with weights drawn from `stream`."""
        kind = interface.kind
        return self.build(kind.node_features, kind.context_features, stream)

    @abstractmethod
    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> ConstructiveNetwork:
        """A network for nodes of so many numbers and states of so many."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AttentionPolicy(ConstructivePolicy):
    """What builds solutions by layers of attention over nodes, without positions."""

    learning_rate: float = hyperparameter(1e-3, "Adam step size", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(1.0, "norm at which the gradient is clipped; none is off", above=0)
    width: int = hyperparameter(64, "numbers of a node, a multiple of heads", low=1)
    heads: int = hyperparameter(4, "attention heads", low=1)
    layers: int = hyperparameter(3, "attention layers", low=1)
    feed_forward: int = hyperparameter(256, "hidden numbers of a node between them", low=1)

    def sizes(self) -> tuple[int, int, int, int]:
        """Width, heads, layers and hidden numbers.

        Raises:
            UserError: the width is no multiple of the heads.
        """
        if self.width % self.heads:
            raise UserError(f"{self.name}.width is {self.width} but must be a multiple of heads ({self.heads}).")
        return self.width, self.heads, self.layers, self.feed_forward


@dataclass(frozen=True, kw_only=True)
class BuildSolutions(Part):
    """Build solutions of random instances with the present policy, node by node."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "operations"
    solves: ClassVar[str] = "combinatorial"
    gives: ClassVar[frozenset[str]] = SEEN | {
        *("action", "action_mask", "behaviour_logprob", "reward", "present", "mask", "terminated", "truncated", "group")
    }

    instances: int = hyperparameter(256, "random instances in one iteration", low=1)
    starts: int = hyperparameter(
        1, "solutions of each instance, each begun in another way where there are several", low=1
    )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `instances * starts` rows; those of one instance stand side by side and share their `group`.

        The instances are a pure function of the run's seed and the iteration. Rewards are minus costs.
        """
        built = context.run_state.build(self.instances, self.starts, context)
        steps: dict[str, Tensor] = dict(built.steps)
        context.spent.samples += self.instances * self.starts
        context.spent.steps += int(steps["present"].sum())
        context.log(reward=-built.costs.mean())
        shown = built.environment.observe()
        nodes = shown["nodes"]
        costs = {"costs": shown["costs"].values[:, None]} if "costs" in shown else {}
        group = torch.arange(self.instances).repeat_interleave(self.starts)
        return Experience(
            {
                **steps,
                **costs,
                "nodes": nodes.values[:, None],
                "node_mask": nodes.present[:, None],
                "mask": steps["present"],
                "truncated": torch.zeros_like(steps["terminated"]),
                "group": group,
            }
        )


@dataclass(frozen=True, kw_only=True)
class NetworkValues(Part):
    """Measure the value that the acting network itself gives to the states of a solution, as it was when it acted.

    A subclass needs what its network reads.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    gives: ClassVar[frozenset[str]] = frozenset({"value"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `value` [B, T], 0 where nothing is decided."""
        network = context.run_state.network(context.run_state.models.acts)
        with torch.no_grad():
            value = network.outputs(experience, {"value"}, None)["value"]
        return experience.with_fields(value=value * experience["mask"])


@dataclass(frozen=True, kw_only=True)
class Beam(Judged):
    """The policy once more, with beam search: the cheapest of the solutions that the most probable prefixes come to."""

    domain: ClassVar[str] = "operations"

    beam_width: int = hyperparameter(16, "prefixes that are kept of each instance", low=1)
    beam_instances: int = hyperparameter(64, "of the held-out instances the first so many, for beams take long", low=1)
