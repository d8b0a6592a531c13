"""Judges the policy of a run, or a model folder, on data of other origin: all rows of a file, and those alone.

What compares and limits answers is the run's, unless other rewards, another checker or limit are asked for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.request import domain
from polyrl.runtime.checkpoint import checkpoints
from polyrl.runtime.config import PythonObjects, RunConfig, check_given
from polyrl.runtime.run_folder import RunFolder
from polyrl.trust import check_code, choose

if TYPE_CHECKING:
    from polyrl.run_state.language_run_state import LanguageRunState
    from polyrl.run_state.reward_model import RewardModelRunState


def is_model(folder: Path) -> bool:
    """Whether a folder is a model, of transformers or a reward model, and no run."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").is_file()


def open_on(
    place: Path,
    data: Any,
    given: PythonObjects | None = None,
    *,
    trust_code: bool = False,
    **asked: Any,
) -> LanguageRunState | RewardModelRunState:
    """The state of a run, or of a model that no run has made, whose test prompts are all rows of `data`.

    Args:
        place: a run's folder, or a model's.
        data: a file, a hub data set, or rows.
        given: Python objects that the run was started with, or rewards in the place of its own.
        trust_code: run the files that the run's folder names though you have not run them before.
        asked: fields of `RunConfig` that are other than in the run, `rewards` and `checker` among them.

    Raises:
        UserError: the folder is neither, the run is not of language, or the data cannot be used.
    """
    from polyrl.run_state import language

    given = given or PythonObjects()
    own = bool(asked.get("rewards") or given.rewards)  # the user's choice, made here
    if is_model(place):
        config = RunConfig(method="", task="dataset", dataset="given", model=str(place), **asked)
        choose(config)
        task = language.task_on(config, given, data)
        return language.open_trained(place, config, task, start=str(place))
    stated = RunConfig.from_dict(RunFolder(place).read_config()["run"], place / "config.yaml")
    if domain(stated) != "language":
        raise UserError(f"--dataset means nothing for {place}, which is a run of {domain(stated)}.")
    if own:
        stated = dataclasses.replace(stated, rewards=())
        choose(dataclasses.replace(stated, rewards=asked.get("rewards", ()), preference=None, method="", task=""))
    else:
        check_given(stated, given, place, needs=("reward",))
        check_code(stated, place, ("reward",), trust_code=trust_code)
    check_code(stated, place, ("task",), trust_code=trust_code)
    config = dataclasses.replace(stated, preference=None, from_python=("dataset",), **asked)
    found = checkpoints(place / "checkpoints")
    trained = place / "model" if (place / "model").is_dir() else found[-1] if found else None
    if trained is None:
        raise UserError(f"The run {place} has no model yet: neither model/ nor a checkpoint.")
    task = language.task_on(config, given, data)
    return language.open_trained(trained, config, task, start=_start(stated))


def _start(stated: RunConfig) -> str:
    """The model that the run started from."""
    from polyrl.run_state import language

    if stated.model:
        return stated.model
    return language.make_model(stated, language.make_task(stated, PythonObjects(), load_code=False))
