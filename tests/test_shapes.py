"""The shapes of dfPO: costs by their definitions and by OpenCV, the gradient, references, the environments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from polyrl.errors import UserError
from polyrl.rollout.evaluation import Evaluator
from polyrl.tasks.control import shapes
from polyrl.tasks.control import task as named_task
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.shapes import GridShape, SurfaceShape, contours, curve_cost, field_cost, polygon_cost

DRAW = np.random.default_rng(0)
CURVES = np.array([SurfaceShape.start(DRAW) for _ in range(20)]) + DRAW.normal(0, 0.3, (20, 16))


# --------------------------------------------------------------------------------------------------------- curves


def test_a_circle_and_a_square_cost_what_they_should() -> None:
    angle = np.linspace(0, 2 * np.pi, 5_000, endpoint=False)
    assert polygon_cost(np.array([np.cos(angle), np.sin(angle)])) == pytest.approx(3.5449, abs=1e-4)
    assert pytest.approx(3.5449, abs=1e-4) == shapes.LOWER_BOUND
    assert polygon_cost(np.array([[0.0, 1, 1, 0], [0.0, 0, 1, 1]])) == 4.0
    assert contours(np.ones((50, 50), dtype=bool)) == (196, 49**2)  # through the centres of pixels


def test_the_cost_of_a_curve_is_that_of_its_definition() -> None:
    """SciPy's spline at each point, sides and the shoelace formula one by one."""
    for state, found in zip(CURVES, curve_cost(CURVES), strict=True):
        spline = CubicSpline(np.linspace(0, 1, 8), state.reshape(2, 8).T)
        points = [spline(u) for u in np.linspace(0, 1, 80)]
        perimeter = area = 0.0
        for (x, y), (u, v) in zip(points, [*points[1:], points[0]], strict=True):
            perimeter += math.hypot(u - x, v - y)
            area += (x * v - u * y) / 2
        assert found == pytest.approx(perimeter / math.sqrt(abs(area)), rel=1e-10)
        assert SurfaceShape.cost(state) == found


def test_neither_size_nor_place_nor_the_way_around_costs_anything() -> None:
    costs, moved = curve_cost(CURVES), 3 * CURVES + np.repeat([5.0, -2.0], 8)
    assert curve_cost(moved) == pytest.approx(costs, rel=1e-9)
    mirrored = CURVES * np.repeat([-1.0, 1.0], 8)
    assert curve_cost(mirrored) == pytest.approx(costs, rel=1e-9)
    assert (costs > shapes.LOWER_BOUND).all()


def central_differences(cost: Any, state: Any, noise: float = 1e-6) -> Any:
    """Gradient `[n]` as dfPO's variant of first order measures it: costs of 2n states around one."""
    apart = noise * np.eye(len(state))
    return (cost(state + apart) - cost(state - apart)) / (2 * noise)


def test_differences_are_those_of_the_card() -> None:
    found = central_differences(lambda s: s[..., 0] ** 2 + 3 * s[..., 1], np.array([1.0, 2.0]))
    assert found == pytest.approx([2, 3], abs=1e-6)


def test_the_gradient_is_that_of_differences_and_none_where_there_is_no_shape() -> None:
    for state, found in zip(CURVES, shapes.curve_gradient(CURVES), strict=True):
        differences = central_differences(curve_cost, state)
        assert np.abs(found - differences).max() < 1e-6 * max(1.0, np.abs(differences).max())
    nothing = np.zeros((2, 16))
    nothing[1, :8] = np.arange(8)  # a line
    assert (curve_cost(nothing) == shapes.NO_SHAPE).all() and not shapes.curve_gradient(nothing).any()


# ----------------------------------------------------------------------------------------------------------- fields

OPENCV = [
    (0, 1, 1, 1.0, 0.0, 0.0),
    (1, 3, 3, 0.5, 4.828427, 1.0),
    (2, 6, 6, 0.5, 26.142135, 5.0),
    (3, 9, 5, 0.7, 49.355338, 14.5),
    (4, 12, 12, 0.8, 137.237588, 69.5),
    (5, 12, 12, 0.3, 59.455844, 1.0),
    (6, 20, 20, 0.6, 399.570629, 96.5),
]
"""Seed, height, width and share of pixels; length of all contours and their area, of OpenCV 5.0's findContours."""


@pytest.mark.parametrize(("seed", "height", "width", "share", "length", "area"), OPENCV)
def test_contours_are_those_of_opencv(
    seed: int, height: int, width: int, share: float, length: float, area: float
) -> None:
    found = contours(np.random.default_rng(seed).random((height, width)) < share)
    assert found == (pytest.approx(length, abs=1e-5), area)


def test_costs_of_fields_are_those_of_the_published_environment() -> None:
    """SciPy's smoothing, 8-bit grey and OpenCV's contours: of three starts, moved, and too rough for a polynomial."""
    draw = np.random.default_rng(0)
    starts = [GridShape.start(draw) for _ in range(3)]
    assert [field_cost(x) for x in starts] == pytest.approx([7.157158, 4.515839, 5.854144], rel=1e-6)
    assert [field_cost(x + 0.2) for x in starts] == pytest.approx([4.283055, 4.008049, 4.072403], rel=1e-6)
    assert [field_cost(9 * x) for x in starts] == pytest.approx([6.66665, 6.877925, 6.882902], rel=1e-6)


def test_the_polynomial_is_what_scipy_comes_to() -> None:
    draw = np.random.default_rng(1)
    for _ in range(5):
        state = GridShape.start(draw)
        to_pixels = shapes.polynomial()[0]
        plain = to_pixels @ state.reshape(8, 8) @ to_pixels.T
        assert np.abs(plain - shapes.smoothed(state)).max() < 1e-10
        assert np.array_equal(shapes.image(state), shapes.smoothed(state) >= shapes.BRIGHT)
    rough = 9 * GridShape.start(draw)
    to_pixels = shapes.polynomial()[0]
    assert np.abs(to_pixels @ rough.reshape(8, 8) @ to_pixels.T - shapes.smoothed(rough)).max() > 0.1
    assert np.array_equal(shapes.image(rough), shapes.smoothed(rough) >= shapes.BRIGHT)


# ------------------------------------------------------------------------------------------------------- references


def test_reference_points_are_those_of_the_card() -> None:
    """100 curves: the rule with the exact gradient, and signs of it; 1,000 fields: the start, and pushed up by 0.2."""
    curves, fields = shapes.surface_references(100), shapes.grid_references(1_000)
    assert curves["exact gradient"] == pytest.approx((6.32, 5.65), abs=0.005)
    assert curves["signs of it"][0] == pytest.approx(5.31, abs=0.005)
    assert fields["start"][0] == pytest.approx(7.18, abs=0.05)
    assert fields["constant action"][0] == pytest.approx(4.46, abs=0.02)


@pytest.mark.parametrize(("name", "own"), [("surface-shape", "exact gradient"), ("grid-shape", "constant action")])
def test_lines_stand_beside_every_result(name: str, own: str) -> None:
    metric = named_task(name).metric
    assert metric.key == "eval/cost" and not metric.higher_is_better
    assert [*metric.lines] == ["lower bound", "start", own]
    assert metric.lines["lower bound"] < metric.lines[own] < metric.lines["start"]


# ------------------------------------------------------------------------------------------------------ environments


@pytest.mark.parametrize("kind", [SurfaceShape, GridShape])
def test_velocities_move_the_shape_and_steps_tell_what_they_came_to(kind: Any) -> None:
    made, draw = kind(), np.random.default_rng(2)
    shown, _ = made.reset(seed=3)
    state = shown.astype(np.float64)
    for t in range(1, 21):
        action = draw.uniform(-1, 1, kind.coordinates).astype(np.float32)
        shown, reward, over, cut, told = made.step(action)
        state += 0.01 * action
        assert shown == pytest.approx(state, abs=1e-5)
        assert told["cost"] == -reward == kind.cost(made.state)
        assert (over, cut) == (t == 20, False)
    again = kind()
    assert np.array_equal(again.reset(seed=3)[0], made.reset(seed=3)[0])


def test_starts_are_the_papers() -> None:
    draw = np.random.default_rng(4)
    curves = np.array([SurfaceShape.start(draw) for _ in range(500)])
    assert (curves[:, :4] >= 0.2).all() and (curves[:, :4] < 1).all()
    assert (curves[:, 4:8] <= -0.2).all() and (curves[:, 4:8] > -1).all()
    assert abs(curves[:, :4].mean() - 0.6) < 0.02 > abs(curves[:, 4:8].mean() + 0.6)
    assert (curves[:, 8:] == [0, 0.25, 0.5, 0.75] * 2).all()
    fields = np.array([GridShape.start(draw) for _ in range(100)])
    assert fields.min() >= -0.5 and fields.max() < 0.5 and abs(fields.mean()) < 0.02


@pytest.mark.parametrize(("kind", "gamma"), [(SurfaceShape, 0.99104), (GridShape, 0.81873)])
def test_reshaped_rewards_give_the_cost_back(kind: Any, gamma: float) -> None:
    """F = |a|^2 / 2 - reward gamma^(2t), with gamma = exp(-rate step)."""
    assert math.exp(-kind.rate * kind.step_size) == pytest.approx(gamma, abs=5e-6)
    made, draw = kind(reward="reshaped"), np.random.default_rng(5)
    made.reset(seed=0)
    for t in range(1, 21):
        action = draw.uniform(-1, 1, kind.coordinates).astype(np.float32)
        _, reward, _, _, told = made.step(action)
        exact = math.exp(-kind.rate * kind.step_size)
        assert float(np.square(action, dtype=float).sum()) / 2 - reward * exact ** (2 * t) == pytest.approx(
            told["cost"]
        )


def test_what_is_no_shape_ends_the_episode() -> None:
    made = GridShape(bound=100.0)
    made.reset(seed=0)
    _, _, over, _, told = made.step(np.full(64, -100, dtype=np.float32))  # all below 0
    assert over and told["cost"] == shapes.NO_SHAPE


def test_bad_settings_are_told_in_one_sentence() -> None:
    for name in ("surface-shape(bound=0)", "grid-shape(bound=true)", "grid-shape(bound=1e9)"):
        with pytest.raises(UserError, match=r"The bound of \w+-shape must be a number above 0"):
            named_task(name).metric  # noqa: B018
    with pytest.raises(UserError, match="must be cost or reshaped, not 'sparse'"):
        named_task("surface-shape(reward=sparse)").metric  # noqa: B018


# --------------------------------------------------------------------------------------------- judged by the last cost


class Still(shapes.SurfaceShape):
    """A shape that tells a cost of its own each step."""

    @classmethod
    def lines(cls) -> dict[str, float]:
        return {}


def still_actor() -> Any:
    from polyrl.models.policies import RandomActor

    class Stays(RandomActor):
        def player(self) -> Any:
            return lambda moment: np.zeros((len(moment.seen), 16), dtype=np.float32)

    return Stays(Still().action_space)


def test_a_policy_is_judged_by_the_cost_of_the_last_step() -> None:
    task = ControlTask("still", make=Still)
    assert task.metric.key == "eval/cost" and task.final_cost == "cost"
    played = Evaluator(task, seed=7, lanes=3)(still_actor(), 5)
    for episode in played:
        made = Still()
        made.reset(seed=episode.seed)
        cost = Still.cost(made.state)
        assert episode.cost == pytest.approx(cost, rel=1e-6) and episode.total == pytest.approx(-20 * cost)
        assert episode.shown(0)["cost"] == episode.cost


def test_a_final_cost_that_is_not_told_is_refused() -> None:
    class Undeclared(Still):
        def __init__(self) -> None:
            super().__init__()
            self.metadata = {**self.metadata, "info_fields": {"cost": (2,)}}

    with pytest.raises(UserError, match="judged by the final 'cost', which must be a single number"):
        ControlTask("undeclared", make=Undeclared).metric  # noqa: B018


def test_other_tasks_are_judged_by_returns() -> None:
    task = named_task("two-peaks")
    assert task.final_cost == "" and task.metric.key == "eval/return"
