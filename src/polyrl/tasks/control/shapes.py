"""Shapes that are moved towards the least perimeter for their area: a closed curve, and a field that is cut at 0.

Surface and Grid of arXiv:2404.15617, with the costs, starts and constants of its code (mpnguyen2/dpo). What is decided
is the velocity of every coordinate. Steps tell the cost of the shape that they have come to, and a policy is judged by
the cost of the last one.

The code measures contours of Grid with OpenCV. That is not needed: such a contour runs through the centres of pixels,
so its length and area are sums over blocks of two by two pixels. The field is no interpolation there, though it is
called so: SciPy smooths it, with the sum of squared errors that it takes for 64 numbers of unit noise, and as long as
a cubic polynomial in both directions is nearer than that, it is this polynomial.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any, ClassVar, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy import interpolate

from polyrl.errors import UserError

Reals = NDArray[np.float64]
NO_SHAPE = 1e9
"""Cost of what has no area or no perimeter; it ends the episode."""
LOWER_BOUND = 2 * math.sqrt(math.pi)
"""Cost of a circle."""
STARTS = 200
"""Shapes of which the lines are averages."""

# ------------------------------------------------------------------------------------------------------------- surface

KNOTS, POINTS = 8, 80


@cache
def spline() -> Reals:
    """`[80, 8]`: points of the cubic spline through 8 knots (not-a-knot ends), which is linear in them."""
    knots = np.linspace(0, 1, KNOTS)
    found: Reals = interpolate.CubicSpline(knots, np.eye(KNOTS))(np.linspace(0, 1, POINTS))
    return found


def curve(state: Reals) -> Reals:
    """Points `[..., 2, 80]` of the curves through knots `[..., 16]`, x of the knots and then y."""
    found: Reals = state.reshape(*state.shape[:-1], 2, KNOTS) @ spline().T
    return found


def curve_cost(state: Reals) -> Reals:
    """Perimeter over the root of the area of closed curves, `[..., 16]` to `[...]`."""
    return polygon_cost(curve(state))


def curve_gradient(state: Reals) -> Reals:
    """Its gradient, `[..., 16]`; 0 of what is no shape."""
    point = curve(state)
    side, length, area = _sides(point)
    shape = polygon_cost(point) < NO_SHAPE
    along = np.divide(side, length[..., None, :], out=np.zeros_like(side), where=length[..., None, :] > 0)
    by_perimeter = np.roll(along, 1, -1) - along
    around = side + np.roll(side, 1, -1)  # from the point before to the one after
    by_area = np.stack([around[..., 1, :], -around[..., 0, :]], -2) / 2
    size = np.where(shape, np.abs(area), np.inf)[..., None, None]
    turned = np.sign(area)[..., None, None]
    by_point = by_perimeter / np.sqrt(size) - length.sum(-1)[..., None, None] / 2 * size**-1.5 * turned * by_area
    found: Reals = (by_point @ spline()).reshape(state.shape)
    return found


def polygon_cost(point: Reals) -> Reals:
    """Perimeter over the root of the area of closed polygons, `[..., 2, P]` to `[...]`; `NO_SHAPE` where it has none.

    The area is what the boundary turns around, so of a curve that crosses itself parts are counted against each other.
    """
    _, length, area = _sides(point)
    return per_root_area(length.sum(-1), np.abs(area))


def _sides(point: Reals) -> tuple[Reals, Reals, Reals]:
    """Sides `[..., 2, P]` from each point to the next, their lengths `[..., P]`, and the signed area `[...]`."""
    following = np.roll(point, -1, -1)
    side = following - point
    area = (point[..., 0, :] * following[..., 1, :] - following[..., 0, :] * point[..., 1, :]).sum(-1) / 2
    return side, np.sqrt(np.square(side).sum(-2)), area


def per_root_area(perimeter: Reals, area: Reals) -> Reals:
    """Perimeter over the root of the area `[...]`; `NO_SHAPE` where one of them is 0, or they are not finite."""
    shape = (area > 0) & (perimeter > 0) & np.isfinite(area) & np.isfinite(perimeter)
    found: Reals = np.where(shape, perimeter / np.sqrt(np.where(shape, area, 1.0)), NO_SHAPE)
    return found


# ---------------------------------------------------------------------------------------------------------------- grid

CELLS, PIXELS = 8, 50
SMOOTHING = CELLS**2 - math.sqrt(2 * CELLS**2)
"""Sum of squared errors that scipy.interpolate.bisplrep allows where nothing is said."""
BRIGHT = 0.5 / 127.5
"""Field from which on a pixel is part of the shape: 8-bit grey, cut above 127."""


@cache
def polynomial() -> tuple[Reals, Reals]:
    """`[50, 8]` and `[8, 8]`: pixels and cells of the least-squares cubic through 8 numbers on [-1, 1]."""
    cells, pixels = (np.vander(np.linspace(-1, 1, n), 4) for n in (CELLS, PIXELS))
    solved = np.linalg.pinv(cells)
    return pixels @ solved, cells @ solved


def image(state: Reals) -> NDArray[np.bool_]:
    """Pixels `[50, 50]` that are part of the shape, of a field `[64]`."""
    field = state.reshape(CELLS, CELLS)
    to_pixels, to_cells = polynomial()
    if np.square(field - to_cells @ field @ to_cells.T).sum() <= SMOOTHING:
        found: Reals = to_pixels @ field @ to_pixels.T
    else:
        found = smoothed(state)
    bright: NDArray[np.bool_] = found >= BRIGHT
    return bright


def smoothed(state: Reals) -> Reals:
    """The field at the pixels `[50, 50]` by SciPy's smoothing spline, as the code has it."""
    x, y = np.mgrid[-1 : 1 : CELLS * 1j, -1 : 1 : CELLS * 1j]
    at = np.linspace(-1, 1, PIXELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a rough field it says that it could not come as near as it should
        found: Reals = interpolate.bisplev(at, at, interpolate.bisplrep(x, y, state.reshape(CELLS, CELLS)))
    return found


def contours(pixels: NDArray[np.bool_]) -> tuple[float, float]:
    """Length of all contours, and the area within the outer ones less the holes, as OpenCV has them.

    Of each block of two by two pixels: four are within, three are a triangle and its diagonal, two neighbours are a
    side, and two on a diagonal touch there, from both sides.
    """
    whole = np.pad(pixels, 1).astype(np.int64)
    a, b, c, d = whole[:-1, :-1], whole[:-1, 1:], whole[1:, :-1], whole[1:, 1:]
    blocks = np.bincount((a + b + c + d).reshape(-1), minlength=5)
    diagonal = int(((a == d) & (b == c) & (a != b)).sum())
    length = math.sqrt(2) * (blocks[3] + 2 * diagonal) + blocks[2] - diagonal
    return float(length), float(blocks[4] + blocks[3] / 2)


def field_cost(state: Reals) -> float:
    """Length of the contours over the root of the area, of a field `[64]`."""
    length, area = contours(image(state))
    return float(per_root_area(np.array(length), np.array(area)))


# -------------------------------------------------------------------------------------------------------- environments


class Shape(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A shape whose coordinates move with the velocities that are chosen: s += step_size a.

    Attributes:
        coordinates: n.
        step_size: of a step, in time.
        rate: of the discount exp(-rate t) of costs in the paper.
        horizon: steps of an episode.
    """

    coordinates: ClassVar[int]
    step_size: ClassVar[float] = 0.01
    rate: ClassVar[float]
    horizon: ClassVar[int] = 20
    named: ClassVar[str]

    Paid = Literal["cost", "reshaped"]

    def __init__(self, bound: float = 1.0, reward: Paid = "cost"):
        """Say what velocities are taken and what is paid.

        Args:
            bound: largest velocity of a coordinate, either way.
            reward: "cost" pays -F of the shape after a step; "reshaped" the paper's gamma^(-2t) (|a|^2 / 2 - F) of step
                t, from 1, with gamma = exp(-rate step_size).
        """
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound <= 1e6:
            raise UserError(f"The bound of {self.named} must be a number above 0, at most 1e6, not {bound!r}.")
        if reward not in get_args(self.Paid):
            raise UserError(f"The reward of {self.named} must be cost or reshaped, not {reward!r}.")
        self.reward = reward
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.coordinates,), np.float32)
        self.action_space = spaces.Box(-bound, bound, (self.coordinates,), np.float32)
        self.metadata = {
            "render_modes": [],
            "info_fields": {"cost": ()},
            "final_cost": "cost",
            "step_size": self.step_size,
            "rate": self.rate,
            "lines": self.lines(),
        }
        self.state: Reals = np.zeros(self.coordinates)
        self.t = 0

    @classmethod
    def start(cls, draw: np.random.Generator) -> Reals:
        """A shape to begin with `[n]`."""
        raise NotImplementedError

    @classmethod
    def cost(cls, state: Reals) -> float:
        """F of a shape `[n]`."""
        raise NotImplementedError

    @classmethod
    def lines(cls) -> dict[str, float]:
        """What stands beside every result."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new shape."""
        super().reset(seed=seed)
        self.state, self.t = self.start(self.np_random), 0
        return self.state.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move, and tell the cost of where the shape has come to."""
        self.state = self.state + self.step_size * np.asarray(action, dtype=np.float64).reshape(-1)
        self.t += 1
        cost = self.cost(self.state)
        paid = -cost
        if self.reward == "reshaped":
            gamma = math.exp(-self.rate * self.step_size)
            paid = gamma ** (-2 * self.t) * (float(np.square(action, dtype=np.float64).sum()) / 2 - cost)
        over = cost >= NO_SHAPE or self.t >= self.horizon
        return self.state.astype(np.float32), paid, over, False, {"cost": cost}


class SurfaceShape(Shape):
    """A closed curve: a spline through 8 knots, whose x are random on either side and whose y go up twice."""

    coordinates, rate, named = 2 * KNOTS, 0.9, "surface-shape"

    @classmethod
    def start(cls, draw: np.random.Generator) -> Reals:
        """x of the knots, then y."""
        x, half = 0.8 * draw.random(KNOTS) + 0.2, KNOTS // 2
        return np.concatenate([x[:half], -x[half:], np.tile(np.arange(half) / half, 2)])

    @classmethod
    def cost(cls, state: Reals) -> float:
        """Perimeter over the root of the area."""
        return float(curve_cost(state))

    @classmethod
    def lines(cls) -> dict[str, float]:
        """A circle's cost, the mean one of the starts, and of the paper's rule with the exact gradient."""
        found = surface_references()
        return {"lower bound": LOWER_BOUND, "start": found["start"][0], "exact gradient": found["exact gradient"][0]}


class GridShape(Shape):
    """A field on 8 by 8 cells, smoothed to 50 by 50 pixels, of which those above 0 are the shape."""

    coordinates, rate, named = CELLS**2, 20.0, "grid-shape"

    @classmethod
    def start(cls, draw: np.random.Generator) -> Reals:
        """Uniform numbers in [-0.5, 0.5)."""
        found: Reals = draw.random(CELLS**2) - 0.5
        return found

    @classmethod
    def cost(cls, state: Reals) -> float:
        """Length of all contours over the root of the area."""
        return field_cost(state)

    @classmethod
    def lines(cls) -> dict[str, float]:
        """A circle's cost, the mean one of the starts, and after all velocities were 1 all the time."""
        found = grid_references()
        return {"lower bound": LOWER_BOUND, "start": found["start"][0], "constant action": found["constant action"][0]}


# ---------------------------------------------------------------------------------------------------------- references


@cache
def surface_references(starts: int = STARTS) -> dict[str, tuple[float, float]]:
    """Mean and median cost of the starts; with the exact gradient after the paper's rule, and after signs of it.

    The rule is a += step (rate a - grad F), s += step a; signs are velocities of 1 against the gradient.
    """
    draw = np.random.default_rng(0)
    state = begun = np.array([SurfaceShape.start(draw) for _ in range(starts)])
    signs, velocity = state, np.zeros_like(state)
    step, rate = SurfaceShape.step_size, SurfaceShape.rate
    for _ in range(SurfaceShape.horizon):
        velocity = velocity + step * (rate * velocity - curve_gradient(state))
        state = state + step * velocity
        signs = signs - step * np.sign(curve_gradient(signs))
    costs = {"start": begun, "exact gradient": state, "signs of it": signs}
    return {name: _both(curve_cost(x)) for name, x in costs.items()}


@cache
def grid_references(starts: int = STARTS) -> dict[str, tuple[float, float]]:
    """Mean and median cost of the starts, and after the constant action 1 of all coordinates."""
    draw = np.random.default_rng(0)
    begun = [GridShape.start(draw) for _ in range(starts)]
    moved = GridShape.step_size * GridShape.horizon
    costs = {"start": begun, "constant action": [x + moved for x in begun]}
    return {name: _both(np.array([field_cost(x) for x in each])) for name, each in costs.items()}


def _both(cost: Reals) -> tuple[float, float]:
    return float(cost.mean()), float(np.median(cost))
