"""Which problem each run was given: only runs of one problem are compared.

A run states its problem in config.yaml (`polyrl.problem`). Folders of before that are told apart by what else their
config says: task, data, rewards, evaluation. What is compared is content and not a name, so the same rows in two files
are one problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

WORDS = {
    "data": "training data",
    "test_data": "test data",
    "environment": "environment's code",
    "metric.key": "metric",
    "run.dataset": "training data",
    "run.test_dataset": "test data",
    "run.rewards": "rewards",
    "run.preference": "preference",
    "run.task": "task",
    "run.max_tokens": "longest response",
    "limits.max_tokens": "longest response",
}
"""What the reader is told instead of a key."""
NAMED = {"data": "dataset", "test_data": "test_dataset"}
"""Content that is shown by the name that it bears in the run's own words."""
BY_SEED = ("pair_seed", "reward_seed")
"""Settings that follow the run's seed where each seed has a start of its own, unless the task was named with them."""
MOST_SHOWN = 60
"""Characters of a value that are shown."""
_MISSING = object()


@dataclass(frozen=True)
class Problem:
    """One problem and the runs that were given it.

    Attributes:
        name: `problem A`, where there are several.
        stated: what it asks, flat: `settings.lead_time` -> 4.
        runs: positions of its runs in the comparison.
    """

    name: str
    stated: dict[str, Any]
    runs: tuple[int, ...]


def find_problems(configs: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """The problems of runs with these configs, in the order of their first run."""
    stated: list[dict[str, dict[str, Any]]] = []  # of each problem the sections of its first run
    members: list[list[int]] = []
    plain = [_said(config) for config in configs]
    full = [_sections(config.get("problem"), _named(config)) for config in configs]
    for i in sorted(range(len(configs)), key=lambda i: not full[i]):  # those that state it come first
        mine = full[i]
        for group, own in enumerate(stated):
            first = members[group][0]
            same = _same(own, mine) if mine and full[first] else any(plain[i] == plain[j] for j in members[group])
            if same:
                members[group].append(i)
                break
        else:
            stated.append(mine or plain[i])
            members.append([i])
    order = sorted(range(len(members)), key=lambda g: min(members[g]))
    names = [f"problem {_letters(n)}" if len(order) > 1 else "" for n in range(len(order))]
    return [Problem(name, _flat(stated[g]), tuple(sorted(members[g]))) for name, g in zip(names, order, strict=True)]


def differences(problems: Sequence[Problem], configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the problems differ in, in words, and each problem's value of it."""
    keys = list(dict.fromkeys(key for problem in problems for key in problem.stated))
    found: dict[str, list[str]] = {}
    for key in keys:
        values = [problem.stated.get(key, _MISSING) for problem in problems]
        if all(value == values[0] for value in values):
            continue
        top = key.partition(".")[0]
        known = [any(k.partition(".")[0] == top for k in problem.stated) for problem in problems]
        if not all(known):
            continue  # a folder of before does not state this section: it is told apart by what it does say
        word = _word(key)
        shown = [
            _rewards(problem.stated) if top == "rewards" else _shown(key, value, configs[problem.runs[0]])
            for problem, value in zip(problems, values, strict=True)
        ]
        if word not in found or len(set(shown)) > len(set(found[word])):
            found[word] = shown
    return [*found.items()]


def _letters(number: int) -> str:
    """A to Z, then AA and so on."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def _named(config: Mapping[str, Any]) -> str:
    """The task as the run was asked for it, with its settings."""
    run = config.get("run")
    return str(run.get("task", "")) if isinstance(run, Mapping) else ""


def _sections(problem: Any, named: str = "") -> dict[str, dict[str, Any]]:
    """The sections of a stated problem, without what follows the seed; empty where there is none."""
    if not isinstance(problem, Mapping):
        return {}
    found = {str(key): value if isinstance(value, dict) else {"": value} for key, value in problem.items()}
    free = [name for name in BY_SEED if name not in named]
    if "settings" in found:
        found["settings"] = {key: value for key, value in found["settings"].items() if key not in free}
    return found


def _said(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a config says of the problem besides stating it."""
    run = config.get("run")
    asked = run if isinstance(run, Mapping) else {}
    names = ("task", "dataset", "test_dataset", "rewards", "preference", "max_tokens")
    evaluation, metric = config.get("evaluation"), config.get("metric")
    return {
        "task": {"": config.get("task")},
        "difficulty": {"": config.get("difficulty")},
        "run": {name: asked.get(name) or None for name in names},
        "metric": {"key": metric.get("key")} if isinstance(metric, Mapping) else {},
        "evaluation": dict(evaluation) if isinstance(evaluation, Mapping) else {},
    }


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all sections that both state are equal: another version may state more."""
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{section}.{name}" if name != "" else section: value
        for section, values in sections.items()
        for name, value in values.items()
    }


def _word(key: str) -> str:
    top, _, rest = key.partition(".")
    if top == "rewards":
        return "rewards"
    return WORDS.get(key) or (rest.replace("_", " ") if top in ("settings", "evaluation") else top)


def _rewards(stated: Mapping[str, Any]) -> str:
    """The rewards of a problem: their names, and the first digits of what their code or model is."""
    found = []
    for key, value in stated.items():
        if key.startswith("rewards."):
            content = value.get("code") or value.get("model") if isinstance(value, Mapping) else None
            found.append(key.removeprefix("rewards.") + (f", {str(content)[:8]}" if content else ""))
    return " + ".join(found) or "none"


def _shown(key: str, value: Any, config: Mapping[str, Any]) -> str:
    """A value in few characters: content by the name of its file and the first digits of its hash."""
    if value is _MISSING or value is None:
        return "none"
    if key in NAMED:
        run = config.get("run")
        name = run.get(NAMED[key]) if isinstance(run, Mapping) else None
        return f"{PurePath(str(name)).name + ', ' if name else ''}{str(value)[:8]}"
    if key.startswith("run.") and isinstance(value, str):
        value = PurePath(value).name or value
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
