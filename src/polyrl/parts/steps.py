"""Steps of a response: the runs of tokens between two delimiters, which some methods judge one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import scored_rows
from polyrl.errors import UserError
from polyrl.recipe import Part, Recipe, hyperparameter

Decode = Callable[[list[int]], str]
"""Text of token ids, without the tokens that end and pad."""


def step_ends(tokens: Sequence[int], decode: Decode, end: str) -> list[bool]:
    """Whether each of `tokens` completes the text `end`, by the text of a few tokens before it."""
    before = len(end.encode()) - 1  # every token says at least one byte
    known: dict[tuple[int, ...], int] = {}

    def found(ids: tuple[int, ...]) -> int:
        if ids not in known:
            known[ids] = decode([*ids]).count(end) if ids else 0
        return known[ids]

    windows = [tuple(tokens[max(0, t - before) : t + 1]) for t in range(len(tokens))]
    return [found(window) > found(window[:-1]) for window in windows]


def ends_of(experience: Experience, decode: Decode, end: str) -> Tensor:
    """True at each token of a response that completes the text `end`, `[B, T]` bool."""
    found = torch.zeros_like(experience["present"])
    lengths = experience["present"].sum(1).tolist()
    for i, (tokens, length) in enumerate(zip(experience["action"].tolist(), lengths, strict=True)):
        found[i, :length] = torch.tensor(step_ends(tokens[:length], decode, end), dtype=torch.bool)
    return found


def step_starts(action: Tensor, mask: Tensor, present: Tensor, decode: Decode, end: str, every: int = 0) -> Tensor:
    """True at the first token of each step.

    Steps join to the whole response. What follows a delimiter is a new step if it has any text: an end token alone
    belongs to the step before it. A tool's words belong to the step that called the tool.

    Args:
        action: `[B, T]` int64 tokens.
        mask, present: `[B, T]` bool, tokens that the policy chose, and all tokens.
        decode: text of token ids, without the tokens that end and pad.
        end: text that ends a step; it belongs to the step.
        every: tokens of a step instead, counting those of the policy; 0: `end` decides.

    Returns:
        `[B, T]` bool, true only where `mask` is; the first token of the policy starts a step.
    """
    rows = []
    silent: dict[int, bool] = {}

    def says_nothing(token: int) -> bool:
        if token not in silent:
            silent[token] = decode([token]) == ""
        return silent[token]

    lengths = present.sum(1).tolist()
    for tokens, chosen, length in zip(action.tolist(), mask.tolist(), lengths, strict=True):
        row = [False] * len(tokens)
        over = [False] * length if every else step_ends(tokens[:length], decode, end)
        own, fresh = 0, True  # the policy's tokens so far, and whether the step before is over
        for t in range(length):
            if chosen[t]:
                fresh = fresh or bool(every and own % every == 0)
                if fresh and (own == 0 or not all(map(says_nothing, tokens[t:length]))):
                    row[t], fresh = True, False
                own += 1
            fresh = fresh or over[t]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.bool, device=action.device).reshape(action.shape)


def task_steps(task: Any, step_end: str, step_tokens: int | None) -> tuple[str, int]:
    """What ends a step: the part's own choice, or the task's where the part leaves it open."""
    every = step_tokens if step_tokens is not None else (0 if step_end else task.step_tokens)
    return step_end or task.step_end, every


@dataclass(frozen=True, kw_only=True)
class Continuing(Part):
    """What parts have in common that resume generation from the steps of responses."""

    access: ClassVar[frozenset[str]] = frozenset({"reset-to-state"})

    continuations: int = hyperparameter(9, "K, continuations of each state", low=1)
    step_end: str = hyperparameter("", "text that ends a step (such as ';'); empty takes the task's")
    step_tokens: int | None = hyperparameter(
        None, "tokens of a step, whatever their text; 0: step_end decides; none takes the task's", low=0
    )
    temperature: float = hyperparameter(1.0, "sampling temperature, of continuations as of responses", above=0)
    top_k: int = hyperparameter(0, "sample among the k likeliest tokens only; 0 is off", low=0)
    top_p: float = hyperparameter(1.0, "sample among the likeliest tokens that hold this mass", above=0, high=1)

    def check_within(self, recipe: Recipe) -> None:
        """Values must be of the policy that sampled, under the reward that is trained on.

        Raises:
            UserError: responses are sampled otherwise, or their score is not `task-reward`'s alone.
        """
        for name in ("temperature", "top_k", "top_p"):
            mine = self.setting(name, None)
            theirs = recipe.collect.setting(name, mine) if recipe.collect else mine
            if theirs != mine and recipe.collect:
                raise UserError(
                    f"{recipe.name}: '{recipe.collect.name}' samples with {name} {theirs:g} but '{self.name}' "
                    f"continues with {mine:g}; set both at once with --{name.replace('_', '-')}."
                )
        judges = [p.name for p in recipe.score if p.slot == "reward"]
        if judges != ["task-reward"]:
            raise UserError(
                f"{recipe.name}: '{self.name}' scores continuations with the task's own reward, but responses are "
                f"judged by {' and '.join(repr(j) for j in judges) or 'nothing'}; leave one of the two away."
            )
        changers = [p.name for p in recipe.score if p.slot != "reward" and "score" in p.gives]
        if changers:
            raise UserError(
                f"{recipe.name}: '{self.name}' scores continuations with the task's own reward, but "
                f"{' and '.join(map(repr, changers))} would change the score of responses; leave one of the two away."
            )

    def starts(self, experience: Experience, context: Context) -> Tensor:
        """First tokens of the steps, `[B, T]` bool; of rows that are no whole sampled responses there are none."""
        end, every = task_steps(context.run_state.task, self.step_end, self.step_tokens)
        mask = experience["mask"] & scored_rows(experience)[:, None]
        decode = context.run_state.policy.decode
        return step_starts(experience["action"], mask, experience["present"], decode, end, every)


def continued(experience: Experience, row: Tensor, tokens: Tensor, part: Continuing, context: Context) -> Experience:
    """`part.continuations` continuations of the states in rows `row` [S] after `tokens` [S] tokens, with `score`.

    They count as tokens and as reward calls of the run, not as samples. Row `i * K + k` continues state i; a score is
    NaN where the reward failed and failures are dropped.
    """
    from polyrl.rollout.language import Sampling

    task = context.run_state.task
    batch: Experience = context.run_state.continuations(
        experience,
        row,
        tokens,
        Sampling(
            temperature=part.temperature,
            top_k=part.top_k,
            top_p=part.top_p,
            max_tokens=task.max_tokens,
            stop=tuple(task.stop),
        ),
        count=part.continuations,
        generator=context.generator(part.name),
    )
    scores, _, calls = context.run_state.score(batch)
    spent = context.spent
    spent.tokens += int(batch["present"].sum())
    spent.steps += int(batch["mask"].sum())
    spent.reward_calls += calls
    context.log(continuations__tokens=batch["present"].sum(), continuations__states=len(row))
    return batch.with_fields(score=scores)


def continued_scores(experience: Experience, row: Tensor, tokens: Tensor, part: Continuing, context: Context) -> Tensor:
    """Mean score [S] of each state's continuations: an unbiased estimate of its value for any number of them."""
    scores = continued(experience, row, tokens, part, context)["score"]
    return scores.view(len(row), part.continuations).nanmean(1)
