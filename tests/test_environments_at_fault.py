"""Environments that do not keep to what they say: refused or told in one sentence, in training and in evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import polyrl
from control_environments import Walk, random_walk
from polyrl.errors import UserError
from polyrl.models.actor import DistributionActor
from polyrl.models.control import ControlPolicy
from polyrl.models.distributions import distribution_of
from polyrl.models.mlp import mlp
from polyrl.rollout.evaluation import Evaluator
from polyrl.rollout.stepping import follows_seed
from polyrl.runs import make_loop
from polyrl.runtime.config import RunConfig
from polyrl.tasks.control.environment import ControlTask
from polyrl.tasks.control.spaces import ActionAdapter, ObservationEncoder

Step = Callable[[int], Any]


class Scripted(gymnasium.Env[Any, Any]):
    """Episodes of seven steps whose observations and rewards are functions of the step."""

    def __init__(self, reward: Step = lambda t: 1.0, seen: Step = lambda t: t % 7, space: Any = None):
        self.reward, self.seen = reward, seen
        self.observation_space = spaces.Discrete(7) if space is None else space
        self.action_space = spaces.Discrete(2)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.seen(0), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.seen(self.t), self.reward(self.t), self.t >= 7, False, {}


def trained(make: Callable[..., Any], out: Path, **options: Any) -> polyrl.RunResult:
    settings = {"environments": 2, "steps_per_environment": 8, "epochs": 1, "minibatches": 1}
    options = {"tensorboard": False, "eval_episodes": 2, "evaluations": 1, **options}
    return polyrl.train("ppo", task=make, budget="iterations=2", out=out, quiet=True, options=options, **settings)


# ------------------------------------------------------------------------------------------------------ observations


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Discrete(4), 4),
        (spaces.Discrete(4), -1),
        (spaces.Discrete(4), np.int64(7)),
        (spaces.Discrete(4), 1.7),
        (spaces.Discrete(4), math.nan),
        (spaces.Discrete(4), None),
        (spaces.Discrete(4), "1"),
        (spaces.Discrete(4), np.array([1, 2])),
        (spaces.Discrete(4, start=1), 0),
        (spaces.Discrete(4, start=1), 5),
        (spaces.Discrete(3, start=-1), 2),
        (spaces.MultiDiscrete([3, 3]), np.array([3, 0])),
        (spaces.MultiDiscrete([3, 3]), np.array([0, -1])),
        (spaces.MultiDiscrete([3, 3]), np.array([0.5, 1])),
        (spaces.MultiDiscrete([3, 3]), np.array([1])),
        (spaces.MultiDiscrete([3, 3]), 1),
        (spaces.MultiDiscrete([3, 3], start=[1, 1]), np.array([0, 1])),
        (spaces.MultiDiscrete([[3, 2], [3, 2]]), np.array([0, 1, 2, 1])),
        (spaces.MultiBinary(2), np.array([5, 0])),
        (spaces.MultiBinary(2), np.array([0.5, 0])),
        (spaces.MultiBinary(2), np.array([1])),
        (spaces.Box(-1, 1, (2, 3)), np.zeros((3, 2))),  # the same numbers in another order
        (spaces.Box(-1, 1, (2, 3)), np.zeros(6)),
        (spaces.Box(-1, 1, (3,)), 0.5),
        (spaces.Box(0, 255, (2, 2), np.uint8), np.zeros((1, 1), np.uint8)),
        (spaces.Box(0, 255, (2, 2), np.uint8), np.full((2, 2), 0.5)),
        (spaces.Box(0, 255, (2, 2), np.uint8), np.full((2, 2), 300)),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 2}),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 1, "b": 1}),
        (spaces.Tuple([spaces.Discrete(2)]), (1, 1)),
        (spaces.Sequence(spaces.Discrete(2)), (0, 2)),
    ],
    ids=str,
)
def test_observations_outside_their_space_are_refused(space: spaces.Space[Any], value: Any) -> None:
    encoder = ObservationEncoder(space, max_items=3)
    with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
        encoder.encode(value, np.zeros(encoder.size))


@pytest.mark.parametrize(
    ("space", "value", "wanted"),
    [
        (spaces.Discrete(3), np.int32(2), [0, 0, 1]),
        (spaces.Discrete(3), np.array(1), [0, 1, 0]),
        (spaces.Discrete(2), True, [0, 1]),
        (spaces.Discrete(3, start=-1), -1, [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[1, 5]), [2, 5], [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
        (spaces.Box(-1, 1, (2,)), np.array([[7.0, -7.0]]), [7, -7]),  # bounds are kept to loosely, by many
        (spaces.Box(0, 255, (1, 2), np.uint8), np.array([[0, 255]], np.uint8), [0, 1]),
        (spaces.Box(0, 255, (2,), np.uint8), [51, 255], [0.2, 1]),
    ],
    ids=str,
)
def test_observations_in_their_space_are_taken_in_any_form(space: Any, value: Any, wanted: list[float]) -> None:
    encoder = ObservationEncoder(space)
    into = np.full(encoder.size, 9.0)
    encoder.encode(value, into)
    assert into.tolist() == wanted


def test_so_is_what_a_vector_environment_shows() -> None:
    encoder = ObservationEncoder(spaces.Box(-1, 1, (2, 3)))
    batched = spaces.Box(-1, 1, (4, 2, 3))
    encoder.encode_batch(batched, np.zeros((4, 2, 3)), np.zeros((4, 6)))
    for wrong in (np.zeros((4, 3, 2)), np.zeros((2, 4, 3)), np.zeros(24)):
        with pytest.raises(ValueError, match="its shape is"):
            encoder.encode_batch(batched, wrong, np.zeros((4, 6)))


def test_a_run_whose_environment_leaves_its_space_stops_with_the_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Environment 0 .* does not fit its space .*7 is not.* at step 3"):
        trained(lambda: Scripted(seen=lambda t: 7 if t == 3 else 0), tmp_path / "run")


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (0,)), spaces.Dict({}), spaces.Tuple([]), spaces.Box(0, 1, (2, 0))]
)
def test_spaces_without_numbers_are_refused(space: spaces.Space[Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The observation of .* has no numbers in it"):
        trained(lambda: Scripted(space=space), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    if isinstance(space, spaces.Box):
        with pytest.raises(UserError, match="The action of it has no numbers in it"):
            ActionAdapter(space, "it")
        half = ObservationEncoder(spaces.Dict(none=space, some=spaces.Discrete(2)))
        assert half.size == 2  # a part without numbers is no fault


# ----------------------------------------------------------------------------------------------------------- rewards


def quiet_policy(task: ControlTask) -> ControlPolicy:
    distribution = distribution_of(task.actions.space)
    network = mlp(task.observations.size, (4,), distribution.size)
    return ControlPolicy(network, distribution, task.observations.continuous, normalize=False)


BAD = [
    (math.nan, "nan"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (None, "nan"),
    ("much", "'much'"),
    ([1, 2], r"'\[1, 2\]'"),
]


@pytest.mark.parametrize(("reward", "told"), BAD, ids=[told for _, told in BAD])
def test_a_reward_that_is_not_finite_stops_evaluation_too(reward: Any, told: str) -> None:
    task = ControlTask("mine", make=lambda: Scripted(lambda t: reward if t == 3 else 1.0))
    with pytest.raises(UserError, match=f"Environment 0 of mine gave the reward {told} at step 3 of its episode"):
        Evaluator(task, 0)(DistributionActor(quiet_policy(task)), 2)


@pytest.mark.parametrize("mode", [*AutoresetMode])
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_so_it_does_in_vector_environments(mode: AutoresetMode, reward: float) -> None:
    def make(num_envs: int = 2) -> Any:
        return SyncVectorEnv([lambda: Scripted(lambda t: reward if t == 3 else 1.0)] * num_envs, autoreset_mode=mode)

    task = ControlTask("mine", make=make)
    with pytest.raises(UserError, match=r"gave the reward (nan|inf) at step 3 of its episode"):
        Evaluator(task, 0)(DistributionActor(quiet_policy(task)), 2)


def test_nothing_is_written_of_an_evaluation_that_failed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gave the reward nan at step 3"):
        trained(lambda: Scripted(lambda t: math.nan if t == 3 else 1.0), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("method", "task", "told"),
    [
        ("hdpo", "lost-sales", "eval/cost"),
        ("reinforce", "lost-sales", "eval/cost"),
    ],
)
def test_a_cost_that_is_not_finite_stops_evaluation(method: str, task: str, told: str) -> None:
    loop, _ = make_loop(RunConfig(method=method, task=task, budget="iterations=1", eval_episodes=4))
    with torch.no_grad():
        for named in loop.run_state.parameters().values():
            for _, parameter in named:
                parameter.fill_(math.nan)
    with pytest.raises(UserError, match=rf"The evaluation after iteration 0 came to .*\({told}\) of nan, so the run"):
        loop.run()
    assert loop.context.spent.updates == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [((0, 1.0, False, {}), "gave 4 values and not"), (0, "gave an int and not"), (None, "gave None and not")],
)
def test_steps_of_another_form_are_told(given: Any, told: str) -> None:
    class Old(Scripted):
        def step(self, action: Any) -> Any:
            return given

    task = ControlTask("mine", make=Old)
    with pytest.raises(UserError, match=rf"{told} \(observation, reward, terminated, truncated, info\) at step 1"):
        Evaluator(task, 0)(DistributionActor(quiet_policy(task)), 1)


def test_a_reset_of_another_form_is_told() -> None:
    class Old(Scripted):
        def reset(self, **settings: Any) -> Any:
            return np.zeros(2)

    task = ControlTask("mine", make=lambda: Old(space=spaces.Box(-1, 1, (2,))))
    with pytest.raises(UserError, match=r"gave a ndarray from reset and not \(observation, info\)"):
        Evaluator(task, 0)(DistributionActor(quiet_policy(task)), 1)


# ---------------------------------------------------------------------------------------- the user's own code

FILE = """\
import json
import gymnasium, numpy as np
from gymnasium.vector import SyncVectorEnv, AutoresetMode

def parsed(text):
    return json.loads(text)  # line 6: the last line of the user's own

class Game(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,)); action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); self.t = 0
        if WHERE == "reset": parsed("{")
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.t += 1
        if WHERE == "step" and self.t == 3: parsed("{")
        return np.zeros(1, np.float32), 1.0, self.t >= 5, False, {}

def make():
    if WHERE == "make": parsed("{")
    return Game()

def vector(num_envs=2):
    return SyncVectorEnv([Game] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
"""


@pytest.mark.parametrize("function", ["make", "vector"])
@pytest.mark.parametrize("where", ["make", "reset", "step"])
def test_what_the_users_environment_raises_comes_with_file_and_line(where: str, function: str, tmp_path: Path) -> None:
    if (function, where) == ("vector", "make"):
        return
    file = tmp_path / "game.py"
    file.write_text(f"{FILE}\nWHERE = {where!r}\n")
    with pytest.raises(UserError) as told:
        trained(f"{file}:{function}", tmp_path / "run")  # type: ignore[arg-type]
    assert "raised JSONDecodeError: Expecting property name" in str(told.value)
    assert f"({file}, line 6)" in str(told.value) and "\n" not in str(told.value)


# ------------------------------------------------------------------------------------------------------------- seeds


class Levels(Scripted):
    """Goes on from level to level, whatever its seed; where it stands shows in one number only."""

    def __init__(self, shown: bool):
        super().__init__(space=spaces.Box(-9, 9, (1,)))
        self.shown, self.played = shown, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.played += 1
        return self._seen(), {}

    def _seen(self) -> Any:
        return np.array([self.played % 3 if self.shown else 0], dtype=np.float32)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._seen(), float(self.played % 3), self.t >= 5, False, {}


class Dice(Scripted):
    """Draws from NumPy's global stream."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:1], float(np.random.rand()), self.t >= 7, False, {})


def in_vector(make: Callable[[], Any]) -> Callable[..., Any]:
    return lambda num_envs=2: SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize("form", [lambda make: make, in_vector], ids=["single", "vector"])
def test_an_environment_that_does_not_follow_its_seed_is_found_out(form: Any) -> None:
    def follows(make: Callable[[], Any], actions: Any) -> bool:
        return follows_seed(ControlTask("mine", make=form(make)), actions)

    two = np.arange(16) % 2
    assert follows(Scripted, two) and follows(lambda: gymnasium.make("CartPole-v1"), two)
    assert follows(random_walk, np.zeros((16, 1), np.float32))
    assert not follows(Walk, np.zeros((16, 1), np.float32))
    assert not any(follows(make, two) for make in (Dice, lambda: Levels(True), lambda: Levels(False)))


def test_a_run_in_it_says_so_at_the_start_and_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "levels.py", tmp_path / "run"
    tests = Path(__file__).parent
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(tests)!r})\n"
        "from test_environments_at_fault import Levels\ndef make(): return Levels(False)\n"
    )
    trained(f"{file}:make", run)  # type: ignore[arg-type]
    polyrl.resume(run, quiet=True)
    warnings = json.loads((run / "summary.json").read_text())["warnings"]
    assert any("does not follow its seed" in text for text in warnings)
    seen = capsys.readouterr()
    assert (seen.out + seen.err).count("does not follow its seed") == 2
    quiet = trained(random_walk, tmp_path / "follows")
    assert not json.loads((quiet.folder / "summary.json").read_text())["warnings"]
