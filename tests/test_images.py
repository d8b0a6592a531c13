"""Images: where they lie in an observation, convolutions before dense layers, and `+cnn`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from numpy.typing import NDArray

import polyrl
from polyrl.catalogue import compose
from polyrl.cli.main import polyrl as command
from polyrl.errors import UserError
from polyrl.models.actor_critic import mlp_critic, mlp_policy
from polyrl.models.distributions import Categorical
from polyrl.models.images import ImageFeatures, convolutions_of, image_critic, image_policy
from polyrl.tasks.control.catch import Catch
from polyrl.tasks.control.spaces import Image, ObservationEncoder, image_at

BYTES = spaces.Box(0, 255, (6, 5, 2), np.uint8)
FIRST = spaces.Box(-1, 1, (2, 4, 7), np.float32)
BOTH = spaces.Dict({"b": BYTES, "speed": spaces.Box(-1, 1, (3,), np.float64), "f": FIRST})


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (BYTES, Image(0, 6, 5, 2, False)),
        (FIRST, Image(0, 4, 7, 2, True)),
        (spaces.Box(0, 255, (9, 8), np.uint8), Image(0, 9, 8, 1, False)),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), Image(0, 84, 84, 4, True)),
        (spaces.Box(0, 255, (5, 5, 5), np.uint8), Image(0, 5, 5, 5, False)),
        (spaces.Box(-1, 1, (9, 8), np.float32), None),
        (spaces.Box(0, 255, (9,), np.uint8), None),
        (spaces.Discrete(3), None),
    ],
)
def test_what_is_an_image(space: spaces.Space[Any], found: Image | None) -> None:
    assert image_at(0, space) == found


def test_images_within_an_observation_are_found_and_read_back() -> None:
    encoder = ObservationEncoder(BOTH)
    # a Dict has its parts in the order of their names
    assert encoder.images == (Image(0, 6, 5, 2, False), Image(60, 4, 7, 2, True))
    BOTH.seed(0)
    one, row = BOTH.sample(), np.empty(encoder.size)
    encoder.encode(one, row)
    first, second = (image.of(torch.from_numpy(row[None]).float())[0].numpy() for image in encoder.images)
    np.testing.assert_allclose(first, one["b"].transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(second, one["f"], rtol=1e-6)


def plainly(image: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], stride: int) -> NDArray[Any]:
    """A convolution without padding `[C, H, W]` -> `[O, H', W']`, and relu, by loops."""
    out, _, k, _ = weight.shape
    height, width = ((n - k) // stride + 1 for n in image.shape[1:])
    found = np.zeros((out, height, width))
    for o in range(out):
        for y in range(height):
            for x in range(width):
                window = image[:, y * stride : y * stride + k, x * stride : x * stride + k]
                found[o, y, x] = max((window * weight[o]).sum() + bias[o], 0.0)
    return found


def test_features_are_those_of_plain_loops_and_the_rest_stays() -> None:
    encoder = ObservationEncoder(BOTH)
    stream = torch.Generator().manual_seed(1)
    features = ImageFeatures(encoder.size, encoder.images, "3x2x1,4x2x2", orthogonal=False, generator=stream)
    BOTH.seed(3)
    rows = np.empty((3, encoder.size))
    for row in rows:
        encoder.encode(BOTH.sample(), row)
    found = features(torch.from_numpy(rows).float().reshape(3, 1, -1)).detach().numpy()
    assert found.shape == (3, 1, features.size)
    for row, said in zip(rows, found[:, 0], strict=True):
        wanted = []
        for image, tower in zip(encoder.images, features.towers, strict=True):
            seen = image.of(torch.from_numpy(row[None]))[0].numpy()
            for layer, stride in ((tower[0], 1), (tower[2], 2)):  # type: ignore[index]
                seen = plainly(seen, layer.weight.detach().numpy(), layer.bias.detach().numpy(), stride)
            wanted.append(seen.reshape(-1))
        rest = row[116:]  # after 60 and 56 pixels, in the order of names: b, f, speed
        np.testing.assert_allclose(said, np.concatenate([*wanted, rest]), atol=1e-5)


def test_a_convolution_that_passes_pixels_on_is_the_network_without() -> None:
    """The limit: one filter of one pixel with weight 1."""
    inputs, image = 20, Image(0, 4, 5, 1, False)
    settings: dict[str, Any] = {"hidden": "7", "activation": "tanh", "orthogonal": True}
    continuous, x = np.ones(inputs, dtype=bool), torch.rand(6, inputs, generator=torch.Generator().manual_seed(0))

    def stream() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    looks = image_policy(
        Categorical(3), continuous, [image], convolutions="1x1x1", normalize=False, stream=stream(), **settings
    )
    plain = mlp_policy(Categorical(3), continuous, normalize=False, stream=stream(), **settings)
    judges = image_critic(inputs, [image], convolutions="1x1x1", stream=stream(), **settings)
    critic = mlp_critic(inputs, stream=stream(), **settings)
    for ours, theirs in ((looks.network, plain.network), (judges.network, critic.network)):
        features, *head = ours.children()
        with torch.no_grad():
            for p in features.parameters():
                p.fill_(1.0 if p.dim() > 1 else 0.0)
            for ours_p, theirs_p in zip((p for m in head for p in m.parameters()), theirs.parameters(), strict=True):
                ours_p.copy_(theirs_p)
        assert torch.equal(ours(x), theirs(x))


def test_pixels_stay_as_they_are_and_other_numbers_are_normalized() -> None:
    encoder = ObservationEncoder(BOTH)
    policy = image_policy(
        Categorical(2),
        encoder.continuous,
        encoder.images,
        convolutions="auto",
        hidden="4",
        activation="tanh",
        orthogonal=True,
        normalize=True,
        stream=torch.Generator().manual_seed(0),
    )
    rows = np.random.default_rng(0).uniform(2, 3, (50, encoder.size))
    policy.update_statistics(rows)
    seen = policy.normalize(rows)
    np.testing.assert_allclose(seen[:, :116], rows[:, :116], rtol=1e-6)
    assert np.abs(seen[:, 116:].mean(0)).max() < 0.01
    alone = image_policy(
        Categorical(2),
        np.ones(60, dtype=bool),
        [Image(0, 6, 5, 2, False)],
        convolutions="auto",
        hidden="4",
        activation="tanh",
        orthogonal=True,
        normalize=True,
        stream=torch.Generator().manual_seed(0),
    )
    assert alone.observation_moments is None, "there is nothing to normalize"


def test_convolutions_are_chosen_by_size_and_refused_where_they_do_not_fit() -> None:
    assert convolutions_of("auto", Image(0, 84, 84, 4, True)) == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert convolutions_of("auto", Image(0, 36, 40, 3, False)) == [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert convolutions_of("auto", Image(0, 5, 10, 3, False)) == [(16, 3, 1), (32, 3, 2)]
    assert convolutions_of("auto", Image(0, 4, 10, 3, False)) == [(16, 3, 1)]
    assert convolutions_of("auto", Image(0, 4, 2, 3, False)) == [(16, 2, 1)]
    with pytest.raises(UserError, match="3x9x1 looks at squares of 9, and what it is shown is 8"):
        convolutions_of("3x9x1", Image(0, 8, 20, 1, False))
    with pytest.raises(UserError, match="4x5x1 looks at squares of 5, and what it is shown is 3"):
        convolutions_of("3x3x2,4x5x1", Image(0, 8, 8, 1, False))
    for text in ("", "3x3", "3x0x1", "axbxc", "3x3x1;4x4x1"):
        with pytest.raises(UserError, match="filters, kernel and stride"):
            convolutions_of(text, Image(0, 8, 8, 1, False))


def test_methods_without_such_networks_and_tasks_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sac has no network that could look at images"):
        compose("sac+cnn")
    for method in ("ppo+cnn", "dqn+cnn"):
        with pytest.raises(UserError, match="CartPole-v1 shows none; leave \\+cnn away"):
            polyrl.train(method, task="CartPole-v1", budget="steps=10", out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="whole number from 4 to 84"):
        Catch(3)


def test_show_lists_what_can_be_set() -> None:
    said = CliRunner().invoke(command, ["show", "ppo+cnn", "--task", "catch"]).output
    assert "--convolutions auto" in said and "--images" not in said, "where images lie is the task's to say"


def test_catch_pays_for_a_paddle_below_the_ball() -> None:
    environment = Catch(6)
    for seed in range(20):
        image, _ = environment.reset(seed=seed)
        ball, rewards, over = environment.ball, [], False
        assert image.shape == (6, 6, 1) and image[0, ball] == 255
        while not over:
            paddle = int(np.flatnonzero(image[-1, :, 0])[0])
            image, reward, over, truncated, _ = environment.step(np.int64(1 + np.sign(ball - paddle)))
            rewards.append(reward)
            assert not truncated
        assert rewards == [0.0] * 4 + [1.0], "the ball can always be reached"
    image, _ = environment.reset(seed=0)
    while environment.ball == environment.paddle:
        image, _ = environment.reset()
    rewards = [environment.step(np.int64(1))[1] for _ in range(5)]
    assert rewards == [0.0] * 4 + [-1.0]


LEARNS = {
    "dqn+cnn": ("steps=5000", {"convolutions": "8x3x1", "hidden": "64"}, 0.5),
    "ppo+cnn": ("steps=16000", {"hidden": "64", "learning_rate": 1e-3}, -0.1),
}


@pytest.mark.parametrize("method", LEARNS)
def test_they_learn_to_catch(method: str, tmp_path: Path) -> None:
    """From -0.7; after three seeds dqn had 1.0, 1.0, 1.0 and ppo 0.6, 0.4, 0.5."""
    budget, settings, least = LEARNS[method]
    run = polyrl.train(
        method, task="catch(size=6)", budget=budget, evaluations=2, out=tmp_path / "run", quiet=True, **settings
    )
    assert run.final["eval/return"] > least


@pytest.mark.parametrize("method", ["ppo+cnn", "dqn+cnn", "npg-igt+cnn"])
def test_runs_go_on_to_the_same_numbers(method: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"learning_starts": 64, "steps_per_environment": 32} if "dqn" in method else {}
    settings = {"task": "catch(size=6)", "convolutions": "4x3x1", "hidden": "8", "evaluations": 1, "quiet": True} | more
    run, was = tmp_path / "run", dict[str, bytes]()
    budget = "steps=1200" if "dqn" in method else "steps=3000"
    polyrl.train(method, budget=budget, out=run, checkpoint_every=1, keep_checkpoints=9, **settings)
    files = sorted((run / "model").glob("*.safetensors"))
    was = {file.name: file.read_bytes() for file in files}
    checkpoints = sorted((run / "checkpoints").iterdir())
    for late in checkpoints[len(checkpoints) // 2 :]:  # as a kill would have left it
        shutil.rmtree(late)
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    polyrl.resume(run, quiet=True)
    assert len(checkpoints) > 1 and was == {file.name: file.read_bytes() for file in files}


class Seen(gymnasium.Env[Any, Any]):
    """An image and some numbers, for ten steps."""

    observation_space, action_space = BOTH, spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def shown(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.shown(), float(action), self.steps >= 10, False, {}


@pytest.mark.parametrize("method", ["ppo+cnn", "dqn+cnn", "dqn(dueling=true)+cnn"])
def test_exported_policies_look_at_images_as_the_policy_does(method: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `dev`")
    budget = "steps=60" if "dqn" in method else "iterations=1"
    more: dict[str, Any] = {"learning_starts": 20} if "dqn" in method else {"steps_per_environment": 20}
    polyrl.train(method, task=Seen, out=tmp_path / "run", budget=budget, quiet=True, evaluations=1, **more)
    environment, shown = Seen(), []
    for seed in range(20):
        shown.append(environment.reset(seed=seed)[0])
    wanted = polyrl.load(tmp_path / "run", task=Seen).act_all(shown)
    polyrl.export(tmp_path / "run", "numpy", task=Seen)
    from polyrl.exporting.numpy_policy import Policy

    assert np.array_equal(Policy(str(tmp_path / "run" / "exported" / "policy.npz")).act_all(shown), wanted)
    (file,) = polyrl.export(tmp_path / "run", "onnx", task=Seen).files
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {f"observation.{key}": np.array([one[key] for one in shown]) for key in BOTH.spaces}
    assert np.array_equal(session.run(None, given)[0], wanted)


def test_a_policy_of_images_is_read_from_another_run(tmp_path: Path) -> None:
    from polyrl.models.base import Interface
    from polyrl.models.from_run import FromRun
    from polyrl.tasks.control import task

    polyrl.train("ppo+cnn", task="catch(size=6)", budget="iterations=1", out=tmp_path / "run", quiet=True)
    interface = Interface.of(task("catch(size=6)"))
    network = FromRun(run=str(tmp_path / "run")).make(interface, torch.Generator())
    observation, _ = Catch(6).reset(seed=1)
    policy = polyrl.load(tmp_path / "run")
    row = observation.reshape(1, 1, -1) / 255.0
    from polyrl.core.experience import Experience

    batch = Experience(
        {"observation": torch.from_numpy(row).float(), "action": torch.tensor([[policy.act(observation)]])}
    )
    found = network.outputs(batch, {"logprob"}, lambda *shape: torch.empty(shape))["logprob"]
    assert float(found.detach().exp()) >= 1 / 3, "the most probable action of three"


def test_catch_is_filmed_and_shown_without_what_is_no_option(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from polyrl.cli.main import polyrl as command

    run, film = tmp_path / "run", tmp_path / "film.gif"
    polyrl.train("ppo+cnn", task="catch(size=6)", budget="iterations=1", out=run, quiet=True)
    said = CliRunner().invoke(command, ["play", str(run), "--episodes", "1", "--video", str(film)])
    assert said.exit_code == 0 and film.read_bytes()[:3] == b"GIF", said.output
    shown = CliRunner().invoke(command, ["show", "ppo+cnn", "--task", "catch"]).output
    assert "--convolutions" in shown and "--images" not in shown, "the task says where images lie"
