"""Runs reward functions and survives them: what raises, hangs or returns nonsense is named, sample by sample."""

from __future__ import annotations

import contextlib
import logging
import math
import numbers
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

from polyrl.errors import UserError
from polyrl.tasks.language.base import Reward, content
from polyrl.tasks.language.phrases import a_kind, counted, quoted, reason_of, shortened
from polyrl.tasks.language.rewards import check_signature, parameters_of

_log = logging.getLogger(__name__)


class RewardError(UserError):
    """A reward function failed on a sample, and the policy is to stop."""


@dataclass(frozen=True)
class RewardFailure:
    """One sample that could not be scored."""

    row: int
    """Number of the sample in the batch, from 0."""
    reward: str
    """Name of the reward; empty if no reward applied."""
    reason: str
    """What went wrong, in a phrase."""


@dataclass
class Scores:
    """What a batch of completions was worth."""

    total: list[float]
    """Weighted sum over the rewards that apply; NaN marks a dropped sample."""
    parts: dict[str, list[float]]
    """Each reward before its weight; NaN where it does not apply or failed."""
    calls: int
    """Samples scored: what a budget of reward calls is charged."""
    failures: list[RewardFailure] = field(default_factory=list)
    """Samples that a reward failed on."""


class _Over(BaseException):
    """Time is up. Not an `Exception`, so that a reward's own `except Exception` does not swallow it."""


class _Bad(Exception):
    """A reward raised, ran out of time or returned something else than one number per completion."""

    def __init__(self, reason: str, timed_out: bool = False, shape: bool = False):
        super().__init__(reason)
        self.timed_out = timed_out
        self.shape = shape


_MOST_TIMEOUTS = 3


class RewardRunner:
    """Calls reward functions on batches and finds the samples that they fail on.

    A function that raises or hangs on a batch is called again on one sample at a time. After three samples that run
    out of time the rest of the batch is given up, so that a dead service costs four time limits and not one a sample.

    on_error: "stop" raises `RewardError` at the first failing sample, "drop" gives it a total of NaN, which the loop
        leaves out, and "zero" gives it a total of 0.
    timeout: seconds that one call may take, on a batch or on one sample; None waits for ever. In the main thread
        a call is interrupted; in another thread it is abandoned and may go on in the background.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        on_error: Literal["stop", "drop", "zero"] = "stop",
        timeout: float | None = 60.0,
    ):
        """Check the rewards; raise `UserError` for one that cannot be called as a reward is."""
        if not rewards:
            raise UserError("There is no reward: name at least one, like numeric or rewards.py:function.")
        if on_error not in ("stop", "drop", "zero"):
            raise UserError(f"What to do on a reward's error must be stop, drop or zero, not '{on_error}'.")
        if timeout is not None and not timeout > 0:
            raise UserError(f"The time limit of rewards must be more than 0 seconds, not {timeout}.")
        names = [reward.name for reward in rewards]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"There are two rewards named {quoted(twice)}; each needs its own name.")
        for reward in rewards:
            check_signature(reward.name, reward.function)
        self.rewards = list(rewards)
        self.on_error = on_error
        self.timeout = timeout
        self._checked: frozenset[str] | None = None

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], /, **columns: Sequence[Any]) -> Scores:
        """Score `completions`, plain texts, one for each of `prompts`; `columns` are the data's other columns.

        Raises `RewardError` when a sample fails and `on_error` is "stop", and `UserError` when a reward needs a column
        that is not there.
        """
        size = len(completions)
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != size:
                raise ValueError(f"'{name}' has {len(values)} values for {size} completions")
        if self._checked != frozenset(columns):
            for reward in self.rewards:
                check_signature(reward.name, reward.function, list(columns))
            self._checked = frozenset(columns)
        given = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        failures: list[RewardFailure] = []
        scored: dict[str, list[float | None]] = {}
        for reward in self.rewards:
            scored[reward.name], failed = self._run(reward, list(prompts), given, columns)
            failures += failed
        broken = {failure.row for failure in failures}
        for row in range(size):
            if row not in broken and all(part[row] is None for part in scored.values()):
                failures.append(RewardFailure(row, "", "no reward applied"))
                self._stop_at(failures[-1], prompts)
        failures.sort(key=lambda failure: failure.row)
        total = [
            math.fsum(r.weight * part for r in self.rewards if (part := scored[r.name][row]) is not None)
            for row in range(size)
        ]
        for failure in failures:
            total[failure.row] = math.nan if self.on_error == "drop" else 0.0
        parts = {name: [math.nan if v is None else v for v in part] for name, part in scored.items()}
        return Scores(total, parts, size, failures)

    def _run(
        self, reward: Reward, prompts: list[Any], completions: list[Any], columns: Mapping[str, Sequence[Any]]
    ) -> tuple[list[float | None], list[RewardFailure]]:
        """Return the reward of each sample, None where it failed, and the failures."""
        size = len(completions)

        def call(rows: slice) -> list[float | str | None]:
            some = {name: list(values[rows]) for name, values in columns.items()}
            # Fresh lists: a function that changes its arguments must not change what the next one sees.
            return self._call(reward, list(prompts[rows]), list(completions[rows]), some)

        if size == 0:
            return [], []
        try:
            answers = call(slice(0, size))
        except _Bad as bad:
            answers = self._one_by_one(reward, bad, call, prompts)
        values: list[float | None] = []
        failures: list[RewardFailure] = []
        for row, answer in enumerate(answers):
            if isinstance(answer, str):
                failures.append(RewardFailure(row, reward.name, answer))
                self._stop_at(failures[-1], prompts)
            values.append(None if isinstance(answer, str) else answer)
        return values, failures

    def _one_by_one(
        self, reward: Reward, bad: _Bad, call: Callable[[slice], list[float | str | None]], prompts: list[Any]
    ) -> list[float | str | None]:
        """Call again on each sample alone; a failed sample's answer is the reason, as text."""
        answers: list[float | str | None] = []
        timeouts = 0
        for row in range(len(prompts)):
            if timeouts >= _MOST_TIMEOUTS:
                answers.append(f"not tried, since {timeouts} samples before it ran out of time")
                continue
            try:
                answers += call(slice(row, row + 1))
            except _Bad as alone:
                answers.append(str(alone))
                timeouts += alone.timed_out
                self._stop_at(RewardFailure(row, reward.name, str(alone)), prompts)
        if not any(isinstance(answer, str) for answer in answers):
            if bad.shape:  # right for each one alone and wrong for all together: the function ignores its batch
                return [str(bad)] * len(answers)
            _log.warning("The reward '%s' %s on a batch, and not on its samples alone.", reward.name, bad)
        return answers

    def _stop_at(self, failure: RewardFailure, prompts: Sequence[Any]) -> None:
        if self.on_error == "stop":
            who = f"The reward '{failure.reward}'" if failure.reward else "Scoring"
            prompt = prompts[failure.row]
            text = shortened(prompt if isinstance(prompt, str) else content(prompt[-1:]))
            place = f"row {failure.row + 1} of {len(prompts)} in the batch"
            raise RewardError(f"{who} failed on {place} (prompt {text}): {failure.reason}.")

    def _call(
        self, reward: Reward, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]
    ) -> list[float | str | None]:
        """Return one number, None or reason of failure per completion; raise `_Bad` if the call fails as a whole."""
        size = len(completions)  # counted first: the function may empty its list
        parameters = parameters_of(reward.function)
        if parameters is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            takes = {p.name for p in parameters}
            columns = {name: values for name, values in columns.items() if name in takes}
        try:
            result = _limited(
                lambda: reward.function(prompts=prompts, completions=completions, **columns), self.timeout
            )
        except UserError:
            raise
        except _Over:
            raise _Bad(f"took longer than {self.timeout:g} seconds", timed_out=True) from None
        except (Exception, SystemExit) as error:
            raise _Bad(f"raised {reason_of(error)}") from error
        if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Collection):
            kind = a_kind(result)
            raise _Bad(f"returned {kind} where a list of numbers belongs, one for each completion", shape=True)
        answers = list(result)
        if len(answers) != size:
            counts = f"{counted(len(answers), 'value')} for {counted(size, 'completion')}"
            raise _Bad(f"returned {counts} where one for each belongs", shape=True)
        return [_number(answer) for answer in answers]


def _number(answer: Any) -> float | str | None:
    """Return the answer as a finite number or None; a text says what is wrong with it."""
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


def _limited(function: Callable[[], Any], seconds: float | None) -> Any:
    """Return `function()`, or raise `_Over` when it takes longer than `seconds`."""
    if seconds is None:
        return function()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _limited_by_alarm(function, seconds)
    return _limited_by_thread(function, seconds)


def _limited_by_alarm(function: Callable[[], Any], seconds: float) -> Any:
    armed = True

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if armed:
            raise _Over

    old_handler = signal.signal(signal.SIGALRM, on_alarm)
    started = time.monotonic()
    # The alarm rings again every second: a bare `except:` in the reward swallows one, and not the next.
    old_delay, old_interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            return function()
        finally:
            armed = False
    finally:  # apart from the line above, which an alarm can interrupt
        signal.setitimer(signal.ITIMER_REAL, 0)
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
