"""AdaCoT: learn for which questions to think, by charging for thoughts left out and thoughts thought for nothing.

The paper trains in two stages. First on questions that nearly all want a thought: there the decision would collapse to
always thinking, so the loss of the one token that decides is left out (selective loss masking); this stage is
`ppo+decision-token-mask`. Then on the general mix with the penalties, where that token must learn; this stage is
`adacot`. Each is a run of its own, the second from the model of the first.

There is no official code, and the paper does not publish PPO's settings: ours are `ppo`'s. The default penalties are
the paper's Exp2, the setting that it deployed. A KL or entropy term in the loss leaves the masked token out too (the
paper is silent); the critic learns from it, and it stays in the returns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import ALONE, PAID_AT_THE_END, SpecialRows, finished_rows, scored_rows
from polyrl.methods.language.ppo import recipe as ppo
from polyrl.parts.score import at_last_step
from polyrl.parts.select import log_selected
from polyrl.parts.steps import ends_of
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.language.thinking import needs_thought, read_thought

SLUG = "adacot"
TITLE = "AdaCoT: Pareto-Optimal Adaptive Chain-of-Thought Triggering via Reinforcement Learning"
PAPER = "arXiv:2505.11896"
YEAR = 2025
FORMULA = "R = R_base - a1 [need, no thought] - a2 [no need, thought] - gamma [tags malformed]"
TASK = "thinking"


def thinking_penalty(
    need: Tensor, thinks: Tensor, malformed: Tensor, omission: float, overuse: float, form: float
) -> Tensor:
    """What is taken off a response's score: a1 P_miss + a2 P_over + gamma P_fmt (section 3.3), `[B]` float.

    Args:
        need, thinks, malformed: `[B]` bool: a thought is useful; there is one; its tags are malformed.
        omission, overuse, form: a1, a2 and gamma, in units of reward.
    """
    return omission * (need & ~thinks) + overuse * (~need & thinks) + form * malformed.float()


def decision_tokens(opened: Tensor, mask: Tensor) -> Tensor:
    """True at the token that decides whether to think: the one after the first that completes the opening tag.

    Args:
        opened: `[B, T]` bool, true at tokens that complete an opening tag.
        mask: `[B, T]` bool, true at the policy's own tokens.

    Returns:
        `[B, T]` bool, at most one true a row: none where nothing of the policy's follows the tag.
    """
    before = torch.zeros_like(opened)
    before[:, 1:] = opened[:, :-1]
    first = before & (before.cumsum(1) == 1)
    return first & mask


@dataclass(frozen=True, kw_only=True)
class ThinkingPenalty(Part):
    """Take off the score for a useful thought left out, a thought for nothing, and malformed tags."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "score"})
    special_rows: ClassVar[SpecialRows | None] = PAID_AT_THE_END

    omission_penalty: float = hyperparameter(0.2, "a1: taken off where a thought is useful and none was thought", low=0)
    overuse_penalty: float = hyperparameter(0.3, "a2: taken off where no thought is useful and one was thought", low=0)
    format_penalty: float = hyperparameter(
        1.0, "gamma: taken off where the tags around the thought are malformed", low=0
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Lower `score` [B] and the last `reward` [B, T] of finished responses.

        Raises:
            UserError: the task does not say for which prompts a thought is useful.
        """
        task = context.run_state.task
        need = torch.tensor(needs_thought(experience.task_column("need") or [None], task.name))
        read = [read_thought(text, task.thinking_tags) for text in experience.columns["completion"]]
        thinks, malformed = (torch.tensor(x) for x in zip(*read, strict=True))
        off = thinking_penalty(
            need, thinks, malformed, self.omission_penalty, self.overuse_penalty, self.format_penalty
        ).to(experience["score"].dtype)
        off = torch.where(finished_rows(experience), off, 0.0)
        counted = scored_rows(experience)
        if bool(counted.any()):
            context.log(
                thinking__omitted=(need & ~thinks)[counted].float().mean(),
                thinking__overused=(~need & thinks)[counted].float().mean(),
                thinking__malformed=malformed[counted].float().mean(),
            )
        return experience.with_fields(
            score=experience["score"] - off, reward=experience["reward"] - at_last_step(off, experience["mask"])
        )


@dataclass(frozen=True, kw_only=True)
class DecisionTokenMask(Part):
    """Leave the token that decides whether to think out of the policy's loss; the critic still learns from it."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "present", "mask", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    masked: Literal["decision", "random"] = hyperparameter(
        "decision", "decision: the token after the opening tag; random: as many tokens, drawn (a control)"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 at one token of each response that opens a thought; the critic's stays as it was."""
        run_state, weight = context.run_state, experience["weight"]
        opened = ends_of(experience, run_state.policy.decode, run_state.task.thinking_tags[0])
        left_out = decision_tokens(opened, experience["mask"]) & (weight != 0)
        if self.masked == "random":
            drawn = torch.rand(weight.shape, generator=context.generator(self.name)) + (weight != 0).float()
            one = torch.nn.functional.one_hot(drawn.argmax(1), weight.shape[1]).bool()
            left_out = one & left_out.any(1, keepdim=True)
        if "value" in experience and "value_weight" not in experience:
            experience = experience.with_fields(value_weight=weight)
        weight = weight * ~left_out
        context.log(thinking__masked=left_out.sum())
        log_selected(weight, context)
        return experience.with_fields(weight=weight)


def recipe() -> Recipe:
    """AdaCoT's general stage: PPO whose score is charged for wrong decisions to think or not to think."""
    base = ppo()
    checked, anchored = base.score
    return replace(
        base,
        name=SLUG,
        score=(checked, ThinkingPenalty(), anchored),
        adds=("thinking-penalty",),
        notes={
            "score": "the checker's score, less a1 where a useful thought was left out, a2 where one was thought for "
            "nothing, and gamma where the tags are malformed",
            "credit": "PPO's: a critic and GAE, so that the penalty finds its way back to the token that decided",
            "select": "nothing is left out: the penalties act through the deciding token (mask it with "
            "+decision-token-mask in the stage before, on questions that all want a thought)",
            "improve": "PPO's clipped surrogate and value loss",
        },
    )
