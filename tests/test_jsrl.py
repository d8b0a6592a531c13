"""JSRL: a guide from another run goes first, and with no guided steps it is the base method to the bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import SEED, made_once, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.control.jsrl import JumpStarted, horizons, may_move_on, online, translation
from polyrl.models.actor import Actor, Making, Moment, Player, Wrapper
from polyrl.models.policies import RandomActor
from polyrl.parts.control import StepEnvironments
from polyrl.recipe import Recipe
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.code_lock import CodeLock, coverage

torch.set_num_threads(1)
CORRIDOR = f"{Path(__file__).parent / 'control_environments.py'}:Corridor"
PPO = {"environments": "2", "steps_per_environment": "40", "hidden": "8", "epochs": "2", "minibatches": "2"}
SIZES = {"turns": "60", "random_steps": "10", "learning_starts": "20", "hidden": "16x16", "batch_size": "8"}
SHORT = {**SIZES, "first_horizon": "20", "stages": "4", "window": "1", "judge_episodes": "1"}


def config_of(method: str, sizes: dict[str, str], task: str = "Pendulum-v1", budget: str = "iterations=3") -> RunConfig:
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 2, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=sizes, **options)


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        start_run(config_of("ppo", PPO), folder / "ppo").run()
        start_run(config_of("sac", SIZES), folder / "sac").run()
        start_run(config_of("sac", {**SIZES, "hidden": "16", "turns": "10"}, CORRIDOR), folder / "walks").run()
        # the last one is made to go on and on, which no run learns in so short a time
        file = folder / "walks" / "model" / "policy.safetensors"
        weights = {name: torch.zeros_like(x) for name, x in load_file(file).items()}
        weights["network.biases.1"][0, 0] = 20.0  # the mean of the action before it is squashed
        save_file(weights, file)

    return made_once(tmp_path_factory, "guides", make)


def numbers(folder: Path) -> list[dict[str, Any]]:
    drop = ("seconds", "steps_per_second", "updates_per_second", "jsrl/", "eval/guide/", "eval/combined/")
    return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]


def test_horizons_and_the_gate_of_the_card() -> None:
    assert horizons(100, 10) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert may_move_on([9.5], 1, 0.05, 10.0) == (True, 10.0)
    assert may_move_on([9.49], 1, 0.05, 10.0) == (False, 10.0)
    assert may_move_on([-105.0], 1, 0.05, -100.0) == (True, -100.0)
    assert may_move_on([-105.1], 1, 0.05, -100.0) == (False, -100.0)
    assert may_move_on([3.0, 5.0], 2, 0.0, None) == (False, 4.0)  # nothing to compare with yet
    assert may_move_on([3.0], 2, 0.0, None) == (False, None)


def as_recipe(base: str, sizes: dict[str, str], guide: Path) -> Recipe:
    recipe = dataclasses.replace(catalogue.build(f"{base}+jump-starting", domain="control"), name=base).set(
        "guide.run", str(guide)
    )
    for name, value in sizes.items():
        recipe = recipe.set(name, value)
    return recipe.check()


def weights_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (folder / "model").glob("*.safetensors") if f.stem != "guide"}


@pytest.mark.parametrize("base", ["sac", "td3"])
def test_without_guided_steps_it_is_the_base_method_to_the_bit(tmp_path: Path, guides: Path, base: str) -> None:
    start_run(config_of(base, SIZES), tmp_path / "base").run()
    recipe = as_recipe(base, {**SIZES, "first_horizon": "0"}, guides / "ppo")
    start_run(config_of(base, {}), tmp_path / "jsrl", recipe=recipe).run()
    assert numbers(tmp_path / "jsrl") == numbers(tmp_path / "base")
    assert weights_of(tmp_path / "jsrl") == weights_of(tmp_path / "base") != {}


def rollout(recipe: Recipe, steps: int, **config: Any) -> tuple[Any, Any]:
    loop = make_loop(config_of("sac", {}, **config), recipe=recipe)[0]
    return loop.run_state, loop.run_state.collect(1, steps, torch.Generator().manual_seed(1))[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("guide", ["ppo", "sac"])
def test_the_guide_does_what_it_does_by_itself(guides: Path, guide: str) -> None:
    """Every step of an episode of 200 is the guide's, in its own units and by its own statistics."""
    recipe = as_recipe("sac", {**SIZES, "first_horizon": "400", "stages": "2"}, guides / guide)
    state, batch = rollout(recipe, 250)
    assert batch["guided"][0, :200].all() and batch["guided"].all()
    actor = state.models["guide"].actor()
    play, scale = actor.player(), state.actor.execute
    for t in (0, 7, 199, 210):
        shown = batch["observation"][0, t : t + 1].double().numpy()
        theirs = play(Moment(actor.normalize(shown), shown, np.zeros(1, bool)))
        done = np.clip(theirs if actor.execute is None else actor.execute(theirs), -2, 2)
        assert np.allclose(scale(batch["action"][0, t : t + 1].numpy()), done, atol=1e-6)
    found = state.evaluate()[0]
    assert found["eval/combined/return"] == pytest.approx(found["eval/guide/return"], rel=1e-5) != found["eval/return"]


def test_the_learner_acts_from_the_horizon_on_in_every_episode(guides: Path) -> None:
    recipe = as_recipe("sac", {**SIZES, "first_horizon": "60", "stages": "2"}, guides / "ppo")
    _, batch = rollout(recipe, 450)
    expected = [t % 200 < 30 for t in range(450)]  # 60 - 60 / 2 in episodes of 200
    assert batch["guided"][0].tolist() == expected


def test_random_horizons_are_uniform_and_leave_the_learners_noise_alone(guides: Path) -> None:
    recipe = as_recipe("sac", {**SIZES, "first_horizon": "8", "stages": "4", "strategy": "random"}, guides / "sac")
    state, _ = rollout(recipe, 5)
    jump, count = state.actor, 10_000
    noise = jump.noise(3, count, torch.Generator().manual_seed(5))
    assert np.array_equal(noise[..., :-1], jump.inner.noise(3, count, torch.Generator().manual_seed(5)))
    memory = {"step": np.zeros(count, np.int64), "horizon": np.zeros(count, np.int64)}
    shown = np.zeros((count, 3))
    jump.player()(Moment(shown.astype(np.float32), shown, np.ones(count, bool), noise=noise[0], memory=memory))
    values, counts = np.unique(memory["horizon"], return_counts=True)
    assert values.tolist() == [0, 2, 4, 6]
    assert float(((counts - count / 4) ** 2 / (count / 4)).sum()) < 16.27  # chi-square of 3 degrees, 0.1 %
    horizon = memory["horizon"].copy()
    jump.player()(Moment(shown.astype(np.float32), shown, np.zeros(count, bool), noise=noise[1], memory=memory))
    assert np.array_equal(memory["horizon"], horizon) and (memory["step"] == 2).all()


@pytest.mark.parametrize("strategy", ["curriculum", "random"])
def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, guides: Path, strategy: str) -> None:
    sizes = {**SHORT, "tolerance": "5", "strategy": strategy, "guide.run": str(guides / "ppo")}
    config = config_of("jsrl", sizes, budget="iterations=6")
    start_run(config, tmp_path / "whole").run()
    loop = start_run(config, tmp_path / "half")
    stopped_after(loop, 3)
    resume_run(tmp_path / "half").run()

    def timeless(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    assert timeless(tmp_path / "half") == timeless(tmp_path / "whole")
    moved = [r["jsrl/horizon"] for r in timeless(tmp_path / "whole") if "jsrl/horizon" in r]
    if strategy == "curriculum":  # every judgement after the first of a stage is good enough
        assert moved[0] == 15 and moved == sorted(moved, reverse=True) and moved[-1] < 15


def test_it_stands_on_iql_with_a_buffer_beside_its_data(tmp_path: Path, guides: Path) -> None:
    """Without guided steps that is IQL which goes on from its data, to the bit."""
    draws = np.random.default_rng(0)
    ends = np.arange(80) % 40 == 39
    rows = {"observations": draws.normal(size=(80, 3)), "next_observations": draws.normal(size=(80, 3))}
    rows |= {"actions": draws.uniform(-2, 2, (80, 1)), "rewards": draws.normal(size=80)}
    rows |= {"terminations": np.zeros(80, bool), "truncations": ends}
    data = tmp_path / "rows.npz"
    np.savez(data, **rows)  # type: ignore[arg-type]
    sizes = {key: value for key, value in SIZES.items() if key != "random_steps"}
    given = online(catalogue.build("iql"))
    for name, value in sizes.items():
        given = given.set(name, value)
    jump = as_recipe("iql", {**sizes, "first_horizon": "0"}, guides / "ppo")
    assert {*jump.sources} == {"data", "replay"} and {*jump.models} == {*given.models, "guide"}
    config = dataclasses.replace(config_of("iql", {}), dataset=str(data))
    for name, recipe in (("base", given), ("jsrl", jump)):
        start_run(config, tmp_path / name, recipe=recipe).run()
    assert numbers(tmp_path / "jsrl") == numbers(tmp_path / "base")
    assert weights_of(tmp_path / "jsrl") == weights_of(tmp_path / "base") != {}
    guided = as_recipe("iql", {**sizes, "first_horizon": "40", "stages": "2"}, guides / "ppo")
    start_run(config, tmp_path / "guided", recipe=guided).run()
    assert [r["jsrl/guided"] for r in read_records(tmp_path / "guided")[1:2]] == [pytest.approx(20 / 60)]


@pytest.mark.parametrize("base", ["ppo", "bc"])
def test_what_collects_otherwise_is_refused(base: str) -> None:
    with pytest.raises(UserError, match=f"{base} does not step environments for a replay buffer"):
        catalogue.build(f"{base}+jsrl", domain="control")


def test_it_goes_onto_other_methods_by_either_name() -> None:
    both = [catalogue.build(f"td3+{name}", domain="control") for name in ("jsrl", "jump-starting")]
    assert both[0].models == both[1].models and both[0].collect == both[1].collect == JumpStarted(random_steps=1_000)
    assert both[0].also_judged == both[1].also_judged


def test_a_guides_actions_go_onto_those_of_a_learner_between_bounds() -> None:
    """Also where a task leaves no choice of a number: both its bounds are one."""
    space = spaces.Box(np.float32([-1, 2, 3]), np.float32([3, 4, 3]))
    guide, learner = RandomActor(space), RandomActor(space)
    guide.execute = None  # one whose actions are the environment's own
    found = translation(space, guide, learner)(np.array([[0, 9, 3], [3, 2, 3]], np.float32))
    assert found.tolist() == [[-0.5, 1, 0], [1, -1, 0]] and found.dtype == np.float32
    assert learner.execute is not None and learner.execute(found).tolist() == [[0, 4, 3], [3, 2, 3]]


# ----------------------------------------------------------------------------------------------------- the lock, by DQN

LOCK = "code-lock(length=6)"
DQN = {"turns": "4", "steps_per_environment": "60", "learning_starts": "60", "hidden": "16", "batch_size": "16"}


def test_the_lock_pays_for_its_whole_code_alone() -> None:
    lock = CodeLock(length=5, code=3)
    paid = {}
    for code in itertools.product((0, 1), repeat=5):
        lock.reset()
        told = [lock.step(action) for action in code]
        paid[code] = [reward for _, reward, *_ in told]
        assert [over for _, _, over, _, _ in told] == [False] * 4 + [True]
        first_mistake = next((t for t, (a, right) in enumerate(zip(code, lock.right, strict=True)) if a != right), 5)
        assert [int(seen[1]) for seen, *_ in told] == [int(t >= first_mistake) for t in range(5)]
    assert [code for code, rewards in paid.items() if sum(rewards)] == [tuple(lock.right)]
    assert named_task("code-lock(length=12)").metric.lines["uniform"] == pytest.approx(2.441e-4, rel=1e-3)
    assert coverage(0.9, 12) == pytest.approx(3.187, abs=1e-3) and pytest.approx(0.28243, abs=1e-5) == 0.9**12
    with pytest.raises(UserError, match="length of code-lock must be a whole number from 1, not 0"):
        named_task("code-lock(length=0)").metric  # noqa: B018


def test_without_guided_steps_dqn_is_itself_too(tmp_path: Path) -> None:
    start_run(config_of("dqn", DQN, LOCK), tmp_path / "dqn").run()
    recipe = as_recipe("dqn", {**DQN, "first_horizon": "0"}, tmp_path / "dqn")
    start_run(config_of("dqn", {}, LOCK), tmp_path / "jsrl", recipe=recipe).run()
    assert numbers(tmp_path / "jsrl") == numbers(tmp_path / "dqn")
    assert weights_of(tmp_path / "jsrl") == weights_of(tmp_path / "dqn") != {}


def knows_the_code(folder: Path) -> None:
    """Make a run's network name the right action of every layer: the values are linear in the one-hot layer."""
    file = folder / "model" / "q.safetensors"
    weights = {name: torch.zeros_like(x) for name, x in load_file(file).items()}
    for layer, right in enumerate(CodeLock(length=6).right):
        weights["network.weights.0"][0, layer, layer] = 1.0
        weights["network.weights.1"][0, layer, right] = 1.0
    save_file(weights, file)


def test_a_guide_that_knows_the_code_hands_a_learner_the_end_of_the_lock(tmp_path: Path) -> None:
    start_run(config_of("dqn", DQN, LOCK, "iterations=1"), tmp_path / "guide").run()
    knows_the_code(tmp_path / "guide")
    sizes = {**DQN, "turns": "8", "learning_rate": "1e-2", "first_horizon": "6", "stages": "6", "window": "1"}
    recipe = as_recipe("dqn", {**sizes, "judge_episodes": "2", "exploration_fraction": "0.5"}, tmp_path / "guide")
    loop = start_run(config_of("dqn", {}, LOCK, "iterations=14"), tmp_path / "run", recipe=recipe)
    loop.run()
    rows = read_records(tmp_path / "run")
    assert rows[-1]["eval/guide/return"] == 1
    assert next(r["jsrl/horizon"] for r in rows if "jsrl/horizon" in r) == 5
    reached(rows[-1]["eval/return"], 1.0)  # alone it would find the code by chance once in 64 episodes


def test_a_guide_brings_the_learner_to_a_reward_that_is_ten_steps_away(tmp_path: Path, guides: Path) -> None:
    """All in one direction: at the end the policy walks there alone."""
    sizes = {"turns": "250", "random_steps": "0", "learning_starts": "100", "hidden": "32x32", "batch_size": "64"}
    sizes |= {"learning_rate": "1e-3"}
    guided = {
        **sizes,
        "exploration_noise": "0.3",
        "first_horizon": "12",
        "stages": "6",
        "window": "1",
        "judge_episodes": "2",
    }
    task = CORRIDOR
    recipe = as_recipe("td3", guided, guides / "walks")
    start_run(config_of("td3", {}, task, "iterations=16"), tmp_path / "run", recipe=recipe).run()
    last = read_records(tmp_path / "run")[-1]
    assert last["jsrl/horizon"] == 0  # the policy walks alone, in training as in evaluation
    reached(last["eval/return"], 1.0)  # 1 is all that there is


# ------------------------------------------------------------------------------------------------------- wrappers


class Through(Wrapper):
    """Changes nothing."""

    def player(self) -> Player:
        return self.inner.player()


class OwnOutputs(Through):
    """Says what its outputs are, and not how they follow from what the network says."""

    def outputs(self, batch: Experience, wants: Collection[str]) -> dict[str, Tensor]:
        return self.inner.outputs(batch, wants)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepThrough(StepEnvironments):
    def actor(self, inner: Actor, making: Making) -> Actor:
        return Through(inner)


def test_a_wrapper_that_changes_nothing_changes_no_number() -> None:
    plain = catalogue.build("ppo", PPO, domain="control")
    kept = {name: getattr(plain.collect, name) for name in ("environments", "steps_per_environment")}
    found = []
    for recipe in (plain, dataclasses.replace(plain, collect=StepThrough(**kept))):
        loop = make_loop(config_of("ppo", {}), recipe=recipe)[0]
        for _ in range(2):
            loop.iterate()
        state: Any = loop.run_state
        assert state.closed_form({"logprob"}) is not None
        found.append((state.flat["policy"].vector.detach().clone(), state.policy.observation_moments.mean.clone()))
    assert all(map(torch.equal, *found))
    inner = state.judged
    assert Through(inner).writes_likelihoods() and not OwnOutputs(inner).writes_likelihoods()
    assert not Through(OwnOutputs(inner)).writes_likelihoods()
