"""PDPPO: PPO with a second critic, of the state between the decision and what chance makes of it.

The environment tells that post-decision state. The policy is trained on the larger of two critics' advantages, and both
critics by one regression of the lesser of them. Several machines decide at once, each with a probability ratio of its
own.

Where text and code of the paper differ, this is its code (leokan92/pdppo) but for two things: the whole actor is
trained, and the second critic's old values are its own. `regress=each` has the text's two regressions; both regress on
the whole return, the cost of the decision included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Draws, Epochs, Fresh, See, Update
from polyrl.errors import UserError
from polyrl.models.actor import DistributionActor
from polyrl.models.actor_critic import MlpCritic, MlpCriticNetwork, MlpPolicy, MlpPolicyNetwork
from polyrl.models.base import Interface
from polyrl.models.distributions import Distribution, MultiCategorical
from polyrl.parts.control import StateValues, StepEnvironments
from polyrl.parts.credit import gae, masked_mean, masked_std
from polyrl.parts.improve import Averaged, ClippedSurrogate, EntropyBonus, clipped_surrogate
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "pdppo"
TITLE = "Post-Decision Proximal Policy Optimization with Dual Critic Networks"
PAPER = "arXiv:2504.05150"
YEAR = 2025
FORMULA = "A = R - min(V(s), V'(s')), s' = f(s, a); loss of the critics = (min(V, V') - R)^2 / 2"
TASK = "lot-sizing"


# ---------------------------------------------------------------------------------------------- a ratio for each head


def head_logprobs(family: Distribution, params: Tensor, action: Tensor) -> Tensor:
    """Log-probability of each choice, `[..., M]`; of other actions that of the whole, `[..., 1]`."""
    if not isinstance(family, MultiCategorical):
        return family.log_prob(params, action).unsqueeze(-1)
    logs = [piece.log_softmax(-1) for piece in torch.split(params, family.choices, -1)]
    return torch.cat([log.gather(-1, action[..., i, None]) for i, log in enumerate(logs)], -1)


class HeadActor(DistributionActor):
    """Also notes the log-probability of each choice."""

    def fields(self, records: Any, action: Tensor) -> dict[str, Tensor]:
        """`behaviour_head_logprob` `[B, T, M]` too."""
        heads = head_logprobs(self.distribution, torch.from_numpy(records["params"]), action)
        return {**super().fields(records, action), "behaviour_head_logprob": heads}


class HeadPolicyNetwork(MlpPolicyNetwork):
    """Also gives "head_logprob" `[B, T, M]`."""

    def actor(self) -> HeadActor:
        """Acts by this policy."""
        return HeadActor(self.policy)

    def outputs(self, batch: Experience, wants: Collection[str], draw: Draws) -> dict[str, Tensor]:
        """Of the batch's actions."""
        params = self.policy.network(batch["observation"])
        return {"head_logprob": head_logprobs(self.policy.distribution, params, batch["action"])}


@dataclass(frozen=True, kw_only=True)
class HeadPolicy(MlpPolicy):
    """A policy of several choices at once that tells how likely each was."""

    outputs: ClassVar[frozenset[str]] = MlpPolicy.outputs | {"head_logprob"}
    acting_gives: ClassVar[frozenset[str]] = MlpPolicy.acting_gives | {"behaviour_head_logprob"}

    def make(self, interface: Interface, stream: torch.Generator) -> HeadPolicyNetwork:
        """A network to the task's choices.

        Raises:
            UserError: the task says which actions are allowed.
        """
        if interface.masked:
            raise UserError(f"{SLUG} takes every action for allowed, and {interface.task} says which are; take ppo.")
        return HeadPolicyNetwork(super().make(interface, stream).policy, masked=False)


@dataclass(frozen=True, kw_only=True)
class HeadSurrogate(ClippedSurrogate):
    """PPO's clip on the ratio of each choice, averaged over the choices."""

    needs: ClassVar[frozenset[str]] = ClippedSurrogate.needs | {"behaviour_head_logprob"}
    wants: ClassVar[frozenset[str]] = frozenset({"logprob", "head_logprob"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Of every step, `[B, T]`."""
        ratio = torch.exp(outputs["head_logprob"] - experience["behaviour_head_logprob"])
        high = self.clip_range if self.clip_range_high is None else self.clip_range_high
        advantage = experience["advantage"].unsqueeze(-1)
        return clipped_surrogate(ratio, advantage, self.clip_range, high, self.dual_clip).mean(-1)


# --------------------------------------------------------------------------------------------------------- two critics


@dataclass(frozen=True, kw_only=True)
class PostCritic(MlpCritic):
    """A critic of post-decision states."""

    def make(self, interface: Interface, stream: torch.Generator) -> MlpCriticNetwork:
        """A network of what `post-values` shows."""
        made = super().make(interface, stream)
        made.observes = "post_state"
        return made


@dataclass(frozen=True, kw_only=True)
class PostValues(Part):
    """What the second critic says of post-decision states, which are normalized like what is observed.

    What an environment tells is raw. A cut needs no value of its own here, because nothing is bootstrapped.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "post_observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"post_state", "post_value"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "post_state": Field("[B, T, D]", "float32", "task's own", "what the second critic is shown of each step"),
        "post_value": Field("[B, T]", "float32", "reward", "second critic's value, at collection"),
    }
    told: ClassVar[frozenset[str]] = frozenset({"post_observation"})
    models: ClassVar[frozenset[str]] = frozenset({"policy", "post_critic"})

    after_decision: bool = hyperparameter(True, "false shows the second critic the state before, as a control")

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `post_state` `[B, T, D]` and `post_value` `[B, T]`."""
        state = batch["observation"]
        if self.after_decision:
            told = batch["post_observation"].double().numpy()
            state = torch.from_numpy(see["policy"].actor().normalize(told))
        return batch.with_fields(post_state=state, post_value=see["post_critic"].values(state))


@dataclass(frozen=True, kw_only=True)
class DualAdvantage(Part):
    """The larger of two critics' advantages: standardized returns less the lesser value."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "terminated", "truncated", "mask", "value", "post_value"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "value_target"})

    gamma: float = hyperparameter(0.99, "discount of later rewards, per step", low=0, high=1)
    standardize: bool = hyperparameter(True, "returns with mean 0 and deviation 1 over the batch")
    critics: Literal["both", "pre", "post"] = hyperparameter("both", "whose values advantages are taken over")

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `advantage` and `value_target`, the return, `[B, T]`; nothing follows an end, a cut, or the rollout."""
        mask = batch["mask"]
        ends = (batch["terminated"], batch["truncated"], mask)
        returns = gae(batch["reward"], torch.zeros_like(batch["reward"]), *ends, gamma=self.gamma, gae_lambda=1.0)
        if self.standardize:
            returns = (returns - masked_mean(returns, mask)) / (masked_std(returns, mask, 1) + 1e-7)
        values = {"pre": batch["value"], "post": batch["post_value"]}
        least = torch.minimum(*values.values()) if self.critics == "both" else values[self.critics]
        return batch.with_fields(advantage=(returns - least) * mask, value_target=returns)


@dataclass(frozen=True)
class LesserValueLoss(Averaged):
    """Regress the lesser of two critics on the return: of each step one of them learns."""

    slot: ClassVar[str] = "value-objective"
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS
    needs: ClassVar[frozenset[str]] = frozenset({"value_target", "weight", "observation", "post_state"})
    wants: ClassVar[frozenset[str]] = frozenset({"value"})

    other: str = "critic"
    value_coef: float = hyperparameter(0.5, "weight of the squared error", low=0)
    regress: Literal["lesser", "each"] = hyperparameter("lesser", "what is regressed: the lesser value, or each")

    def required_models(self) -> frozenset[str]:
        """The other critic."""
        return frozenset({self.other})

    def summand(self, outputs: dict[str, Tensor], batch: Experience, see: See) -> Tensor:
        """(min(V, V') - R)^2 of every step, weighted, `[B, T]`."""
        value = outputs["value"]
        if self.regress == "lesser":
            other = see[self.other]
            value = torch.minimum(value, other(batch[other.observes]))
        return self.value_coef * (value - batch["value_target"]).square()


def recipe() -> Recipe:
    """Settings for a laptop; the entropy of the paper's code is a mean over two machines, 0.012 / 2."""
    return Recipe(
        name=SLUG,
        models={
            "policy": HeadPolicy(learning_rate=5e-4, activation="relu"),
            "critic": MlpCritic(learning_rate=1e-3),
            "post_critic": PostCritic(learning_rate=1e-3),
        },
        collect=StepEnvironments(environments=10, steps_per_environment=200),
        updates=(
            Epochs(
                (
                    Update("policy", (HeadSurrogate(), EntropyBonus(entropy_coef=0.006)), Again()),
                    Update("critic", (LesserValueLoss("post_critic"),), Again()),
                    Update("post_critic", (LesserValueLoss("critic"),), Again()),
                ),
                Fresh(),
                credit=(StateValues("critic"), PostValues(), DualAdvantage()),
                epochs=20,
                minibatch_of="steps",
                joint_clip=1.0,
            ),
        ),
        adds=("post-values", "dual-advantage", "head-surrogate", "lesser-value-loss"),
        notes={"credit": "the larger of two advantages, one of which is over what the decision has come to"},
    )
