"""Parts that methods with a replay buffer share: stepping with random first actions, targets, squared errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import See
from polyrl.data.replay import Replay
from polyrl.errors import UserError
from polyrl.models.actor import Actor
from polyrl.models.policies import RandomActor
from polyrl.parts.control import StepEnvironments
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, Term, hyperparameter, options

# ------------------------------------------------------------------------------------------------------------ collect


@dataclass(frozen=True, kw_only=True)
class StepAndKeep(StepEnvironments):
    """Step environments for a replay buffer: the first steps at random, then with the method's own actor."""

    environments: int = hyperparameter(1, "environments that are stepped together", low=1)
    steps_per_environment: int = hyperparameter(1, "steps of each environment in one turn", low=1)
    random_steps: int = hyperparameter(0, "steps at first whose actions are drawn uniformly", low=0)

    def given_within(self, recipe: Recipe) -> frozenset[str]:
        """Of random steps no `behaviour_logprob` is told."""
        given = super().given_within(recipe)
        return given - {"behaviour_logprob"} if self.random_steps else given

    def acting(self, context: Context) -> Actor | None:
        """Who acts in this turn; None is the run's own actor."""
        if context.spent.steps < self.random_steps:
            return RandomActor(context.run_state.task.actions.space)
        return None


# -------------------------------------------------------------------------------------------------------------- score


@dataclass(frozen=True, kw_only=True)
class NextObservation(Part):
    """Measure what was seen after each step; where an episode was cut, what it showed last."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "final_observation", "truncated"})
    gives: ClassVar[frozenset[str]] = frozenset({"next_observation"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `next_observation` [B, T, D]; after a termination, the next episode's first."""
        observation, cut = experience["observation"], experience["truncated"]
        following = torch.cat([observation[:, 1:], experience["final_observation"][:, -1:]], 1)
        return experience.with_fields(
            next_observation=torch.where(cut.unsqueeze(-1), experience["final_observation"], following)
        )


# ------------------------------------------------------------------------------------------------------------- credit


def soft_target(reward: Tensor, discount: Tensor, value: Tensor, logprob: Tensor, temperature: Tensor) -> Tensor:
    """r + discount (Q - alpha log pi) (arXiv:1812.05905, equation 3). Any shape."""
    return reward + discount * (value - temperature * logprob)


@dataclass(frozen=True, kw_only=True)
class SoftTarget(Part):
    """Targets of the critics: the reward, and the least target critic's value of a fresh action with its entropy."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "value-target"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "discount", "next_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})
    models: ClassVar[frozenset[str]] = frozenset({"policy", "q_target", "temperature"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    entropy_backup: bool = hyperparameter(True, "whether the entropy of what follows counts in the targets")

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `value_target` [B, T]."""
        following, policy = batch["next_observation"], see["policy"]
        noise = see.draw(*following.shape[:-1], policy.numbers)
        action, logprob = policy.sample(following, noise)
        value = self.value(following, action, see)
        temperature = see["temperature"]() if self.entropy_backup else torch.zeros(1)
        return batch.with_fields(
            value_target=soft_target(batch["reward"], batch["discount"], value, logprob, temperature)
        )

    def value(self, observation: Tensor, action: Tensor, see: See) -> Tensor:
        """What the target critics say of actions `[..., A]`, `[...]`: the least."""
        found: Tensor = see["q_target"](observation, action).amin(-1)
        return found


# --------------------------------------------------------------------------------------------------- changed sources


@dataclass(frozen=True, kw_only=True)
class ReplayChange(Change):
    """A change of a recipe's replay buffers: its own hyperparameters take the place of theirs."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with every replay buffer changed.

        Raises:
            UserError: it has none.
        """
        own = {f.name: self.setting(f.name, None) for f in options(self)}
        changed = {
            name: dataclasses.replace(source, **own)
            for name, source in recipe.sources.items()
            if isinstance(source, Replay)
        }
        if not changed:
            raise UserError(f"{recipe.name} has no replay buffer, so there is nothing that '{self.name}' could change.")
        return dataclasses.replace(recipe, sources={**recipe.sources, **changed})


@dataclass(frozen=True, kw_only=True)
class NStep(ReplayChange):
    """Sum the rewards of several steps before a value stands for the rest, in the rows of the replay buffer."""

    n_step: int = hyperparameter(3, "steps whose rewards are summed", low=1)


@dataclass(frozen=True, kw_only=True)
class Prioritised(ReplayChange):
    """Sample rows the more often the larger their last error was, and weigh them back (arXiv:1511.05952)."""

    priority_exponent: float = hyperparameter(0.6, "alpha: how much priorities count in sampling; 0 is uniform", low=0)
    importance_exponent: float = hyperparameter(
        0.4, "beta: how much of the bias of priorities weights undo", low=0, high=1
    )


# ------------------------------------------------------------------------------------------------------------ improve


@dataclass(frozen=True, kw_only=True)
class OffPolicyTerm(Term):
    """A term over sampled rows, whose mean is weighted by their `weight`, divided by their number."""

    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS  # rows are single steps of a source

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B, T]`: importance weights over the number of rows (arXiv:1511.05952, algorithm 1)."""
        weight = experience["weight"]
        return weight / weight.numel()


@dataclass(frozen=True, kw_only=True)
class SquaredTD(OffPolicyTerm):
    """Half the squared error of every critic against one target."""

    slot: ClassVar[str] = "value-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"value_target", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"q"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Sum over critics of (Q_k - y)^2 / 2, `[B, T]`."""
        return (outputs["q"] - experience["value_target"].unsqueeze(-1)).square().sum(-1) / 2

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By Q_k: the error, weighted."""
        error = outputs["q"] - experience["value_target"].unsqueeze(-1)
        return (error.square().sum(-1) / 2 * weights).sum(), {"q": error * weights.unsqueeze(-1)}

    def priority(self, outputs: Mapping[str, Tensor], batch: Experience) -> Tensor:
        """Mean absolute error of the critics `[B, T]`."""
        return (outputs["q"] - batch["value_target"].unsqueeze(-1)).abs().mean(-1)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The critics' mean value, and the targets'."""
        return {"q": outputs["q"].mean(-1), "value_target": experience["value_target"]}


@dataclass(frozen=True, kw_only=True)
class SoftValue(OffPolicyTerm):
    """Raise the least critic's value of the policy's own actions, and its entropy (arXiv:1812.05905, equation 9)."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"sampled_action", "sampled_logprob"})
    models: ClassVar[frozenset[str]] = frozenset({"q", "temperature"})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """alpha log pi - Q of a fresh action, `[B, T]`."""
        value = self.value(see["q"](batch["observation"], outputs["sampled_action"]))
        loss: Tensor = see["temperature"]() * outputs["sampled_logprob"] - value
        return loss

    def value(self, q: Tensor) -> Tensor:
        """What the policy is raised by, of the critics' values `[..., K]`: the least."""
        return q.amin(-1)

    def grad_summand(
        self, outputs: dict[str, Tensor], batch: Experience, see: See, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Through the least critic to the action; critics that are equally low share it."""
        logprob, temperature = outputs["sampled_logprob"], see["temperature"]()
        q, back = see["q"].way_back(batch["observation"], outputs["sampled_action"])
        least = self.value(q)
        is_least = (q == least.unsqueeze(-1)).to(q.dtype)
        by_q = is_least * (-weights / is_least.sum(-1)).unsqueeze(-1)
        total = ((temperature * logprob - least) * weights).sum()
        return total, {"sampled_logprob": temperature * weights, "sampled_action": back(by_q)}

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Minus the mean log-density: an estimate of the entropy."""
        return {"entropy": -outputs["sampled_logprob"]}


@dataclass(frozen=True, kw_only=True)
class EntropyTarget(OffPolicyTerm):
    """Move the temperature so that the entropy comes to a target (arXiv:1812.05905, equation 18)."""

    slot: ClassVar[str] = "temperature-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "sampled_logprob", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"log_number"})

    target_entropy: float | None = hyperparameter(None, "H*, nats; none is minus the number of an action's numbers")

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-log alpha (log pi + H*), `[B, T]`."""
        target = -float(experience["action"].shape[-1]) if self.target_entropy is None else self.target_entropy
        return -outputs["log_number"] * (experience["sampled_logprob"] + target)

    def grad_outputs(
        self, outputs: dict[str, Tensor], experience: Experience, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By log alpha: what the loss is linear in."""
        by_number = (self.loss({"log_number": torch.ones(1)}, experience) * weights).sum().reshape(1)
        return (self.loss(outputs, experience) * weights).sum(), {"log_number": by_number}

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """The temperature."""
        return {"temperature": outputs["log_number"].exp()}
