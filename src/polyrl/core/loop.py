"""The loop: collect, score, credit, select, improve, until the budget is spent; with evaluation, checkpoints, resume.

It knows nothing of methods, tasks or models: it runs a checked `Recipe` in a `RunState` and writes a run folder.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from polyrl.core.context import Context
from polyrl.core.means import Means
from polyrl.core.part import STAGES
from polyrl.core.recipe import Recipe
from polyrl.core.resuming import go_back
from polyrl.core.streams import Observer, collect_streams
from polyrl.core.throughput import throughput
from polyrl.errors import Diverged, NotFinite, UserError
from polyrl.runtime.budget import Spent
from polyrl.runtime.checkpoint import checkpoints, save_checkpoint
from polyrl.runtime.files import WriteError, write_error
from polyrl.runtime.health import Health
from polyrl.runtime.interrupt import interruptible
from polyrl.runtime.memory import peak_memory_bytes, reset_peak_memory
from polyrl.runtime.metric import Metric
from polyrl.runtime.progress import Progress
from polyrl.runtime.ranks import all_ranks, parted, present
from polyrl.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from polyrl.core.experience import Experience
    from polyrl.run_state.base import RunState


@dataclass
class Loop:
    """One run.

    Attributes:
        recipe: a checked recipe.
        run_state: the task and models.
        context: seed, budget, spending and memory of the run.
        metric: what the run is judged by.
        folder: where it is written; None writes nothing (trace).
        progress: what a person sees.
        evaluations: evaluations spread over the budget.
        checkpoint_every: iterations between checkpoints.
        notices: what `resume` found in the folder that somebody should know.
    """

    recipe: Recipe
    run_state: RunState
    context: Context
    metric: Metric = field(default_factory=Metric)
    folder: RunFolder | None = None
    progress: Progress | None = None
    evaluations: int = 10
    checkpoint_every: int = 25
    keep_checkpoints: int = 2
    tensorboard: bool = True
    health: Health = field(default_factory=Health)
    seconds: dict[str, float] = field(default_factory=dict)
    sampled: set[str] = field(default_factory=lambda: {"collect"})
    start: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the optimizers."""
        self._stages = self.recipe.stages()
        self._streams = {name: self.recipe.of_stream(name).stages() for name in self.recipe.streams}
        if self.context.optimizer is None:
            self.context.optimizer = self.recipe.improver.optimizers(self.run_state)
        self.context.turns = self.recipe.turns

    # ---------------------------------------------------------------------------------------------- one iteration

    def iterate(self, observe: Observer | None = None) -> Experience | None:
        """Run an iteration: the five stages once, or as many turns of them as the recipe says.

        Metrics are left in the context; `observe` is called in the last turn only.
        """
        context, recipe = self.context, self.recipe
        context.iteration += 1
        context.metrics, context.ended, context.means, context.params_updated = {}, {}, Means(), False
        before = context.began = dataclasses.replace(context.spent)
        experience: Experience | None = None
        sampling = 0.0  # seconds of the stages in which tokens are sampled
        for turn in range(recipe.turns):
            context.turn = turn if recipe.turns > 1 else None
            experience, took = self._turn(observe if turn + 1 == recipe.turns else None)
            sampling += took
            if context.finished:
                break
        context.spent.iterations += 1
        for rows in context.sources.values():
            rows.commit()
            context.metrics.update(rows.facts())
        spent = context.metrics
        took = present().from_first(lambda: sum(spent[f"seconds/{s}"] for s in STAGES))  # a budget may be in seconds
        context.spent.seconds += took
        if context.spent.tokens > before.tokens:
            spent["tokens_per_second"] = (context.spent.tokens - before.tokens) / sampling
        elif context.spent.steps > before.steps:
            spent["steps_per_second"] = (context.spent.steps - before.steps) / took
        elif recipe.collect is None:
            spent["updates_per_second"] = (context.spent.updates - before.updates) / took
        return experience

    def _turn(self, observe: Observer | None) -> tuple[Experience | None, float]:
        """Run the stages once; what was collected, and the seconds of stages in which tokens were sampled."""
        context, recipe, improver = self.context, self.recipe, self.recipe.improver
        experience: Any = None
        sampling = 0.0
        collects = improver.collects(context)
        for stage, parts in self._stages:
            tokens = context.spent.tokens
            with self._timed(stage):
                if stage == "select":
                    improver.set_rates(context)
                for part in parts:
                    if stage == "improve" or not collects:
                        continue
                    began, earlier = time.perf_counter(), experience
                    experience = part(experience, context)
                    if observe:
                        observe(stage, part, earlier, experience, time.perf_counter() - began)
                for source, rows in zip(recipe.sources.values(), context.sources.values(), strict=True):
                    if source.after == stage and collects:
                        rows.take(experience)
                if stage == "improve":
                    if experience is not None:
                        present().check_same(experience.data)
                    began = time.perf_counter()
                    improver.run(recipe.terms, experience, context)
                    if observe:
                        observe(stage, improver, experience, experience, time.perf_counter() - began)
            if context.spent.tokens > tokens:
                sampling += context.metrics[f"seconds/{stage}"]
                self.sampled.add(stage)
            if stage == "select" and collects:
                sampling += collect_streams(self._streams, context, self._timed, observe)
            if stage == "select" and experience is not None:
                with self._timed("monitor"):
                    self.run_state.monitor(experience, context)
        return experience, sampling

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + took
        self.context.metrics[f"seconds/{stage}"] = self.context.metrics.get(f"seconds/{stage}", 0.0) + took

    # ---------------------------------------------------------------------------------------------- the whole run

    def run(self) -> dict[str, float]:
        """Run until the budget is spent; return the final evaluation.

        Raises:
            UserError: the run cannot go on; summary.json says why, and checkpoints hold what was finished.
        """
        with interruptible() as own_interrupt, parted() as ranks:
            check_interrupt = partial(ranks.interrupted, own_interrupt)
            try:
                final = self._run(check_interrupt)
            except BaseException:
                with suppress(WriteError):  # what stopped the run is the better sentence
                    self._close()
                raise
            self._close()
            check_interrupt()  # asked for while the run came to its end: whoever started it is to hear of it
            return final

    def _close(self) -> None:
        if self.folder:
            self.folder.close()

    def _run(self, check_interrupt: Callable[[], None]) -> dict[str, float]:
        context = self.context
        reset_peak_memory()
        for text in self.run_state.notices():
            self._warn(text)
        try:
            if context.iteration == 0 and not self.start:  # not resumed from the checkpoint before training
                self._record(evaluate=True)
                self._checkpoint()
            self._summary("running")
            self._stop_where_asked(check_interrupt, saved=True)
            while not context.over:
                before = int(context.progress * self.evaluations)
                spent, memories = dataclasses.replace(context.spent), copy.deepcopy(context.memories)
                stores = {name: dict(kept) for name, kept in context.stores.items()}
                try:
                    self.iterate()
                except Diverged:
                    raise  # an older checkpoint is a better one
                except UserError:
                    self._rescue(spent, memories, stores)
                    raise
                share = context.progress
                try:
                    self._record(evaluate=context.over or int(share * self.evaluations) > before)
                except WriteError:
                    raise
                except UserError:  # the iteration is done, only its evaluation failed
                    self.final = {}
                    self._record(evaluate=False)
                    self._checkpoint()
                    raise
                due = context.over or context.iteration % self.checkpoint_every == 0
                if due:
                    self._checkpoint()
                    self._summary("running")
                if context.finished and self.progress:
                    self.progress.ended(context.finished)
                self._stop_where_asked(check_interrupt, saved=due)
            if not self.final:  # resumed after the last iteration, before the summary
                self.final = self._evaluate()[0]
            if self.folder:
                for said in self.folder.write_folder("model", self.run_state.export):
                    self._warn(said)
            self._summary("finished")  # last of all: whoever reads "finished" finds everything else
            return self.final
        except UserError as error:
            self._last_summary("failed", str(error), diverged=isinstance(error, NotFinite))
            raise
        except OSError as error:
            told = write_error(self.folder.path if self.folder else "The run", error)
            self._last_summary("failed", str(told))
            raise told from error
        except KeyboardInterrupt:
            self._last_summary("interrupted")
            raise

    def _stop_where_asked(self, check_interrupt: Callable[[], None], *, saved: bool) -> None:
        """Stop between two iterations, with a checkpoint, where Ctrl-C, SIGTERM or SIGHUP asked for it."""
        try:
            check_interrupt()
        except KeyboardInterrupt:
            if not saved and not self.run_state.restarts_at_checkpoints():
                self._checkpoint()
            raise

    def _warn(self, text: str, place: str = "") -> None:
        self.warnings.append(place + text)
        if self.progress:
            self.progress.warn(text)

    def _evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        with self._timed("evaluate"):
            metrics, samples = self.run_state.evaluate()
        judged = metrics.get(self.metric.key, 0.0)
        if not math.isfinite(judged):
            raise NotFinite(
                f"The evaluation after iteration {self.context.iteration} came to a {self.metric.label} "
                f"({self.metric.key}) of {judged}, so the run stopped; look at what it is computed from: rewards, "
                "costs, or weights that have become so large."
            )
        return metrics, samples

    def _record(self, *, evaluate: bool) -> None:
        """Write the iteration that has just ended."""
        context = self.context
        record: dict[str, Any] = {"iteration": context.iteration, **dataclasses.asdict(context.spent)}
        del record["iterations"]
        if self.run_state.rows_left_out:
            context.metrics["data/rows_left_out"] = self.run_state.rows_left_out
        record.update(context.metrics)
        if evaluate:
            metrics, samples = self._evaluate()
            record.update(metrics)
            self.final = metrics
            if context.iteration == 0:
                self.start = metrics
            if self.folder:
                self.folder.samples([{"iteration": context.iteration, **s} for s in samples])
        elif context.progress < 1:
            self.final = {}
        if self.folder:
            self.folder.log(record, board=self.tensorboard)
        if self.progress:
            self.progress.update(record, context.progress)
        if context.iteration:
            for text in self.health.observe(record):
                self._warn(text, f"iteration {context.iteration}: ")

    # ------------------------------------------------------------------------------------------ checkpoint, resume

    def names(self) -> dict[str, list[str]]:
        """Names of the trained parameters, by model."""
        return {model: [name for name, _ in named] for model, named in self.run_state.parameters().items()}

    def identity(self) -> dict[str, Any]:
        """What tells the checkpoints of this run from those of others."""
        return {"method": self.recipe.name, "seed": self.context.seed, "models": sorted(self.run_state.parameters())}

    def _checkpoint(self) -> None:
        all_ranks().check_equal([p for named in self.run_state.parameters().values() for _, p in named])
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if not self.folder:
            return
        self.folder.flush()
        state = {
            **self.identity(),
            "spent": dataclasses.asdict(self.context.spent),
            "memories": self.context.memories,
            "finished": self.context.finished,
            "seconds": self.seconds,
            "start": self.start,
            "final": self.final,
        }
        with self._timed("checkpoint"):
            save_checkpoint(
                self.folder.path / "checkpoints",
                self.context.iteration,
                state,
                self.context.optimizer,
                self.names(),
                self._save,
                self.context.stores,
                keep=self.keep_checkpoints,
                say=self._warn,
            )

    def _save(self, folder: Path) -> None:
        """Write models and sources into a new checkpoint's folder."""
        self.run_state.save(folder)
        before = checkpoints(folder.parent)
        for rows in self.context.sources.values():
            rows.save(folder, before[-1] if before else None)

    def _rescue(self, spent: Spent, memories: dict[str, Any], stores: dict[str, dict[str, Tensor]]) -> None:
        """Write a checkpoint of the finished iterations when one fails before its first optimizer step."""
        if self.context.params_updated:
            return  # the models have moved: the last regular checkpoint is the one from before
        if not all(rows.rewind() for rows in self.context.sources.values()):
            return  # a source was written over where it began
        self.run_state.rewind()
        self.context.iteration -= 1
        self.context.spent, self.context.memories, self.context.stores = spent, memories, stores
        self.context.finished = ""  # what did not count ends nothing
        self._write_checkpoint()

    def resume(self, folder: RunFolder | None = None) -> int:
        """Go back to the newest checkpoint of the folder; see `polyrl.core.resuming.go_back`.

        It is this run's; of several processes the first alone writes there from now on.
        """
        folder = folder or self.folder
        assert folder is not None
        if all_ranks().first:
            self.folder = folder
        return go_back(self, folder)

    def _last_summary(self, status: str, error: str | None = None, diverged: bool = False) -> None:
        """Write why the run ended, where the disk allows it."""
        with suppress(WriteError):
            self._summary(status, error, diverged)

    def _summary(self, status: str, error: str | None = None, diverged: bool = False) -> None:
        if not self.folder:
            return
        spent = dataclasses.asdict(self.context.spent)
        self.folder.summary(
            {
                "status": status,
                **({"error": error} if error else {}),
                **({"diverged": True} if diverged else {}),
                **({"reason": self.context.finished} if self.context.finished and status == "finished" else {}),
                "iteration": self.context.iteration,
                "spent": spent,
                "start": self.start,
                "final": self.final,
                "seconds_by_stage": {k: round(v, 4) for k, v in self.seconds.items()},
                "throughput": throughput(self.seconds, spent, self.sampled),
                "peak_memory_bytes": peak_memory_bytes(),
                "warnings": self.warnings,
            }
        )
