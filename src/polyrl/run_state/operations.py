"""The state of an operations run: an inventory setting, its differentiable simulator and the policy that orders."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.models.inventory import Best, OrderingModel, OrderingModels
from polyrl.models.stored import Stored, StoredBy, StoredModule
from polyrl.parts.operations import OrderingPolicy
from polyrl.run_state import combinatorial
from polyrl.run_state.base import RunState
from polyrl.run_state.combinatorial import CombinatorialRunState
from polyrl.tasks.operations.combinatorial import CombinatorialTask
from polyrl.tasks.operations.demand import EVALUATION_SEED

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import PythonObjects, RunConfig
    from polyrl.tasks.operations.settings import InventoryTask, Split

ORDERING = "use a method for inventories, such as hdpo"


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged, apart from training.

    Attributes:
        traces, periods: test traces and their length.
        dropped: periods at the start of each trace that are simulated and not counted: the system fills up.
        dev_traces, dev_periods, dev_dropped: the same for the dev traces, which choose the parameters to keep: on the
            horizon that they are judged on, because what is best in a system that fills up is not what is best later.
        shown: periods of the first test trace that are kept in samples.jsonl.
    """

    traces: int = 4096
    periods: int = 600
    dropped: int = 200
    dev_traces: int = 1024
    dev_periods: int = 600
    dev_dropped: int = 200
    shown: int = 12
    seed: int = EVALUATION_SEED


class OperationsRunState(RunState):
    """Implements `polyrl.core.context.RunState` for inventories.

    Attributes:
        task: the setting.
        models: the recipe's.
        acts, judges: names of the model that orders in training, and of the one that is judged and exported.
    """

    models: OrderingModels

    def __init__(
        self,
        task: InventoryTask,
        models: OrderingModels,
        *,
        judges: str = "",
        evaluation: Evaluation | None = None,
    ):
        self.task, self.models, self.acts, self.judges = task, models, models.acts, judges or models.acts
        self.evaluation = evaluation or Evaluation()
        self._judged: tuple[dict[str, float], list[dict[str, Any]]] | None = None  # until what is judged changes

    @property
    def policy(self) -> OrderingModel:
        """What orders in training."""
        return self._model(self.acts)

    @property
    def judged(self) -> OrderingModel:
        """What is judged and exported."""
        return self._model(self.judges)

    def _model(self, name: str) -> OrderingModel:
        model = self.models[name]
        assert isinstance(model, OrderingModel)
        return model

    # ------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def act(self, experience: Experience, stream: torch.Generator) -> Experience:
        """Run the present policy with noise on the traces.

        Adds `observation` [B, T, N, slots] (inventories before each order), `action` [B, T, N] (what was tried, before
        it was cut at 0 and at what suppliers have), its `behaviour_logprob` and `reward` (minus cost), both [B, T].

        Raises:
            Diverged: the policy's weights are not finite.
        """
        policy = self.policy
        policy.check_weights()
        size, periods = experience["demand"].shape[:2]
        spread, tried = policy.noise.exp(), []
        logprobs = []

        def noisy(inventory: Tensor) -> Tensor:
            orders: Tensor = policy(inventory)
            action = orders + spread * torch.randn(orders.shape, generator=stream)
            tried.append(action)
            logprobs.append(policy.logprob(action, orders))
            return action

        run = self.task.simulator.run(noisy, experience["initial_inventory"], experience["demand"], record=True)
        assert run.inventory is not None
        action, logprob = torch.stack(tried, 1), torch.stack(logprobs, 1)
        assert action.shape[:2] == logprob.shape == (size, periods)
        return experience.with_fields(
            observation=run.inventory, action=action, behaviour_logprob=logprob, reward=-run.cost
        )

    # ----------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def cost(self, policy: Callable[[Tensor], Tensor], split: Split = "test") -> float:
        """Mean cost per period and store on the fixed traces of a split, burn-in dropped.

        On the test traces of a demand in whole units orders are rounded to whole units.
        """
        e = self.evaluation
        test = split == "test"
        traces, periods, dropped = (
            (e.traces, e.periods, e.dropped) if test else (e.dev_traces, e.dev_periods, e.dev_dropped)
        )
        demand, start = self.task.traces(e.seed, split, 0, traces, periods)
        whole = test and self.task.customers.integer
        run = self.task.simulator.run(policy, start, demand, integer=whole)
        return float(run.cost[:, dropped:].mean(dtype=torch.float64))

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Keep the present policy where it is the best on the dev traces so far; judge the kept one on the test traces.

        Without a `Best` model the policy itself is judged.
        """
        entries = self.models.entries
        for name in {self.acts, *(entry.of for entry in entries.values() if isinstance(entry, Best))}:
            self._model(name).dev_cost.fill_(self.cost(self._model(name), "dev"))
        if not self._keeps_best():
            self._judged = None
        for name, entry in entries.items():
            if isinstance(entry, Best):
                before, now = float(self._model(name).dev_cost), float(self._model(entry.of).dev_cost)
                if now < before or not math.isfinite(before):
                    self.models.move(name, entry.of, 1.0)
                    self._judged = None
        if self._judged is None:
            self._judged = {"eval/cost": self.cost(self.judged)}, self.trace(self.evaluation.shown)
        metrics, samples = self._judged
        return {**metrics, "eval/dev_cost": float(self.policy.dev_cost)}, samples

    @torch.no_grad()
    def trace(self, periods: int, index: int = 0) -> list[dict[str, Any]]:
        """The first periods of test trace `index` under the judged policy, one dict a period.

        `on_hand`, `on_order`, `order` and `demand` are lists over locations (stores for demand), units; `cost` is the
        period's, per store. Inventories are those before the order.
        """
        e = self.evaluation
        demand, start = self.task.traces(e.seed, "test", 0, max(e.traces, index + 1), e.periods)
        demand, start = demand[index : index + 1, :periods], start[index : index + 1]
        run = self.task.simulator.run(self.judged, start, demand, integer=self.task.customers.integer, record=True)
        assert run.inventory is not None and run.order is not None

        def rounded(x: Tensor) -> list[float]:
            return [round(v, 2) for v in x.tolist()]

        return [
            {
                "split": "test",
                "period": t,
                "on_hand": rounded(run.inventory[0, t, :, 0]),
                "on_order": rounded(run.inventory[0, t, :, 1:].sum(-1)),
                "order": rounded(run.order[0, t]),
                "demand": rounded(demand[0, t]),
                "cost": round(float(run.cost[0, t]), 3),
            }
            for t in range(demand.shape[1])
        ]

    def evaluation_facts(self) -> dict[str, Any]:
        """The traces, and whether orders are whole."""
        return {
            **dataclasses.asdict(self.evaluation),
            "split": "test",
            "whole_orders": self.task.customers.integer,
            "policy": "best on the dev traces so far" if self._keeps_best() else "the one in training",
        }

    def _keeps_best(self) -> bool:
        return isinstance(self.models.entries[self.judges], Best)

    # -------------------------------------------------------------------------------------------------- folders

    def stored(self) -> Mapping[str, Stored]:
        """The models, and what they are of."""
        return {"about": StoredBy(self._write_about, self._read_about), **self.models.stored()}

    def _write_about(self, folder: Path) -> None:
        best = float(self.judged.dev_cost)
        about = {
            "task": self.task.name,
            "settings": dataclasses.asdict(self.task),
            "models": {name: {"name": m.name, **dataclasses.asdict(m)} for name, m in self.models.entries.items()},
            "dev_cost": best if math.isfinite(best) else None,
        }
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def _read_about(self, folder: Path) -> None:
        """Refuse what was written before models had names: its optimizers would begin anew, and nobody would know.

        Raises:
            UserError: it was.
        """
        self._judged = None
        about = {} if (folder / "kept.json").is_file() else json.loads((folder / "policy.json").read_text("utf-8"))
        if "models" not in about:
            raise UserError(
                f"{folder} was written before the models of inventories had names, and cannot be read; train the run "
                "again."
            )

    def export(self, folder: Path) -> None:
        """Write what is judged in the place of every model, and `policy.json` about it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.models:
            StoredModule(name, self.judged).save(folder)
        self._write_about(folder)


def make_task(config: RunConfig, given: PythonObjects) -> InventoryTask | CombinatorialTask:
    """The inventory setting or the combinatorial problem that the run names."""
    from polyrl.tasks.operations import task

    made: InventoryTask | CombinatorialTask = task(config.task)
    return made


def make_run_state(
    config: RunConfig,
    task: InventoryTask | CombinatorialTask,
    recipe: Recipe,
    say: Callable[[str], None] = lambda _: None,
) -> OperationsRunState | CombinatorialRunState:
    """Build the models, with weights drawn from the run's seed, and put them beside the simulator.

    Raises:
        UserError: a device other than the CPU, or an architecture that does not order.
    """
    if isinstance(task, CombinatorialTask):
        return combinatorial.make_run_state(config, task, recipe, say)
    if config.device not in ("auto", "cpu"):
        raise UserError(f"Inventories are simulated on the CPU; leave out --device {config.device}.")
    for name, entry in recipe.models.items():
        if not isinstance(entry, OrderingPolicy) and not entry.copied:
            raise UserError(f"The model '{name}' of {recipe.name} ({entry.name}) cannot order; {ORDERING}.")
    if not recipe.models:
        raise UserError(f"{recipe.name} brings nothing that can order; {ORDERING}.")
    usual, asked = Evaluation(), config.eval_episodes
    how = usual if asked is None else Evaluation(traces=asked, dev_traces=min(asked, usual.dev_traces))
    models = OrderingModels(recipe.models, task, config.seed, recipe.acts)
    return OperationsRunState(task, models, judges=recipe.judged, evaluation=how)
