"""Nash-MP with sampled answers: policy gradient on pairs, pulled towards the reference and a slow copy of itself.

The form of the paper for policies that cannot be enumerated. A proximal step becomes gradient steps on its objective;
in the practical version a moving average of the parameters stands for the anchor, and the opponent is the policy
itself. Rows of a pair train symmetrically. `kappa=1` removes the anchor: plain regularized self-play (online IPO).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.errors import UserError
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.theory import check_finite, check_plays
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter
from polyrl.tasks.theory.games import kl

SLUG = "nash-mp-pg"
TITLE = "Nash Mirror Prox, policy gradient with a target"
PAPER = "arXiv:2505.19731"
YEAR = 2025
FORMULA = "grad = E (c - mean c) grad log pi(y), c = 1/2 - [y beats y'] + beta log pi/ref + beta/eta log pi/target"
TASK = "rock-paper-scissors"
DOMAIN = "theory"


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

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `2 * pairs_per_step` rows of one step: first the policy's answers, then the opponents'.

        Raises:
            Diverged: the policy or its opponent is not finite.
        """
        run_state, n, random = context.run_state, self.pairs_per_step, context.generator("collect")
        policy = run_state.log_policy
        table = (
            policy
            if self.opponent == "policy"
            else run_state.get_or_create(self.opponent, lambda: run_state.logits.detach().clone())
        )
        other = torch.log_softmax(table, -1)
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
class ProximalCost(Part):
    """Charge every answer for losing, for leaving the reference, and for leaving the target."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "step"
    slot: ClassVar[str] = "advantage"
    solves: ClassVar[str] = "game"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "score", "behaviour_logprob", "ref_logprob", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = replace(NO_SPECIAL_ROWS, masked="alone")

    eta: float | None = hyperparameter(
        None, "proximal step; the target's pull is beta / eta; none takes 2 beta", above=0
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, 1]: mean cost minus cost, a constant in the loss."""
        run_state, logprob, trained = context.run_state, experience["behaviour_logprob"], experience["mask"]
        beta = run_state.task.beta
        pull = 0.5 if self.eta is None else beta / self.eta
        target = torch.log_softmax(run_state.get_or_create("target", lambda: run_state.logits.detach().clone()), -1)
        cost = 0.5 - experience["score"][:, None] + beta * (logprob - experience["ref_logprob"])
        cost = cost + pull * (logprob - target[experience["action"]])
        return experience.with_fields(advantage=cost[trained].mean() - cost)


@dataclass(frozen=True, kw_only=True)
class Descend(Optimize):
    """Take plain gradient steps: the step size is in units of the objective, as in the theory."""

    learning_rate: float = hyperparameter(0.5, "step size of plain gradient descent", low=0, high=1e37)
    max_grad_norm: float = hyperparameter(1e6, "global norm at which gradients are clipped", above=0)

    def optimizers(self, run_state: Any) -> dict[str, Any]:
        """Plain SGD for each trained model."""
        return {
            model: torch.optim.SGD([p for _, p in named], lr=self.learning_rate)
            for model, named in run_state.parameters().items()
        }


@dataclass(frozen=True, kw_only=True)
class DescendWithAverage(Descend):
    """Take a gradient step, then move the target towards the policy: target <- (1 - kappa) target + kappa theta."""

    solves: ClassVar[str] = "game"

    kappa: float = hyperparameter(
        0.1, "rate of the moving average; 1 is plain self-play without an anchor", above=0, high=1
    )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse the opponent of the other version."""
        if recipe.collected_by("opponent", "policy") == "step":
            raise UserError(f"{recipe.name}: the opponent 'step' needs +descend-in-steps; take --opponent policy.")

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Take the step and move the target.

        Raises:
            NonFinite: the step came to a policy or a target that is not finite.
        """
        super().run(terms, experience, context)
        run_state = context.run_state
        # of softmax logits the average is the geometric mixture of the policies: the anchor itself, not a stand-in
        run_state.tables["target"] = torch.lerp(run_state.tables["target"], run_state.logits.detach(), self.kappa)
        check_finite(self, context, policy=run_state.log_policy, target=run_state.tables["target"])
        context.log(kl_to_target=kl(run_state.log_policy, torch.log_softmax(run_state.tables["target"], -1)))


@dataclass(frozen=True, kw_only=True)
class DescendInSteps(Descend):
    """Play each proximal step by gradient steps against a fixed opponent, then start the next one (version II).

    First against pi_k; then again from pi_k, against what came out. Needs `opponent=step` where pairs are drawn.
    """

    solves: ClassVar[str] = "game"

    inner_steps: int = hyperparameter(20, "gradient steps that play one proximal step", low=1)

    def check_within(self, recipe: Recipe) -> None:
        """Refuse pairs that were drawn against a moving opponent."""
        if recipe.collected_by("opponent", "step") != "step":
            raise UserError(f"{recipe.name}: '{self.name}' needs a fixed opponent; set --opponent step.")

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Take a gradient step; after `inner_steps` of them begin the next proximal step.

        Raises:
            NonFinite: the step came to a policy that is not finite.
        """
        super().run(terms, experience, context)
        run_state, tables, memory = context.run_state, context.run_state.tables, context.memory(self.name)
        check_finite(self, context, policy=run_state.log_policy)
        tables.setdefault("answer", torch.log_softmax(tables["target"], -1))
        memory["taken"] = memory.get("taken", 0) + 1
        if memory["taken"] < self.inner_steps:
            return
        memory["taken"], memory["whole"] = 0, not memory.get("whole", False)
        reached = run_state.logits.detach().clone()
        tables["step"] = reached  # the next opponent: pi_{k+1/2}, or pi_{k+1}
        if memory["whole"]:  # the half step is done: the whole one starts from the anchor again
            run_state.set_policy(tables["target"])
        else:
            tables["target"] = reached
            tables["answer"] = torch.log_softmax(reached, -1)


def recipe() -> Recipe:
    """Version (III) of the paper: self-play policy gradient with a target."""
    return Recipe(
        name=SLUG,
        collect=DrawPairs(),
        score=(JudgePairs(),),
        credit=(ProximalCost(),),
        terms=(PolicyGradient(aggregation="seq-mean-token-sum"),),
        optimize=DescendWithAverage(),
        adds=("proximal-cost", "descend-with-average"),
        notes={
            "collect": "both answers of a pair come from the present policy: one drawn from the target is worse",
            "score": "one label a pair; the loser's label is 1 minus the winner's",
            "credit": "1/2 - label + beta log(pi/ref) + (beta/eta) log(pi/target), judged against the batch's mean",
            "improve": "one plain gradient step, then the target follows at the rate kappa",
        },
    )
