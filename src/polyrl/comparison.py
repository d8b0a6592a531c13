"""Compares methods: every method with every seed at one budget, in parallel processes, and one page at the end.

The comparison is a folder: compare.yaml, a run folder for each method and seed, report.html. Its progress is read from
the run folders, like everything else. The same command on the same folder goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from rich.console import Console
from rich.live import Live
from rich.text import Text

from polyrl.comparison_folder import arm_folder, asked_of, begin, clear, write
from polyrl.comparison_plan import check_free, check_given_by_name, line, planned_text, write_plan
from polyrl.comparison_table import Watch
from polyrl.errors import UserError
from polyrl.problem import CODE, CONTENT, changed, refusal
from polyrl.runtime import ownership
from polyrl.runtime.config import PythonObjects, RunConfig, check_given
from polyrl.runtime.executor import LOCAL, PLAN, RAY, Executor, Job, LocalProcesses, check_executor, kind_of
from polyrl.runtime.files import LONGEST_NAME, writing
from polyrl.runtime.interrupt import stopped_by_signals
from polyrl.runtime.lock import FolderLock
from polyrl.runtime.metric import Metric
from polyrl.runtime.run_folder import RunFolder
from polyrl.runtime.terminal import Terminal
from polyrl.runtime.torchrun import refuse

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.recipe import Recipe
    from polyrl.runs import Say
    from polyrl.runtime.progress import Progress

STOPPED = "it was stopped; the same command goes on with it"
"""What a run says that was asked to stop."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run of a comparison."""

    config: RunConfig
    folder: Path
    given: PythonObjects = dataclasses.field(default_factory=PythonObjects)

    @property
    def key(self) -> str:
        """Folder name, unique in the comparison."""
        return self.folder.name


def run_comparison(
    methods: Sequence[str] | Mapping[str, str],
    base: RunConfig,
    seeds: Sequence[int],
    out: Path | None = None,
    *,
    workers: int | None = None,
    quiet: bool = False,
    overwrite: bool = False,
    sentences: bool = True,
    given: Mapping[str, PythonObjects] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    note: str = "",
    own_starts: bool = True,
    executor: str = LOCAL,
) -> Path:
    """Run what is missing of a comparison, write its page, and return its folder.

    Args:
        methods: the arms; as a mapping, what each is called -> its method.
        sentences: whether to print what the comparison shows, besides its progress.
        given: what only Python can give, by arm; it is sent to the processes of the runs.
        recipes: those of the arms, where they have been made (`polyrl.request`).
        note: a sentence for the page, such as why the comparison is as large as it is; kept where it goes on.
        own_starts: where `base.start` says nothing, a comparison that begins gives each seed a starting model of its
            own, if polyrl makes it.
        executor: who runs the runs (`polyrl.runtime.executor`); with "plan" nobody yet: their lines are written.

    Raises:
        UserError: nothing to compare, a bad method, budget or task, or a folder that holds something else.
    """
    check_executor(executor, workers)
    refuse("a comparison")
    if base.engine:
        raise UserError("A generation server belongs to one run at a time; leave --engine away in a comparison.")
    console = Terminal()
    if len(set(methods)) < len(methods):
        raise UserError("A method is named twice; give each arm once, or vary it, as in grpo 'grpo(clip_range=0.1)'.")
    if not methods or not seeds:
        raise UserError("Name at least one method and one seed to compare.")
    from polyrl.comparison_starts import about_start, with_starts
    from polyrl.request import completed, default_task, make_recipe

    called = dict(methods) if isinstance(methods, Mapping) else {method: method for method in methods}
    task = base.task or default_task(list(called.values()))
    own = {name: (given or {}).get(name, PythonObjects()) for name in called}
    shared = next(iter(own.values()))
    base = dataclasses.replace(base, task=task)
    recipes = recipes or {
        name: make_recipe(dataclasses.replace(base, method=method), own[name]) for name, method in called.items()
    }
    base = dataclasses.replace(completed(base, shared, recipes=recipes), method="")
    labels = {name: "" if name == method else name for name, method in called.items()}
    folder = out or _free_folder(base)
    base = with_starts(base, shared, folder, own=own_starts, overwrite=overwrite)
    arms = []
    for seed, name in ((seed, name) for seed in seeds for name in called):
        config = dataclasses.replace(base, method=called[name], label=labels[name], seed=seed)
        config = dataclasses.replace(config, from_python=own[name].names())
        arms.append(Arm(config, folder / arm_folder(config.label or config.method, seed), own[name]))
    for key, count in Counter(a.key for a in arms).items():
        if count > 1:
            raise UserError(f"Two arms would be the same folder {key}; write one of them in another way.")
    plans = executor == PLAN
    if kind_of(executor) != LOCAL:
        check_given_by_name([*own.values()])
    if plans:
        check_free(folder, overwrite)
    stated = begin(folder, methods, base, seeds, overwrite)
    if any(len(name.encode()) > LONGEST_NAME for name in called) and not quiet:
        console.print("Some names are too long for folders: a hash stands for their ends.", style="dim")
    with stopped_by_signals():
        begins = "problem" not in stated
        missing = overwrite or not all(_finished(a) for a in arms)
        prepared = _prepare(arms, recipes, console, quiet, begins=begins, make=missing and not plans)
        said = " ".join(filter(None, (note, prepared.pop("note", ""), about_start(base, shared))))
        prepared |= {"note": said} if said and begins else {}
        _check_problem(folder, stated.get("problem"), prepared["problem"], console)
        stated |= prepared
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, "comparison")
        try:
            stated = {**stated, **begin(folder, methods, base, seeds, overwrite)}  # another process may have begun it
            if overwrite:
                clear(folder)
            for file in ownership.leftovers(folder):
                file.unlink(missing_ok=True)
            write(folder, stated)
            if plans:
                _plan(folder, arms, console, quiet)
                return folder
            metric = Metric.read(stated)
            todo = [a for a in arms if not _finished(a)]
            _run_all(todo, arms, metric, _executor(executor, base.threads, workers), console, quiet)
            write(folder, {**stated, "finished": datetime.datetime.now().isoformat(timespec="seconds")})
            if not any(_finished(a) for a in arms):
                raise UserError(f"Every run of the comparison failed; the first said: {_error(arms[0])}")
            _conclude(folder, arms, console, quiet or not sentences)
        finally:
            lock.release()
    return folder


def _free_folder(base: RunConfig) -> Path:
    from polyrl.runs import plain

    root = Path(os.environ.get("POLYRL_RUNS", "runs"))
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return root / f"compare-{plain(base.task)}-{stamp}"


def _prepare(
    arms: Sequence[Arm],
    recipes: Mapping[str, Recipe],
    console: Console,
    quiet: bool,
    *,
    begins: bool,
    make: bool = True,
) -> dict[str, Any]:
    """Find every mistake, and make what the runs share once, before the first run; return how they are judged.

    What no arm would use is a mistake where the comparison begins, and not where it goes on. Without `make` each run
    makes by itself what it needs.
    """
    from polyrl.comparison_starts import make_starts
    from polyrl.runs import prepare

    for arm in {a.config.method: a for a in arms}.values():
        sent(arm.given)
    alike = _alike(recipes)
    for text in alike:
        console.print(Text(text), soft_wrap=True)

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(text, style="dim"), soft_wrap=True)

    first = arms[0]
    metric, problem = prepare(first.config, [*recipes.values()], say, given=first.given, begins=begins, make=make)
    if make and first.config.start == "own":
        make_starts([a.config for a in {a.config.seed: a for a in reversed(arms)}.values()][::-1], first.given, say)
    return {**metric.stated(), "problem": problem, **({"note": " ".join(alike)} if alike else {})}


def _alike(recipes: Mapping[str, Recipe]) -> list[str]:
    """A sentence for each arm that is another one over again, as where a setting is given that is the default."""
    found: dict[Any, str] = {}
    said = []
    for name, recipe in recipes.items():
        text = repr((recipe.stages(), recipe.models, recipe.sources, recipe.policy, recipe.turns))
        # classes themselves, too: those of two method files may have one name
        made = (text, *(type(part) for part in recipe.parts()), *(type(entry) for _, entry in recipe.entries()))
        if (first := found.setdefault(made, name)) != name:
            said.append(f"{name} is {first} with the same settings: seed by seed their runs will be equal.")
    return said


def _check_problem(folder: Path, before: Any, now: dict[str, Any], console: Console) -> None:
    """Refuse to go on with a comparison on other data, and say where the user's code is not what it was.

    Raises:
        UserError: the data are not what the comparison began with.
    """
    if differing := changed(before, now, CONTENT):
        raise UserError(refusal(differing, folder, "comparison", "choose another --out or say --overwrite"))
    if differing := changed(before, now, CODE):
        said = f"The code of the {' and the '.join(differing)} has changed since the comparison began: runs of before "
        console.print(Text(f"{said}and runs of now are of different problems, and the page compares them apart."))


def _executor(name: str, threads: int, workers: int | None) -> Executor:
    if kind_of(name) == RAY:
        from polyrl.runtime.ray_cluster import RayCluster

        return RayCluster("" if name == RAY else name, threads, workers)
    return LocalProcesses(work, threads, workers)


def _plan(folder: Path, arms: Sequence[Arm], console: Console, quiet: bool) -> None:
    """Write the lines that make the runs. The code that they name is the user's choice: they say so anywhere."""
    from polyrl.trust import choose, named_code

    for arm in arms:
        choose(arm.config)
    threads = arms[0].config.threads
    lines = [line(arm.folder, threads, trust_code=bool(named_code(arm.config))) for arm in arms]
    methods, seeds = (dict.fromkeys(said) for said in ((a.config.arm for a in arms), (a.config.seed for a in arms)))
    about = (
        f"Compared are {', '.join(f'`{m}`' for m in methods)} on `{arms[0].config.task}`, seeds "
        f"{', '.join(map(str, seeds))}, at a budget of {arms[0].config.budget} each."
    )
    gather = f"polyrl report {shlex.quote(str(folder))}"
    write_plan(folder, lines, threads, about, gather)
    if not quiet:
        console.print(Text(planned_text(folder, len(lines), gather)), soft_wrap=True)


def begin_asked(
    folder: Path, *, trust_code: bool = False, progress: Progress | None = None, say: Say = lambda _: None
) -> Loop | None:
    """Begin the run that the comparison around `folder` asks for there; None where it asks none, or that has begun.

    Raises:
        UserError: it names code that the user has not chosen, or what only Python can give; or it cannot begin.
    """
    from polyrl.runs import start_run
    from polyrl.runtime.checkpoint import checkpoints
    from polyrl.trust import check_code

    config = asked_of(folder)
    if config is None or (checkpoints(folder / "checkpoints") and (folder / "config.yaml").is_file()):
        return None
    if is_finished(folder):  # without its checkpoints
        return None
    check_given(config, None, folder.absolute().parent, "compare")
    check_code(config, folder.absolute().parent, trust_code=trust_code)
    return start_run(config, folder, progress=progress, overwrite=True, say=say, asked=False)


def is_finished(folder: Path) -> bool:
    """Whether a run folder's summary says that the run is finished."""
    return RunFolder(folder).read_summary().get("status") == "finished"


def _status(arm: Arm) -> str:
    return str(RunFolder(arm.folder).read_summary().get("status", "running"))


def _finished(arm: Arm) -> bool:
    return _status(arm) == "finished"


def _error(arm: Arm) -> str:
    return str(RunFolder(arm.folder).read_summary().get("error", "it was killed"))


def sent(given: PythonObjects) -> bytes:
    """What only Python can give, as it goes to another process; empty where there is nothing.

    Raises:
        UserError: one of the objects cannot go there.
    """
    if not given.names():
        return b""
    try:
        return bytes(cloudpickle.dumps(given))
    except Exception as error:  # whatever an object of the user's raises
        raise UserError(
            f"The {' and '.join(given.names())} given from Python cannot be sent to the processes of the runs "
            f"({type(error).__name__}: {error}); give a file or a name, as in --reward file.py:function."
        ) from error


def work(values: dict[str, Any], folder: str, sent_objects: bytes = b"") -> str:
    """Do one run in a worker process; return its error, or an empty string."""
    from polyrl.runs import resume_run, start_run
    from polyrl.runtime.checkpoint import checkpoints
    from polyrl.runtime.progress import Progress

    config, path = RunConfig.from_dict(values), Path(folder)
    # bytes of the parent alone: arguments with which it started this process
    given = cloudpickle.loads(sent_objects) if sent_objects else None
    progress = Progress(config.arm, config.budget, quiet=True, console=Terminal(file=open(os.devnull, "w")))  # noqa: SIM115
    begun = False
    try:
        if checkpoints(path / "checkpoints") and (path / "config.yaml").is_file():
            loop = resume_run(path, given=given, progress=progress, chosen=config)
        else:
            # what is asked was looked at for all arms together
            loop = start_run(config, path, given=given, progress=progress, overwrite=True, asked=False)
        begun = True
        loop.run()
    except KeyboardInterrupt:
        return STOPPED
    except UserError as error:
        if not begun:  # else the run has said so itself
            _note_failure(path, str(error))
        return str(error)
    return ""


def _note_failure(path: Path, said: str) -> None:
    """Write why a run could not begin or go on, where its folder is polyrl's and free, and the disk allows it."""
    folder = RunFolder(path)
    with contextlib.suppress(UserError, OSError):
        path.mkdir(parents=True, exist_ok=True)
        if ownership.is_run(path) or ownership.is_unbegun(path):
            folder.hold()
            folder.summary({**folder.read_summary(), "status": "failed", "error": said})
    folder.release()


def _run_all(
    todo: list[Arm],
    arms: list[Arm],
    metric: Metric,
    executor: Executor,
    console: Console,
    quiet: bool,
) -> None:
    from polyrl.trust import named_code

    if not todo:
        return
    began = time.perf_counter()
    watch = Watch(arms, metric)
    packed = {key: sent(given) for key, given in {id(a.given): a.given for a in todo}.items()}
    asked = [Job(a.config.as_dict(), str(a.folder), packed[id(a.given)], bool(named_code(a.config))) for a in todo]
    with executor, ThreadPoolExecutor(executor.at_once(len(todo))) as pool:
        jobs = {pool.submit(executor.work, job): a for job, a in zip(asked, todo, strict=True)}
        try:
            if quiet:
                _await(jobs)
            elif console.is_terminal:
                with Live(console=console, refresh_per_second=2) as live:
                    _await(jobs, lambda: live.update(watch.table(began)))
            else:
                last = [0.0]

                def line() -> None:
                    if time.perf_counter() - last[0] > 15:
                        last[0] = time.perf_counter()
                        console.print(watch.line(began))

                _await(jobs, line)
                console.print(watch.line(began))
        except BaseException:
            executor.stop()  # each run ends with a checkpoint, and only then this process
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job, arm in jobs.items():
        if said := job.result():
            console.print(Text.assemble(("failed", "bold red"), f" {arm.key}: {said}"), soft_wrap=True)
            if said != STOPPED and _status(arm) != "failed":  # it could not say so itself
                _note_failure(arm.folder, said)


def _await(jobs: dict[Future[str], Arm], show: Any = None) -> None:
    while not all(job.done() for job in jobs):
        time.sleep(0.5)
        if show:
            show()
    if show:
        show()


def _conclude(folder: Path, arms: list[Arm], console: Console, quiet: bool) -> None:
    from polyrl.report.findings import verdict
    from polyrl.report.page import write_report
    from polyrl.report.runs import load_comparison

    read = load_comparison(folder)
    page = write_report([folder], folder / "report.html", read)
    if quiet:
        return
    console.print()
    for sentence in verdict(read):
        console.print(Text(sentence), soft_wrap=True)
    console.print(Text.assemble("\nThe comparison: ", (str(page.resolve()), "bold")), soft_wrap=True)
