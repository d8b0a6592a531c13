"""The user's functions run in processes of their own: a call that nothing interrupts is ended, and nothing is lost."""

from __future__ import annotations

import faulthandler
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyrl
from polyrl.errors import UserError
from polyrl.tasks.language import calling, own_process
from polyrl.tasks.language.base import Preference, Reward
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.judge import PreferenceRunner
from polyrl.tasks.language.own_process import OwnProcess, can_fork
from polyrl.tasks.language.reward_runner import RewardError, RewardRunner, Scores
from polyrl.tasks.language.rewards import built_in, load_reward
from tiny_models import save_model

pytestmark = pytest.mark.skipif(not can_fork(), reason="no process can be forked safely here")

PROMPTS = ["p", "q", "r"]
TEXTS = ["a", "bb", "ccc"]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was interrupted has less than the usual two seconds to end by itself."""
    for module in (own_process, calling):
        monkeypatch.setattr(module, "GRACE", 0.4)


def scored(function: Callable[..., Any], timeout: float = 0.6, on_error: Any = "drop", **more: Any) -> Scores:
    policy = CallPolicy(on_error, timeout, **{"process": "own", **more})
    return RewardRunner([Reward("own", function)], policy)(PROMPTS, TEXTS)


def alone(one: Callable[[str], Any]) -> Callable[..., list[Any]]:
    """A reward that looks at each completion by itself."""

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return [one(c) for c in completions]

    return reward


def swallow(text: str) -> float:
    """Hangs on one text, and lets nothing interrupt it."""
    while text == "bb":
        try:
            time.sleep(0.01)
        except BaseException:
            continue
    return float(len(text))


def never_returns_to_python(text: str) -> float:
    """Hangs in C, where no signal is looked at."""
    return float(sum(itertools.repeat(0, 10**14))) if text == "bb" else float(len(text))


HANGING = [swallow, never_returns_to_python, lambda text: time.sleep(1e6) if text == "bb" else float(len(text))]


@pytest.mark.parametrize("one", HANGING, ids=["swallows everything", "hangs in C", "sleeps"])
def test_a_call_that_nothing_interrupts_is_ended(one: Callable[[str], float], caplog: pytest.LogCaptureFixture) -> None:
    found = scored(alone(one), on_error="zero")
    assert found.total == [1.0, 0.0, 3.0]
    assert [(f.row, f.reason) for f in found.failures] == [(1, "took longer than 0.6 seconds")]
    assert ("starts anew" in caplog.text) == (one in HANGING[:2])  # what can be interrupted keeps its process


def test_a_call_that_is_ended_stops_its_run() -> None:
    with pytest.raises(RewardError, match=r"'own' failed on row 2 of 3 .*took longer than 0.6 seconds"):
        scored(alone(swallow), on_error="stop")


@pytest.mark.parametrize("on_error, expected", [("zero", [1.0, 0.5, 1.0]), ("drop", [1.0, None, 1.0])])
@pytest.mark.parametrize("one", HANGING[:1], ids=["swallows everything"])
def test_preference_functions_have_the_same_limits(
    one: Callable[[str], float], on_error: Any, expected: list[float | None]
) -> None:
    def prefer(prompts: list[str], completions_a: list[str], completions_b: list[str]) -> list[float]:
        return [float(one(a) > 0) for a in completions_a]

    runner = PreferenceRunner(Preference("own", prefer), CallPolicy(on_error, 0.6, "own"))
    found = runner(PROMPTS, TEXTS, ["x"] * 3, {})
    assert [None if x != x else x for x in found] == expected
    runner = PreferenceRunner(Preference("own", prefer), CallPolicy("stop", 0.6, "own"))
    with pytest.raises(UserError, match=r"preference 'own' failed on comparison 2 of 3 .*took longer than 0.6 seconds"):
        runner(PROMPTS, TEXTS, ["x"] * 3, {})


@pytest.mark.parametrize(
    "end, reason",
    [
        (lambda: os._exit(3), "ended its process with exit code 3"),
        (lambda: os._exit(0), "ended its process"),
        (lambda: [faulthandler.disable(), os.kill(os.getpid(), signal.SIGSEGV)], "had its process killed by SIGSEGV"),
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "had its process killed by SIGKILL, perhaps because memory ran out",
        ),
    ],
    ids=["exit 3", "exit 0", "segmentation fault", "kill"],
)
def test_a_function_that_ends_its_process_fails_on_its_sample(end: Callable[[], None], reason: str) -> None:
    found = scored(alone(lambda text: end() or 0.0 if text == "bb" else 1.0), timeout=20)
    assert [(f.row, f.reason) for f in found.failures] == [(1, reason)]
    assert [found.total[0], found.total[2]] == [1.0, 1.0]


def test_three_lost_processes_are_enough() -> None:
    found = scored(alone(lambda text: os._exit(1)), on_error="zero", timeout=20)
    texts = [f"{n}" for n in range(6)]
    runner = RewardRunner([Reward("own", alone(lambda text: os._exit(1)))], CallPolicy("zero", 20, "own"))
    reasons = [f.reason for f in runner(texts, texts).failures]
    assert reasons[:3] == ["ended its process with exit code 1"] * 3
    assert reasons[3:] == ["not tried, since 3 samples before it ended the function's process"] * 3
    assert len(found.failures) == 3


# ------------------------------------------------------------------------------------------- what a function keeps


class Counting:
    """A reward that is an object with a model, a lambda and a count."""

    def __init__(self) -> None:
        self.calls = 0
        self.model = torch.nn.Linear(1, 1)
        self.cannot_be_pickled = lambda x: x

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.calls += 1
        inputs = torch.tensor([[float(len(c))] for c in completions])
        with torch.no_grad():
            return (self.model(inputs)[:, 0] + 1000 * self.calls).double().tolist()


def test_objects_keep_their_models_and_their_state(caplog: pytest.LogCaptureFixture) -> None:
    reward = Counting()
    runner = RewardRunner([Reward("counting", reward)], CallPolicy(process="own"))
    with torch.no_grad():
        expected = reward.model(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0]
    for call in (1, 2, 3):
        found = runner(PROMPTS, TEXTS).total
        assert found == (expected + 1000 * call).double().tolist()
    assert reward.calls == 0  # they are counted where they are made, and that is told
    assert caplog.text.count("changes 'self.calls', which only its own process sees") == 1
    here = RewardRunner([Reward("counting", reward)], CallPolicy(process="same"))
    here(PROMPTS, TEXTS)
    assert reward.calls == 1


def test_a_list_that_only_the_process_sees_is_told(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(prompts)

    scored(reward)
    assert seen == [] and "changes 'seen'" in caplog.text
    scored(reward, process="same")
    assert seen == TEXTS


def test_by_itself_a_file_has_a_process_and_an_object_of_python_none(tmp_path: Path) -> None:
    """What a function given from Python collects is there for whoever gave it; a file's shares nothing with the run."""
    (tmp_path / "mine.py").write_text(
        "import os\ndef reward(prompts, completions, **columns): return [float(os.getpid())] * len(prompts)\n"
    )
    [there, *_] = RewardRunner([load_reward(f"{tmp_path}/mine.py:reward")])(PROMPTS, TEXTS).total
    seen: list[str] = []
    [here, *_] = RewardRunner([Reward("own", alone(lambda text: seen.append(text) or float(os.getpid())))])(
        PROMPTS, TEXTS
    ).total
    assert here == os.getpid() != there and seen == TEXTS


@pytest.mark.parametrize("one", [HANGING[0], HANGING[2]], ids=["swallows everything", "sleeps"])
def test_in_the_same_process_a_call_that_swallows_its_interrupts_ends_too(one: Callable[[str], float]) -> None:
    before = sys.gettrace()
    found = scored(alone(one), timeout=0.2, on_error="zero", process="same")
    assert found.total == [1.0, 0.0, 3.0]
    assert [(f.row, f.reason) for f in found.failures] == [(1, "took longer than 0.2 seconds")]
    assert sys.gettrace() is before  # a debugger's or a coverage tool's tracing is left as it was


def test_after_an_end_it_starts_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        return [swallow("bb" if c == "hang" else c) * 0 + calls for c in completions]

    runner = RewardRunner([Reward("own", reward)], CallPolicy("zero", 0.6, "own"))
    assert [runner(["p"], ["a"]).total for _ in range(3)] == [[1.0], [2.0], [3.0]]
    assert runner(["p"], ["hang"]).total == [0.0]
    assert "starts anew, without what the function had kept" in caplog.text
    assert runner(["p"], ["a"]).total == [1.0]


def test_random_numbers_follow_the_seed() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    one, again, other = (scored(reward, seed=seed).total for seed in (0, 0, 1))
    assert one == again and not set(one) & set(other)


def test_threads_that_were_there_before_the_fork_hold_nothing_up() -> None:
    """A product that the library computes with several threads here is computed with one there, and does not hang."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        big = torch.randn(300, 300)
        _ = big @ big

        def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [float((big @ big).isfinite().all()) * torch.get_num_threads()] * len(prompts)

        assert scored(reward, timeout=30, on_error="stop").total == [1.0] * 3
    finally:
        torch.set_num_threads(threads)


def test_built_in_rewards_stay_here() -> None:
    runner = RewardRunner([built_in("exact")])
    assert all(caller._process is None for caller in runner._callers.values())


def test_numbers_are_the_same_to_the_bit() -> None:
    values = [0.1 + 0.2, 1e-308, -0.0, 2**53 + 1.0, 1 / 3, None]

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return [values[len(c)] for c in completions]

    texts = ["", "a", "aa", "aaa", "aaaa"]
    own, same = (
        RewardRunner([Reward("r", reward)], CallPolicy(process=p))(texts, texts).parts["r"] for p in ("own", "same")
    )
    assert [x.hex() for x in own] == [x.hex() for x in same] == [float(x).hex() for x in values[:5]]


# ------------------------------------------------------------------------------------------------ what is said


def test_what_is_printed_there_is_printed_here(capsys: pytest.CaptureFixture[str]) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        print("looking at", completions)
        print("odd", file=sys.stderr)
        sys.stdout.write("no line")
        return [1.0] * len(prompts)

    scored(reward)
    said = capsys.readouterr()
    assert said.out == "looking at ['a', 'bb', 'ccc']\nno line" and said.err == "odd\n"


def test_what_cannot_be_sent_is_computed_here(caplog: pytest.LogCaptureFixture) -> None:
    runner = RewardRunner(
        [Reward("own", lambda prompts, completions, tool, **more: [t(1) for t in tool])], CallPolicy(process="own")
    )
    assert runner(["p"], ["a"], tool=[lambda x: x + 1]).total == [2.0]
    assert "is called in this process: its arguments cannot be sent there" in caplog.text


def test_a_function_that_uses_the_gpu_is_called_here(caplog: pytest.LogCaptureFixture) -> None:
    here = os.getpid()

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if os.getpid() != here:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, ...")
        return [1.0] * len(prompts)

    assert scored(reward, on_error="stop", timeout=20).total == [1.0] * 3
    assert "is called in this process: it uses the GPU" in caplog.text


@pytest.mark.parametrize("process", ["own", "same"])
def test_a_failure_shows_its_file_and_line(tmp_path: Path, process: Any) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import json

            def inner(text):
                return json.loads(text)

            def reward(prompts, completions, **columns):
                return [inner("{") for c in completions]
            """
        ),
        encoding="utf-8",
    )

    runner = RewardRunner([load_reward(f"{tmp_path}/mine.py:reward")], CallPolicy("stop", 20, process))
    with pytest.raises(RewardError, match=r"raised JSONDecodeError: .* \(.*mine\.py, line 5\)\.$"):
        runner(PROMPTS, TEXTS)


# --------------------------------------------------------------------------------------------------- its end


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _ends(pids: Sequence[int], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [True, False], ids=["in a call", "between calls"])
def test_it_ends_with_the_process_that_started_it(tmp_path: Path, number: int, busy: bool) -> None:
    """Whatever ends the parent, no process of a function is left, not even one that lets nothing interrupt it."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, time
            from polyrl.tasks.language.own_process import OwnProcess

            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored

            def hang(busy):
                print(os.getpid(), flush=True)
                while busy:
                    try:
                        time.sleep(1)
                    except BaseException:
                        pass

            OwnProcess(hang).call(({busy},), None)
            process = OwnProcess(hang)
            process.call((False,), None)
            time.sleep(1e6)
            """
        ),
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(1 if busy else 2)]
    assert all(pid != parent.pid for pid in pids)
    parent.send_signal(number)
    parent.wait(timeout=120)
    assert _ends(pids)


def test_what_it_has_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
        note.write_text(str(started.pid), encoding="utf-8")
        while True:
            try:
                time.sleep(1)
            except BaseException:
                continue

    found = RewardRunner([Reward("own", reward)], CallPolicy("zero", 0.5, "own"))(["p"], ["a"])
    assert found.total == [0.0]
    assert _ends([int(note.read_text(encoding="utf-8"))])


def test_a_runner_that_is_forgotten_leaves_no_process() -> None:
    process = OwnProcess(lambda: os.getpid())
    pid = process.call((), 20)
    assert _alive(pid)
    del process
    assert _ends([pid])


# ------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), "qwen3")


SMALL: dict[str, Any] = {"prompts_per_step": 2, "completions_per_prompt": 2, "quiet": True}
OPTIONS: dict[str, Any] = {"max_tokens": 4, "eval_prompts": 2, "evaluations": 1, "tensorboard": False}
ROWS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]


def test_a_preference_that_hangs_stops_its_run(tmp_path: Path, model: Path) -> None:
    def prefer(prompts: list[str], completions_a: list[str], completions_b: list[str], **columns: Any) -> list[float]:
        return [swallow("bb")]

    asked = dict(model=model, dataset=ROWS, budget="iterations=1", out=tmp_path / "run", reward=alone(len))
    with pytest.raises(UserError, match=r"preference 'prefer' failed on comparison 1 .* took longer than 0.6 seconds"):
        polyrl.train(
            "online-dpo+preference-label",
            preference=prefer,
            options={**OPTIONS, "reward_timeout": 0.6},
            **asked,
            **SMALL,
        )


@pytest.mark.parametrize("on_error", ["drop", "zero"])
def test_comparisons_that_fail_are_passed_over(tmp_path: Path, model: Path, on_error: str) -> None:
    def prefer(prompts: list[str], completions_a: list[str], completions_b: list[str], **columns: Any) -> list[float]:
        if prompts[0].startswith(("3", "5")):
            raise ValueError("odd")
        return [1.0] * len(prompts)

    options = {**OPTIONS, "on_reward_error": on_error}
    asked = dict(model=model, dataset=ROWS, budget="iterations=3", out=tmp_path / "run", reward=alone(len))
    asked["prompts_per_step"] = 4  # of seven, of which two fail: some comparison is always known
    polyrl.train("online-dpo+preference-label", preference=prefer, options=options, **{**SMALL, **asked})
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    dropped = [record.get("rewards/dropped", 0.0) for record in records[1:]]
    assert (max(dropped) > 0) == (on_error == "drop")


def test_a_run_is_the_same_in_both_processes(tmp_path: Path, model: Path) -> None:
    """Wherever the user's function is called, the run's numbers are equal to the last bit."""
    told = []
    for process in ("own", "same"):
        reward = functools.partial(_scaled, scale=1 / 3)
        options = {**OPTIONS, "reward_process": process}
        asked = dict(model=model, dataset=ROWS, budget="iterations=2", out=tmp_path / process, reward=reward)
        polyrl.train("grpo", options=options, **asked, **SMALL)
        lines = (tmp_path / process / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        told.append([{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines])
    assert told[0] == told[1]


def _scaled(prompts: list[str], completions: list[str], scale: float, **columns: Any) -> list[float]:
    return [scale * len(c) for c in completions]
