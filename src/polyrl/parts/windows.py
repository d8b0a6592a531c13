"""Rollouts in windows: every slot goes on for a few tokens an iteration, and nobody waits for the longest response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.errors import UserError
from polyrl.kernels.padding import pad_rows
from polyrl.parts.collect import LANGUAGE_FIELDS
from polyrl.recipe import Part, Recipe, Stage, hyperparameter


@dataclass(frozen=True, kw_only=True)
class WindowedRollouts(Part):
    """Let a fixed number of responses go on by a window of tokens, with the present policy; finished ones make room.

    A slot holds a response across iterations: its tokens, with the log-probability and the iteration of each. What was
    sampled before is read again with the present policy, never its old keys and values. A response counts as a sample
    when it begins. Copies of one prompt begin together as far as there is room, and end when they end.
    """

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = LANGUAGE_FIELDS | {"window", "policy_version", "finished"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "window": Field("[B, T]", "bool", "-", "the token was sampled in this iteration (windowed rollouts)"),
        "policy_version": Field("[B, T]", "int64", "iteration", "when the token was sampled (windowed rollouts)"),
        "finished": Field("[B]", "bool", "-", "the response is complete; others go on next time (windowed rollouts)"),
    }

    prompts_per_step: int = hyperparameter(8, "slots, divided by completions_per_prompt", low=1)
    completions_per_prompt: int = hyperparameter(8, "responses sampled for each prompt", low=1)
    window: int = hyperparameter(32, "W, tokens that each slot goes on by in one iteration", low=1)
    carry_on: bool = hyperparameter(
        True, "keep unfinished responses; otherwise they end with their window, and are judged so"
    )
    temperature: float = hyperparameter(1.0, "sampling temperature; every log-probability uses it", above=0)
    top_k: int = hyperparameter(0, "sample among the k likeliest tokens only; 0 is off", low=0)
    top_p: float = hyperparameter(1.0, "sample among the likeliest tokens that hold this mass", above=0, high=1)

    def check_within(self, recipe: Recipe) -> None:
        """Whoever gives advantages or weights must know of unfinished responses, and nobody may be silent on them."""
        for part in (*recipe.score, *recipe.credit, *recipe.select):
            if part.special_rows is None:
                raise UserError(
                    f"{recipe.name}: part '{part.name}' does not say what it does with unfinished responses, and "
                    f"'{self.name}' brings some; declare its `special_rows` (polyrl.core.special_rows)."
                )
        for part in recipe.credit:
            if "advantage" in part.gives - part.needs and "finished" not in part.needs:
                raise UserError(
                    f"{recipe.name}: '{part.name}' judges whole responses, but '{self.name}' brings unfinished ones; "
                    "take t-ppo's egae, or sample whole responses."
                )
        if not any("weight" in part.gives - part.needs and "finished" in part.needs for part in recipe.select):
            raise UserError(
                f"{recipe.name}: '{self.name}' brings unfinished responses, of which a critic must not learn; add the "
                "part window-steps."
            )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return all slots, each with its whole response so far; `window` marks the tokens of this iteration."""
        from polyrl.rollout.language import Sampling

        run_state = context.run_state
        if run_state.task.session(run_state.task.rows("train", context.seed, 0, 1)[0]) is not None:
            raise UserError(
                f"The task '{run_state.task.name}' has a tool, and '{self.name}' cannot stop in the middle of its "
                "words; sample whole responses, as ppo does."
            )
        limit = run_state.task.max_tokens
        slots = _Slots.of(context, self.name, self.prompts_per_step * self.completions_per_prompt, limit)
        begun = slots.refill()
        numbers = slots.number // self.completions_per_prompt
        rows = {n: run_state.task.rows("train", context.seed, n, 1)[0] for n in set(numbers.tolist())}
        ids = {n: run_state.policy.encode_row(row) for n, row in rows.items()}
        prompt_ids, prompt_mask = pad_rows([ids[n] for n in numbers.tolist()], run_state.policy.pad_id, "left")
        size, before = len(numbers), slots.length
        present = torch.arange(limit) < before[:, None]
        answered = [rows[n] for n in numbers.tolist()]
        batch = Experience(
            {
                "prompt_ids": prompt_ids,
                "prompt_mask": prompt_mask,
                "action": slots.token,
                "present": present,
                "mask": present,
                "temperature": torch.full((size,), self.temperature),
                "group": numbers,
                "greedy": torch.zeros(size, dtype=torch.bool),
                "length_limit": torch.full((size,), limit),
            },
            {"prompt": [row["prompt"] for row in answered]},
            answered,
        )
        added = run_state.continuations(
            batch,
            torch.arange(size),
            before,
            Sampling(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                max_tokens=limit,
                stop=tuple(run_state.task.stop),
            ),
            count=1,
            generator=context.generator("collect"),
            limit=torch.full((size,), self.window),
        )
        new, ended = added["present"].sum(1), added["ended"]
        slots.extend(added, context.iteration, run_state.policy.pad_id)
        finished = ended | (slots.length >= limit) | (not self.carry_on)
        slots.keep(finished, context, self.name)
        width = int(slots.length.max())
        place = torch.arange(width)
        present = place < slots.length[:, None]
        context.spent.samples += begun
        context.spent.tokens += int(new.sum())
        context.spent.steps += int(new.sum())
        lengths = slots.length[finished].float()
        context.log(decode_steps=new.max(), windows__finished=finished.float().mean())
        if len(lengths):
            context.log(
                completions__mean_length=lengths.mean(),
                completions__max_length=lengths.max(),
                completions__clipped_ratio=1 - ended[finished].float().mean(),
            )
        oldest = torch.where(present, slots.version[:, :width], context.iteration).amin(1)
        context.log(windows__staleness=(context.iteration - oldest).float().mean())
        return Experience(
            {
                **{name: batch[name] for name in ("prompt_ids", "prompt_mask", "temperature", "group", "greedy")},
                "length_limit": batch["length_limit"],
                "action": slots.token[:, :width],
                "present": present,
                "mask": present,
                "behaviour_logprob": slots.logprob[:, :width],
                "ended": ended,
                "window": present & (place >= before[:, None]),
                "policy_version": slots.version[:, :width],
                "finished": finished,
            },
            {**batch.columns, "completion": added.columns["completion"]},
            batch.task_rows,
        )


@dataclass
class _Slots:
    """What B slots hold from one iteration to the next: tensors are replaced, never written into."""

    token: Tensor
    """[B, limit] int64."""
    logprob: Tensor
    """[B, limit] float32."""
    version: Tensor
    """[B, limit] int64, the iteration of each token."""
    length: Tensor
    """[B] int64, tokens so far."""
    number: Tensor
    """[B] int64, of the response: those that begin are numbered on."""
    free: Tensor
    """[B] bool, slots whose response is finished."""
    begun: int
    """Responses that have begun so far."""

    @classmethod
    def of(cls, context: Context, name: str, size: int, limit: int) -> _Slots:
        """What the iteration before left in the run's store, or `size` slots that are free."""
        kept = context.tensors(name)
        if kept:
            return cls(**kept, begun=context.memory(name)["begun"])
        return cls(
            token=torch.zeros(size, limit, dtype=torch.long),
            logprob=torch.zeros(size, limit),
            version=torch.zeros(size, limit, dtype=torch.long),
            length=torch.zeros(size, dtype=torch.long),
            number=torch.zeros(size, dtype=torch.long),
            free=torch.ones(size, dtype=torch.bool),
            begun=0,
        )

    def refill(self) -> int:
        """Begin new responses, numbered on, in the slots that are free; return how many."""
        count = int(self.free.sum())
        number = self.number.clone()
        number[self.free] = self.begun + torch.arange(count)
        self.number, self.begun = number, self.begun + count
        self.length = self.length.masked_fill(self.free, 0)
        blank = self.free[:, None]
        self.token = self.token.masked_fill(blank, 0)
        self.logprob = self.logprob.masked_fill(blank, 0)
        self.version = self.version.masked_fill(blank, 0)
        return count

    def extend(self, added: Experience, iteration: int, pad_id: int) -> None:
        """Put the added tokens behind what is there."""
        row, column = added["present"].nonzero(as_tuple=True)
        place = row, self.length[row] + column
        token = self.token.index_put(place, added["action"][row, column])
        self.logprob = self.logprob.index_put(place, added["behaviour_logprob"][row, column])
        self.version = self.version.index_put(place, torch.tensor(iteration))
        self.length = self.length + added["present"].sum(1)
        beyond = torch.arange(token.shape[1]) >= self.length[:, None]
        self.token = token.masked_fill(beyond, pad_id)

    def keep(self, finished: Tensor, context: Context, name: str) -> None:
        """Leave everything in the run's store; the slots of `finished` [B] bool responses are free next time."""
        self.free = finished
        context.tensors(name).update(
            token=self.token,
            logprob=self.logprob,
            version=self.version,
            length=self.length,
            number=self.number,
            free=self.free,
        )
        context.memory(name)["begun"] = self.begun
