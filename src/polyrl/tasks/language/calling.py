"""Calls rewards and preference functions and survives them: what raises, hangs or ends its process is told in a phrase.

A function of the user's runs in a process of its own (`own_process`), so that a call which nothing interrupts can be
ended. What is polyrl's own runs here, under the same time limit.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import numbers
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sized
from pathlib import Path
from types import FrameType
from typing import Any

from polyrl.errors import UserError
from polyrl.tasks.language.call_policy import CallPolicy
from polyrl.tasks.language.coroutines import WaitedTooLong, awaited
from polyrl.tasks.language.own_process import GRACE, Ended, NotSent, OutOfTime, OwnProcess, can_fork
from polyrl.tasks.language.phrases import a_kind, counted, reason_of
from polyrl.tasks.language.rewards import parameters_of
from polyrl.tasks.language.run_facts import Logged
from polyrl.tasks.user_code import MODULE_PREFIX, is_user_code, plain_function

_log = logging.getLogger(__name__)

Answer = float | str | None
"""What a function said of one row: a number, None where it does not apply, or as text what was wrong."""

MOST_FAILURES = 3
"""Rows that may run out of time, or end their process, before the rest of a batch is given up."""
_GPU_IN_A_FORK = "Cannot re-initialize CUDA in forked subprocess"


class CallFailed(Exception):
    """A call failed as a whole.

    Attributes:
        hopeless: it ran out of time or ended its process, which costs much each time.
        shape: what it returned has not one value for each row.
    """

    def __init__(self, reason: str, hopeless: bool = False, shape: bool = False):
        super().__init__(reason)
        self.hopeless = hopeless
        self.shape = shape


class _Over(BaseException):
    """Time is up. Not an `Exception`, so that a function's own `except Exception` does not swallow it."""


class Caller:
    """Calls one function on rows.

    Args:
        kind: "reward" or "preference", for messages.
        name: the function's, for messages.
        function: called with keywords, lists of equal length.
        read: turns one returned value into an answer.
        policy: time limit and process.
        noun: what one row is, such as "completion".
    """

    def __init__(
        self,
        kind: str,
        name: str,
        function: Callable[..., Any],
        read: Callable[[Any], Answer],
        policy: CallPolicy,
        noun: str,
    ):
        self.kind, self.name, self.function, self.read = kind, name, function, read
        self.policy, self.noun = policy, noun
        self._process: OwnProcess | None = None
        from_file = str(plain_function(function).__module__).startswith(MODULE_PREFIX)
        own = policy.process == "own" or (policy.process == "auto" and from_file)
        if own and is_user_code(function) and can_fork():
            self._process = OwnProcess(self._answer, policy.seed)
        self._calls = 0
        self.logs = kind == "reward" and is_user_code(function)
        """Whether it is told of the run and may log: a reward of the user's own."""
        self.waits = inspect.iscoroutinefunction(plain_function(function))
        """Whether it is a coroutine: several of them are waited for at once."""
        self.logged = Logged()
        """What the latest call logged."""

    def start(self) -> None:
        """Start the function's process now, where it has one: before models are loaded, so that it holds none."""
        if self._process is not None:
            self._process.start()

    def close(self) -> None:
        """End the function's process."""
        if self._process is not None:
            self._process.close()

    def __call__(self, size: int, given: Mapping[str, Any]) -> list[Answer]:
        """One answer for each of `size` rows; `given` are the arguments, of which it gets those that it takes.

        Raises:
            CallFailed: the call failed as a whole.
            UserError: the function says itself what the user did wrong.
        """
        given = taken(self.function, given)
        timeout = self.policy.timeout
        if self._process is None:
            return self._here(size, given)
        try:
            kind, *said = self._process.call((size, given), None if timeout is None else timeout + GRACE)
        except NotSent as error:
            return self._from_now_on_here(f"its arguments cannot be sent there ({error})", size, given)
        except OutOfTime:
            self._tell_the_end()
            raise CallFailed(f"took longer than {timeout:g} seconds", hopeless=True) from None
        except Ended as error:
            self._tell_the_end()
            raise CallFailed(str(error), hopeless=True) from None
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "gpu":
            return self._from_now_on_here("it uses the GPU, which a process of its own cannot", size, given)
        if kind == "user error":
            raise UserError(*said)
        if kind == "failed":
            raise CallFailed(*said)
        answers, kept, self.logged = said
        if kept:
            _log.warning(
                "The %s '%s' changes %s, which only its own process sees; give process='same' (--reward-process same) "
                "to call it in this one.",
                self.kind,
                self.name,
                " and ".join(f"'{name}'" for name in kept),
            )
        found: list[Answer] = answers
        return found

    def _here(self, size: int, given: Mapping[str, Any]) -> list[Answer]:
        """Call in this process: interrupted when time is up, which not every function minds."""
        self.logged = Logged()
        own = taken(self.function, self.logged.functions(size)) if self.logs else {}
        try:
            result = _limited(lambda: self.function(**given, **own), self.policy.timeout)
            if inspect.isawaitable(result):
                result = _waited_for(result, self.policy.timeout)
        except UserError:
            raise
        except _Over:
            raise CallFailed(f"took longer than {self.policy.timeout:g} seconds", hopeless=True) from None
        except (Exception, SystemExit) as error:
            raise CallFailed(f"raised {reason_of(error)}{place_of(error, self.function)}") from error
        return self._checked(result, size)

    def _answer(self, size: int, given: Mapping[str, Any]) -> tuple[Any, ...]:
        """The same in the function's own process, where every failure is an answer too."""
        self._calls += 1
        before = _visible(self.function) if self._calls == 1 else {}
        try:
            answers = self._here(size, given)
        except UserError as error:
            return "user error", str(error)
        except CallFailed as failure:
            if _GPU_IN_A_FORK in str(failure.__cause__):
                return ("gpu",)
            return "failed", str(failure), failure.hopeless, failure.shape
        except KeyboardInterrupt:  # its own: Ctrl-C does not come here
            return ("interrupt",)
        except BaseException as error:
            return "failed", f"raised {reason_of(error)}{place_of(error, self.function)}", False, False
        after = _visible(self.function) if self._calls == 1 else {}
        return "answers", answers, [name for name in before if before[name] != after.get(name)], self.logged

    def _from_now_on_here(self, why: str, size: int, given: Mapping[str, Any]) -> list[Answer]:
        _log.warning(
            "The %s '%s' is called in this process: %s. It can be interrupted and not ended.", self.kind, self.name, why
        )
        self.close()
        self._process = None
        return self._here(size, given)

    def _tell_the_end(self) -> None:
        _log.warning(
            "The process of the %s '%s' has ended; it starts anew, without what the function had kept there.",
            self.kind,
            self.name,
        )

    def _checked(self, result: Any, size: int) -> list[Answer]:
        if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Collection):
            kind = a_kind(result)
            raise CallFailed(f"returned {kind} where a list of numbers belongs, one for each {self.noun}", shape=True)
        values = list(result)
        if len(values) != size:
            counts = f"{counted(len(values), 'value')} for {counted(size, self.noun)}"
            raise CallFailed(f"returned {counts} where one for each belongs", shape=True)
        return [self.read(value) for value in values]


def taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes, all where it takes any."""
    parameters = parameters_of(function)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(given)
    takes = {p.name for p in parameters}
    return {name: values for name, values in given.items() if name in takes}


def row_by_row(
    caller: Caller, call: Callable[[slice], list[Answer]], size: int, stop: Callable[[int, str], None]
) -> list[Answer]:
    """The answer to each row; where the call on all of them fails, each is tried alone to find those that did it.

    Args:
        caller: for messages.
        call: answers some of the rows, or raises `CallFailed`.
        size: number of rows.
        stop: called with a row and what was wrong with it, as soon as one is found; may raise.
    """
    if size == 0:
        return []
    answers: list[Answer] = []
    try:
        answers = call(slice(0, size))
    except CallFailed as failure:
        answers = _one_by_one(caller, failure, call, size, stop)
    for row, answer in enumerate(answers):
        if isinstance(answer, str):
            stop(row, answer)
    return answers


def _one_by_one(
    caller: Caller,
    failure: CallFailed,
    call: Callable[[slice], list[Answer]],
    size: int,
    stop: Callable[[int, str], None],
) -> list[Answer]:
    answers: list[Answer] = []
    lost: list[str] = []
    for row in range(size):
        if len(lost) >= MOST_FAILURES:
            how = "ran out of time" if all("took longer" in said for said in lost) else "ended the function's process"
            answers.append(f"not tried, since {len(lost)} samples before it {how}")
            continue
        try:
            answers += call(slice(row, row + 1))
        except CallFailed as alone:
            answers.append(str(alone))
            lost += [str(alone)] * alone.hopeless
            stop(row, str(alone))
    if not any(isinstance(answer, str) for answer in answers):
        if failure.shape:  # right for each one alone and wrong for all together: the function ignores its batch
            return [str(failure)] * len(answers)
        _log.warning("The %s '%s' %s on a batch, and not on its samples alone.", caller.kind, caller.name, failure)
    return answers


def read_number(answer: Any) -> Answer:
    """The answer as a finite number or None; a text says what is wrong with it."""
    if answer is None:
        return None
    if not isinstance(answer, numbers.Real) and hasattr(answer, "item"):
        with contextlib.suppress(Exception):  # scalars of NumPy and torch
            answer = answer.item()
    if not isinstance(answer, numbers.Real):
        return f"returned {a_kind(answer)} where a number or None belongs"
    try:
        value = float(answer)
    except OverflowError:
        value = math.inf
    return value if math.isfinite(value) else f"returned {value}"


# ------------------------------------------------------------------------------------------------- what is told


def place_of(error: BaseException, function: Callable[..., Any]) -> str:
    """Where in the user's code it was raised, as ` (rewards.py, line 12)`; empty where no line of it is known."""
    if not is_user_code(function):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(plain_function(function), "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    others = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.prefix)]
    ours = str(Path(__file__).parents[2])
    found = own or [f for f in others if not f.filename.startswith((ours, "<frozen"))]
    if not found:
        return ""
    path = Path(found[-1].filename)
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    return f" ({path}, line {found[-1].lineno})"


def _visible(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function given from Python holds and others may look at: sizes of containers, plain values."""
    plain = plain_function(function)
    code = getattr(plain, "__code__", None)
    if code is None or str(getattr(plain, "__module__", "")).startswith(MODULE_PREFIX):
        return {}
    held: dict[str, Any] = {}
    module = getattr(plain, "__globals__", {})
    held |= {name: module[name] for name in code.co_names if name in module and not inspect.ismodule(module[name])}
    for name, cell in zip(code.co_freevars, getattr(plain, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # not yet filled
            held[name] = cell.cell_contents
    owner = getattr(function, "__self__", None) if inspect.ismethod(function) else function
    if owner is not None and not inspect.isroutine(owner):
        held |= {f"self.{name}": value for name, value in getattr(owner, "__dict__", {}).items()}
    sizes: dict[str, Any] = {}
    for name, value in held.items():
        if isinstance(value, int | float | str):
            sizes[name] = value
        elif isinstance(value, Sized) and not inspect.isclass(value):
            with contextlib.suppress(Exception):
                sizes[name] = len(value)
    return sizes


# ------------------------------------------------------------------------------------------------- time limits


def _limited(function: Callable[[], Any], seconds: float | None) -> Any:
    """Return `function()`, or raise `_Over` when it takes longer than `seconds`."""
    if seconds is None:
        return function()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _limited_by_alarm(function, seconds)
    return _limited_by_thread(function, seconds)


def _waited_for(awaitable: Awaitable[Any], seconds: float | None) -> Any:
    """Return what a coroutine returns, or raise `_Over` when it takes longer than `seconds`."""
    try:
        return awaited(awaitable, seconds)
    except WaitedTooLong:
        raise _Over from None


def _limited_by_alarm(function: Callable[[], Any], seconds: float) -> Any:
    armed, rung = True, False

    def at_a_line(frame: FrameType, event: str, arg: Any) -> None:
        if armed and event == "line":
            raise _Over

    def on_alarm(number: int, frame: FrameType | None) -> None:
        nonlocal rung
        if not armed:
            return
        if rung:  # the function caught the first one: raise at its next line too, which is the one that caught it
            sys.settrace(lambda *_: None)
            while frame is not None and frame.f_code is not _limited_by_alarm.__code__:
                frame.f_trace = at_a_line
                frame = frame.f_back
        rung = True
        raise _Over

    old_handler = signal.signal(signal.SIGALRM, on_alarm)
    started = time.monotonic()
    old_trace = sys.gettrace()
    # The alarm rings again every second, for functions whose bare `except:` swallows the first.
    old_delay, old_interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            return function()
        finally:
            armed = False
    finally:  # apart from the line above, which an alarm can interrupt
        signal.setitimer(signal.ITIMER_REAL, 0)
        if rung:
            sys.settrace(old_trace)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if old_handler is None else old_handler)
        if old_delay:  # somebody else's alarm was running: let it ring when it would have
            left = max(old_delay - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, old_interval)


def _limited_by_thread(function: Callable[[], Any], seconds: float) -> Any:
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="polyrl-reward")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise _Over
    return results[0]
