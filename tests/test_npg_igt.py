"""N-PG-IGT, HARPG, N-HARPG: the card's numbers, exact gradients, what acts where, resuming, composition, learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from conftest import SEED, reached, read_records, stopped_after
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.control import harpg, npg_igt
from polyrl.methods.control.harpg import hessian_vector
from polyrl.methods.control.npg_igt import ahead
from polyrl.parts.trajectories import reward_to_go
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
METHODS = ("npg-igt", "harpg", "n-harpg")
SIZES = {"steps_per_environment": "30", "environments": "2"}


def config_of(method: str, task: str = "Pendulum-v1", budget: str = "iterations=4", **settings: Any) -> RunConfig:
    values = {**SIZES, **{k: str(v) for k, v in settings.items()}}
    options: dict[str, Any] = {"evaluations": 1, "eval_episodes": 1, "tensorboard": False, "checkpoint_every": 1}
    return RunConfig(method=method, task=task, budget=budget, seed=SEED, hyperparameters=values, **options)


def loop_of(method: str, environment: Any = None, **settings: Any) -> Any:
    given = PythonObjects(environment=environment) if environment else PythonObjects()
    return make_loop(config_of(method, **settings), given=given)[0]


# ------------------------------------------------------------------------------------------------- numbers by hand


def test_schedules_and_the_identity_of_the_card() -> None:
    assert [npg_igt.momentum(t) for t in range(3)] == pytest.approx([1, 0.722981, 0.574349], abs=1e-6)
    assert [harpg.momentum(t) for t in range(2)] == pytest.approx([1, 2 / 3])
    assert (1 - npg_igt.momentum(1)) / npg_igt.momentum(1) == pytest.approx(0.383162, abs=1e-6)
    point, before = torch.tensor([2.0]), torch.tensor([1.0])
    there = ahead(point, before, 0.5)
    assert there.item() == 3 and (0.5 * before + 0.5 * there).item() == point.item()


def test_on_a_quadratic_the_average_is_the_gradient_itself() -> None:
    """With exact gradients: IGT's average is exact where the gradient is linear, and plain momentum's is not."""
    curvature = torch.tensor([[-2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)

    def far(points: Callable[[Tensor, Tensor, float], Tensor]) -> float:
        theta = before = torch.tensor([1.0, -2.0], dtype=torch.float64)
        direction, worst = curvature @ theta, 0.0
        for t in range(1, 20):
            before, theta = theta, theta + 0.1 * 2 / (t + 2) * direction / direction.norm()
            eta = npg_igt.momentum(t)
            direction = (1 - eta) * direction + eta * curvature @ points(theta, before, eta)
            worst = max(worst, float((direction - curvature @ theta).norm()))
        return worst

    assert far(ahead) < 1e-12 < 1e-2 < far(lambda theta, before, eta: theta)


def test_returns_count_their_discount_from_the_episodes_start() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0, 1.0, 1.0]])
    over = torch.tensor([[False, True, False, False, False]])
    batch = Experience({"reward": reward, "terminated": over, "truncated": torch.zeros_like(over)})
    assert reward_to_go(batch, 0.5).tolist() == [[2.0, 1.0, 4.75, 0.75, 0.25]]


def test_a_bandits_hessian_is_that_of_the_card() -> None:
    for theta, expected in ((0.0, 0.0), (1.0, -0.0908577)):
        point = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        mean = 0.0
        for arm in (0, 1):
            logprob = torch.nn.functional.logsigmoid((2 * arm - 1) * point)[None]
            u = torch.zeros(16, dtype=torch.float64)
            u[0] = 1
            found = hessian_vector(logprob, torch.full((1, 1), float(arm), dtype=torch.float64), [point], u)
            mean += math.exp(float(logprob.detach().sum())) * float(found[0])
        assert mean == pytest.approx(expected, abs=1e-6)


def test_the_hessian_vector_product_has_the_mean_of_the_card() -> None:
    """Two steps with one state each, r_0 = (0, 1), r_1 = (2, .5), gamma .9, logits of action 1 (.3, -.2)."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[0.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    gradient, hessian = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for first in (0, 1):
        for second in (0, 1):
            actions = torch.tensor([first, second])
            reward = rewards[torch.arange(2), actions]
            sign = 2.0 * actions - 1
            logprob = torch.nn.functional.logsigmoid(sign * theta)[None]
            batch = Experience(
                {
                    "reward": reward[None],
                    "terminated": torch.tensor([[False, True]]),
                    "truncated": torch.zeros(1, 2).bool(),
                }
            )
            returns = reward_to_go(batch, 0.9)
            assert returns[0].tolist() == pytest.approx([float(reward[0] + 0.9 * reward[1]), float(0.9 * reward[1])])
            chance = math.exp(float(logprob.detach().sum()))
            (g,) = torch.autograd.grad((logprob * returns).sum(), [theta], retain_graph=True)
            gradient += chance * g
            for i, u in enumerate(torch.eye(2, 16, dtype=torch.float64)):
                hessian[:, i] += chance * hessian_vector(logprob, returns, [theta], u)[:2]
    torch.testing.assert_close(gradient, torch.tensor([0.244458, -0.334147], dtype=torch.float64), rtol=0, atol=1e-6)
    expected = torch.diag(torch.tensor([-0.0363962, -0.0333038], dtype=torch.float64))
    torch.testing.assert_close(hessian, expected, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- what acts where


def test_npg_igt_acts_ahead_of_what_is_judged() -> None:
    loop = loop_of("npg-igt")
    flat = loop.run_state.models.flat
    start = flat["policy"].vector.detach().clone()
    assert torch.equal(start, flat["ahead"].vector)
    loop.iterate()
    assert loop.context.metrics["step_length"] == pytest.approx(0.1, rel=1e-4)
    first = flat["policy"].vector.detach().clone()
    factor = 0.383162  # (1 - eta) / eta at the second step, of the card
    torch.testing.assert_close(flat["ahead"].vector.detach(), first + factor * (first - start), rtol=1e-4, atol=1e-6)
    loop.iterate()
    assert loop.context.metrics["step_length"] == pytest.approx(0.1 * 2 / 3, rel=1e-4)
    assert loop.run_state.judged.policy is loop.run_state.models["policy"].policy
    assert loop.run_state.actor.policy is loop.run_state.models["ahead"].policy


def test_without_extrapolation_the_policy_itself_acts() -> None:
    loop = loop_of("npg-igt", extrapolates=False)
    for _ in range(2):
        loop.iterate()
    flat = loop.run_state.models.flat
    assert torch.equal(flat["ahead"].vector, flat["policy"].vector)


def test_the_second_stream_acts_between_the_policy_and_the_one_before() -> None:
    loop = loop_of("n-harpg")
    flat = loop.run_state.models.flat
    before = flat["policy"].vector.detach().clone()
    loop.iterate()
    after, between = flat["policy"].vector.detach(), flat["between"].vector.detach()
    length = float((after - before).norm())
    assert length == pytest.approx(0.1, rel=1e-4)
    assert float((between - before).norm() + (after - between).norm()) == pytest.approx(length, rel=1e-4)
    assert loop.run_state.actors["there"].policy is loop.run_state.models["between"].policy
    assert loop.run_state.actors[""].policy is loop.run_state.models["policy"].policy
    there = loop.context.fresh["there"]
    assert there["observation"].shape == (2, 30, 3)


class Scaled(gymnasium.Env[Any, Any]):
    """Ten steps whose reward is the action's size times `scale`; the environment is as it is, whatever is done."""

    observation_space = action_space = spaces.Box(-1, 1, (1,), dtype="float32")  # type: ignore[arg-type]
    scale = 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 1).astype("float32"), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        seen = self.np_random.uniform(-1, 1, 1).astype("float32")
        return seen, self.scale * float(action[0]), False, self.t >= 10, {}


class TenTimes(Scaled):
    scale = 16.0  # a power of two: the same digits


@pytest.mark.parametrize("method", METHODS)
def test_only_normalized_steps_are_the_same_at_any_scale_of_rewards(method: str) -> None:
    vectors = []
    for kind in (Scaled, TenTimes):
        loop = loop_of(method, kind, step_size=1e-3)
        for _ in range(3):
            loop.iterate()
        vectors.append(loop.run_state.models.flat["policy"].vector.detach().clone())
    assert torch.allclose(*vectors, rtol=1e-4, atol=1e-6) == (method != "harpg")


def test_the_control_takes_steps_of_constant_size() -> None:
    loop = loop_of("npg-igt+constant-step", step_size=1e-3)
    flat = loop.run_state.models.flat
    for _ in range(2):
        before = flat["policy"].vector.detach().clone()
        loop.iterate()
        metrics = loop.context.metrics
        moved = float((flat["policy"].vector.detach() - before).norm())
        assert metrics["step_length"] == pytest.approx(1e-3 * metrics["gradient"], rel=1e-5)
        assert moved == pytest.approx(metrics["step_length"], rel=1e-3)


# ----------------------------------------------------------------------------------------------- resuming, learning


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_to_the_same_numbers_when_it_was_stopped(tmp_path: Path, method: str) -> None:
    def numbers(folder: Path) -> list[dict[str, Any]]:
        drop = ("seconds", "steps_per_second", "updates_per_second")
        return [{k: v for k, v in r.items() if not k.startswith(drop)} for r in read_records(folder)]

    start_run(config_of(method), tmp_path / "whole").run()
    stopped_after(start_run(config_of(method), tmp_path / "half"), 2)
    resume_run(tmp_path / "half").run()
    assert numbers(tmp_path / "half") == numbers(tmp_path / "whole")


def test_bad_input_is_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match="step_size"):
        catalogue.build("npg-igt", {"step_size": "0"}, domain="control")
    with pytest.raises(UserError, match="harpg takes no steps of npg-igt"):
        catalogue.build("harpg+constant-step", domain="control")


@pytest.mark.parametrize("method", METHODS)
def test_actions_become_larger(method: str) -> None:
    size = 2e-3 if method == "harpg" else 0.5
    loop = loop_of(method, Scaled, step_size=size, environments=8)
    returns = []
    for _ in range(12):
        loop.iterate()
        returns.append(loop.context.metrics["episode/return"])
    reached(sum(returns[-3:]) / 3 - sum(returns[:2]) / 2, 1.0)  # 2.3 to 8.3
