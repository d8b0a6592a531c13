"""UMT-PSR: learn several partially observed problems together, by maximum likelihood over a joint class of models.

What the problems have in common is paid for once. B is the set of joint models whose log-likelihood, summed over the
problems, is within beta of the largest; the pair of B whose sum of total variations, each under the policy that tells
its two models apart the best, is the largest says how to explore: for every h = 0..H - 1 that policy for h steps and
uniform actions from there on. When the sum is N eps at most, every model left is within eps on average, and the run is
finished. Probabilities of actions cancel between models and are left out of the likelihood, and not out of the
distance.

The class is finite, so likelihoods, distances and plans are enumerated, all pairs of B and not a sample of them. The
theorem's body was not read: beta is c log(models K H / delta) here, and the rule by which it stops is derived. A new
problem whose transition was learned before is `shared-pomdps(tasks=1,known_transition=true)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.special_rows import NO_SPECIAL_ROWS, SpecialRows
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy, LayeredProbabilities
from polyrl.models.tables import OfTheory, Tables
from polyrl.parts.finite import PlayEpisodes
from polyrl.recipe import Recipe, hyperparameter
from polyrl.rollout.finite import drawn
from polyrl.runtime.seeding import counted_uniforms
from polyrl.tasks.theory.finite import FiniteTask, thresholds
from polyrl.tasks.theory.shared_pomdps import SharedPOMDPs, best_response

SLUG = "umt-psr"
TITLE = "Provable Benefits of Multi-task RL under Non-Markovian Decision Making Processes"
PAPER = "arXiv:2310.13550"
YEAR = 2023
FORMULA = "explore argmax over B x B of sum_n max_pi TV(theta_n, theta'_n); B = {theta: sum_n log P_n >= max - beta}"
TASK = "shared-pomdps"


class Found(NamedTuple):
    """What the data leave of a joint class.

    Attributes:
        kept: the models of B, `[B, N]`.
        best: that of the largest likelihood, `[N]`.
        pair: the two of B that are the farthest apart, `[2, N]`.
        distance: how far, summed over the problems.
    """

    kept: Tensor
    best: Tensor
    pair: Tensor
    distance: float


def confidence(joint: Tensor, log_likelihood: Tensor, distances: Tensor, beta: float) -> Found:
    """The models within `beta` of the most likely one, and the pair of them that is the farthest apart.

    Args:
        joint: numbers of models for each problem, `[J, N]`.
        log_likelihood: of every model on the data of each problem, `[N, M]`.
        distances: between models, `[M, M]`.
        beta: how much less likely a model of the set may be.
    """
    total = log_likelihood[torch.arange(joint.shape[1]), joint].sum(1)
    kept = joint[total >= total.max() - beta]
    size, far, at = len(kept), -1.0, 0
    for first in range(0, size, 1024):  # a matrix of all pairs may be large
        sums = torch.zeros(len(kept[first : first + 1024]), size, dtype=torch.float64)
        for column in kept.T:
            sums += distances[column[first : first + 1024]][:, column]
        largest = int(sums.argmax())
        if float(sums.flatten()[largest]) > far:
            far, at = float(sums.flatten()[largest]), first * size + largest
    return Found(kept, joint[total.argmax()], kept[[at // size, at % size]], far)


def telling(task: SharedPOMDPs, pair: Tensor) -> Tensor:
    """The policy `[H, S, A]` that in each problem tells the models of a pair `[2, N]` apart the best."""
    one, other = task.likelihoods[pair]
    return task.policy(best_response((one - other).abs() / 2)[1])


class Evidence(Tables):
    """Sums of log p(observations || actions) of every model over the episodes of each problem, `[N, M]`."""

    log_likelihood: Tensor

    def __init__(self, tasks: int, models: int):
        super().__init__()
        self.register_buffer("log_likelihood", torch.zeros(tasks, models, dtype=torch.float64))


def checked(task: FiniteTask) -> SharedPOMDPs:
    """The task.

    Raises:
        UserError: it states no class of models.
    """
    if not isinstance(task, SharedPOMDPs):
        raise UserError(f"{SLUG} learns a model of a joint class, and {task.name} states none; try --task {TASK}.")
    return task


@dataclass(frozen=True, kw_only=True)
class ModelEvidence(OfTheory):
    """Likelihoods without data."""

    solves: ClassVar[str] = "finite"

    def tables(self, task: FiniteTask) -> Evidence:
        """Of all problems and models."""
        return Evidence(checked(task).tasks, len(checked(task).likelihoods))


@dataclass(frozen=True, kw_only=True)
class ExplorationPolicy(FinitePolicy):
    """What the pair that is the farthest apart in the whole class says; it is the same for every problem.

    For every class has, of each two models of one problem, N copies of the one and N copies of the other.
    """

    def tables(self, task: FiniteTask) -> LayeredProbabilities:
        """Probabilities `[H, S, A]`."""
        task = checked(task)
        single = torch.unique(task.joint[:, 0])
        far = task.distances[single][:, single].argmax()
        pair = single[torch.stack([far // len(single), far % len(single)])]
        return LayeredProbabilities(telling(task, pair[:, None].expand(-1, task.tasks)))


@dataclass(frozen=True, kw_only=True)
class ExploreProblems(PlayEpisodes):
    """One episode for each h = 0..H - 1 and problem: h steps of the exploration policy, then uniform actions."""

    episodes: int = hyperparameter(1, "episodes for each h and problem in one iteration", low=1)
    explore: Literal["pair", "uniform"] = hyperparameter(
        "pair", "by what tells two models apart, or with uniform actions throughout"
    )

    def check_within(self, recipe: Recipe) -> None:
        """Refuse episodes that are cut: likelihoods are those of whole sequences."""
        if self.steps is not None:
            raise UserError(f"{SLUG} learns from whole episodes; leave --steps away.")

    def count(self, context: Context) -> int:
        """N H, or as many times that as is asked for."""
        task: SharedPOMDPs = context.run_state.task
        return self.episodes * task.tasks * task.horizon

    def starts(self, rows: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """First observations, in the problems in turn."""
        task: SharedPOMDPs = context.run_state.task
        by_problem = task.mdp.initial.view(task.tasks, -1) * task.tasks
        uniform = counted_uniforms(context.seed, self.stream, "start", rows=rows, times=torch.zeros(1).long())[:, 0, 0]
        problem = rows % task.tasks
        first = drawn(thresholds(by_problem)[problem], uniform)
        return torch.zeros_like(rows), problem * by_problem.shape[1] + first

    def policy(self, rows: Tensor, context: Context) -> Tensor:
        """nu_h of each episode, `[B, H, S, A]`; that of a h is the same for all problems."""
        task: SharedPOMDPs = context.run_state.task
        found: Tensor = task.mdp.uniform.repeat(task.horizon, 1, 1, 1)
        for h in range(1, task.horizon if self.explore == "pair" else 1):
            found[h, :h] = context.run_state.policy[:h]
        return found[rows // task.tasks % task.horizon]


@dataclass(frozen=True)
class NarrowModels(OwnUpdate):
    """Take the episodes into the likelihoods; plan for the most likely models, and what is explored next."""

    solves: ClassVar[str] = "finite"
    needs: ClassVar[frozenset[str]] = frozenset({"state"})
    models: ClassVar[frozenset[str]] = frozenset({"evidence", "exploration"})
    special_rows: ClassVar[SpecialRows | None] = NO_SPECIAL_ROWS

    learners: Literal["joint", "independent"] = hyperparameter(
        "joint", "one set of joint models, or for each problem a set and a pair of its own"
    )
    eps: float = hyperparameter(0.05, "accuracy: mean total variation at which all models left are close", above=0)
    width: float = hyperparameter(1.0, "c of beta = c log(models K H / delta)", low=0)
    delta: float = hyperparameter(0.1, "chance that the truth is excluded, in beta", above=0)
    most_iterations: int = hyperparameter(6000, "K in beta", low=1)

    def beta(self, models: int, horizon: int) -> float:
        """How much less likely than the likeliest a model of the set may be."""
        return self.width * math.log(models * self.most_iterations * horizon / self.delta)

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        """One iteration; once all models left are close to each other, the run is finished."""
        task, evidence = checked(see.context.run_state.task), see["evidence"].log_likelihood
        problem, sequence = task.sequences(batch["state"][:, -1])
        evidence.index_add_(0, problem, task.likelihoods[:, sequence].log().T)
        if self.learners == "joint":
            classes, data = [task.joint], [evidence]
        else:
            classes, data = [torch.unique(of)[:, None] for of in task.joint.T], [*evidence[:, None]]
        found = [
            confidence(of, said, task.distances, self.beta(len(of), task.horizon))
            for of, said in zip(classes, data, strict=True)
        ]
        best = torch.cat([one.best for one in found])
        distance = sum(one.distance for one in found) / task.tasks
        see["exploration"].assign(telling(task, torch.cat([one.pair for one in found], 1)))
        see[self.trains].assign(task.policy(best_response(task.likelihoods[best] * task.returns)[1]))
        if distance <= self.eps:
            see.context.finish("every model left is within eps of every other one, on average over the problems")
        single = [torch.unique(column) for one in found for column in one.kept.T]
        return {
            "distance": distance,
            "farthest_distance": max(float(task.distances[left][:, left].max()) for left in single),
            "models_left": float(math.prod(len(one.kept) for one in found)),
            "model_error": float(task.distances[best, task.truth].mean()),
        }


def recipe() -> Recipe:
    """Explore where two joint models disagree, until none do."""
    return Recipe(
        name=SLUG,
        models={"policy": FinitePolicy(), "exploration": ExplorationPolicy(), "evidence": ModelEvidence()},
        acts="exploration",
        judged="policy",
        collect=ExploreProblems(),
        updates=(NarrowModels("policy", Fresh()),),
        adds=("explore-problems", "narrow-models"),
        notes={
            "collect": "N H episodes: h steps of what tells a pair of models apart, then uniform actions",
            "score": "log p(observations || actions) of each episode under each model",
            "credit": "log-likelihoods summed over the problems",
            "select": "models within beta of the likeliest; of these the pair that is the farthest apart",
            "improve": "the best policy of the likeliest models; what tells the pair apart explores next",
        },
    )
