"""Stage 3, credit: advantages, targets, values. Pure `[B, T]` functions serve tokens and environment steps alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import ALONE, SpecialRows, sampled_steps
from polyrl.errors import UserError
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter

# ---------------------------------------------------------------------------------------------- pure functions


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` [...] over the true entries of `mask`, of equal shape; 0 if there are none."""
    return torch.where(mask, x, torch.zeros_like(x)).sum() / mask.sum().clamp(min=1)


def masked_std(x: Tensor, mask: Tensor, correction: int = 0) -> Tensor:
    """Standard deviation of `x` [...] over the true entries of `mask` [...]; 1 in `correction` is the sample's."""
    variance = masked_mean((x - masked_mean(x, mask)).square(), mask)
    if correction:
        variance = variance * mask.sum() / (mask.sum() - correction).clamp(min=1)
    return variance.sqrt()


def whiten(
    x: Tensor, mask: Tensor | None = None, *, shift: bool = True, epsilon: float = 1e-8, correction: int = 0
) -> Tensor:
    """Scale to unit variance over the counted steps, `[B, T]`; `shift=False` puts the mean back, as for rewards.

    The variance is the population's over all counted steps of the batch, not per sequence (with `correction=1` the
    sample's). Without `mask` all count.
    """
    if mask is None:
        mean = x.mean()
        centred = x - mean
        white = centred / (centred.square().mean().sqrt() + epsilon)
        return white if shift else white + mean
    mean = masked_mean(x, mask)
    white = (x - mean) / (masked_std(x, mask, correction) + epsilon)
    return torch.where(mask, white if shift else white + mean, torch.zeros_like(x))


def gae(
    reward: Tensor,
    value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    final_value: Tensor | None = None,
) -> Tensor:
    """Generalized advantage estimation (arXiv:1506.02438, equation 16), all arguments and the result `[B, T]`.

    delta_t = r_t + gamma * V(s_{t+1}) * (1 - terminated_t) - V(s_t)
    A_t     = delta_t + gamma * lambda * (1 - terminated_t) * (1 - truncated_t) * A_{t+1}

    A truncated step takes V(s_{t+1}) from `final_value`, the value of the state that the time limit cut off, and the
    sum still stops there. Steps outside `mask` (padding, tool returns, dead rows of an auto-reset) are passed over: the
    state before the next counted step follows the one before.
    """
    # a sum that runs backwards over a handful of numbers: plain floats are faster than tensors, and exact in double
    rows = zip(*(x.tolist() for x in (reward, value, terminated, truncated, mask)), strict=True)
    finals = None if final_value is None else final_value.tolist()
    result = []
    for i, (rewards, values, ends, cuts, counted) in enumerate(rows):
        advantage = next_value = 0.0
        row = [0.0] * len(rewards)
        for t in range(len(row) - 1, -1, -1):
            if not counted[t]:
                continue
            follows = next_value
            if cuts[t]:
                advantage = 0.0
                if finals is not None:
                    follows = finals[i][t]
            if ends[t]:
                advantage = follows = 0.0
            next_value = values[t]
            advantage = rewards[t] + gamma * follows - next_value + gamma * gae_lambda * advantage
            row[t] = advantage
        result.append(row)
    return torch.tensor(result, dtype=reward.dtype, device=reward.device).reshape(reward.shape)


def return_to_go(reward: Tensor, mask: Tensor, gamma: float = 1.0, ends: Tensor | None = None) -> Tensor:
    """Discounted sum of this and all later rewards of the row, `[B, T]`; steps outside `mask` do not discount.

    Nothing behind a step of `ends` `[B, T]` bool belongs to it or to a step before it.
    """
    result = []
    cuts = torch.zeros_like(mask) if ends is None else ends
    for rewards, counted, last in zip(reward.tolist(), mask.tolist(), cuts.tolist(), strict=True):
        total, row = 0.0, [0.0] * len(rewards)
        for t in range(len(row) - 1, -1, -1):
            if last[t]:
                total = 0.0
            if counted[t]:
                row[t] = total = rewards[t] + gamma * total
        result.append(row)
    return torch.tensor(result, dtype=reward.dtype, device=reward.device).reshape(reward.shape)


def group_statistics(
    x: Tensor, group: Tensor, *, counted: Tensor | None = None, correction: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and size of each row's group: `x` `[B]` float, `group` `[B]` int64 -> three `[B]`.

    Groups may differ in size and lie anywhere in the batch. `correction=1` is the sample standard deviation; a group of
    one has standard deviation 0. Rows outside `counted` `[B]` bool (greedy ones) get numbers but do not enter them.
    """
    _, index = torch.unique(group, return_inverse=True)
    enters = torch.ones_like(group, dtype=torch.bool) if counted is None else counted
    entering, own = x[enters], index[enters]
    empty = torch.zeros(int(index.max()) + 1, dtype=x.dtype, device=x.device)
    size = empty.index_add(0, own, torch.ones_like(entering))
    mean = empty.index_add(0, own, entering) / size.clamp(min=1)
    # where all are equal, the rounding of the mean must not look like a spread
    low, high = (empty.scatter_reduce(0, own, entering, how, include_self=False) for how in ("amin", "amax"))
    mean = torch.where(low == high, low, mean)
    squares = empty.index_add(0, own, (entering - mean[own]).square())
    std = (squares / (size - correction).clamp(min=1)).sqrt()
    return mean[index], std[index], size[index]


def total_reward(experience: Experience) -> Tensor:
    """Reward of each response, `[B]`: with any penalty that the score stage put in, and of the policy's steps alone."""
    reward = experience["reward"]
    return torch.where(experience["mask"], reward, torch.zeros((), dtype=reward.dtype)).sum(1)


def at_every_step(x: Tensor, counted: Tensor, mask: Tensor) -> Tensor:
    """A number of each row, `[B]`, at all steps of the `counted` [B] rows' `mask` [B, T], and 0 elsewhere: `[B, T]`."""
    return torch.where(counted, x, torch.zeros((), dtype=x.dtype))[:, None] * mask


def check_groups(part: Part, recipe: Recipe) -> None:
    """Refuse a part that judges answers against their siblings where no answer has any.

    Raises:
        UserError: the recipe collects one response a prompt.
    """
    if recipe.collected_by("completions_per_prompt", 2) < 2:
        raise UserError(
            f"{recipe.name}: part '{part.name}' judges answers against others to the same prompt, but only one is "
            "sampled; set --completions-per-prompt 4 (and --prompts-per-step to match)."
        )


def log_group_metrics(context: Context, score: Tensor, group: Tensor, counted: Tensor) -> None:
    """Log the share of responses in groups whose scores are all equal: they carry no gradient."""
    std = group_statistics(score, group, counted=counted)[1]
    if bool(counted.any()):
        context.log(frac_reward_zero_std=(std[counted] == 0).float().mean())


def value_after(experience: Experience, context: Context) -> Tensor:
    """The critic's value `[B]` of the state after each response's last token."""
    wide = {name: torch.nn.functional.pad(experience[name], (0, 1)) for name in ("action", "mask", "present")}
    length = experience["present"].sum(1, keepdim=True)
    wide["present"] = torch.arange(wide["present"].shape[1]) <= length  # one token more, which is not looked at
    longer: Tensor = context.run_state.value(experience.with_fields(**wide))
    return longer.gather(1, length)[:, 0]


# ------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True, kw_only=True)
class Values(Part):
    """Measure the critic's value of the state before every step, with the critic as it was at collection."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    measures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"action", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"value"})
    models: ClassVar[frozenset[str]] = frozenset({"critic"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `value` [B, T], and `final_value` [B, T] where episodes are cut off before their end."""
        experience = experience.with_fields(value=context.run_state.value(experience))
        if "final_observation" not in experience:
            return experience
        return experience.with_fields(final_value=context.run_state.final_value(experience))


@dataclass(frozen=True, kw_only=True)
class GAE(Part):
    """Generalized advantage estimation with the critic's values (arXiv:1506.02438)."""

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "value", "terminated", "truncated", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage", "value_target"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    gamma: float = hyperparameter(1.0, "discount of later rewards, per step", low=0, high=1)
    gae_lambda: float = hyperparameter(0.95, "0 trusts the critic, 1 trusts the sampled return", low=0, high=1)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` and the critic's `value_target` = advantage + value, both [B, T]."""
        advantage = gae(
            experience["reward"],
            experience["value"],
            experience["terminated"],
            experience["truncated"],
            experience["mask"],
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            final_value=experience["final_value"] if "final_value" in experience else None,  # noqa: SIM401
        )
        value, mask = experience["value"], experience["mask"]
        counted = sampled_steps(experience)
        if bool(counted.any()):
            values, errors = value[counted], advantage[counted]  # the target is the value plus the advantage
            context.log(value__mean=values.mean(), value__error=errors.square().mean().sqrt())
            spread = (values + errors).var(correction=0)
            if float(spread) > 0:
                context.log(value__explained_variance=1 - errors.var(correction=0) / spread)
        target = advantage + value * mask
        return experience.with_fields(advantage=advantage, value_target=target)


@dataclass(frozen=True, kw_only=True)
class PlainReturn(Part):
    """Judge every step by the reward from it on to its episode's end, with no baseline: REINFORCE as first written.

    Where an episode is cut, by a time limit or because the rollout ends, what would have followed counts as 0.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "episode"
    slot: ClassVar[str] = "advantage"
    needs: ClassVar[frozenset[str]] = frozenset({"reward", "mask", "terminated", "truncated"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = ALONE

    gamma: float = hyperparameter(1.0, "discount of later rewards, per step", low=0, high=1)

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `advantage` [B, T]."""
        ends = experience["terminated"] | experience["truncated"]
        to_go = return_to_go(experience["reward"], experience["mask"], self.gamma, ends)
        return experience.with_fields(advantage=to_go)


@dataclass(frozen=True, kw_only=True)
class WhitenAdvantage(Part):
    """Scale advantages to mean 0 and variance 1 over all steps of the batch that the policy sampled and may learn from.

    Of an unfinished response the tokens of its window are such steps; greedy baselines have none.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"advantage", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"advantage"})
    special_rows: ClassVar[SpecialRows | None] = SpecialRows(
        unfinished="counted", greedy="left out", masked="left out", unpaid="left out"
    )

    whiten_unbiased: bool = hyperparameter(
        False, "divide by the sample's standard deviation (n - 1), not the population's"
    )
    whiten_centre: bool = hyperparameter(
        True, "take the mean off; otherwise what is 0 stays 0 and only the scale changes"
    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Replace `advantage` [B, T], 0 at steps that do not count; value targets stay as they are."""
        advantage, mask = experience["advantage"], sampled_steps(experience)
        correction = int(self.whiten_unbiased)
        if self.whiten_centre:
            white = whiten(advantage, mask, correction=correction)
        else:
            white = torch.where(mask, advantage, 0.0) / (masked_std(advantage, mask, correction) + 1e-8)
        return experience.with_fields(advantage=white)
