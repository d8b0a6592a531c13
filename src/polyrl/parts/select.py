"""Stage 4, select: which samples and steps count, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import ALONE, SpecialRows, finished_rows, sampled_steps, scored_rows
from polyrl.errors import UserError
from polyrl.parts.credit import group_statistics
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter


def order_of(key: Tensor, generator: torch.Generator | None = None, descending: bool = False) -> Tensor:
    """Indices `[n]` that sort the numbers `key` `[n]`; the order of equal ones is drawn."""
    drawn = torch.randperm(len(key), generator=generator)
    return drawn[key[drawn].argsort(stable=True, descending=descending)]


@dataclass(frozen=True, kw_only=True)
class AllSteps(Part):
    """Every step that the policy sampled in this iteration counts once; greedy baselines never train."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="left out"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `weight` [B, T] in {0, 1}."""
        return experience.with_fields(weight=sampled_steps(experience).float())


def _with_weight(experience: Experience, kept: Tensor) -> Experience:
    """Set `weight` to 0 in rows that are not `kept` `[B]`, unless that would leave nothing to train on."""
    weight = experience["weight"] * kept.float()[:, None]
    return experience.with_fields(weight=weight) if bool((weight != 0).any()) else experience


@dataclass(frozen=True, kw_only=True)
class DropEqualGroups(Part):
    """Leave out groups whose scores are all equal (DAPO's filter, arXiv:2503.14476, equation 11).

    The groups are not drawn anew: the batch shrinks, and the averages are over what is left. Responses that an earlier
    selection left out still say whether their group agrees; unfinished ones have no score and stay as they are.
    """

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "group", "weight", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="left out", greedy="left out", masked="left out", unpaid="left out", unselected="counted"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 in groups without spread, unless that would leave nothing."""
        judged = scored_rows(experience)
        kept = group_statistics(experience["score"], experience["group"], counted=judged)[1] > 0
        if bool(judged.any()):
            context.log(groups__kept=kept[judged].float().mean())
        return _with_weight(experience, kept | ~judged)


@dataclass(frozen=True, kw_only=True)
class DropUnended(Part):
    """Leave out responses that the length limit cut off (DAPO's overlong filtering, arXiv:2503.14476, section 3.4)."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "group"
    needs: ClassVar[frozenset[str]] = frozenset({"ended", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="left out", greedy="alone", masked="alone", unpaid="alone", unselected="alone"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 in rows that did not end by themselves, unless that would leave nothing.

        A response that goes on next iteration was not cut off: it stays as it is.
        """
        return _with_weight(experience, experience["ended"] | ~finished_rows(experience))


def log_selected(weight: Tensor, context: Context) -> None:
    """Log how many steps `weight` `[B, T]` leaves in the update: what its backward passes are for."""
    context.log(select__steps=(weight != 0).sum())


@dataclass(frozen=True, kw_only=True)
class RandomDrop(Part):
    """Leave out steps or responses at random: the control of every rule that claims to know which ones."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    drop_rate: float = hyperparameter(0.03, "share that is left out", low=0, high=1)
    drop: Literal["steps", "rows"] = hyperparameter("steps", "what is left out: single steps, or whole responses")

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 at random places, unless that would leave nothing."""
        weight = experience["weight"]
        shape = weight.shape if self.drop == "steps" else (len(weight), 1)
        drawn = torch.rand(shape, generator=context.generator("random-drop"))
        kept = weight * (drawn >= self.drop_rate)
        if bool((kept != 0).any()):
            weight = kept
        log_selected(weight, context)
        return experience.with_fields(weight=weight)


@dataclass(frozen=True, kw_only=True)
class EntropyAtCollection(Part):
    """Measure the policy's entropy before every step, with the policy as it was at collection."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_ids", "action", "mask", "greedy", "behaviour_logprob"})
    gives: ClassVar[frozenset[str]] = frozenset({"entropy_at_collection"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "entropy_at_collection": Field(
            "[B, T]", "float32", "nats", "entropy of the policy that sampled, before each step"
        ),
    }
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="left out"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `entropy_at_collection` [B, T], nats; 0 in responses that are already left out."""
        counted = sampled_steps(experience) if "weight" not in experience else experience["weight"] != 0
        rows = counted.any(1).nonzero()[:, 0]
        entropy = torch.zeros_like(experience["behaviour_logprob"])
        if len(rows):
            entropy[rows] = context.run_state.entropy(experience.rows(rows)).to(entropy.dtype)
        return experience.with_fields(entropy_at_collection=entropy)


@dataclass(frozen=True, kw_only=True)
class CriticPretraining(Part):
    """Let only the critic learn in the first iterations: steps have no weight for the policy, and theirs for it."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    critic_pretraining: int = hyperparameter(10, "iterations in which only the critic learns; 0 is off", low=0)
    critic_start: Literal["policy", "reward-model"] = hyperparameter(
        "policy", "what the critic begins as a copy of: the policy with a new head, or the reward model that scores"
    )

    def check_within(self, recipe: Recipe) -> None:
        """Without a critic there is nothing to train first."""
        if (self.critic_pretraining or self.critic_start != "policy") and not any(
            "value" in t.wants for t in recipe.terms
        ):
            raise UserError(
                f"{recipe.name}: part 'critic-pretraining' trains the critic before the policy, and nothing here "
                "trains a critic; set --critic-pretraining 0 or start from ppo."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Move `weight` [B, T] to `value_weight` [B, T] while the critic learns alone."""
        if context.iteration > self.critic_pretraining:
            return experience
        weight = experience["weight"]
        own = experience.data.get("value_weight", weight)
        return experience.with_fields(weight=torch.zeros_like(weight), value_weight=own)
