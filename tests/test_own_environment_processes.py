"""`stepping=async`: faults of an environment are told as of a single one, and so is a process that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from polyrl.errors import UserError
from polyrl.rollout.environments import Environments
from polyrl.rollout.stepping import environments_of
from polyrl.tasks.control.environment import ControlTask

HERE = os.getpid()


class Faulty(gymnasium.Env[Any, Any]):
    """Episodes of four steps. The first to be made in a process that is not this one does wrong what `fault` says."""

    def __init__(self, fault: str = "", everywhere: bool = False):
        if fault == "make" and os.getpid() != HERE:
            raise RuntimeError("not in here")
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
        self.fault = fault if everywhere or os.getpid() != HERE else ""
        self.t = self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        if self.fault == "reset" and self.episode == 2:
            raise LookupError("no second episode")
        return None if self.fault == "none" else (np.zeros(2, np.float32), {})

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t == 3:
            if self.fault == "step":
                self.accelerate()
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "four":
                return np.zeros(2, np.float32), 1.0, False, {}
            if self.fault == "reward":
                return np.zeros(2, np.float32), "much", False, False, {}
            if self.fault == "shape":
                return np.zeros(1, np.float32), 1.0, False, False, {}  # it would be spread over both numbers
        return np.zeros(2, np.float32), None if self.fault == "unpaid" else 1.0, self.t >= 4, False, {}

    def accelerate(self) -> None:
        raise Unpicklable("speed", 7)


class Unpicklable(Exception):
    """Cannot be sent to another process: it is made of two things, and made again of its text."""

    def __init__(self, what: str, limit: int):
        super().__init__(f"{what} above {limit}")
        self.lock = sys.stdout


@pytest.fixture
def made() -> Iterator[Callable[..., Environments]]:
    """Two environments of a kind; whatever is left of them is closed."""
    found: list[Environments] = []

    def make(fault: str, stepping: str = "async") -> Environments:
        task = ControlTask("mine", make=lambda: Faulty(fault, stepping == "single"), stepping=stepping)
        found.append(environments_of(task, 2))
        return found[-1]

    yield make
    for one in found:
        one.close()


def said_by(environments: Environments, steps: int = 9) -> str:
    with warnings.catch_warnings(), pytest.raises(UserError) as error:
        warnings.simplefilter("error")
        environments.start(0, [0, 0])
        for _ in range(steps):
            environments.step(np.zeros(2, dtype=np.int64))
            environments.check_rewards(range(2))
    return str(error.value)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("step", "raised Unpicklable: speed above 7 ("),
        ("reset", "raised LookupError: no second episode ("),
        ("none", "gave None from reset and not (observation, info) at step 0"),
        ("four", "gave 4 values and not (observation, reward, terminated, truncated, info) at step 3"),
        ("reward", "gave the reward 'much' at step 3"),
        ("unpaid", "gave the reward nan at step 1"),
        (
            "shape",
            "gave an observation that does not fit its space (ValueError: its shape is (1,) and not (2,)) at step 3",
        ),
    ],
)
def test_a_fault_in_another_process_is_told_as_in_this_one(
    fault: str, said: str, made: Callable[..., Environments]
) -> None:
    text = said_by(made(fault))
    assert text.startswith(f"Environment 0 of mine {said}")
    assert text == said_by(made(fault, "single"))
    if said.endswith("("):
        line = next(n for n, t in enumerate(Path(__file__).read_text().splitlines(), 1) if said.split()[1][:-1] in t)
        assert f"({__file__}, line {line})" in text


@pytest.mark.parametrize(("fault", "said"), [("killed", "was killed by signal 9"), ("exit", "ended with exit code 3")])
def test_a_process_that_ends_is_told(fault: str, said: str, made: Callable[..., Environments]) -> None:
    assert said_by(made(fault)) == f"Environment 0 of mine stopped the run: its process {said}."


def test_an_environment_that_cannot_be_made_in_a_process_of_its_own(made: Callable[..., Environments]) -> None:
    text = said_by(made("make"))
    assert text.startswith("mine raised RuntimeError: not in here (") and "when it was asked for" in text


def test_a_run_that_ends_well_says_nothing_of_its_processes(tmp_path: Path) -> None:
    small = ["--environments", "2", "--steps-per-environment", "8", "--epochs", "1", "--minibatches", "1"]
    words = ["train", "ppo", "--task", "CartPole-v1(stepping=async)", "--budget", "iterations=2", "--quiet"]
    words += [*small, "--eval-episodes", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "polyrl", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout + done.stderr == ""
