"""The state of a run on a finite MDP: tables, and exact judgement of the policy that they hold.

Everything that changes is a named table, so a checkpoint is one safetensors file and a resumed run goes on to the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.errors import UserError
from polyrl.models.stored import Stored, StoredTables
from polyrl.run_state.base import RunState
from polyrl.tasks.theory.finite import FiniteTask

if TYPE_CHECKING:
    from polyrl.core.context import Context

FILE = "tables.safetensors"
LOWEST = 1e-16
"""Gaps are told no smaller than this: below it they are rounding, and a logarithmic axis has no place for 0."""


class FiniteRunState(RunState):
    """A finite MDP and the policy `[L, S, A]` that acts in it.

    What is judged is the policy, or the table `answer` `[L, S, A]` where a method keeps one that does not act.

    Attributes:
        tables: name -> tensor. Parts may keep tables of their own here, replaced and not written into; all are saved.
    """

    def __init__(self, task: FiniteTask):
        self.task = task
        self.mdp = task.mdp
        seen = torch.zeros(self.mdp.shape[:2], dtype=torch.bool)
        seen[0] = self.mdp.initial > 0
        self.tables: dict[str, Tensor] = {
            "policy": self.mdp.uniform.clone(),
            "regret": torch.zeros(2, dtype=torch.float64),  # its sum, and over how many episodes or steps
            "seen": seen,
        }
        self._began: tuple[int, dict[str, Tensor]] = (-1, {})
        self._context: Context | None = None

    def begin(self, context: Context) -> None:
        """Know which iteration it is."""
        self._context = context

    # ------------------------------------------------------------------------------------------------- what acts

    @property
    def policy(self) -> Tensor:
        """Probabilities `[L, S, A]` of what acts."""
        return self.tables["policy"]

    @property
    def answer(self) -> Tensor:
        """Probabilities `[L, S, A]` of what the method would return now."""
        return self.tables.get("answer", self.tables["policy"])

    def set_policy(self, policy: Tensor, context: Context) -> None:
        """Let this policy `[L, S, A]` act from now on.

        Raises:
            UserError: it is none: NaN, below 0, or not of sum 1.
        """
        if policy.shape != self.mdp.shape or not bool(
            ((policy >= 0) & ((policy.sum(-1, True) - 1).abs() < 1e-9)).all()
        ):
            raise UserError(
                f"The policy of iteration {context.iteration} is none: a table {[*self.mdp.shape]} of probabilities is "
                f"needed, and it is {[*policy.shape]} with sums from {policy.sum(-1).min():g} to "
                f"{policy.sum(-1).max():g}."
            )
        context.params_updated = True
        self.tables["policy"] = policy

    def get_or_create(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The table called `name`, made on first use."""
        if name not in self.tables:
            self.tables[name] = make()
        return self.tables[name]

    # ------------------------------------------------------------------------------------- what collecting reports

    def _remember(self, context: Context) -> None:
        """Keep what this iteration begins with, in case that it does not count."""
        if self._began[0] != context.iteration:
            self._began = (context.iteration, {name: self.tables[name] for name in ("regret", "seen")})

    def rewind(self) -> None:
        """Forget what the present iteration's experience has added."""
        if self._context is not None and self._began[0] == self._context.iteration:
            self.tables.update(self._began[1])

    def count_regret(self, regret: float, count: int, context: Context) -> None:
        """Add what acting has cost: `regret` over `count` episodes, or steps of a stream."""
        self._remember(context)
        self.tables["regret"] = self.tables["regret"] + torch.tensor([regret, count], dtype=torch.float64)

    def count_seen(self, step: Tensor, state: Tensor, context: Context) -> None:
        """Remember that these states `[...]` were reached at these steps `[...]`; at step H there are none."""
        self._remember(context)
        inside = step < self.mdp.horizon if self.mdp.horizon else torch.ones_like(step, dtype=torch.bool)
        seen = self.tables["seen"].clone()
        seen[step[inside].clamp(max=self.mdp.layers - 1), state[inside]] = True
        self.tables["seen"] = seen

    # ------------------------------------------------------------------------------------------------- judgement

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Worth and suboptimality of the answer, exactly; what acting has cost so far; the answer's likeliest actions.

        `eval/regret` is the mean of an episode or step, `eval/cumulative_regret` the sum.
        """
        worth = float(self.mdp.worth(self.answer))
        total, count = self.tables["regret"].tolist()
        gap = self.mdp.optimum - worth
        metrics = {
            self.task.metric.key: worth,
            "eval/suboptimality": max(gap, LOWEST) if gap == gap else gap,
            "eval/cumulative_regret": total,
        }
        if count:
            metrics["eval/regret"] = max(total / count, LOWEST)
        return metrics, likeliest(self)

    def evaluation_facts(self) -> dict[str, Any]:
        """Exactly, and what is known of the problem."""
        return {"exact": True, **self.mdp.constants}

    # --------------------------------------------------------------------------------------------------- folders

    def stored(self) -> dict[str, Stored]:
        """Every table, in one file."""
        return {"policy": StoredTables(FILE, lambda: self.tables, self._take, of="a run on a finite MDP")}

    def _take(self, tables: dict[str, Tensor]) -> None:
        self.tables = tables


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
