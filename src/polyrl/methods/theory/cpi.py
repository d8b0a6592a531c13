"""CPI: mix a little of the policy in that gains the most against the present one, and stop where none gains.

Conservative policy iteration, as arXiv:2506.01884 takes it for a baseline under resets: advantages are of states that
are drawn from a given distribution mu, each layer equally often, and of actions that are drawn uniformly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy, LayeredProbabilities
from polyrl.parts.finite import RestartEpisodes, check_horizon
from polyrl.parts.policy_class import one_hot
from polyrl.recipe import Recipe, hyperparameter
from polyrl.tasks.theory.finite import FiniteMDP, FiniteTask

SLUG = "cpi"
TITLE = "Conservative Policy Iteration, under resets"
PAPER = "arXiv:2506.01884"
YEAR = 2025
FORMULA = "pi <- (1 - alpha) pi + alpha argmax_pi' sum_h E_{s ~ mu_h} A_h^pi(s, pi'(s)); stop below eps"
TASK = "reset-ladder"


@dataclass(frozen=True, kw_only=True)
class PolicyOfClass(FinitePolicy):
    """A policy that is uniform at first, or one of the class."""

    begins_with: int | None = hyperparameter(None, "number of the class's policy to begin with; none is uniform", low=0)

    def tables(self, task: FiniteTask) -> LayeredProbabilities:
        """Probabilities `[L, S, A]`.

        Raises:
            UserError: there is no such policy.
        """
        if self.begins_with is None:
            return super().tables(task)
        policies = task.mdp.policy_class.policies
        if self.begins_with >= len(policies):
            raise UserError(
                f"The class of {task.name} has {len(policies)} policies, numbered from 0; there is no "
                f"{self.begins_with}."
            )
        return LayeredProbabilities(one_hot(policies[self.begins_with], task.mdp.shape[2]))


@dataclass(frozen=True, kw_only=True)
class RestartEverywhere(RestartEpisodes):
    """Begin episodes at any layer in states of mu, with a uniform action."""

    episodes: int = hyperparameter(1000, "episodes for each step", low=1)
    first_action: Literal["policy", "uniform"] = hyperparameter(
        "uniform", "how an episode's first action is chosen: as every other one, or each equally often"
    )

    def first_steps(self, rows: Tensor, context: Context) -> Tensor:
        """Any layer, equally often."""
        check_horizon(SLUG, context.run_state.task)
        return super().first_steps(rows, context)


@dataclass(frozen=True)
class MixIn(OwnUpdate):
    """Mix in the policy of the class with the largest advantage, if that is eps or more; else the run is finished."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "step", "reward"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    alpha: float = hyperparameter(0.2, "share of the new policy in a step", above=0, high=1)
    eps: float = hyperparameter(0.02, "advantage below which nothing is mixed in any more", low=0)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One step."""
        mdp: FiniteMDP = see.context.run_state.mdp
        policy, policies = see[self.trains].probabilities, mdp.policy_class.policies
        gains = advantages(policies, policy, batch)
        best = int(gains.argmax())
        if float(gains[best]) < self.eps:
            see.context.finish(f"no policy of the class has an advantage of {self.eps:g}")
        else:
            see[self.trains].assign((1 - self.alpha) * policy + self.alpha * one_hot(policies[best], mdp.shape[2]))
        return {"advantage": float(gains[best]), "best_of_class": best}


def advantages(policies: Tensor, policy: Tensor, batch: Experience) -> Tensor:
    """sum_h E_{s ~ mu_h} A_h(s, pi'(s)) of each policy `[N]` against `policy` `[L, S, A]`, estimated without bias.

    Rows begin at any layer equally often, with a uniform action: A (pi'(a | s) - pi(a | s)) Q has the right mean.
    """
    layers, _, actions = policy.shape
    step, state, action = (batch[name][:, 0] for name in ("step", "state", "action"))
    chosen = (policies[:, step, state] == action).double() - policy[step, state, action]
    return layers * actions * (chosen * batch["reward"].sum(1)).mean(1)


def recipe() -> Recipe:
    """Restarts everywhere, the largest advantage, a step of alpha."""
    return Recipe(
        name=SLUG,
        models={"policy": PolicyOfClass()},
        collect=RestartEverywhere(),
        updates=(MixIn("policy", Fresh()),),
        adds=("restart-everywhere", "mix-in"),
        budget="queries=50000",
    )
