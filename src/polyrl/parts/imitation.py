"""Learning from an expert: prompts that he has answered, his answers beside preference pairs, and their likelihood."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.data.pairs import numbers_of_step
from polyrl.parts.collect import SampleResponses, count_given
from polyrl.parts.improve import AGGREGATION_HELP, Aggregation, Averaged
from polyrl.parts.pairs import OfflinePairs
from polyrl.pretrain.demonstrations import Demonstration, demonstration_ids, demonstrations
from polyrl.recipe import hyperparameter
from polyrl.tasks.language.base import Row


@dataclass(frozen=True, kw_only=True)
class DemonstratedPrompts(SampleResponses):
    """Sample responses of the present policy to the prompts of a small set of demonstrations."""

    fixed_pairs: ClassVar[bool] = True

    demonstrations: int = hyperparameter(200, "answers of an expert that there are, the run's own", low=1)

    def rows(self, context: Context) -> list[Row]:
        """The prompts of the next few demonstrations, epoch after epoch."""
        return [shown.row for shown in self._shown(context)]

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return a fresh batch of responses; the column `demonstration` holds the expert's answer to each prompt."""
        batch = super().__call__(experience, context)
        answers = [shown.answer for shown in self._shown(context)]
        return batch.with_columns(demonstration=[answers[g] for g in batch["group"].tolist()])

    def _shown(self, context: Context) -> list[Demonstration]:
        found = demonstrations(context.run_state.task, context.seed, self.demonstrations)
        start = (context.iteration - 1) * self.prompts_per_step
        return [found[n] for n in numbers_of_step(context.seed, len(found), start, self.prompts_per_step)]


@dataclass(frozen=True, kw_only=True)
class DemonstratedPairs(OfflinePairs):
    """Take the next few fixed preference pairs and, beside them, the next few demonstrations."""

    gives: ClassVar[frozenset[str]] = OfflinePairs.gives | {"demonstrated"}

    demonstrations: int = hyperparameter(200, "answers of an expert that there are, the run's own", low=1)
    demonstrations_per_step: int = hyperparameter(32, "demonstrations in one iteration", low=1)
    sft_share: float = hyperparameter(
        0.0, "share of the budget for demonstrations alone; after it pairs alone; 0 mixes", low=0, high=1
    )

    def follows_budget(self) -> tuple[str, ...]:
        """The share of demonstrations alone."""
        return ("sft_share",) if self.sft_share else ()

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return two rows a pair and one a demonstration, which is in no pair (`pair` -1)."""
        run_state, iteration = context.run_state, context.iteration - 1
        pairs = run_state.pairs("train")
        start = iteration * self.pairs_per_step
        numbers = numbers_of_step(context.seed, len(pairs), start, self.pairs_per_step)
        shown = demonstrations(run_state.task, context.seed, self.demonstrations)
        which = numbers_of_step(
            context.seed, len(shown), iteration * self.demonstrations_per_step, self.demonstrations_per_step
        )
        if self.sft_share:
            numbers, which = ([], which) if context.schedule_progress < self.sft_share else (numbers, [])
        batch: Experience = pairs.batch(numbers, {n: demonstration_ids(run_state.policy, shown[n]) for n in which})
        count_given(batch, context)
        return batch.with_fields(demonstrated=batch["pair"] < 0)


@dataclass(frozen=True, kw_only=True)
class ImitationNLL(Averaged):
    """Imitate demonstrations, or chosen responses, beside other terms; subclasses say how much that weighs."""

    slot: ClassVar[str] = "nll"
    needs: ClassVar[frozenset[str]] = frozenset({"weight"})

    imitate: Literal["demonstrations", "chosen"] = hyperparameter(
        "demonstrations", "demonstrations, or chosen: the pairs' chosen responses instead (ORPO, RPO)"
    )
    aggregation: Aggregation = hyperparameter("seq-mean-token-sum", AGGREGATION_HELP)

    @property
    @abstractmethod
    def imitation_weight(self) -> float:
        """What the negative log-likelihood is multiplied by."""
        raise NotImplementedError

    def required(self) -> frozenset[str]:
        """What tells the answers to be imitated."""
        return self.needs | {"demonstrated" if self.imitate == "demonstrations" else "preferred"}

    @property
    def averaging(self) -> str:
        """Shared with no other term: the average is over the imitated rows alone."""
        return f"{self.name}, {self.aggregation}"

    def weights(self, experience: Experience) -> Tensor:
        """`weight` [B, T] of the imitated rows, 0 in the others."""
        which = experience["demonstrated" if self.imitate == "demonstrations" else "preferred"]
        return experience["weight"] * which[:, None]

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Weighted -log pi of every step, `[B, T]`."""
        return -self.imitation_weight * outputs["logprob"]


@dataclass(frozen=True, kw_only=True)
class DemonstrationNLL(ImitationNLL):
    """Imitate demonstrations, or chosen responses, beside other terms: w1 times their negative log-likelihood."""

    demonstration_weight: float = hyperparameter(0.1, "w1: weight of the negative log-likelihood", low=0)

    @property
    def imitation_weight(self) -> float:
        """w1."""
        return self.demonstration_weight
