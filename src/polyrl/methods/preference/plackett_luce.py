"""Plackett-Luce DPO: fit the policy to whole rankings, as a best one chosen again and again from what is left.

DPO's derivation needs no pairs. In the Plackett-Luce model a ranking of K responses has the probability
prod_k exp(r_k) / sum_{j >= k} exp(r_j): the best is chosen among all, the second among the others, and so on. With
r = beta log(pi / ref) + beta log Z the Z cancels here as well (equation 20 of the paper's appendix), which leaves a
likelihood of rankings in the policy alone. Two responses make it the Bradley-Terry model, and the loss DPO's.

The paper states the model and trains on pairs; what follows is ours. Responses that are graded equally do not compete:
each is chosen among itself and those that are worse. Of the same text with the same grade one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.data.pairs import numbers_of_step
from polyrl.models.language.pairs import sequence_log_ratio, sequence_logprob
from polyrl.parts.collect import LANGUAGE_FIELDS, count_given
from polyrl.parts.optimize import Optimize
from polyrl.recipe import Part, Recipe, Stage, Term, hyperparameter

SLUG = "plackett-luce"
TITLE = "Plackett-Luce DPO, on rankings"
PAPER = "arXiv:2305.18290"
YEAR = 2023
FORMULA = "loss = -sum_k log(e^(beta rho_k) / sum_{j >= k} e^(beta rho_j)), rho = log(pi/ref), best response first"
TASK = "sort-pairs"


def plackett_luce_loss(reward: Tensor, rank: Tensor, ranking: Tensor) -> Tensor:
    """-log P(ranking) of each row's ranking (arXiv:2305.18290, equation 20), nats, `[B]`; 0 in rows of none.

    Args:
        reward: `[B]` float; gradients pass through.
        rank: `[B]` int64, how many responses of the ranking are better; equal ones do not compete.
        ranking: `[B]` int64, rows of one ranking share a number; -1: in none.
    """
    together, worse = compared(ranking, rank)
    itself = torch.eye(len(rank), dtype=torch.bool, device=rank.device)
    chosen_among = torch.where(itself | worse, reward, -torch.inf).logsumexp(1)
    return together.to(reward.dtype) @ (chosen_among - reward)


def compared(ranking: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Of every two rows, whether they are in one ranking, and whether the second is the worse: bool `[B, B]` each."""
    together = (ranking[:, None] == ranking) & (ranking >= 0)[:, None]
    return together, together & (rank > rank[:, None])


def left(experience: Experience) -> Tensor:
    """Ranking of each row, int64 `[B]`; -1 where a selection left it out, or left nothing to compare it with."""
    ranking = torch.where((experience["weight"] != 0).any(1), experience["ranking"], -1)
    worse = compared(ranking, experience["rank"])[1]
    return torch.where(worse.any(1) | worse.any(0), ranking, -1)


@dataclass(frozen=True, kw_only=True)
class OfflineRankings(Part):
    """Take the next few of the task's rankings, epoch after epoch; a preference pair is a ranking of two.

    A response counts as a sample each time it is used, and costs no call of a reward: it was ranked before.
    """

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "language"
    gives: ClassVar[frozenset[str]] = (LANGUAGE_FIELDS - {"behaviour_logprob"}) | {"ranking", "rank", "example"}
    own_fields: ClassVar[Mapping[str, Field]] = {
        "ranking": Field("[B]", "int64", "-", "rows of one ranking share a number; -1: in none (Plackett-Luce)"),
        "rank": Field("[B]", "int64", "-", "how many responses of the ranking are better (Plackett-Luce)"),
    }
    fixed_pairs: ClassVar[bool] = True
    rankings_per_step: int = hyperparameter(32, "rankings in one iteration", low=1)

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return a row for each response of `rankings_per_step` rankings."""
        pairs = context.run_state.pairs("train")
        rankings = pairs.rankings
        start = (context.iteration - 1) * self.rankings_per_step
        numbers = numbers_of_step(context.seed, len(rankings), start, self.rankings_per_step)
        members = [(at, number, rank) for at, n in enumerate(numbers) for number, rank in rankings[n]]
        both = pairs.batch([number // 2 for _, number, _ in members])
        batch = both.rows([2 * i + number % 2 for i, (_, number, _) in enumerate(members)])
        ranking = torch.tensor([at for at, _, _ in members])
        rank = torch.tensor([rank for _, _, rank in members])
        fields = {name: batch[name] for name in batch.fields() if name not in ("pair", "preferred")}
        batch = Experience({**fields, "group": ranking, "ranking": ranking, "rank": rank})
        count_given(batch, context)
        context.log(
            rankings__epoch=(start + self.rankings_per_step) / len(rankings),
            rankings__size=len(members) / len(numbers),
        )
        return batch


@dataclass(frozen=True, kw_only=True)
class PlackettLuceLoss(Term):
    """Raise each response's log-ratio above those of the worse ones, through the likelihood of the whole ranking."""

    grouped_by: ClassVar[str] = "ranking"
    slot: ClassVar[str] = "policy-objective"
    needs: ClassVar[frozenset[str]] = frozenset({"ranking", "rank", "ref_logprob", "mask", "weight"})

    beta: float = hyperparameter(0.1, "strength of the pull to the reference: reward = beta * log-ratio", above=0)

    def loss(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """Loss of each row's ranking, among the rows that count, `[B]`."""
        return plackett_luce_loss(self._reward(outputs, experience), experience["rank"], left(experience))

    def _reward(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        return self.beta * sequence_log_ratio(outputs["logprob"], experience["ref_logprob"], experience["mask"])

    def weights(self, experience: Experience) -> Tensor:
        """`weight` [B, T], 0 in rows of no ranking."""
        return experience["weight"] * (left(experience) >= 0)[:, None]

    def step_weights(self, experience: Experience) -> Tensor:
        """`[B]` weights: shared out equally over rankings, and by each over its rows; 0 in those of none."""
        ranking = left(experience)
        counted = ranking >= 0
        size = (ranking[:, None] == ranking).sum(1) * torch.unique(ranking[counted]).numel()
        weights: Tensor = counted.float() / size.clamp(min=1)
        return weights

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """Of each row's ranking, `[B]`: what its best and its worst response have, and how many pairs are in order."""
        reward = self._reward(outputs, experience)
        total = sequence_logprob(outputs["logprob"], experience["mask"])
        together, worse = compared(left(experience), experience["rank"])

        def mean(x: Tensor, rows: Tensor) -> Tensor:
            among = (together & rows).to(x.dtype)
            return (among @ x) / among.sum(1).clamp(min=1)

        best, worst = ~worse.any(0), ~worse.any(1)
        in_order = (worse & (reward[:, None] > reward)).to(reward.dtype).sum(1)
        pairs = worse.to(reward.dtype).sum(1)
        return {
            "rewards/chosen": mean(reward, best),
            "rewards/rejected": mean(reward, worst),
            "rewards/margins": mean(reward, best) - mean(reward, worst),
            "rewards/accuracies": (together.to(reward.dtype) @ in_order)
            / (together.to(reward.dtype) @ pairs).clamp(min=1),
            "logps/chosen": mean(total, best),
            "logps/rejected": mean(total, worst),
        }


def recipe() -> Recipe:
    """DPO's settings, with rankings in place of pairs."""
    return Recipe(
        name=SLUG,
        collect=OfflineRankings(rankings_per_step=32),
        terms=(PlackettLuceLoss(beta=0.1),),
        optimize=Optimize(learning_rate=5e-4, warmup=0.1, schedule="cosine"),
        adds=("offline-rankings", "plackett-luce-loss"),
        notes={
            "collect": "responses to a prompt in order; nothing is sampled",
            "score": "the order is the score; the starting model says how likely it finds each response",
            "credit": "the whole response is one action: its log-ratio is a sum over tokens",
            "improve": "the likelihood of the order: the best is chosen among all, the second among the others, ...",
        },
    )
