"""The state of a run on a combinatorial problem: the task, the networks that build its solutions, and how they do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyrl.errors import UserError
from polyrl.models.base import Models
from polyrl.models.constructive import ConstructiveNetwork
from polyrl.models.stored import Stored, StoredBy, StoredModule
from polyrl.parts.combinatorial import Beam
from polyrl.rollout.construction import Built, beam_search, build, judged
from polyrl.run_state.base import RunState
from polyrl.runtime.seeding import generator, stream_seed
from polyrl.tasks.operations import task as named_task
from polyrl.tasks.operations.combinatorial import (
    EVALUATION_SEED,
    HELD_OUT,
    CombinatorialTask,
    ConstructionEnvironment,
)

if TYPE_CHECKING:
    from polyrl.core.context import Context
    from polyrl.recipe import Judged, Recipe
    from polyrl.runtime.config import RunConfig

BUILDING = "use a method for combinatorial problems, such as am"
SHOWN = 4
"""Solutions that are kept in samples.jsonl."""
ROWS_AT_ONCE = 256
"""Instances that are decoded together where solutions are judged."""


@dataclass(frozen=True)
class Evaluation:
    """How a run is judged: on the first of the held-out instances, decoded as the task says.

    Attributes:
        instances: how many of them.
        seed: of the held-out instances, which all runs share.
    """

    instances: int = HELD_OUT
    seed: int = EVALUATION_SEED


@dataclass(frozen=True)
class AlsoJudged:
    """What evaluations judge beside the policy.

    Attributes:
        model: which one, by name.
        task: on whose held-out instances.
        width: of the beam; 1 is greedy.
        most: how many of them; None: as many as of the policy.
    """

    model: str
    task: CombinatorialTask
    width: int = 1
    most: int | None = None


class CombinatorialRunState(RunState):
    """Implements `polyrl.core.context.RunState` for combinatorial problems.

    Attributes:
        task: the problem.
        models: the recipe's.
        judges: the model that is judged and exported.
        environment: the instances of the present iteration, in which nothing is built.
    """

    models: Models

    def __init__(
        self,
        task: CombinatorialTask,
        models: Models,
        *,
        judges: str = "",
        evaluation: Evaluation | None = None,
        also: Mapping[str, AlsoJudged] | None = None,
    ):
        self.task, self.models, self.judges = task, models, judges or models.acts
        self.evaluation, self.also = evaluation or Evaluation(), dict(also or {})
        self.environment: ConstructionEnvironment | None = None

    @property
    def policy(self) -> ConstructiveNetwork:
        """What builds solutions in training."""
        return self.network(self.models.acts)

    def network(self, name: str) -> ConstructiveNetwork:
        """A model by its name."""
        found = self.models[name]
        assert isinstance(found, ConstructiveNetwork)
        return found

    # ------------------------------------------------------------------------------------------------- training

    def build(self, instances: int, starts: int, context: Context) -> Built:
        """Sample solutions of this iteration's instances, which `environment` is then.

        Raises:
            Diverged: the policy's weights are not finite.
        """
        turn = (context.stream, context.iteration, context.turn)
        self.environment = self.task.environment(stream_seed(context.seed, "instances", *turn), instances)
        stream = context.generator("construction")
        return build(self.policy, self.environment, copies=starts, stream=stream, record=True)

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Mean cost (or value) on the held-out instances, by the verifier, and how far behind the first line it is."""
        metrics, shown = dict[str, float](), list[dict[str, Any]]()
        for name, what in {"": AlsoJudged(self.judges, self.task), **self.also}.items():
            own = f"eval/{name}/" if name else "eval/"
            costs, solutions = self.solved(what)
            mean = sum(costs) / len(costs)
            metrics[f"{own}{what.task.measure}"] = what.task.seen(mean)
            for line, best in what.task.references.items():
                among = best[: len(costs)]  # of more instances than are held out nothing is known
                if len(among) == len(costs):
                    above = mean / float(among.double().mean()) - 1  # of values: what is gained in their place
                    metrics[f"{own}gap_{_word(line)}"] = 100 * what.task.seen(above)
                    break
            if not name:
                shown = [
                    {"instance": i, what.task.measure: round(what.task.seen(costs[i]), 4), "solution": solutions[i]}
                    for i in range(min(SHOWN, len(costs)))
                ]
        return metrics, shown

    def solved(self, what: AlsoJudged) -> tuple[list[float], list[Any]]:
        """Costs and solutions of the held-out instances, some at a time."""
        costs, solutions = list[float](), list[Any]()
        count = self.evaluation.instances if what.most is None else min(what.most, self.evaluation.instances)
        whole = what.task.environment(self.evaluation.seed, count)
        sampled = what.task.decoding == "sampled"
        stream = generator(self.evaluation.seed, "judged actions") if sampled else None
        for rows in torch.split(torch.arange(whole.rows), ROWS_AT_ONCE):
            done = decoded(self.network(what.model), whole.part(rows), what.width, stream)
            costs += judged(done)
            solutions += [done.solution(row) for row in range(done.rows)]
        return costs, solutions

    def evaluation_facts(self) -> dict[str, Any]:
        """The instances, and how they are decoded."""
        return {**dataclasses.asdict(self.evaluation), "decoding": self.task.decoding}

    # -------------------------------------------------------------------------------------------------- folders

    def stored(self) -> Mapping[str, Stored]:
        """The models, and what they are of."""
        return {"about": StoredBy(self._write_about, lambda _: None), **self.models.stored()}

    def _write_about(self, folder: Path) -> None:
        about = {
            "task": self.task.name,
            "settings": dataclasses.asdict(self.task),
            "models": {name: {"name": m.name, **dataclasses.asdict(m)} for name, m in self.models.entries.items()},
        }
        (folder / "policy.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def export(self, folder: Path) -> None:
        """Write what is judged in the place of every model, and `policy.json` about it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.models:
            StoredModule(name, self.network(self.judges)).save(folder)
        self._write_about(folder)


def decoded(
    network: ConstructiveNetwork, environment: ConstructionEnvironment, width: int, stream: torch.Generator | None
) -> ConstructionEnvironment:
    """Rows at their end: greedily, by actions drawn from `stream`, or by beam search."""
    if width == 1:
        return build(network, environment, stream=stream).environment
    return beam_search(network, environment, width)


def _word(line: str) -> str:
    """`2-opt and Or-opt` -> `2_opt_and_or_opt`: part of a metric's name."""
    return "".join(letter if letter.isalnum() else "_" for letter in line.lower())


def make_run_state(
    config: RunConfig, task: CombinatorialTask, recipe: Recipe, say: Callable[[str], None] = lambda _: None
) -> CombinatorialRunState:
    """Build the networks, with weights drawn from the run's seed.

    Raises:
        UserError: a device other than the CPU, or a model that builds nothing.
    """
    if config.device not in ("auto", "cpu"):
        raise UserError(f"Solutions are built on the CPU; leave out --device {config.device}.")
    for part in recipe.parts():
        if part.solves not in ("", "combinatorial"):
            raise UserError(
                f"{recipe.name} cannot run on {task.name}: its part '{part.name}' is for {part.solves}, and this is a "
                f"combinatorial problem; {BUILDING}."
            )
    if not recipe.models:
        raise UserError(f"{recipe.name} brings nothing that builds solutions; {BUILDING}.")
    usual = Evaluation(instances=task.held_out_instances)
    how = usual if config.eval_episodes is None else Evaluation(instances=config.eval_episodes)
    models = Models(recipe.models, task, config.seed, recipe.acts)
    for name in models:
        if not isinstance(models[name], ConstructiveNetwork):
            raise UserError(f"The model '{name}' of {recipe.name} builds no solutions; {BUILDING}.")
        if task.kind.state_features and not models[name].reads_node_state:
            raise UserError(
                f"The model '{name}' of {recipe.name} does not read what changes at the nodes of {task.name}; use a "
                "method that does, such as isbjssp."
            )
        if task.kind.has_costs and not models[name].reads_costs:
            raise UserError(
                f"The model '{name}' of {recipe.name} reads places of nodes, and {task.name} has costs between them; "
                "use a method that reads these, such as bq-nco."
            )
        if task.kind.by_moves and not models[name].scores_moves:
            raise UserError(
                f"The model '{name}' of {recipe.name} chooses among nodes, and in {task.name} one chooses among moves; "
                "use a method that does, such as subpo."
            )
    also = {name: _also(entry, task, recipe) for name, entry in recipe.also_judged.items()}
    return CombinatorialRunState(task, models, judges=recipe.judged, evaluation=how, also=also)


def _also(entry: Judged, task: CombinatorialTask, recipe: Recipe) -> AlsoJudged:
    other = named_task(entry.task) if entry.task else task
    if not isinstance(other, CombinatorialTask) or other.kind is not task.kind:
        raise UserError(f"{recipe.name}: '{entry.name}' judges on {entry.task}, which is no other size of {task.name}.")
    model = entry.model or recipe.judged or recipe.acts
    if isinstance(entry, Beam):
        return AlsoJudged(model, other, entry.beam_width, entry.beam_instances)
    return AlsoJudged(model, other)
