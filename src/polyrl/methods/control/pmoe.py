"""PMOE: SAC with a mixture of Gaussians, whose router learns how often each expert's action is the best one.

To choose an expert is no number that a gradient could pass, so the router is not taught by the return. Every expert
proposes an action, the critics say which is best, and the router's probabilities are moved towards that answer; only
the expert that proposed it learns from the critics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from polyrl.core.composing import with_updates
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Epochs, See, Update
from polyrl.errors import UserError
from polyrl.methods.control import sac
from polyrl.models.mixtures import GaussianMixture
from polyrl.models.policies import GaussianPolicy, SquashedGaussian
from polyrl.parts.replayed import OffPolicyTerm
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter, options

SLUG = "pmoe"
TITLE = "Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning"
PAPER = "arXiv:2104.09122"
YEAR = 2021
FORMULA = "a_j ~ expert j, b = argmax_j Q(s, a_j); policy: SAC's loss of expert b + mean_j (1(j = b) - w_j(s))^2"
TASK = "two-peaks"


@dataclass(frozen=True, kw_only=True)
class BestExpert(Part):
    """Let every expert propose an action, and take the one that the least critic values most; ties fall at random.

    As in the co-author's code the least of the critics' values decides, whatever the policy's own loss raises.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "expert"
    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    gives: ClassVar[frozenset[str]] = frozenset({"expert", "expert_noise"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "expert": Field("[B, T]", "int64", "-", "the expert of a mixture that learns from this row"),
        "expert_noise": Field("[B, T, K, A]", "float32", "-", "normal numbers that each expert's proposal is made of"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"policy", "q"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `expert` [B, T] and `expert_noise` [B, T, K, A]."""
        policy, observation = see["policy"], batch["observation"]
        noise = see.draw(*observation.shape[:-1], policy.experts, policy.actions)
        if policy.experts == 1:
            expert = torch.zeros(observation.shape[:-1], dtype=torch.int64)
            return batch.with_fields(expert=expert, expert_noise=noise)
        action, logprob, mode = policy.every(observation, noise)
        weights = policy.log_weights(observation).exp()
        see.context.means.add("experts/apart", float(apart(mode, weights).mean()))
        return self.chosen(batch.with_fields(expert_noise=noise), action, logprob, see)

    def chosen(self, batch: Experience, action: Tensor, logprob: Tensor, see: See) -> Experience:
        """Add `expert` by what the critics say of the proposals `[B, T, K, A]`."""
        value = values(see, batch["observation"], action)
        best = value == value.amax(-1, keepdim=True)
        if bool((best.sum(-1) > 1).any()):
            return batch.with_fields(expert=(best * (1 - see.draw.uniform(*best.shape))).argmax(-1))
        return batch.with_fields(expert=best.to(torch.int64).argmax(-1))


def values(see: See, observation: Tensor, action: Tensor) -> Tensor:
    """The least critic's values `[..., K]` of K actions `[..., K, A]` in one state `[..., D]`."""
    found: Tensor = see["q"](observation.unsqueeze(-2).expand(*action.shape[:-1], -1), action).amin(-1)
    return found


def apart(mode: Tensor, weights: Tensor) -> Tensor:
    """Mean distance `[...]` of the modes `[..., K, A]` of two experts that are drawn by `weights` `[..., K]`.

    0 where one expert always acts or all do the same; half the distance of two that act equally often.
    """
    distance = (mode.unsqueeze(-2) - mode.unsqueeze(-3)).square().sum(-1).sqrt()
    return torch.einsum("...i,...j,...ij->...", weights, weights, distance)


@dataclass(frozen=True, kw_only=True)
class FrequencyLoss(OffPolicyTerm):
    """Bring each expert's probability to how often its action is the best one: the frequency estimator."""

    slot: ClassVar[str] = "router-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"expert", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"expert_weights"})

    frequency_coef: float = hyperparameter(1.0, "weight of the router's loss", low=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Mean over experts of (1(j is best) - w_j)^2, `[B, T]`."""
        weights = outputs["expert_weights"]
        best = nn.functional.one_hot(experience["expert"], weights.shape[-1])
        return self.frequency_coef * (best - weights).square().mean(-1)

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Of each expert how often it is the best, and what the router says: an expert that never is, starves."""
        weights, found = outputs["expert_weights"], dict[str, Tensor]()
        for j in range(weights.shape[-1]):
            found[f"expert_{j}/best"] = (experience["expert"] == j).float()
            found[f"expert_{j}/weight"] = weights[..., j]
        return found


# ----------------------------------------------------------------------------- the estimators that it is compared with


@dataclass(frozen=True, kw_only=True)
class GumbelExpert(BestExpert):
    """Draw an expert by the Gumbel trick, so that a softmax carries the critics' gradient to the router as well."""

    scope: ClassVar[Scope] = "step"
    gives: ClassVar[frozenset[str]] = BestExpert.gives | {"gumbel"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "gumbel": Field("[B, T, K]", "float32", "-", "Gumbel numbers that an expert is drawn by"),
    }

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `gumbel` [B, T, K] too."""
        found = super().apply(batch, see)
        return found if "gumbel" in found else found.with_fields(gumbel=torch.zeros(*batch["weight"].shape, 1))

    def chosen(self, batch: Experience, action: Tensor, logprob: Tensor, see: See) -> Experience:
        """Add `expert`, the largest of the log-probabilities with their Gumbel numbers."""
        log_weights = see["policy"].log_weights(batch["observation"])
        gumbel = -torch.log(-torch.log(see.draw.uniform(*log_weights.shape).clamp(1e-20, 1 - 1e-7)))
        return batch.with_fields(expert=(log_weights + gumbel).argmax(-1), gumbel=gumbel)


@dataclass(frozen=True, kw_only=True)
class DrawnExpert(BestExpert):
    """Draw an expert as the router says, and tell what its action costs beside the others of the batch."""

    scope: ClassVar[Scope] = "batch"
    gives: ClassVar[frozenset[str]] = BestExpert.gives | {"expert_cost"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "expert_cost": Field("[B, T]", "float32", "reward", "alpha log pi - Q of the drawn expert, less its mean"),
    }
    models: ClassVar[frozenset[str]] = BestExpert.models | {"temperature"}

    def apply(self, batch: Experience, see: See) -> Experience:
        """Add `expert_cost` [B, T] too."""
        found = super().apply(batch, see)
        return found if "expert_cost" in found else found.with_fields(expert_cost=torch.zeros_like(batch["weight"]))

    def chosen(self, batch: Experience, action: Tensor, logprob: Tensor, see: See) -> Experience:
        """Add `expert` and `expert_cost`."""
        observation = batch["observation"]
        expert = see["policy"].drawn(observation, see.draw(*observation.shape[:-1]))
        cost = see["temperature"]() * logprob - values(see, observation, action)
        drawn = cost.gather(-1, expert.unsqueeze(-1)).squeeze(-1)
        return batch.with_fields(expert=expert, expert_cost=drawn - drawn.mean())


@dataclass(frozen=True, kw_only=True)
class ScoreRouter(OffPolicyTerm):
    """Raise the probability of experts whose actions cost less than others: the score-function estimator."""

    slot: ClassVar[str] = "router-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"expert", "expert_cost", "weight"})
    wants: ClassVar[frozenset[str]] = frozenset({"expert_weights"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Cost times log w of the drawn expert, `[B, T]`."""
        chosen = outputs["expert_weights"].gather(-1, experience["expert"].unsqueeze(-1)).squeeze(-1)
        return experience["expert_cost"] * chosen.clamp(min=1e-8).log()


@dataclass(frozen=True, kw_only=True)
class Mixture(Change):
    """Let several Gaussians act instead of one, in the policy of a method for actions between bounds.

    Where the policy is raised by critics, the router is trained beside it; where it imitates, by the likelihood of the
    mixture, which trains router and experts at once.
    """

    credit: ClassVar[Part] = BestExpert()
    terms: ClassVar[tuple[OffPolicyTerm, ...]] = (FrequencyLoss(),)

    experts: int = hyperparameter(4, "K, Gaussians in each state; 1 is the method without a mixture", low=1)

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with a mixture for its policy, and what trains its router.

        Raises:
            UserError: its policy is no Gaussian between bounds.
        """
        old = recipe.models.get("policy")
        if not isinstance(old, SquashedGaussian | GaussianPolicy):
            raise UserError(
                f"{recipe.name} acts by no Gaussian between bounds named 'policy', so '{self.name}' has nothing to put "
                "several in the place of; sac, rlpd, cql, iql and bc do."
            )
        kept = {f.name: old.setting(f.name, None) for f in options(old)}
        kept = {f.name: kept[f.name] for f in options(GaussianMixture()) if f.name in kept} | {"experts": self.experts}

        def routed(step: Update | Epochs) -> Update | Epochs:
            if not isinstance(step, Update) or step.trains != "policy":
                return step
            if not any("sampled_action" in term.wants for term in step.terms):
                return step
            others = tuple(part for part in step.credit if part.slot != self.credit.slot)
            own = tuple(term for term in step.terms if term.slot != "router-objective")
            return dataclasses.replace(step, credit=(*others, self.credit), terms=(*own, *self.terms))

        mixed = dataclasses.replace(recipe, models={**recipe.models, "policy": GaussianMixture(**kept)})
        return with_updates(mixed, routed)


@dataclass(frozen=True, kw_only=True)
class GumbelMixture(Mixture):
    """A mixture whose router has the critics' gradient, through a softmax with Gumbel noise (arXiv:1611.01144)."""

    credit: ClassVar[Part] = GumbelExpert()
    terms: ClassVar[tuple[OffPolicyTerm, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreMixture(Mixture):
    """A mixture whose router has the score-function gradient of what its experts' actions cost."""

    credit: ClassVar[Part] = DrawnExpert()
    terms: ClassVar[tuple[OffPolicyTerm, ...]] = (ScoreRouter(),)


def recipe() -> Recipe:
    """On SAC: four experts, the frequency estimator, and the best expert alone learns from the critics."""
    mixture = Mixture(experts=4)
    mixed = mixture.change(sac.recipe())
    return dataclasses.replace(
        mixed,
        name=SLUG,
        adds=(),
        joins=(mixture,),
        notes={
            **mixed.notes,
            "improve": "SAC's updates; the expert of the best action learns, and the router how often each is best",
        },
    )
