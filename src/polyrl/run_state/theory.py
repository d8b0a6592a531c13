"""The state of a theory run: a preference game or a robust MDP, the table that acts in it, and exact judgement.

Everything that changes is a named float64 table, so a checkpoint is one safetensors file and a resumed run goes on to
the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.stored import Named, Stored, StoredTables
from polyrl.parts.theory import RobustBackup
from polyrl.run_state.base import RunState
from polyrl.tasks.theory import task as built_in_task
from polyrl.tasks.theory.games import MatrixGame, PreferenceGame
from polyrl.tasks.theory.mdp import Plan, RobustMDP

if TYPE_CHECKING:
    from polyrl.core.context import Context
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import PythonObjects, RunConfig

FILE = "tables.safetensors"
LOWEST = 1e-16
"""Gaps are told no smaller than this: below it they are rounding, and a logarithmic axis has no place for 0."""


class TableRunState(RunState):
    """What both run states share: named tables that belong to the run's state.

    Attributes:
        tables: name -> tensor. Parts may keep tables of their own here; `save` writes them all.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Tensor] = {}

    def stored(self) -> dict[str, Stored]:
        """Every table, in one file."""
        return {"policy": StoredTables(FILE, lambda: self.tables, self._take, self._trained(), of="a theory run")}

    def _trained(self) -> Named:
        """Parameters among the tables."""
        return ()

    def _take(self, tables: dict[str, Tensor]) -> None:
        self.tables = tables

    def get_or_create(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The table called `name`, made on first use."""
        if name not in self.tables:
            self.tables[name] = make()
        return self.tables[name]


# ------------------------------------------------------------------------------------------- preference games


class GameRunState(TableRunState):
    """A preference game and a softmax policy over its answers, `logits` `[n]`.

    What is judged is the policy, or the table `answer` (log-probabilities) where a method keeps one: the half step of
    mirror prox plays, but is not the method's answer.
    """

    def __init__(self, task: PreferenceGame):
        super().__init__()
        self.task = task
        self.logits = nn.Parameter(task.log_reference.clone())
        self.tables["logits"] = self.logits.data

    def _take(self, tables: dict[str, Tensor]) -> None:
        self.logits.data.copy_(tables["logits"])  # the optimizer holds the parameter
        self.tables = {**tables, "logits": self.logits.data}

    @property
    def log_policy(self) -> Tensor:
        """Log-probabilities `[n]` of what plays next."""
        return torch.log_softmax(self.logits.detach(), -1)

    def set_policy(self, log_policy: Tensor) -> None:
        """Let this policy, log-probabilities `[n]`, play from now on."""
        with torch.no_grad():
            self.logits.copy_(log_policy)

    @property
    def output_policy(self) -> Tensor:
        """Log-probabilities `[n]` of what the method would return now."""
        return self.tables.get("answer", self.log_policy)

    def _trained(self) -> Named:
        """The logits."""
        return [("logits", self.logits)]

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Log-probability and entropy of the answers, `[B, 1]`, differentiable."""
        logs = torch.log_softmax(self.logits, -1)
        every = {
            "logprob": logs[experience["action"]],
            "entropy": -(logs.exp() * logs).sum().expand(experience["action"].shape),
        }
        return {name: every[name] for name in wants}

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
    """A robust MDP, a table of action probabilities `policy` `[H, S, A]`, and the sum of regrets so far.

    Attributes:
        pursued: the exact plan of what the method itself plans for, which need not be the task's objective.
    """

    def __init__(self, task: RobustMDP, pursued: Plan | None = None):
        super().__init__()
        self.task = task
        shape = (task.horizon, len(task.states), len(task.actions))
        self.tables["policy"] = task.log_reference.exp().expand(shape).clone()
        self.tables["regret"] = torch.zeros(2, dtype=torch.float64)  # sum over episodes, and their number
        pursued = pursued or task.plan()
        self.pursued_returns = task.returns(pursued.policy)

    @property
    def policy(self) -> Tensor:
        """Probabilities `[H, S, A]` of what acts."""
        return self.tables["policy"]

    def set_policy(self, policy: Tensor) -> None:
        """Let this policy `[H, S, A]` act from now on."""
        self.tables["policy"] = policy

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
        self.tables["regret"] = self.tables["regret"] + torch.tensor([gap * episodes, episodes], dtype=torch.float64)
        context.log(suboptimality=gap)

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Exact regret, worst case and returns under every shift, and the policy of the first state."""
        task: RobustMDP = self.task
        gap = task.suboptimality(self.policy)
        total, episodes = self.tables["regret"].tolist()
        returns = task.returns(self.policy)
        metrics = {
            "eval/regret": max(total / episodes if episodes else gap, LOWEST),
            "eval/suboptimality": max(gap, LOWEST),
            "eval/worst_return": float(task.judge(self.policy, eta=0).value[0, 0]),
            "eval/return_error": max(abs(returns[k] - self.pursued_returns[k]) for k in returns),
        }
        shifted = {f"return_{name}": value for name, value in returns.items()}
        metrics.update({f"eval/{name}": value for name, value in shifted.items()})
        return metrics, choices(task, self.policy)

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


def make_task(config: RunConfig, given: PythonObjects) -> PreferenceGame | RobustMDP:
    """The built-in task; a random game without a number of its own takes the run's seed for one."""
    task = built_in_task(config.task)
    if isinstance(task, MatrixGame) and task.instance is None:
        task = dataclasses.replace(task, instance=config.seed)
    return task


def make_run_state(
    config: RunConfig,
    task: PreferenceGame | RobustMDP,
    recipe: Recipe,
    say: Callable[[str], None] = lambda _: None,
) -> GameRunState | MDPRunState:
    """The table that a recipe trains on a task.

    Raises:
        UserError: the recipe solves another kind of problem.
    """
    kind, example = ("game", "linear-mdp") if isinstance(task, PreferenceGame) else ("mdp", "rock-paper-scissors")
    names = {"game": "a preference game", "mdp": "a robust MDP"}
    parts = list(recipe.parts())
    for part in parts:
        solves = part.solves or kind
        if solves != kind:
            raise UserError(
                f"{recipe.name} cannot run on {task.name}: its part '{part.name}' is for {names[solves]}, and this is "
                f"{names[kind]}; try --task {example}."
            )
    if isinstance(task, PreferenceGame):
        return GameRunState(task)
    pursued: Sequence[Plan] = []
    for part in parts:
        if isinstance(part, RobustBackup):
            uncertainty, eta = part.objective(task)
            pursued = [task.plan(uncertainty, eta)]
            if text := part.caution(task):
                say(text)
    return MDPRunState(task, pursued[0] if pursued else None)
