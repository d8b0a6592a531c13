"""Nash-MP with sampled answers: policy gradient on pairs, pulled towards the reference and a slow copy of itself.

The form of the paper for policies that cannot be enumerated. A proximal step becomes gradient steps on its objective;
in the practical version a moving average of the parameters stands for the anchor, and the opponent is the policy
itself. Rows of a pair train symmetrically. `kappa=1` removes the anchor: plain regularized self-play (online IPO).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Again, Epochs, Fresh, Move, See, Update
from polyrl.errors import UserError
from polyrl.models.base import Copy
from polyrl.models.tables import TrainedSoftmaxTable
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.score import ReferenceLogprob
from polyrl.parts.theory import check_plays
from polyrl.recipe import Change, Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.theory.games import kl

SLUG = "nash-mp-pg"
TITLE = "Nash Mirror Prox, policy gradient with a target"
PAPER = "arXiv:2505.19731"
YEAR = 2025
FORMULA = "grad = E (c - mean c) grad log pi(y), c = 1/2 - [y beats y'] + beta log pi/ref + beta/eta log pi/target"
TASK = "rock-paper-scissors"
DOMAIN = "theory"
FIRST = True
"""The name meant games alone, and means them still where no task is named."""


@dataclass(frozen=True, kw_only=True)
class DrawPairs(Part):
    """Draw pairs of answers: one from the policy, one from its opponent, which is the policy itself by default."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "theory"
    solves: ClassVar[str] = "game"
    gives: ClassVar[frozenset[str]] = frozenset({"action", "mask", "present", "behaviour_logprob", "pair"})

    pairs_per_step: int = hyperparameter(64, "pairs in one iteration, one label each", low=1)
    opponent: Literal["policy", "target", "step"] = hyperparameter(
        "policy", "policy (both rows train), target (an ablation, not this method), or step (with descend-in-steps)"
    )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse an opponent that the recipe does not have, or that moves where it must not."""
        if self.opponent == "step" and "step" not in recipe.models:
            raise UserError(f"{recipe.name}: the opponent 'step' needs +descend-in-steps; take --opponent policy.")
        if self.opponent != "step" and "step" in recipe.models:
            raise UserError(f"{recipe.name}: 'descend-in-steps' needs a fixed opponent; set --opponent step.")
        if len({step.inner_steps for step in recipe.updates if isinstance(step, MoveAfterSteps)}) > 1:
            raise UserError(
                f"{recipe.name}: its copies move after different numbers of steps; set --inner-steps for all."
            )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `2 * pairs_per_step` rows of one step: first the policy's answers, then the opponents'.

        Raises:
            Diverged: the policy or its opponent is not finite.
        """
        run_state, n, random = context.run_state, self.pairs_per_step, context.generator("collect")
        policy = run_state.log_policy
        # of its own opponent the normalized table is normalized once more, which the draws depend on to the last bit
        other = (
            torch.log_softmax(policy, -1) if self.opponent == "policy" else run_state.models[self.opponent].log_policy
        )
        check_plays(self, context, policy=policy, opponent=other)
        action = torch.cat([torch.multinomial(p.exp(), n, True, generator=random) for p in (policy, other)])
        chosen = torch.ones(2 * n, dtype=torch.bool)
        chosen[n:] = self.opponent == "policy"  # what another policy drew must not train this one
        context.spent.samples += 2 * n
        context.spent.steps += int(chosen.sum())
        return Experience(
            {
                "action": action[:, None],
                "mask": chosen[:, None],
                "present": torch.ones(2 * n, 1, dtype=torch.bool),
                "behaviour_logprob": policy[action][:, None],
                "pair": torch.arange(n).repeat(2),
            }
        )


@dataclass(frozen=True, kw_only=True)
class JudgePairs(Part):
    """Ask the preference oracle once for every pair: 1 for the row that won, 0 for the other."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "group"
    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "pair"})
    gives: ClassVar[frozenset[str]] = frozenset({"score"})
    # rows of an opponent that does not train are masked; the oracle judges them as any other
    special_rows: ClassVar[SpecialRows | None] = replace(NO_SPECIAL_ROWS, masked="alone")

    label: Literal["sampled", "probability"] = hyperparameter(
        "sampled", "a random winner, or the oracle's probability itself"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B]: o of the row over the other row of its pair, in [0, 1]."""
        n = len(experience) // 2
        first, second = experience["action"][:n, 0], experience["action"][n:, 0]
        won = context.run_state.task.preference[first, second]
        if self.label == "sampled":
            won = torch.bernoulli(won, generator=context.generator("judge"))
        context.spent.reward_calls += n
        context.log(reward=won.mean())
        return experience.with_fields(score=torch.cat([won, 1 - won]))


@dataclass(frozen=True, kw_only=True)
class GameReference(ReferenceLogprob):
    """Measure the log-probability of every answer under the reference, which is the game's own and no model."""

    solves: ClassVar[str] = "game"
    models: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ProximalCost(Part):
    """Charge every answer for losing, for leaving the reference, and for leaving the target."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "advantage"
    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "score", "behaviour_logprob", "ref_logprob", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    derives: ClassVar[tuple[type[Part], ...]] = (GameReference,)
    models: ClassVar[frozenset[str]] = frozenset({"target"})
    special_rows: ClassVar[SpecialRows | None] = replace(NO_SPECIAL_ROWS, masked="alone")

    eta: float | None = hyperparameter(
        None, "proximal step; the target's pull is beta / eta; none takes 2 beta", above=0
    )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a recipe without a target."""
        if "target" not in recipe.models:
            raise UserError(f"{recipe.name}: '{self.name}' needs a model 'target', such as Copy(\"policy\").")

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, 1]: mean cost minus cost, a constant in the loss."""
        run_state, logprob, trained = context.run_state, experience["behaviour_logprob"], experience["mask"]
        beta = run_state.task.beta
        pull = 0.5 if self.eta is None else beta / self.eta
        target = run_state.models["target"].log_policy
        cost = 0.5 - experience["score"][:, None] + beta * (logprob - experience["ref_logprob"])
        cost = cost + pull * (logprob - target[experience["action"]])
        return experience.with_fields(advantage=cost[trained].mean() - cost)


@dataclass(frozen=True)
class MoveTarget(Move):
    """Move the target towards the policy: target <- (1 - kappa) target + kappa theta.

    Of softmax logits the average is the geometric mixture of the policies: the anchor itself, and not a stand-in.
    """

    tau: float = field(init=False, default=0.1)
    kappa: float = hyperparameter(
        0.1, "rate of the moving average; 1 is plain self-play without an anchor", above=0, high=1
    )

    def __post_init__(self) -> None:
        """The share of the way that it moves is kappa."""
        super().__post_init__()
        object.__setattr__(self, "tau", self.kappa)

    def after_move(self, see: See) -> Mapping[str, float]:
        """KL(policy || target), nats, of the two after the move."""
        return {"kl_to_target": float(kl(see[self.towards].log_policy, see[self.target].log_policy))}


@dataclass(frozen=True)
class MoveAfterSteps(Move):
    """Copy a table when proximal steps are done, each of which is `inner_steps` gradient steps.

    Attributes:
        proximal_steps: how many of them: 1 is after the half and after the whole one.
    """

    every: int = field(init=False, default=20)
    proximal_steps: int = field(default=1, kw_only=False)
    inner_steps: int = hyperparameter(20, "gradient steps that play one proximal step", low=1)

    def __post_init__(self) -> None:
        """Count the gradient steps from one move to the next."""
        super().__post_init__()
        object.__setattr__(self, "every", self.proximal_steps * self.inner_steps)


@dataclass(frozen=True, kw_only=True)
class DescendInSteps(Change):
    """Play each proximal step by gradient steps against a fixed opponent, then start the next one (version II).

    First against pi_k; then again from pi_k, against what came out. Needs `opponent=step` where pairs are drawn.
    """

    inner_steps: int = hyperparameter(20, "gradient steps that play one proximal step", low=1)

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe with tables that are copied in place of one that follows; the anchor pi_k is what is judged.

        Raises:
            UserError: it has no target that follows a policy.
        """
        if not any(isinstance(step, MoveTarget) for step in recipe.updates):
            raise UserError(f"{recipe.name} has no target that follows, so '{self.name}' has nothing to change.")
        n = self.inner_steps
        return replace(
            recipe,
            models={**recipe.models, "step": Copy("policy")},
            judged="target",
            updates=(
                *(step for step in recipe.updates if not isinstance(step, MoveTarget)),
                MoveAfterSteps("step", "policy", inner_steps=n),  # the next opponent: pi_{k+1/2}, or pi_{k+1}
                MoveAfterSteps("target", "policy", proximal_steps=2, inner_steps=n),
                MoveAfterSteps("policy", "target", inner_steps=n),  # the whole step starts from the anchor again
            ),
        )


def recipe() -> Recipe:
    """Version (III) of the paper: self-play policy gradient with a target."""
    return Recipe(
        name=SLUG,
        models={"policy": TrainedSoftmaxTable(), "target": Copy("policy")},
        collect=DrawPairs(),
        score=(JudgePairs(),),
        credit=(ProximalCost(),),
        updates=(
            Epochs((Update("policy", (PolicyGradient(aggregation="seq-mean-token-sum"),), Again()),), Fresh()),
            MoveTarget("target", "policy"),
        ),
        adds=("proximal-cost", "target-move"),
        notes={
            "collect": "both answers of a pair come from the present policy: one drawn from the target is worse",
            "score": "one label a pair; the loser's label is 1 minus the winner's",
            "credit": "1/2 - label + beta log(pi/ref) + (beta/eta) log(pi/target), judged against the batch's mean",
            "improve": "one plain gradient step, then the target follows at the rate kappa",
        },
    )
