"""What the fields of an experience are: shape, dtype, unit and meaning of each.

A field that parts of several modules give stands in `FIELDS`. What one part alone brings, it says itself
(`own_fields`), so that a paper's fields stand in the paper's file. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.errors import UserError

if TYPE_CHECKING:
    from polyrl.core.part import Part


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
    "length_limit": Field("[B]", "int64", "steps", "longest episode allowed"),
    "group": Field("[B]", "int64", "index", "rows that answer the same prompt or state share this number"),
    "pair": Field("[B]", "int64", "index", "rows of one preference pair share this number; -1: in no pair"),
    "preferred": Field("[B]", "bool", "-", "the row is the chosen one of its pair"),
    "demonstrated": Field("[B]", "bool", "-", "the row is an expert's answer, to be imitated"),
    "example": Field("[B]", "int64", "index", "row of a fixed data set that the row is, where there is one"),
    "greedy": Field("[B]", "bool", "-", "the row is a greedy baseline: a baseline, never trained"),
    "score": Field("[B]", "float32", "task's own", "score of the whole episode"),
    "reward": Field("[B, T]", "float32", "task's own", "reward of each step"),
    "terminated": Field("[B, T]", "bool", "-", "the episode ended at this step and nothing follows it"),
    "truncated": Field("[B, T]", "bool", "-", "a time limit or the rollout's end cut here: final_value counts"),
    "next_observation": Field("[B, T, ...]", "float32", "task's own", "what was seen after each step (control)"),
    "discount": Field("[B, T]", "float32", "0 to 1", "what the value that follows counts for; 0 at an end"),
    "return_to_go": Field(
        "[B, T]", "float32", "reward", "discounted rewards from the step to its episode's end (replay, transitions)"
    ),
    "return_known": Field("[B, T]", "bool", "-", "the episode has ended, so that return_to_go is there; else it is 0"),
    "row": Field("[B, T]", "int64", "index", "place in the source that the row was sampled from"),
    "ref_logprob": Field("[B, T]", "float32", "nats", "log-probability of the action under the reference policy"),
    "value": Field("[B, T]", "float32", "reward", "critic's value of the state before each step, at collection"),
    "advantage": Field(
        "[B, T]", "float32", "reward", "how much better than expected the action was; in deviations once scaled"
    ),
    "value_target": Field("[B, T]", "float32", "reward", "what the critic is trained towards"),
    "weight": Field("[B, T]", "float32", "-", "how much each step counts in the losses (selection)"),
    "value_weight": Field("[B, T]", "float32", "-", "how much each step counts for the critic, where not as `weight`"),
    "state": Field("[B, T]", "int64", "index", "state of a finite MDP before each step (theory)"),
    "next_state": Field("[B, T]", "int64", "index", "state of a finite MDP after each step (theory)"),
    "nodes": Field("[B, 1, N, F]", "float32", "task's own", "what is known of each node of the instance (operations)"),
    "node_mask": Field("[B, 1, N]", "bool", "-", "which nodes there are; the others are padding (operations)"),
    "here": Field("[B, T]", "int64", "index", "the node where one is before each step (operations)"),
    "end": Field("[B, T]", "int64", "index", "the node where one is to end (operations)"),
    "left": Field("[B, T, N]", "bool", "-", "which nodes are still to be visited before each step (operations)"),
    "context": Field(
        "[B, T, C]", "float32", "task's own", "what else changes on the way, such as the load that is left (operations)"
    ),
    "node_state": Field("[B, T, N, D]", "float32", "task's own", "what changes at each node on the way (operations)"),
    "step": Field("[B, T]", "int64", "index", "step of the episode or stream, from 0 (theory)"),
    "action_value": Field("[B, T]", "float64", "reward", "value of the action taken, and all that follows (theory)"),
}
"""The fields that no single part brings."""


def own_fields(kinds: Iterable[type[Part]]) -> dict[str, tuple[Field, type[Part]]]:
    """What these classes of parts, and those that they derive from, say of fields of their own, and which one says it.

    Raises:
        UserError: one name is said to be two different things.
    """
    found: dict[str, tuple[Field, type[Part]]] = {}
    for kind in dict.fromkeys(base for part in kinds for base in reversed(part.__mro__)):
        for name, field in vars(kind).get("own_fields", {}).items():
            known, where = FIELDS.get(name), "is one of every experience"
            if name in found:
                known, where = found[name][0], f"is also one of {found[name][1].__name__}'s own"
            if known not in (None, field):
                raise UserError(
                    f"The field '{name}' that {kind.__name__} says is its own {where}, which says something else of "
                    "it; give it another name."
                )
            found.setdefault(name, (field, kind))
    return found


def documented(kinds: Iterable[type[Part]]) -> dict[str, Field]:
    """Every field of which is known what it is: the shared ones, then what these classes of parts bring.

    Raises:
        UserError: see `own_fields`.
    """
    return {**FIELDS, **{name: field for name, (field, _) in own_fields(kinds).items()}}
