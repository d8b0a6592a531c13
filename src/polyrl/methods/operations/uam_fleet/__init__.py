"""UAM-Fleet: tell a fleet of air taxis where to fly next, by graph capsules, attention over vertiports, and PPO.

Vertiports and aircraft are two graphs, whose nodes are the nearer the more alike they are. A graph capsule mixes what
each node says with what its neighbors say, up to some steps away, and powers of it. Forecasts of demand and fares go
through a transformer over the hours. Whichever aircraft is free asks by what the fleet comes to, and a pointer scores
the vertiports that it may fly to.

The abstract was read, and the first author's public simulator and networks of 2022 for the same problem, whose capsule
(powers 1, one hop, tanh) and decoder are the ones here; what that code gets wrong is not copied (degree minus 1, the
last vertiport cut off, the most probable action in training). The weights of capsules are `W_p` for all hops at once.
Chosen here: the transformer reads each vertiport's own hours and not all pairs in one vector, so that no vertiport and
no number of them is special; a vertiport also shows what flying there now would bring, because the pointer cannot look
into the matrix of demand; features that are equal for all aircraft are left out; the time is beside the fleet's mean;
the reward is the profit of each flight over the day's whole revenue, which sums to the paper's; sizes are for one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Update
from polyrl.errors import UserError
from polyrl.methods.operations.uam_fleet.networks import STATIC, FlatFleet, FleetNetwork, GraphFleet
from polyrl.models.constructive import draw_weights
from polyrl.parts.combinatorial import BuildSolutions, ConstructivePolicy, NetworkValues
from polyrl.parts.credit import GAE, WhitenAdvantage
from polyrl.parts.improve import ClippedSurrogate, EntropyBonus, ValueLoss
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.operations.air_taxis import SERIES, AirTaxis, AirTaxiTask

SLUG, YEAR, PAPER = "uam-fleet", 2024, "arXiv:2401.04851"
TITLE = "Graph Learning-based Fleet Scheduling for Urban Air Mobility"
FORMULA = "F_p = tanh(W_p [X^p, L X^p, ..., L^K X^p]), A_uv = 1 / (1 + |x_u - x_v|); pi = softmax pointer of vertiports"
TASK = "air-taxis"


@dataclass(frozen=True, kw_only=True)
class FleetPolicy(ConstructivePolicy):
    """Graph capsules of vertiports and aircraft with a pointer; or, as a control, two layers over all numbers."""

    outputs: ClassVar[frozenset[str]] = frozenset({"logprob", "entropy", "value"})

    learning_rate: float = hyperparameter(1e-3, "Adam step size (2022 code: 1e-6)", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(0.5, "norm at which the gradient is clipped; none is off", above=0)
    reads: Literal["graph", "flat"] = hyperparameter("graph", "two graphs, or all numbers in a row (the control)")
    width: int = hyperparameter(32, "numbers of a node, or of a layer (2022 code: 128)", low=2)
    heads: int = hyperparameter(4, "attention heads (2022 code: 8)", low=1)
    hour_layers: int = hyperparameter(1, "layers of the transformer over the hours", low=1)
    moments: int = hyperparameter(1, "powers of what nodes say", low=1)
    hops: int = hyperparameter(1, "how many steps away neighbors are heard; 0 hears none", low=0)

    def make(self, interface: Any, stream: torch.Generator) -> FleetNetwork:
        """The network for a fleet, all its matrices uniform within +-1 / sqrt(their inputs).

        Raises:
            UserError: another problem, or a width that heads do not divide.
        """
        if not isinstance(interface, AirTaxiTask):
            raise UserError(f"{self.name} flies air taxis and not {interface.name}; use --task air-taxis.")
        if self.reads == "flat":
            usual = FleetPolicy()
            for name in ("heads", "hour_layers", "moments", "hops"):
                if vars(self)[name] != vars(usual)[name]:
                    raise UserError(f"{self.name}.{name} has no effect with reads=flat; leave it out.")
            network: FleetNetwork = FlatFleet(interface.n, interface.aircraft, self.width)
        else:
            network = self.build(interface.kind.node_features, interface.kind.context_features, stream)
        draw_weights(network, stream)
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight), nn.init.zeros_(module.bias)
        for parameter in network.last_of_value():
            nn.init.zeros_(parameter)  # or the day's end would look worth something, and every decision bad
        return network

    def build(self, node_features: int, context_features: int, stream: torch.Generator) -> FleetNetwork:
        """The network over graphs of any sizes; its weights are yet to be drawn."""
        if self.width % self.heads or self.width % 2:
            raise UserError(
                f"{self.name}.width is {self.width} but must be even and a multiple of heads ({self.heads})."
            )
        return GraphFleet(self.width, self.heads, self.hour_layers, self.moments, self.hops)


@dataclass(frozen=True, kw_only=True)
class FlyDays(BuildSolutions):
    """Fly random days with the present policy, decision by decision."""

    gives: ClassVar[frozenset[str]] = BuildSolutions.gives | {"node_state"}

    instances: int = hyperparameter(24, "random days in one iteration, each of about 90 decisions at 4x6", low=1)


@dataclass(frozen=True, kw_only=True)
class ShareOfRevenue(Part):
    """Pay each flight's profit over an aircraft's share of what all passengers of the day would pay."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "share-of-revenue"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "nodes"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    solves: ClassVar[str] = "combinatorial"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Put `reward` [B, T] in the place of dollars; its sum is the normalized profit, times the aircraft.

        Raises:
            UserError: nobody pays there.
        """
        if not isinstance(task := context.run_state.task, AirTaxiTask):
            raise UserError(f"'{self.name}' is of what passengers pay, and {task.name} has none; use --task {TASK}.")
        fares = experience["nodes"][:, 0, :, STATIC + 2 :: SERIES]  # of all that wait, by the hour
        revenue = fares.sum((1, 2))
        fleet = experience["context"].shape[2] // AirTaxis.aircraft_features
        return experience.with_fields(reward=experience["reward"] * fleet / revenue[:, None])


@dataclass(frozen=True, kw_only=True)
class FleetValues(NetworkValues):
    """Measure what the policy's network says of the rest of the day before each decision."""

    needs: ClassVar[frozenset[str]] = FlyDays.gives - {"reward"}


def recipe() -> Recipe:
    """PPO on random days of the task's size."""
    terms = (ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5), EntropyBonus(entropy_coef=0.01))
    return Recipe(
        name=SLUG,
        models={"policy": FleetPolicy()},
        collect=FlyDays(),
        score=(ShareOfRevenue(),),
        credit=(FleetValues(), GAE(gamma=1.0, gae_lambda=0.95), WhitenAdvantage()),
        updates=(Epochs((Update("policy", terms, Again()),), Fresh(), epochs=6, minibatches=8),),
        adds=("policy", "share-of-revenue"),
        notes={
            "collect": "random days go from decision to decision; whichever aircraft is free asks where to fly",
            "score": "a flight's profit, over what all passengers of that day would pay",
            "credit": "decisions come at uneven times, so nothing is discounted; against what the day's value foretold",
            "select": "all decisions count the same",
            "improve": "several epochs over whole days, safe because the clip stops ratios that moved far enough",
        },
    )
