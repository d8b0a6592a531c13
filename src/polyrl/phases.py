"""Phases: runs of language one after another in one folder, each from the model that the one before has trained.

    sft,dpo                      on the command line; --sft.budget samples=4000 is of that phase alone
    phases: [...]                in a recipe file
    train(["sft", "dpo"])        in Python

A phase is a run like any other, in a folder of its own within the phases' folder. It starts from the model of the last
phase that trained a policy, which is its reference too. A reward model that a phase has trained is the reward of those
behind it that name none. `phases.yaml` says what is run; `polyrl resume` goes on within the phase that was interrupted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from polyrl import catalogue
from polyrl.errors import UserError, nearest
from polyrl.request import Asked, Frontend, Request, default_task, read
from polyrl.runtime import ownership
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.runtime.files import read_yaml, short_name, write_atomically, writing
from polyrl.runtime.lock import FolderLock
from polyrl.runtime.options import by_name
from polyrl.runtime.progress import Progress
from polyrl.runtime.run_folder import PHASES, RunFolder, check_place, provenance
from polyrl.runtime.torchrun import refuse
from polyrl.settings import american
from polyrl.tasks import domain_of

if TYPE_CHECKING:
    from polyrl.core.loop import Loop
    from polyrl.recipe import Recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunPhase:
    """One phase.

    Attributes:
        name: of its folder, such as `2-dpo`.
        config: of its run; `model` is empty where it starts from the phase before.
        judges: whether it trains a reward model, which phases behind it are rewarded by.
        recipe: its recipe, where it has been made.
        given: what only Python gave.
    """

    name: str
    config: RunConfig
    judges: bool
    recipe: Recipe | None = None
    given: PythonObjects | None = None


# ----------------------------------------------------------------------------------------------------------- asking


def split_phases(method: str) -> list[str]:
    """`sft,dpo(beta=0.1,length_norm=true)` -> ["sft", "dpo(beta=0.1,length_norm=true)"]; one method is one phase."""
    if method.endswith(".py") and Path(method).expanduser().is_file():
        return [method]
    return [part.strip() for part in re.split(r",(?![^()]*\))", method)]


def plain_name(method: str) -> str:
    """What a phase is called in options: the method without what stands in parentheses, of a file its name."""
    name = re.sub(r"\([^()]*\)", "", method)
    return Path(name).stem if name.endswith(".py") else name


def asked_of_phases(asked: Asked, methods: Sequence[str]) -> list[Asked]:
    """What was asked of all phases together, phase by phase.

    `PHASE.NAME` is an option or a hyperparameter of one phase, which is called by its method or its number; any other
    option is of all phases, but the model, from which the first one starts. Hyperparameters without a phase are set in
    all phases that have them.

    Args:
        asked: settings and hyperparameters of the command or the call.
        methods: of the phases.

    Raises:
        UserError: nothing bears a name; or it says twice which of the phases is meant.
    """
    names = [plain_name(method) for method in methods]
    own: list[dict[str, Any]] = [{} for _ in methods]
    shared: dict[str, Any] = {}
    for name, value in asked.hyperparameters.items():
        phase, dot, rest = name.partition(".")
        found = [i for i, known in enumerate(names) if dot and phase in (known, str(i + 1))]
        if len(found) > 1:
            raise UserError(f"'{name}' could mean phase {' or '.join(str(i + 1) for i in found)}; write the number.")
        if found:
            own[found[0]][american(rest.replace("-", "_"))] = value
        else:
            shared[american(name.replace("-", "_"))] = value
    options, said = by_name(), []
    for i, method in enumerate(methods):
        settings = {k: v for k, v in asked.settings.items() if k != "model" or i == 0}
        hyperparameters: dict[str, Any] = {}
        for name, value in own[i].items():
            if name == "budget":
                Budget.parse(str(value))
            if (option := options.get(name)) is None:
                hyperparameters[name] = value
            else:
                read_value = option.read(value) if isinstance(value, str) else value
                settings[option.of] = (read_value,) if option.many else read_value
        said.append(dataclasses.replace(asked, methods=[method], settings=settings, hyperparameters=hyperparameters))
    return _with_shared(said, shared)


def _with_shared(said: list[Asked], shared: Mapping[str, Any]) -> list[Asked]:
    """Hyperparameters of no phase, put into all phases that have them."""
    if not shared:
        return said
    known = []
    for one in said:
        recipe = one.recipes.get(one.methods[0]) or catalogue.compose(one.methods[0], "language")
        known.append({n for key in recipe.hyperparameters() for n in (key.replace("-", "_"), key.rpartition(".")[2])})
    for name in shared:
        if not any(name in names for names in known):
            every = [n for names in known for n in names]
            methods = " and ".join(one.methods[0] for one in said)
            raise UserError(
                f"--{name.replace('_', '-')} is no option and no hyperparameter of {methods}."
                f"{nearest(name, dict.fromkeys(every))}"
            )
    return [
        dataclasses.replace(
            one, hyperparameters={**{n: v for n, v in shared.items() if n in names}, **one.hyperparameters}
        )
        for one, names in zip(said, known, strict=True)
    ]


def read_phases(asked: Sequence[tuple[Frontend, Asked]]) -> list[RunPhase]:
    """The phases that were asked for, checked.

    Raises:
        UserError: what `polyrl.request.read` refuses; a phase that is not of language, or that is given a model though
            it is to start from the phase before.
    """
    free = [one for _, one in asked if not (one.settings.get("task") or _has_data(one))]
    named = [str(one.settings["task"]) for _, one in asked if one.settings.get("task")]
    task = ""
    if free:
        task = named[0] if named else default_task([one.methods[0] for one in free])
    requests = []
    for frontend, one in asked:
        if task and not (one.settings.get("task") or _has_data(one)):
            one = dataclasses.replace(one, settings={**one.settings, "task": task})
        requests.append(read(frontend, one))
    return [_phase(number, request) for number, request in enumerate(requests, start=1)]


def _has_data(one: Asked) -> bool:
    return bool(one.settings.get("dataset")) or one.given.dataset is not None


def _phase(number: int, request: Request) -> RunPhase:
    config, recipe = request.config, request.recipe
    (given,) = request.given.values()
    name = f"{number}-{short_name(''.join(c if c.isalnum() or c in '+-.' else '-' for c in plain_name(config.method)))}"
    if given.environment or domain_of(config.task or catalogue.default_task(config.method)) != "language":
        raise UserError(
            f"The phase '{config.method}' is not of language, where a model is handed on; run it by itself."
        )
    if number > 1 and config.model:
        raise UserError(
            f"Phase {number}, '{config.method}', starts from the model that the phase before has trained; leave its "
            "model away."
        )
    return RunPhase(name, config, "reward-model" in recipe.required_models(), recipe, given)


# ---------------------------------------------------------------------------------------------------------- running


def is_phases(folder: Path) -> bool:
    """Whether a folder holds phases."""
    return (folder / PHASES).is_file()


def run_phases(
    phases: Sequence[RunPhase],
    folder: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    say: Say = lambda _: None,
    finished: Callable[[Loop], None] = lambda _: None,
) -> None:
    """Run phases in a new folder; `finished` is told of each that has ended.

    Raises:
        UserError: the folder is there already, or a phase cannot be run.
    """
    from polyrl.runs import located
    from polyrl.trust import choose

    refuse("a list of phases")
    check_place(folder, "phases' folder")
    if folder.exists() and not ownership.is_unbegun(folder):
        if not is_phases(folder):
            raise UserError(f"The folder {folder} exists already and holds no phases; choose another --out.")
        if not overwrite:
            raise UserError(
                f"The folder {folder} exists already; choose another --out, or go on with `polyrl resume {folder}`."
            )
        _clear(folder)
    for phase in phases:
        choose(phase.config)
    phases = [dataclasses.replace(phase, config=located(phase.config)) for phase in phases]
    for phase in phases:
        check_before(phase)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stated = {
        **{k: v for k, v in provenance().items() if k in ("polyrl", "command", "versions", "commit")},
        "phases": [{"name": p.name, "judges": p.judges, "run": p.config.as_dict()} for p in phases],
    }
    lock = FolderLock(folder, "phases' folder")
    try:
        with writing(folder / PHASES):
            write_atomically(folder / PHASES, yaml.safe_dump(stated, sort_keys=False, allow_unicode=True))
        _go(phases, folder, quiet=quiet, say=say, finished=finished)
    finally:
        lock.release()


def resume_phases(
    folder: Path,
    *,
    trust_code: bool = False,
    quiet: bool = False,
    say: Say = lambda _: None,
    finished: Callable[[Loop], None] = lambda _: None,
) -> None:
    """Go on with the phase that was interrupted, to the same numbers, and run those behind it.

    Raises:
        UserError: a phase cannot go on.
    """
    from polyrl.trust import check_code

    refuse("a list of phases")
    phases = stated_phases(folder)
    for phase in phases:
        check_code(phase.config, folder, trust_code=trust_code)
    lock = FolderLock(folder, "phases' folder")
    try:
        if all(_is_finished(folder / phase.name) for phase in phases):
            say("All phases are finished.")
        _go(phases, folder, quiet=quiet, say=say, finished=finished, trust_code=trust_code)
    finally:
        lock.release()


def stated_phases(folder: Path) -> list[RunPhase]:
    """The phases that a folder's `phases.yaml` states.

    Raises:
        UserError: it cannot be read, or does not say them.
    """
    file = folder / PHASES
    listed = read_yaml(file).get("phases")
    found = []
    for one in listed if isinstance(listed, list) else []:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"\d+-[^/\\]+", name) or not isinstance(one.get("run"), dict):
            raise UserError(f"{file} does not say what its phases are; start again with another --out.")
        found.append(RunPhase(name, RunConfig.from_dict(one["run"], file), one.get("judges") is True))
    if not found:
        raise UserError(f"{file} does not say what its phases are; start again with another --out.")
    return found


def phase_folders(folder: Path) -> list[Path]:
    """The run folders of a folder's phases, as far as they have begun."""
    return [place for p in stated_phases(folder) if ((place := folder / p.name) / "config.yaml").is_file()]


def acting_run(folder: Path) -> Path:
    """The run folder whose policy stands for a folder: of phases the last one that has a policy; else itself.

    Raises:
        UserError: no phase has one yet.
    """
    if not is_phases(folder):
        return folder
    judges = {phase.name for phase in stated_phases(folder) if phase.judges}
    able = [p for p in phase_folders(folder) if p.name not in judges and ((p / "model").is_dir() or _saved(p))]
    if not able:
        raise UserError(f"No phase of {folder} has a policy yet.")
    return able[-1]


def _saved(run: Path) -> bool:
    from polyrl.runtime.checkpoint import checkpoints

    return bool(checkpoints(run / "checkpoints"))


def default_phases_folder(phases: Sequence[RunPhase]) -> Path:
    """`runs/<methods>-<task>-seed<n>`."""
    from polyrl.runs import default_folder

    label = "-".join(plain_name(phase.config.method) for phase in phases)
    return default_folder(dataclasses.replace(phases[-1].config, label=label))


def _is_finished(run: Path) -> bool:
    return RunFolder(run).read_summary().get("status") == "finished" and (run / "model").is_dir()


def _go(
    phases: Sequence[RunPhase],
    folder: Path,
    *,
    quiet: bool,
    say: Say,
    finished: Callable[[Loop], None],
    trust_code: bool = False,
) -> None:
    """Run what is left of the phases."""
    from polyrl.runs import resume_run, start_run

    model, judge = "", ""
    for number, phase in enumerate(phases, start=1):
        run = folder / phase.name
        if not _is_finished(run):
            say(f"phase {number} of {len(phases)}: {phase.config.arm}")
            progress = Progress(phase.config.arm, phase.config.budget, quiet=quiet)
            if (run / "config.yaml").is_file():
                loop = resume_run(run, progress=progress, say=say, trust_code=trust_code, given=phase.given)
            else:
                loop = start_run(
                    handed_on(phase.config, model, judge),
                    run,
                    given=phase.given,
                    recipe=phase.recipe,
                    progress=progress,
                    overwrite=True,
                    say=say,
                )
            with progress:
                loop.run()
            finished(loop)
        here = str((run / "model").absolute())
        model, judge = (model, here) if phase.judges else (here, judge)


def check_before(phase: RunPhase) -> None:
    """Find the mistakes of a phase that show without its model, before the first phase has cost anything.

    Raises:
        UserError: its data, rewards or budget are no good, or an option would do nothing.
    """
    from polyrl.request import completed, domain, make_task
    from polyrl.runs import make_budget
    from polyrl.unused import refuse_unused

    assert phase.recipe is not None
    config = completed(phase.config, phase.given, recipes={phase.config.method: phase.recipe})
    make_budget(config, phase.recipe)
    task = make_task(config, phase.given)
    refuse_unused(config, [phase.recipe], task, domain(config, phase.given))


def handed_on(config: RunConfig, model: str, judge: str) -> RunConfig:
    """A phase's config with the model that was trained before it, and the reward model where it names no reward."""
    if model:
        config = dataclasses.replace(config, model=model)
    if judge and not config.rewards and "reward" not in config.from_python:
        config = dataclasses.replace(config, rewards=(judge,))
    return config


def _clear(folder: Path) -> None:
    """Remove phases that are to be replaced, and nothing that polyrl did not write.

    Raises:
        UserError: there is something else.
    """
    names = {phase.name for phase in stated_phases(folder)}
    held = {entry.name: entry for entry in folder.iterdir()}
    foreign = [n for n in held if n not in {*names, PHASES, ownership.LOCK, "report.html", "report.csv"}]
    holdings = [ownership.run_holding(held[n], f"{n}/") for n in names & held.keys() if held[n].is_dir()]
    foreign += [n for holding in holdings for n in holding.foreign]
    if foreign:
        raise UserError(
            f"The folder {folder} holds what polyrl did not write ({', '.join(sorted(foreign)[:3])}), so it is not "
            "overwritten; move that away, or choose another --out."
        )
    lock = FolderLock(folder, "phases' folder")
    try:
        with writing(folder):
            for holding in holdings:
                holding.remove()
            for name in ("report.html", "report.csv"):
                (folder / name).unlink(missing_ok=True)
    finally:
        lock.release()
