"""Ordering policies: the classical rules with trainable levels, and networks with the same outputs.

All map inventories `[B, N, slots]` to orders `[B, N]` in units. The *position* of a location is what it has on hand
and on order. Levels are trained in units of `unit`, so that a step of the optimizer moves them by
`learning_rate * unit`: networks and levels then share one learning rate.

A model that orders gives three outputs of a batch of traces: the simulated cost, which is differentiated through the
simulator, and, where orders are tried with noise, their log-probability and entropy.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from polyrl.errors import Diverged
from polyrl.models import base
from polyrl.models.mlp import Activation, mlp
from polyrl.models.stored import Stored, StoredModule
from polyrl.runtime.seeding import generator
from polyrl.tasks.operations.network import Network
from polyrl.tasks.operations.rules import base_stock, capped_base_stock, reorder_point
from polyrl.tasks.operations.simulator import Simulator

if TYPE_CHECKING:
    from polyrl.core.experience import Experience
    from polyrl.core.update import Draws

# ---------------------------------------------------------------------------------------------------------- models


class OrderingModel(base.Network):
    """What orders, joined to the simulator of its task.

    Attributes:
        simulator: of the task.
        log_noise: logarithm of the standard deviation of the orders tried, units, `[N]`; None where none are tried.
        dev_cost: float64, cost on the dev traces when it was last judged there; infinite before that.
    """

    simulator: Simulator
    log_noise: nn.Parameter | None
    dev_cost: Tensor

    def join(self, simulator: Simulator, noise: float | None = None) -> None:
        """Take a simulator, and the first standard deviation of the orders tried, units."""
        self.simulator = simulator
        size = simulator.network.locations
        self.log_noise = None if noise is None else nn.Parameter(torch.full((size,), math.log(noise)))
        self.register_buffer("dev_cost", torch.tensor(math.inf, dtype=torch.float64))

    @abstractmethod
    def forward(self, inventory: Tensor) -> Tensor:
        """Inventories `[B, N, slots]` -> orders `[B, N]`, units."""
        raise NotImplementedError

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Those of these that are wanted, `[B, T]`.

        "cost": cost of every period, per store, when this model is run on the traces `demand` [B, T, n] from
        `initial_inventory` [B, N, slots]; it carries the gradient of all orders before it.
        "logprob", "entropy": of the orders `action` [B, T, N] at the inventories `observation` [B, T, N, slots].

        Raises:
            Diverged: the weights are not finite.
        """
        found: dict[str, Tensor] = {}
        if "cost" in wants:
            self.check_weights()
            found["cost"] = self.simulator.run(self, batch["initial_inventory"], batch["demand"]).cost
        if {"logprob", "entropy"} & set(wants):
            seen, tried = batch["observation"], batch["action"]
            orders = self(seen.flatten(0, 1)).view_as(tried)
            found["logprob"] = self.logprob(tried, orders)
            entropy = (self.noise + 0.5 * math.log(2 * math.pi * math.e)).sum()
            found["entropy"] = entropy.expand(tried.shape[:2])
        return {name: tensor for name, tensor in found.items() if name in wants}

    def check_weights(self) -> None:
        """Costs do not always show it at once: what is ordered arrives later.

        Raises:
            Diverged: they are not finite.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise Diverged("The weights of the policy that orders are not finite; lower the learning rate.")

    @property
    def noise(self) -> nn.Parameter:
        """`log_noise`, which there is."""
        assert self.log_noise is not None  # the recipe was checked
        return self.log_noise

    def logprob(self, tried: Tensor, orders: Tensor) -> Tensor:
        """Log-density of the orders tried around those of the policy, both `[..., N]`, summed over locations."""
        log_noise = self.noise
        each = -0.5 * ((tried - orders) / log_noise.exp()).square() - log_noise - 0.5 * math.log(2 * math.pi)
        total: Tensor = each.sum(-1)
        return total


@dataclass(frozen=True)
class Best(base.Copy):
    """A model's copy at the evaluation where it was best on the dev traces: evaluations move it, and nothing else."""

    @property
    def said(self) -> str:
        """Whose copy it is, and when it moves."""
        return f"{self.of} as it was at the evaluation that was best on the dev traces"


class OrderingModels(base.Models):
    """The models of an inventory run, whose parameters take their steps one by one.

    As one vector a rule of five levels would take steps that differ in the last bit from those that it always took.
    """

    def stream(self, seed: int, name: str) -> torch.Generator:
        """The random stream of its name, as runs had it before their models had names."""
        return generator(seed, name)

    def gradients(self, name: str) -> list[Tensor]:
        """One for each parameter: the norm is taken of their norms."""
        return [p.grad for p in self._parameters[name] if p.grad is not None]

    def optimizers(self) -> dict[str, Any]:
        """One AdamW for each trained model."""
        return {
            name: torch.optim.AdamW(
                self._parameters[name],
                fused=True,
                lr=entry.learning_rate,
                eps=entry.adam_epsilon,
                weight_decay=entry.weight_decay,
                betas=(0.9, 0.999),
            )
            for name, entry in self.entries.items()
            if isinstance(entry, base.Trained)
        }

    def stored(self) -> dict[str, Stored]:
        """`NAME.safetensors` for each."""
        learns = self.trained()
        return {
            name: StoredModule(name, module, [*module.named_parameters()] if name in learns else ())
            for name, module in self._modules.items()
        }


class Level(nn.Module):
    """A positive level for each of `count` locations: softplus(start + unit * parameter)."""

    start: Tensor

    def __init__(self, start: Sequence[float], unit: float = 1.0):
        super().__init__()
        self.unit = unit
        # softplus inverted, so that the first level is the one asked for
        self.register_buffer("start", torch.tensor([s + math.log(-math.expm1(-s)) for s in start]), persistent=False)
        self.parameter = nn.Parameter(torch.zeros(len(start)))

    def forward(self) -> Tensor:
        """`[count]` units."""
        level: Tensor = softplus(self.start + self.unit * self.parameter)
        return level


class BaseStock(OrderingModel):
    """A base stock for each location, with trained levels."""

    def __init__(self, network: Network, start: float = 10.0, unit: float = 1.0):
        super().__init__()
        self.level = Level([start] * network.locations, unit)

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        return base_stock(inventory, self.level())


class CappedBaseStock(OrderingModel):
    """A capped base stock for each location, with trained levels and caps."""

    def __init__(self, network: Network, start: float = 10.0, unit: float = 1.0):
        super().__init__()
        self.level, self.cap = (Level([start] * network.locations, unit) for _ in range(2))

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        return capped_base_stock(inventory, self.level(), self.cap())


class ReorderPoint(nn.Module):
    """(s, S) with given levels: its cost has no useful gradient in s, so they are searched and not trained."""

    reorder: Tensor
    level: Tensor

    def __init__(self, reorder: float, level: float):
        super().__init__()
        self.register_buffer("reorder", torch.tensor(reorder))
        self.register_buffer("level", torch.tensor(level))

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        return reorder_point(inventory, self.reorder, self.level)


def echelon_matrix(network: Network) -> Tensor:
    """`[N, N]` float32: 1 where the column's location belongs to the echelon of the row's."""
    found = torch.zeros(network.locations, network.locations)
    for i, members in enumerate(network.below):
        found[i, list(members)] = 1
    return found


class EchelonStock(OrderingModel):
    """Every location orders up to a level of its echelon: of itself and of all that it supplies.

    A level is its own increment plus the levels that it supplies, so levels grow upstream by construction, which
    keeps the search out of bad local optima. The simulator ships no more than a supplier has.
    """

    echelon: Tensor

    def __init__(self, network: Network, start: float = 10.0, unit: float = 1.0):
        super().__init__()
        self.increment = Level([start] * network.locations, unit)
        self.register_buffer("echelon", echelon_matrix(network), persistent=False)

    def levels(self) -> Tensor:
        """Echelon levels `[N]`, units."""
        levels: Tensor = self.echelon @ self.increment()
        return levels

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        return (self.levels() - inventory.sum(-1) @ self.echelon.T).clamp(min=0)


class BalancedStock(OrderingModel):
    """For one warehouse that supplies all stores: it orders up to a level of the whole system, and deals out fairly.

    With X what all stores have, have on order and can be sent now, store i is brought to the position
    a_i + w_i (X - sum a) with weights w that sum to 1. With w_i = sigma_i / sum sigma and a_i = (L + 1) mu_i all stores
    get equal fractiles.
    """

    def __init__(self, network: Network, mean: Sequence[float], start: float = 10.0, unit: float = 1.0):
        super().__init__()
        if network.upstream != 1:
            raise ValueError("a balanced stock needs one warehouse")
        covered = [(t + 1) * m for t, m in zip(network.lead_time[1:], mean, strict=True)]
        self.position = Level(covered, unit)
        self.weight = nn.Parameter(torch.zeros(network.stores))
        self.system = Level([start + sum(covered) + network.lead_time[0] * sum(mean)], unit)

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        position = inventory.sum(-1)
        stores, target = position[:, 1:], self.position()
        spare = stores.sum(1, keepdim=True) + inventory[:, :1, 0] - target.sum()
        sent = target + self.weight.softmax(0) * spare - stores
        ordered = self.system() - position.sum(1, keepdim=True)
        return torch.cat([ordered, sent], 1).clamp(min=0)


class OrderNetwork(OrderingModel):
    """A multi-layer perceptron of all inventories, with outputs that can always be shipped.

    - no supplier inside the network and none to supply: q = softplus(out + 1);
    - ordering from outside, at the top: q = sigmoid(out) * 4 * mean demand of all stores below;
    - ordering from a supplier inside: the supplier's stock on hand times a softmax over those that it supplies and a
      constant logit of 1 for what it keeps (for one customer location and a keep logit of 0 that is
      sigmoid(out) * on hand); a network in transit has no keep slot.
    """

    most: Tensor

    def __init__(
        self,
        network: Network,
        mean: Sequence[float],
        hidden: tuple[int, ...] = (32, 32, 32),
        activation: Activation = "elu",
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.network = network
        self.layers = mlp(network.locations * network.slots, hidden, network.locations, activation, generator=generator)
        first = network.upstream
        below = [sum(mean[j - first] for j in members if j >= first) for members in network.below]
        self.register_buffer("most", 4 * torch.tensor(below), persistent=False)
        self.supplied = [[j for j, s in enumerate(network.supplier) if s == i] for i in range(network.upstream)]
        self.outside = [j for j, s in enumerate(network.supplier) if s < 0]

    def forward(self, inventory: Tensor) -> Tensor:
        """`[B, N, slots]` -> `[B, N]`."""
        out = self.layers(inventory.flatten(1))
        if not self.network.upstream:
            return softplus(out + 1)
        orders: list[Tensor] = [out[:, 0]] * self.network.locations
        for j in self.outside:
            orders[j] = out[:, j].sigmoid() * self.most[j]
        for i, supplied in enumerate(self.supplied):
            logits = out[:, supplied]
            if not self.network.transit:
                keep = 0.0 if len(supplied) == 1 else 1.0
                logits = torch.cat([logits, torch.full_like(logits[:, :1], keep)], 1)
            sent = logits.softmax(1) * inventory[:, i, :1]
            for k, j in enumerate(supplied):
                orders[j] = sent[:, k]
        return torch.stack(orders, 1)
