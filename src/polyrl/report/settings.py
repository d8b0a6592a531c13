"""Which settings the runs of a comparison share, and which differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyrl.report.runs import Run


class Absent:
    """The value of a setting that a method does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass(frozen=True)
class Settings:
    """Settings that all methods share, and those that differ, by method (`ABSENT` where it has none)."""

    equal: dict[str, Any]
    differing: dict[str, dict[str, Any]]


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = ("domain", "task", "difficulty", "model", "start", "device", "threads", "commit", "polyrl")
    flat = {key: config[key] for key in plain if config.get(key) not in (None, "")}
    for section in ("budget", "evaluation", "hyperparameters", "versions"):
        values = config.get(section)
        prefix = "" if section == "hyperparameters" else f"{section}."
        if isinstance(values, Mapping):
            flat |= {f"{prefix}{name}": value for name, value in values.items()}
    if "versions.polyrl" in flat:
        flat.pop("polyrl", None)  # the same number, said twice
    return flat


OWN_START = "each seed its own"


def own_starts(runs: Sequence[Run]) -> dict[str, str]:
    """What stands for the starting models of runs in which each seed has its own, the same for all methods.

    Empty where seeds share a start, or the runs of one seed have several: then their fingerprints tell.
    """
    asked = [run.config.get("run") for run in runs]
    if not runs or not all(isinstance(of, Mapping) and of.get("start") == "own" for of in asked):
        return {}
    found: dict[int, set[Any]] = {}
    for run in runs:
        found.setdefault(run.seed, set()).add(run.config.get("start"))
    return {"start": OWN_START, "model": OWN_START} if all(len(of) == 1 for of in found.values()) else {}


def compare_settings(runs: Sequence[Run]) -> Settings:
    """Split the settings of `runs` into those equal in every run and those that differ, by label.

    A label whose own seeds disagree shows all its values, joined by " / ": such an arm is not one method.
    """
    starts = own_starts(runs)
    flat = [(run.label, {**_flat(run.config), **starts}) for run in runs]
    equal: dict[str, Any] = {}
    differing: dict[str, dict[str, Any]] = {}
    for key in _once(key for _, settings in flat for key in settings):
        values = [settings.get(key, ABSENT) for _, settings in flat]
        if all(value == values[0] for value in values):
            equal[key] = values[0]
            continue
        differing[key] = {}
        for label in _once(label for label, _ in flat):
            own = [settings.get(key, ABSENT) for name, settings in flat if name == label]
            same = all(value == own[0] for value in own)
            differing[key][label] = own[0] if same else " / ".join(_once(str(value) for value in own))
    # What all methods have and set differently matters most to a reader; parts of one method alone come after.
    order = sorted(differing, key=lambda key: ABSENT in differing[key].values())
    return Settings(equal, {key: differing[key] for key in order})
