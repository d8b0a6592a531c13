"""The state of a theory run: a preference game or a robust MDP, the models that act in it, and exact judgement.

What changes is in the models, float64 tables (`polyrl.models.tables`), but for the sum of regrets of a run on an MDP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.stored import Stored, StoredTables
from polyrl.models.tables import ActionProbabilities, GamePolicy, TableModels
from polyrl.parts.theory import RobustBackup
from polyrl.run_state.base import RunState
from polyrl.run_state.finite import FiniteRunState
from polyrl.tasks.theory import task as built_in_task
from polyrl.tasks.theory.finite import FiniteTask, own_task
from polyrl.tasks.theory.games import MatrixGame, PreferenceGame
from polyrl.tasks.theory.mdp import Plan, RobustMDP

if TYPE_CHECKING:
    from polyrl.core.context import Context
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import PythonObjects, RunConfig

FILE_OF_BEFORE = "tables.safetensors"
"""Where all tables were before they were models by name."""
LOWEST = 1e-16
"""Gaps are told no smaller than this: below it they are rounding, and a logarithmic axis has no place for 0."""


class TableRunState(RunState):
    """What both run states share.

    Attributes:
        models: tables by name.
        judged: name of the model that evaluations judge.
    """

    models: TableModels

    def __init__(self, models: TableModels, judged: str):
        self.models, self.judged = models, judged

    def stored(self) -> dict[str, Stored]:
        """The models."""
        return self.models.stored()

    def check_readable(self, folder: Path) -> None:
        """Refuse what was written before the tables were models by name.

        Raises:
            UserError: it was.
        """
        if (folder / FILE_OF_BEFORE).is_file():
            raise UserError(
                f"{folder} is of an earlier version of polyrl, which kept all tables of theory in {FILE_OF_BEFORE}; "
                "start the run again with --overwrite, which comes to the same numbers."
            )


# ------------------------------------------------------------------------------------------- preference games


class GameRunState(TableRunState):
    """A preference game and the policies over its answers."""

    def __init__(self, task: PreferenceGame, models: TableModels, judged: str = ""):
        super().__init__(models, judged or models.acts)
        self.task = task

    @property
    def log_policy(self) -> Tensor:
        """Log-probabilities `[n]` of what plays next."""
        return self._policy(self.models.acts)

    @property
    def output_policy(self) -> Tensor:
        """Log-probabilities `[n]` of what the method would return now."""
        return self._policy(self.judged)

    def _policy(self, name: str) -> Tensor:
        policy = self.models[name]
        assert isinstance(policy, GamePolicy)
        return policy.log_policy

    def reference_logprob(self, experience: Experience) -> Tensor:
        """Log-probability of the answers under the reference, `[B, 1]`."""
        task: PreferenceGame = self.task
        return task.log_reference[experience["action"]]

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Distances to the Nash policy, exactly, and the most probable answers."""
        task: PreferenceGame = self.task
        measures = task.measures(self.output_policy)
        for name in ("eval/kl_to_nash", "eval/exploitability"):
            measures[name] = max(measures[name], LOWEST)  # in this order NaN stays NaN
        return measures, answers(task, self.output_policy)

    def evaluation_facts(self) -> dict[str, Any]:
        """Exactly, whatever the seed; which game it was is no difference in judgement."""
        return {"exact": True, **{k: v for k, v in dataclasses.asdict(self.task).items() if k != "instance"}}


def answers(task: PreferenceGame, log_policy: Tensor, shown: int = 10) -> list[dict[str, Any]]:
    """The most probable answers of a policy `[n]` with how often each beats it."""
    rates = task.preference @ log_policy.exp()
    order = log_policy.argsort(descending=True)[:shown].tolist()
    return [
        {
            "answer": task.names[i],
            "probability": float(log_policy[i].exp()),
            "nash": float(task.nash[i].exp()),
            "beats the policy": float(rates[i]),
        }
        for i in order
    ]


# ------------------------------------------------------------------------------------------------- robust MDPs


class MDPRunState(TableRunState):
    """A robust MDP, the policies and values of its states, and the sum of regrets so far.

    Attributes:
        regret: `[2]`, sum over episodes, and their number.
        pursued: the exact plan of what the method itself plans for, which need not be the task's objective.
    """

    def __init__(self, task: RobustMDP, models: TableModels, judged: str = "", pursued: Plan | None = None):
        super().__init__(models, judged or models.acts)
        self.task = task
        self.regret = torch.zeros(2, dtype=torch.float64)
        pursued = pursued or task.plan()
        self.pursued_returns = task.returns(pursued.policy)

    @property
    def policy(self) -> Tensor:
        """Probabilities `[H, S, A]` of what acts."""
        return self.models.probabilities(self.models.acts)

    @property
    def output_policy(self) -> Tensor:
        """Probabilities `[H, S, A]` of what the method would return now."""
        return self.models.probabilities(self.judged)

    def stored(self) -> dict[str, Stored]:
        """The models, and the regrets."""
        regret = StoredTables("regret.safetensors", lambda: {"regret": self.regret}, self._take, of="a theory run")
        return {**super().stored(), "regret": regret}

    def _take(self, tables: dict[str, Tensor]) -> None:
        self.regret = tables["regret"]

    def roll(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One episode in the nominal dynamics: states, actions and next states, each `[H]` int64."""
        draws = torch.rand(self.task.horizon, 2, generator=random, dtype=torch.float64)
        state, steps = 0, []
        for h in range(self.task.horizon):
            action = _draw(self.policy[h, state], draws[h, 0])
            following = _draw(self.task.kernel[h, state, action], draws[h, 1])
            steps.append((state, action, following))
            state = following
        states, actions, next_states = torch.tensor(steps).unbind(1)
        return states, actions, next_states

    def monitor(self, experience: Experience, context: Context) -> None:
        """Add the exact suboptimality of the policy that has just acted, once for each of its episodes."""
        gap = self.task.suboptimality(self.policy)
        episodes = len(experience)
        self.regret = self.regret + torch.tensor([gap * episodes, episodes], dtype=torch.float64)
        context.log(suboptimality=gap)

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Exact regret, worst case and returns under every shift, and the policy of the first state."""
        task: RobustMDP = self.task
        policy = self.output_policy
        gap = task.suboptimality(policy)
        total, episodes = self.regret.tolist()
        returns = task.returns(policy)
        metrics = {
            "eval/regret": max(total / episodes if episodes else gap, LOWEST),
            "eval/suboptimality": max(gap, LOWEST),
            "eval/worst_return": float(task.judge(policy, eta=0).value[0, 0]),
            "eval/return_error": max(abs(returns[k] - self.pursued_returns[k]) for k in returns),
        }
        shifted = {f"return_{name}": value for name, value in returns.items()}
        metrics.update({f"eval/{name}": value for name, value in shifted.items()})
        return metrics, choices(task, policy)

    def evaluation_facts(self) -> dict[str, Any]:
        """Exactly, in the task's own objective."""
        return {"exact": True, "optimum": self.task.optimum, **dataclasses.asdict(self.task)}


def _draw(probabilities: Tensor, uniform: Tensor) -> int:
    """An index drawn from probabilities `[n]` by one uniform number."""
    total = probabilities.cumsum(0)
    return int(torch.searchsorted(total, uniform * total[-1], right=True).clamp(max=len(total) - 1))


def choices(task: RobustMDP, policy: Tensor, shown: int = 6) -> list[dict[str, Any]]:
    """What a policy `[H, S, A]` does in the first states, and how probably."""
    rows = []
    plan = task.judge(policy)
    for step, state in _reached(task, policy)[:shown]:
        best = int(policy[step, state].argmax())
        rows.append(
            {
                "step": step + 1,
                "state": task.states[state],
                "action": task.actions[best],
                "probability": float(policy[step, state, best]),
                "worst value": float(plan.value[step, state]),
            }
        )
    return rows


def _reached(task: RobustMDP, policy: Tensor) -> list[tuple[int, int]]:
    """Steps and states that a policy comes to in the nominal dynamics, the likeliest of each step first."""
    mass = torch.zeros(len(task.states), dtype=torch.float64)
    mass[0] = 1
    found = []
    for h in range(task.horizon):
        live = [s for s in mass.argsort(descending=True).tolist() if float(mass[s]) > 0 and s not in task.ends]
        found += [(h, s) for s in live]
        mass = torch.einsum("s,sa,sat->t", mass, policy[h], task.kernel[h])
    return found


# ---------------------------------------------------------------------------------------------- making of runs


def make_task(config: RunConfig, given: PythonObjects) -> PreferenceGame | RobustMDP | FiniteTask:
    """The built-in task, or the user's finite MDP; a random game without a number of its own takes the run's seed."""
    if (given and given.environment is not None) or ":" in config.task.partition("(")[0]:
        return own_task(config.task, given.environment if given else None)
    task = built_in_task(config.task)
    if isinstance(task, MatrixGame) and task.instance is None:
        task = dataclasses.replace(task, instance=config.seed)
    return task.for_seed(config.seed) if isinstance(task, FiniteTask) else task


def make_run_state(
    config: RunConfig,
    task: PreferenceGame | RobustMDP | FiniteTask,
    recipe: Recipe,
    say: Callable[[str], None] = lambda _: None,
) -> GameRunState | MDPRunState | FiniteRunState:
    """The models that a recipe trains on a task.

    Raises:
        UserError: the recipe solves another kind of problem, or acts by or judges what is no policy.
    """
    kind = "game" if isinstance(task, PreferenceGame) else "finite" if isinstance(task, FiniteTask) else "mdp"
    names = {"game": "a preference game", "mdp": "a robust MDP", "finite": "a finite MDP"}
    examples = {"game": "rock-paper-scissors", "mdp": "linear-mdp", "finite": "combination-lock"}
    parts = list(recipe.parts())
    for part in parts:
        solves = part.solves or kind
        if solves != kind:
            raise UserError(
                f"{recipe.name} cannot run on {task.name}: its part '{part.name}' is for {names[solves]}, and this is "
                f"{names[kind]}; try --task {examples[solves]}."
            )
    if not recipe.models:
        raise UserError(
            f"{recipe.name} lists no models by name, and a task of theory gives none; state them with "
            "models={...} and what improves them with updates=(...)."
        )
    models = TableModels(recipe.models, task, recipe.acts)
    for name in (recipe.acts, recipe.judged or recipe.acts):
        if not isinstance(models[name], GamePolicy if kind == "game" else ActionProbabilities):
            raise UserError(f"{recipe.name} acts by or judges '{name}', which is no policy of {names[kind]}.")
    if isinstance(task, PreferenceGame):
        return GameRunState(task, models, recipe.judged)
    if isinstance(task, FiniteTask):
        return FiniteRunState(task, models, recipe.judged)
    pursued: Sequence[Plan] = []
    for part in parts:
        if isinstance(part, RobustBackup):
            uncertainty, eta = part.objective(task)
            pursued = [task.plan(uncertainty, eta)]
            if text := part.caution(task, recipe):
                say(text)
    return MDPRunState(task, models, recipe.judged, pursued[0] if pursued else None)
