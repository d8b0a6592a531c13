"""PSDP: improve the last layer first, each from states of a given distribution, with the improved ones behind it.

Policy search by dynamic programming, as arXiv:2506.01884 takes it for a baseline. Layer h = H..1 begins n episodes at
step h in states of mu_h with a uniform action, lets the layers behind it act, and takes the policy of the class that
would have earned the most. The states come from mu_h and not from acting, so nothing is explored; how far mu_h is from
where good policies go is what the method pays for, and so is a class that lacks the best step against what is behind.
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
from polyrl.models.finite import FinitePolicy
from polyrl.parts.finite import RestartEpisodes, check_horizon
from polyrl.parts.policy_class import one_hot
from polyrl.recipe import Recipe, hyperparameter

SLUG = "psdp"
TITLE = "Policy Search by Dynamic Programming, under resets"
PAPER = "arXiv:2506.01884"
YEAR = 2025
FORMULA = "pi_h = argmax over pi in Pi of E_{s ~ mu_h} Q_h(s, pi(s)), Q_h of the layers behind it"
TASK = "reset-ladder"


@dataclass(frozen=True, kw_only=True)
class LayerEpisodes(RestartEpisodes):
    """Begin this iteration's episodes at the last layer that is not improved yet, with a uniform action."""

    episodes: int = hyperparameter(200, "n, episodes for each layer", low=1)
    first_action: Literal["policy", "uniform"] = hyperparameter(
        "uniform", "how an episode's first action is chosen: as every other one, or each equally often"
    )

    def first_steps(self, rows: Tensor, context: Context) -> Tensor:
        """The layer's step, for every row."""
        check_horizon(SLUG, context.run_state.task)
        return torch.full_like(rows, context.run_state.mdp.horizon - context.memory(SLUG).get("layers", 0) - 1)


@dataclass(frozen=True)
class ImproveLayer(OwnUpdate):
    """Take the policy of the class that would have earned the most from these states on."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    policies: Literal["class", "all"] = hyperparameter(
        "class", "what a layer chooses from: the problem's class, where it states one, or an action for each state"
    )

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One layer; after the first layer of an episode there is nothing left to do."""
        memory, mdp = see.context.memory(SLUG), see.context.run_state.mdp
        policy = see[self.trains].probabilities.clone()
        _, states, actions = policy.shape
        layer = int(batch["step"][0, 0])
        if self.policies == "class" and mdp.policies is not None:
            chosen = mdp.policy_class.policies[:, layer]  # [N, S]
            state, action = batch["state"][:, 0], batch["action"][:, 0]
            value = ((chosen[:, state] == action) * batch["reward"].sum(1)).mean(1) * actions
            policy[layer] = one_hot(chosen[value.argmax()], actions)
        else:
            by_state = mean_returns(batch, states, actions)
            policy[layer] = one_hot(by_state.argmax(-1), actions)
            value = by_state[by_state.isfinite().any(-1)].max(-1).values.mean()
        see[self.trains].assign(policy)
        memory["layers"] = memory.get("layers", 0) + 1
        if layer == 0:
            see.context.finish("every layer has its policy")
        return {"layer": layer + 1, "layer/value": float(value.max())}


def mean_returns(experience: Experience, states: int, actions: int) -> Tensor:
    """Mean return `[S, A]` of the episodes that began with each pair; minus infinity where none did."""
    pair = experience["state"][:, 0] * actions + experience["action"][:, 0]
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
