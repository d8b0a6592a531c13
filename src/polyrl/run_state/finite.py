"""The state of a run on a finite MDP: the models that act in it, and exact judgement.

What changes is in the models, float64 tables, but for the regrets so far and the states that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.models.stored import Stored, StoredTables
from polyrl.models.tables import TableModels
from polyrl.run_state.base import RunState
from polyrl.runtime.chart import Chart
from polyrl.tasks.theory.finite import FiniteTask

if TYPE_CHECKING:
    from polyrl.core.context import Context

FILE = "acting.safetensors"
LOWEST = 1e-16
"""Gaps are told no smaller than this: below it they are rounding, and a logarithmic axis has no place for 0."""


class FiniteRunState(RunState):
    """A finite MDP, the policies and values of its states, and what acting has come to so far.

    Attributes:
        models: tables by name (`polyrl.models.finite`).
        judged: name of the model that evaluations judge.
        acting: `regret` `[2]`, its sum and over how many episodes or steps; `seen` `[L, S]` bool, where it has been.
            Replaced and not written into.
    """

    models: TableModels

    def __init__(self, task: FiniteTask, models: TableModels, judged: str = ""):
        self.task, self.models, self.judged = task, models, judged or models.acts
        self.mdp = task.mdp
        seen = torch.zeros(self.mdp.shape[:2], dtype=torch.bool)
        seen[0] = self.mdp.initial > 0
        self.acting: dict[str, Tensor] = {"regret": torch.zeros(2, dtype=torch.float64), "seen": seen}
        self._began: tuple[int, dict[str, Tensor]] = (-1, {})
        self._context: Context | None = None

    def begin(self, context: Context) -> None:
        """Know which iteration it is."""
        self._context = context

    @property
    def policy(self) -> Tensor:
        """Probabilities `[L, S, A]` of what acts."""
        return self.models.probabilities(self.models.acts)

    @property
    def answer(self) -> Tensor:
        """Probabilities `[L, S, A]` of what the method would return now."""
        return self.models.probabilities(self.judged)

    # ------------------------------------------------------------------------------------- what collecting reports

    def _remember(self, context: Context) -> None:
        """Keep what this iteration begins with, in case that it does not count."""
        if self._began[0] != context.iteration:
            self._began = (context.iteration, dict(self.acting))

    def rewind(self) -> None:
        """Forget what the present iteration's experience has added."""
        if self._context is not None and self._began[0] == self._context.iteration:
            self.acting.update(self._began[1])

    def count_regret(self, regret: float, count: int, context: Context) -> None:
        """Add what acting has cost: `regret` over `count` episodes, or steps of a stream."""
        self._remember(context)
        self.acting["regret"] = self.acting["regret"] + torch.tensor([regret, count], dtype=torch.float64)
        context.log(cumulative_regret=float(self.acting["regret"][0]))

    def count_seen(self, step: Tensor, state: Tensor, context: Context) -> None:
        """Remember that these states `[...]` were reached at these steps `[...]`; at step H there are none."""
        self._remember(context)
        inside = step < self.mdp.horizon if self.mdp.horizon else torch.ones_like(step, dtype=torch.bool)
        seen = self.acting["seen"].clone()
        seen[step[inside].clamp(max=self.mdp.layers - 1), state[inside]] = True
        self.acting["seen"] = seen

    # ------------------------------------------------------------------------------------------------- judgement

    @property
    def charts(self) -> Sequence[Chart]:
        """The task's."""
        found: Sequence[Chart] = self.task.charts
        return found

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Worth and suboptimality of the answer, exactly; what acting has cost so far; the answer's likeliest actions.

        `eval/regret` is the mean of an episode or step, `eval/cumulative_regret` the sum.
        """
        worth = float(self.mdp.worth(self.answer))
        total, count = self.acting["regret"].tolist()
        gap = self.mdp.optimum - worth
        metrics = {
            self.task.metric.key: worth,
            "eval/suboptimality": max(gap, LOWEST) if gap == gap else gap,
            "eval/cumulative_regret": total,
        }
        if count:
            metrics["eval/regret"] = max(total / count, LOWEST)
        if self.mdp.policies is not None:
            metrics["eval/class_suboptimality"] = max(float(self.mdp.class_worths.max()) - worth, 0.0)
        return metrics, likeliest(self)

    def evaluation_facts(self) -> dict[str, Any]:
        """Exactly, and what is known of the problem."""
        facts = self.mdp.constants
        if self.task.drawn_by_seed:  # seeds are compared, and their optima are equal but for rounding
            facts = {name: round(value, 10) for name, value in facts.items()} if self.task.equal_optima else {}
        return {"exact": True, **facts}

    # --------------------------------------------------------------------------------------------------- folders

    def stored(self) -> dict[str, Stored]:
        """The models, and what acting has come to."""
        acting = StoredTables(FILE, lambda: self.acting, self._take, of="a run on a finite MDP")
        return {**self.models.stored(), "acting": acting}

    def _take(self, acting: dict[str, Tensor]) -> None:
        self.acting = acting


def likeliest(run_state: FiniteRunState, shown: int = 6) -> list[dict[str, Any]]:
    """What the answer does in the states of the first steps, and what the best policy would do there."""
    mdp, answer = run_state.mdp, run_state.answer
    rows: list[dict[str, Any]] = []
    best = mdp.solution.policy
    for layer in range(mdp.layers):
        for state in range(len(mdp.states)):
            action = int(answer[layer, state].argmax())
            rows.append(
                {
                    **({"step": layer + 1} if mdp.horizon else {}),
                    "state": mdp.states[state],
                    "action": mdp.actions[action],
                    "probability": float(answer[layer, state, action]),
                    "best": mdp.actions[int(best[layer, state].argmax())],
                    "gap": float(mdp.gaps[layer, state] @ answer[layer, state]),
                }
            )
            if len(rows) == shown:
                return rows
    return rows
