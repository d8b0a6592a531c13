"""Papers that bend a recipe most, each as one file that touches nothing shared: they train, resume and compose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from conftest import SEED, read_records, stopped_after
from polyrl.core.experience import Experience
from polyrl.core.list_phases import phase_of
from polyrl.core.update import Move, Phase, Repeat, Sample, See, Update
from polyrl.data.replay import Replay
from polyrl.models.base import Copy
from polyrl.models.critics import QNetwork
from polyrl.models.policies import DeterministicPolicy
from polyrl.parts.replayed import SquaredTD, StepAndKeep
from polyrl.recipe import Part, Recipe, Stage
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
DRAFTS = Path(__file__).parent / "drafts"
PPO_LIST = DRAFTS / "ppo_list.py"
SIZES = {
    PPO_LIST: {"environments": "2", "steps_per_environment": "30", "hidden": "8", "epochs": "2", "minibatches": "3"},
}


def config_of(method: str, sizes: dict[str, str], budget: str = "iterations=3") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task="Pendulum-v1", budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(draft: Path, extra: str = "", **settings: str) -> Any:
    return make_loop(config_of(f"{draft}{extra}", {**SIZES[draft], **settings}))[0]


@pytest.mark.parametrize("draft", [PPO_LIST], ids=lambda d: d.stem)
def test_a_draft_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, draft: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of(str(draft), SIZES[draft]), tmp_path / "whole").run()
    loop = start_run(config_of(str(draft), SIZES[draft]), tmp_path / "half")
    stopped_after(loop, 2)
    resume_run(tmp_path / "half", trust_code=True).run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


# ----------------------------------------------------------------------------------------------------------- phases


@dataclass(frozen=True, kw_only=True)
class Known(Part):
    """The reward as the target."""

    stage: ClassVar[Stage] = "credit"
    needs: ClassVar[frozenset[str]] = frozenset({"reward"})
    gives: ClassVar[frozenset[str]] = frozenset({"value_target"})

    def apply(self, batch: Experience, see: See) -> Experience:
        return batch.with_fields(value_target=batch["reward"])


def phased() -> Recipe:
    """First the critic alone on random steps that the first phase collects none of, then both."""
    critic = Update("q", (SquaredTD(),), Sample("replay", batch_size=8), credit=(Known(),))
    return Recipe(
        name="phased",
        models={"policy": DeterministicPolicy(hidden="8"), "q": QNetwork(hidden="8"), "q_target": Copy("q")},
        collect=StepAndKeep(random_steps=1_000),
        sources={"replay": Replay(learning_starts=5)},
        updates=(Phase((critic,), optimizer_steps=7), Phase((critic, Move("q_target", "q")))),
        turns=10,
    )


def test_each_of_several_phases_has_its_own_steps() -> None:
    (_, last) = phased().updates
    critic = last.of[0]
    three = (Phase((critic,), optimizer_steps=4), Phase((critic,), optimizer_steps=5), last)
    loop = make_loop(
        config_of("mine", {}), given=PythonObjects(recipe=dataclasses.replace(phased(), updates=three).check())
    )[0]
    improver, spent = loop.recipe.improver, loop.context.spent
    seen = []
    for spent.updates in range(12):
        seen.append(three.index(phase_of(improver.updates, loop.context)))
    assert seen == [0] * 4 + [1] * 5 + [2] * 3


def test_every_counts_repeats_over_turns() -> None:
    critic = phased().updates[1].of[0]
    steps = (Repeat(3, (critic, Move("q_target", "q", every=2))),)
    recipe = dataclasses.replace(phased(), updates=steps, turns=8).check()
    loop = make_loop(config_of("mine", {}), given=PythonObjects(recipe=recipe))[0]
    moves: list[tuple[int, int]] = []
    loop.run_state.models.move = lambda *given: moves.append((loop.context.turn, loop.context.spent.updates))
    loop.iterate()
    # turns 4 to 7 train three times each: repeats number 12 to 23, of which every second one moves
    assert moves == [(4, 2), (5, 4), (5, 6), (6, 8), (7, 10), (7, 12)]


def test_phases_follow_one_another_by_optimizer_steps() -> None:
    config = config_of("mine", {})
    loop = make_loop(config, given=PythonObjects(recipe=phased().check()))[0]
    models = loop.run_state.models
    start = models.flat["q_target"].vector.detach().clone()
    moves: list[int] = []
    move = models.move
    models.move = lambda *given: (moves.append(loop.context.spent.updates), move(*given))[1]  # type: ignore[method-assign]
    for _ in range(2):
        loop.iterate()
    # ready with the fifth step: updates 1 to 7 are the first phase's, and with the eighth the copy moves
    assert moves == [*range(8, 17)] and loop.context.spent.updates == 16
    assert not torch.equal(models.flat["q_target"].vector, start)
    assert phased().set("optimizer_steps", 3).hyperparameters()["phase.optimizer_steps"] == 3
