"""PSDP: improve the last layer first, each from states of a given distribution, with the improved ones behind it.

A draft of policy search by dynamic programming as arXiv:2506.01884 takes it for a baseline. Layer h = H..1 begins n
episodes at step h in states of mu_h with a uniform action, lets the layers behind it act, and takes the policy of its
class that would have earned the most. The states come from mu_h and not from acting, so nothing is explored; how far
mu_h is from where good policies go is what the method pays for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy
from polyrl.parts.finite import RestartEpisodes
from polyrl.recipe import Recipe, hyperparameter

SLUG = "psdp-draft"
TITLE = "Policy Search by Dynamic Programming"
PAPER = "arXiv:2506.01884"
YEAR = 2025
FORMULA = "pi_h = argmax over pi in Pi of E_{s ~ mu_h} Q_h(s, pi(s)), Q_h of the layers behind it"
TASK = "combination-lock"


@dataclass(frozen=True, kw_only=True)
class LayerEpisodes(RestartEpisodes):
    """Begin this iteration's episodes at the last layer that is not improved yet, with a uniform action."""

    episodes: int = hyperparameter(200, "n, episodes for each layer", low=1)
    first_action: Literal["policy", "uniform"] = hyperparameter(
        "uniform", "how an episode's first action is chosen: as every other one, or each equally often"
    )

    def first_steps(self, rows: Tensor, context: Context) -> Tensor:
        """The layer's step, for every row."""
        mdp = context.run_state.mdp
        if not mdp.horizon:
            raise UserError(f"{SLUG} improves layer by layer, and {context.run_state.task.name} has no horizon.")
        return torch.full_like(rows, mdp.horizon - context.memory("psdp").get("layers", 0) - 1)


@dataclass(frozen=True)
class ImproveLayer(OwnUpdate):
    """Take the policy of the class that would have earned the most from these states on."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    policies: Literal["all", "constant"] = hyperparameter(
        "all", "the class of a layer: an action for each state, or one for all states"
    )

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One layer; after the first layer of an episode there is nothing left to do."""
        memory = see.context.memory("psdp")
        policy = see[self.trains].probabilities.clone()
        _, states, actions = policy.shape
        layer = int(batch["step"][0, 0])
        value = mean_returns(batch, states, actions)
        if self.policies == "constant":  # the states are those of mu_h already
            value = mean_returns(batch, 1, actions).expand(states, actions)
        policy[layer] = torch.nn.functional.one_hot(value.argmax(-1), actions).double()
        see[self.trains].assign(policy)
        memory["layers"] = memory.get("layers", 0) + 1
        if layer == 0:
            see.context.finish("every layer has its policy")
        known = value[value.isfinite().any(-1)]
        return {"layer": layer + 1, "layer/value": float(known.max(-1).values.mean())}


def mean_returns(experience: Experience, states: int, actions: int) -> Tensor:
    """Mean return `[S, A]` of the episodes that began with each pair; minus infinity where none did.

    With one state all states count as the same.
    """
    state = experience["state"][:, 0] if states > 1 else torch.zeros_like(experience["state"][:, 0])
    pair = state * actions + experience["action"][:, 0]
    total = torch.zeros(states * actions, dtype=torch.float64)
    count = torch.zeros(states * actions, dtype=torch.float64)
    total.index_add_(0, pair, experience["reward"].sum(1))
    count.index_add_(0, pair, torch.ones(len(experience), dtype=torch.float64))
    return torch.where(count > 0, total / count, -torch.inf).view(states, actions)


def recipe() -> Recipe:
    """One layer an iteration, from the last to the first."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy()},
        collect=LayerEpisodes(),
        updates=(ImproveLayer("policy", Fresh()),),
        adds=("layer-episodes", "improve-layer"),
        budget="queries=1000000",
    )
