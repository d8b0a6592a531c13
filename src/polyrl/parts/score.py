"""Stage 2, score: rewards, preferences, penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.special_rows import (
    ALONE,
    LEFT_OUT,
    PAID_AT_THE_END,
    SpecialRows,
    finished_rows,
    sampled_rows,
    scored_rows,
)
from polyrl.errors import UserError
from polyrl.recipe import Part, Scope, Stage, hyperparameter

# ---------------------------------------------------------------------------------------------- pure functions


def last_step(mask: Tensor) -> Tensor:
    """True at the last true step of each row: `mask` `[B, T]` bool -> `[B, T]` bool (all false for an empty row)."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)


def at_last_step(score: Tensor, mask: Tensor) -> Tensor:
    """Pay an episode's score `[B]` at its last step: returns `[B, T]`, zero elsewhere."""
    return torch.where(last_step(mask), score[:, None], torch.zeros((), dtype=score.dtype))


def kl_estimate(logprob: Tensor, ref_logprob: Tensor, estimator: str) -> Tensor:
    """Per-sample estimate of KL(pi || ref) from log-probabilities `[...]` of actions drawn from pi, nats.

    With d = ref_logprob - logprob: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (Schulman, "Approximating KL
    divergence", 2020). Values of k1 and k3 are unbiased. As losses under on-policy sampling, the expected gradient of
    k1 is zero, of k2 that of KL(pi || ref), of k3 that of KL(ref || pi).
    """
    d = ref_logprob - logprob
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(d) - d
    raise ValueError(f"unknown KL estimator '{estimator}'")


def overlong_penalty(length: Tensor, limit: Tensor, cache: int) -> Tensor:
    """DAPO's soft length penalty (arXiv:2503.14476, equation 13): 0, then down to -1 over the last `cache` tokens.

    Args:
        length, limit: `[B]` response lengths and their limits, tokens.
        cache: width of the linear part, tokens.
    """
    return ((limit - cache - length) / cache).clamp(-1.0, 0.0)


def adapted_coefficient(coefficient: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """Move a KL coefficient towards a target KL per sequence (Ziegler et al., arXiv:1909.08593, section 2.2)."""
    error = min(0.2, max(-0.2, kl / target - 1))
    return coefficient * (1 + error * episodes / horizon)


# ------------------------------------------------------------------------------------------------------- parts

JUDGED = SpecialRows(unfinished="left out", greedy="alone", masked="alone", unpaid="left out")
"""Of parts that score responses, twins included: a response that goes on has no score yet, one without any is gone."""


def of_finished(experience: Experience, judge: Callable[[Experience], Tensor]) -> Tensor:
    """What `judge` gives of the finished responses, `[n]` or `[n, k]`, as rows of the whole batch.

    It sees no others, and they have 0. Where nothing is finished it is not called, and the result is 0 `[B]`.
    """
    rows = finished_rows(experience).nonzero()[:, 0]
    if len(rows) == len(experience):
        return judge(experience)
    if len(rows) == 0:
        return torch.zeros(len(experience))
    found = judge(experience.rows(rows))
    return found.new_zeros(len(experience), *found.shape[1:]).index_put((rows,), found)


def assign_reward(
    experience: Experience, scores: Tensor, parts: Mapping[str, Tensor], calls: int, context: Context
) -> Experience:
    """Assign each response its score as the reward of its last token, and log it: the end of every part that judges.

    Args:
        experience: the responses.
        scores: `[B]`; NaN where the reward failed: such rows are dropped.
        parts: what each reward function gave, `[B]` (NaN: none).
        calls: how many responses were scored.
        context: takes the metrics and the spending.

    Returns:
        The rows that are kept, with `score` [B] and `reward`, `terminated`, `truncated` [B, T].

    Raises:
        UserError: no sampled response is left.
    """
    context.spent.reward_calls += calls
    scores = torch.where(finished_rows(experience), scores, 0.0)  # what is still being written has earned nothing yet
    kept = ~torch.isnan(scores)
    if not bool(kept.all()):
        # a group that lost its greedy baseline has lost its baseline: it goes as a whole
        lost = set(experience["group"][~kept & experience["greedy"]].tolist())
        kept &= torch.tensor([g not in lost for g in experience["group"].tolist()])
        context.log(rewards__dropped=float((~kept).sum()))
        if not bool((kept & ~experience["greedy"]).any()):
            raise UserError(
                f"Every response of iteration {context.iteration} lost its reward; mend the reward function "
                "or use --on-reward-error stop to see the first failure."
            )
        index = kept.nonzero()[:, 0]
        experience, scores = experience.rows(index), scores[index]
        parts = {k: v[index] for k, v in parts.items()}
    mask = experience["mask"]
    counted = scored_rows(experience)
    end = last_step(mask) & finished_rows(experience)[:, None]
    seen = scores[counted]
    if len(seen):
        context.log(reward=seen.mean(), reward_std=seen.std(correction=0))
    for name, values in parts.items():
        known = values[counted & ~torch.isnan(values)]
        if len(known):
            context.metrics[f"rewards/{name}"] = float(known.mean())
    for name, values in context.run_state.measures(experience).items() if len(seen) else ():
        context.metrics[name] = float(values[counted].mean())
    return experience.with_fields(
        score=scores,
        reward=at_last_step(scores, mask),
        # the score of a response is final also where the length limit cut it: nothing follows to bootstrap from
        terminated=end,
        truncated=torch.zeros_like(end),
    )


@dataclass(frozen=True, kw_only=True)
class TaskReward(Part):
    """Score every response with the task's reward functions and pay the score at its last token."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "reward"
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"score", "reward", "terminated", "truncated"})
    special_rows: ClassVar[SpecialRows | None] = JUDGED

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [B] and `reward`, `terminated`, `truncated` [B, T]; rows whose reward failed may be dropped.

        Of windowed rollouts only finished responses are scored; the others have score 0 and do not terminate.
        """
        parts: dict[str, Tensor] = {}
        calls = 0

        def judge(some: Experience) -> Tensor:
            nonlocal calls
            scores: Tensor
            scores, named, calls = context.run_state.score(some)
            parts.update(named)
            return scores

        scores = of_finished(experience, judge)
        done = finished_rows(experience).nonzero()[:, 0]
        if len(done) < len(experience):
            unknown = torch.full((len(experience),), torch.nan)
            parts = {name: unknown.index_put((done,), values) for name, values in parts.items()}
        return assign_reward(experience, scores, parts, calls, context)


@dataclass(frozen=True, kw_only=True)
class ReferenceLogprob(Part):
    """Measure the log-probability of every action under the frozen starting policy."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"ref_logprob"})
    models: ClassVar[frozenset[str]] = frozenset({"reference"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `ref_logprob` [B, T]; 0 in greedy baselines."""
        return experience.with_fields(ref_logprob=context.run_state.reference_logprob(experience))


@dataclass(frozen=True, kw_only=True)
class TokenKLPenalty(Part):
    """Pay for leaving the reference token by token: r_t -= kl_coef * (logprob - ref_logprob), not differentiated."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    slot: ClassVar[str] = "kl-in-reward"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "behaviour_logprob", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward"})
    # a token of an unfinished response pays as it comes; the KL of a sequence is of whole ones
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="left out"
    )

    kl_coef: float = hyperparameter(0.02, "weight of the reference KL in the reward; 0 is off", low=0)
    kl_target: float | None = hyperparameter(
        None, "adapt kl_coef towards this KL per sequence, nats; none keeps it fixed", above=0
    )
    kl_horizon: float = hyperparameter(10_000, "episodes over which kl_coef adapts", above=0)

    def required(self) -> frozenset[str]:
        """The reference is needed only where the penalty is on."""
        return self.needs | ({"ref_logprob"} if self.kl_coef else set())

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Return the experience with the penalty taken off `reward` [B, T]."""
        if not self.kl_coef:
            return experience
        # greedy baselines say nothing of an expectation and are not measured
        counted = experience["mask"] & sampled_rows(experience)[:, None]
        estimate = kl_estimate(experience["behaviour_logprob"], experience["ref_logprob"], "k1")
        log_ratio = torch.where(counted, estimate, 0.0)
        memory = context.memory(self.name)
        coefficient = memory.get("kl_coef", self.kl_coef)
        if self.kl_target is not None:
            whole = log_ratio[scored_rows(experience)]
            if len(whole):
                moved = float(whole.sum(1).mean())
                memory["kl_coef"] = adapted_coefficient(coefficient, moved, self.kl_target, len(whole), self.kl_horizon)
            context.log(kl_coef=memory.get("kl_coef", coefficient))
        return experience.with_fields(reward=experience["reward"] - coefficient * log_ratio)


@dataclass(frozen=True, kw_only=True)
class TrajectoryKLPenalty(Part):
    """Charge a response once for leaving the reference: kl_coef times its summed log-ratio, not differentiated."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "kl-in-reward"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "behaviour_logprob", "mask", "greedy"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "kl_charge"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "kl_charge": Field("[B]", "float32", "reward", "what leaving the reference costs the whole response"),
    }
    special_rows: ClassVar[SpecialRows | None] = LEFT_OUT

    kl_coef: float = hyperparameter(0.05, "beta: weight of the reference KL in the reward; 0 is off", low=0)

    def required(self) -> frozenset[str]:
        """The reference is needed only where the penalty is on."""
        return self.needs | ({"ref_logprob"} if self.kl_coef else set())

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `kl_charge` [B], and take it off the last `reward` [B, T]; what goes on is charged when it is whole."""
        mask = experience["mask"]
        charge = torch.zeros(len(experience), dtype=experience["reward"].dtype)
        if self.kl_coef:
            log_ratio = experience["behaviour_logprob"] - experience["ref_logprob"]
            counted = mask & scored_rows(experience)[:, None]
            charge = self.kl_coef * torch.where(counted, log_ratio, 0.0).sum(1)
        return experience.with_fields(kl_charge=charge, reward=experience["reward"] - at_last_step(charge, mask))


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty(Part):
    """Lower the score of responses that come near the length limit (DAPO, arXiv:2503.14476, equation 13)."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "score", "mask", "present", "length_limit"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "score"})
    special_rows: ClassVar[SpecialRows | None] = PAID_AT_THE_END

    overlong_cache: int = hyperparameter(12, "tokens before the limit in which the penalty grows to 1", low=1)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Return the experience with the penalty added to `score` [B] and to the last `reward`."""
        length = experience["present"].sum(1).float()
        penalty = overlong_penalty(length, experience["length_limit"].float(), self.overlong_cache)
        penalty = torch.where(finished_rows(experience), penalty, 0.0)
        return experience.with_fields(
            score=experience["score"] + penalty,
            reward=experience["reward"] + at_last_step(penalty, experience["mask"]),
        )


KLEstimator = Literal["k1", "k2", "k3"]
