"""PPO for control: values under truncation and termination, the three objectives, learning, determinism, resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import SEED, Command, child_environment, reached, read_records
from control_environments import OneState, Walk, random_walk, walks
from polyrl import catalogue
from polyrl.core.experience import Experience
from polyrl.errors import UserError
from polyrl.methods.control.ppo import AdaptiveKLPenalty, UnclippedSurrogate, adapted_penalty
from polyrl.models.normalization import MomentArrays
from polyrl.recipe import Recipe
from polyrl.runs import make_loop, resume_run, start_run
from polyrl.runtime.config import PythonObjects, RunConfig

torch.set_num_threads(1)
HERE = Path(__file__).parent


def recipe(method: str = "ppo", **settings: Any) -> Recipe:
    return catalogue.build(method, {k: str(v) for k, v in settings.items()}, domain="control")


def make_config(
    make: Callable[..., Any] | None, method: str = "ppo", **settings: Any
) -> tuple[RunConfig, PythonObjects]:
    fields = {"task": "mine", "budget": "iterations=3", "evaluations": 1, "eval_episodes": 2, "tensorboard": False}
    options = {k: settings.pop(k) for k in [*settings] if k in RunConfig.__dataclass_fields__}
    values = {k: str(v) for k, v in settings.items()}
    config = RunConfig(
        method=method,
        hyperparameters=values,
        from_python=("task",) if make else (),
        **{**fields, **options},  # type: ignore[arg-type]
    )
    return config, PythonObjects(environment=make)


def loop_of(make: Callable[..., Any] | None, method: str = "ppo", **settings: Any) -> Any:
    config, given = make_config(make, method, **settings)
    return make_loop(config, given=given)[0]


# ------------------------------------------------------------------------------------------- truncation, termination


def critic_at(loop: Any, observation: list[float]) -> float:
    with torch.no_grad():
        return float(loop.run_state.critic(torch.tensor(observation)))


PLAIN = {
    "environments": 5,
    "steps_per_environment": 16,
    "gamma": 0.9,
    "gae_lambda": 0.95,
    "epochs": 4,
    "minibatches": 1,
    "critic_learning_rate": 1e-2,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "max_grad_norm": 100.0,
    "value_coef": 1.0,
    "scale_reward": False,
    "normalize_observation": False,
    "hidden": "32",
    "budget": "iterations=1000",
}


@pytest.mark.parametrize("clock", [False, True])
def test_a_time_limit_is_no_end_of_the_run_state(clock: bool) -> None:
    """Reward 1 for ever is worth 1 / (1 - 0.9) = 10, however often a time limit of 10 steps cuts it."""
    loop = loop_of(lambda: OneState(10, clock=clock), **PLAIN)
    for _ in range(60):
        loop.iterate()
    for step in (0, 5, 9) if clock else (0,):
        seen = [float(i == step) for i in range(10)] if clock else [1.0]
        assert critic_at(loop, seen) == pytest.approx(10.0, abs=0.15)


def test_a_real_end_is_one() -> None:
    """Ten rewards and nothing after them are worth (1 - 0.9^10) / (1 - 0.9) = 6.51 at the first step, 1 at the last."""
    loop = loop_of(lambda: OneState(10, real=True, clock=True), **PLAIN)
    for _ in range(60):
        loop.iterate()
    for step, worth in ((0, 6.513), (5, 4.095), (9, 1.0)):
        assert critic_at(loop, [float(i == step) for i in range(10)]) == pytest.approx(worth, abs=0.15)


def test_advantages_of_a_real_rollout_are_the_sums_that_define_them() -> None:
    """GAE (equation 16) term by term from the rollout, each cut bootstrapped with V(final observation)."""
    loop = loop_of(Walk, environments=3, steps_per_environment=40, gamma=0.9, gae_lambda=0.8)
    run_state, batch = loop.run_state, None
    for stage, parts in loop.recipe.stages():
        for part in parts if stage in ("collect", "score", "credit") else ():
            loop.context.iteration = 1
            batch = part(batch, loop.context)
    assert batch is not None
    value = run_state.critic(batch["observation"]).detach().double()
    final = run_state.critic(batch["final_observation"]).detach().double()
    reward, terminated, truncated = batch["reward"].double(), batch["terminated"], batch["truncated"]
    assert int(terminated.sum()) > 5 and int(truncated.sum()) > 5
    for i in range(3):
        for t in range(40):
            wanted, scale = 0.0, 1.0
            for k in range(t, 40):
                after = 0.0 if terminated[i, k] else float(final[i, k] if truncated[i, k] else value[i, k + 1])
                wanted += scale * (float(reward[i, k]) + 0.9 * after - float(value[i, k]))
                scale *= 0.9 * 0.8
                if terminated[i, k] or truncated[i, k]:
                    break
            assert float(batch["advantage"][i, t]) == pytest.approx(wanted, abs=1e-5), (i, t)
    torch.testing.assert_close(batch["value_target"], batch["advantage"] + batch["value"])


# --------------------------------------------------------------------------------------------------------- objectives


def step(advantage: float, ratio: float) -> tuple[dict[str, torch.Tensor], Experience]:
    logprob = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    fields = {"advantage": torch.tensor([[advantage]], dtype=torch.float64), "weight": torch.ones(1, 1)}
    fields |= {"behaviour_logprob": torch.zeros(1, 1, dtype=torch.float64), "kl_factor": torch.tensor([2.0])}
    return {"logprob": logprob}, Experience(fields)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_nothing_stops_the_unclipped_surrogate(advantage: float, ratio: float) -> None:
    outputs, batch = step(advantage, ratio)
    loss = UnclippedSurrogate().loss(outputs, batch).sum()
    assert loss.item() == pytest.approx(-advantage * ratio)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(outputs["logprob"].grad) == pytest.approx(-advantage * ratio)  # type: ignore[arg-type]


def test_the_penalty_pulls_the_ratio_back_to_one() -> None:
    """Card, check 5: log rho = 0.2 gives k3 = 0.0214028; b = penalty_init * kl_factor = 6."""
    outputs, batch = step(0.0, float(np.exp(0.2)))
    loss = AdaptiveKLPenalty(penalty_init=3.0).loss(outputs, batch).sum()
    assert loss.item() == pytest.approx(6 * 0.0214028, abs=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(outputs["logprob"].grad) == pytest.approx(6 * (np.exp(0.2) - 1))  # type: ignore[arg-type]


def test_the_penaltys_gradient_is_that_of_the_exact_kl() -> None:
    """Averaged over the old policy's actions, rho - 1 - log rho is KL(old || new), and so is its gradient."""
    stream = torch.Generator().manual_seed(0)
    old = torch.randn(4, generator=stream, dtype=torch.float64).log_softmax(0)
    new = torch.randn(4, generator=stream, dtype=torch.float64).requires_grad_()
    exact = (old.exp() * (old - new.log_softmax(0))).sum()
    (wanted,) = torch.autograd.grad(exact, new)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    batch = Experience({"advantage": zero, "behaviour_logprob": old[None], "kl_factor": torch.ones(1)})
    sampled = (old.exp() * AdaptiveKLPenalty().loss({"logprob": new.log_softmax(0)[None]}, batch)[0]).sum()
    (found,) = torch.autograd.grad(sampled, new)
    assert sampled.item() == pytest.approx(exact.item())
    torch.testing.assert_close(found, wanted)


def test_the_penalty_adapts_as_the_paper_says() -> None:
    assert [adapted_penalty(1.0, d, 0.01) for d in (0.0066, 0.0067, 0.0149, 0.0151)] == [0.5, 1.0, 1.0, 2.0]


def test_the_penalty_comes_to_its_target_and_is_remembered() -> None:
    settings = {"environments": 4, "steps_per_environment": 64, "epochs": 4, "minibatches": 4, "learning_rate": 1e-3}
    loop = loop_of(Walk, "ppo+adaptive-kl-penalty(penalty_target=0.01)", budget="iterations=99", **settings)
    assert {t.name for t in loop.recipe.terms} >= {"adaptive-kl-penalty", "value-loss"}
    moved, coefficients = [], []
    for _ in range(20):
        loop.iterate()
        moved.append(loop.context.metrics["penalty/kl"])
        coefficients.append(loop.context.metrics["penalty/coefficient"])
    pairs = zip(coefficients, coefficients[1:], moved, strict=False)
    assert all(after == adapted_penalty(before, d, 0.01) for before, after, d in pairs)
    assert len(set(coefficients)) > 1 and 0.003 < float(np.mean(moved[-10:])) < 0.03
    memory = json.loads(json.dumps(loop.context.memories))["adaptive-kl-penalty"]["factor"]
    assert memory == adapted_penalty(coefficients[-1], moved[-1], 0.01)


def test_before_the_first_step_sampler_and_trainer_are_one_policy() -> None:
    for make in (random_walk, lambda: Walk(discrete=True)):
        loop = loop_of(make, epochs=1, budget="iterations=9")
        for _ in range(3):
            loop.iterate()
            assert loop.context.metrics["logprob_gap"] < 1e-4
            # card, check 5: with the advantage normalized in each minibatch the first loss is -mean(A) = 0
        first = loop_of(make, epochs=1, minibatches=1)
        first.iterate()
        assert abs(first.context.metrics["loss/clipped-surrogate"]) < 1e-5


# ----------------------------------------------------------------------------------------------------------- learning


def test_it_learns_to_balance_a_pole() -> None:
    loop = loop_of(None, task="CartPole-v1", budget="steps=14000", eval_episodes=10, seed=5 + SEED)
    before = loop.run_state.evaluate()[0]["eval/return"]
    while loop.context.progress < 1:
        loop.iterate()
    after = loop.run_state.evaluate()[0]["eval/return"]
    reached(after, 400)
    reached(after - before, 100)
    assert loop.context.spent.steps == 14 * 1024 and loop.context.spent.samples > 20


@pytest.mark.parametrize("kind", ["discrete", "box", "multi-discrete", "bits", "dict"])
def test_every_kind_of_space_trains(kind: str) -> None:
    import gymnasium
    from gymnasium import spaces

    class Kind(gymnasium.Env[Any, Any]):
        """Pays 1 for the right action and 0 for others; all kinds can be learned within some iterations."""

        def __init__(self) -> None:
            self.observation_space = spaces.Box(-1, 1, (1,))
            if kind == "dict":
                self.observation_space = spaces.Dict({"s": spaces.Discrete(2), "o": spaces.Box(-1, 1, (2,))})
            self.action_space = {
                "discrete": spaces.Discrete(3, start=1),
                "box": spaces.Box(-1, 1, (2,)),
                "multi-discrete": spaces.MultiDiscrete([2, 3]),
                "bits": spaces.MultiBinary(2),
                "dict": spaces.Discrete(2),
            }[kind]
            self.t, self.sign = 0, 0

        def seen(self) -> Any:
            if kind == "dict":
                return {"s": self.sign, "o": np.zeros(2, dtype=np.float32)}
            return np.zeros(1, dtype=np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.t, self.sign = 0, int(self.np_random.integers(2))
            return self.seen(), {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action), action
            if kind == "box":
                pay = 1 - float(np.abs(action - np.array([0.6, -0.6])).mean())
            else:
                right = {"discrete": 3, "multi-discrete": [1, 2], "bits": [1, 0], "dict": self.sign}[kind]
                pay = float(np.mean(np.equal(action, right)))
            self.t, self.sign = self.t + 1, int(self.np_random.integers(2))
            return self.seen(), pay, False, self.t == 10, {}

    settings = {"steps_per_environment": 32, "epochs": 6, "minibatches": 2, "learning_rate": 1e-2, "log_std_init": -1}
    loop = loop_of(Kind, budget="iterations=24", **settings)
    loop.iterate()
    before = loop.context.metrics["episode/return"]
    for _ in range(23):
        loop.iterate()
    after = loop.run_state.evaluate()[0]["eval/return"]
    assert after > 8.5 and after > before + 2, (before, after)


# ------------------------------------------------------------------------------------------------- the same numbers

QUICK = {"environments": 3, "steps_per_environment": 20, "epochs": 2, "minibatches": 2, "budget": "iterations=7"}


def told(folder: Path) -> list[dict[str, Any]]:
    """The run's records without wall times."""
    timed = ("seconds", "tokens_per_second", "steps_per_second")
    records = read_records(folder)
    return [{k: v for k, v in r.items() if k not in timed and not k.startswith("seconds/")} for r in records]


def weights(folder: Path) -> dict[str, bytes]:
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert newest.name == "iteration-000007"
    names = ("*.safetensors", "environments.json")
    return {p.name: p.read_bytes() for pattern in names for p in newest.glob(pattern)}


class Stopped(BaseException):
    """As sudden as a kill: nothing catches it on its way."""


@pytest.mark.parametrize(
    ("make", "task"),
    [(random_walk, "mine"), (walks, "mine"), (None, "Pendulum-v1"), (None, "CartPole-v1(stepping=vector)")],
    ids=["single", "next-step", "Pendulum", "own-vector"],
)
def test_a_run_that_stopped_anywhere_resumes_to_the_same_numbers(
    make: Any, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, given = make_config(make, task=task, checkpoint_every=2, **QUICK)
    start_run(config, tmp_path / "whole", given=given).run()

    calls, original = 0, MomentArrays.update

    def stopping(self: Any, observations: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 113:  # in the middle of the sixth rollout
            raise Stopped
        original(self, observations)

    monkeypatch.setattr(MomentArrays, "update", stopping)
    with pytest.raises(Stopped):
        start_run(config, tmp_path / "halved", given=given).run()
    monkeypatch.undo()
    said: list[str] = []
    loop = resume_run(tmp_path / "halved", given=given, say=said.append)
    assert loop.context.iteration == 4
    loop.run()
    assert not said and told(tmp_path / "halved") == told(tmp_path / "whole")
    assert weights(tmp_path / "halved") == weights(tmp_path / "whole")


def test_mujoco_resumes_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    test_a_run_that_stopped_anywhere_resumes_to_the_same_numbers(None, "Hopper-v5", tmp_path, monkeypatch)


def test_a_killed_process_resumes_to_the_same_numbers(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--environments", "3", "--steps-per-environment", "40", "--epochs", "2", "--minibatches", "2"]
    options += ["--budget", "iterations=7", "--checkpoint-every", "2", "--eval-episodes", "2", "--evaluations", "1"]
    words = ["train", "ppo", "--task", "control_environments:random_walk", *options, "--quiet", "--no-tensorboard"]
    code = (
        "import os, signal, sys\n"
        "from polyrl.cli.main import main\n"
        "from polyrl.parts import optimize\n"
        "left, original = int(sys.argv.pop(1)), optimize.step_together\n"
        "def step(*a, **k):\n"
        "    global left\n"
        "    left -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left == 0 else None\n"
        "    return original(*a, **k)\n"
        "optimize.step_together = step\n"
        "sys.argv[0] = 'polyrl'\n"
        "main()\n"
    )

    monkeypatch.chdir(HERE)
    assert polyrl(*words, "--out", tmp_path / "whole").code == 0
    killed = [sys.executable, "-c", code, "22", *words, "--out", str(tmp_path / "halved")]
    ended = subprocess.run(killed, env=child_environment(HERE), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert polyrl("resume", tmp_path / "halved", "--quiet").code == 0
    assert told(tmp_path / "halved") == told(tmp_path / "whole")
    assert weights(tmp_path / "halved") == weights(tmp_path / "whole")


def test_a_failed_rollout_loses_no_finished_iteration_and_leaves_no_trace(tmp_path: Path) -> None:
    class Fragile(Walk):
        left = -1

        def step(self, action: Any) -> Any:
            Fragile.left -= 1
            if Fragile.left == 0:
                raise ConnectionError("the cable came out")
            return super().step(action)

    make: Callable[[], Any] = lambda: Fragile(random=True)  # noqa: E731
    config, given = make_config(make, checkpoint_every=100, **QUICK)
    start_run(config, tmp_path / "whole", given=given).run()
    Fragile.left = 270  # evaluation takes some steps, each iteration 60
    with pytest.raises(UserError, match=r"Environment \d of mine raised ConnectionError: the cable came out"):
        start_run(config, tmp_path / "failed", given=given).run()
    summary = json.loads((tmp_path / "failed" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["iteration"] >= 3
    loop = resume_run(tmp_path / "failed", given=given)
    assert loop.context.iteration == summary["iteration"]
    loop.run()
    assert told(tmp_path / "failed") == told(tmp_path / "whole")


def test_the_models_folder_holds_all_that_evaluation_needs(tmp_path: Path) -> None:
    import polyrl

    result = polyrl.train("ppo", task=random_walk, out=tmp_path / "run", quiet=True, budget="iterations=2")
    again = polyrl.evaluate(tmp_path / "run", task=random_walk)
    assert again == result.final and set(again) == {"eval/return", "eval/return_std", "eval/length"}
    (about,) = [json.loads((tmp_path / "run" / "model" / "policy.json").read_text())]
    assert about["architecture"]["hidden"] == "64x64"
    with pytest.raises(UserError, match="its own task, which a folder cannot hold"):
        polyrl.evaluate(tmp_path / "run")


# --------------------------------------------------------------------------------------------------- command line


def test_play_prints_episodes_and_writes_a_film(
    tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    imageio = pytest.importorskip("imageio.v2")
    monkeypatch.chdir(HERE)
    run = tmp_path / "run"
    quick = ("--budget", "iterations=1", "--eval-episodes", "1", "--quiet", "--no-tensorboard")
    assert polyrl("train", "ppo", "--task", "control_environments.py:walk", "--out", run, *quick).code == 0
    shown = polyrl("play", run, "--episodes", "3")
    assert shown.code == 0 and "mean" in shown.out and shown.out.count("terminated") + shown.out.count("truncated") == 3
    for name in ("film.gif", "film.mp4"):
        filmed = polyrl("play", run, "--episodes", "2", "--video", tmp_path / name)
        assert filmed.code == 0, filmed.err
        frames = [f for f in imageio.get_reader(tmp_path / name)]
        assert len(frames) >= 8 and frames[0].shape[:2] == (32, 48)
        red = (frames[-1][..., 0].astype(int) - frames[-1][..., 1]) > 60
        assert 4 < int(red.sum()) < 100  # the point, on white
    assert {p.name for p in tmp_path.iterdir()} == {"run", "film.gif", "film.mp4"}
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for options, said in (
        (("--video", tmp_path / "film.avi"), "must end in .mp4 or .gif"),
        (("--video", tmp_path / "no" / "film.gif"), "There is no folder"),
        (("--video", tmp_path / "film.gif"), "exists already"),
        (("--render",), "no display"),
        (("--episodes", "0"), "--episodes is 0"),
    ):
        wrong = polyrl("play", run, *options)
        assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and said in wrong.err, wrong.err


def test_what_cannot_be_shown_is_told(tmp_path: Path, polyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    quick = ("--budget", "iterations=1", "--eval-episodes", "1", "--quiet", "--no-tensorboard")
    polyrl("train", "ppo", "--task", "control_environments:OneState", "--out", tmp_path / "run", *quick)
    wrong = polyrl("play", tmp_path / "run", "--video", tmp_path / "film.gif")
    assert wrong.code == 2 and "knows no render mode, and 'rgb_array' is needed" in wrong.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "CartPol-v1"), "Did you mean 'CartPole-v1'"),
        (("--task", "CartPole-v1", "--hidden", "64,64"), "hidden layers are '64,64'"),
        (("--task", "CartPole-v1", "--device", "cuda"), "leave --device cuda away"),
        (("--task", "CartPole-v1", "--environments", "0"), "environments is 0 but must be at least 1"),
        (("--task", "Pendulum-v1(gravity=3)"), "does not take such a setting"),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_nothing_is_written(
    options: tuple[str, ...], said: str, tmp_path: Path, polyrl: Command
) -> None:
    wrong = polyrl("train", "ppo", *options, "--out", tmp_path / "run")
    assert wrong.code == 2 and len(wrong.err.splitlines()) == 1 and said in wrong.err, wrong.err
    assert not (tmp_path / "run").exists()
