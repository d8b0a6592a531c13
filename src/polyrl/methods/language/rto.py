"""RTO: PPO with a dense reward besides the score at the end: what a policy trained by DPO finds each token worth.

In the KL-regularized token MDP, beta log(pi*/pi_ref)(a|s) = r(s, a) + V*(s') - V*(s). So the log-ratio of a policy that
DPO has trained is the true reward plus a difference of potentials: it says at each token what the score says at the
end. `dpo_reward_scale` multiplies the plain log-ratio; DPO's beta does not come in again.

Choices, after the authors' code (zkshan2002/RTO): scaled first, then clipped; the end token is a step like any other,
and a truncated response has none; the reference is PPO's, from which the DPO policy must have been trained. They
normalize the reward model's score and clamp it to [-10, 10]; here scoring is the task's, and learned scores are
normalized. Ours: scale 0 is off (there it means 1). DDPO and RS-PPO are not in their code: they are written from the
paper's words, and pay the same clipped token rewards at other times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import SpecialRows, finished_rows, sampled_rows, sampled_steps, scored_rows
from polyrl.errors import UserError
from polyrl.methods.language import ppo
from polyrl.parts.dpo_policy import DPOGuided
from polyrl.parts.score import at_last_step
from polyrl.recipe import Recipe, Scope, Stage, hyperparameter

SLUG = "rto"
TITLE = "Reinforced Token Optimization"
PAPER = "arXiv:2404.18922"
YEAR = 2024
FORMULA = "r_t = clip(b1 log(pi_dpo / pi_ref), -c1, c1) - b2 log(pi_old / pi_ref) + 1[t = last] R"
TASK = "learned-sort"

Spread = Literal["token", "sequence", "shaping"]

# ---------------------------------------------------------------------------------------------- pure functions


def dpo_token_rewards(log_ratio: Tensor, scale: float, clip: float = 0.0) -> Tensor:
    """clip(b1 log(pi_dpo / pi_ref), -c1, c1), any shape (equation 4.7 with the code's clip); `clip` 0 is none."""
    scaled = scale * log_ratio
    return scaled.clamp(-clip, clip) if clip else scaled


def spread_over(dense: Tensor, mask: Tensor, spread: Spread, finished: Tensor | None = None) -> Tensor:
    """When the token rewards of a response are paid, `[B, T]`.

    Args:
        dense: `[B, T]`, 0 where `mask` is false.
        mask: `[B, T]` bool.
        spread: "token" as they come (RTO); "sequence" their sum at the last token (DDPO); "shaping" as they come, and
            at the last token their sum is taken back, so that the response earns its score alone (RS-PPO).
        finished: `[B]` bool, rows whose last token is there; None: all.
    """
    if spread == "token":
        return dense
    total = at_last_step(dense.sum(1), mask)
    if finished is not None:
        total = torch.where(finished[:, None], total, 0.0)
    return total if spread == "sequence" else dense - total


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of two `[n]`; NaN where either does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


# ------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, kw_only=True)
class DPOReward(DPOGuided):
    """Pay at every token what a policy trained by DPO thinks of it: r_t += clip(b1 log(pi_dpo / pi_ref))."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "dpo_logprob"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "dpo_logprob": Field("[B, T]", "float32", "nats", "log-probability of the action under a frozen DPO policy"),
    }
    # a token of an unfinished response is paid as it comes; what is paid at the end waits for it
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="left out"
    )

    dpo_reward_scale: float = hyperparameter(
        0.05, "b1, reward of one nat of the DPO policy's log-ratio; 0 is off", low=0
    )
    dpo_reward_clip: float = hyperparameter(0.05, "c1, largest token reward, after scaling; 0 is no clip", low=0)
    spread: Spread = hyperparameter(
        "token", "token: RTO; sequence: the sum at the end, DDPO; shaping: taken back there, RS-PPO"
    )

    @property
    def off(self) -> bool:
        """With scale 0 nothing is paid."""
        return not self.dpo_reward_scale

    def check_within(self, recipe: Recipe) -> None:
        """Credit that is relative to a group is one number for a whole answer: density would be lost without a word."""
        blind = [p for p in recipe.credit if "group" in p.needs and p.setting("baseline", "group") == "group"]
        if blind and self.spread != "sequence":
            raise UserError(
                f"{recipe.name}: part '{self.name}' pays token by token, but '{blind[0].name}' gives all tokens of an "
                "answer the same advantage; put it into ppo or reinforce++, or set --spread sequence."
            )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Return the experience with `dpo_logprob`, and with the dense reward added to `reward`, `[B, T]` both."""
        if self.off:
            return experience
        counted = experience["mask"] & sampled_rows(experience)[:, None]  # greedy baselines are not measured
        dpo_logprob, log_ratio = self.guide(experience, counted, context)
        dense = dpo_token_rewards(log_ratio, self.dpo_reward_scale, self.dpo_reward_clip)
        self._log(log_ratio, dense.sum(1), experience, context)
        reward = experience["reward"] + spread_over(dense, counted, self.spread, finished_rows(experience))
        return experience.with_fields(dpo_logprob=dpo_logprob, reward=reward)

    def _log(self, log_ratio: Tensor, total: Tensor, experience: Experience, context: Context) -> None:
        """Tell of the tokens of this iteration and of whole responses, whose dense reward `total` [B] sums up."""
        fresh, whole = sampled_steps(experience), scored_rows(experience)
        if bool(fresh.any()):
            context.log(dpo__log_ratio=log_ratio[fresh].mean())
        if self.dpo_reward_clip and bool(fresh.any()):
            beyond = (self.dpo_reward_scale * log_ratio).abs() > self.dpo_reward_clip
            context.log(dpo__clipped=beyond[fresh].float().mean())
        if bool(whole.any()):
            context.log(dpo__reward=total[whole].mean())
            agreement = correlation(total[whole], experience["score"][whole])
            if bool(agreement.isfinite()):
                context.log(dpo__agreement=agreement)


def recipe() -> Recipe:
    """PPO whose rewards a DPO policy, trained on the task's own preference pairs, makes dense."""
    return replace(
        ppo.recipe() + DPOReward(),
        name=SLUG,
        adds=("dpo-reward",),
        notes={
            "score": "a DPO policy says of every token whether it is better than the start would have it; the score "
            "still comes at the end, and the KL is charged token by token",
            "credit": "PPO's: a critic and GAE, which now see reward before the end",
            "improve": "PPO's clipped surrogate and value loss, unchanged",
        },
    )
