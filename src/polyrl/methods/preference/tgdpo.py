"""TGDPO: DPO in which a frozen guide says at each token how much it counts, chosen and rejected by opposite signs.

KL-regularized RL over sequences is bounded by a sum of problems over tokens, in each of which beta may be another one:
beta f(r_hat), with a token reward r_hat that is known. Then beta f log(pi/ref) is the implicit reward of a token, and
Bradley-Terry on sums of them is the loss. r_hat is what a policy trained by DPO thinks of the token, beta
log(pi_guide/ref). A good token of the chosen response is pushed up more, a bad token of the rejected one down more.

After the authors' code (dvlab-research/TGDPO): f = 1 + alpha r_hat on the chosen and 1 - alpha r_hat on the rejected
response, of its own tokens; sums, no means; the offset that Z leaves is dropped (theorem 4.4: a heuristic where data
are finite). The beta of r_hat is the loss's. Ours: f is clipped to [m, 2 - m], since below 0 it would reverse the
preference at that token and the code does not look (`min_token_weight=none` is the code); the guide learns from the
pairs for one pass alone, because one that has converged on them is too sure of them.

Two controls stand beside the guide: `token_reward=oracle` takes what a token truly adds to the gold, over `dpo_beta` as
if DPO had found it, so that f = 1 +- alpha gold where both betas are one; `shuffled=true` leaves each response the same
weights and deals them out among its tokens anew, so that nothing but the credit is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import SpecialRows, sampled_rows
from polyrl.errors import UserError
from polyrl.methods.preference.dpo import DPOLoss
from polyrl.models.language.pairs import by_pair, sequence_logprob
from polyrl.parts.dpo_policy import DPOGuided
from polyrl.parts.pairs import recipe_of_pairs, whole_pairs
from polyrl.recipe import Recipe, Scope, Stage, hyperparameter
from polyrl.runtime.seeding import generator

SLUG = "tgdpo"
TITLE = "Token-Level Reward Guidance for DPO"
PAPER = "arXiv:2506.14574"
YEAR = 2025
FORMULA = "loss = -log sigma(sum_t beta f_t u_t (chosen) - sum_t beta f_t u_t (rejected)), f = 1 +- alpha r_hat"
TASK = "sort-pairs"


def token_weights(guidance: Tensor, preferred: Tensor, least: float | None = None) -> Tensor:
    """f of every token, `[B, T]`: 1 + alpha r_hat in chosen responses and 1 - alpha r_hat in rejected ones.

    Args:
        guidance: `[B, T]` alpha r_hat.
        preferred: `[B]` bool.
        least: f is kept in [least, 2 - least]; None keeps it as it is, below 0 as well.
    """
    weight = 1 + torch.where(preferred[:, None], guidance, -guidance)
    return weight if least is None else weight.clamp(least, 2 - least)


def dealt_anew(values: Tensor, counted: Tensor, action: Tensor, seed: int) -> Tensor:
    """Each row's values, `[B, T]`, at its counted places in another order, which its tokens and the seed decide."""
    found = values.clone()
    for row, places in enumerate(mask.nonzero()[:, 0] for mask in counted):
        stream = generator(seed, "shuffled-guidance", *action[row, places].tolist())
        found[row, places] = values[row, places[torch.randperm(len(places), generator=stream)]]
    return found


@dataclass(frozen=True, kw_only=True)
class TokenGuidance(DPOGuided):
    """Ask a frozen policy that DPO has trained what it thinks of every token."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "guidance"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"guidance"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "guidance": Field("[B, T]", "float32", "nats", "alpha times the log-ratio of a frozen guide to the reference"),
    }
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="alone"
    )

    alpha: float = hyperparameter(0.5, "strength of the guidance: f = 1 +- alpha r_hat; 0 is DPO", low=0)
    dpo_epochs: int = hyperparameter(1, "passes over the pairs, where the guide is made here", low=1)
    token_reward: Literal["dpo", "oracle"] = hyperparameter(
        "dpo", "dpo asks the guide; oracle takes what a token adds to the gold, over dpo_beta, where the task knows it"
    )
    shuffled: bool = hyperparameter(
        False, "deal each response's token rewards out anew among its own tokens: a control, weights without credit"
    )

    def check_within(self, recipe: Recipe) -> None:
        """An oracle asks no model.

        Raises:
            UserError: it is given one.
        """
        if self.token_reward == "oracle" and self.dpo_model:
            raise UserError(f"{recipe.name}: --token-reward oracle asks no guide; leave --dpo-model away.")

    def prepare(self, task: Any, model: str, say: Callable[[str], None] = lambda _: None) -> str:
        """Return the guide's folder, made first where it is missing; nothing where no guide is asked.

        Raises:
            UserError: a control is asked for that the task has not, or see `DPOGuided.prepare`.
        """
        if not self.off and self.shuffled and task.max_tokens < 2:
            raise UserError(f"Answers of the task {task.name} are one token, so --shuffled has nothing to deal out.")
        if self.off or self.token_reward == "dpo":
            return DPOGuided.prepare(self, task, model, say)
        if task.token_gold is None:
            raise UserError(
                f"The task {task.name} does not know what a token is worth, as --token-reward oracle asks; take "
                "sort-pairs, token-sums or another that does, or leave it away."
            )
        return ""

    def oracle(self, experience: Experience, counted: Tensor, context: Context) -> Tensor:
        """What each counted token adds to the gold, `[B, T]` float32, 0 elsewhere."""
        task, policy = context.run_state.task, context.run_state.policy
        rows = experience.task_rows
        if "example" in experience:  # rows of given pairs, two for each; behind them responses of no pair
            pairs = task.fixed_pairs["train"]
            rows = [pairs[n // 2] if n < 2 * len(pairs) else {} for n in experience["example"].tolist()]
        worth = torch.zeros(counted.shape)
        for row, places in enumerate(mask.nonzero()[:, 0] for mask in counted):
            if not rows[row]:
                continue
            texts = [policy.decode([token]) for token in experience["action"][row, places].tolist()]
            worth[row, places] = torch.tensor(task.token_gold(rows[row], texts))
        return worth

    @property
    def off(self) -> bool:
        """With alpha 0 nobody is asked, and no guide is made."""
        return not self.alpha

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `guidance` [B, T], alpha log(pi_guide/ref), nats, without gradient; 0 where not `mask`."""
        if self.off:
            return experience.with_fields(guidance=torch.zeros(experience["mask"].shape))
        counted = experience["mask"] & sampled_rows(experience)[:, None]
        if self.token_reward == "oracle":
            log_ratio = self.oracle(experience, counted, context) / self.dpo_beta
        else:
            log_ratio = self.guide(experience, counted, context)[1]
        if self.shuffled:
            log_ratio = dealt_anew(log_ratio, counted, experience["action"], context.seed)
        return experience.with_fields(guidance=self.alpha * log_ratio)


@dataclass(frozen=True, kw_only=True)
class TGDPOLoss(DPOLoss):
    """DPO's loss on a margin in which every token's log-ratio has a weight of its own, f, a constant."""

    needs: ClassVar[frozenset[str]] = DPOLoss.needs | {"guidance"}

    min_token_weight: float | None = hyperparameter(
        0.1, "m: f is kept in [m, 2 - m]; none lets it go below 0, as the authors' code does", low=0, high=1
    )

    def token_weight(self, experience: Experience) -> Tensor:
        """f of every token, `[B, T]`."""
        return token_weights(self.beta * experience["guidance"], experience["preferred"], self.min_token_weight)

    def margin(self, outputs: dict[str, Tensor], experience: Experience) -> Tensor:
        """The weighted margin over beta of each row's pair, `[B]`: sum f u of the chosen less that of the rejected."""
        u = outputs["logprob"] - experience[self._reference_field()]
        weighted = self.token_weight(experience) * u
        own = sequence_logprob(weighted, experience["mask"], length_norm=self.length_norm)
        chosen, rejected = by_pair(own, whole_pairs(experience), experience["preferred"])
        return chosen - rejected

    def statistics(self, outputs: dict[str, Tensor], experience: Experience) -> dict[str, Tensor]:
        """DPO's, of rewards without weights as in the authors' code; f, and where it is clipped; `[B]`."""
        free = token_weights(self.beta * experience["guidance"], experience["preferred"])
        kept, mask = self.token_weight(experience), experience["mask"]
        return {
            **DPOLoss.statistics(self, outputs, experience),
            "token_weight/mean": sequence_logprob(kept, mask, length_norm=True),
            "token_weight/clipped": sequence_logprob((kept != free).to(kept.dtype), mask, length_norm=True),
            "token_weight/negative": sequence_logprob((free < 0).to(kept.dtype), mask, length_norm=True),
        }


def recipe() -> Recipe:
    """TGDPO: fixed pairs, a guide that DPO trained on them for one pass, and its weights in DPO's margin."""
    made = recipe_of_pairs(
        SLUG,
        TGDPOLoss(beta=0.1),
        notes={
            "score": "the label is the score; a frozen DPO policy says of each token whether it is better than the "
            "start would have it",
            "credit": "token by token: what the guide likes counts more in a chosen response, less in a rejected one",
            "improve": "DPO's loss on the margin of weighted log-ratios; with weights of 1 it is DPO",
        },
    )
    return replace(made, score=(TokenGuidance(),), adds=("token-guidance", "tgdpo-loss"))
