"""Papers that bend a recipe most, each as one file that touches nothing shared: they train, resume and compose."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
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
PPO_LIST, AIRLLM = (DRAFTS / f"{name}.py" for name in ("ppo_list", "airllm"))
TASKS = {AIRLLM: f"{AIRLLM}:Channel"}
SIZES = {
    PPO_LIST: {"environments": "2", "steps_per_environment": "30", "hidden": "8", "epochs": "2", "minibatches": "3"},
    AIRLLM: {"learning_starts": "20", "batch_size": "8", "hidden": "8", "steps_per_environment": "11"},
}


def config_of(method: str, sizes: dict[str, str], budget: str = "iterations=3", task: str = "") -> RunConfig:
    task = task or next((task for draft, task in TASKS.items() if method.startswith(str(draft))), "Pendulum-v1")
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


def loop_of(draft: Path, extra: str = "", **settings: str) -> Any:
    return make_loop(config_of(f"{draft}{extra}", {**SIZES[draft], **settings}))[0]


@pytest.mark.parametrize("draft", [PPO_LIST, AIRLLM], ids=lambda d: d.stem)
def test_a_draft_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, draft: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of(str(draft), SIZES[draft]), tmp_path / "whole").run()
    loop = start_run(config_of(str(draft), SIZES[draft]), tmp_path / "half")
    stopped_after(loop, 2)
    resume_run(tmp_path / "half", trust_code=True).run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


def names_of(loop: Any, what: str = "policy") -> dict[str, Any]:
    """What stands in the file of a draft."""
    return vars(sys.modules[type(loop.recipe.models[what]).__module__])


# ----------------------------------------------------------------------------------------------------------- AirLLM


def test_channels_ranks_and_chains_are_those_of_the_card() -> None:
    loop = loop_of(AIRLLM)
    names = names_of(loop)
    assert [names["capacity"](snr, 1e8) for snr in (10, 0, -5)] == pytest.approx([3.459432e8, 1e8, 3.9641e7], rel=1e-5)
    assert names["decoded"](np.array([-1, -0.5, 0, 0.5, 0.99, 1])).tolist() == [1, 2, 4, 6, 7, 8]
    ranks = np.arange(1, 9)
    assert np.array_equal(names["decoded"](2 * (ranks - 1) / 7 - 1), ranks)

    class Says(names["DenoiserNetwork"]):  # type: ignore[misc]
        def forward(self, noisy: torch.Tensor, step: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
            return torch.where(code.abs().sum(-1, keepdim=True) > 0, 0.4, 0.2).expand(noisy.shape)

    network = Says(loop.run_state.models["denoiser"].network, 2)
    network.kept = torch.tensor([0.64, 0.25])
    code, noise = torch.ones(1, 3), torch.ones(1, 6)

    def chain(eps: float) -> float:
        start = min((1 - 0.75**0.5 * eps) / 0.5, 1.0)  # 1.133975 is cut at eps = 0.5
        x = 0.8 * start + 0.6 * eps
        return min((x - 0.6 * eps) / 0.8, 1.0)

    for guidance, eps in ((1.5, 0.5), (1.0, 0.4), (0.0, 0.2), (2.5, 0.7)):
        assert network.expand(code, noise, guidance).tolist() == [pytest.approx([chain(eps)] * 6, abs=1e-6)]
    rewards = Experience({"reward": torch.tensor([[-1.0], [-0.5], [0.0]]), "weight": torch.ones(3, 1)})
    weights = names["RewardWeights"]().apply(rewards, None)["weight"][:, 0].tolist()
    assert weights == pytest.approx([0.9, 1.0, 1.1], abs=1e-6)  # the sample's deviation; 0.8775 and 1.1225 by n


def test_ppo_trains_on_codes_and_the_denoiser_once_it_has_rows() -> None:
    loop = loop_of(AIRLLM, steps_per_environment="15", epochs="2")
    before = {name: flat.vector.detach().clone() for name, flat in loop.run_state.flat.items()}
    batch = loop.iterate()
    assert batch["action"].shape == (1, 15, 9) and batch["rank_code"].shape == (1, 15, 6)

    def moved() -> set[str]:
        return {name for name, flat in loop.run_state.flat.items() if not torch.equal(before[name], flat.vector)}

    assert moved() == {"policy", "critic"} and loop.context.metrics["logprob_gap"] < 1e-5
    again = loop.iterate()
    assert moved() == {"policy", "critic", "denoiser"}
    environment = loop.run_state.collector.environments.made[0].unwrapped
    assert float(np.abs(environment.scale).sum()) > 0
    steps = (again["rank_code"] + 1) * 3.5  # ranks less 1
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-5)


def test_what_is_learned_sends_less_of_what_does_not_arrive() -> None:
    def late_return(learning_rate: str) -> float:
        sizes = {"environments": "8", "gradient_steps": "20", "reward_weight": "1", "learning_rate": learning_rate}
        loop = make_loop(config_of(str(AIRLLM), sizes, "iterations=40"))[0]
        returns = []
        for _ in range(40):
            loop.iterate()
            returns.append(loop.context.metrics["episode/return"])
        return sum(returns[-15:]) / 15

    reached(late_return("3e-3") - late_return("0"), 4)  # the same episodes; 9 to 19


def test_airllm_composes_with_another_objective() -> None:
    recipe = catalogue.build(f"{AIRLLM}+unclipped-surrogate", {"code": "2", "guidance": "0"})
    assert recipe.updates[0].of[0].terms[0].name == "unclipped-surrogate"
    assert {recipe.models[name].code for name in ("policy", "denoiser")} == {2}
    loop = loop_of(AIRLLM, "+unclipped-surrogate", code="2", guidance="0")
    assert loop.iterate()["action"].shape == (1, 11, 8)


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
