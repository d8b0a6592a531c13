"""Ctrl-C, SIGTERM and SIGHUP end a run between two iterations, with a checkpoint; workers end with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import read_records, timeless
from polyrl import catalogue
from polyrl.core.context import Context
from polyrl.core.loop import Loop
from polyrl.run_state.theory import make_run_state, make_task
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.runtime.interrupt import SIGNALS, interruptible, stopped_by_signals
from polyrl.runtime.run_folder import RunFolder


class _Dropped:
    """Its destructor is interrupted: Python prints the KeyboardInterrupt and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """A test runner in the background may have been started with Ctrl-C ignored, and under nohup with SIGHUP."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_swallowed_by_a_destructor_is_raised_at_the_next_check() -> None:
    with interruptible() as check:
        check()
        _Dropped()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_for_the_check_and_a_second_raises_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible() as check:
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            check()
        reached = True
        signal.raise_signal(number)
        raise AssertionError("the second signal was not heard")
    assert reached and signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As nohup ignores SIGHUP, and a shell Ctrl-C for what runs in its background."""
    for number in SIGNALS:
        before = signal.signal(number, signal.SIG_IGN)
        try:
            with stopped_by_signals(), interruptible() as check:
                signal.raise_signal(number)
                signal.raise_signal(number)
                check()
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


def test_a_handler_of_the_user_and_other_threads_are_left_alone() -> None:
    seen: list[int] = []
    mine = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    try:
        with interruptible() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, mine)

    def elsewhere() -> None:
        with interruptible():
            seen.append(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[-1] == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_ends_after_the_iteration_that_swallowed_its_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(method="nash-mp", task="rock-paper-scissors", budget="iterations=20")
    recipe = catalogue.build("nash-mp", domain="theory")
    run_state = make_run_state(config, make_task(config, None), recipe)  # type: ignore[arg-type]
    loop = Loop(recipe, run_state, Context(run_state=run_state, seed=0, budget=Budget.parse("iterations=20")))
    whole = Loop.iterate

    def interrupted(self: Loop, *given: Any) -> Any:
        done = whole(self, *given)
        if self.context.iteration == 3:
            _Dropped()
        return done

    monkeypatch.setattr(Loop, "iterate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert loop.context.iteration == 3


# ------------------------------------------------------------------------------------------ a checkpoint, and a status


def loop_in(folder: Path, iterations: int = 20) -> Loop:
    from polyrl.runs import start_run

    more = {"budget": f"iterations={iterations}", "checkpoint_every": 1000, "tensorboard": False}
    return start_run(RunConfig(method="nash-mp", task="rock-paper-scissors", **more), folder)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_with_a_checkpoint_of_its_last_iteration(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyrl.runs import resume_run

    whole = Loop.iterate

    def interrupted(self: Loop, *given: Any) -> Any:
        if self.context.iteration == 4:
            signal.raise_signal(number)  # in the middle of the fifth iteration, which is finished
        return whole(self, *given)

    loop_in(tmp_path / "straight").run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "iterate", interrupted)
        loop_in(tmp_path / "run").run()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    assert "iteration-000005" in {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    loop = resume_run(tmp_path / "run")
    assert loop.context.iteration == 5
    loop.run()
    assert timeless(read_records(tmp_path / "run")) == timeless(read_records(tmp_path / "straight"))


def test_what_starts_anew_at_checkpoints_gets_none_out_of_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that no replay brings back start anew at each: one more would change the numbers."""
    loop = loop_in(tmp_path / "run")
    monkeypatch.setattr(type(loop.run_state), "restarts_at_checkpoints", lambda self: True)
    monkeypatch.setattr(
        loop, "_record", lambda evaluate: loop.context.iteration == 3 and signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"iteration-000000"}


# ------------------------------------------------------------------------------------------------- workers and parents

PARENT = """
import multiprocessing, sys, time
from polyrl.runtime.parent import end_with_parent

def child(started, told):
    end_with_parent(told)
    started.send(multiprocessing.current_process().pid)
    if "run" in sys.argv[1:]:
        import pathlib, test_interrupt
        test_interrupt.loop_in(pathlib.Path(sys.argv[-1]), 10**6).run()
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    told, end = context.Pipe(duplex=False)
    worker = context.Process(target=child, args=(theirs, told))
    worker.start()
    print(ours.recv(), flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "asks":
        end.send(None)
    time.sleep(600)
"""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(happened: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(happened())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize(("method", "how"), [("fork", "killed"), ("spawn", "killed"), ("fork", "asks")])
def test_a_worker_ends_with_its_parent(method: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    line = [sys.executable, str(tmp_path / "parent.py"), method, how]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin and parent.stdout
        worker = int(parent.stdout.readline())
        try:
            assert alive(worker)
            if how == "killed":
                parent.kill()
            else:
                print(file=parent.stdin, flush=True)
            assert wait_for(lambda: not alive(worker)), "it lives on"
        finally:
            parent.kill()
            if alive(worker):
                os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_a_run_in_a_worker_stops_with_a_checkpoint_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    run = tmp_path / "run"
    line = [sys.executable, str(tmp_path / "parent.py"), "fork", "run", str(run)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        try:
            assert wait_for(lambda: (run / "metrics.jsonl").is_file() and RunFolder(run).read_summary())
            parent.kill()
            assert wait_for(lambda: not alive(worker)), "it trains on"
        finally:
            parent.kill()
            if alive(worker):
                os.kill(worker, signal.SIGKILL)
    assert RunFolder(run).read_summary()["status"] == "interrupted"
    newest = max(int(p.name.rpartition("-")[2]) for p in (run / "checkpoints").iterdir())
    assert newest == read_records(run)[-1]["iteration"]
