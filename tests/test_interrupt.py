"""Ctrl-C ends a run even where Python swallows its exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from polyrl import catalogue
from polyrl.loop import Loop
from polyrl.runtime.budget import Budget
from polyrl.runtime.config import RunConfig
from polyrl.runtime.context import Context
from polyrl.runtime.interrupt import interruptible
from polyrl.worlds.theory import make_task, make_world


class _Dropped:
    """Its destructor is interrupted: Python prints the KeyboardInterrupt and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """A test runner in the background may have been started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_swallowed_by_a_destructor_is_raised_at_the_next_check() -> None:
    with interruptible() as check:
        check()
        _Dropped()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_raises_where_it_comes() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
    recipe = catalogue.build("nash-mp", wing="theory")
    world = make_world(config, make_task(config, None), recipe)  # type: ignore[arg-type]
    loop = Loop(recipe, world, Context(world=world, seed=0, budget=Budget.parse("iterations=20")))
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
