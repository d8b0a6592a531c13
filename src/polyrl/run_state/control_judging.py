"""How control runs are judged: whole episodes of the policy, and of what a recipe or an actor names beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyrl.errors import UserError
from polyrl.models.actor import Actor, DistributionActor, Making, MaskedActor
from polyrl.models.base import PolicyNetwork
from polyrl.rollout.evaluation import Episode, Evaluator
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.environment import ControlTask

if TYPE_CHECKING:
    from polyrl.recipe import Judged
    from polyrl.run_state.control import ControlRunState

EVALUATION_SEED = 1234
"""Every method and seed is judged on the same episodes."""


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged, apart from training: whole episodes in environments of their own.

    Attributes:
        episodes: how many; episode k starts from the same seed at every evaluation of every run.
        shown: how many are kept in samples.jsonl.
    """

    episodes: int = 20
    shown: int = 5
    seed: int = EVALUATION_SEED


def return_metrics(
    played: Sequence[Episode], prefix: str, reference: tuple[float, float] | None = None
) -> dict[str, float]:
    """Mean and spread of the episodes' returns and their mean length, each under `prefix`.

    Where episodes tell a final cost, also its mean and median. With a `reference` also the mean return on a scale on
    which the first is 0 and the second 1 (Minari's normalized score).
    """
    returns = [episode.total for episode in played]
    found = {
        "eval/return": statistics.fmean(returns),
        "eval/return_std": statistics.pstdev(returns),
        "eval/length": statistics.fmean(episode.length for episode in played),
    }
    costs = [episode.cost for episode in played if episode.cost is not None]
    if costs:
        found |= {"eval/cost": statistics.fmean(costs), "eval/median_cost": statistics.median(costs)}
    if reference is not None:
        low, high = reference
        found["eval/normalized_return"] = (found["eval/return"] - low) / (high - low)
    return {prefix + name.removeprefix("eval/"): value for name, value in found.items()}


@dataclass(frozen=True)
class AlsoJudged:
    """What an evaluation judges beside the policy.

    Attributes:
        prefix: of its metrics.
        actor: what acts.
        judge: plays the episodes.
        whole: whether all metrics are told; otherwise the mean return alone.
    """

    prefix: str
    actor: Actor
    judge: Evaluator
    whole: bool = True

    def metrics(self, episodes: int) -> dict[str, float]:
        """Of this many episodes, by name."""
        found = return_metrics(self.judge(self.actor, episodes), self.prefix)
        return found if self.whole else {f"{self.prefix}return": found[f"{self.prefix}return"]}


def also_judged(state: ControlRunState, entries: Mapping[str, Judged], judged_model: str) -> list[AlsoJudged]:
    """What a run's evaluations judge beside its policy: an actor that says so, then what the recipe names.

    Args:
        state: the run's, with its models and actors.
        entries: of the recipe, by name.
        judged_model: the model that the recipe judges, by name.

    Raises:
        UserError: a model that cannot act, or a task that shows or takes something else than the one of the run.
    """
    found = [AlsoJudged(f"eval/{state.actor.judged_as}_", state.actor, state.judge, whole=False)]
    found = found if state.actor.judged_as else []
    acting = {model: state.actors[stream] for stream, model in reversed(state.acting.items())}
    for name, entry in entries.items():
        task = _fitting(state.task, entry.task, name) if entry.task else state.task
        model = entry.model or (state.acting[""] if entry.acting else judged_model)
        inner = acting[model] if entry.acting else _own_actor(state, model, name)
        actor = entry.actor(inner, Making(task, state.models or {}, state.seed, state.say))
        judge = Evaluator(task, state.evaluation.seed) if entry.task else state.judge
        found.append(AlsoJudged(f"eval/{name}/", actor, judge))
    return found


def _own_actor(state: ControlRunState, model: str, name: str) -> Actor:
    """A model's actor without wrappers."""
    if state.models is None:
        return (MaskedActor if state.task.masked else DistributionActor)(state.policy)
    policy = state.models[model]
    if not isinstance(policy, PolicyNetwork):
        raise UserError(f"'{name}' is to judge the model '{model}', which is no policy.")
    return policy.actor()


def _fitting(trained: ControlTask, spec: str, name: str) -> ControlTask:
    """Another task by its name, which must show and take what the task of the run does."""
    task = named_task(spec)
    for what, theirs, ours in (
        ("observations of size", task.observations.size, trained.observations.size),
        ("actions in", task.actions.space, trained.actions.space),
        ("action masks of", task.masked, trained.masked),
    ):
        if theirs != ours:
            raise UserError(
                f"'{name}' is to be judged on {spec}, which has {what} {theirs}, and {trained.spec}, on which the run "
                f"trains, has {what} {ours}; name a task of the same interface."
            )
    return task
