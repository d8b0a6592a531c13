"""D3S: train on the responses whose advantages vary most, and in them on the tokens that are uncertain and matter.

Advantages come from whole groups and are never computed anew after the selection. It starts with few responses and
tokens and relaxes linearly over the budget.

The paper's text leaves open the shares, what a loss is divided by, and responses of zero advantage. Here: shares of 25
to 75% and 20 to 60%; the mean over kept tokens; zero advantages enter only where too few others are left. Where
advantages differ between the tokens of a response, as with a critic, the response counts with their mean and each token
with its own. The critic then trains on the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import SpecialRows
from polyrl.errors import UserError
from polyrl.methods.language.grpo import GroupAdvantage
from polyrl.parts.collect import SampleResponses
from polyrl.parts.credit import total_reward
from polyrl.parts.improve import ClippedSurrogate
from polyrl.parts.optimize import Optimize
from polyrl.parts.score import TaskReward
from polyrl.parts.select import log_selected, order_of
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

SLUG = "d3s"
TITLE = "Dynamic Dual-Level Down-Sampling"
PAPER = "arXiv:2509.22115"
YEAR = 2025
FORMULA = "rollouts: argmax of Var(A) over subsets of N; tokens: the top K by |A| x entropy; N and K grow linearly"


def scheduled(start: float, end: float, progress: float) -> float:
    """(1 - p) start + p end."""
    progress = min(max(progress, 0.0), 1.0)
    return (1 - progress) * start + progress * end


def most_varied(x: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """The `count` of the numbers `x` `[S]` with the largest population variance, `[count]` indices.

    The best subset is the k smallest and the count - k largest for some k: prefix sums give the variance of each k.
    Which of equal numbers are taken is drawn.
    """
    order = order_of(x, generator)
    sums = torch.zeros(2, len(x) + 1, dtype=torch.float64)
    centred = x[order].double() - x.double().mean()  # shifts change no variance, and large ones would cost digits
    sums[:, 1:] = torch.stack([centred, centred.square()]).cumsum(1)
    low = torch.arange(count + 1)
    first, second = sums[:, low] + sums[:, -1:] - sums[:, len(x) - count + low]
    best = int((second / count - (first / count).square()).argmax())
    return torch.cat([order[:best], order[len(x) - count + best :]])


def top_share(key: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """True at the largest `share` of the keys `[n]`, rounded, at least one; which of equal ones is drawn."""
    kept = torch.zeros(len(key), dtype=torch.bool)
    kept[order_of(key, generator, descending=True)[: max(1, round(share * len(key)))]] = True
    return kept


@dataclass(frozen=True, kw_only=True)
class VariedRollouts(Part):
    """Train only on the subset of responses whose advantages have the largest variance."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "reward", "group", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    # the window of an unfinished response has advantages and trains, so it is chosen or left out like any other
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )

    rollouts_start: float = hyperparameter(0.25, "share of the responses that train at first", above=0, high=1)
    rollouts_end: float = hyperparameter(0.75, "the same at the end of the budget", above=0, high=1)
    within: Literal["batch", "group"] = hyperparameter("batch", "one subset of the batch, or one of each group (D1S)")
    of: Literal["advantage", "reward"] = hyperparameter("advantage", "what varies; reward within the group is PODS")
    rule: Literal["variance", "random"] = hyperparameter("variance", "how the subset is chosen; random is the control")

    def check_within(self, recipe: Recipe) -> None:
        """What an unfinished response will earn is not known."""
        if self.of == "reward" and recipe.collect and "finished" in recipe.collect.gives:
            raise UserError(
                f"{recipe.name}: '{self.name}' chooses by reward, but '{recipe.collect.name}' brings unfinished "
                "responses, which have none; set --of advantage, or sample whole responses."
            )

    def follows_budget(self) -> tuple[str, ...]:
        """The share of responses, where it changes."""
        return ("rollouts_end",) if self.rollouts_start != self.rollouts_end else ()

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 in the other responses."""
        weight, draws = experience["weight"], context.generator("varied-rollouts")
        counted = weight != 0
        rows = counted.any(1).nonzero()[:, 0]
        if self.of == "advantage":
            value = torch.where(counted, experience["advantage"], 0.0).sum(1) / counted.sum(1).clamp(min=1)
        else:
            value = total_reward(experience)
        share = scheduled(self.rollouts_start, self.rollouts_end, context.schedule_progress)
        group = experience["group"][rows] if self.within == "group" else torch.zeros_like(rows)
        kept = torch.zeros(len(weight), dtype=torch.bool)
        for g in torch.unique(group).tolist():
            some = rows[group == g]
            count = max(1, round(share * len(some)))
            if self.rule == "variance":
                chosen = most_varied(value[some], count, draws)
            else:
                chosen = torch.randperm(len(some), generator=draws)[:count]
            kept[some[chosen]] = True
        weight = weight * kept[:, None]
        if len(rows):
            useful = ((experience["advantage"] != 0) & counted).any(1)
            context.log(d3s__rollouts=kept.sum(), d3s__useful=useful[kept].float().mean())
        log_selected(weight, context)
        return experience.with_fields(weight=weight)


@dataclass(frozen=True, kw_only=True)
class TellingTokens(Part):
    """Train only on the tokens with the largest |advantage| x entropy, ranked over all responses that count."""

    stage: ClassVar[Stage] = "select"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "weight"})
    gives: ClassVar[frozenset[str]] = frozenset({"weight"})
    special_rows: ClassVar[SpecialRows | None] = VariedRollouts.special_rows

    tokens_start: float = hyperparameter(0.2, "share of the tokens that train at first", above=0, high=1)
    tokens_end: float = hyperparameter(0.6, "the same at the end of the budget", above=0, high=1)
    token_rule: Literal["entropy", "random"] = hyperparameter("entropy", "how tokens are chosen; random is the control")

    def required(self) -> frozenset[str]:
        """The entropy is needed only where it decides."""
        decides = self.token_rule == "entropy" and min(self.tokens_start, self.tokens_end) < 1
        return self.needs | ({"entropy_at_collection"} if decides else set())

    def check_within(self, recipe: Recipe) -> None:
        """Tokens are chosen among the responses that are: the order matters."""
        names = [p.name for p in recipe.select]
        if "varied-rollouts" in names[names.index(self.name) :]:
            raise UserError(f"{recipe.name}: put 'varied-rollouts' before '{self.name}'; tokens are chosen last.")

    def follows_budget(self) -> tuple[str, ...]:
        """The share of tokens, where it changes."""
        return ("tokens_end",) if self.tokens_start != self.tokens_end else ()

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Set `weight` [B, T] to 0 at the other tokens."""
        weight, draws = experience["weight"].clone(), context.generator("telling-tokens")
        where = weight != 0
        share = scheduled(self.tokens_start, self.tokens_end, context.schedule_progress)
        if share < 1 and bool(where.any()):
            key = torch.zeros(int(where.sum()))
            if self.token_rule == "entropy":
                key = experience["advantage"][where].abs() * experience["entropy_at_collection"][where]
            weight[where] *= top_share(key, share, draws)
        log_selected(weight, context)
        return experience.with_fields(weight=weight)


def recipe() -> Recipe:
    """D3S on GRPO: the mean over kept tokens, so that the gradient's scale does not change with their number."""
    return Recipe(
        name=SLUG,
        collect=SampleResponses(prompts_per_step=16, completions_per_prompt=8),
        score=(TaskReward(),),
        credit=(GroupAdvantage(),),
        select=(VariedRollouts(), TellingTokens()),
        terms=(ClippedSurrogate(clip_range=0.2, aggregation="token-mean"),),
        optimize=Optimize(epochs=1, minibatches=1),
        adds=("varied-rollouts", "telling-tokens"),
        notes={
            "credit": "advantages from whole groups, before anything is left out",
            "select": "the responses with the largest variance of advantages over the batch, and in them the tokens "
            "with the largest |advantage| x entropy; fewer at first, more later",
            "improve": "GRPO's clipped surrogate, averaged over the tokens that are left",
        },
    )
