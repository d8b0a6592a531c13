"""What a task wants that only a model can make: preference pairs, and reward models that learn from preferences.

A task knows no model. It states what it wants, in numbers, names and functions of answers, and `polyrl.pretrain.wanted`
makes it of the run's starting model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAIRS = 2000
"""Training pairs that are made for a task that says nothing of them."""
HELD_OUT_PAIRS = 500
"""Pairs on test prompts, to measure accuracy on."""

SEEDS_APART = 1_000
"""Between what one seed draws anew and what the next one does: a task's own settings of a seed are smaller."""

Answers = Callable[[list[dict[str, Any]]], tuple[list[str], list[str]]]
"""Two sampled answers of the starting model to each of some rows."""

Scorer = Callable[[list[Any], list[str]], list[float]]
"""Scores of completions, each read as if it had ended by itself: prompts `[n]` and completions `[n]` -> `[n]`."""


@dataclass(frozen=True)
class PairsWanted:
    """What pairs are made for a task that has none of its own.

    Attributes:
        train, test: how many, on prompts of these splits.
        seed: of prompts, answers and labels.
    """

    train: int = PAIRS
    test: int = HELD_OUT_PAIRS
    seed: int = 0


@dataclass(frozen=True)
class PreferenceSource:
    """Labelled preference pairs.

    Attributes:
        key: what identifies them.
        rows: gives them, where they are to be made of the starting model's answers.
        seed: of those answers.
    """

    key: Any
    rows: Callable[[Answers], list[dict[str, Any]]]
    seed: int = 0


@dataclass(frozen=True)
class Preferences:
    """What reward models and DPO policies learn from, and what they are measured on.

    Attributes:
        labelled: rows with `prompt`, `chosen`, `rejected` and the gold of both.
        held_out: others, labelled by the gold alone.
        prompts, answers: of the held-out pairs, on which scores get their scale.
        gold: of every answer.
    """

    labelled: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    prompts: list[str]
    answers: list[str]
    gold: list[float]


@dataclass(frozen=True)
class RewardModelsWanted:
    """Reward models that learn from labelled answers of the starting model.

    Members of an ensemble learn from the same labels and differ in their heads and in the order of the pairs.

    Attributes:
        members: how many.
        seed: of answers, heads and orders.
        pairs: that they learn from.
        epochs: passes over them.
        folder: of a member that goes with a starting model, made or not.
        preferences: what they learn from, labelled here.
        facts: what is noted beside each.
        scorers: the task's, to which the members' scores are added in their order; those that are there stay.
    """

    members: int
    seed: int
    pairs: int
    epochs: int
    folder: Callable[[str, int], Path]
    preferences: Callable[[Answers], Preferences]
    facts: Mapping[str, Any]
    scorers: list[Scorer]


Wanted = PairsWanted | RewardModelsWanted
