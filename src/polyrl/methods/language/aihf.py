"""AIHF: learn reward and policy together, from demonstrations and preferences at once.

One reward R explains both: the likelihood of the demonstrations under the policy that is optimal for R, and the
Bradley-Terry likelihood of the pairs. The gradient of the first needs no differentiation through the policy: it raises
R on demonstrations and lowers it on samples of the present policy, on the same prompts. The loop alternates a policy
step on R (here RLOO with a token KL to the start) with steps of the reward.

AIHF-DPO has no reward network: the policy's log-ratio is the reward, and one loss is the negative log-likelihood of
demonstrations plus DPO on pairs, `dpo+demonstrated-pairs+demonstration-nll`.

The paper's own values and step counts could not be read; formulas are derived (their gradients are tested), the
alternation and the weight's place, w1 / beta on the demonstrations only, are as recalled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import SpecialRows, scored_rows
from polyrl.data.pairs import numbers_of_step
from polyrl.errors import NotFinite, UserError
from polyrl.methods.language.rloo import LeaveOneOut
from polyrl.models.language.named import trained
from polyrl.models.language.rows import micro_batches_of
from polyrl.models.language.scalar import RewardModel
from polyrl.models.stored import Stored, StoredFolder
from polyrl.parts.imitation import DemonstratedPrompts
from polyrl.parts.improve import PolicyGradient
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import JUDGED, TokenKLPenalty, assign_reward, of_finished
from polyrl.recipe import OwnModel, Part, Recipe, Scope, Stage, Term, hyperparameter
from polyrl.runtime.seeding import generator

SLUG = "aihf"
TITLE = "Learning Reward and Policy Jointly from Demonstration and Preference"
PAPER = "arXiv:2406.06874"
YEAR = 2024
FORMULA = "reward loss = -(w1/beta) (R(demo) - R(sample)) - log sigma(R(chosen) - R(rejected)) + c R^2"
TASK = "sort-pairs"


def joint_reward_loss(
    expert: Tensor, sampled: Tensor, chosen: Tensor, rejected: Tensor, weight: float, beta: float, l2: float = 0.0
) -> Tensor:
    """The reward's loss: means over the demonstrations `[n]`, the policy's samples `[m]` and the pairs `[k]`.

    -(weight / beta) (mean R(expert) - mean R(sampled)) - mean log sigma(R(chosen) - R(rejected)), plus `l2` times the
    mean square of all rewards: the first part is linear, so without it nothing bounds R before the policy catches up.
    """
    loss = -logsigmoid(chosen - rejected).mean()
    if weight:
        loss = loss - weight / beta * (expert.mean() - sampled.mean())
    return loss + l2 * torch.cat([expert, sampled, chosen, rejected]).square().mean()


class JointReward:
    """R_theta: a copy of the starting policy with a head of one number, and its scores in micro-batches."""

    def __init__(self, run_state: Any):
        self.run_state = run_state
        head = generator(run_state.seed, "joint reward head")
        self.model = RewardModel.like(run_state.policy, head).to(torch.device(run_state.device))

    def stored(self, name: str) -> Stored:
        """Its folder in checkpoints, and its parameters."""
        return StoredFolder(name, self.model, RewardModel.load, trained(self.model))

    def encoded(
        self, prompts: list[Any], completions: list[Any], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> Experience:
        """Prompts and completed answers as a batch that can be scored; see `RewardModel.as_batch`."""
        return self.model.as_batch(prompts, completions, rows=rows)

    @torch.no_grad()
    def scores(self, experience: Experience) -> Tensor:
        """Scores of all responses, float32 `[B]`, without gradients."""
        found = torch.zeros(len(experience))
        for rows in micro_batches_of(experience, self.run_state.micro_batch_tokens):
            found[rows] = self.model.score(experience, rows).float().cpu()
        return found

    def step(
        self,
        objective: Callable[[list[Tensor]], Tensor],
        batches: Sequence[Experience],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take one step on a loss of the scores, whose gradients by them are carried through the network.

        Args:
            objective: loss of the scores of each batch, `[B]` each.
            batches: what is scored.
            optimizer: of the model.
            max_grad_norm: to which the gradient is clipped.

        Returns:
            The loss and the scores before the step, without gradients.

        Raises:
            NotFinite: the loss or its gradient is no number; no step was taken.
        """
        scores = [self.scores(batch).requires_grad_() for batch in batches]
        loss = objective(scores)
        if not bool(torch.isfinite(loss)):
            raise NotFinite(
                f"The loss of the reward that is learned became {loss.item()}, so the run stopped before the step; "
                "lower --reward-learning-rate."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        for batch, score in zip(batches, scores, strict=True):
            assert score.grad is not None
            self._backward(batch, score.grad)
        size = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm))
        if not math.isfinite(size):
            optimizer.zero_grad()
            raise NotFinite(
                f"The gradient of the reward that is learned became {size}, so the run stopped before the step; "
                "lower --reward-learning-rate."
            )
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), [score.detach() for score in scores]

    def _backward(self, experience: Experience, grad_output: Tensor) -> None:
        """Add to the gradients those of `sum(gradient * scores)`, `gradient` `[B]` a constant."""
        for rows in micro_batches_of(experience, self.run_state.micro_batch_tokens):
            total = (self.model.score(experience, rows).float().cpu() * grad_output[rows]).sum()
            total.backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class LearnedReward(Part):
    """Score every response with the reward model that is learned in this run, as it is now."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward", "terminated", "truncated"})
    brings: ClassVar[Mapping[str, Callable[[Any], OwnModel]]] = {"reward": JointReward}
    special_rows: ClassVar[SpecialRows | None] = JUDGED

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B] and `reward`, `terminated`, `truncated` [B, T]."""
        scores = of_finished(experience, context.run_state.own["reward"].scores)
        return assign_reward(experience, scores, {}, 0, context)


@dataclass(frozen=True, kw_only=True)
class JointImprovement(Optimize):
    """Take the policy's step, then a few of the reward: demonstrations against fresh samples, and pairs."""

    brings: ClassVar[Mapping[str, Callable[[Any], OwnModel]]] = {"reward": JointReward}
    needs: ClassVar[frozenset[str]] = frozenset({"weight", "score"})
    # the reward is lowered on all whole samples of the policy, also on those that it does not train on
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out", unselected="counted"
    )

    kl_coef: float = hyperparameter(
        0.1, "beta: weight of the KL to the start; the demonstrations' weight is divided by it", above=0
    )
    demonstration_weight: float = hyperparameter(0.03, "w1; 0 learns the reward from pairs alone", low=0)
    reward_steps: int = hyperparameter(2, "steps of the reward after each step of the policy", low=0)
    reward_warmup: int = hyperparameter(
        0, "steps of the reward on pairs alone before the first step of the policy", low=0
    )
    reward_pairs: int = hyperparameter(32, "preference pairs in one step of the reward", low=1)
    preferences: int = hyperparameter(2000, "preference pairs that there are, of those that the task has", low=1)
    reward_learning_rate: float = hyperparameter(2e-4, "AdamW step size of the reward", low=0, high=1)
    reward_l2: float = hyperparameter(0.1, "weight of the rewards' mean square", low=0)

    def check_within(self, recipe: Recipe) -> None:
        """The reward needs demonstrations of the prompts, and the KL's coefficient must be the loss's beta."""
        if not isinstance(recipe.collect, DemonstratedPrompts):
            raise UserError(
                f"{recipe.name}: part '{self.name}' compares samples with demonstrations of the same prompts; collect "
                "with demonstrated-prompts."
            )
        for part in recipe.score:
            if part.setting("kl_coef", self.kl_coef) != self.kl_coef:
                raise UserError(f"{recipe.name}: kl_coef of '{part.name}' and '{self.name}' differ; set --kl-coef.")

    def optimizers(self, run_state: Any) -> dict[str, Any]:
        """One AdamW for each trained model; the reward has its own learning rate."""
        found = super().optimizers(run_state)
        self._set_reward_rate(found)
        return found

    def _set_reward_rate(self, optimizers: dict[str, Any]) -> None:
        for group in optimizers["reward"].param_groups:
            group["lr"] = self.reward_learning_rate

    def run(self, terms: tuple[Term, ...], experience: Experience, context: Context) -> None:
        """Improve the policy on one batch, then the reward; metrics go to the context."""
        for _ in range(self.reward_warmup if context.iteration == 1 else 0):
            self._reward_step(experience, context, 0.0)
        super().run(terms, experience, context)
        for _ in range(self.reward_steps):
            self._reward_step(experience, context, self.demonstration_weight)

    def _reward_step(self, experience: Experience, context: Context, weight: float) -> None:
        """One AdamW step on `joint_reward_loss`."""
        run_state = context.run_state
        reward, pairs, memory = run_state.own["reward"], run_state.pairs("train"), context.memory(self.name)
        start, size = memory.get("pairs", 0), min(self.preferences, len(pairs))
        memory["pairs"] = start + self.reward_pairs
        labelled = pairs.batch(numbers_of_step(context.seed, size, start, self.reward_pairs))
        first = [*{g: i for i, g in reversed([*enumerate(experience["group"].tolist())])}.values()]
        told = [(experience.columns["prompt"][i], experience.columns["demonstration"][i]) for i in first]
        rows = [experience.task_rows[i] for i in first] if experience.task_rows else None
        expert = reward.encoded([p for p, _ in told], [d for _, d in told], rows)
        fresh = experience.rows(scored_rows(experience).nonzero()[:, 0])
        batches = [expert, fresh, labelled] if weight else [labelled]
        preferred = labelled["preferred"]

        def objective(scores: list[Tensor]) -> Tensor:
            told = (scores[0], scores[1]) if weight else (scores[0][:0], scores[0][:0])
            pair = scores[-1][preferred], scores[-1][~preferred]
            return joint_reward_loss(*told, *pair, weight, self.kl_coef, self.reward_l2)

        self._set_reward_rate(context.optimizer)
        context.params_updated = True
        loss, scores = reward.step(objective, batches, context.optimizer["reward"], self.max_grad_norm)
        context.spent.updates += 1
        right = scores[-1][preferred] > scores[-1][~preferred]
        context.log(joint__loss=loss, joint__pair_accuracy=right.float().mean())
        if weight:
            context.log(joint__demonstration_gap=scores[0].mean() - scores[1].mean())


def recipe() -> Recipe:
    """The single loop: one policy step by RLOO on the present reward, two steps of the reward, and again."""
    return Recipe(
        name=SLUG,
        collect=DemonstratedPrompts(prompts_per_step=16, completions_per_prompt=4),
        score=(LearnedReward(), TokenKLPenalty(kl_coef=0.1)),
        credit=(LeaveOneOut(),),
        terms=(PolicyGradient(aggregation="seq-mean-token-sum"),),
        optimize=JointImprovement(learning_rate=5e-4, kl_coef=0.1),
        adds=("demonstrated-prompts", "learned-reward", "token-kl-penalty", "joint-improvement"),
        notes={
            "collect": "samples of the present policy on the prompts of the demonstrations",
            "score": "the reward as it has been learned so far; the KL to the start is charged token by token",
            "credit": "a response's baseline is what the others to its prompt earned; no critic",
            "improve": "a step of the policy; then steps of the reward, up on demonstrations and down on the samples",
        },
    )
