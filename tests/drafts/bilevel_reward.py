"""A reward of language that knows that its policy will follow: AIHF's loop, with the penalty gradient for the reward.

Penalty bilevel (arXiv:2309.01753) where the lower level is RLHF: x is a reward network, z the policy that is trained
on it, g its objective with a KL of weight tau. The upper level f is the loss of Bradley and Terry on pairs of what the
policy itself samples, labelled by the task's score. The second policy is not trained: of answers that z drew, that of
r - sigma f' has the weights exp(-sigma f' / tau), f' of an answer being twice its mean loss against the others. So

    x -= a (f_x(x, y) + (g_x(x, y) - g_x(x, z)) / sigma)

is a loss of the scores of one batch, and the same answers serve both policies. That is exact where the policy is at its
optimum and all answers are there; of a few answers to a prompt, by a policy on the way, it is an estimate with a bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polyrl import Experience, Recipe, hyperparameter
from polyrl.catalogue import build
from polyrl.core.context import Context
from polyrl.core.special_rows import scored_rows
from polyrl.methods.language.aihf import JointImprovement

SLUG = "bilevel-reward"
FORMULA = "reward loss = f(r, w) - sum_i (w_i - 1 / G) r_i / sigma, w_i = softmax(-sigma f'_i / tau)"
TASK = "sort-pairs"


def penalty_loss(scores: Tensor, gold: Tensor, sigma: float, tau: float, drew: Tensor | None = None) -> Tensor:
    """The loss whose gradient by the scores is the penalty gradient; with sigma 0 the naive one.

    Args:
        scores: of answers to the same prompts `[P, G]`.
        gold: what labels them `[P, G]`: the chance that i beats j is sigmoid(gold_i - gold_j).
        sigma, tau: of the penalty, and what a nat of KL costs the policy.
        drew: probabilities of the answers under the policy `[P, G]`; none is equally often.
    """
    weight = torch.full_like(scores, 1 / scores.shape[1]) if drew is None else drew
    wins = torch.sigmoid(gold[:, :, None] - gold[:, None])
    margin = scores[:, :, None] - scores[:, None]
    loss = -wins * logsigmoid(margin) - (1 - wins) * logsigmoid(-margin)  # [P, G, G]
    if not sigma:
        return (weight[:, :, None] * weight[:, None] * loss).sum((1, 2)).mean()
    log_tilted = weight.log()
    for _ in range(100):  # the fixed point, as f' is that of the tilted policy itself
        tilted = torch.softmax(log_tilted, -1)
        slope = 2 * (tilted[:, None] * loss.detach()).sum(-1)
        log_tilted = (log_tilted + weight.log() - sigma / tau * slope) / 2
    tilted = torch.softmax(log_tilted, -1)
    upper = (tilted[:, :, None] * tilted[:, None] * loss).sum((1, 2))
    return (upper - ((tilted - weight) * scores).sum(-1) / sigma).mean()


@dataclass(frozen=True, kw_only=True)
class BilevelImprovement(JointImprovement):
    """Take the policy's step, then a few of the reward on pairs of its own samples."""

    demonstration_weight: float = hyperparameter(0.0, "w1; 0: the reward is learned from pairs alone", low=0, high=0)
    gradient: Literal["penalty", "naive"] = hyperparameter("penalty", "by two policies, or with the policy for fixed")
    sigma: float = hyperparameter(0.02, "the gradient is wrong by O(sigma)", above=0)

    def _reward_step(self, experience: Experience, context: Context, weight: float) -> None:
        """One AdamW step on `penalty_loss`, over prompts all of whose answers were sampled and finished."""
        whole = scored_rows(experience)
        numbers = experience["group"]
        sizes = numbers.bincount(weights=whole.double())
        rows = (whole & (sizes[numbers] == sizes.max())).nonzero()[:, 0]
        rows = rows[torch.argsort(numbers[rows], stable=True)]
        fresh, shape = experience.rows(rows), (-1, int(sizes.max()))
        gold, _, calls = context.run_state.score(fresh)
        context.spent.reward_calls += calls

        def objective(scores: list[Tensor]) -> Tensor:
            sigma = self.sigma if self.gradient == "penalty" else 0.0
            loss = penalty_loss(scores[0].view(shape), gold.view(shape), sigma, self.kl_coef)
            return loss + self.reward_l2 * scores[0].square().mean()

        self._set_reward_rate(context.optimizer)
        context.params_updated = True
        reward = context.run_state.own["reward"]
        loss, scores = reward.step(objective, [fresh], context.optimizer["reward"], self.max_grad_norm)
        context.spent.updates += 1
        naive = penalty_loss(scores[0].view(shape), gold.view(shape), 0.0, self.kl_coef)
        context.log(joint__loss=loss, joint__pair_loss=naive)


def recipe() -> Recipe:
    """AIHF's loop, whose reward is learned on the policy's own pairs."""
    base = build("aihf")
    optimize = BilevelImprovement(learning_rate=5e-4, kl_coef=0.1)
    return replace(base, name=SLUG, optimize=optimize, adds=("bilevel-improvement",))
