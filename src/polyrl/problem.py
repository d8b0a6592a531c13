"""What a run asks: its problem, stated in config.yaml so that runs of different problems are not taken for one.

Two runs are of one problem when they would be judged alike whatever the method: the same task with the same settings,
the same training and test data, rewards, preference, metric, evaluation and limits. Content is compared and not a name:
data by a hash of its rows, a user's function by a hash of its code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from polyrl.runtime.metric import Metric
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.language import LanguageTask
from polyrl.tasks.language.base import Preference, Reward
from polyrl.tasks.language.chat import Chat
from polyrl.tasks.language.dataset import DatasetTask
from polyrl.tasks.theory.finite import FiniteTask, OwnFiniteTask
from polyrl.tasks.theory.games import MatrixGame
from polyrl.tasks.user_code import code_digest, is_user_code

NOT_SETTINGS = frozenset(
    {"name", "spec", "data", "test_data", "columns", "skip_bad_rows", "max_tokens", "stop", "start_accuracy", "budget"}
)
"""Fields of tasks that are stated by other means, or that say nothing of what is asked."""
NOT_JUDGEMENT = frozenset({"shown", "instance"})
"""Facts of an evaluation that change no result: how many samples are kept, and a game that follows the run's seed."""
CONTENT = ("data", "test_data", "arrays")
"""What a run cannot go on without: other rows lead to other numbers."""
BEGAN = "at the start"
CODE = ("rewards", "preference", "environment")
"""Code of the user's own, which may be mended while a run waits to be resumed."""


def state_problem(task: Any, metric: Metric, evaluation: Mapping[str, Any], spec: str = "") -> dict[str, Any]:
    """The problem as plain values for config.yaml.

    Args:
        task: what is to be solved, as `make_task` returned it.
        metric: what the run is judged by.
        evaluation: how, `RunState.evaluation_facts`.
        spec: the task as it was named: a random game or problem whose number is not in it follows the run's seed.
    """
    stated: dict[str, Any] = {"task": task.spec if isinstance(task, ControlTask) else task.name}
    stated["settings"] = _settings(task)
    by_seed = isinstance(task, MatrixGame) or (isinstance(task, FiniteTask) and task.drawn_by_seed)
    if by_seed and "instance" not in spec:
        del stated["settings"]["instance"]
    if isinstance(task, FiniteTask):
        if not by_seed or "instance" in spec:
            stated["arrays"] = task.mdp.digest
        if isinstance(task, OwnFiniteTask):  # a file's folder says nothing
            stated["task"] = stated["task"].replace("\\", "/").rpartition("/")[2]
    if isinstance(task, ControlTask):
        stated["environment"] = code_digest(task.make) if task.make is not None else None
        if task.make is not None:  # a file's folder says nothing
            stated["task"] = stated["task"].replace("\\", "/").rpartition("/")[2]
        if task.recorded is not None:
            stated["data"] = task.recorded.digest
    if isinstance(task, LanguageTask):
        if isinstance(task, DatasetTask):
            stated["data"], stated["test_data"] = rows_digest(task.train_rows), rows_digest(task.test_rows)
        if task.chat is not None and task.chat != Chat():
            stated["chat"] = dataclasses.asdict(task.chat)
        stated["limits"] = {"max_tokens": task.max_tokens, "stop": list(task.stop)}
        stated["rewards"] = {reward.name: _reward(reward) for reward in task.rewards}
        stated["preference"] = None if task.preference is None else _preference(task.preference)
    stated["metric"] = {"key": metric.key, "higher_is_better": metric.higher_is_better}
    stated["evaluation"] = {
        name: value for name, value in evaluation.items() if name not in {*stated["settings"], *NOT_JUDGEMENT}
    }
    plain: dict[str, Any] = json.loads(json.dumps(stated, default=_plain))
    return plain


def changed(before: Any, now: Mapping[str, Any], sections: tuple[str, ...]) -> list[str]:
    """Which of these sections of two stated problems differ, in words; what one of them does not state is left out."""
    if not isinstance(before, Mapping):
        return []
    words = {"data": "training data", "test_data": "test data", "environment": "environment's code"}
    words["arrays"] = "arrays of the MDP"
    return [words.get(s, s) for s in sections if s in before and s in now and latest(before[s]) != now[s]]


def refusal(differing: list[str], folder: Any, what: str, way: str) -> str:
    """One sentence on what a run or a comparison (`what`) cannot go on with."""
    one = len(differing) == 1
    return (
        f"The {' and the '.join(differing)} of {folder} {'is' if one else 'are'} not what the {what} began with, so it "
        f"cannot go on to the same numbers; put {'it' if one else 'them'} back, or {way}."
    )


def gone_on(before: Mapping[str, Any], now: Mapping[str, Any], iteration: int) -> dict[str, Any]:
    """The problem of a run that goes on with other code of the user's from `iteration` on: both, so it is neither."""
    problem = dict(before)
    for section in CODE:
        if section in before and section in now and latest(before[section]) != now[section]:
            old = before[section]
            was = old if isinstance(old, Mapping) and BEGAN in old else {BEGAN: old}
            problem[section] = {**was, f"from iteration {iteration}": now[section]}
    return problem


def latest(stated: Any) -> Any:
    """What a section states of the run's present code."""
    return list(stated.values())[-1] if isinstance(stated, Mapping) and BEGAN in stated else stated


def rows_digest(rows: Any) -> str:
    """16 hexadecimal digits that identify the rows of a data set, in their order."""
    found = hashlib.blake2b(digest_size=8)
    for row in rows:
        found.update(json.dumps(row, sort_keys=True, default=_plain).encode())
        found.update(b"\n")
    return found.hexdigest()


def _plain(value: Any) -> str:
    """What JSON cannot hold, by its text; an object that only tells its address by its kind."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _settings(task: Any) -> dict[str, Any]:
    """The task's own fields that hold plain values."""
    if not dataclasses.is_dataclass(task):
        return {}
    values = {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.init and f.name not in NOT_SETTINGS}
    values = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


def _reward(reward: Reward) -> dict[str, Any]:
    """Its weight and, where it is no part of polyrl, what its code or model is."""
    found: dict[str, Any] = {"weight": reward.weight}
    if reward.folder:
        from polyrl.runtime.files import fingerprint

        found["model"] = fingerprint(reward.folder)
    elif is_user_code(reward.function):
        found["code"] = code_digest(reward.function)
    return found


def _preference(preference: Preference) -> dict[str, Any]:
    user = is_user_code(preference.function)
    return {"name": preference.name, **({"code": code_digest(preference.function)} if user else {})}
