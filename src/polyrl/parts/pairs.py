"""Preference pairs: where they come from, who labels them, which count, and what their losses share.

A pair is two rows of the experience that share the number `pair`; `preferred` is true in one of them. Everything else
is as in sampled responses, so a pair is never found by the place of its rows.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import LEFT_OUT, SpecialRows, scored_rows
from polyrl.data.pairs import numbers_of_step
from polyrl.errors import UserError
from polyrl.models.language.pairs import by_pair, sequence_log_ratio, sequence_logprob
from polyrl.parts.collect import LANGUAGE_FIELDS, SampleResponses, count_given
from polyrl.parts.credit import check_groups
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Part, Recipe, Scope, Stage, Term, hyperparameter

Reference = Literal["start", "round"]

# ---------------------------------------------------------------------------------------------- pure functions


def best_versus_worst(score: Tensor, group: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, int]:
    """Pair the best with the worst response of each group.

    Args:
        score: `[B]` float.
        group: `[B]` int64, answers to one prompt share a number.
        counted: `[B]` bool, rows that may be paired.

    Returns:
        `pair` `[B]` int64 (-1: in no pair), `preferred` `[B]` bool, and the number of groups whose scores are all
        equal, which make no pair. Of several that are equally good (or bad) the first row is taken.
    """
    pair, preferred = torch.full_like(group, -1), torch.zeros_like(counted)
    ties = 0
    for g in torch.unique(group[counted]).tolist():
        rows = (counted & (group == g)).nonzero()[:, 0]
        best, worst = rows[score[rows].argmax()], rows[score[rows].argmin()]
        if not bool(score[best] > score[worst]):
            ties += 1
            continue
        pair[best] = pair[worst] = g
        preferred[best] = True
    return pair, preferred, ties


def partners(group: Tensor, counted: Tensor) -> Tensor:
    """Row number of the other response to each row's prompt, int64 `[B]`; -1 unless exactly two of them are `counted`.

    Args:
        group: `[B]` int64, responses to one prompt share a number.
        counted: `[B]` bool.
    """
    rows = counted.nonzero()[:, 0]
    _, index, size = torch.unique(group[rows], return_inverse=True, return_counts=True)
    total = torch.zeros_like(size).index_add(0, index, rows)
    other = torch.full_like(group, -1)
    other[rows] = torch.where(size[index] == 2, total[index] - rows, -1)
    return other


def whole_pairs(experience: Experience) -> Tensor:
    """Number of the pair of each row, int64 `[B]`; -1 in no pair, or in one of which a selection left out a row."""
    pair = experience["pair"]
    counted = pair >= 0
    if "weight" in experience:
        counted = counted & (experience["weight"] != 0).any(1)
    _, index, size = torch.unique(pair[counted], return_inverse=True, return_counts=True)
    found = torch.full_like(pair, -1)
    found[counted] = torch.where(size[index] == 1, -1, pair[counted])
    return found


def win_shares(probability: Tensor, first: Tensor, second: Tensor, size: int) -> Tensor:
    """Mean probability `[size]` with which each response beats those that it was compared with.

    Args:
        probability: `[n]` that response `first[i]` beats `second[i]`, in [0, 1].
        first, second: `[n]` int64, rows.
        size: number of rows; one that was compared with none gets 1/2.
    """
    won, games = torch.zeros(size), torch.zeros(size)
    won = won.index_add(0, first, probability).index_add(0, second, 1 - probability)
    games = games.index_add(0, first, torch.ones(len(first))).index_add(0, second, torch.ones(len(second)))
    return torch.where(games > 0, won / games.clamp(min=1), torch.full((size,), 0.5))


# ----------------------------------------------------------------------------------------------------- collect


def dpo_loss(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigma(beta h) (arXiv:2305.18290, equation 7), nats; any shape.

    With `label_smoothing` e it is conservative DPO, -(1-e) log sigma(beta h) - e log sigma(-beta h): the likelihood of
    labels that are flipped with probability e, whose minimum is at a finite margin.
    """
    z = beta * h
    return (1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z)


@dataclass(frozen=True, kw_only=True)
class OfflinePairs(Part):
    """Take the next few of the task's fixed preference pairs, epoch after epoch.

    A pair counts as two samples each time it is used, and costs no call of a reward: it was labelled before.
    """

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = (LANGUAGE_FIELDS - {"behaviour_logprob"}) | {"pair", "preferred", "example"}
    fixed_pairs: ClassVar[bool] = True
    """Whether the task must have fixed pairs; where it has none, some are sampled from the start and labelled."""

    pairs_per_step: int = hyperparameter(32, "pairs in one iteration", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `2 * pairs_per_step` rows."""
        pairs = context.run_state.pairs("train")
        start = (context.iteration - 1) * self.pairs_per_step
        batch: Experience = pairs.batch(numbers_of_step(context.seed, len(pairs), start, self.pairs_per_step))
        count_given(batch, context)
        context.log(
            pairs__epoch=(start + self.pairs_per_step) / len(pairs),
        )
        return batch


@dataclass(frozen=True, kw_only=True)
class SamplePairs(SampleResponses):
    """Sample two responses to each prompt from the present policy, to be compared."""

    prompts_per_step: int = hyperparameter(32, "prompts in one iteration", low=1)
    completions_per_prompt: int = hyperparameter(2, "responses sampled for each prompt", low=2)


# ------------------------------------------------------------------------------------------------------- score


@dataclass(frozen=True, kw_only=True)
class PreferenceLabel(Part):
    """Ask a preference function which of two responses is better; a response's score is the share that it beats.

    Every two responses to a prompt are compared once, so `completions_per_prompt` responses cost n(n-1)/2 calls.
    """

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask", "group", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"score"})
    special_rows: ClassVar[SpecialRows | None] = replace(LEFT_OUT, unpaid="none")

    label: Literal["bernoulli", "hard"] = hyperparameter(
        "bernoulli", "bernoulli draws the winner with the function's probability, hard takes the likelier one"
    )

    def check_within(self, recipe: Recipe) -> None:
        """One response has nothing to be compared with."""
        check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B] in [0, 1], 0 for those that are not compared because they are no whole sampled response.

        A response whose comparisons all failed is dropped, if failures may be.

        Raises:
            UserError: every comparison failed.
        """
        group, counted = experience["group"], scored_rows(experience)
        first, second = _comparisons(group, counted)
        probability = torch.tensor(context.run_state.prefer(experience, first, second), dtype=torch.float32)
        context.spent.reward_calls += len(first)
        if self.label == "hard":
            wins = torch.where(probability == 0.5, 0.5, (probability > 0.5).float())
        else:
            wins = (torch.rand(len(first), generator=context.generator("labels")) < probability).float()
        rows = torch.tensor(first, dtype=torch.long), torch.tensor(second, dtype=torch.long)
        known = ~probability.isnan()
        kept = torch.ones(len(experience), dtype=torch.bool)
        if not bool(known.all()):
            if not bool(known.any()):
                raise UserError(
                    f"Every comparison of iteration {context.iteration} failed; mend the preference function or use "
                    "--on-reward-error stop to see the first failure."
                )
            kept[torch.cat(rows)] = False  # but for those that some comparison is known of
            rows = rows[0][known], rows[1][known]
            kept[torch.cat(rows)] = True
            context.log(rewards__dropped=float((~kept).sum()))
            wins, probability = wins[known], probability[known]
        context.log(pairs__sure=(2 * probability - 1).abs().mean())
        score = torch.where(counted, win_shares(wins, *rows, len(experience)), 0.0)
        judged = experience.with_fields(score=score)
        return judged if bool(kept.all()) else judged.rows(kept.nonzero()[:, 0])


def _comparisons(group: Tensor, counted: Tensor) -> tuple[list[int], list[int]]:
    """Every two counted rows of one group, once."""
    members: dict[int, list[int]] = {}
    for row, (g, counts) in enumerate(zip(group.tolist(), counted.tolist(), strict=True)):
        if counts:
            members.setdefault(g, []).append(row)
    found = [(a, b) for rows in members.values() for i, a in enumerate(rows) for b in rows[i + 1 :]]
    return [a for a, _ in found], [b for _, b in found]


# ------------------------------------------------------------------------------------------------------ select


@dataclass(frozen=True, kw_only=True)
class BestVersusWorst(Part):
    """Pair the best-scored response to each prompt with the worst one; where all are equal there is no pair."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "group"
    slot: ClassVar[str] = "pairing"
    needs: ClassVar[frozenset[str]] = frozenset({"score", "group", "greedy", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"pair", "preferred", "weight"})
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    def check_within(self, recipe: Recipe) -> None:
        """One response makes no pair."""
        check_groups(self, recipe)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `pair` and `preferred` [B], and set `weight` [B, T] to 0 outside the pairs."""
        counted = scored_rows(experience) & (experience["weight"] != 0).any(1)
        pair, preferred, ties = best_versus_worst(experience["score"], experience["group"], counted)
        groups = len(torch.unique(experience["group"][counted]))
        context.log(pairs__ties=ties / max(groups, 1))
        if groups > ties:
            score = experience["score"]
            won, lost = by_pair(score, pair, preferred)
            context.log(pairs__score_gap=(won - lost)[preferred].mean())
        weight = experience["weight"] * (pair >= 0)[:, None]
        return experience.with_fields(pair=pair, preferred=preferred, weight=weight)


# ----------------------------------------------------------------------------------------------------- improve


@dataclass(frozen=True, kw_only=True)
class PairTerm(Term):
    """A loss on the margin by which a pair's chosen response is ahead (`margin`, `pair_loss`); averaged over pairs.

    Each row of a pair carries the loss of the pair. A pair of which a selection left out one row teaches nothing.
    """

    grouped_by: ClassVar[str] = "pair"
    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"pair", "preferred", "mask", "weight"})

    @abstractmethod
    def margin(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """By how much the chosen response of each row's pair is ahead, `[B]`."""
        raise NotImplementedError

    @abstractmethod
    def pair_loss(self, h: Tensor) -> Tensor:
        """Loss of pairs whose margins are `h`, any shape."""
        raise NotImplementedError

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Loss of each row's pair, `[B]`."""
        return self.pair_loss(self.margin(outputs, experience))

    def weights(self, experience: Experience) -> Tensor:
        """`weight` [B, T], 0 in rows of no pair."""
        weight, paired = experience["weight"], whole_pairs(experience) >= 0
        return weight if bool(paired.all()) else weight * paired[:, None]

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: one over the number of rows that count, 0 in the others."""
        counted = (experience["weight"] != 0).any(1) & (whole_pairs(experience) >= 0)
        return counted.float() / counted.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class ImplicitRewardLoss(PairTerm):
    """A loss on the margin of implicit rewards, which are functions of a response's log-probabilities.

    Subclasses write `implicit_reward`, `pair_loss` of the difference of two of them, and `scale`.
    """

    @property
    @abstractmethod
    def scale(self) -> float:
        """What an implicit reward is multiplied by where it is logged."""
        raise NotImplementedError

    @abstractmethod
    def implicit_reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """What each response is compared by, before `scale`, `[B]`."""
        raise NotImplementedError

    def rewards(self, outputs: dict[str, Tensor], experience: Experience) -> tuple[Tensor, Tensor]:
        """Implicit reward of the chosen and of the rejected response of each row's pair, `[B]` each."""
        own = self.implicit_reward(outputs, experience)
        return by_pair(own, whole_pairs(experience), experience["preferred"])

    def margin(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """h of each row's pair, `[B]`."""
        chosen, rejected = self.rewards(outputs, experience)
        return chosen - rejected

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Implicit rewards, their margin, how often it is positive, and log-probabilities: `[B]`, TRL's names."""
        chosen, rejected = self.rewards(outputs, experience)
        total = sequence_logprob(outputs["logprob"], experience["mask"])
        won, lost = by_pair(total, whole_pairs(experience), experience["preferred"])
        return {
            "rewards/chosen": self.scale * chosen,
            "rewards/rejected": self.scale * rejected,
            "rewards/margins": self.scale * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": won,
            "logps/rejected": lost,
        }


@dataclass(frozen=True, kw_only=True)
class LogRatioLoss(ImplicitRewardLoss):
    """A loss on h = rho(chosen) - rho(rejected), the margin of log-ratios to a reference (arXiv:2305.18290).

    Subclasses write `pair_loss(h)` and `scale`, by which a log-ratio is called an implicit reward in the metrics.
    """

    length_norm: bool = hyperparameter(
        False, "length-normalized form: log-ratios are means over the tokens of a response; false sums them"
    )
    reference: Reference = hyperparameter(
        "start", "start: ratios to the starting model; round: to the policy that sampled this batch"
    )

    def required(self) -> frozenset[str]:
        """The log-probabilities of the reference: for a round's own policy they are known from sampling."""
        return self.needs | {self._reference_field()}

    def _reference_field(self) -> str:
        return "ref_logprob" if self.reference == "start" else "behaviour_logprob"

    def implicit_reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """rho of each response, `[B]`."""
        reference, mask = experience[self._reference_field()], experience["mask"]
        return sequence_log_ratio(outputs["logprob"], reference, mask, length_norm=self.length_norm)


def recipe_of_pairs(name: str, *terms: Term, notes: dict[str, str]) -> Recipe:
    """A method that fits the policy to fixed pairs in one pass: nothing is sampled and nothing scored.

    Args:
        name: of the method.
        terms: its objective, all of which its paper adds.
        notes: one line a stage, besides that on what is collected.
    """
    return Recipe(
        name=name,
        collect=OfflinePairs(pairs_per_step=32),
        terms=terms,
        optimize=Optimize(learning_rate=5e-4, warmup=0.1, schedule="cosine"),
        adds=tuple(term.name for term in terms),
        notes={"collect": "labelled pairs of responses; nothing is sampled", **notes},
    )
