"""dfPO: the card's numbers, exact motions, rollouts that begin anew, labels, memory, resuming, controls, learning."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue, kernels
from polyrl.errors import UserError
from polyrl.methods.control import dfpo
from polyrl.methods.control.dfpo import (
    AbsoluteError,
    DescentPolicy,
    HamiltonianPolicy,
    PointwiseLabels,
    SignPolicy,
)
from polyrl.methods.control.dfpo.motion import CostActor, CostNetwork
from polyrl.models.actor import Moment
from polyrl.models.base import Interface
from polyrl.rollout.control import Collector
from polyrl.rollout.environments import episode_seed
from polyrl.rollout.stepping import environments_of
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.shapes import SurfaceShape, curve_gradient

torch.set_num_threads(1)
FREE = "surface-shape(bound=10000)"


def config_of(method: str = "dfpo", task: str = FREE, budget: str = "steps=100000", **settings: Any) -> RunConfig:
    small = {"environments": 4, "stages": 5, "gradient_steps": 6, "hidden": "8"}
    values = {k: str(v) for k, v in {**small, **settings}.items()}
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 2, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=values, **options)


def loop_of(*args: Any, **settings: Any) -> Any:
    return make_loop(config_of(*args, **settings))[0]


# --------------------------------------------------------------------------------------------------- exact motions


class Valley(gymnasium.Env[Any, Any]):
    """One number that begins at 1, costs twice its square and moves by the velocity."""

    metadata: dict[str, Any] = {"info_fields": {"cost": ()}, "final_cost": "cost", "step_size": 0.1, "rate": 0.0}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-100, 100, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.s, self.t = 1.0, 0
        return np.array([self.s], dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.s += 0.1 * float(action[0])
        self.t += 1
        cost = 2 * self.s**2
        return np.array([self.s], dtype=np.float32), -cost, self.t == 60, False, {"cost": cost}


@dataclass(frozen=True, kw_only=True)
class Known(HamiltonianPolicy):
    """The law of motion with the exact gradient 4s."""

    def make(self, interface: Interface, stream: torch.Generator) -> CostNetwork:
        made = super().make(interface, stream)
        made.gradient = lambda state: 4 * state  # type: ignore[method-assign]
        return made


def moved(steps: int, **settings: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Velocities and states after each step, from the collector's rollout."""
    task = ControlTask("valley", make=Valley)
    network = Known(step_size=0.1, **settings).make(Interface.of(task), torch.Generator())
    rollout = Collector(environments_of(task, 1), CostActor(network), 0).collect(steps, torch.Generator())
    after = np.concatenate([rollout.observation[0, 1:, 0], rollout.final_observation[0, -1:, 0]])
    return rollout.action[0, :, 0], after


def test_the_motion_on_a_quadratic_is_that_of_the_card() -> None:
    velocity, state = moved(3, rate=0.0)
    assert velocity == pytest.approx([-0.4, -0.784, -1.13664], abs=1e-6)
    assert state == pytest.approx([0.96, 0.8816, 0.767936], abs=1e-6)


def test_without_a_rate_something_is_conserved_and_nothing_converges() -> None:
    """|a|^2 / 2 + k s^2 / 2 - step k a s / 2, with k = 4."""
    velocity, state = moved(50, rate=0.0)
    kept = velocity**2 / 2 + 2 * state**2 - 0.1 * 4 * velocity * state / 2
    assert kept == pytest.approx(np.full(50, 2.0), abs=2e-5)
    assert state.min() < -0.95 and abs(state[-8:]).max() > 0.9
    velocity, state = moved(50, rate=0.5)
    assert (velocity**2 / 2 + 2 * state**2 - 0.2 * velocity * state)[-1] > 10


@pytest.mark.parametrize(
    ("rate", "step", "steps", "factor", "gamma"),
    [(0.9, 0.01, 20, 1.196, 0.99104), (20, 0.01, 20, 38.34, 0.81873), (50, 0.1, 6, 46656, 0.0067379)],
)
def test_velocities_grow_by_the_rate_of_which_gamma_is_the_discount(
    rate: float, step: float, steps: int, factor: float, gamma: float
) -> None:
    law, velocity = HamiltonianPolicy(rate=rate, step_size=step), np.ones((1, 1), dtype=np.float32)
    for _ in range(steps):
        velocity = law.velocity(velocity, np.zeros((1, 1), dtype=np.float32))
    assert velocity.item() == pytest.approx(factor, rel=1e-3)
    assert math.exp(-law.rate * law.step_size) == pytest.approx(gamma, rel=1e-5)


def test_at_a_rate_that_forgets_the_motion_is_plain_descent() -> None:
    """Rate -1 / step leaves -step grad C."""
    before, gradient = (np.random.default_rng(k).normal(size=(3, 4)).astype(np.float32) for k in (0, 1))
    law, plain = HamiltonianPolicy(rate=-100.0, step_size=0.01), DescentPolicy(gain=0.01)
    assert law.velocity(before, gradient) == pytest.approx(plain.velocity(before, gradient), abs=1e-6)
    assert (SignPolicy(speed=0.5).velocity(before, gradient) == -0.5 * np.sign(gradient)).all()


def test_with_the_exact_gradient_it_comes_to_the_line_of_the_task() -> None:
    """The whole way, of policy, environment and evaluation, on the curves of which the reference point is."""

    @dataclass(frozen=True, kw_only=True)
    class Exact(HamiltonianPolicy):
        def make(self, interface: Interface, stream: torch.Generator) -> CostNetwork:
            made = super().make(interface, stream)
            made.gradient = lambda state: curve_gradient(state.astype(float)).astype(np.float32)  # type: ignore[method-assign]
            return made

    task = named_task(FREE)
    actor = CostActor(Exact().make(Interface.of(task), torch.Generator()))
    play, draw = actor.player(), np.random.default_rng(0)
    state = np.array([SurfaceShape.start(draw) for _ in range(100)])
    memory = {"velocity": np.zeros((100, 16), dtype=np.float32)}
    for _ in range(20):
        shown = state.astype(np.float32)
        state += 0.01 * play(Moment(shown, state, np.zeros(100, dtype=bool), memory=memory))
    costs = [SurfaceShape.cost(x) for x in state]
    assert (np.mean(costs), np.median(costs)) == pytest.approx((6.32, 5.65), abs=0.01)


# ------------------------------------------------------------------------------------------------------- the policy


def network_of(task: str = FREE, law: Any = None) -> CostNetwork:
    stream = torch.Generator().manual_seed(1)
    made: CostNetwork = (law or HamiltonianPolicy(hidden="16x8")).make(Interface.of(named_task(task)), stream)
    return made


def test_the_gradient_is_that_of_differences_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of()
    state = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    fast = network.gradient(state.numpy())
    monkeypatch.setattr(kernels, "ENABLED", False)
    assert network.gradient(state.numpy()) == pytest.approx(fast, abs=1e-6)
    network.double()
    with torch.no_grad():
        for k, unit in enumerate(1e-6 * torch.eye(16, dtype=torch.float64)):
            apart = network(state.double() + unit) - network(state.double() - unit)
            assert fast[:, k] == pytest.approx((apart / 2e-6).numpy(), abs=1e-5)


def test_velocities_stay_within_the_bounds_and_go_on_from_there() -> None:
    network = network_of("surface-shape")
    network.gradient = lambda state: np.full_like(state, -150.0)  # type: ignore[method-assign]
    actor, memory = CostActor(network), {"velocity": np.zeros((1, 16), dtype=np.float32)}
    moment = Moment(np.zeros((1, 16), dtype=np.float32), np.zeros((1, 16)), np.ones(1, dtype=bool), memory=memory)
    said = actor.player()(moment)
    assert said == pytest.approx(np.full((1, 16), 1.5)) and (actor.execute(said) == 1).all()  # type: ignore[misc]
    assert (memory["velocity"] == 1).all()
    assert actor.player()(moment) == pytest.approx(np.full((1, 16), 2.509))


def test_the_error_is_absolute() -> None:
    outputs = {"value": torch.tensor([[1.0, 5.0]], requires_grad=True)}
    batch: Any = {"cost_label": torch.tensor([[3.0, 4.5]]), "weight": torch.ones(1, 2)}
    weights = torch.tensor([[0.5, 0.25]])
    loss = AbsoluteError().loss(outputs, batch)
    assert loss.tolist() == [[2.0, 0.5]]
    (found,) = torch.autograd.grad((loss * weights).sum(), outputs["value"])
    total, by = AbsoluteError().grad_outputs(outputs, batch, weights)
    assert total.item() == 1.125 and torch.equal(by["value"], found)


# ------------------------------------------------------------------------------------------- rollouts, stage by stage


def test_each_stage_begins_anew_and_is_one_step_longer() -> None:
    loop, seen = loop_of(steps_per_environment=3), []
    for stage in range(5):
        batch = loop.iterate()
        length = min(stage + 1, 3)
        assert batch["observation"].shape == (4, length, 16) and batch["starts_episode"].all()
        assert batch["truncated"][:, -1].all() and not batch["truncated"][:, :-1].any()
        assert not batch["rollout_end"].any() and not batch["terminated"].any()
        starts = []
        for i in range(4):
            made = SurfaceShape()
            starts.append(made.reset(seed=episode_seed(SEED, i, stage))[0])
        assert np.array_equal(batch["observation"][:, 0].numpy(), np.array(starts))
        seen.append(batch["observation"][:, 0])
        following = torch.cat([batch["observation"][:, 1:], batch["final_observation"][:, -1:]], 1)
        assert torch.equal(batch["next_observation"], following)
        costs = [[SurfaceShape.cost(s.double().numpy()) for s in row] for row in following]
        assert batch["cost"].numpy() == pytest.approx(np.array(costs), rel=1e-3)
    assert loop.context.spent.steps == 4 * (1 + 2 + 3 + 3 + 3) and loop.context.finished == "every stage is done"


def test_rollouts_that_go_on_and_rollouts_that_begin_anew() -> None:
    """The collector itself: what was begun is left, and its return and its actions with it."""
    task = ControlTask("valley", make=Valley)
    network = Known(step_size=0.1, rate=0.0).make(Interface.of(task), torch.Generator())
    collector = Collector(environments_of(task, 2), CostActor(network), 0)
    draw = torch.Generator()
    first = collector.collect(2, draw)
    assert first.rollout_end[:, -1].all() and first.truncated[:, -1].all()
    on = collector.collect(2, draw)
    assert not on.starts_episode.any() and on.observation[0, 0, 0] == pytest.approx(0.8816)
    new = collector.collect(1, draw, anew=True)
    assert new.starts_episode.all() and not new.rollout_end.any() and new.truncated.all()
    assert new.observation[:, 0, 0].tolist() == [1, 1] and new.action[:, 0, 0] == pytest.approx([-0.4, -0.4])
    assert [len(x) for x in collector.state.actions] == [1, 1] and collector.state.episode == [1, 1]
    assert collector.state.return_so_far == pytest.approx([-2 * 0.96**2] * 2)
    again = collector.collect(1, draw, anew=True)
    assert collector.state.episode == [2, 2] and again.observation[:, 0, 0].tolist() == [1, 1]
    collector.rewind()
    back = collector.collect(1, draw, anew=True)
    assert collector.state.episode == [2, 2] and np.array_equal(back.action, again.action)


# -------------------------------------------------------------------------------------------------- labels, memory


def test_how_many_labels_are_the_networks_own() -> None:
    assert [PointwiseLabels(warm_stages=3).own_steps(k) for k in range(8)] == [0, 0, 0, 1, 2, 2, 3, 3]
    assert [PointwiseLabels(warm_stages=0).own_steps(k) for k in range(4)] == [0, 0, 1, 1]
    assert [PointwiseLabels().own_steps(k) for k in (14, 15, 20)] == [0, 7, 10]


@pytest.mark.parametrize("pairing", ["after", "before"])
def test_costs_are_labels_of_the_state_that_the_pairing_says(pairing: str) -> None:
    loop = loop_of(warm_stages=2, label_pairing=pairing)
    for stage in range(5):
        batch, network = stage_of(loop)
        k = loop.recipe.credit[0].own_steps(stage)
        state = batch["next_observation" if pairing == "after" else "observation"]
        assert torch.equal(batch["labelled_state"], state)
        for i in range(4):
            for t in range(stage + 1):
                own = t < k
                said = network.values(state[i, t]).item() if own else batch["cost"][i, t].item()
                assert batch["own_label"][i, t].item() == own
                assert batch["cost_label"][i, t].item() == pytest.approx(said, rel=1e-6)
        if pairing == "after":
            costs = [SurfaceShape.cost(s.double().numpy()) for s in state[:, -1]]
            assert batch["cost_label"][:, -1].numpy() == pytest.approx(costs, rel=1e-3)


def stage_of(loop: Any) -> tuple[Any, CostNetwork]:
    """A stage, and the network as it was before the stage learned."""
    import copy

    before = copy.deepcopy(loop.run_state.models["policy"])
    return loop.iterate(), before


@pytest.mark.parametrize("kept", [3, 6, None])
def test_the_memory_is_that_of_bounded_queues(kept: int | None) -> None:
    """As the published code fills its memory: two queues a stage, rollout by rollout, then all that is left in them."""
    loop = loop_of(warm_stages=2, labels_per_stage="none" if kept is None else kept, gradient_steps=1)
    memory: list[tuple[list[float], float]] = []
    for stage in range(5):
        batch = loop.iterate()
        own: deque[Any] = deque(maxlen=kept)
        new: deque[Any] = deque(maxlen=kept)
        for i in range(4):
            for t in range(stage + 1):
                k = PointwiseLabels(warm_stages=2).own_steps(stage)
                row = (batch["labelled_state"][i, t].tolist(), batch["cost_label"][i, t].item())
                (own if t < k else new).append(row)
        memory += [*own, *new]
        held = loop.context.tensors("remember-labels")
        found = [*zip(held["labelled_state"].tolist(), held["cost_label"].tolist(), strict=True)]
        assert sorted(found) == sorted(memory)
        assert loop.context.metrics["labels"] == len(memory)
        assert batch["weight"].sum() == len(own) + len(new)


def test_of_a_rollout_only_the_first_episode_is_kept() -> None:
    class Short(Valley):
        def step(self, action: Any) -> Any:
            shown, reward, _, _, told = super().step(action)
            return shown, reward, self.t == 2, False, told

    config = config_of(task="short", step_size=0.1)
    loop = make_loop(config, given=PythonObjects(environment=Short))[0]
    for stage in range(4):
        batch = loop.iterate()
        assert batch["weight"].sum(1).tolist() == [min(stage + 1, 2)] * 4
        assert batch["weight"][:, 2:].sum() == 0
    assert len(loop.context.tensors("remember-labels")["cost_label"]) == 4 * (1 + 2 + 2 + 2)


def test_updates_draw_from_the_whole_memory() -> None:
    loop = loop_of()
    for _ in range(3):
        loop.iterate()
    held, drawn = loop.context.tensors("remember-labels"), set()
    for _ in range(40):
        rows = dfpo.Remembered(batch_size=4).rows(loop.context)
        assert rows["labelled_state"].shape == (4, 1, 16) and rows["weight"].tolist() == [[1.0]] * 4
        for state, label in zip(rows["labelled_state"][:, 0], rows["cost_label"][:, 0], strict=True):
            (at,) = (held["labelled_state"] == state).all(1).nonzero()[:, 0].tolist()[:1]
            assert held["cost_label"][at] == label
            drawn.add(at)
        loop.context.spent.updates += 1
    assert drawn == set(range(len(held["cost_label"])))


def test_every_stage_has_a_new_adam() -> None:
    loop = loop_of(gradient_steps=7)
    for _ in range(2):
        loop.iterate()
        (state,) = loop.context.optimizer["policy"].state.values()
        assert float(state["step"]) == 7


def test_rollouts_at_random_are_the_control() -> None:
    batch = [loop_of("dfpo", "surface-shape", rolls="random").iterate() for _ in range(2)]
    assert torch.equal(batch[0]["action"], batch[1]["action"])
    assert 0.7 < batch[0]["action"].abs().max() <= 1 and batch[0]["action"].abs().mean() > 0.3


# ----------------------------------------------------------------------------------- resuming, bad input, learning


def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    config = config_of(warm_stages=2)
    start_run(config, tmp_path / "whole").run()
    stopped_after(start_run(config, tmp_path / "half"), 3)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")
    assert (tmp_path / "half/model/policy.safetensors").read_bytes() == (
        tmp_path / "whole/model/policy.safetensors"
    ).read_bytes()


def test_bad_input_is_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match="stages"):
        catalogue.build("dfpo", {"stages": "0"}, domain="control")
    for task, told in (
        ("Pendulum-v1", "chooses a velocity for each of the 3 numbers that Pendulum-v1 shows"),
        ("CartPole-v1", "acts by continuous numbers between bounds"),
    ):
        with pytest.raises(UserError, match=told):
            network_of(task)
    with pytest.raises(UserError, match=r"moves by steps of 0\.01 and the policy by 0\.1; set --step-size 0\.01"):
        loop_of(step_size=0.1)
    with pytest.raises(UserError, match="asks the environment for 'cost'"):
        loop_of("dfpo", "two-peaks")


def test_a_task_that_does_not_move_by_velocities_is_refused() -> None:
    class Elsewhere(Valley):
        metadata = {k: v for k, v in Valley.metadata.items() if k != "step_size"}  # noqa: RUF012

    with pytest.raises(UserError, match="does not say that it does"):
        make_loop(config_of(task="elsewhere"), given=PythonObjects(environment=Elsewhere))


def test_vector_environments_cannot_begin_anew() -> None:
    loop = loop_of("dfpo", "surface-shape(stepping=async)", environments=1)
    with pytest.raises(UserError, match="reset one by one; use stepping=single"):
        loop.iterate()
    loop.run_state.collector.environments.close()


def test_another_rate_than_the_tasks_is_said() -> None:
    said: list[str] = []
    task = named_task("grid-shape")
    making = dfpo.Making(task, {}, 0, said.append)
    collect = dfpo.StageRollouts()
    collect.actor(CostActor(network_of("grid-shape", HamiltonianPolicy())), making)
    collect.actor(CostActor(network_of("grid-shape", HamiltonianPolicy(rate=20.0))), making)
    collect.actor(CostActor(network_of("grid-shape", SignPolicy())), making)
    assert said == ["the rate of grid-shape is 20, and the policy's 0.9 (--rate)"]


def test_controls_take_the_policys_place() -> None:
    for method, kind in (("dfpo+descent-policy", DescentPolicy), ("dfpo+sign-policy", SignPolicy)):
        recipe = catalogue.build(method, {"hidden": "8"}, domain="control")
        assert type(recipe.models["policy"]) is kind and recipe.models["policy"].hidden == "8"
    loop = loop_of("dfpo+sign-policy", "surface-shape")
    loop.iterate()
    assert (loop.iterate()["action"].abs() == 1).all()


def test_shapes_become_cheaper() -> None:
    loop = loop_of(environments=64, stages=16, gradient_steps=400, hidden="32x32")
    loop.run_state.evaluation = replace(loop.run_state.evaluation, episodes=20)
    before = loop.run_state.evaluate()[0]["eval/median_cost"]
    while not loop.context.over:
        loop.iterate()
    reached(before - loop.run_state.evaluate()[0]["eval/median_cost"], 3.0)  # 6.2 to 9.4, from 15.8
