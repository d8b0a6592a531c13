"""Runs that a part ends: evaluated, saved, told; resumed to the same end; what did not count ends nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from conftest import SEED, read_records
from polyrl.core.context import Context
from polyrl.core.experience import Experience
from polyrl.core.more_budget import finished
from polyrl.core.update import Fresh, OwnUpdate, See
from polyrl.errors import UserError
from polyrl.models.finite import FinitePolicy
from polyrl.parts.finite import PlayEpisodes
from polyrl.recipe import Recipe, hyperparameter
from polyrl.runs import resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Until(PlayEpisodes):
    """Play, and end the run after so many passes; fail then, where asked."""

    episodes: int = hyperparameter(2, "episodes in one pass", low=1)
    passes: int = hyperparameter(7, "passes until it ends", low=1)
    fails: bool = hyperparameter(False, "whether the pass that ends fails once it has said so")

    def __call__(self, experience: Experience | None, context: Context) -> Experience:
        played = super().__call__(experience, context)
        memory = context.memory("until")
        memory["passes"] = memory.get("passes", 0) + 1
        if memory["passes"] == self.passes:
            context.finish("it has seen enough")
            context.finish("a second reason is too late")
            if self.fails:
                raise UserError("the pass failed.")
        return played


@dataclass(frozen=True)
class Mixing(OwnUpdate):
    """Mix the policy towards a random one."""

    solves: ClassVar[str] = "finite"

    def step(self, batch: Experience, see: See) -> Mapping[str, float]:
        table = see[self.trains].probabilities
        policy = (table + see.draw.uniform(*table.shape).double()) / 2
        see[self.trains].assign(policy / policy.sum(-1, keepdim=True))
        return {"mixed": float(policy[0, 0, 0])}


def begun(folder: Path, turns: int = 1, budget: str = "iterations=40", **settings: Any) -> Any:
    given = PythonObjects(recipe=recipe_of(turns, **settings))
    config = RunConfig(
        method="until", task="combination-lock", budget=budget, seed=SEED, tensorboard=False, evaluations=1
    )
    config = RunConfig.from_dict({**config.as_dict(), "checkpoint_every": 3, "from_python": ["method"]}, folder)
    return start_run(config, folder, given=given, asked=False)


def recipe_of(turns: int = 1, **settings: Any) -> Recipe:
    return Recipe(
        name="until",
        models={"policy": FinitePolicy()},
        collect=Until(**settings),
        updates=(Mixing("policy", Fresh()),),
        turns=turns,
    )


def resumed(folder: Path, turns: int = 1, **settings: Any) -> Any:
    return resume_run(folder, given=PythonObjects(recipe=recipe_of(turns, **settings)))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def numbers(folder: Path) -> list[dict[str, Any]]:
    drop = ("seconds", "steps_per_second", "updates_per_second")
    return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]


def tables(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "policy.safetensors")


def test_a_part_ends_the_run_with_an_evaluation_a_checkpoint_and_a_reason(tmp_path: Path) -> None:
    loop = begun(tmp_path / "run")
    final = loop.run()
    told = summary(tmp_path / "run")
    assert (told["status"], told["reason"], told["iteration"]) == ("finished", "it has seen enough", 7)
    records = read_records(tmp_path / "run")
    assert len(records) == 8 and records[-1]["eval/return"] == final["eval/return"] and "eval/return" not in records[-2]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())[-1].endswith("7")
    assert torch.equal(tables(tmp_path / "run")["probabilities"], loop.run_state.policy)


def test_a_run_that_spends_its_budget_has_no_reason(tmp_path: Path) -> None:
    begun(tmp_path / "run", budget="iterations=3").run()
    assert summary(tmp_path / "run")["status"] == "finished" and "reason" not in summary(tmp_path / "run")


def test_what_follows_in_the_iteration_is_left(tmp_path: Path) -> None:
    loop = begun(tmp_path / "run", turns=5)
    loop.run()
    assert loop.context.iteration == 2 and loop.context.spent.samples == 14 and loop.context.spent.updates == 7


@pytest.mark.parametrize("stop", [0, 2, 4, 6])
def test_a_run_that_is_stopped_comes_to_the_same_end(tmp_path: Path, stop: int) -> None:
    begun(tmp_path / "whole").run()
    loop = begun(tmp_path / "half")
    iterate, count = loop.iterate, iter(range(99))

    def stops(*given: Any) -> Any:
        if next(count) == stop:
            raise KeyboardInterrupt
        return iterate(*given)

    loop.iterate = stops
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    resumed(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    assert summary(tmp_path / "half")["reason"] == "it has seen enough"
    one, other = tables(tmp_path / "half"), tables(tmp_path / "whole")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_says_that_it_is_finished_and_more_budget_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "run").run()
    before = numbers(tmp_path / "run")
    loop = resumed(tmp_path / "run")
    assert loop.context.over and loop.context.progress < 1
    assert finished(loop) == "The run is finished: until ended it in iteration 7, it has seen enough."
    loop.run()
    assert numbers(tmp_path / "run") == before and summary(tmp_path / "run")["reason"] == "it has seen enough"
    with pytest.raises(UserError, match="it has seen enough; more budget would change nothing"):
        resume_run(tmp_path / "run", given=PythonObjects(recipe=recipe_of()), budget="iterations=90")


def test_a_pass_that_fails_ends_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the pass failed"):
        begun(tmp_path / "run", fails=True).run()
    assert summary(tmp_path / "run")["status"] == "failed" and "reason" not in summary(tmp_path / "run")
    loop = resumed(tmp_path / "run")  # the recipe no longer fails
    assert loop.context.iteration == 6 and not loop.context.over and loop.run_state.acting["regret"][1] == 12
    loop.run()
    begun(tmp_path / "whole").run()
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_there_is_a_reason(tmp_path: Path) -> None:
    context = begun(tmp_path / "run").context
    with pytest.raises(ValueError, match="say it in a few words"):
        context.finish(" ")
