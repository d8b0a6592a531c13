"""The state of an operations run: an inventory setting, its differentiable simulator and the policy that orders."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyrl.core.experience import Experience
from polyrl.errors import Diverged, UserError
from polyrl.models.stored import Stored, StoredBy, StoredModule, StoredTables
from polyrl.parts.operations import OrderingPolicy
from polyrl.run_state.base import RunState
from polyrl.runtime.seeding import generator
from polyrl.tasks.operations.demand import EVALUATION_SEED

if TYPE_CHECKING:
    from polyrl.recipe import Recipe
    from polyrl.runtime.config import PythonObjects, RunConfig
    from polyrl.tasks.operations.settings import InventoryTask, Split


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged, apart from training.

    Attributes:
        traces, periods: test traces and their length.
        dropped: periods at the start of each trace that are simulated and not counted: the system fills up.
        dev_traces, dev_periods, dev_dropped: the same for the dev traces, which choose the parameters to keep.
        shown: periods of the first test trace that are kept in samples.jsonl.
    """

    traces: int = 4096
    periods: int = 600
    dropped: int = 200
    dev_traces: int = 1024
    dev_periods: int = 200
    dev_dropped: int = 100
    shown: int = 12
    seed: int = EVALUATION_SEED


class OperationsRunState(RunState):
    """Implements `polyrl.core.context.RunState` for inventories.

    Attributes:
        task: the setting.
        policy: the policy in training.
        best_policy: a copy of the policy that was best on the dev traces so far: what is judged and exported.
        log_noise: logarithm of the standard deviation of the orders tried, units, `[N]`; None where none are tried.
    """

    def __init__(
        self, task: InventoryTask, policy: nn.Module, *, noise: bool = False, evaluation: Evaluation | None = None
    ):
        self.task, self.policy, self.best_policy = task, policy, copy.deepcopy(policy)
        self.evaluation = evaluation or Evaluation()
        self.log_noise = nn.Parameter(torch.zeros(task.network.locations)) if noise else None
        self.best_dev = math.inf
        self._judged: tuple[dict[str, float], list[dict[str, Any]]] | None = None  # of `kept`, until it changes

    # ------------------------------------------------------------------------------------------------- training

    def outputs(self, experience: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        """Those of these that are wanted, `[B, T]`.

        "cost": cost of every period, per store, when the present policy is run on the traces `demand` [B, T, n] from
        `initial_inventory` [B, N, slots]; it carries the gradient of all orders before it.
        "logprob", "entropy": of the orders `action` [B, T, N] at the inventories `observation` [B, T, N, slots].
        """
        found: dict[str, Tensor] = {}
        if "cost" in wants:
            self._check_weights()
            run = self.task.simulator.run(self.policy, experience["initial_inventory"], experience["demand"])
            found["cost"] = run.cost
        if {"logprob", "entropy"} & set(wants):
            seen, tried = experience["observation"], experience["action"]
            orders = self.policy(seen.flatten(0, 1)).view_as(tried)
            found["logprob"] = self._logprob(tried, orders)
            entropy = (self._log_noise() + 0.5 * math.log(2 * math.pi * math.e)).sum()
            found["entropy"] = entropy.expand(tried.shape[:2])
        return {name: tensor for name, tensor in found.items() if name in wants}

    def _check_weights(self) -> None:
        """Costs do not always show it at once: what is ordered arrives later."""
        if not all(bool(torch.isfinite(p).all()) for _, p in self.parameters()["policy"]):
            raise Diverged("The weights of the policy that orders are not finite; lower the learning rate.")

    def _log_noise(self) -> Tensor:
        if self.log_noise is None:
            raise RuntimeError("this run state was made without noise")
        return self.log_noise

    def _logprob(self, tried: Tensor, orders: Tensor) -> Tensor:
        """Log-density of the orders tried around those of the policy, both `[..., N]`, summed over locations."""
        log_noise = self._log_noise()
        each = -0.5 * ((tried - orders) / log_noise.exp()).square() - log_noise - 0.5 * math.log(2 * math.pi)
        total: Tensor = each.sum(-1)
        return total

    @torch.no_grad()
    def act(self, experience: Experience, stream: torch.Generator) -> Experience:
        """Run the present policy with noise on the traces.

        Adds `observation` [B, T, N, slots] (inventories before each order), `action` [B, T, N] (what was tried, before
        it was cut at 0 and at what suppliers have), its `behaviour_logprob` and `reward` (minus cost), both [B, T].

        Raises:
            Diverged: the policy's weights are not finite.
        """
        self._check_weights()
        size, periods = experience["demand"].shape[:2]
        spread, tried = self._log_noise().exp(), []
        logprobs = []

        def noisy(inventory: Tensor) -> Tensor:
            orders: Tensor = self.policy(inventory)
            action = orders + spread * torch.randn(orders.shape, generator=stream)
            tried.append(action)
            logprobs.append(self._logprob(action, orders))
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
        """Keep the present policy if it is the best on the dev traces so far; judge the kept one on the test traces."""
        now = self.cost(self.policy, "dev")
        if now < self.best_dev or not math.isfinite(self.best_dev):
            self.best_dev, self._judged = now, None
            self.best_policy.load_state_dict(self.policy.state_dict())
        if self._judged is None:
            self._judged = {"eval/cost": self.cost(self.best_policy)}, self.trace(self.evaluation.shown)
        metrics, samples = self._judged
        return {**metrics, "eval/dev_cost": now}, samples

    @torch.no_grad()
    def trace(self, periods: int, index: int = 0) -> list[dict[str, Any]]:
        """The first periods of test trace `index` under the kept policy, one dict a period.

        `on_hand`, `on_order`, `order` and `demand` are lists over locations (stores for demand), units; `cost` is the
        period's, per store. Inventories are those before the order.
        """
        e = self.evaluation
        demand, start = self.task.traces(e.seed, "test", 0, max(e.traces, index + 1), e.periods)
        demand, start = demand[index : index + 1, :periods], start[index : index + 1]
        run = self.task.simulator.run(self.best_policy, start, demand, integer=self.task.customers.integer, record=True)
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
            "policy": "best on the dev traces so far",
        }

    # -------------------------------------------------------------------------------------------------- folders

    def stored(self) -> dict[str, Stored]:
        """The policy in training, and the one that was best on the dev traces."""
        trained = [*self.policy.named_parameters()]
        if self.log_noise is not None:
            trained.append(("log_noise", self.log_noise))
        return {
            "policy": StoredTables("policy.safetensors", self._tensors, self._take, trained, frozenset({"log_noise"})),
            "kept": StoredBy(self._save_best, self._load_best),
        }

    def _tensors(self) -> dict[str, Tensor]:
        noise = {} if self.log_noise is None else {"log_noise": self.log_noise}
        return {**self.policy.state_dict(), **noise}

    def _take(self, read: dict[str, Tensor]) -> None:
        noise = read.pop("log_noise", None)
        self.policy.load_state_dict(read)
        if self.log_noise is not None and noise is not None:
            self.log_noise.data.copy_(noise)

    def _save_best(self, folder: Path) -> None:
        StoredModule("kept", self.best_policy).save(folder)
        best = self.best_dev if math.isfinite(self.best_dev) else None
        (folder / "kept.json").write_text(json.dumps({"dev_cost": best}), encoding="utf-8")

    def _load_best(self, folder: Path) -> None:
        best = None
        if (folder / "kept.safetensors").is_file():
            StoredModule("kept", self.best_policy).load(folder)
            best = json.loads((folder / "kept.json").read_text("utf-8"))["dev_cost"]
        else:  # an exported policy is the best one
            self.best_policy.load_state_dict(self.policy.state_dict())
        self.best_dev, self._judged = math.inf if best is None else float(best), None

    def export(self, folder: Path) -> None:
        """Write the policy that was best on the dev traces: `policy.safetensors`, and `policy.json` about it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.best_policy.state_dict()), folder / "policy.safetensors")
        best = self.best_dev if math.isfinite(self.best_dev) else None
        about = {
            "task": self.task.name,
            "settings": dataclasses.asdict(self.task),
            "architecture": type(self.best_policy).__name__,
            "dev_cost": best,
        }
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def make_task(config: RunConfig, given: PythonObjects) -> InventoryTask:
    """The inventory setting that the run names."""
    from polyrl.tasks.operations import task

    return task(config.task)


def make_run_state(
    config: RunConfig, task: InventoryTask, recipe: Recipe, say: Callable[[str], None] = lambda _: None
) -> OperationsRunState:
    """Build the policy, with weights drawn from the run's seed, and put it beside the simulator.

    Raises:
        UserError: a device other than the CPU, or an architecture that does not order.
    """
    if config.device not in ("auto", "cpu"):
        raise UserError(f"Inventories are simulated on the CPU; leave out --device {config.device}.")
    if not isinstance(recipe.policy, OrderingPolicy):
        raise UserError(f"{recipe.name} brings nothing that can order; use a method for inventories, such as hdpo.")
    wanted = frozenset[str]().union(*(t.wants for t in recipe.terms))
    usual, asked = Evaluation(), config.eval_episodes
    how = usual if asked is None else Evaluation(traces=asked, dev_traces=min(asked, usual.dev_traces))
    return OperationsRunState(
        task,
        recipe.policy.build(task, generator(config.seed, "policy")),
        noise="logprob" in wanted,
        evaluation=how,
    )
