"""What flows through the five stages: one batch-major table of steps and episodes.

A token is a step, a prompt is a first observation, a response is an episode: so the same `[B, T]` functions serve a
language model and a walking robot. Every field has one name, shape, dtype and unit, listed in `FIELDS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Field:
    """One documented column of an `Experience`."""

    shape: str
    dtype: str
    unit: str
    meaning: str


FIELDS: dict[str, Field] = {
    "prompt_ids": Field("[B, P]", "int64", "token id", "prompt tokens, padded on the left"),
    "prompt_mask": Field("[B, P]", "bool", "-", "true where a prompt token is real"),
    "observation": Field("[B, T, ...]", "float32", "task's own", "what the policy saw before each step (control)"),
    "action": Field("[B, T, ...]", "int64, float32", "token id or action", "what was done, before any clipping"),
    "action_mask": Field(
        "[B, T, A]", "bool", "-", "actions that were allowed, where the environment says it (control)"
    ),
    "next_action_mask": Field("[B, T, A]", "bool", "-", "the same after each step (control)"),
    "present": Field("[B, T]", "bool", "-", "true where the step is part of the episode, tool returns included"),
    "mask": Field("[B, T]", "bool", "-", "true where the policy chose the step: these count in losses"),
    "behaviour_logprob": Field("[B, T]", "float32", "nats", "log-probability of the action when it was sampled"),
    "temperature": Field("[B]", "float32", "-", "temperature that every log-probability of the row uses"),
    "ended": Field("[B]", "bool", "-", "the policy ended the response itself, before the length limit"),
    "window": Field("[B, T]", "bool", "-", "the token was sampled in this iteration (windowed rollouts)"),
    "policy_version": Field("[B, T]", "int64", "iteration", "when the token was sampled (windowed rollouts)"),
    "finished": Field("[B]", "bool", "-", "the response is complete; others go on next time (windowed rollouts)"),
    "copies": Field("[B]", "int64", "-", "how many of the state's continuations begin with this step (offline steps)"),
    "outcome": Field(
        "[B]", "float32", "task's own", "mean score of the continuations that begin with this step (offline steps)"
    ),
    "state_outcome": Field("[B]", "float32", "task's own", "mean score of a state's continuations (offline steps)"),
    "problem": Field("[B]", "int64", "index", "problem of the data set that the state belongs to (offline steps)"),
    "ends_response": Field("[B]", "bool", "-", "nothing follows the step (offline steps)"),
    "critic_turn": Field("[B]", "bool", "-", "the batch is for the critic, not for the policy (offline steps)"),
    "length_limit": Field("[B]", "int64", "steps", "longest episode allowed"),
    "group": Field("[B]", "int64", "index", "rows that answer the same prompt or state share this number"),
    "pair": Field("[B]", "int64", "index", "rows of one preference pair share this number; -1: in no pair"),
    "preferred": Field("[B]", "bool", "-", "the row is the chosen one of its pair"),
    "desirable": Field("[B]", "bool", "-", "the response is labelled good; other labelled ones are bad (KTO)"),
    "demonstrated": Field("[B]", "bool", "-", "the row is an expert's answer, to be imitated"),
    "example": Field("[B]", "int64", "index", "row of a fixed data set that the row is, where there is one"),
    "has_greedy_baseline": Field("[B]", "bool", "-", "the row's group holds a greedy baseline"),
    "greedy": Field("[B]", "bool", "-", "the row is a greedy baseline: a baseline, never trained"),
    "score": Field("[B]", "float32", "task's own", "score of the whole episode"),
    "member_score": Field("[B, k]", "float32", "-", "score by each member of a reward ensemble, centred and scaled"),
    "advice": Field("[B, T, A]", "float32", "-", "probabilities that an adviser gives the actions (control)"),
    "advice_weight": Field("[B, T]", "float32", "0 to 1", "share of the advice in the mixture that acted (control)"),
    "reward": Field("[B, T]", "float32", "task's own", "reward of each step"),
    "terminated": Field("[B, T]", "bool", "-", "the episode ended at this step and nothing follows it"),
    "truncated": Field("[B, T]", "bool", "-", "a time limit or the rollout's end cut here: final_value counts"),
    "final_observation": Field("[B, T, ...]", "float32", "task's own", "seen after each truncated step (control)"),
    "starts_episode": Field("[B]", "bool", "-", "the row's first step starts an episode (control)"),
    "rollout_end": Field("[B, T]", "bool", "-", "the rollout ended here and the episode goes on in the next (control)"),
    "next_observation": Field("[B, T, ...]", "float32", "task's own", "what was seen after each step (control)"),
    "discount": Field("[B, T]", "float32", "0 to 1", "what the value that follows counts for; 0 at an end"),
    "return_to_go": Field(
        "[B, T]", "float32", "reward", "discounted rewards from the step to its episode's end (replay, transitions)"
    ),
    "return_known": Field("[B, T]", "bool", "-", "the episode has ended, so that return_to_go is there; else it is 0"),
    "row": Field("[B, T]", "int64", "index", "place in the source that the row was sampled from"),
    "final_value": Field("[B, T]", "float32", "reward", "value of the state after a truncated step"),
    "ref_logprob": Field("[B, T]", "float32", "nats", "log-probability of the action under the reference policy"),
    "reference_point": Field(
        "[B]", "float32", "nats", "what a response's log-ratio is judged against, one number a batch (KTO)"
    ),
    "kl_charge": Field("[B]", "float32", "reward", "what leaving the reference costs the whole response"),
    "dpo_logprob": Field("[B, T]", "float32", "nats", "log-probability of the action under a frozen DPO policy"),
    "baseline_score": Field("[B]", "float32", "task's own", "score that the episode is judged against"),
    "value": Field("[B, T]", "float32", "reward", "critic's value of the state before each step, at collection"),
    "advantage": Field(
        "[B, T]", "float32", "reward", "how much better than expected the action was; in deviations once scaled"
    ),
    "turn": Field("[B, T]", "int64", "index", "turn that the token belongs to, from 0: tool returns part them"),
    "step_start": Field("[B, T]", "bool", "-", "a step of the response begins with this token"),
    "step_value": Field("[B, T]", "float32", "reward", "mean score of continuations from a step's start, else 0"),
    "advantage_gap": Field("[B]", "float32", "reward", "best less worst advantage among the steps of a state"),
    "value_target": Field("[B, T]", "float32", "reward", "what the critic is trained towards"),
    "weight": Field("[B, T]", "float32", "-", "how much each step counts in the losses (selection)"),
    "kept_share": Field("[B]", "float32", "0 to 1", "share of the responses that a filter left in: what is divided by"),
    "value_weight": Field("[B, T]", "float32", "-", "how much each step counts for the critic, where not as `weight`"),
    "entropy_at_collection": Field("[B, T]", "float32", "nats", "entropy of the policy that sampled, before each step"),
    "kl_factor": Field("[B]", "float32", "-", "what the coefficient of an adaptive KL penalty has come to"),
    "demand": Field("[B, T, n]", "float32", "units", "what customers ask of each store in each period"),
    "initial_inventory": Field(
        "[B, N, slots]", "float32", "units", "at first: on hand (slot 0), arriving in k periods"
    ),
    "state": Field("[B, T]", "int64", "index", "state of a finite MDP before each step (theory)"),
    "step": Field("[B, T]", "int64", "index", "step of the episode or stream, from 0 (theory)"),
    "next_state": Field("[B, T]", "int64", "index", "state of a finite MDP after each step (theory)"),
    "opponent_logprob": Field("[B, T]", "float64", "nats", "log-probability of the action under the opponent (theory)"),
    "action_value": Field("[B, T]", "float64", "reward", "value of the action taken, and all that follows (theory)"),
    "bonus": Field("[B, T]", "float64", "reward", "what the value was raised by because little is known (theory)"),
}
"""Every standard field; parts from outside may add their own names."""


class Experience:
    """A batch of episodes: tensors with a common first dimension `B`, and Python values per row.

    Python values are kept in two places that never mix, so that no name of the data can take the place of what a stage
    has made, nor the other way round:

    - `columns`, made by stages: `prompt` and `completion` (the text that was sampled), what sessions of tools report
      (such as `calls`), and what parts add.
    - `task_rows`, the task's own row that each row of the batch answers, with the data's columns under their own names.
      Empty where there are none.

    Treat it as immutable: `with_fields` returns a new table that shares the old columns.
    """

    def __init__(
        self,
        data: Mapping[str, Tensor],
        columns: Mapping[str, Sequence[Any]] | None = None,
        task_rows: Sequence[Mapping[str, Any]] = (),
    ):
        self.data: dict[str, Tensor] = dict(data)
        self.columns: dict[str, list[Any]] = {k: list(v) for k, v in (columns or {}).items()}
        self.task_rows: list[Mapping[str, Any]] = list(task_rows)
        size = self._size = next(iter(self.data.values())).shape[0]
        for name, tensor in self.data.items():
            if tensor.shape[0] != size:
                raise ValueError(f"field '{name}' has {tensor.shape[0]} rows, not {size}")
        for name, values in self.columns.items():
            if len(values) != size:
                raise ValueError(f"column '{name}' has {len(values)} values for {size} rows")
        if self.task_rows and len(self.task_rows) != size:
            raise ValueError(f"{len(self.task_rows)} rows of the task for {size} rows")

    def __len__(self) -> int:
        return self._size

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.data[name]
        except KeyError:
            raise KeyError(f"the experience has no field '{name}'; it has {', '.join(sorted(self.data))}") from None

    def fields(self) -> list[str]:
        """Names of the tensor fields."""
        return [*self.data]

    def with_fields(self, /, **fields: Tensor) -> Experience:
        """Return the same rows with these fields added or replaced."""
        return Experience({**self.data, **fields}, self.columns, self.task_rows)

    def with_columns(self, /, **columns: Sequence[Any]) -> Experience:
        """Return the same rows with these Python columns added or replaced; the task's own rows stay as they are."""
        return Experience(self.data, {**self.columns, **columns}, self.task_rows)

    def answering(self, task_rows: Sequence[Mapping[str, Any]]) -> Experience:
        """Return the same rows, each as an answer to its row of the task, `B` of them."""
        return Experience(self.data, self.columns, task_rows)

    def task_column(self, name: str) -> list[Any] | None:
        """Return the data's column of this name, one value a row; None where no row of the task has it."""
        if not any(name in row for row in self.task_rows):
            return None
        return [row.get(name) for row in self.task_rows]

    def only(self, names: Collection[str]) -> Experience:
        """Return the same rows with none but these fields, and no columns; names that it has not are passed over."""
        return Experience({name: x for name, x in self.data.items() if name in names})

    def to(self, device: torch.device | str) -> Experience:
        """Return the same rows on a device."""
        return Experience({name: x.to(device) for name, x in self.data.items()}, self.columns, self.task_rows)

    def steps(self) -> Experience:
        """Return each step that counts (some weight is not 0) as a row of its own: `[B, T, ...]` becomes `[N, 1, ...]`.

        For policies that see one step at a time. What is per episode is repeated for each of its steps.
        """
        counted = self["weight"] != 0
        if "value_weight" in self:
            counted = counted | (self["value_weight"] != 0)
        row, _ = counted.nonzero(as_tuple=True)
        shape = counted.shape
        return Experience(
            {name: x[counted].unsqueeze(1) if x.shape[:2] == shape else x[row] for name, x in self.data.items()}
        )

    def split(self, count: int) -> list[Experience]:
        """Return `count` nearly equal runs of rows, without columns; their fields are views of this table's."""
        pieces = {name: x.tensor_split(count) for name, x in self.data.items()}
        return [Experience({name: piece[i] for name, piece in pieces.items()}) for i in range(count)]

    def rows(self, index: Tensor | Sequence[int]) -> Experience:
        """Return the rows at `index` [n] (integers, in that order)."""
        where = torch.as_tensor(index)
        if where.dtype == torch.bool:
            raise TypeError("rows() takes row numbers; turn a mask into them with mask.nonzero()[:, 0]")
        where = where.long()
        return Experience(
            {name: x[where.to(x.device)] for name, x in self.data.items()},
            {k: [v[i] for i in where.tolist()] for k, v in self.columns.items()} if self.columns else None,
            [self.task_rows[i] for i in where.tolist()] if self.task_rows else (),
        )
