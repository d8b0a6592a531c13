"""CAPO: before the update, predict what each token's own step would do, and leave out those that would do too much.

Only the output matrix W is modelled, with the state h before the token held fixed: logits W h, score v = e_a - pi,
gradient g = A v h^T, its step alpha D, and u = D h, what a step of size 1 adds to the logits.

Choices, after the authors' code (luckeciano/stable-pg-llm): the test of the objective's shift has two sides; an Adam
model that has seen nothing gives the raw gradient; it learns from the mean gradient over kept tokens. Ours: softmax of
the whole vocabulary at the sampling temperature; tokens without an advantage are kept unseen, since nothing steps for
them; responses of which nothing is kept are not counted in the mean. alpha is the rate of the step to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import SpecialRows
from polyrl.methods.language.grpo import GroupAdvantage
from polyrl.models.language.last_layer import AdamModel, logit_moves, scores
from polyrl.parts.collect import SampleResponses
from polyrl.parts.improve import ClippedSurrogate
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.parts.select import log_selected
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "capo"
TITLE = "Curvature-Aware Policy Optimization"
PAPER = "arXiv:2510.00819"
YEAR = 2025
FORMULA = "keep a token if |m_H| < delta_H and m_F < delta_F, the shifts that its own step is predicted to cause"


def predicted_shifts(
    probability: Tensor, score: Tensor, advantage: Tensor, moves: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """Shifts of objective and policy, m_H and m_F `[n]`, that each token's step of size `rate` would cause.

    m_H = alpha <g, D> + alpha^2/2 A ((v.u)^2 - u^T F u) and m_F = alpha^2/2 (v.u)^2 (equations 7 to 13), where
    <g, D> = A v.u and u^T F u = sum pi u^2 - (sum pi u)^2, so that no V x V matrix is made.

    Args:
        probability, score, moves: pi, v and u, `[n, V]`.
        advantage: A `[n]`.
        rate: alpha.
    """
    along = (score * moves).sum(1)  # v.u
    curvature = (probability * moves.square()).sum(1) - (probability * moves).sum(1).square()  # u^T F u
    policy = rate * rate / 2 * along.square()
    return advantage * (rate * along + policy - rate * rate / 2 * curvature), policy


@dataclass(frozen=True, kw_only=True)
class CurvatureMask(Part):
    """Leave out tokens whose own step is predicted to shift the objective or the policy too far."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "group"
    needs: ClassVar[frozenset[str]] = frozenset({"prompt_ids", "action", "mask", "greedy", "advantage", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    # tokens of an unfinished response train as well, so their gradients enter the model of Adam
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )

    objective_bound: float = hyperparameter(1e-2, "delta_H: tokens whose |m_H| is not below it are left out", above=0)
    policy_bound: float = hyperparameter(1e-4, "delta_F: tokens whose m_F is not below it are left out", above=0)
    optimizer_model: Literal["adam", "sgd"] = hyperparameter(
        "adam", "how a token's step is predicted from its gradient"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 at rejected tokens, and show the Adam model the gradient of the kept ones."""
        weights, rate = context.run_state.unembedding(), learning_rate(context)
        adam = self._adam(weights, context) if self.optimizer_model == "adam" else None
        counted = experience["weight"] != 0
        told = counted & (experience["advantage"] != 0)
        states, advantage = context.run_state.hidden_states(experience)[told], experience["advantage"][told]
        objective, policy = torch.zeros_like(advantage), torch.zeros_like(advantage)
        gradient = torch.zeros_like(weights)
        for part, h, probability, score in scores(states, experience["action"][told], weights):
            gain = advantage[part].to(weights.device)
            pull = gain[:, None] * score  # g = A v h^T
            shifts = predicted_shifts(probability, score, gain, logit_moves(pull, h, adam), rate)
            objective[part], policy[part] = (x.cpu() for x in shifts)
            keeps = self._kept(*shifts)
            gradient += pull[keeps].T @ h[keeps]
        kept = self._kept(objective, policy)
        if len(kept):
            context.log(
                capo__rejected=1 - kept.float().mean(),
                capo__objective_shift=objective.abs().quantile(0.97),
                capo__policy_shift=policy.quantile(0.97),
            )
        count = int(counted.sum()) - int((~kept).sum())
        if adam is not None and count:
            adam = adam.after(gradient / count)
            context.tensors(self.name).update(m=adam.m, q=adam.q)
            context.memory(self.name)["steps"] = adam.steps
        weight = experience["weight"].clone()
        weight[told] *= kept
        log_selected(weight, context)
        return experience.with_fields(weight=weight)

    def _kept(self, objective: Tensor, policy: Tensor) -> Tensor:
        return (objective.abs() < self.objective_bound) & (policy < self.policy_bound)

    def _adam(self, weights: Tensor, context: Context) -> AdamModel:
        kept, blank = context.tensors(self.name), torch.zeros_like(weights)
        m, q = (kept.get(name, blank).to(weights.device) for name in ("m", "q"))
        return AdamModel(m, q, int(context.memory(self.name).get("steps", 0)))


def learning_rate(context: Context) -> float:
    """The policy's next step size; 0 where nothing trains, which keeps every token."""
    optimizer = (context.optimizer or {}).get("policy")
    return float(optimizer.param_groups[0]["lr"]) if optimizer is not None else 0.0


def recipe() -> Recipe:
    """CAPO as published: GRPO with one update a batch, averaged over the tokens that are kept."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=8, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(GroupAdvantage(group_epsilon=1e-4),),
        select=(CurvatureMask(),),
        terms=(ClippedSurrogate(clip_range=0.2, aggregation="seq-mean-token-mean"),),
        optimize=Optimize(epochs=1, minibatches=1),
        adds=("curvature-mask",),
        notes={
            "credit": "GRPO's: the other answers to the prompt are the baseline",
            "select": "a second-order model of the last layer predicts what each token's own step would do; the few "
            "that would shift objective or policy too far are left out",
            "improve": "GRPO's clipped surrogate over the tokens that are kept",
        },
    )
