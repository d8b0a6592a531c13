"""Nash-MP for language models: policy gradient on pairs, pulled towards the start and a slow copy of the policy.

The practical form of the paper. Both answers of a pair come from the present policy, a preference function says which
wins, and each answer costs 1/2 - o for losing, beta log pi/ref for leaving the start and (beta / eta) log pi/target for
leaving the target, all as sums over its tokens: a token changes later log-ratios too, so no term is token by token. The
target follows the policy by a moving average of parameters, which stands for the proximal step. `kappa=1` takes it
away: plain regularized self-play, whose gradient is online IPO's. Of every pair both answers train; the baseline is the
batch's mean. Of one pair the labels are o and 1 - o, so a preference function is asked once.

The paper's text could not be read to the end: beta, kappa and the averaging are recalled. Its form on finite games, and
version II with proximal steps, are in the method of this name for theory. The pull beta / eta is 1/2 at the theory's
step eta = 2 beta, whatever beta is; for answers of many tokens that is strong, hence the default of 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import SpecialRows, scored_rows
from polyrl.core.update import Fresh, Move, See, Update
from polyrl.errors import UserError
from polyrl.models.base import Copy
from polyrl.models.language.named import StartingPolicy
from polyrl.models.language.pairs import sequence_log_ratio
from polyrl.parts.credit import at_every_step, check_groups
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.pairs import PreferenceLabel, SamplePairs
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "nash-mp-pg"
TITLE = "Nash Mirror Prox, policy gradient with a target"
PAPER = "arXiv:2505.19731"
YEAR = 2025
FORMULA = "grad = E (c - mean c) grad log pi(y), c = 1/2 - [y beats y'] + beta log pi/ref + beta/eta log pi/target"
TASK = "sort-pairs"
FAMILY = "preference"


@dataclass(frozen=True, kw_only=True)
class AnchoredCost(Part):
    """Charge every answer for losing, for leaving the start, and for leaving the target."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "behaviour_logprob", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="left out", greedy="left out", masked="left out", unpaid="left out"
    )

    models: ClassVar[frozenset[str]] = frozenset({"target"})

    beta: float = hyperparameter(0.05, "strength of the pull to the start, preference per nat", low=0)
    pull: float = hyperparameter(0.05, "strength of the pull to the target, beta / eta; 0 takes it away", low=0)

    def required(self) -> frozenset[str]:
        """The start is asked only where it pulls."""
        return self.needs | ({"ref_logprob"} if self.beta else set())

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a recipe without a target, and answers without an opponent.

        Raises:
            UserError: says which.
        """
        check_groups(self, recipe)
        if "target" not in recipe.models:
            raise UserError(f"{recipe.name}: '{self.name}' needs a model 'target', such as Copy(\"policy\").")

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]: mean cost minus the response's cost at its own steps; 0 where nothing is compared."""
        mask, counted = experience["mask"], scored_rows(experience)
        logprob = experience["behaviour_logprob"]
        cost = 0.5 - experience["score"]
        if self.beta:
            cost = cost + self.beta * sequence_log_ratio(logprob, experience["ref_logprob"], mask)
        target = context.run_state.logprob_under("target", experience)
        to_target = sequence_log_ratio(logprob, target, mask)
        cost = cost + self.pull * to_target
        if bool(counted.any()):
            context.log(target__kl=to_target[counted].mean(), cost__mean=cost[counted].mean())
            cost = cost - cost[counted].mean()
        return experience.with_fields(advantage=at_every_step(-cost, counted, mask))


@dataclass(frozen=True)
class FollowPolicy(Move):
    """Let the target follow the policy: target <- (1 - kappa) target + kappa theta."""

    tau: float = field(init=False, default=0.1)
    kappa: float = hyperparameter(
        0.1, "rate of the moving average; 1 is plain self-play without an anchor", above=0, high=1
    )

    def __post_init__(self) -> None:
        """The share of the way that it moves is kappa."""
        super().__post_init__()
        object.__setattr__(self, "tau", self.kappa)

    def after_move(self, see: See) -> Mapping[str, float]:
        """Euclidean distance of the two models' parameters after the move."""
        return {"target/distance": see.models.distance(self.target, self.towards)}


def recipe() -> Recipe:
    """Version (III) of the paper on answers of a language model: self-play policy gradient with a target."""
    return Recipe(
        name=SLUG,
        models={"policy": StartingPolicy(learning_rate=3e-4), "reference": Copy("policy"), "target": Copy("policy")},
        collect=SamplePairs(prompts_per_step=64, completions_per_prompt=2),
        score=(PreferenceLabel(label="bernoulli"),),
        credit=(AnchoredCost(),),
        updates=(
            Update("policy", (PolicyGradient(aggregation="seq-mean-token-sum"),), Fresh()),
            FollowPolicy("target", "policy"),
        ),
        adds=("anchored-cost",),
        notes={
            "collect": "both answers of a pair come from the present policy",
            "score": "a preference function says which wins, drawn by its probability; asked once a pair",
            "credit": "1/2 - win + beta log(pi/ref) + pull log(pi/target), judged against the batch's mean",
            "improve": "one policy-gradient step, then the target follows at the rate kappa",
        },
    )
