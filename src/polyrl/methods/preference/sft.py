"""Supervised fine-tuning: raise the likelihood of given responses, token by token; prompts are read and not learned.

What comes first in most recipes, and what preferences and rewards start from. Beside another method its loss is a
second stream: `dpo+sft(sft_weight=0.1)` takes the gradient of both before each step.

The loss is that of TRL's `SFTTrainer` with `completion_only_loss` (its default for prompts with completions) and, of
conversations, `assistant_only_loss`: the mean over all learned tokens of the step's rows, which micro-batches of
similar lengths split without changing it. What users and tools say between two answers is read. Longer rows weigh more;
`aggregation=seq-mean-token-mean` lets every response weigh the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.update import On, OwnRows, Update
from polyrl.data.pairs import PAIR_FIELDS, numbers_of_step
from polyrl.errors import UserError
from polyrl.parts.collect import LANGUAGE_FIELDS, count_given
from polyrl.parts.imitation import ImitationNLL
from polyrl.parts.improve import AGGREGATION_HELP, Aggregation, Averaged
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Change, Part, Recipe, Stage, hyperparameter

SLUG = "sft"
TITLE = "Supervised Fine-Tuning"
PAPER = "arXiv:2203.02155"
YEAR = 2022
FORMULA = "loss = - mean over tokens of log pi(y_t | x, y_<t)"
TASK = "sort-pairs"


@dataclass(frozen=True, kw_only=True)
class GivenCompletions(Part):
    """Take the next few of the given responses, epoch after epoch: the data's, or worked ones of a built-in task."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = (LANGUAGE_FIELDS - {"behaviour_logprob"}) | {"example"}
    given_completions: ClassVar[bool] = True

    demonstrations_per_step: int = hyperparameter(32, "responses in one iteration", low=1)
    demonstrations: int | None = hyperparameter(
        None, "responses that there are; none is all of the data, 4,000 of a built-in task", low=1
    )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `demonstrations_per_step` rows."""
        given = context.run_state.completions("train")
        start = (context.iteration - 1) * self.demonstrations_per_step
        numbers = numbers_of_step(context.seed, len(given), start, self.demonstrations_per_step)
        batch: Experience = given.batch(numbers)
        count_given(batch, context)
        context.log(
            demonstrations__epoch=(start + self.demonstrations_per_step) / len(given),
        )
        return batch


@dataclass(frozen=True, kw_only=True)
class CompletionNLL(Averaged):
    """Raise the log-probability of every learned token."""

    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """-log pi of every step, nats `[B, T]`."""
        return -outputs["logprob"]


# ------------------------------------------------------------------------------------------ beside another objective


@dataclass(frozen=True, kw_only=True)
class ImitationBeside(ImitationNLL):
    """Imitate given responses beside other terms, each stream averaged over its own rows."""

    sft_weight: float = hyperparameter(0.1, "weight of the given responses' negative log-likelihood; 0 is off", low=0)
    aggregation: Aggregation = hyperparameter("token-mean", AGGREGATION_HELP)

    @property
    def imitation_weight(self) -> float:
        """The weight."""
        return self.sft_weight


@dataclass(frozen=True)
class CompletionRows(OwnRows):
    """The next few given responses for each optimizer step: rows of language `[n, T]`, which are no experience."""

    fields: ClassVar[frozenset[str]] = (PAIR_FIELDS - {"pair", "preferred"}) | {"demonstrated"}
    given_completions: ClassVar[bool] = True

    sft_rows: int = hyperparameter(32, "given responses that are imitated in one optimizer step", low=1)

    def rows(self, context: Context) -> Experience:
        """`sft_rows` rows from where the step before ended, epoch after epoch."""
        given = context.run_state.completions("train")
        numbers = numbers_of_step(context.seed, len(given), context.spent.updates * self.sft_rows, self.sft_rows)
        batch: Experience = given.batch(numbers)
        return batch.with_fields(weight=batch["mask"].float(), demonstrated=torch.ones(len(batch), dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class OptimizeWithCompletions(Optimize):
    """Take AdamW steps on the sum of the terms and the mean negative log-likelihood of given responses."""

    given_completions: ClassVar[bool] = True

    sft_weight: float = hyperparameter(0.1, "weight of the given responses' negative log-likelihood; 0 is off", low=0)
    sft_rows: int = hyperparameter(32, "given responses that are imitated in one optimizer step", low=1)

    @property
    def also(self) -> tuple[On, ...]:
        """The given responses, imitated."""
        if not self.sft_weight:
            return ()
        return (On(CompletionRows(sft_rows=self.sft_rows), (ImitationBeside(sft_weight=self.sft_weight),)),)


@dataclass(frozen=True, kw_only=True)
class ImitateBeside(Change):
    """Imitate given responses beside the objective of another method, whose rows stay its own."""

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe whose optimizer steps read given responses too.

        Raises:
            UserError: it has an optimizer of its own, or no one update of the policy.
        """
        if type(recipe.optimize) is Optimize:
            same: dict[str, Any] = {f.name: getattr(recipe.optimize, f.name) for f in dataclasses.fields(Optimize)}
            return replace(recipe, optimize=OptimizeWithCompletions(**same))
        able = [
            step for step in recipe.updates if isinstance(step, Update) and step.trains == recipe.acts and recipe.models
        ]
        if len(able) != 1 or "prompt_ids" not in recipe.collected:
            raise UserError(
                f"{recipe.name} takes its steps in a way of its own, to which nobody can add given responses; take sft "
                "as a phase before it."
            )
        on = On(CompletionRows(), (ImitationBeside(),))
        joined = (replace(step, also=(*step.also, on)) if step is able[0] else step for step in recipe.updates)
        return replace(recipe, updates=tuple(joined))


def recipe() -> Recipe:
    """One pass over given responses after another, 32 in a step, the mean over their tokens."""
    return Recipe(
        name=SLUG,
        collect=GivenCompletions(),
        terms=(CompletionNLL(),),
        optimize=Optimize(learning_rate=5e-4, warmup=0.1, schedule="cosine"),
        joins=(ImitateBeside(),),
        notes={
            "collect": "given responses; nothing is sampled",
            "score": "whoever wrote the responses has judged them",
            "credit": "every token of a response counts the same",
            "improve": "the mean negative log-likelihood of the responses' tokens",
        },
    )
