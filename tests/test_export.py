"""Policies leave the house: `polyrl.load`, and exported files that act as the policy without polyrl and torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium import spaces
from numpy.typing import NDArray

import polyrl
from polyrl.api import open_policy
from polyrl.cli.main import polyrl as command
from polyrl.errors import UserError
from polyrl.exporting import document, export, numpy_policy
from polyrl.models.graph import Node
from polyrl.models.policies import SquashedGaussianPolicy
from polyrl.tasks.control.spaces import ObservationEncoder

onnx_file = pytest.importorskip("polyrl.exporting.onnx_file", reason="onnx is in the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `dev`")

PARTS = spaces.Dict(
    {
        "place": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        "phase": spaces.Discrete(3, start=1),
        "doors": spaces.MultiBinary(2),
        "tools": spaces.MultiDiscrete([2, 4]),
        "picture": spaces.Box(0, 255, (2, 3), np.uint8),
        "both": spaces.Tuple((spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2))),
    }
)


class Toy(gymnasium.Env[Any, Any]):
    """Shows whatever its space holds, for ten steps."""

    observation_space: spaces.Space[Any] = PARTS
    action_space: spaces.Space[Any] = spaces.Discrete(4, start=2)
    masked = False

    def info(self) -> dict[str, Any]:
        mask = self.np_random.random(4) < 0.4
        mask[int(self.np_random.integers(4))] = True
        return {"action_mask": mask} if self.masked else {}

    def shown(self) -> Any:
        found = self.observation_space.sample()
        self.sign = np.sign(found["place"][0, 0]) if isinstance(found, dict) else 1.0
        return found

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.shown(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(np.sum(action) - 3.5) * self.sign  # what is best depends on the state
        return self.shown(), reward, self.steps >= 10, False, self.info()


class Masked(Toy):
    masked = True


class Switches(Toy):
    action_space = spaces.MultiDiscrete([2, 3, 4])


class Bits(Toy):
    action_space = spaces.MultiBinary([2, 2])


class Arms(Toy):
    action_space = spaces.Box(np.float32([[-2, 0], [1, -5]]), np.float32([[3, 1], [2, 5]]), dtype=np.float32)


class Wide(Toy):
    """Observations in float64 far from 0, where a float32 would lose digits before the mean is taken off."""

    observation_space = spaces.Box(1e6 - 1, 1e6 + 1, (3,), np.float64)
    action_space = spaces.Box(-1, 1, (2,), np.float64)


QUICK: dict[str, Any] = {
    "hidden": "8x8",
    "environments": 2,
    "steps_per_environment": 20,
    "evaluations": 1,
    "budget": "steps=80",
    "quiet": True,
}
OFF_POLICY = {"learning_starts": 10, "batch_size": 8, "evaluations": 1, "budget": "steps=60", "quiet": True}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "choices": ("ppo", Toy, QUICK),
    "several choices": ("ppo", Switches, QUICK),
    "bits": ("ppo", Bits, QUICK),
    "Gaussian": ("ppo", Arms, QUICK),
    "no statistics": ("ppo", Arms, {**QUICK, "normalize_observation": False}),
    "relu": ("ppo", Toy, {**QUICK, "activation": "relu"}),
    "elu": ("ppo", Toy, {**QUICK, "activation": "elu"}),
    "float64": ("ppo", Wide, QUICK),
    "mask": ("ppo", Masked, QUICK),
    "sac": ("sac", Arms, OFF_POLICY),
    "td3": ("td3", Wide, OFF_POLICY),
    "mixture": ("sac+mixture", Arms, OFF_POLICY),
    "dqn": ("dqn", Masked, OFF_POLICY),
    "dueling": ("dqn", Toy, {**OFF_POLICY, "dueling": True, "budget": "steps=300"}),
}


def trained(name: str, folder: Path) -> Path:
    method, task, options = CASES[name]
    polyrl.train(method, task=task, out=folder / "run", **options)
    return folder / "run"


def shown_by(task: Any, count: int = 40) -> tuple[list[Any], NDArray[np.bool_] | None]:
    """Observations of an environment, and masks."""
    environment, found, masks = task(), list[Any](), list[Any]()
    for at in range(count):
        observation, info = environment.reset(seed=at) if at % 8 == 0 else environment.step(0)[::4]
        found.append(observation)
        masks += [info["action_mask"]] if "action_mask" in info else []
    return found, np.array(masks) if masks else None


def stacked(space: spaces.Space[Any], found: list[Any], name: str = "observation") -> dict[str, NDArray[Any]]:
    """Inputs of the ONNX graph: arrays of the space's leaves."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts = [stacked(part, [one[key] for one in found], f"{name}.{key}") for key, part in items]
        return {key: array for part in parts for key, array in part.items()}
    return {name: np.array(found, dtype=space.dtype)}


@pytest.mark.parametrize("name", CASES)
def test_exported_files_act_as_the_policy_does(name: str, tmp_path: Path) -> None:
    run, task = trained(name, tmp_path), CASES[name][1]
    observations, masks = shown_by(task)
    policy = polyrl.load(run, task=task)
    wanted = policy.act_all(observations, masks)
    one_by_one = [policy.act(o, None if masks is None else masks[k]) for k, o in enumerate(observations)]
    assert np.array_equal(np.array(one_by_one), wanted) or np.allclose(np.array(one_by_one), wanted, atol=1e-6)
    space = task.action_space
    assert all(space.contains(action if not isinstance(action, int) else np.int64(action)) for action in one_by_one)

    made = polyrl.export(run, "numpy", task=task)
    assert [f.name for f in made.files] == ["policy.npz", "policy.py"] and made.observations == 52
    assert made.difference <= 1e-6
    found = numpy_policy.Policy(str(made.files[0])).act_all(observations, masks)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6)

    (file,) = polyrl.export(run, "onnx", task=task).files
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = stacked(task.observation_space, observations)
    inputs |= {} if masks is None else {"action_mask": masks}
    assert {i.name for i in session.get_inputs()} == set(inputs)
    (answered,) = session.run(None, inputs)
    assert answered.dtype == wanted.dtype and answered.shape == wanted.shape
    assert np.allclose(answered, wanted, rtol=1e-6, atol=1e-6)
    if name == "float64":  # ten standard deviations off the mean, and what lies beyond, are the same to the policy
        far = [np.full(3, 1e6 + off) for off in (1e6, 1e7)]
        (both,) = session.run(None, {"observation": np.array(far)})
        near = numpy_policy.Policy(str(made.files[0])).act_all(far)
        assert np.array_equal(both[0], both[1]) and np.array_equal(near[0], near[1])
        assert np.allclose(both, policy.act_all(far), atol=1e-6)
    if np.issubdtype(wanted.dtype, np.integer) and name != "bits":
        assert len(np.unique(wanted, axis=0)) > 1, "one action everywhere would prove nothing"


def test_the_files_act_where_there_is_neither_polyrl_nor_torch(tmp_path: Path) -> None:
    run = trained("choices", tmp_path)
    polyrl.export(run, "numpy", task=Toy, out=tmp_path / "out")
    observations, _ = shown_by(Toy, 3)
    wanted = [polyrl.load(run, task=Toy).act(one) for one in observations]
    plain = [{key: part.tolist() if hasattr(part, "tolist") else part for key, part in o.items()} for o in observations]
    for one in plain:
        one["both"] = [x.tolist() if hasattr(x, "tolist") else x for x in one["both"]]
    program = (
        "import json, sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'polyrl', 'gymnasium'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from policy import Policy\n"
        "policy = Policy('policy.npz')\n"
        "print([int(policy.act(o)) for o in json.loads(sys.stdin.read())])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(plain),
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == wanted


@pytest.mark.parametrize("space", [PARTS, *PARTS.spaces.values()])
def test_observations_become_the_same_numbers(space: spaces.Space[Any]) -> None:
    encoder = ObservationEncoder(space)
    described = json.loads(json.dumps(encoder.described()))
    space.seed(0)
    for _ in range(50):
        one, row = space.sample(), np.empty(encoder.size)
        encoder.encode(one, row)
        assert np.array_equal(numpy_policy.encode(described, one), row)


def test_lists_of_any_length_are_encoded_and_refused_by_onnx(tmp_path: Path) -> None:
    encoder = ObservationEncoder(spaces.Sequence(spaces.Box(-1, 1, (2,))), max_items=4)
    for count in range(5):
        one, row = tuple(np.full(2, k + 1.0) for k in range(count)), np.empty(encoder.size)
        encoder.encode(one, row)
        assert np.array_equal(numpy_policy.encode(encoder.described(), one), row)
    with pytest.raises(ValueError, match="5 items, more than 4"):
        numpy_policy.encode(encoder.described(), [np.zeros(2)] * 5)
    about = {"observation": encoder.described(), "nodes": [{"kind": "tanh"}], "masked": 0}
    with pytest.raises(UserError, match="lists of any length"):
        onnx_file.model(document.Document(about, {}, encoder.size))


def test_layer_normalization_and_every_node_against_a_plain_computation() -> None:
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    scale, shift = np.arange(1, 6, dtype=np.float32), np.arange(5, dtype=np.float32)
    nodes = [
        Node("layer-norm", {"scale": scale, "shift": shift}, {"epsilon": 1e-5}),
        Node("beside", lists=([Node("elu")], [Node("take", settings={"begin": 1, "end": 3}), Node("relu")])),
        Node("expert", settings={"experts": 2, "numbers": 2}),
    ]
    arrays = dict[str, NDArray[Any]]()
    about = {
        "observation": {"kind": "Box", "shape": [5], "dtype": "float32"},
        "action": {"kind": "Box", "shape": [2], "dtype": "float32"},
        "nodes": [document._plain(node, arrays) for node in nodes],
        "masked": 0,
        "task": "none",
        "method": "none",
    }
    low = np.full(2, -100, np.float32)
    made = document.Document(about, arrays | {"action_low": low, "action_high": -low}, 5)
    policy = numpy_policy.Policy(export.io.BytesIO(made.packed()))
    found = policy.act_all(x)
    for row, action in zip(x.astype(np.float64), found, strict=True):
        normal = (row - row.mean()) / np.sqrt(row.var() + 1e-5) * scale + shift
        table = [v if v >= 0 else np.exp(v) - 1 for v in normal] + [max(v, 0.0) for v in normal[1:3]]
        best = 0 if table[-2] >= table[-1] else 1
        assert np.allclose(action, table[2 * best : 2 * best + 2], atol=1e-5)
    session = onnxruntime.InferenceSession(onnx_file.model(made).SerializeToString())
    assert np.allclose(session.run(None, {"observation": x})[0], found, atol=1e-6)


def test_nothing_is_written_that_acts_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("sac", tmp_path)
    monkeypatch.setattr(SquashedGaussianPolicy, "greedy", lambda self: [Node("take", settings={"begin": 0, "end": 4})])
    for kind in ("numpy", "onnx"):
        with pytest.raises(UserError, match="acts otherwise than the policy"):
            polyrl.export(run, kind, task=Arms)  # type: ignore[arg-type]
    assert not (run / "exported").exists()


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    run = trained("td3", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "policy.py").write_text("mine = 1\n")
    with pytest.raises(UserError, match="exists already"):
        polyrl.export(run, "numpy", task=Wide, out=out)
    assert [p.name for p in out.iterdir()] == ["policy.py"] and (out / "policy.py").read_text() == "mine = 1\n"
    polyrl.export(run, "numpy", task=Wide, out=out, overwrite=True)
    assert "class Policy" in (out / "policy.py").read_text()


def test_a_loaded_policy_says_what_it_needs(tmp_path: Path) -> None:
    policy = polyrl.load(trained("mask", tmp_path), task=Masked)
    observation = shown_by(Masked, 1)[0][0]
    with pytest.raises(UserError, match="action mask"):
        policy.act(observation)
    with pytest.raises(UserError, match="action mask"):
        policy.act(observation, np.zeros(4, bool))
    with pytest.raises(UserError, match="does not fit"):
        policy.act({"place": 1}, np.ones(4, bool))
    for allowed in range(4):
        assert policy.act(observation, np.eye(4, dtype=bool)[allowed]) == allowed + 2  # Discrete starts at 2
    sampled = {policy.act(observation, np.ones(4, bool), sampled=True) for _ in range(60)}
    assert len(sampled) > 1
    exported = polyrl.export(tmp_path / "run", "numpy", task=Masked)
    other = numpy_policy.Policy(str(exported.files[0]))
    with pytest.raises(ValueError, match="action mask"):
        other.act(observation)
    with pytest.raises(ValueError, match="allows no action"):
        other.act(observation, np.zeros(4, bool))


def test_a_policy_is_the_one_that_evaluations_judge(tmp_path: Path) -> None:
    polyrl.train("ppo", task="CartPole-v1", out=tmp_path / "run", budget="steps=4000", seed=3, quiet=True)
    policy, state = polyrl.load(tmp_path / "run"), open_policy(tmp_path / "run")
    environment = gymnasium.make("CartPole-v1")
    judge = state.judge  # type: ignore[attr-defined]
    for episode, played in enumerate(judge(state.judged, 3)):  # type: ignore[attr-defined]
        observation, _ = environment.reset(seed=judge.seed_of(episode))
        total, over = 0.0, False
        policy.reset()
        while not over:
            observation, reward, terminated, truncated, _ = environment.step(policy.act(observation))
            total, over = total + float(reward), terminated or truncated
        assert total == played.total


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    polyrl.train("ppo", task="CartPole-v1", out=tmp_path / "run", budget="steps=500", quiet=True)
    said = CliRunner().invoke(command, ["export", str(tmp_path / "run"), "--format", "onnx"])
    assert said.exit_code == 0, said.output
    assert "policy.onnx" in said.output and "the same actions" in said.output
    again = CliRunner().invoke(command, ["export", str(tmp_path / "run"), "--format", "onnx"])
    assert isinstance(again.exception, UserError) and "exists already" in str(again.exception)


def test_other_runs_are_refused_in_one_sentence(tmp_path: Path) -> None:
    polyrl.train("nash-mp", out=tmp_path / "run", budget="updates=2", quiet=True)
    with pytest.raises(UserError, match="no run on an environment"):
        polyrl.load(tmp_path / "run")
    with pytest.raises(UserError, match="no run on an environment"):
        polyrl.export(tmp_path / "run", "numpy")
    with pytest.raises(UserError, match="onnx or numpy"):
        polyrl.export(tmp_path / "run", "torch")  # type: ignore[arg-type]


def test_an_actor_without_a_form_is_refused(tmp_path: Path) -> None:
    from polyrl.models.policies import RandomActor

    with pytest.raises(UserError, match="RandomActor has no form"):
        RandomActor(spaces.Discrete(2)).greedy(False)


UNFIT: dict[str, tuple[spaces.Space[Any], list[Any]]] = {
    "box": (PARTS["place"], [np.zeros(4), np.zeros((1, 4)), np.full((2, 2), np.nan), [[0, 0], [0, np.inf]], None]),
    "transposed": (spaces.Box(-1, 1, (2, 3)), [np.zeros((3, 2)), np.zeros(6)]),
    "bytes": (spaces.Box(0, 255, (2, 3), np.uint8), [np.full((2, 3), n) for n in (0.5, 256, -1, np.nan)]),
    "choice": (spaces.Discrete(3, start=2), [1, 5, 2.5, np.nan, None, [2]]),
    "choices": (spaces.MultiDiscrete([2, 3]), [[0], [0, 3], [0.5, 0], [-1, 0], [0, 1, 0]]),
    "bits": (spaces.MultiBinary(2), [[0, 2], [0.5, 0], [1]]),
    "dict": (spaces.Dict({"a": spaces.Discrete(2)}), [{}, {"b": 0}, {"a": 0, "b": 0}, [0], 0]),
    "tuple": (spaces.Tuple([spaces.Discrete(2)]), [(), (0, 0), {"a": 0}]),
}


@pytest.mark.parametrize("name", UNFIT)
def test_files_refuse_the_observations_that_the_policy_refuses(name: str) -> None:
    space, unfit = UNFIT[name]
    encoder = ObservationEncoder(space)
    for one in unfit:
        row = np.full(encoder.size, np.nan)
        try:
            encoder.encode(one, row)
        except (ValueError, TypeError, KeyError, IndexError):
            row[:] = np.nan
        assert not np.isfinite(row).all(), f"{one} fits, so it belongs elsewhere"
        with pytest.raises(ValueError, match="the observation"):
            numpy_policy.encode(encoder.described(), one)


def test_files_refuse_masks_of_another_shape_and_take_no_observations(tmp_path: Path) -> None:
    polyrl.export(trained("mask", tmp_path), "numpy", task=Masked)
    policy = numpy_policy.Policy(str(tmp_path / "run" / "exported" / "policy.npz"))
    four = shown_by(Masked, 4)[0]
    for mask in (np.ones((1, 4)), np.ones(4), np.ones((4, 3))):  # one mask would have been taken for all
        with pytest.raises(ValueError, match=r"mask's shape is .* and not \(4, 4\)"):
            policy.act_all(four, mask)
    assert policy.act_all([], np.ones((0, 4))).shape == (0,)
    policy.about["masked"] = 0
    with pytest.raises(ValueError, match="without an action mask"):
        policy.act_all(four, np.ones((4, 4)))


BOX = spaces.Box(-1, 1, (2,), np.float32)
NAMED: dict[str, spaces.Space[Any]] = {
    "whole numbers": spaces.Dict({1: BOX, 2: spaces.Discrete(2)}),  # type: ignore[dict-item]
    "NumPy's whole numbers": spaces.Dict({np.int64(1): BOX}),  # type: ignore[dict-item]
    "dots": spaces.Dict({"a.b": BOX, "c": spaces.Dict({"d.e": spaces.Discrete(3, start=5)})}),
    "nothing in a part": spaces.Dict({"none": spaces.Box(-1, 1, (0,)), "empty": spaces.Dict({}), "b": BOX}),
}


def noted(space: spaces.Space[Any]) -> type[Toy]:
    class Shows(Toy):
        observation_space = space

        def shown(self) -> Any:
            self.sign = 1.0
            return self.observation_space.sample()

    return Shows


@pytest.mark.parametrize("name", NAMED)
def test_parts_of_any_name_are_exported(name: str, tmp_path: Path) -> None:
    made, space = noted(NAMED[name]), NAMED[name]
    polyrl.train("ppo", task=made, out=tmp_path / "run", **QUICK)
    space.seed(0)
    shown = [space.sample() for _ in range(20)]
    wanted = polyrl.load(tmp_path / "run", task=made).act_all(shown)
    numpy_file, _ = polyrl.export(tmp_path / "run", "numpy", task=made).files
    assert np.array_equal(numpy_policy.Policy(str(numpy_file)).act_all(shown), wanted)
    (file,) = polyrl.export(tmp_path / "run", "onnx", task=made).files
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {key: array for key, array in stacked(space, shown).items() if array.size}
    assert {i.name for i in session.get_inputs()} == set(inputs)
    assert np.array_equal(session.run(None, inputs)[0], wanted)


def test_names_that_no_file_can_tell_apart_are_refused() -> None:
    same = ObservationEncoder(spaces.Dict({"a.b": BOX, "a": spaces.Dict({"b": BOX})}))
    about = {"observation": same.described(), "nodes": [{"kind": "tanh"}], "masked": 0}
    with pytest.raises(UserError, match=r"Two parts of the observation would be the input observation\.a\.b"):
        onnx_file.model(document.Document(about, {}, same.size))
    with pytest.raises(UserError, match=r"part \(1, 2\) has a name"):
        ObservationEncoder(spaces.Dict({(1, 2): BOX})).described()  # type: ignore[dict-item]


def test_an_unfinished_run_is_exported_and_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = trained("choices", tmp_path), tmp_path / "out"
    (run / "summary.json").unlink()
    polyrl.export(run, "numpy", task=Toy, out=out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert set(before) == {"policy.npz", "policy.py"}
    (out / "policy.npz").write_bytes(b"old")
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "policy.py":
            raise OSError(28, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="The disk is full"):
        polyrl.export(run, "numpy", task=Toy, out=out, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before | {"policy.npz": b"old"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file cannot be written"):
        polyrl.export(run, "onnx", task=Toy, out=tmp_path / "file")
