"""Which starting models a comparison's runs have: each seed its own, or one for all, and what its page says of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from polyrl.comparison_folder import read_comparison
from polyrl.request import domain, domain_module, make_task
from polyrl.runtime.config import PythonObjects, RunConfig

Say = Callable[[str], None]


def makes_start(config: RunConfig, given: PythonObjects) -> bool:
    """Whether polyrl makes the starting model: of a built-in task of language, where no model is given."""
    data = config.dataset or given.dataset is not None
    return not (config.model or data) and domain(config, given) == "language"


def with_starts(config: RunConfig, given: PythonObjects, folder: Path, *, own: bool, overwrite: bool) -> RunConfig:
    """What a comparison in `folder` asks: where it says nothing of its starts, each seed's own if `own`.

    A comparison that has begun goes on with what it began with.
    """
    if config.start is not None or not own or not makes_start(config, given):
        return config
    if not overwrite and (folder / "compare.yaml").is_file():
        return dataclasses.replace(config, start=read_comparison(folder)["question"]["base"].get("start"))
    return dataclasses.replace(config, start="own")


def about_start(config: RunConfig, given: PythonObjects) -> str:
    """A sentence for the page where the seeds are not independent of their start; empty where they are."""
    if config.model and domain(config, given) == "language":
        return "All seeds begin as one model: the result is of this model, and its intervals say nothing of others."
    if config.start != "own" and makes_start(config, given):
        return (
            "All seeds share one starting model, so their intervals say nothing of other starts; --start own gives "
            "each seed its own."
        )
    return ""


def make_starts(configs: Sequence[RunConfig], given: PythonObjects, say: Say) -> None:
    """Make the starting models of several seeds, and their reward models and pairs, where they are not in the cache.

    Args:
        configs: one of each seed.
        given: what Python gave of the runs.
        say: is told what is going on.
    """
    for number, config in enumerate(configs, 1):
        told = f"start {number} of {len(configs)}, seed {config.seed}: "
        domain_module(config, given).prepare(config, make_task(config, given), lambda t, told=told: say(told + t))
