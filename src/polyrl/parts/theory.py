"""Parts of exact and tabular methods: answers of a preference game, episodes of a robust MDP, robust backups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.fields import Field
from polyrl.core.part import kebab
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import OwnUpdate, flat
from polyrl.errors import Diverged, NotFinite, UserError
from polyrl.models.tables import ActionValueTable, RidgeRegressions
from polyrl.recipe import Part, Recipe, Scope, Stage, hyperparameter
from polyrl.tasks.theory.games import win_rates
from polyrl.tasks.theory.mdp import RobustMDP, regularized_value, soft_policy
from polyrl.tasks.theory.uncertainty import Uncertainty

# ---------------------------------------------------------------------------------------------- pure functions


def check_finite(part: Part, context: Context, **tables: Tensor) -> None:
    """Stop the run where a table that is about to act is not finite.

    Raises:
        NotFinite: names the part and the table.
    """
    for name, table in tables.items():
        if not bool(torch.isfinite(table).all()):
            raise NotFinite(
                f"The {name} of part '{part.name}' became NaN or infinite in iteration {context.iteration}, so the run "
                "stopped before it acted; look at the part's hyperparameters with `polyrl show`."
            )


def check_plays(part: Part, context: Context, **policies: Tensor) -> None:
    """Stop the run where a policy that is about to be played is not finite; what was saved before is a better one.

    Raises:
        Diverged: names the policy and the part that was to play it.
    """
    for name, policy in policies.items():
        if not bool(torch.isfinite(policy).all()):
            raise Diverged(
                f"The {name} that part '{part.name}' was to play in iteration {context.iteration} is NaN or infinite, "
                "so the run stopped; lower the step size, or go on from an older checkpoint."
            )


def mirror_policy(
    q: Tensor, previous: Tensor, log_reference: Tensor, eta: float, alpha: float | None
) -> tuple[Tensor, Tensor]:
    """One regularized mirror step: pi ~ previous^(1/(1+alpha eta)) ref^(alpha eta/(1+alpha eta)) exp(alpha Q/(1+...)).

    Args:
        q: `[..., A]`.
        previous: probabilities `[..., A]` of the policy that is moved.
        log_reference: `[..., A]`, broadcast.
        eta: temperature of the regularization.
        alpha: step size; None is infinite, which is `soft_policy`.

    Returns:
        Probabilities `[..., A]`, and <pi, q> - eta KL(pi || ref) `[...]`.
    """
    if alpha is None:
        return soft_policy(q, log_reference, eta)
    policy = torch.softmax((previous.log() + alpha * (eta * log_reference + q)) / (1 + alpha * eta), -1)
    return policy, regularized_value(policy, q, log_reference, eta)


# --------------------------------------------------------------------------------------------- preference games


@dataclass(frozen=True, kw_only=True)
class EnumerateAnswers(Part):
    """Take every answer of the game once; the opponent is the present policy itself."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "theory"
    solves: ClassVar[str] = "game"
    gives: ClassVar[frozenset[str]] = frozenset({"action", "mask", "present", "behaviour_logprob", "opponent_logprob"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "opponent_logprob": Field(
            "[B, T]", "float64", "nats", "log-probability of the action under the opponent (theory)"
        ),
    }

    def opponent(self, context: Context) -> Tensor:
        """Log-probabilities `[n]` of whom the answers are compared with."""
        policy: Tensor = context.run_state.log_policy
        return policy

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return `n` rows of one step: an expectation over the policy is then a weighted sum, not an estimate."""
        policy, opponent = context.run_state.log_policy[:, None], self.opponent(context)[:, None]
        check_plays(self, context, policy=policy, opponent=opponent)
        there = torch.ones_like(policy, dtype=torch.bool)
        context.spent.samples += 1
        return Experience(
            {
                "action": torch.arange(len(policy))[:, None],
                "mask": there,
                "present": there,
                "behaviour_logprob": policy,
                "opponent_logprob": opponent,
            }
        )


@dataclass(frozen=True, kw_only=True)
class ExactWinRates(Part):
    """Score every answer by its win rate against the opponent: the product P q, one query of the oracle."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    solves: ClassVar[str] = "game"
    access: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[str]] = frozenset({"action", "opponent_logprob"})
    gives: ClassVar[frozenset[str]] = frozenset({"score"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `score` [n], win rates in [0, 1]."""
        score = win_rates(context.run_state.task.preference, experience["opponent_logprob"][:, 0])
        context.spent.reward_calls += 1
        context.log(best_win_rate=score.max())
        return experience.with_fields(score=score)


# ------------------------------------------------------------------------------------------------- robust MDPs


@dataclass(frozen=True, kw_only=True)
class RollEpisode(Part):
    """Act for one episode in the nominal dynamics with the present policy."""

    stage: ClassVar[Stage] = "collect"
    domain: ClassVar[str] = "theory"
    solves: ClassVar[str] = "mdp"
    gives: ClassVar[frozenset[str]] = frozenset(
        {"state", "action", "next_state", "mask", "present", "behaviour_logprob"}
    )

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        """Return one row of `H` steps."""
        run_state = context.run_state
        check_plays(self, context, policy=run_state.policy)
        state, action, next_state = run_state.roll(context.generator("collect"))
        live = torch.tensor([s not in run_state.task.ends for s in state.tolist()])
        context.spent.samples += 1
        context.spent.steps += int(live.sum())
        steps = torch.arange(len(state))
        return Experience(
            {
                "state": state[None],
                "action": action[None],
                "next_state": next_state[None],
                "mask": live[None],
                "present": live[None],
                "behaviour_logprob": run_state.policy[steps, state, action].log()[None],
            }
        )


@dataclass(frozen=True, kw_only=True)
class KnownReward(Part):
    """Read the reward of every step from the MDP's own function: it is known to the learner."""

    stage: ClassVar[Stage] = "score"
    scope: ClassVar[Scope] = "batch"
    solves: ClassVar[str] = "mdp"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"reward", "score"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Add `reward` [B, H] and its sum `score` [B]."""
        steps = torch.arange(experience["state"].shape[1])
        reward = context.run_state.task.reward[steps, experience["state"], experience["action"]]
        context.log(reward=reward.sum(1).mean())
        return experience.with_fields(reward=reward, score=reward.sum(1))


@dataclass(frozen=True, kw_only=True)
class RobustBackup(Part):
    """Back values up from the last step: ridge regressions, each factor at its worst, and a bonus for what is unknown.

    DR-LSVI-UCB (arXiv:2403.09621, Algorithm 1), for d-rectangular sets around features that are probabilities. The
    value of a factor is a regression of the next step's value, moved by the adversary; with finitely many states all
    of them are functions of `Lambda_h^-1 B_h`, the estimated factors. The values are those of the policy that the
    improve stage is about to install (`eta`, `alpha`), because step h needs the improved step h + 1.
    """

    stage: ClassVar[Stage] = "credit"
    scope: ClassVar[Scope] = "batch"
    solves: ClassVar[str] = "mdp"
    needs: ClassVar[frozenset[str]] = frozenset({"state", "action", "next_state", "mask"})
    gives: ClassVar[frozenset[str]] = frozenset({"action_value", "value", "bonus"})
    own_fields: ClassVar[Mapping[str, Field]] = {
        "bonus": Field("[B, T]", "float64", "reward", "what the value was raised by because little is known (theory)"),
    }
    models: ClassVar[frozenset[str]] = frozenset({"q", "regressions"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    beta: float = hyperparameter(
        1.0, "scale of the bonus; at least sqrt(ridge) times the largest return, or luck decides", low=0
    )
    bonus_form: Literal["sum", "norm"] = hyperparameter(
        "sum", "sum_i phi_i sqrt(L^-1_ii) of the analysis, or the smaller sqrt(sum_i phi_i^2 L^-1_ii) of public code"
    )
    divergence: Literal["task", "tv", "kl", "chi2"] = hyperparameter(
        "task", "divergence of the set that is planned for"
    )
    constraint: Literal["task", "radius", "penalty"] = hyperparameter(
        "task", "whether the adversary has a radius or pays"
    )
    rho: float | None = hyperparameter(
        None, "radius that is planned for, 0 is not robust; none takes the task's", low=0
    )
    lam: float | None = hyperparameter(
        None, "price of the adversary that is planned for; none takes the task's", above=0
    )
    kl_unseen: Literal["highest", "lowest"] = hyperparameter(
        "highest", "what ridge shrinkage gives a factor without data under KL: optimism, or the value 0"
    )
    kl_floor: float = hyperparameter(
        0.05, "least dual variable of the KL radius: below, signed estimates make no sense", above=0
    )
    eta: float | None = hyperparameter(None, "temperature of the policy's regularization; none takes the task's", low=0)
    alpha: float | None = hyperparameter(
        None, "step of the mirror form; none is the closed form, an infinite step", above=0
    )

    def objective(self, task: RobustMDP) -> tuple[Uncertainty, float]:
        """The adversary and the temperature that are planned for."""
        divergence = task.divergence if self.divergence == "task" else self.divergence
        constraint = task.constraint if self.constraint == "task" else self.constraint
        rho, lam = (task.rho if self.rho is None else self.rho), (task.lam if self.lam is None else self.lam)
        level = rho if constraint == "radius" else lam
        return Uncertainty(divergence, constraint, level), task.eta if self.eta is None else self.eta

    def caution(self, task: RobustMDP, recipe: Recipe) -> str:
        """What is wrong with the bonus on this task; empty if it is large enough to be optimistic."""
        regressions = recipe.models["regressions"]
        assert isinstance(regressions, RidgeRegressions)
        ridge, most = regressions.ridge, float(task.highest.max())
        needed = most * math.sqrt(ridge)
        if self.beta >= needed * (1 - 1e-9):
            return ""
        return (
            f"beta={self.beta:g} caps the bonus of what was never seen at {self.beta / math.sqrt(ridge):.3g}, but "
            f"returns reach {most:.3g}: actions may never be tried. Set --beta {math.ceil(100 * needed) / 100:g}."
        )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse a recipe without its tables, or one that installs another policy than that which is valued."""
        for name, kind in (("q", ActionValueTable), ("regressions", RidgeRegressions)):
            if not isinstance(recipe.models.get(name), kind):
                raise UserError(
                    f"{recipe.name}: '{self.name}' needs a {kebab(kind.__name__)} among the models, '{name}'."
                )
        for step in flat(recipe.updates):
            for name in ("eta", "alpha") if isinstance(step, OwnUpdate) and step.trains == recipe.acts else ():
                mine = getattr(self, name)
                theirs = step.setting(name, mine)
                if mine != theirs:
                    raise UserError(
                        f"{recipe.name}: {name} is {mine} in '{self.name}' but {theirs} in '{step.name}'; the "
                        f"values would be of another policy, so set --{name} for both."
                    )

    def __call__(self, experience: Experience, context: Context) -> Experience:
        """Take the episode into the regressions; add `action_value`, `value` and `bonus` [B, H]; keep the table `q`."""
        run_state = context.run_state
        task: RobustMDP = run_state.task
        precision, moments = self._learn(experience, context)
        uncertainty, eta = self.objective(task)
        inverse = torch.linalg.inv(precision)
        factors = inverse @ moments  # [H, d, S]: zhat(g) = factors @ g for any g
        bonus = self.beta * self._widths(task.features, inverse)  # [H, S, A]
        q = torch.zeros_like(bonus)
        value = torch.zeros(task.horizon + 1, len(task.states), dtype=q.dtype)
        for h in range(task.horizon - 1, -1, -1):
            worst = self._worst(task, h, factors[h], value[h + 1], uncertainty)
            q[h] = (task.reward[h] + task.features @ worst + bonus[h]).clamp(0, float(task.highest[h]))
            q[h, task.ends] = 0
            _, value[h] = mirror_policy(q[h], run_state.policy[h], task.log_reference, eta, self.alpha)
        check_finite(self, context, values=q)
        run_state.models["q"].assign(q)
        at = (torch.arange(task.horizon), experience["state"], experience["action"])
        context.log(bonus=bonus[at][experience["mask"]].mean(), optimistic_value=value[0, 0])
        return experience.with_fields(action_value=q[at], value=value[at[:2]], bonus=bonus[at])

    def _learn(self, experience: Experience, context: Context) -> tuple[Tensor, Tensor]:
        """Add the transitions to Lambda_h `[H, d, d]` and to sum phi 1[s'] `[H, d, S]`."""
        run_state = context.run_state
        task: RobustMDP = run_state.task
        context.params_updated = True  # from here on the iteration cannot be undone
        regressions = run_state.models["regressions"]
        for state, action, following in zip(
            experience["state"], experience["action"], experience["next_state"], strict=True
        ):
            regressions.add(task.features[state, action], following)
        return regressions.precision, regressions.moments

    def _widths(self, features: Tensor, inverse: Tensor) -> Tensor:
        """Uncertainty `[H, S, A]` of the regressions at every state and action, before `beta`."""
        diagonal = inverse.diagonal(dim1=1, dim2=2)  # [H, d]
        if self.bonus_form == "sum":
            return torch.einsum("sad,hd->hsa", features, diagonal.sqrt())
        return torch.einsum("sad,hd->hsa", features.square(), diagonal).sqrt()

    def _worst(self, task: RobustMDP, step: int, factors: Tensor, value: Tensor, uncertainty: Uncertainty) -> Tensor:
        """nu_h `[d]`: each factor's estimated value, at its worst where the adversary may move it."""
        nominal = factors @ value
        exposed = task.exposed_features[step]
        if uncertainty.none or step == task.horizon - 1 or not bool(exposed.any()):
            return nominal
        highest = float(task.highest[step + 1])
        worst = uncertainty.worst_case(
            factors[exposed], value, highest=highest, floor=self.kl_floor, centred=self.kl_unseen == "lowest"
        )
        return nominal.masked_scatter(exposed, worst)
