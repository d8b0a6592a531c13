"""Control tasks: any Gymnasium environment by its id, or a function of the user's that makes one.

Importing this costs next to nothing: gymnasium is loaded when a task is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyrl.errors import UserError
from polyrl.settings import parse_call, parse_value

if TYPE_CHECKING:
    from polyrl.tasks.control.environment import ControlTask

__all__ = ["DEMONSTRATED", "TASKS", "has_demonstrations", "task"]

DEMONSTRATED = ("eight-modes", "wall-point")
"""Environments that bring demonstrations of their own, which stand where no --dataset is given."""

TASKS: dict[str, str] = {
    "CartPole-v1": "balance a pole on a cart; solved at a return of 475",
    "Acrobot-v1": "swing a two-link arm up; solved at -100",
    "MountainCar-v0": "leave a valley with too weak an engine; solved at -110, and the reward says nothing on the way",
    "MountainCarContinuous-v0": "the same with a continuous throttle; solved at 90",
    "Pendulum-v1": "swing a pendulum up and hold it; returns from -1600 to about -150",
    "UnlockGrid-v0": "fetch a key, open a door, enter it, on a grid of (width=4) cells; 2.02 is the best return",
    "two-peaks": "one action with two that are best, at 0.7 and -0.7 (second=1.0); 1 is the best return",
    "corner-grid": "5 by 5 cells, from the middle to the better of two corners; 0.97 is the best return",
    "eight-modes": "two numbers beside one of eight modes of its own data (demonstrations); 1 is the best return",
    "wall-point": "a point goes around a wall to a small goal, with demonstrations of both ways; -17 is the best",
    "code-lock": "(length=10) right actions one after the other, seen only at the end; 1 is the best return",
    "catch": "catch a ball that falls over an image of (size=12) cells, for +cnn; 1 is the best return",
    "t-maze": "a sign at the start says where to turn (length=8) cells further, for +gru; 1 is the best return",
    "lot-sizing": "(items=3,machines=2) produced for a demand that is not known before; minus what it costs",
    "slippery-lake": "go to a goal on ice that carries on, around holes (layout=0); nearer cells pay more",
    "surface-shape": "least perimeter for its area of a closed curve, by velocities (bound=1.0); 3.545 is a circle's",
    "grid-shape": "least contours for its area of what is above 0 in a field of 8 by 8 cells, velocities (bound=1.0)",
    "Ant-v5": "a four-legged body walks (MuJoCo)",
    "HalfCheetah-v5": "a two-legged body runs (MuJoCo)",
    "Hopper-v5": "a one-legged body hops (MuJoCo)",
    "InvertedPendulum-v5": "balance a pole on a cart, continuous force (MuJoCo); solved at 950",
    "InvertedDoublePendulum-v5": "balance two poles, one on the other (MuJoCo); solved at 9100",
    "Reacher-v5": "a two-joint arm reaches a point (MuJoCo); solved at -3.75",
    "Swimmer-v5": "a three-link body swims (MuJoCo); solved at 360",
    "Walker2d-v5": "a two-legged body walks (MuJoCo)",
}
"""Environments that come with `pip install polyrl[control]`, and one line about each. Every other id works too."""

OWN_SETTINGS = {"eval_episodes": int, "eval_limit": int, "max_items": int, "stepping": str}
"""Settings of the task itself; every other one goes to the environment's own constructor."""


def has_demonstrations(name: str) -> bool:
    """Whether the task of this name, settings included, brings demonstrations of its own."""
    return parse_call(name)[0] in DEMONSTRATED


def task(name: str, **settings: Any) -> ControlTask:
    """Return the task `name`.

    Args:
        name: a Gymnasium id (`CartPole-v1`, `ale_py:ALE/Pong-v5`), `file.py:function` or `package.module:function`. It
            may bring settings: `Pendulum-v1(g=9.81)`, `CartPole-v1(stepping=vector,max_episode_steps=200)`.
        settings: fields of `ControlTask` (`eval_episodes`, `eval_limit`, `max_items`, `stepping`); every other setting
            is a keyword argument of the environment.

    Raises:
        UserError: unknown id, missing package, or a setting that the environment does not take.
    """
    import yaml

    from polyrl.tasks.control.environment import ControlTask

    base, given = parse_call(name)
    given = {**given, **settings}
    own = {k: parse_value(f"the task {base}", k, OWN_SETTINGS[k], given.pop(k)) for k in OWN_SETTINGS if k in given}
    try:
        arguments = {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in given.items()}
    except yaml.YAMLError:
        raise UserError(f"A setting of '{name}' cannot be read; write them like {base}(g=9.81).") from None
    return ControlTask(name, spec=base, arguments=arguments, **own)
