"""T-PPO: every response goes on by a window of tokens an iteration, and learns at once from what it has said.

Nobody waits for the longest response, so the accelerator never idles for stragglers. The policy learns from the tokens
of this window, with a GAE that ends where the response does for now (EGAE); the critic learns from responses that
finished, all their tokens, towards what they really earned (Monte Carlo).

The abstract is clear and the paper's details were read second-hand, so three choices are stated: V of the state after
the last token is that of the state before it (the paper; `egae_tail="bootstrap"` asks the critic); "filtered tokens"
are those of earlier windows, for the policy, and of unfinished responses, for the critic; no token of a window is held
back (`tail_holdback`). The critic is trained alone first, which the paper does not mention: while it knows nothing,
unfinished windows teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import ALONE, SpecialRows, sampled_rows, sampled_steps, scored_rows
from polyrl.parts.credit import WhitenAdvantage, gae, return_to_go, value_after
from polyrl.parts.improve import ClippedSurrogate, ValueLoss
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward, last_step
from polyrl.parts.select import CriticPretraining
from polyrl.parts.windows import WindowedRollouts
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "t-ppo"
TITLE = "Truncated Proximal Policy Optimization"
PAPER = "arXiv:2506.15050"
YEAR = 2025
FORMULA = "V(s_l) := V(s_{l-1}) at the end of an unfinished window of l tokens; GAE stops there"


def egae(
    reward: Tensor,
    value: Tensor,
    finished: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    tail: Tensor | None = None,
) -> Tensor:
    """GAE of responses of which some are unfinished (section 3.2); all `[B, T]` but `finished` [B] bool.

    A finished response has value 0 after its end, an unfinished one the value of the state before its last token:
    delta_{l-1} = r_{l-1} + gamma V(s_{l-1}) - V(s_{l-1}), and the sum stops. `tail` [B] are values to take instead.
    """
    end = last_step(mask)
    terminated, cut = end & finished[:, None], end & ~finished[:, None]
    after = value if tail is None else tail[:, None].expand_as(value)
    return gae(reward, value, terminated, cut, mask, gamma=gamma, gae_lambda=gae_lambda, final_value=after)


@dataclass(frozen=True, kw_only=True)
class EGAE(Part):
    """Generalized advantage estimation that ends where an unfinished response does; Monte Carlo targets."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "value", "finished", "window", "mask", "present"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "value_target"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    gamma: float = hyperparameter(1.0, "discount of later rewards, per step", low=0, high=1)
    gae_lambda: float = hyperparameter(0.95, "0 trusts the critic, 1 trusts the sampled return", low=0, high=1)
    egae_tail: Literal["previous", "bootstrap"] = hyperparameter(
        "previous", "value after the last token: previous takes that before it, bootstrap asks the critic"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` and `value_target` [B, T]; targets of unfinished responses are of no account."""
        reward, value, mask = (experience[name] for name in ("reward", "value", "mask"))
        finished, fresh = experience["finished"], sampled_steps(experience)
        tail = value_after(experience, context) if self.egae_tail == "bootstrap" else None
        advantage = egae(reward, value, finished, mask, gamma=self.gamma, gae_lambda=self.gae_lambda, tail=tail)
        target = return_to_go(reward, mask, self.gamma)
        for name, rows in (("finished", finished), ("unfinished", ~finished)):
            here = advantage[fresh & rows[:, None]]
            if len(here):
                context.metrics[f"advantage/{name}"] = float(here.square().mean().sqrt())
        done = mask & scored_rows(experience)[:, None]
        if bool(done.any()):
            error = (target - value)[done]
            context.log(value__mean=value[done].mean(), value__error=error.square().mean().sqrt())
        return experience.with_fields(advantage=advantage, value_target=target)


@dataclass(frozen=True, kw_only=True)
class WindowSteps(Part):
    """The policy learns from the tokens of this window, the critic from finished responses as a whole."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "episode"
    needs: ClassVar[frozenset[str]] = frozenset({"mask", "window", "finished"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight", "value_weight"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="alone", greedy="left out", masked="left out", unpaid="left out"
    )

    policy_tokens: Literal["window", "all"] = hyperparameter(
        "window", "all trains on earlier windows again, off-policy"
    )
    tail_holdback: int = hyperparameter(0, "last tokens of unfinished windows that are never trained on", low=0)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `weight` and `value_weight` [B, T] in {0, 1}."""
        mask, finished = experience["mask"] & sampled_rows(experience)[:, None], experience["finished"][:, None]
        chosen = mask & experience["window"] if self.policy_tokens == "window" else mask
        behind = mask.flip(1).cumsum(1).flip(1)  # tokens from here to the end
        chosen = chosen & (finished | (behind > self.tail_holdback))
        return experience.with_fields(weight=chosen.float(), value_weight=(mask & finished).float())


def recipe() -> Recipe:
    """T-PPO as described: no reference KL, EGAE, the critic from finished responses and alone at first."""
    return Recipe(
        name=SLUG,
        collect=WindowedRollouts(prompts_per_step=16, completions_per_prompt=4, window=32),
        score=(TaskReward(),),
        credit=(EGAE(gamma=1.0, gae_lambda=0.95), WhitenAdvantage()),
        select=(WindowSteps(), CriticPretraining(critic_pretraining=10)),
        terms=(ClippedSurrogate(clip_range=0.2), ValueLoss(value_coef=0.5)),
        optimize=Optimize(epochs=2, minibatches=2),
        adds=("windowed-rollouts", "egae", "window-steps", "value-loss"),
        notes={
            "collect": "every slot goes on by one window; finished responses are replaced next time",
            "score": "the checker sees finished responses only",
            "credit": "GAE to the end of the window; the critic's targets are what finished responses earned",
            "select": "two masks: this window for the policy, finished responses for the critic",
            "improve": "the clip as in PPO; no finished response, no step of the critic",
        },
    )
