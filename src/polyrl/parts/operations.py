"""Parts of the operations domain: where traces come from, and what network or rule orders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.errors import UserError
from polyrl.models import inventory
from polyrl.models.base import Trained
from polyrl.models.mlp import Activation, layer_sizes
from polyrl.parts.credit import return_to_go
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

if TYPE_CHECKING:
    from polyrl.models.inventory import OrderingModel

# --------------------------------------------------------------------------------------------------- what orders


@dataclass(frozen=True, kw_only=True)
class OrderingPolicy(Trained):
    """What orders, in a setting with inventories."""

    slot: ClassVar[str] = "ordering-policy"
    domain: ClassVar[str] = "operations"
    solves: ClassVar[str] = "inventories"

    learning_rate: float = hyperparameter(3e-3, "AdamW step size", low=0, high=1e37)
    max_grad_norm: float | None = hyperparameter(1.0, "norm at which the gradient is clipped; none is off", above=0)
    noise: float | None = hyperparameter(
        None, "first standard deviation of the orders that are tried, units, which is trained along; none tries none",
        above=0,
    )  # fmt: skip

    @property
    def outputs(self) -> frozenset[str]:  # type: ignore[override]
        """The simulated cost, and of what is tried the log-probability and entropy."""
        return frozenset({"cost"} if self.noise is None else {"cost", "logprob", "entropy"})

    def check_within(self, recipe: Recipe) -> None:
        """Noise is for orders that are tried.

        Raises:
            UserError: there is noise, and nothing tries orders.
        """
        if self.noise is not None and not isinstance(recipe.collect, SampleOrders):
            raise UserError(
                f"{recipe.name}: '{self.name}' has a noise of {self.noise:g} by which orders are tried, and "
                f"'{recipe.collect.name if recipe.collect else 'nothing'}' tries none; leave it away."
            )

    @property
    def acting_gives(self) -> frozenset[str]:  # type: ignore[override]
        """Likelihoods of what is tried."""
        return frozenset() if self.noise is None else frozenset({"behaviour_logprob"})

    def make(self, interface: Any, stream: torch.Generator) -> OrderingModel:
        """The model for an inventory task, with weights drawn from `stream`."""
        made = self.build(interface, stream)
        made.join(interface.simulator, self.noise)
        return made

    @abstractmethod
    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """A module from inventory states to orders, whose weights are drawn from `generator`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OrderNetwork(OrderingPolicy):
    """A multi-layer perceptron of all inventories, whose orders can always be shipped."""

    hidden: str = hyperparameter("32x32x32", "sizes of the hidden layers, joined by x")
    activation: Activation = hyperparameter("elu", "elu, tanh or relu between the layers")

    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """The network for an inventory task, with weights drawn from `generator`."""
        sizes = layer_sizes(self.hidden)
        return inventory.OrderNetwork(task.network, task.customers.mean, sizes, self.activation, generator=generator)


@dataclass(frozen=True, kw_only=True)
class BaseStock(OrderingPolicy):
    """A base-stock level for each location: order what the position lacks of it."""

    start: float = hyperparameter(10.0, "first level, units", above=0)
    unit: float = hyperparameter(
        150.0, "units of stock by which a step of size 1 of the optimizer moves a level", above=0
    )

    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """The rule for an inventory task; nothing in it is random."""
        return inventory.BaseStock(task.network, self.start, self.unit)


@dataclass(frozen=True, kw_only=True)
class CappedBaseStock(BaseStock):
    """A base-stock level and a largest order for each location: near-optimal where unmet demand is lost."""

    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """The rule for an inventory task; nothing in it is random."""
        return inventory.CappedBaseStock(task.network, self.start, self.unit)


@dataclass(frozen=True, kw_only=True)
class EchelonStock(BaseStock):
    """A level for each location's echelon, itself and all that it supplies: optimal for serial chains."""

    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """The rule for an inventory task; nothing in it is random."""
        return inventory.EchelonStock(task.network, self.start, self.unit)


@dataclass(frozen=True, kw_only=True)
class BalancedStock(BaseStock):
    """One warehouse orders up to a level of the whole system and deals out what it has so that stores are balanced."""

    def build(self, task: Any, generator: torch.Generator) -> OrderingModel:
        """The rule for an inventory task; nothing in it is random.

        Raises:
            UserError: the task has no warehouse that supplies every store.
        """
        net = task.network
        if net.upstream != 1 or any(s != 0 for s in net.supplier[1:]):
            raise UserError(f"'{self.name}' needs one warehouse that supplies every store, and '{task.name}' has none.")
        return inventory.BalancedStock(net, task.customers.mean, self.start, self.unit)


# --------------------------------------------------------------------------------------------------------- collect


@dataclass(frozen=True, kw_only=True)
class DrawTraces(Part):
    """Draw demand traces: what customers will ask for does not depend on what is ordered."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "operations"
    solves: ClassVar[str] = "inventories"
    gives: ClassVar[frozenset[str]] = frozenset({"demand", "initial_inventory", "mask"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "demand": Field("[B, T, n]", "float32", "units", "what customers ask of each store in each period"),
        "initial_inventory": Field(
            "[B, N, slots]", "float32", "units", "at first: on hand (slot 0), arriving in k periods"
        ),
    }

    scenarios: int = hyperparameter(512, "demand traces in one iteration", low=1)
    periods: int = hyperparameter(50, "periods of each trace", low=1)
    stored: int = hyperparameter(
        0, "size of a fixed set of traces that is used again and again; 0 draws fresh ones", low=0
    )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `scenarios` traces; each is a pure function of the run's seed and the iteration.

        Raises:
            UserError: the stored set is smaller than one iteration's traces.
        """
        index = context.iteration - 1
        if self.stored:
            if self.stored < self.scenarios:
                raise UserError(
                    f"{self.name}.stored is {self.stored} but must be 0 or at least scenarios ({self.scenarios})."
                )
            index %= self.stored // self.scenarios
        demand, start = context.run_state.task.traces(context.seed, "train", index, self.scenarios, self.periods)
        context.spent.samples += self.scenarios
        context.spent.steps += self.scenarios * self.periods
        mask = torch.ones(self.scenarios, self.periods, dtype=torch.bool)
        return Experience({"demand": demand, "initial_inventory": start, "mask": mask})


@dataclass(frozen=True, kw_only=True)
class SampleOrders(DrawTraces):
    """Draw demand traces and try orders on them: the policy's own plus Gaussian noise of a learned size."""

    gives: ClassVar[frozenset[str]] = DrawTraces.gives | {"observation", "action", "behaviour_logprob", "reward"}

    def check_within(self, recipe: Recipe) -> None:
        """Orders are tried where the policy has noise to try them with.

        Raises:
            UserError: it has none.
        """
        acts = recipe.models.get(recipe.acts)
        if isinstance(acts, OrderingPolicy) and acts.noise is None:
            raise UserError(
                f"{recipe.name}: '{self.name}' tries orders around those of the policy, which has no noise; set "
                f"--{recipe.acts.replace('_', '-')}.noise, such as 1."
            )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `scenarios` episodes with the inventories seen, the orders tried and their reward, minus cost."""
        batch = super().__call__(experience, context)
        tried: Experience = context.run_state.act(batch, context.generator("orders"))
        context.log(reward=tried["reward"].mean())
        return tried


# ------------------------------------------------------------------------------------------------------ credit


@dataclass(frozen=True, kw_only=True)
class PeriodBaseline(Part):
    """Judge what was done by the discounted reward after it, against the mean over all rows at the same period."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    gamma: float = hyperparameter(0.9, "discount of later rewards, per period", low=0, high=1)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        later = return_to_go(experience["reward"], experience["mask"], self.gamma)  # G_t
        counted = experience["mask"] & scored_rows(experience)[:, None]
        if bool(counted.all()):
            return experience.with_fields(advantage=later - later.mean(0))
        mean = torch.where(counted, later, 0.0).sum(0) / counted.sum(0).clamp(min=1)
        return experience.with_fields(advantage=torch.where(counted, later - mean, 0.0))
