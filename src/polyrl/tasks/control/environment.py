"""A control task: how its environments are made, what their observations and actions are, how a policy is judged."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.vector import VectorEnv

from polyrl.errors import UserError, nearest
from polyrl.runtime.metric import Metric
from polyrl.tasks.control import DEMONSTRATED
from polyrl.tasks.control.processes import Processes
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder
from polyrl.tasks.language.phrases import a_kind, reason_of
from polyrl.tasks.user_code import FINITE_MDP, load_function, raised

if TYPE_CHECKING:
    from polyrl.tasks.control.recorded import Recorded

Environment = gymnasium.Env[Any, Any]
Vector = VectorEnv[Any, Any, Any]
Make = Callable[..., Any]
"""Makes a new gymnasium.Env or VectorEnv."""

STEPPING = ("single", "async", "vector")

OWN = {
    "UnlockGrid-v0": "unlock_grid:UnlockGrid",
    "two-peaks": "two_peaks:TwoPeaks",
    "code-lock": "code_lock:CodeLock",
    "corner-grid": "corner_grid:CornerGrid",
    "lot-sizing": "lot_sizing:LotSizing",
    "catch": "catch:Catch",
    "t-maze": "t_maze:TMaze",
    "slippery-lake": "slippery_lake:SlipperyLake",
    "eight-modes": "eight_modes:EightModes",
    "wall-point": "wall_point:WallPoint",
    "surface-shape": "shapes:SurfaceShape",
    "grid-shape": "shapes:GridShape",
}
"""Environments that are written out here, by their ids."""
for _id, _place in OWN.items():
    gymnasium.register(id=_id, entry_point=f"polyrl.tasks.control.{_place}")


@dataclass
class ControlTask:
    """One Gymnasium environment to be solved.

    Attributes:
        name: what the user typed, settings included.
        spec: the id, or `file.py:function`, without settings.
        make: the user's own function, where it was given from Python or by its place.
        arguments: keyword arguments of the environment.
        stepping: "single": polyrl steps single environments one after another, each episode from a seed of its own, so
            that a run resumes in the middle of an episode; "async": each environment in a process of its own; "vector":
            the environment's own vectorized form. The last two start their episodes anew at every checkpoint.
        max_items: longest list of a Sequence space; 0 refuses such spaces.
        eval_episodes: episodes of one evaluation.
        eval_limit: steps after which an evaluation episode that does not end is cut.
        data: file or folder of transitions that were recorded in it; None takes its own, where it has some.
        skip_bad_rows: leave out, and count, transitions that cannot be used.
    """

    name: str
    spec: str = ""
    make: Make | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    stepping: str = "single"
    max_items: int = 0
    eval_episodes: int = 20
    eval_limit: int = 30_000
    budget: str = "steps=100000"
    data: Path | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        """Look the environment up and refuse impossible settings, before anything is written."""
        self.spec = self.spec or self.name
        if self.stepping not in STEPPING:
            raise UserError(
                f"The stepping of {self.spec} is '{self.stepping}' but must be one of {', '.join(STEPPING)}."
            )
        for name in ("eval_episodes", "eval_limit"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of {self.spec} must be at least 1, not {getattr(self, name)}.")
        if self.make is None and is_function(self.spec):
            self.make = load_function(self.spec, "environment")
        if self.make is None:
            find_spec(self.spec)

    # ------------------------------------------------------------------------------------------------- facts

    @cached_property
    def metric(self) -> Metric:
        """Return of evaluation episodes, with the lines that the environment declares, and its threshold to reach.

        What is known of a problem beside the threshold, such as an optimum or what a heuristic comes to, an environment
        says in `metadata["lines"]`, by name. Where it names a `final_cost`, that is what decides, the lower the better.
        """
        if self.final_cost:
            return Metric(key="eval/cost", label="final cost", higher_is_better=False, lines=self._lines)
        threshold = None if self.make else find_spec(self.spec).reward_threshold
        solved = {} if threshold is None else {"solved": float(threshold)}
        return Metric(
            key="eval/return", label="return", lines={**self._lines, **solved}, target="solved" if solved else ""
        )

    @property
    def _lines(self) -> dict[str, float]:
        declared = self._probed.metadata.get("lines", {}) if self.spec in OWN or self.make else {}
        try:
            return {str(name): float(value) for name, value in declared.items()}
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{self.spec} declares the lines {declared!r}; write names with numbers, such as {{'optimum': 1.0}}."
            ) from None

    @property
    def access(self) -> frozenset[str]:
        """Episodes, and the state after a decision where the environment tells it (`polyrl.core.access`)."""
        told = {"post-decision"} if "post_observation" in self.info_fields else set[str]()
        return frozenset({"episodes", *told})

    @cached_property
    def _probed(self) -> Environment | Vector:
        """One environment, to read its spaces."""
        made = self.create()
        made.close()
        return made

    @property
    def probe(self) -> Any:
        """One environment without its wrappers, for what it knows beside Gymnasium's methods, such as `describe`."""
        return getattr(self._probed, "unwrapped", self._probed)

    @property
    def is_vector(self) -> bool:
        """Whether the user's function makes vector environments."""
        return isinstance(self._probed, VectorEnv)

    @cached_property
    def observations(self) -> ObservationEncoder:
        """How observations become vectors."""
        probe = self._probed
        space = probe.single_observation_space if isinstance(probe, VectorEnv) else probe.observation_space
        return ObservationEncoder(space, max_items=self.max_items, owner=self.spec)

    @cached_property
    def actions(self) -> ActionAdapter:
        """How actions reach the environment."""
        probe = self._probed
        space = probe.single_action_space if isinstance(probe, VectorEnv) else probe.action_space
        return ActionAdapter(space, owner=self.spec)

    @cached_property
    def recorded(self) -> Recorded | None:
        """The transitions of `data`, else the environment's own demonstrations; None where there is none of both.

        Raises:
            UserError: they cannot be read, or do not fit the environment.
        """
        if self.data is None and self.spec not in DEMONSTRATED:
            return None
        from polyrl.tasks.control.recorded import read_demonstrated, read_recorded

        if self.data is None:
            module = importlib.import_module(f"polyrl.tasks.control.{OWN[self.spec].partition(':')[0]}")
            return read_demonstrated(module.demonstrations(), self)
        return read_recorded(self.data, self, skip_bad_rows=self.skip_bad_rows)

    @cached_property
    def reference(self) -> tuple[float, float] | None:
        """Returns that count as 0 and 1 of a normalized score, where `data` is there and says so.

        Raises:
            UserError: they are no numbers, or normalize nothing.
        """
        if self.data is None or not self.data.is_dir():
            return None
        from polyrl.tasks.control import minari

        return minari.reference_scores(minari.read_facts(self.data), self.data)

    @cached_property
    def info_fields(self) -> dict[str, tuple[int, ...]]:
        """What `step` tells in its info beside observation and reward, by name with its shape.

        An environment declares it: `metadata["info_fields"] = {"post_observation": (3,)}`.

        Raises:
            UserError: what is declared are no names with shapes.
        """
        declared = self._probed.metadata.get("info_fields", {})
        try:
            return {str(name): tuple(int(n) for n in shape) for name, shape in declared.items()}
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{self.spec} declares the info fields {declared!r}; write names with shapes, such as "
                "{'post_observation': (3,)}."
            ) from None

    @cached_property
    def final_cost(self) -> str:
        """The info field whose value after the last step policies are judged by; empty: they are judged by returns.

        An environment names one of its info fields, of a single number: `metadata["final_cost"] = "cost"`.
        """
        name = str(self._probed.metadata.get("final_cost", ""))
        if name and self.info_fields.get(name) != ():
            raise UserError(
                f"{self.spec} is judged by the final '{name}', which must be a single number that its "
                f"metadata['info_fields'] declares: {{'{name}': ()}}."
            )
        return name

    @cached_property
    def lasting(self) -> tuple[str, ...]:
        """NumPy arrays of the environment, by attribute, which outlive its episodes: `reset` leaves them as they are.

        An environment declares them, `metadata["lasting"] = ("weights",)`, so that checkpoints hold them and every
        episode of an evaluation begins with those of a new environment.
        """
        return tuple(self._probed.metadata.get("lasting", ()))

    @property
    def render_modes(self) -> list[str]:
        """How the environment can show itself."""
        return [*self._probed.metadata.get("render_modes", [])]

    @cached_property
    def masked(self) -> int:
        """How many actions there are, where the environment tells which are allowed (`info["action_mask"]`); else 0."""
        space = self.actions.space
        if not isinstance(space, gymnasium.spaces.Discrete):
            return 0
        made: Any = self.create()
        try:
            _, info = made.reset(seed=0)
        except Exception:
            return 0  # told by whoever steps it
        finally:
            made.close()
        return int(space.n) if isinstance(info, dict) and "action_mask" in info else 0

    # ------------------------------------------------------------------------------------------------ making

    def create(self, *, render_mode: str | None = None, count: int | None = None) -> Environment | Vector:
        """Make a new environment: single, or what the user's function makes.

        Args:
            render_mode: Gymnasium's, to see it.
            count: how many environments a vector environment should hold, if the user's function lets one choose.

        Raises:
            UserError: it cannot be made.
        """
        if self.make is None:
            return self._from_id(render_mode)
        taken = _parameters(self.make)
        arguments = dict(self.arguments)
        if count is not None and "num_envs" in taken:
            arguments["num_envs"] = count
        if render_mode is not None:
            if "render_mode" not in taken and "**" not in taken:
                raise UserError(
                    f"{self.spec} cannot be shown: let the function take render_mode and hand it to the environment."
                )
            arguments["render_mode"] = render_mode
        try:
            made = self.make(**arguments)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.spec} {raised(error)} when it was asked for an environment.") from error
        if type(made).__name__ == FINITE_MDP:
            raise UserError(f"{self.spec} returned a FiniteMDP without saying so; annotate it: -> FiniteMDP.")
        if not isinstance(made, gymnasium.Env | VectorEnv):
            raise UserError(
                f"{self.spec} returned {a_kind(made)} and not a gymnasium.Env or a gymnasium.vector.VectorEnv."
            )
        return made

    def singles(self, count: int) -> list[Environment]:
        """Make `count` single environments.

        Raises:
            UserError: the user's function returns the same object twice, or does not make single environments.
        """
        made = [self.create() for _ in range(count)]
        if len({id(environment) for environment in made}) < count:
            raise UserError(f"{self.spec} returned the same environment twice; it must make a new one at every call.")
        singles = [environment for environment in made if isinstance(environment, gymnasium.Env)]
        if len(singles) < count:
            raise UserError(f"{self.spec} makes vector environments, and single ones are needed here.")
        return singles

    def vector(self, count: int) -> Vector:
        """Make a vector environment of `count`.

        Raises:
            UserError: it has none, or the user's holds another number.
        """
        if self.make is not None and self.is_vector:
            made = self.create(count=count)
            assert isinstance(made, VectorEnv)
        elif self.stepping == "async":
            made = Processes(self.spec, lambda: self.singles(1)[0], count, self.observations)
        elif self.make is not None or find_spec(self.spec).vector_entry_point is None:
            raise UserError(f"{self.spec} has no vectorized form of its own; use stepping=single or stepping=async.")
        else:
            with _constructor_errors(self.spec):
                made = gymnasium.make_vec(
                    _registered(self.spec), count, vectorization_mode="vector_entry_point", **self.arguments
                )
        if made.num_envs != count:
            raise UserError(
                f"{self.spec} holds {made.num_envs} environments but {count} are asked for; set --environments "
                f"{made.num_envs}, or let the function take num_envs."
            )
        return made

    def _from_id(self, render_mode: str | None) -> Environment:
        shown: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        if _is_mujoco(self.spec):
            _hear_mujoco()
            if shown and not {"camera_id", "camera_name", "default_camera_config"} & self.arguments.keys():
                shown["camera_name"] = "track"  # the free camera lets bodies run out of the picture
        with _constructor_errors(self.spec):
            # the passive checker asks at every step what is asked once here
            return gymnasium.make(_registered(self.spec), disable_env_checker=True, **self.arguments, **shown)


def is_function(spec: str) -> bool:
    """Whether `spec` names a function (`file.py:make`, `package:make`) and not an id (`package:Name-v0`)."""
    place, colon, name = spec.rpartition(":")
    return bool(colon) and (place.endswith(".py") or name.isidentifier())


def _parameters(make: Make) -> frozenset[str]:
    """Names of the parameters that `make` takes; "**" if it takes any."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)


# ---------------------------------------------------------------------------------------- Gymnasium's own environments

PACKAGES = {
    "mujoco": "pip install 'polyrl[control]'",
    "pygame": "pip install 'polyrl[control]'",
    "Box2D": "pip install 'gymnasium[box2d]'",
    "ale": "pip install ale-py",
    "jax": "pip install 'gymnasium[toy-text]' jax",
}
"""What to install when an environment's import fails, by a word in the error."""


def find_spec(name: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered environment `name`.

    Raises:
        UserError: nothing bears this id; the nearest one is named.
    """
    try:
        return gymnasium.spec(_registered(name))
    except gymnasium.error.Error:
        near = nearest(name, {i.lower(): i for i in gymnasium.registry}.values()) or _same_name(name)
        raise UserError(
            f"There is no environment '{name}'.{near} An environment of a package is named package:Name-v0, your own "
            "file.py:function."
        ) from None


def _same_name(name: str) -> str:
    """The newest version of an environment of this name, as a question."""
    stem = name.rpartition("-v")[0].lower() or name.lower()
    same = [i for i in gymnasium.registry if i.rpartition("-v")[0].lower() == stem]
    return f" Did you mean '{same[-1]}'?" if same else ""


def _registered(name: str) -> str:
    """The id without its package, which is imported so that it registers its environments."""
    if name.startswith("ALE/"):
        name = f"ale_py:{name}"
    package, colon, short = name.partition(":")
    if not colon:
        return name
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"The environment '{name}' needs the package '{package}', which cannot be imported ({reason_of(error)}); "
            f"install it."
        ) from error
    gymnasium.register_envs(module)
    return short


_heard: set[str] = set()


def _is_mujoco(name: str) -> bool:
    return str(find_spec(name).entry_point).startswith("gymnasium.envs.mujoco")


def _hear_mujoco() -> None:
    """Let MuJoCo's warnings come once each as Python's, not again and again on the terminal and in a file beside it."""
    with contextlib.suppress(ImportError):  # told by whoever makes the environment
        import mujoco

        def hear(text: str) -> None:
            # what is deprecated in the models that Gymnasium ships is nothing that a user could mend
            if text not in _heard and "deprecated" not in text:
                _heard.add(text)
                warnings.warn(f"MuJoCo: {text.strip()}", RuntimeWarning, stacklevel=2)

        mujoco.set_mju_user_warning(hear)


@contextlib.contextmanager
def _constructor_errors(name: str) -> Iterator[None]:
    """Tell what goes wrong while an environment is made in one sentence."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        way = next((way for word, way in PACKAGES.items() if word.lower() in str(error).lower()), "install it")
        raise UserError(
            f"The environment '{name}' needs a package that is missing ({reason_of(error)}): {way}."
        ) from error
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "keyword argument" in str(error):
            raise UserError(f"The environment '{name}' does not take such a setting ({reason_of(error)}).") from error
        raise UserError(f"The environment '{name}' cannot be made: {reason_of(error)}.") from error
